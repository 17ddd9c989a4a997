#pragma once

#include <cstddef>
#include <cstdint>

#include "../../cpp/src/integer.h"

namespace ddu::cuda {

inline bool is_aligned(const void* memory, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(memory) % bytes == 0; }

}  // namespace ddu::cuda
