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

#include "ddu/torch/chunk_products.h"
#include "ddu/torch/common.h"
#include "ddu/torch/unfold.h"

namespace ddu::torch_detail {

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

/// Whole rows of the output's positions, or a part of one: either way they follow one another in memory.
struct ChunkPositions {
  Slice rows;
  Slice of_row;

  std::int64_t count() const { return rows.size * of_row.size; }
  /// Of a tensor whose last two dimensions they are.
  at::Tensor of(const at::Tensor& tensor) const { return of_row.of(rows.of(tensor, tensor.dim() - 2), tensor.dim() - 1); }
  /// Of one whose last dimension they are, of rows of so many.
  at::Tensor of_flat(const at::Tensor& tensor, std::int64_t row) const {
    return Slice{rows.start * row + of_row.start, count()}.of(tensor, tensor.dim() - 1);
  }
};

/// The tensors of one batched call, sizes, and what its chunks have in common.
struct ChunkedCall {
  static constexpr std::int64_t cpu_bytes = 4 << 20, other_bytes = 64 << 20;  // of the columns of a chunk
  static constexpr std::int64_t growth = 64;  // of a chunk in backward whose channels are too few for a good product,
  static constexpr std::int64_t share = 8;    // up to such a part of all columns

  at::Tensor input, map, mask;  // mask may be undefined
  Options options;              // groups are the map's
  std::int64_t batch, channels, outputs, taps, conv_groups, rows, row;
  at::ScalarType sum_dtype, dtype;         // of sums; and of columns, as a CPU has no good product of half types
  at::Tensor weight;                       // [conv_groups, O/conv_groups, C/conv_groups*taps]
  std::int64_t budget;                     // bytes of a chunk
  std::int64_t position_bytes, row_bytes;  // of the columns of a channel, and of its row

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
        position_bytes(taps * static_cast<std::int64_t>(c10::elementSize(dtype))),
        row_bytes(position_bytes * row) {}

  std::int64_t map_groups() const { return map.size(1); }
  std::int64_t heads() const { return mask.defined() ? mask.size(1) : 1; }

  std::int64_t images_step() const { return even_step(batch, budget / std::max<std::int64_t>(1, channels * rows * row_bytes)); }

  struct Steps {
    std::int64_t rows, of_row;
  };
  /// Rows in a chunk of so many channels and bytes, and positions of each: all, but of a row that is too long.
  Steps steps(std::int64_t given_channels, std::int64_t most) const {
    const std::int64_t step = even_step(rows, most / std::max<std::int64_t>(1, given_channels * row_bytes));
    if (step > 1) return {step, row};
    // A product of fewer positions than outputs would read more of the weight than of columns.
    const std::int64_t positions = most / std::max<std::int64_t>(1, given_channels * position_bytes);
    return {step, even_step(row, std::max(positions, outputs / conv_groups))};
  }

  template <class Work>
  void for_positions(Steps steps, Work work) const {
    for_slices(rows, steps.rows, [&](Slice chunk_rows) {
      for_slices(row, steps.of_row, [&](Slice of_row) { work(ChunkPositions{chunk_rows, of_row}); });
    });
  }

  /// Bytes of a chunk in backward, which has no more channels than its product needs.
  std::int64_t most_in_backward() const {
    const std::int64_t columns = batch * channels * rows * row_bytes;
    return std::max(budget, std::min(growth * budget, columns / share));
  }

