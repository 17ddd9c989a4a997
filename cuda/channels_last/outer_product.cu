// The host side of the backward of operators without columns:
//
//     (planes_to_rows_kernel  the image, channels-last; zeros in the sums beside it)
//     (largest_kernel twice, largest_products_kernel   deterministic: units of the sums)
//     outer_product_kernel    every gradient that is wanted, those of the image, the map and the factors in sums
//     (rows_to_planes_kernel, convert_kernel or ordered_to_rows_kernel   sums to the image's gradient)
//     (sum_blocks_kernel      depthwise: sums of the blocks to the gradient of the channels' weights)
//     (add_arrays_kernel      sums to the gradients of map and factors, where they are kept apart or their type is a half one)
//
// Where a depthwise convolution has several outputs for a channel, or a hundred taps and more, outer_product_kernel runs for
// each output and some taps, into the same sums.

#include "outer_product.h"

#include "image_rows.h"
#include "outer_product.cuh"

namespace ddu::cuda::channels_last {
namespace {

/// Lanes that take one channel or kBackwardChannels. kForWeights: of a depthwise convolution.
template <class T, class Sums, int kN, bool kForWeights>
class Backward {
 public:
  using Acc = accumulator_t<T>;
  using Word = typename Sums::Word;

  Backward(const HeadGeometry& h, Types types, const OuterProduct& given, const ImageRows& image, bool deterministic)
      : h_(h), types_(types), given_(given), image_(image), range_(h.geometry.taps()) {
    const void* values_gradient = given.grad_values;  // moved as the values are
    const std::size_t at_once = value_bytes<T, kN>(image);
    params_ =
        head_params<T>(h, types, image, kN, false, is_aligned(given.values, at_once) && is_aligned(values_gradient, at_once),
                       is_aligned(given.factors, kVectorBytes<T>));
    if (given.outputs > 1) params_.values = OutputLayout(h.geometry, given.outputs, given.format).values;
    Workspace workspace(given.workspace);
    samples_ = given.grad_map || given.grad_values || given.grad_factors || given.grad_weight;
    if (samples_ && !image.own) copy_ = workspace.template take<T>(image.numel());
    if (given.grad_image) {
      sums_.ordered = Sums::kOrdered;
      sums_.array = image.numel();
      sums_.words = given.grad_image;
      if (!in_place()) sums_.words = workspace.template take<Word>(image.numel() * Sums::kWords);
      if constexpr (Sums::kOrdered) lay_out_units(workspace);
    }
    const Geometry& g = h.geometry;
    if (given.grad_weight) share_out_taps();
    map_of_launch_ = params_.slices * (g.map_batch == 1 ? g.batch : 1);
    map_.lay_out(workspace, given.grad_map, types.map, g.map_numel(), map_of_launch_ * given.outputs * tap_ranges(),
                 deterministic);
    map_.always_sums(workspace);
    factors_of_launch_ = std::int64_t{params_.head_units} * params_.unit_slices * (h.factors_batch == 1 ? g.batch : 1);
    factors_.lay_out(workspace, given.grad_factors, types.input, h.factors_numel(), factors_of_launch_ * given.outputs,
                     deterministic);
    if (factors_.gradient && factors_.arrays != 1) factors_.always_sums(workspace);
    if (given.grad_weight) weight_sums_ = workspace.template take<Acc>(weight_blocks() * g.channels * range_);
    bytes_ = workspace.bytes();
  }
  std::size_t bytes() const { return bytes_; }

  void run(Stream stream) const {
    prepare(stream);
    OuterProductPointers<T, Sums> tensors{};
    tensors.values = static_cast<const T*>(given_.values);
    tensors.factors = static_cast<const T*>(given_.factors);
    tensors.image = copy_ ? copy_ : static_cast<const T*>(given_.image);
    tensors.map = given_.map;
    tensors.sums = sums_.as<Sums>();
    tensors.grad_values = static_cast<T*>(given_.grad_values);
    tensors.grad_factors = static_cast<T*>(given_.grad_factors);
    tensors.factor_sums = factors_.sums;
    tensors.factors_part = factors_.part();
    tensors.grad_map = map_.sums;
    tensors.map_part = map_.part();
    const auto shared = static_cast<std::size_t>(kRowWarps * TapTable<Acc, true>::bytes(params_.run));
    const Grid grid{blocks_of(params_), kRowThreads, shared, true};
    if constexpr (kForWeights) {
      for (std::int64_t launch = 0; launch < given_.outputs * tap_ranges(); ++launch) run_part(launch, grid, tensors, stream);
    } else if (given_.of_factors) {
      launch(outer_product_kernel<T, Sums, kN, true, NoChannelWeights>, grid, stream, params_, tensors, NoChannelWeights{});
    } else {
      launch(outer_product_kernel<T, Sums, kN, false, NoChannelWeights>, grid, stream, params_, tensors, NoChannelWeights{});
    }
    if (given_.grad_image && !in_place()) sums_to_image(image_, types_.input, sums_, given_.grad_image, stream);
    map_.write(stream);
    factors_.write(stream);
  }

