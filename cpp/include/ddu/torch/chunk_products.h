#pragma once

// Torch's products of a chunk's columns, as python/dynamic_dilation_unfold/_chunk_products.py: they obey the flags of torch's
// matrix products, not those of its convolutions.

#include <algorithm>
#include <cstdint>

#include "ddu/torch/common.h"

namespace ddu::torch_detail {

/// Some of the indices of a dimension.
struct Slice {
  std::int64_t start;
  std::int64_t size;

  at::Tensor of(const at::Tensor& tensor, std::int64_t dim) const { return tensor.narrow(dim, start, size); }
  /// Of a first dimension that may be 1, for all.
  at::Tensor of_batch(const at::Tensor& tensor) const { return tensor.size(0) > 1 ? of(tensor, 0) : tensor; }
};

template <class Work>
void for_slices(std::int64_t size, std::int64_t step, Work work) {
  for (std::int64_t start = 0; start < size; start += step) work(Slice{start, std::min(step, size - start)});
}

/// out [n, g, m, p] = beta * out + a [g, m, k] @ b [n, g, k, p].
inline void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, int beta = 0) {
  if (a.size(0) > 1) {
    for (std::int64_t i = 0; i < out.size(0); ++i) {
      at::Tensor each = out[i];
      at::baddbmm_out(each, each, a, b[i], beta);
    }
  } else if (out.size(0) == 1) {
    at::Tensor each = out[0][0];
    at::addmm_out(each, each, a[0], b[0][0], beta);
  } else {
    at::Tensor all = out.select(1, 0);
    at::baddbmm_out(all, all, a.expand({out.size(0), -1, -1}), b.select(1, 0), beta);
  }
}

/// A product of half types that keeps its float32 sums, in a torch that can.
template <class Tensor>
auto wide_product(const Tensor& a, const Tensor& b, at::ScalarType dtype, int) -> decltype(at::bmm(a, b, dtype)) {
  return at::bmm(a, b, dtype);
}
template <class Tensor>
Tensor wide_product(const Tensor& a, const Tensor& b, at::ScalarType, std::int64_t) {
  return at::bmm(a, b);
}

/// total [g, m, k] += the sum over n of a [n, g, m, p] @ b [n, g, k, p]^T, in the total's type. Several images are multiplied
/// at once, if their products take no more than so many bytes.
inline void add_product(const at::Tensor& total, const at::Tensor& a, const at::Tensor& b, std::int64_t most) {
  if (a.scalar_type() != total.scalar_type()) {  // on a device with products of half types
    const std::int64_t of_image = static_cast<std::int64_t>(total.nbytes());
    for_slices(a.size(0), std::max<std::int64_t>(1, most / std::max<std::int64_t>(1, of_image)), [&](Slice images) {
      const at::Tensor each = images.of(a, 0).flatten(0, 1), of_images = images.of(b, 0).flatten(0, 1);
      const at::Tensor products = wide_product(each, of_images.mT(), total.scalar_type(), 0);
      total.add_(products.unflatten(0, {images.size, a.size(1)}).sum(0, false, total.scalar_type()));
    });
    return;
  }
  for (std::int64_t i = 0; i < a.size(0); ++i) {
    if (total.size(0) > 1) {
      total.add_(at::bmm(a[i], b[i].mT()));
    } else {
      at::Tensor each = total[0];
      at::addmm_out(each, each, a[i][0], b[i][0].mT());
    }
  }
}

}  // namespace ddu::torch_detail
