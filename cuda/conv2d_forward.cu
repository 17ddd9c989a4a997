// The host side of the convolution by products of matrices:
//
//     (planes_to_rows_kernel  the input, channels-last, unless it lies so)
//     (pad_rows_kernel        a channels_last input to whole vectors of channels, unless it has them)
//     pack_weights_kernel     the weights, in the order of the products
//     (square_convolution_kernel   the output of 3x3 taps, on devices that have it, which takes images to be finite)
//     convolution_kernel      the output, in the input's format; after the former, of images that are not finite
//     (own_sums_kernel        … instead, or the outputs that are NaN, where weight groups are multiplied several at once)

#include "convolution/forward.cuh"

#include "../cpp/src/conv2d_products.h"
#include "convolution/image.h"
#include "convolution/own_sums.cuh"
#include "convolution/square.h"

namespace ddu::cuda {

namespace {

using namespace convolution;

/// Of a block.
template <int kShare>
constexpr std::size_t kSharedBytes =
    BlockShape<kShare>::kTables +
    BlockShape<kShare>::kWarps * TapTable<float, false>::bytes(BlockShape<kShare>::kRows * kBandWidth);

/// Warps that share a band: as many as have outputs, where the device has the shared memory.
int share_of(const Conv2dGeometry& c) {
  const auto available = static_cast<std::size_t>(current_device().shared_per_block);
  if (c.weight_group_outputs() > BlockShape<2>::kOutputs && kSharedBytes<4> <= available) return 4;
  if (c.weight_group_outputs() > BlockShape<1>::kOutputs && kSharedBytes<2> <= available) return 2;
  return 1;
}

WeightSizes weight_sizes(const Conv2dGeometry& c, const OwnGroups& own, DType type, int share) {
  const std::int64_t unit = units_of(c).head_channels(), bytes = unit * static_cast<std::int64_t>(size_of(type));
  WeightSizes sizes{};
  sizes.taps = static_cast<int>(c.geometry.taps());
  sizes.units = static_cast<int>(c.weight_group_channels() / unit);
  sizes.unit_channels = static_cast<int>(unit);
  sizes.unit_blocks = static_cast<int>(ceil_div(bytes, std::int64_t{kStepBytes}));
  sizes.group_outputs = static_cast<int>(c.weight_group_outputs());
  sizes.own = own;
  const int outputs = kWarpOutputs * share;
  sizes.output_blocks = static_cast<int>(ceil_div(c.weight_group_outputs(), std::int64_t{outputs}));
  sizes.vectors =
      c.weight_groups * sizes.output_blocks * sizes.units * sizes.unit_blocks * c.geometry.taps() * (outputs * kStepBytes / 16);
  return sizes;
}

/// Whether square_convolution_kernel does a call. It leaves out corners that weigh nothing; where nobody has looked whether
/// they are finite, each must be read as some other position's middle, so that its sum tells.
bool square_serves(const Conv2dGeometry& c, DType type, const ImageOfUnits& image) {
  const Geometry& g = c.geometry;
  if (g.h.kernel_size != 3 || g.w.kernel_size != 3 || current_device().shared_per_block < kMostSquareBytes) return false;
  if (!has_warpgroup_kernels() && c.weight_group_outputs() > kWarpOutputs) return false;
  const bool known = !image.given.image.own;
  for (const Axis* axis : {&g.h, &g.w}) {
    const Sampler<float> sampler(*axis, g.padding_mode);
    const std::int64_t first = sampler.shift, last = first + (axis->out_size - 1) * axis->stride;
    if (first < 0 || last >= axis->size) return false;
    if (!known && (axis->stride != 1 || first > 0 || last < axis->size - 1)) return false;
  }
  return image.rows.rows.image * static_cast<std::int64_t>(size_of(type)) <= UINT_MAX;
}

/// Where a call's scratch memory lies: packed weights, and behind them a copy of the image.
struct Scratch {
  int share;
  WeightSizes weight;
  Workspace workspace;
  uint4* slices;
  unsigned* left;
  ImageOfUnits image;
  bool square;  // whether square_convolution_kernel runs