 private:
  /// Of a depthwise convolution one output of each channel and some taps; `tensors` are those of the first output.
  void run_part(std::int64_t part, Grid grid, OuterProductPointers<T, Sums> tensors, Stream stream) const {
    const Geometry& g = h_.geometry;
    const std::int64_t output = part / tap_ranges(), first_tap = part % tap_ranges() * range_;
    const std::int64_t taps = std::min(range_, g.taps() - first_tap);
    SomeChannelWeights<T> weights{};
    weights.weight = static_cast<const T*>(given_.weight) + output * g.taps();
    weights.sums = weight_sums_;
    weights.outputs = static_cast<int>(given_.outputs);
    weights.taps = {static_cast<int>(first_tap), static_cast<int>(first_tap + taps)};
    grid.shared += plan_chunk<kN>(params_, taps, weights.sums != nullptr, weights);
    tensors.values += output * OutputLayout(g, given_.outputs, given_.format).next;
    if (tensors.grad_map) tensors.grad_map += part * map_of_launch_ * tensors.map_part;
    if (tensors.factor_sums) tensors.factor_sums += output * factors_of_launch_ * tensors.factors_part;
    launch(outer_product_kernel<T, Sums, kN, true, SomeChannelWeights<T>>, grid, stream, params_, tensors, weights);
    if (!weight_sums_) return;
    const std::int64_t count = g.channels * taps;
    launch(sum_blocks_kernel<T>, {grid_size(ceil_div(count, kSumElements)), kRowThreads, 0, true}, stream,
           static_cast<const Acc*>(weight_sums_), count, weight_blocks(), static_cast<int>(g.channels),
           given_.outputs * g.taps(), static_cast<T*>(given_.grad_weight) + output * g.taps() + first_tap);
  }
  /// So many taps a launch that the blocks' sums are no more than two images, and a multiple of those that a warp works out.
  void share_out_taps() {
    constexpr std::int64_t kLeast = std::int64_t{1} << 14;  // sums of small calls
    const std::int64_t of_tap = weight_blocks() * h_.geometry.channels;
    const std::int64_t most = std::max(2 * h_.geometry.input_numel(), kLeast) / of_tap / 32 * 32;
    range_ = std::min(std::max(most, std::int64_t{32}), h_.geometry.taps());
  }
  std::int64_t tap_ranges() const { return ceil_div(h_.geometry.taps(), range_); }
  /// Blocks whose sums for the weights of one channel lie apart.
  std::int64_t weight_blocks() const { return std::int64_t{params_.column_blocks} * params_.row_blocks * params_.images; }
  /// Whether the gradient holds its sums itself.
  bool in_place() const { return image_.own && std::is_same_v<T, Word>; }

  void lay_out_units(Workspace& workspace) {
    const Geometry& g = h_.geometry;
    const std::size_t before = workspace.bytes();
    sums_.strange = workspace.template take<unsigned>(ceil_div(image_.numel(), 16));
    terms_.words = workspace.template take<unsigned long long>(largest_words(h_));
    zeroed_ = workspace.bytes() - before;
    sums_.largest = workspace.template take<unsigned long long>(g.batch * g.channels);
    sums_.bits = ordered_bits(g.taps() * g.positions() * given_.outputs);
  }
  void prepare(Stream stream) const {
    map_.clear(stream);
    factors_.clear(stream);
    // Sums that have the layout of a copy are cleared beside it.
    const bool beside = given_.grad_image && !image_.own && Sums::kWords == 1;
    if (given_.grad_image && !beside) {
      DDU_CUDA_CHECK(
          cudaMemsetAsync(sums_.words, 0, sizeof(Word) * static_cast<std::size_t>(image_.numel() * Sums::kWords), stream));
    }
    if (sums_.ordered) {
      DDU_CUDA_CHECK(cudaMemsetAsync(sums_.strange, 0, zeroed_, stream));
      LargestTerms terms = terms_;
      terms.values = given_.values;
      terms.factors = given_.factors;
      terms.weight = given_.weight;
      terms.outputs = given_.outputs;
      find_largest(h_, types_.input, terms, sums_, stream);
    }
    if (!copy_ && !beside) return;
    RowsToClear cleared;
    if (beside) cleared = {static_cast<unsigned char*>(sums_.words), int(sizeof(Word))};
    planes_to_rows(image_.units, types_.input, image_.rows, {}, given_.image, copy_, cleared, nullptr, stream);
  }

