#pragma once

// The convolution for LibTorch in chunks: columns of a few rows or channels, which stay in cache, and torch's products of
// them. As python/dynamic_dilation_unfold/_chunks.py, which says how chunks are cut and why, to the bit on the CPU.

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "ddu/torch/common.h"
#include "ddu/torch/unfold.h"

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

/// A step of at most `step` that cuts `size` into nearly equal pieces.
inline std::int64_t even_step(std::int64_t size, std::int64_t step) {
  if (size < 1) return 1;
  step = std::clamp<std::int64_t>(step, 1, size);
  const std::int64_t pieces = (size + step - 1) / step;
  return (size + pieces - 1) / pieces;
}

/// Some channels, as they lie in groups that divide all channels evenly: whole groups, or a part of one.
struct ChannelPart {
  Slice groups;
  Slice within;  ///< the channels of such a group
};

/// The tensors of one batched call, sizes, and what its chunks have in common.
struct ChunkedCall {
  static constexpr std::int64_t cpu_bytes = 4 << 20, other_bytes = 64 << 20;  // of the columns of a chunk
  static constexpr std::int64_t growth = 64;  // of a chunk in backward whose channels are too few for a good product

  at::Tensor input, map, mask;  // mask may be undefined
  Options options;              // groups are the map's
  std::int64_t batch, channels, outputs, taps, conv_groups, rows, row;
  at::ScalarType sum_dtype, dtype;  // of sums; and of columns, as a CPU has no good product of half types
  at::Tensor weight;                // [conv_groups, O/conv_groups, C/conv_groups*taps]
  std::int64_t budget, row_bytes;   // of a chunk; of the columns of a channel's row

  ChunkedCall(at::Tensor given_input, const at::Tensor& given_weight, at::Tensor given_map, at::Tensor given_mask,
              const Options& given_options)
      : input(std::move(given_input)),
        map(std::move(given_map)),
        mask(std::move(given_mask)),
        options(given_options),
        batch(input.size(0)),
        channels(input.size(1)),
        outputs(given_weight.size(0)),
        taps(given_weight.size(2) * given_weight.size(3)),
        conv_groups(given_weight.size(1) > 0 ? channels / given_weight.size(1) : 1),
        rows(map.size(2)),
        row(map.size(3)),
        sum_dtype(at::promote_types(input.scalar_type(), at::kFloat)),
        dtype(input.is_cpu() ? sum_dtype : input.scalar_type()),
        weight(given_weight.to(dtype).reshape({conv_groups, outputs / conv_groups, given_weight.size(1) * taps})),
        budget(input.is_cpu() ? cpu_bytes : other_bytes),
        row_bytes(taps * row * static_cast<std::int64_t>(c10::elementSize(dtype))) {}

  std::int64_t map_groups() const { return map.size(1); }
  std::int64_t heads() const { return mask.defined() ? mask.size(1) : 1; }

  std::int64_t images_step() const { return even_step(batch, budget / std::max<std::int64_t>(1, channels * rows * row_bytes)); }

  /// Rows in a chunk of all channels, which has several images only if they are whole.
  std::int64_t rows_step() const { return even_step(rows, budget / std::max<std::int64_t>(1, channels * row_bytes)); }

  /// Channels in a chunk: whole groups or parts of one, of each kind of groups.
  std::int64_t channel_step() const {
    // The output's gradient is read once for each chunk: not for less than half as many rows of columns.
    const std::int64_t twice = 2 * taps * conv_groups, least = (outputs + twice - 1) / twice;
    const std::int64_t most = std::max(budget / (rows * row_bytes), least);
    for (std::int64_t n = std::min(most, channels); n > 1; --n) {
      const auto fits = [&](std::int64_t groups) {
        const std::int64_t size = channels / groups;
        return n % size == 0 || size % n == 0;
      };
      if (channels % n == 0 && fits(map_groups()) && fits(conv_groups) && fits(heads())) return n;
    }
    return 1;
  }

