#pragma once

// Whole numbers, on the host and in kernels.

#include <cstdint>

#include "../../cpp/src/sampling.h"

namespace ddu::cuda {

DDU_HD constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// The next multiple of `unit`.
constexpr std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

inline bool is_aligned(const void* memory, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(memory) % bytes == 0; }

}  // namespace ddu::cuda
