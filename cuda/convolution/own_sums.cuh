#pragma once

// Outputs without tensor cores, of calls whose weight groups are multiplied several at once (own_groups.cuh): those that may be
// NaN because of another group's factors. A thread has one output at a time. Slow, and most often there is nothing to do: so
// one kernel serves all types, and asks at each element.

#include "forward.cuh"

namespace ddu::cuda {

constexpr int kOwnSumsThreads = 256, kOwnSumsLines = kOwnSumsThreads / 32;

/// A kernel's call. Pointers are those of elements of `type`.
struct OwnSumsCall {
  ConvolutionPointers<void> tensors;
  const void* weight;
  OwnGroups own;
  int outputs;
  DType type;

  /// An element as it lies, so that several are on their way at once; and as a number.
  __device__ __forceinline__ unsigned bits(const void* tensor, std::int64_t index) const {
    return type == DType::float32 ? static_cast<const unsigned*>(tensor)[index]
                                  : static_cast<const unsigned short*>(tensor)[index];
  }
  __device__ __forceinline__ float number(unsigned bits) const {
    if (type == DType::float32) return __uint_as_float(bits);
    if (type == DType::bfloat16) return __uint_as_float(bits << 16);
    const auto half = static_cast<unsigned short>(bits);
    return widen(reinterpret_cast<const __half&>(half));
  }
  __device__ __forceinline__ float load(const void* tensor, std::int64_t index) const { return number(bits(tensor, index)); }
  /// A factor of a product.
  __device__ __forceinline__ float rounded(float value) const {
    if (type == DType::float16) return widen(narrow<__half>(value));
    return type == DType::bfloat16 ? widen(narrow<__nv_bfloat16>(value)) : value;
  }
};

/// The sum of an output's own products.
__device__ __forceinline__ float own_sum(const ConvolutionParams& p, const OwnSumsCall& call, int image, int output, int oy,
                                         int ox) {
  const ConvolutionPointers<void>& tensors = call.tensors;
  const int channel = call.own.first_channel(output);  // the first of its group
  unsigned of_map = unsigned(channel), of_mask = unsigned(channel);
  const int group = int(p.by_group_channels.take(of_map)), head = int(p.by_head_channels.take(of_mask));
  const std::int64_t position = std::int64_t{oy} * p.out_width + ox;
  const std::int64_t plane = std::int64_t{p.shared_map ? 0 : image} * p.groups + group;
  const std::int64_t factors = (std::int64_t{p.shared_mask ? 0 : image} * p.heads + head) * p.taps * p.positions + position;
  const float rate = load_rate<float>(tensors.map, p.map_type, plane * p.positions + position);
  const int unit = channel / p.unit_channels;
  const std::int64_t pixels = image * p.rows.image + std::int64_t{unit} * p.unit_stride + (channel - unit * p.unit_channels);
  float sum = tensors.bias ? call.load(tensors.bias, output) : 0;
#pragma unroll 1
  for (int tap = 0; tap < p.taps; ++tap) {
    unsigned kx = unsigned(tap);
    const int ky = int(p.by_kernel_w.take(kx));
    const Pixels<float> y = p.y.pixels(p.y.base(oy), p.y.offset(ky), is_finite(rate) ? rate : 0),
                        x = p.x.pixels(p.x.base(ox), p.x.offset(int(kx)), is_finite(rate) ? rate : 0);
    const float factor = tensors.mask ? call.load(tensors.mask, factors + tap * p.positions) : 1;
    const std::int64_t corner = pixels + y.index * p.row + x.index * p.rows.pixel;
#pragma unroll 1
    for (int c = 0; c < call.own.channels(); ++c) {
      unsigned pixel[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = (i / 2 ? y.second : y.first) && (i % 2 ? x.second : x.first);
        pixel[i] = there ? call.bits(tensors.input, corner + i / 2 * p.row + i % 2 * p.rows.pixel + c) : 0;
      }
      const unsigned weight = call.bits(call.weight, (std::int64_t{output} * call.own.channels() + c) * p.taps + tap);
      float value = nan_unless_finite(rate);
#pragma unroll
      for (int i = 0; i < 4; ++i) value += corner_weight(i / 2, i % 2, y.fraction, x.fraction) * call.number(pixel[i]);
      sum += call.rounded(value * factor) * call.number(weight);
    }
  }
  return sum;
}

/// All outputs of the images that are left, or, where nobody has looked for those, the ones that are NaN. Lanes of a warp have
/// what lies side by side, a line: a position's outputs, or an output's row of positions; a block has as many lines as warps.
__global__ void __launch_bounds__(kOwnSumsThreads) own_sums_kernel(const ConvolutionParams p, const OwnSumsCall call) {
  wait_for_previous();
  const unsigned* const left = call.tensors.left;
  if (left && !any_left(left, p.images)) return;
  const bool by_outputs = p.output.channel == 1;
  const int lines = by_outputs ? p.out_width : call.outputs, line_size = by_outputs ? call.outputs : p.out_width;
  const int blocks_of_row = (lines - 1) / kOwnSumsLines + 1;
#pragma unroll 1
  for (int image = 0; image < p.images; ++image) {
    if (left && !left[image]) continue;
#pragma unroll 1
    for (std::int64_t block = blockIdx.x; block < std::int64_t{blocks_of_row} * p.out_height; block += gridDim.x) {
      const int oy = int(block / blocks_of_row);
      const int line = int(block - std::int64_t{oy} * blocks_of_row) * kOwnSumsLines + int(threadIdx.x) / 32;
      if (line >= lines) continue;
#pragma unroll 1
      for (int n = int(threadIdx.x) % 32; n < line_size; n += 32) {
        const int output = by_outputs ? n : line, ox = by_outputs ? line : n;
        const std::int64_t at =
            image * p.output.image + output * p.output.channel + (std::int64_t{oy} * p.out_width + ox) * p.output.position;
        if (const float value = call.load(call.tensors.output, at); !left && value == value) continue;
        store_rate(call.tensors.output, call.type, at, own_sum(p, call, image, output, oy, ox));
      }
    }
  }
}

}  // namespace ddu::cuda
