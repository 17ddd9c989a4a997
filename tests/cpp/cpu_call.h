#pragma once

// What the tests of the CPU kernels have in common: options of calls, how their tensors lie, and their gradients.

#include <cstdint>

#include "oracle.h"

namespace cpu_call {

using oracle::Tensor;

constexpr auto kContiguous = ddu::MemoryFormat::contiguous;
constexpr auto kChannelsLast = ddu::MemoryFormat::channels_last;

inline ddu::Options options(std::int64_t kernel_size, std::int64_t padding, std::int64_t groups = 1, std::int64_t stride = 1,
                            std::int64_t dilation = 1) {
  return {{kernel_size, kernel_size}, {stride, stride}, {padding, padding}, {dilation, dilation}, groups};
}

/// Of an operator that samples an image, and has one other tensor: the weights or the query, the weight of a convolution.
struct How {
  ddu::MemoryFormat format = kContiguous;
  int threads = 2;
  bool image = true, other = true, map = true, mask = true;  // gradients wanted
};

template <class T, class M>
struct Gradients {
  Tensor<T> image, other;
  Tensor<M> map;
  Tensor<T> mask{0};

  bool operator==(const Gradients& g) const { return image == g.image && other == g.other && map == g.map && mask == g.mask; }
  bool guarded() const { return image.guarded() && other.guarded() && map.guarded() && mask.guarded(); }
};

/// The elements of [batch, channels, count] as a call has them, or back from there.
template <class T>
Tensor<T> laid_out(const How& how, std::int64_t batch, std::int64_t channels, std::int64_t count, const Tensor<T>& tensor,
                   bool back = false) {
  return how.format == kContiguous ? oracle::turned(batch, 1, channels * count, tensor)
                                   : oracle::turned(batch, channels, count, tensor, back);
}

/// Runs a function of libddu with as much scratch memory as it asks for, and no more.
template <class Tensors, class Bytes, class Run>
void with_workspace(Tensors& tensors, Bytes bytes, Run run) {
  Tensor<double> workspace(static_cast<std::int64_t>((bytes() + 7) / 8));
  tensors.workspace = workspace.data();
  run();
  EXPECT_TRUE(workspace.guarded());
}

}  // namespace cpu_call