  const HeadGeometry& h_;
  Types types_;
  const OuterProduct& given_;
  const ImageRows& image_;
  HeadParams<Acc> params_;
  bool samples_;       // whether pixels are read
  T* copy_ = nullptr;  // of the image, in rows
  ImageSums sums_;
  LargestTerms terms_;
  std::size_t zeroed_ = 0;  // bytes of sums_.strange and terms_.words
  SharedGradient<Acc> map_, factors_;
  std::int64_t map_of_launch_ = 0, factors_of_launch_ = 0;  // warps that have a part of one of their elements
  std::int64_t range_;                                      // taps of a launch
  Acc* weight_sums_ = nullptr;                              // of the channels' weights, of each block
  std::size_t bytes_;
};

/// Calls body(Backward) for the kind of sums and the channels of a lane. Integers are added one by one. They serve a depthwise
/// convolution without vectors too: code counts for more than speed there.
template <class T, bool kForWeights, class Body>
void visit_kernels(const HeadGeometry& h, Types types, const OuterProduct& given, bool deterministic, const ImageRows& image,
                   Body body) {
  const auto visit_sums = [&](auto sums, auto channels) {
    body(Backward<T, decltype(sums), decltype(channels)::value, kForWeights>(h, types, given, image, deterministic));
  };
  constexpr std::integral_constant<int, 1> kOne{};
  if ((deterministic && given.grad_image) || (kForWeights && !image.vectors)) return visit_sums(OrderedSums<T>{}, kOne);
  if (image.vectors) return visit_sums(FloatingSums<T>{}, std::integral_constant<int, kBackwardChannels<T>>{});
  if constexpr (!kForWeights) visit_sums(FloatingSums<T>{}, kOne);
}

/// The same for any type. `aligned` as ImageRows takes it.
template <class Body>
void visit_backward(const HeadGeometry& h, Types types, const OuterProduct& given, bool deterministic, bool aligned,
                    Body body) {
  const ImageRows image(h, format_of(h, given.format), static_cast<int>(16 / size_of(types.input)), aligned);
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (given.weight) return visit_kernels<T, true>(h, types, given, deterministic, image, body);
    visit_kernels<T, false>(h, types, given, deterministic, image, body);
  });
}

bool rows_aligned(const OuterProduct& given) { return is_aligned(given.image, 16) && is_aligned(given.grad_image, 16); }

bool any_wanted(const OuterProduct& given) {
  return given.grad_image || given.grad_values || given.grad_factors || given.grad_map || given.grad_weight;
}

}  // namespace

std::size_t outer_product_workspace_bytes(const HeadGeometry& h, Types types, const OuterProduct& given, bool deterministic) {
  check_types(types);
  if (!any_wanted(given) || h.geometry.columns_numel() == 0) return 0;
  std::size_t bytes = 0;
  for (const bool aligned : {true, false}) {  // which of the two the call will be aggregate and correlate do not know
    if (given.weight && aligned != rows_aligned(given)) continue;
    visit_backward(h, types, given, deterministic, aligned,
                   [&](const auto& backward) { bytes = std::max(bytes, backward.bytes()); });
  }
  return bytes;
}

void outer_product(const HeadGeometry& h, Types types, const OuterProduct& given, bool deterministic, Stream stream) {
  check_types(types);
  if (!any_wanted(given)) return;
  if (h.geometry.columns_numel() == 0) {  // no column carries a gradient
    const auto clear = [&](void* gradient, DType type, std::int64_t count) {
      const std::size_t bytes = size_of(type) * static_cast<std::size_t>(count);
      if (gradient && bytes > 0) DDU_CUDA_CHECK(cudaMemsetAsync(gradient, 0, bytes, stream));
    };
    clear(given.grad_image, types.input, h.geometry.input_numel());
    clear(given.grad_values, types.input, h.values_numel());
    clear(given.grad_factors, types.input, h.factors_numel());
    clear(given.grad_weight, types.input, h.geometry.channels * given.outputs * h.geometry.taps());
    return clear(given.grad_map, types.map, h.geometry.map_numel());
  }
  visit_backward(h, types, given, deterministic, rows_aligned(given), [&](const auto& backward) { backward.run(stream); });
}

}  // namespace ddu::cuda::channels_last