  ChannelPart part(Slice given, std::int64_t groups) const {
    const std::int64_t size = channels / groups, width = std::min(size, given.size);
    return {{given.start / size, given.size / width}, {given.start % size, width}};
  }

  /// In the type of positions: a gradient that is summed over chunks is not rounded for each.
  at::Tensor rates(Slice images, Slice groups, Slice chunk_rows) const {
    return chunk_rows.of(groups.of(images.of_batch(map), 1), 2).to(sum_dtype);
  }

  /// A view [n or 1, heads, 1, taps, positions] of a tensor like the mask, shaped like the columns of the heads' channels.
  static at::Tensor of_mask(const at::Tensor& tensor, Slice images, Slice heads, Slice chunk_rows) {
    return chunk_rows.of(heads.of(images.of_batch(tensor), 1), 3).flatten(3).unsqueeze(2);
  }

  at::Tensor of_heads(const at::Tensor& columns, const ChannelPart& part) const {
    return columns.view({columns.size(0), part.groups.size, part.within.size, taps, columns.size(-1)});
  }

  Options part_options(const at::Tensor& chunk_rates, Slice chunk_rows) const {
    Options chunk = options;
    chunk.groups = chunk_rates.size(1);
    chunk.part = true;
    chunk.origin[0] = chunk_rows.start;
    return chunk;
  }
};

/// Pieces of memory, each for the columns of one chunk after the other, or for gradients of columns. On a CPU a call leaves it
/// to the next: malloc would give it back to the system, which then clears every page of what the next call gets.
class ChunkMemory {
 public:
  ChunkMemory(const ChunkedCall& call, std::int64_t rows, int pieces = 1)
      : type_(call.dtype), piece_((rows * call.row_bytes + 63) / 64 * 64), is_kept_(call.input.is_cpu()) {
    if (is_kept_) exchange_kept();
    if (memory_.defined() && memory_.numel() >= pieces * piece_) return;
    const c10::InferenceMode outside(false);  // so that any call may write to it
    memory_ = at::empty({pieces * piece_}, call.input.options().dtype(at::kByte));
  }
  ~ChunkMemory() {
    if (is_kept_ && memory_.numel() <= 2 * ChunkedCall::cpu_bytes) exchange_kept();
  }
  ChunkMemory(const ChunkMemory&) = delete;
  ChunkMemory& operator=(const ChunkMemory&) = delete;

  /// From the piece's start on: what was there is gone.
  at::Tensor tensor(at::IntArrayRef sizes, int piece = 0) const {
    const std::int64_t bytes = c10::multiply_integers(sizes) * static_cast<std::int64_t>(c10::elementSize(type_));
    return memory_.narrow(0, piece * piece_, bytes).view(type_).view(sizes);
  }

 private:
  void exchange_kept() {
    static std::mutex mutex;
    static at::Tensor& kept = *new at::Tensor();  // which outlives all that may call at the end of the process
    const std::lock_guard<std::mutex> lock(mutex);
    std::swap(kept, memory_);
  }

  at::ScalarType type_;
  std::int64_t piece_;  // bytes
  bool is_kept_;
  at::Tensor memory_;
};

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

