#pragma once

namespace ddu {

/// What values of type T are computed and added up in: float32, or float64 for float64. Host and device.
template <class T>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename accumulator<T>::type;

}  // namespace ddu
