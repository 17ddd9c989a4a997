#pragma once

#include <cstdint>

namespace ddu {

/// How the elements of an image's tensors lie, [batch, channels, height, width]: without gaps in that order, or in the order of
/// [batch, height, width, channels].
enum class MemoryFormat : std::int32_t { contiguous = 0, channels_last = 1 };

}  // namespace ddu
