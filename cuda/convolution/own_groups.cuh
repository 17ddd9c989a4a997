#pragma once

// Weight groups of few channels are multiplied several at once, as one group whose weights are zero but on the diagonal:
//
//                 channels of 4 groups
//               ┌────┬────┬────┬────┐       A tap of 16 groups, of 4 channels and outputs each, is so the same product as
//      outputs  │ w  │ 0  │ 0  │ 0  │       that of 64 channels and outputs in one group: it would read as many samples by
//      of 4     │ 0  │ w  │ 0  │ 0  │       itself, and multiply zeros that fill up a product of 64 outputs anyway.
//      groups   │ 0  │ 0  │ w  │ 0  │
//               │ 0  │ 0  │ 0  │ w  │       Of the weight's gradient what lies beside the diagonal is left out.
//               └────┴────┴────┴────┘
//
// Kernels see a call with fewer weight groups; only what packs weights, or has their gradient, knows better. A factor that is
// not finite makes NaN of the zeros that it meets, in outputs that do not have it: such sums are made again, without them.

#include "../core/params.cuh"

namespace ddu::cuda {

/// Sizes of the caller's own groups. Channels and outputs are counted in what is multiplied at once.
struct OwnGroups {
  Divider by_channels, by_outputs;

  __host__ __device__ int channels() const { return int(by_channels.divisor); }
  __host__ __device__ int outputs() const { return int(by_outputs.divisor); }

  /// Which channel of an output's own group `channel` is; -1 if it is of another.
  __device__ __forceinline__ int channel(int output, int channel) const {
    const int own = channel - first_channel(output);
    return unsigned(own) < by_channels.divisor ? own : -1;
  }
  /// The first channel of an output's own group.
  __device__ __forceinline__ int first_channel(int output) const {
    unsigned rest = unsigned(output);
    return int(by_outputs.take(rest) * by_channels.divisor);
  }
  /// The first output of a channel's own group.
  __device__ __forceinline__ int first_output(int channel) const {
    unsigned rest = unsigned(channel);
    return int(by_channels.take(rest) * by_outputs.divisor);
  }
};

}  // namespace ddu::cuda
