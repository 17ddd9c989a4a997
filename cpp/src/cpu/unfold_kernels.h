#pragma once

// What one instruction set's kernels offer to the parallel loops of unfold.cpp. The same source, unfold_kernels.cpp, is
// compiled once per instruction set, into a namespace of its own; only these tables cross.

#include <cstdint>

#include "core/scratch.h"
#include "core/tiling.h"
#include "ddu/dtype.h"
#include "ddu/unfold.h"

namespace ddu::cpu {

struct UnfoldKernels {
  /// Channels of a Vec. Cuts between channels lie at multiples of it.
  int lanes;
  /// All taps of a slice at a region of positions.
  void (*forward)(const Geometry&, DType map_type, const Unfold&, const Slice&, const Region&, const Scratch&);
  /// Both gradients of a slice of at most `lanes` channels, as far as the band goes. `map_sums` is the slice's part of
  /// grad_map, a value of the accumulation type for each position; null if not wanted.
  void (*backward)(const Geometry&, DType map_type, const UnfoldBackward&, const Slice&, const Band&, const Scratch&,
                   void* map_sums);
  SumMap sum_map;
};

namespace baseline {
extern const UnfoldKernels unfold_kernels[4];  // by input DType
}
namespace avx2 {
extern const UnfoldKernels unfold_kernels[4];
}
namespace avx512 {
extern const UnfoldKernels unfold_kernels[4];
}

}  // namespace ddu::cpu