  Scratch(const Conv2dGeometry& c, const OwnGroups& own, DType type, const Conv2d& tensors, void* memory)
      : share(share_of(c)),
        weight(weight_sizes(c, own, type, share)),
        workspace(memory),
        slices(workspace.take<uint4>(weight.vectors)),
        left(workspace.take<unsigned>(c.geometry.batch)),
        image(c, type, tensors.input_format, tensors.input,
              memory ? static_cast<unsigned char*>(memory) + workspace.bytes() : nullptr),
        square(square_serves(c, type, image)) {}
  std::size_t bytes() const { return workspace.bytes() + image.bytes; }
  /// Whether weight groups are multiplied several at once.
  bool merged() const { return weight.own.outputs() < weight.group_outputs; }
};

template <class T>
ConvolutionParams params_of(const Conv2dGeometry& c, Types types, const Scratch& scratch, const Conv2d& tensors) {
  const Geometry& g = c.geometry;
  const channels_last::ImageRows& rows = scratch.image.rows;
  ConvolutionParams p{};
  static_cast<RowParams<float>&>(p) = channels_last::sizes_of<float>(g, types, rows.rows);
  p.out_height = static_cast<int>(g.h.out_size);
  p.heads = static_cast<int>(c.heads);
  p.shared_mask = c.mask_batch == 1;
  p.row = g.w.size * rows.rows.pixel;
  p.units = scratch.weight.units;
  p.unit_channels = scratch.weight.unit_channels;
  p.unit_stride = static_cast<int>(rows.stride);
  p.unit_vectors = scratch.image.unit_vectors(types.input);
  p.unit_blocks = scratch.weight.unit_blocks;
  p.group_outputs = scratch.weight.group_outputs;
  p.by_unit_blocks = Divider(static_cast<unsigned>(p.unit_blocks));
  p.by_group_channels = Divider(static_cast<unsigned>(g.group_channels()));
  p.by_head_channels = Divider(static_cast<unsigned>(c.head_channels()));
  const auto columns = static_cast<unsigned>(ceil_div(g.w.out_size, std::int64_t{kTileWidth}));
  p.by_tile_columns = Divider(columns);
  p.by_tiles = Divider(grid_size(columns * ceil_div(g.h.out_size, std::int64_t{kTileHeight})));
  p.by_output_blocks = Divider(static_cast<unsigned>(scratch.weight.output_blocks));
  p.by_weight_groups = Divider(static_cast<unsigned>(c.weight_groups));
  const bool vectors = c.weight_group_outputs() % kVec<T> == 0 && is_aligned(tensors.output, 16);
  p.output = tensors.input_format == MemoryFormat::channels_last
                 ? ValueLayout{g.positions() * c.out_channels, 1, c.out_channels, vectors, false}
                 : ValueLayout{c.out_channels * g.positions(), g.positions(), 1, false, false};
  return p;
}

template <class T>
void run_square(const Conv2dGeometry& c, Types types, const Conv2d& tensors, const Scratch& scratch,
                const ConvolutionParams& params, const void* input, int outputs, Stream stream) {
  SquareCall call{};
  static_cast<ConvolutionParams&>(call.params) = params;
  call.params.pixel_vectors = static_cast<unsigned>(params.rows.pixel / kVec<T>);
  call.params.row_vectors = static_cast<unsigned>(params.row / kVec<T>);
  call.params.masked = tensors.mask != nullptr;
  call.type = types.input;
  call.outputs = outputs;
  call.input = input;
  call.slices = scratch.slices;
  call.map = tensors.dilation_map;
  call.mask = tensors.mask;
  call.bias = tensors.bias;
  call.output = tensors.output;
  call.left = scratch.image.strange().blocks && !scratch.merged() ? nullptr : scratch.left;
  const auto launch_kernel = has_warpgroup_kernels() ? launch_warpgroup_kernel : launch_square_kernel;
  launch_kernel(call, c.geometry, stream);
}

/// What groups that were multiplied together may have spoilt of each other.
template <class T>
void run_own_sums(const Conv2dGeometry& c, Types types, const Conv2d& tensors, const Scratch& scratch,
                  const ConvolutionParams& params, const ConvolutionPointers<T>& pointers, Stream stream) {
  const OwnSumsCall call{{pointers.input, pointers.slices, pointers.map, pointers.mask, pointers.bias, pointers.output,
                          pointers.strange, pointers.left},
                         tensors.weight,
                         scratch.weight.own,
                         static_cast<int>(c.out_channels),
                         types.input};
  const std::int64_t at_once = std::int64_t{4} * current_device().multiprocessors;
  const std::int64_t warps = c.geometry.batch * c.geometry.h.out_size * std::max(c.geometry.w.out_size, c.out_channels);
  launch(own_sums_kernel,
         {grid_size(std::min(ceil_div(warps, std::int64_t{kOwnSumsLines}), at_once)), kOwnSumsThreads, 0, true}, stream, params,
         call);
}

template <class T, int kShare>
void run(const Conv2dGeometry& c, Types types, const Conv2d& tensors, const Scratch& scratch, Stream stream) {
  const ConvolutionParams p = params_of<T>(c, types, scratch, tensors);
  const void* input = scratch.image.read(types.input, tensors.input, stream);
  const auto pack_blocks = std::min(ceil_div(scratch.weight.vectors, std::int64_t{256}), std::int64_t{16384});
  launch(pack_weights_kernel<T>, {grid_size(pack_blocks), 256, 0, true}, stream, scratch.weight, BlockShape<kShare>::kOutputs,
         static_cast<const T*>(tensors.weight), scratch.slices,
         ImagesLeft{scratch.square ? scratch.left : nullptr, scratch.image.strange(), p.images});
  if (scratch.square) run_square<T>(c, types, tensors, scratch, p, input, BlockShape<kShare>::kOutputs, stream);
  const ConvolutionPointers<T> pointers{static_cast<const T*>(input),
                                        scratch.slices,
                                        tensors.dilation_map,
                                        static_cast<const T*>(tensors.mask),
                                        static_cast<const T*>(tensors.bias),
                                        static_cast<T*>(tensors.output),
                                        scratch.image.strange(),
                                        scratch.square ? scratch.left : nullptr};
  if (scratch.merged() && scratch.square) return run_own_sums(c, types, tensors, scratch, p, pointers, stream);
  const std::int64_t blocks =
      std::int64_t{p.by_tiles.divisor} * p.by_output_blocks.divisor * c.weight_groups * c.geometry.batch;
  // Behind the other kernel it most often only looks: as many blocks as there are multiprocessors do so at once.
  const unsigned max_blocks = scratch.square ? static_cast<unsigned>(current_device().multiprocessors) : UINT_MAX;
  launch(convolution_kernel<T, kShare>,
         {std::min(grid_size(blocks), max_blocks), BlockShape<kShare>::kThreads, kSharedBytes<kShare>, true}, stream, p,
         pointers);
  if (scratch.merged()) run_own_sums(c, types, tensors, scratch, p, pointers, stream);
}

template <class T>
void run(const Conv2dGeometry& c, Types types, const Conv2d& tensors, const Scratch& scratch, Stream stream) {
  if (scratch.share == 4) return run<T, 4>(c, types, tensors, scratch, stream);
  if (scratch.share == 2) return run<T, 2>(c, types, tensors, scratch, stream);
  run<T, 1>(c, types, tensors, scratch, stream);
}

/// Whether so few blocks have so much to add up, each by itself, that chunks of columns are faster: see conv2d_supported.
bool leaves_most_idle(const Conv2dGeometry& c, DType type) {
  constexpr std::int64_t kTileSide = 8, kBlockOutputs = 4 * kWarpOutputs;
  const Geometry& g = c.geometry;
  const std::int64_t terms = c.weight_group_channels() * g.taps();
  const std::int64_t tiles = ceil_div(g.h.out_size, kTileSide) * ceil_div(g.w.out_size, kTileSide) * g.batch;
  const std::int64_t blocks = tiles * c.weight_groups * ceil_div(c.weight_group_outputs(), kBlockOutputs);
  const bool single = type == DType::float32;
  return terms >= (single ? 4608 : 18432) && blocks * (single ? 2 : 4) <= current_device().multiprocessors;
}
/// Whether a step of 64 bytes of channels would be zeros for the most part, and no kernel is made for so many taps.
bool is_mostly_zeros(const Geometry& g) { return g.channels <= 3 && g.taps() > 9; }

}  // namespace

bool convolution::has_products(const Conv2dGeometry& c, Types types) {
  check_types(types);
  const Geometry& g = c.geometry;
  if (g.channels == 0 || c.out_channels == 0 || g.taps() == 0) return false;
  if (types.input == DType::float64 || (types.input == DType::float32 && !c.allow_tf32)) return false;
  if (!current_device().has_mma || requests_columns()) return false;
  // Products are of 64 bytes of channels and 32 outputs or more. What would be zeros for the most part, as would the copy and
  // the sums of the image, in which units are whole vectors, is left to others.
  const std::int64_t unit = units_of(c).head_channels(), vector = static_cast<std::int64_t>(16 / size_of(types.input));
  if (unit < vector && unit < g.channels) return false;
  if (c.weight_groups > 1 && c.weight_group_outputs() < 8) return false;
  const std::int64_t steps = ceil_div(unit, 4 * vector) * (c.weight_group_channels() / unit);
  return g.batch <= INT_MAX && c.out_channels <= INT_MAX && g.channels <= INT_MAX && g.taps() <= INT_MAX / 64 &&
         steps <= INT_MAX / g.taps();
}

bool convolution::forward_supported(const Conv2dGeometry& given, Types types) {
  const Conv2dGeometry c = merge_groups(given);
  return has_products(c, types) && !leaves_most_idle(c, types.input) && !is_mostly_zeros(c.geometry);
}

std::size_t convolution::forward_workspace_bytes(const Conv2dGeometry& given, Types types, const Conv2d& tensors) {
  if (!forward_supported(given, types) || given.output_numel() == 0) return 0;
  return Scratch(merge_groups(given), own_groups(given), types.input, tensors, nullptr).bytes();
}

void convolution::forward(const Conv2dGeometry& given, Types types, const Conv2d& tensors, Stream stream) {
  if (!forward_supported(given, types)) throw unsupported_device("conv2d has no kernels for this call: see conv2d_supported");
  if (given.output_numel() == 0) return;
  const Conv2dGeometry c = merge_groups(given);
  const Scratch scratch(c, own_groups(given), types.input, tensors, tensors.workspace);
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) < 8) run<T>(c, types, tensors, scratch, stream);
  });
}

}  // namespace ddu::cuda