  /// Channels in a chunk: whole groups or parts of one, of each kind of groups. They divide all channels; but where all is one
  /// group, and twice as many would fit, the last are fewer.
  std::int64_t channel_step() const {
    // The output's gradient is read once for each chunk: not for less than half as many rows of columns.
    const std::int64_t twice = 2 * taps * conv_groups, least = (outputs + twice - 1) / twice;
    const std::int64_t most = std::max(budget / (rows * row_bytes), least);
    const std::int64_t step = dividing_step(most);
    const bool is_one_group = map_groups() == 1 && conv_groups == 1 && heads() == 1;
    return is_one_group && 2 * step <= std::min(most, channels) ? even_step(channels, most) : step;
  }
  std::int64_t dividing_step(std::int64_t most) const {
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

  /// As the kernels read them, so that they need no copy for each chunk: contiguous, or all of channels_last.
  at::Tensor pixels(Slice images, Slice given_channels) const {
    const at::Tensor found = given_channels.of(images.of(input, 0), 1).to(dtype);
    const bool stays = found.size(1) == channels && found.is_contiguous(at::MemoryFormat::ChannelsLast);
    return stays ? found : found.contiguous();
  }

  /// A view of a tensor like the map.
  static at::Tensor of_map(const at::Tensor& tensor, Slice images, Slice groups, const ChunkPositions& positions) {
    return positions.of(groups.of(images.of_batch(tensor), 1));
  }

  /// In the type of positions: a gradient that is summed over chunks is not rounded for each.
  at::Tensor rates(Slice images, Slice groups, const ChunkPositions& positions) const {
    return of_map(map, images, groups, positions).to(sum_dtype);
  }

  /// A view [n or 1, heads, 1, taps, positions] of a tensor like the mask, shaped like the columns of the heads' channels.
  static at::Tensor of_mask(const at::Tensor& tensor, Slice images, Slice heads, const ChunkPositions& positions) {
    return positions.of(heads.of(images.of_batch(tensor), 1)).flatten(3).unsqueeze(2);
  }

  at::Tensor of_heads(const at::Tensor& columns, const ChannelPart& part) const {
    return columns.view({columns.size(0), part.groups.size, part.within.size, taps, columns.size(-1)});
  }

  Options part_options(const at::Tensor& chunk_rates, const ChunkPositions& positions) const {
    Options chunk = options;
    chunk.groups = chunk_rates.size(1);
    chunk.part = true;
    chunk.origin[0] = positions.rows.start;
    chunk.origin[1] = positions.of_row.start;
    return chunk;
  }
};

/// Pieces of memory, each for the columns of one chunk after the other, of so many positions of channels, or for gradients of
/// columns. On a CPU a call leaves it to the next: malloc would give it back to the system, which then clears every page of
/// what the next call gets.
class ChunkMemory {
 public:
  ChunkMemory(const ChunkedCall& call, std::int64_t positions, int pieces = 1)
      : type_(call.dtype), piece_((positions * call.position_bytes + 63) / 64 * 64), is_kept_(call.input.is_cpu()) {
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

/// Fills output [B, O, Ho, Wo]; bias may be undefined.
inline void chunked_forward(const ChunkedCall& call, const at::Tensor& bias, const at::Tensor& output) {
  if (call.channels == 0) {
    output.zero_();
    if (bias.defined()) output.copy_(bias.view({-1, 1, 1}));
    return;
  }
  const Slice all{0, call.channels}, groups{0, call.map_groups()};
  const ChunkedCall::Steps steps = call.steps(call.channels, call.budget);
  const std::int64_t images_step = steps.rows == call.rows ? call.images_step() : 1;
  const ChunkMemory memory(call, images_step * call.channels * steps.rows * steps.of_row);
  for_slices(call.batch, images_step, [&](Slice images) {
    const at::Tensor pixels = call.pixels(images, all);
    call.for_positions(steps, [&](const ChunkPositions& positions) {
      const at::Tensor rates = call.rates(images, groups, positions);
      const at::Tensor columns = unfold(pixels, rates, call.part_options(rates, positions),
                                        memory.tensor({images.size, call.channels * call.taps, positions.count()}));
      if (call.mask.defined()) {
        const ChannelPart heads = call.part(all, call.heads());
        call.of_heads(columns, heads).mul_(ChunkedCall::of_mask(call.mask, images, heads.groups, positions));
      }
      const at::Tensor target = positions.of(images.of(output, 0)).flatten(2);  // a view: each row follows the one before
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

/// Some positions of some channels of some images, in backward.
class Chunk {
 public:
  /// `matrices` is the images' gradient of the output, [n, O, positions].
  Chunk(const ChunkedCall& call, Slice images, Slice channels, ChunkPositions positions, at::Tensor pixels,
        const at::Tensor& matrices)
      : call_(call),
        images_(images),
        positions_(positions),
        pixels_(std::move(pixels)),
        conv_(call.part(channels, call.conv_groups)),
        groups_(call.part(channels, call.map_groups()).groups),
        heads_(call.part(channels, call.heads())),
        rates_(call.rates(images, groups_, positions)),
        options_(call.part_options(rates_, positions)),
        grad_(conv_.groups.of(
            positions.of_flat(matrices, call.row).unflatten(1, {call.conv_groups, call.outputs / call.conv_groups}), 1)) {}

  /// Adds to the sums and returns the input's gradient, in the type of the pixels to read for it.
  at::Tensor backward(bool wants_input, const at::Tensor& read, const ChunkSums& sums, const ChunkMemory& memory) const {
    at::Tensor columns, grad_pixels;
    if (sums.weight.defined() || sums.mask.defined()) {
      const std::int64_t sizes[] = {pixels_.size(0), pixels_.size(1) * call_.taps, positions_.count()};
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
        at::Tensor total = ChunkedCall::of_mask(sums.mask, images_, heads_.groups, positions_);
        const at::Tensor products = call_.of_heads(grad.to(call_.sum_dtype) * columns, heads_).sum(2, true);
        total.add_(products.sum_to_size(total.sizes()));
      }
      if (wants_input || sums.map.defined()) {
        grad_pixels = backward_to_pixels(scaled(grad), {wants_input, sums.map.defined()}, read, sums.map);
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
    add_product(of_weight(total), grad_, scaled(columns).unflatten(1, {conv_.groups.size, -1}), call_.budget);
  }

  /// The columns times the mask, in their own memory.
  const at::Tensor& scaled(const at::Tensor& columns) const {
    if (call_.mask.defined()) {
      call_.of_heads(columns, heads_).mul_(ChunkedCall::of_mask(call_.mask, images_, heads_.groups, positions_));
    }
    return columns;
  }

  at::Tensor backward_to_pixels(const at::Tensor& grad, Wanted wanted, const at::Tensor& read,
                                const at::Tensor& sum_map) const {
    auto [grad_pixels, grad_map] = unfold_backward(grad.to(read.scalar_type()), read, rates_, options_, wanted);
    if (sum_map.defined()) ChunkedCall::of_map(sum_map, images_, groups_, positions_).add_(grad_map);
    return grad_pixels;
  }

  const ChunkedCall& call_;
  Slice images_;
  ChunkPositions positions_;
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
  const ChunkedCall::Steps steps = call.steps(step, call.most_in_backward());
  const bool wants_input = grad_input.defined();
  const bool in_parts = wants_input && (steps.rows < call.rows || steps.of_row < call.row);
  const std::int64_t images_step = step == call.channels ? call.images_step() : 1;
  // The columns and their gradient take turns, unless the mask's gradient needs both.
  const ChunkMemory memory(call, images_step * step * steps.rows * steps.of_row, sums.mask.defined() ? 2 : 1);
  for_slices(call.batch, images_step, [&](Slice images) {
    const at::Tensor matrices = images.of(grad, 0).flatten(2).to(call.dtype);
    for_slices(call.channels, step, [&](Slice channels) {
      const at::Tensor pixels = call.pixels(images, channels);
      // The gradient of a part of the positions is not rounded, so its kernels read what is like it.
      const at::Tensor read = in_parts ? pixels.to(call.sum_dtype) : pixels;
      at::Tensor complete;
      if (in_parts) complete = at::zeros_like(read);
      call.for_positions(steps, [&](const ChunkPositions& positions) {
        const Chunk chunk(call, images, channels, positions, pixels, matrices);
        const at::Tensor grad_pixels = chunk.backward(wants_input, read, sums, memory);
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
