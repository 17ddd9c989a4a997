#pragma once

// How the backward of the convolution divides its channels. They belong to groups, which share rates, to heads, which share a
// mask, and to weight groups, which share outputs; a *unit* is a run of channels that lies in one of each:
//
//   channels      | c0 … c7 | c8 … c15 | c16 … c23 | …       unit = gcd of the three sizes
//   groups        |       0            |       1
//   heads         |              0                  | …
//   weight groups |   0     |    1     |    2       | …
//   units         |   0     |    1     |    2       | …
//
// Both kernels read rows of channels: the image's, and those of grad_output, whose channels are the outputs.

#include "../channels_last/columns_backward.cuh"
#include "../channels_last/heads.cuh"
#include "factors.cuh"
#include "own_groups.cuh"

namespace ddu::cuda {

struct ConvBackwardParams : RowParams<float> {
  std::int64_t row;                     // elements of the image from one pixel to the one below
  bool image_vectors;                   // whether 16 bytes of channels can be moved at once
  int heads;                            // of the mask
  bool shared_mask;                     // one mask for all images
  int units, head_units, weight_units;  // of a group, a head and a weight group
  int unit_channels, unit_stride;       // channels, and elements of a pixel from one unit to the next
  RowLayout outputs;                    // rows of grad_output; their group is a weight group
  int group_outputs;                    // of a weight group
  OwnGroups own;
  bool output_vectors;  // whether 16 bytes of outputs can be moved at once
  Divider by_units, by_head_units, by_weight_units;

  /// Where the weight of the first tap lies that belongs to an output of a weight group and one of its channels; -1 for none.
  __device__ __forceinline__ std::int64_t weight(int weight_group, int output, int channel) const {
    const int of_own = own.channel(output, channel);
    if (of_own < 0) return -1;
    return ((std::int64_t{weight_group} * group_outputs + output) * own.channels() + of_own) * taps;
  }

  /// A position's 16 bytes of outputs, from `output` of a weight group on; zero where there are none. Their address follows
  /// from parameters alone, and wait_for_previous() is volatile assembly that clobbers memory: a load of C++ stays behind it,
  /// where load_shared_work(), which is not volatile, might not.
  template <class T>
  __device__ __forceinline__ Bits16<T> load_outputs(const T* row_of_position, bool there, int output) const {
    const int count = there ? group_outputs - output : 0;
    Bits16<T> bits;
    if (output_vectors) {
      if (count > 0) bits.whole = *reinterpret_cast<const uint4*>(row_of_position + output);
      return bits;
    }
    constexpr int kWord = 4 / int(sizeof(T));
#pragma unroll 1  // a word after the other: all elements at once would not fit the registers
    for (int i = 0; i < kVec<T>; i += kWord) {
      const Bits16<T> word = load_channels<false, kWord>(row_of_position + output + i, count - i);
      bits.template skip<kWord>();
      bits.word[3] = word.word[0];
    }
    return bits;
  }
};

/// Where a unit lies.
struct ConvUnit {
  int index, group, head, weight_group;
  int of_group, of_head, of_weight_group;  // which of their units it is

  __device__ __forceinline__ ConvUnit(const ConvBackwardParams& p, int unit) : index(unit) {
    auto rest = unsigned(unit);
    group = int(p.by_units.take(rest));
    of_group = int(rest);
    rest = unsigned(unit);
    head = int(p.by_head_units.take(rest));
    of_head = int(rest);
    rest = unsigned(unit);
    weight_group = int(p.by_weight_units.take(rest));
    of_weight_group = int(rest);
  }
  /// Its first element in an image's rows.
  __device__ __forceinline__ std::int64_t pixels(const ConvBackwardParams& p, int image) const {
    return image * p.rows.image + std::int64_t{index} * p.unit_stride;
  }
  /// The first tap of an image's mask.
  __device__ __forceinline__ std::int64_t mask(const ConvBackwardParams& p, int image) const {
    return (std::int64_t{p.shared_mask ? 0 : image} * p.heads + head) * p.taps * p.positions;
  }
  /// The first position of an image in the rows of grad_output.
  __device__ __forceinline__ std::int64_t outputs(const ConvBackwardParams& p, int image) const {
    return image * p.outputs.image + weight_group * p.outputs.group;
  }
};

/// The gradient of a column, without tensor cores: of a channel of a unit and a tap, from a position's outputs.
template <class G, class T>
__device__ __forceinline__ float column_gradient(const ConvBackwardParams& p, const ConvUnit& unit, const G* outputs,
                                                 const T* weight, int channel, int tap) {
  const int of_group = unit.of_weight_group * p.unit_channels + channel, first = p.own.first_output(of_group);
  const std::int64_t at = p.weight(unit.weight_group, first, of_group) + tap;
  float sum = 0;
#pragma unroll 1
  for (int o = 0; o < p.own.outputs(); ++o) {
    sum += widen(outputs[first + o]) * widen(__ldg(weight + at + std::int64_t{o} * p.own.channels() * p.taps));
  }
  return sum;
}

}  // namespace ddu::cuda
