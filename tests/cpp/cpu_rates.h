#pragma once

// What the tests of the CPU kernels draw their maps and factors from.

#include <cmath>
#include <random>

/// A multiple of 1/256, so that positions are exact in every type: else one that is rounded across a pixel would have a
/// different slope.
inline double between(std::mt19937& random, double low, double high) {
  return std::round(std::uniform_real_distribution<double>(low, high)(random) * 256) / 256;
}

inline double near_rates(std::mt19937& random) { return between(random, -3, 3); }

/// Of which a few are far, or not finite.
inline double any_rates(std::mt19937& random) {
  const double strange[] = {4096, -6e4, INFINITY, NAN, 0, 1};
  const unsigned which = random() % 32;
  return which < 6 ? strange[which] : near_rates(random);
}
