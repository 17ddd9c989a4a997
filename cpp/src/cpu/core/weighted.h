#pragma once

// Sums of a tap's values in a window of Vecs, at all positions of a tile: over taps, and over channels. What the corners of a
// block's cells weigh is worked out for all its positions at once, so that each corner is one load and one multiply-add.
// Internal linkage: compiled once per instruction set.

#include <cstdint>

#include "taps.h"
#include "values.h"

namespace ddu::cpu {
namespace {

/// What the corners a b / c d of the cells of M positions weigh, times a factor for each position.
template <class Acc, int M>
struct CornerWeights {
  alignas(64) Acc a[M], b[M], c[M], d[M];

  CornerWeights(const Acc* __restrict fy, const Acc* __restrict fx, const Acc* __restrict factor) {
    for (int i = 0; i < M; ++i) {
      const Weights<Acc> weights(fy[i], fx[i]);
      a[i] = factor[i] * weights.a();
      b[i] = factor[i] * weights.b();
      c[i] = factor[i] * weights.c();
      d[i] = factor[i] * weights.d();
    }
  }
};

/// body(i, value): factor times the value of a tap at each of a block's M positions.
template <int M, class V, class Acc, class Body>
void for_each_sample(const Tap<Acc>& tap, int n, const Acc* factor, const V* window, Body body) {
  const Acc *fy = tap.fy + n, *fx = tap.fx + n;
  factor += n;
  if (tap.whole_y && tap.whole_x) {
    for (int i = 0; i < M; ++i) body(i, factor[i] * window[tap.cell(n + i)]);
  } else if (tap.whole_y || tap.whole_x) {
    const Acc* fraction = tap.whole_y ? fx : fy;
    const std::int32_t next = tap.whole_y ? 1 : tap.pitch;
    alignas(64) Acc first[M], second[M];
    for (int i = 0; i < M; ++i) {
      const AxisWeights<Acc> weights(fraction[i]);
      first[i] = factor[i] * weights.first;
      second[i] = factor[i] * weights.second;
    }
    for (int i = 0; i < M; ++i) {
      const V* cell = window + tap.cell(n + i);
      body(i, first[i] * cell[0] + second[i] * cell[next]);
    }
  } else {
    const CornerWeights<Acc, M> weights(fy, fx, factor);
    for (int i = 0; i < M; ++i) {
      const V* cell = window + tap.cell(n + i);
      body(i, weights.a[i] * cell[0] + weights.b[i] * cell[1] + weights.c[i] * cell[tap.pitch] +
                  weights.d[i] * cell[tap.pitch + 1]);
    }
  }
}

/// sums += factor * the value of a tap, at `padded` positions.
template <class Acc, int N, class V>
DDU_ONE_COPY void add_samples(Tap<Acc> tap, int padded, const V* window, FactorRows<Acc, N> factors, V* sums) {
  constexpr int M = kBlock<N>;
  for (int n = 0; n < padded; n += M) {
    if (factors.shared) {
      for_each_sample<M>(tap, n, factors.row, window, [&](int i, const V& value) { sums[n + i] += value; });
    } else {
      typename Stage<Acc, N>::Block factor, value;
      factors.load(n, factor);
      sample(tap, n, window, value);
      for (int i = 0; i < M; ++i) sums[n + i] += factor[i] * value[i];
    }
  }
}

/// The value of a tap times one of `values`, at `padded` positions: summed over lanes and added to `sums`, unless that is null:
/// then stored in `products`, a row for each lane. `ones` has as many ones as a tile has positions.
template <class Acc, int N, class V>
DDU_ONE_COPY void multiply_samples(Tap<Acc> tap, int padded, const V* window, const Acc* ones, const V* values, Acc* sums,
                                   Stage<Acc, N>& products) {
  constexpr int M = kBlock<N>;
  for (int n = 0; n < padded; n += M) {
    typename Stage<Acc, N>::Block block;
    for_each_sample<M>(tap, n, ones, window, [&](int i, const V& value) { block[i] = value * values[n + i]; });
    sums ? add_lanes<Acc, N>(block, sums + n) : products.store(n, block);
  }
}

}  // namespace
}  // namespace ddu::cpu
