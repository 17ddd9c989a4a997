#pragma once

#include <cstdint>
#include <type_traits>

#include "host_device.h"

namespace ddu {

/// a / b, rounded up. Neither is negative.
DDU_HD constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// The same of two ints, in 32 bits: a division of 64 takes a kernel several times as long.
template <class Int, std::enable_if_t<std::is_same_v<Int, int>, bool> = true>
DDU_HD constexpr int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

/// The least multiple of `step` that is not below `value`.
template <class Integer>
constexpr Integer round_up(Integer value, Integer step) {
  return (value + step - 1) / step * step;
}

}  // namespace ddu