/// total [g, m, k] += the sum over n of a [n, g, m, p] @ b [n, g, k, p]^T, in the total's type.
inline void add_product(const at::Tensor& total, const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != total.scalar_type()) {  // on a device with products of half types
    const at::Tensor products = wide_product(a.flatten(0, 1), b.flatten(0, 1).mT(), total.scalar_type(), 0);
    total.add_(products.unflatten(0, {a.size(0), a.size(1)}).sum(0, false, total.scalar_type()));
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

/// Fills output [B, O, Ho, Wo]; bias may be undefined.
inline void chunked_forward(const ChunkedCall& call, const at::Tensor& bias, const at::Tensor& output) {
  if (call.channels == 0) {
    output.zero_();
    if (bias.defined()) output.copy_(bias.view({-1, 1, 1}));
    return;
  }
  const Slice all{0, call.channels}, groups{0, call.map_groups()};
  const std::int64_t rows_step = call.rows_step(), images_step = rows_step == call.rows ? call.images_step() : 1;
  const ChunkMemory memory(call, images_step * call.channels * rows_step);
  for_slices(call.batch, images_step, [&](Slice images) {
    for_slices(call.rows, rows_step, [&](Slice rows) {
      const at::Tensor rates = call.rates(images, groups, rows);
      const at::Tensor columns = unfold(images.of(call.input, 0).to(call.dtype), rates, call.part_options(rates, rows),
                                        memory.tensor({images.size, call.channels * call.taps, rows.size * call.row}));
      if (call.mask.defined()) {
        const ChannelPart heads = call.part(all, call.heads());
        call.of_heads(columns, heads).mul_(ChunkedCall::of_mask(call.mask, images, heads.groups, rows));
      }
      const at::Tensor target = rows.of(images.of(output, 0), 2).flatten(2);  // a view: each row follows the one before
      const bool direct = call.dtype == output.scalar_type();
      const at::Tensor product = direct ? target : at::empty_like(target, target.options().dtype(call.dtype));
      if (bias.defined()) product.copy_(bias.view({-1, 1}));
      multiply(product.unflatten(1, {call.conv_groups, call.outputs / call.conv_groups}), call.weight,
               columns.unflatten(1, {call.conv_groups, call.channels / call.conv_groups * call.taps}), bias.defined() ? 1 : 0);
      if (!direct) target.copy_(product);
    });
  });
}

/// Gradients that chunks add to; undefined for one that is not wanted. The weight's is shaped as the call's.
struct ChunkSums {
  at::Tensor weight, map, mask;
};

/// Some rows of some channels of some images, in backward.
class Chunk {
 public:
  /// `matrices` is the output's gradient there, [n, O, positions].
  Chunk(const ChunkedCall& call, Slice images, Slice channels, Slice rows, at::Tensor pixels, const at::Tensor& matrices)
      : call_(call),
        images_(images),
        rows_(rows),
        pixels_(std::move(pixels)),
        conv_(call.part(channels, call.conv_groups)),
        groups_(call.part(channels, call.map_groups()).groups),
        heads_(call.part(channels, call.heads())),
        rates_(call.rates(images, groups_, rows)),
        options_(call.part_options(rates_, rows)),
        grad_(conv_.groups.of(matrices.unflatten(1, {call.conv_groups, call.outputs / call.conv_groups}), 1)) {}

  /// Adds to the sums and returns the input's gradient, which of a part of the rows is not rounded.
  at::Tensor backward(bool wants_input, bool is_part, const ChunkSums& sums, const ChunkMemory& memory) const {
    at::Tensor columns, grad_pixels;
    if (sums.weight.defined() || sums.mask.defined()) {
      const std::int64_t sizes[] = {pixels_.size(0), pixels_.size(1) * call_.taps, rows_.size * call_.row};
      columns = unfold(pixels_, rates_, options_, memory.tensor(sizes, sums.mask.defined() ? 1 : 0));
    }
    if (!sums.mask.defined()) {
      add_to_weight(columns, sums.weight);
      columns.reset();  // what follows takes their place, in memory and in the cache
    }
    if (wants_input || sums.map.defined() || sums.mask.defined()) {
      const at::Tensor weight = of_weight(call_.weight);
      at::Tensor grad = memory.tensor({pixels_.size(0), conv_.groups.size, weight.size(2), grad_.size(3)});
      multiply(grad, weight.mT(), grad_);
      grad = grad.flatten(1, 2);
      if (sums.mask.defined()) {
        at::Tensor total = ChunkedCall::of_mask(sums.mask, images_, heads_.groups, rows_);
        const at::Tensor products = call_.of_heads(grad.to(call_.sum_dtype) * columns, heads_).sum(2, true);
        total.add_(products.sum_to_size(total.sizes()));
      }
      if (wants_input || sums.map.defined()) {
        grad_pixels = backward_to_pixels(scaled(grad), {wants_input, sums.map.defined()}, is_part, sums.map);
      }
    }
    add_to_weight(columns, sums.weight);
    return grad_pixels;
  }

 private:
  /// A view of what belongs to the chunk's channels.
  at::Tensor of_weight(const at::Tensor& weight) const {
    const Slice columns{conv_.within.start * call_.taps, conv_.within.size * call_.taps};
    return columns.of(conv_.groups.of(weight, 0), 2);
  }

  /// Uses up the columns, if there are any.
  void add_to_weight(const at::Tensor& columns, const at::Tensor& total) const {
    if (!total.defined() || !columns.defined()) return;
    add_product(of_weight(total), grad_, scaled(columns).unflatten(1, {conv_.groups.size, -1}));
  }

  /// The columns times the mask, in their own memory.
  const at::Tensor& scaled(const at::Tensor& columns) const {
    if (call_.mask.defined()) {
      call_.of_heads(columns, heads_).mul_(ChunkedCall::of_mask(call_.mask, images_, heads_.groups, rows_));
    }
    return columns;
  }

  at::Tensor backward_to_pixels(at::Tensor grad, Wanted wanted, bool is_part, const at::Tensor& sum_map) const {
    at::Tensor pixels = pixels_;
    if (is_part) {
      grad = grad.to(call_.sum_dtype);
      pixels = pixels.to(call_.sum_dtype);
    }
    auto [grad_pixels, grad_map] = unfold_backward(grad, pixels, rates_, options_, wanted);
    if (sum_map.defined()) rows_.of(groups_.of(images_.of_batch(sum_map), 1), 2).add_(grad_map);
    return grad_pixels;
  }

  const ChunkedCall& call_;
  Slice images_, rows_;
  at::Tensor pixels_;
  ChannelPart conv_;
  Slice groups_;
  ChannelPart heads_;
  at::Tensor rates_;
  Options options_;
  at::Tensor grad_;  // [n, g, O/conv_groups, positions]: of the outputs that the chunk's channels have a part in
};

/// Adds to the sums, and fills the input's gradient if there is one; there are channels.
inline void chunked_backward(const ChunkedCall& call, const at::Tensor& grad, const at::Tensor& grad_input,
                             const ChunkSums& sums) {
  const std::int64_t step = call.channel_step();
  const std::int64_t rows_step = even_step(call.rows, ChunkedCall::growth * call.budget / (step * call.row_bytes));
  const bool wants_input = grad_input.defined(), in_parts = rows_step < call.rows && wants_input;
  const std::int64_t images_step = step == call.channels ? call.images_step() : 1;
  // The columns and their gradient take turns, unless the mask's gradient needs both.
  const ChunkMemory memory(call, images_step * step * rows_step, sums.mask.defined() ? 2 : 1);
  for_slices(call.batch, images_step, [&](Slice images) {
    const at::Tensor matrices = images.of(grad, 0).flatten(2).to(call.dtype);
    for_slices(call.channels, step, [&](Slice channels) {
      at::Tensor pixels = channels.of(images.of(call.input, 0), 1).to(call.dtype);
      if (step != call.channels) pixels = pixels.contiguous();
      at::Tensor complete;
      if (in_parts) complete = at::zeros_like(pixels, pixels.options().dtype(call.sum_dtype));
      for_slices(call.rows, rows_step, [&](Slice rows) {
        const Slice positions{rows.start * call.row, rows.size * call.row};
        const Chunk chunk(call, images, channels, rows, pixels, positions.of(matrices, 2));
        const at::Tensor grad_pixels = chunk.backward(wants_input, in_parts, sums, memory);
        if (in_parts) {
          complete.add_(grad_pixels);
        } else {
          complete = grad_pixels;
        }
      });
      if (wants_input) channels.of(images.of(grad_input, 0), 1).copy_(complete);
    });
  });
}

}  // namespace ddu::torch_detail
