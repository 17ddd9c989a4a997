#pragma once

// What the processor's caches are taken to be.

#include <cstddef>
#include <cstdint>

namespace ddu::cpu {

constexpr std::size_t kLine = 64;  // bytes of a line of memory

/// Whether an output of so many bytes is taken to fit no cache.
constexpr bool exceeds_caches(std::int64_t bytes) { return bytes >= std::int64_t{4} << 20; }

}  // namespace ddu::cpu
