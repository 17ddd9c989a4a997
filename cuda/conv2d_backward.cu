// The host side of the convolution's backward:
//
//     (planes_to_rows_kernel        the input and grad_output, channels-last, unless they lie so; zeros in the sums beside)
//     pack_for_backward_kernel      the weight, in the orders of the products, and ranges of rates
//     conv_weight_backward_kernel   the weight's gradient, in sums of each block's → sum_weights_kernel, which adds them up
//     or, for both, conv_joint_backward_kernel → sum_weights_kernel, for the map's gradient as well
//     conv_corners_backward_kernel  gradients of map and mask, and zeros in the input's sums, if it has such
//     conv_input_gather_kernel      the input's gradient of few taps, or its sums in rows
//     or conv_input_backward_kernel, whatever the taps, which adds to its sums
//     (rows_to_planes_kernel or convert_kernel   sums to grad_input)
//     (add_arrays_kernel            sums to the gradients of map and mask, where their type is a half one)

#include <optional>

#include "../cpp/src/conv2d_products.h"
#include "channels_last/image_rows.h"
#include "convolution/backward_pack.cuh"
#include "convolution/corners.h"
#include "convolution/image.h"
#include "convolution/input_plan.h"
#include "convolution/joint.h"
#include "convolution/weight.h"

namespace ddu::cuda {
namespace {

using namespace channels_last;

using convolution::as_image;
using convolution::with_heads;

template <class T>
class ConvBackward {
 public:
  ConvBackward(const Conv2dGeometry& c, const OwnGroups& own, Types types, const Conv2dBackward& given)
      : c_(c),
        types_(types),
        given_(given),
        image_(with_heads(c), format_of(with_heads(c), given.input_format), kVec<T>,
               is_aligned(given.input, 16) && is_aligned(given.grad_input, 16)),
        outputs_(as_image(c)) {
    make_params(own);
    gathers_ = given.grad_input && convolution::can_gather(params_, int(sizeof(T)));
    Workspace workspace(given.workspace);
    BorrowedWorkspace borrowed(workspace, lent_memory(), sizeof(T) * static_cast<std::size_t>(c.geometry.input_numel()));
    // For the kernel that computes the input's gradient itself, which may be what writes it.
    BorrowedWorkspace of_input(workspace, nullptr, 0);
    BorrowedWorkspace& for_input = has_sums() ? borrowed : of_input;
    const Geometry& g = c.geometry;
    const bool factors = given.grad_map || given.grad_mask, samples = factors || given.grad_weight;
    if (samples) lay_out_rows(borrowed);
    if (factors) corners_ = convolution::corners_call(c_, types_.input, whole_rows());
    corners_.params.in_order = joins_ = factors && given.grad_weight && convolution::can_join(corners_.params, types_.input);
    if (gathers_) gather_ = convolution::gather_params(c_, params_, int(sizeof(T)));
    if (given.grad_input && !gathers_) input_ = convolution::input_params(c_, params_, int(sizeof(T)));
    if (given.grad_weight) make_weight_params();
    if (samples && !image_.own) copy_ = borrowed.template take<T>(image_.numel());
    if (!own_outputs_) outputs_copy_ = for_input.template take<T>(channels_last::numel(outputs_, params_.outputs));
    packed_weights_ = for_input.template take<uint4>(packed_vectors());
    if (gathers_) ranges_ = for_input.template take<RateRange>(convolution::all_boxes(c_, gather_));
    if (factors) corners_.slices = borrowed.template take<uint4>(corners_.vectors);
    if (has_sums()) sums_.words = in_place() ? given.grad_input : workspace.template take<float>(image_.numel());
    const std::int64_t slices = corners_.params.by_output_blocks.divisor;  // each adds its outputs' part
    const std::int64_t meeting = params_.units * slices * (g.map_batch == 1 ? g.batch : 1);
    map_.lay_out(workspace, given.grad_map, types.map, g.map_numel(), meeting * (joins_ ? g.h.kernel_size : 1), meeting == 1);
    if (map_.arrays != 1) map_.always_sums(workspace);
    mask_.lay_out(workspace, given.grad_mask, types.input, c.mask_numel(),
                  params_.head_units * slices * (c.mask_batch == 1 ? g.batch : 1), false);
    if (mask_.arrays != 1) mask_.always_sums(workspace);
    if (factors && !map_.sums && !mask_.sums) corners_.lay_out_flags(c, workspace);
    if (given.grad_weight) {
      // They are read before the input's gradient is begun, so its sums may lie where they were, unless a copy cleared those.
      const std::int64_t count = weight_.splits * weight_.part;
      const bool within = given.grad_input && !gathers_ && image_.own && count <= image_.numel() && is_aligned(sums_.words, 16);
      weight_sums_ = within ? static_cast<float*>(sums_.words) : borrowed.template take<float>(count);
    }
    bytes_ = workspace.bytes();
  }
  std::size_t bytes() const { return bytes_; }
  bool fits() const { return convolution::corners_fit(convolution::corners_call(c_, types_.input, whole_rows()), c_.has_mask); }

  void run(Stream stream) const {
    prepare(stream);
    pack(stream);
    const void* image = rows_ ? rows_->read(types_.input, given_.input, stream) : copy_;
    if (joins_) run_joint(image, stream);
    if (given_.grad_weight && !joins_) run_weight(image, stream);
    const bool factors = (given_.grad_map || given_.grad_mask) && !joins_;
    if (given_.grad_input && !gathers_ && image_.own && !(factors && corners_clear())) {
      DDU_CUDA_CHECK(cudaMemsetAsync(sums_.words, 0, sizeof(float) * static_cast<std::size_t>(image_.numel()), stream));
    }
    if (factors) run_corners(image, stream);
    if (given_.grad_input) gathers_ ? run_gather(stream) : run_input(stream);
    if (given_.grad_input && sums_.words && !in_place()) sums_to_image(image_, types_.input, sums_, given_.grad_input, stream);
    if (map_arrays().count == 0) map_.write(stream);
    mask_.write(stream);
  }

 private:
  /// How the weight's gradient is computed: by blocks of 16 warps where there are so many outputs, and the device has the
  /// shared memory, and by warpgroups where those multiply.
  bool weight_by_warpgroups() const {
    return sizeof(T) == 2 && c_.weight_group_outputs() > 128 && convolution::has_warpgroup_kernels();
  }
  int weight_warps() const {
    const bool wide = c_.weight_group_outputs() > WeightShape<8, false>::kOutputs;
    return wide && kWeightShared<T, 16, false> <= current_device().shared_per_block ? 16 : 8;
  }
  /// Of the weight, for the input's gradient.
  std::int64_t packed_vectors() const {
    if (!given_.grad_input) return 0;
    return gathers_ ? convolution::packed_vectors(gather_, int(sizeof(T))) : convolution::packed_vectors(input_);
  }
  /// Whether the gradient of the input is summed up in rows of float32 at first.
  bool has_sums() const { return given_.grad_input && !(gathers_ && image_.own); }
  /// The gradient's own memory, which nobody reads or writes until it is computed.
  void* lent_memory() const {
    const bool idle = given_.grad_input && !(has_sums() && in_place()) && is_aligned(given_.grad_input, 64);
    return idle ? given_.grad_input : nullptr;
  }
  /// Whether the gradient holds its sums itself.
  bool in_place() const { return image_.own && std::is_same_v<T, float>; }
  const T* outputs() const { return outputs_copy_ ? outputs_copy_ : static_cast<const T*>(given_.grad_output); }

  void make_params(const OwnGroups& own) {
    const Geometry& g = c_.geometry;
    ConvBackwardParams& p = params_;
    static_cast<RowParams<float>&>(p) = sizes_of<float>(g, types_, image_.rows);
    const std::int64_t unit = ImageRows::unit_channels(with_heads(c_));
    p.row = g.w.size * image_.rows.pixel;
    p.image_vectors = image_.vectors;
    p.heads = static_cast<int>(c_.heads);
    p.shared_mask = c_.mask_batch == 1;
    p.units = static_cast<int>(g.group_channels() / unit);
    p.head_units = static_cast<int>(c_.head_channels() / unit);
    p.weight_units = static_cast<int>(c_.weight_group_channels() / unit);
    p.unit_channels = static_cast<int>(unit);
    p.unit_stride = static_cast<int>(image_.stride);
    own_outputs_ = given_.input_format == MemoryFormat::channels_last || c_.out_channels == 1;
    p.outputs = own_outputs_ ? own_rows(outputs_) : padded_rows(outputs_, kVec<T>);
    p.group_outputs = static_cast<int>(c_.weight_group_outputs());
    p.own = own;
    p.output_vectors = !own_outputs_ || whole_vectors(outputs_, given_.grad_output, kVec<T>);
    p.by_units = Divider(static_cast<unsigned>(p.units));
    p.by_head_units = Divider(static_cast<unsigned>(p.head_units));
    p.by_weight_units = Divider(static_cast<unsigned>(p.weight_units));
    p.slices = p.tap_chunks = 1;
    p.tap_chunk = p.taps;
  }
  /// Rows of whole vectors, for gradients of weight, map and mask: a copy of a channels_last image that has none.
  void lay_out_rows(BorrowedWorkspace& workspace) {
    if (!image_.own) return;
    const auto lay_out = [&](void* memory) { rows_.emplace(c_, types_.input, given_.input_format, given_.input, memory); };
    lay_out(nullptr);
    lay_out(workspace.template take<unsigned char>(static_cast<std::int64_t>(rows_->bytes)));
  }
  /// What reads those.
  ConvBackwardParams whole_rows() const {
    ConvBackwardParams p = params_;
    if (rows_) {
      p.rows = rows_->rows.rows;
      p.row = c_.geometry.w.size * p.rows.pixel;
      p.unit_stride = static_cast<int>(rows_->rows.stride);
    }
    return p;
  }
  void make_weight_params() {
    ConvWeightParams& p = weight_;
    static_cast<ConvBackwardParams&>(p) = whole_rows();
    cut_positions(c_.geometry, kWeightRun, p);
    p.by_slices = p.by_groups = Divider(1);  // images alone are counted beside positions
    p.position_blocks = grid_size(std::int64_t{p.column_blocks} * p.row_blocks * c_.geometry.batch);
    const int warps = weight_warps();
    const bool warpgroups = weight_by_warpgroups();
    p.block_taps = warpgroups ? WeightShape<16, true>::kTaps : WeightShape<8, false>::kTaps;
    p.tap_groups = static_cast<int>(ceil_div(p.taps, p.block_taps));
    p.channel_slices = static_cast<int>(ceil_div(p.unit_channels, kWeightChannels));
    p.output_slices = static_cast<int>(ceil_div(p.group_outputs, (warpgroups ? 16 : 8) * warps));
    p.padded_channels = static_cast<int>(ceil_div(p.unit_channels, 4) * 4);
    p.part = convolution::all_units(params_) * p.taps * p.group_outputs * p.padded_channels;
    if (joins_) {
      joint_ = convolution::joint_params(corners_.params, c_.geometry, convolution::all_units(params_), p);
      p.splits = joint_.splits;
    } else {
      share_out_positions(weight_shared(), warps);
    }
    p.by_splits = Divider(static_cast<unsigned>(p.splits));
    p.by_output_slices = Divider(static_cast<unsigned>(p.output_slices));
    p.by_channel_slices = Divider(static_cast<unsigned>(p.channel_slices));
    p.by_tap_groups = Divider(static_cast<unsigned>(p.tap_groups));
  }
  int weight_shared() const {
    if constexpr (sizeof(T) == 2) {
      if (weight_by_warpgroups()) return kWeightShared<T, 16, true>;
    }
    return weight_warps() == 16 ? kWeightShared<T, 16, false> : kWeightShared<T, 8, false>;
  }
  std::int64_t weight_tiles() const {
    return convolution::all_units(params_) * weight_.tap_groups * weight_.channel_slices * weight_.output_slices;
  }
  /// Blocks of so many positions that they end together, in one wave or a few. Sums are read as often as they are written: the
  /// fewer splits, the fewer of them.
  void share_out_positions(int shared, int warps) {
    ConvWeightParams& p = weight_;
    const Device& device = current_device();
    const std::int64_t resident = std::min(16 / warps, device.shared_per_multiprocessor / (shared + 1024));
    const std::int64_t at_once = std::max<std::int64_t>(1, resident) * device.multiprocessors;
    const std::int64_t tiles = weight_tiles(), unit = warps / kRowWarps, units = ceil_div(p.position_blocks, unit);
    // In bytes of sums that are moved in as much time, on an H100: of a position block, and of a block's start and end.
    constexpr double kOfUnit = 50e6, kOfBlock = 12e6;
    double least = 0;
    for (std::int64_t wanted = 1; wanted <= 4; ++wanted) {
      const std::int64_t share = ceil_div(units, std::clamp<std::int64_t>(wanted * at_once / tiles, 1, units));
      const std::int64_t splits = ceil_div(units, share), waves = ceil_div(tiles * splits, at_once);
      const double cost = static_cast<double>(waves) * (static_cast<double>(share) * kOfUnit + kOfBlock) +
                          2 * sizeof(float) * static_cast<double>(splits * p.part);
      if (wanted > 1 && cost >= least) continue;
      least = cost;
      p.split_blocks = static_cast<int>(share * unit);
    }
    p.splits = static_cast<int>(ceil_div(p.position_blocks, p.split_blocks));
  }

  void prepare(Stream stream) const {
    map_.clear(stream);
    mask_.clear(stream);
    // Sums that have the layout of a copy are cleared beside it.
    const bool beside = given_.grad_input && !gathers_ && !image_.own;
    if (copy_ || beside) {
      RowsToClear cleared;
      if (beside) cleared = {static_cast<unsigned char*>(sums_.words), int(sizeof(float))};
      planes_to_rows(image_.units, types_.input, image_.rows, {}, given_.input, copy_, cleared, nullptr, stream);
    }
    if (outputs_copy_) {
      planes_to_rows(outputs_, types_.input, params_.outputs, {}, given_.grad_output, outputs_copy_, {}, nullptr, stream);
    }
  }
  void pack(Stream stream) const {
    const std::int64_t of_corners = corners_.slices ? corners_.vectors : 0, of_input = gathers_ ? 0 : packed_vectors(),
                       of_gather = gathers_ ? packed_vectors() : 0;
    const std::int64_t boxes = gathers_ ? convolution::all_boxes(c_, gather_) : 0;
    const std::int64_t threads = of_corners + of_input + of_gather + 32 * boxes;
    launch(pack_for_backward_kernel<T>, {grid_size(ceil_div(threads, 256)), 256, 0, true}, stream, corners_.params,
           corners_.outputs, corners_.slices, of_corners, input_, packed_weights_, of_input, gather_, packed_weights_,
           of_gather, ranges_, boxes, given_.dilation_map, static_cast<const T*>(given_.weight));
  }
  /// Whether the kernel of map and mask clears the sums of the input's gradient beside its work.
  bool corners_clear() const { return image_.own && is_aligned(sums_.words, 16) && image_.numel() % 4 == 0; }
  void run_input(Stream stream) const {
    const convolution::InputCall call{input_,      types_.input,        convolution::blocks_of(input_),
                                      outputs(),   packed_weights_,     given_.weight,
                                      given_.mask, given_.dilation_map, static_cast<float*>(sums_.words)};
    if (convolution::has_warpgroup_kernels()) return convolution::launch_input_warpgroup_kernel(call, stream);
    convolution::launch_input<false>(call, stream);
  }
  void run_gather(Stream stream) const {
    const convolution::GatherCall call{gather_,
                                       types_.input,
                                       convolution::blocks_of(gather_),
                                       outputs(),
                                       packed_weights_,
                                       ranges_,
                                       given_.mask,
                                       given_.dilation_map,
                                       given_.weight,
                                       image_.own ? given_.grad_input : nullptr,
                                       static_cast<float*>(sums_.words)};
    convolution::run_gather(call, stream);
  }
  convolution::CornersCall corners_of(const void* image) const {
    convolution::CornersCall call = corners_;
    call.grad_output = outputs();
    call.image = image;
    call.mask = given_.mask;
    call.map = given_.dilation_map;
    call.map_sums = map_.sums;
    call.map_part = map_.part();
    call.mask_sums = mask_.sums;
    call.grad_map = given_.grad_map;
    call.grad_mask = given_.grad_mask;
    if (given_.grad_input && !gathers_ && !joins_ && corners_clear()) {
      call.zeros = sums_.words;
      call.zeros_count = image_.numel() / 4;
    }
    call.mask_part = mask_.part();
    return call;
  }
  void run_corners(const void* image, Stream stream) const {
    convolution::launch_corners_kernels(corners_of(image), c_.geometry, stream);
  }
  MapArrays map_arrays() const { return joins_ ? convolution::map_arrays(map_) : MapArrays{}; }
  void run_joint(const void* image, Stream stream) const {
    convolution::launch_joint_kernel({joint_, convolution::all_units(params_), corners_of(image), weight_sums_}, stream);
    sum_weights(map_arrays(), stream);
  }
  void run_weight(const void* image, Stream stream) const {
    const convolution::WeightCall call{weight_,
                                       types_.input,
                                       grid_size(weight_tiles() * weight_.splits),
                                       outputs(),
                                       image,
                                       given_.mask,
                                       given_.dilation_map,
                                       weight_sums_};
    if (weight_by_warpgroups()) {
      convolution::launch_weight_warpgroup_kernel(call, stream);
    } else if (weight_warps() == 16) {
      convolution::launch_weight<T, 16, false>(call, stream);
    } else {
      convolution::launch_weight<T, 8, false>(call, stream);
    }
    sum_weights({}, stream);
  }
  void sum_weights(const MapArrays& map, Stream stream) const {
    const unsigned blocks = grid_size(ceil_div(weight_.part, 128));
    launch(sum_weights_kernel<T>, {blocks + map.blocks(), kRowThreads, 0, true}, stream, weight_,
           static_cast<const float*>(weight_sums_), static_cast<T*>(given_.grad_weight), blocks, map);
  }

  const Conv2dGeometry& c_;
  Types types_;
  const Conv2dBackward& given_;
  ImageRows image_;
  Geometry outputs_;
  bool own_outputs_ = false;
  ConvBackwardParams params_{};
  ConvInputParams input_{};
  InputGatherParams gather_{};
  bool gathers_ = false, joins_ = false;  // joins_: weight, map and mask by one kernel
  JointParams joint_{};
  RateRange* ranges_ = nullptr;
  ConvWeightParams weight_{};
  convolution::CornersCall corners_;
  std::optional<convolution::ImageOfUnits> rows_;
  T *copy_ = nullptr, *outputs_copy_ = nullptr;  // of the input and of grad_output, in rows
  uint4* packed_weights_ = nullptr;
  ImageSums sums_;
  SharedGradient<float> map_, mask_;
  float* weight_sums_ = nullptr;
  std::size_t bytes_;
};

/// Calls body(ConvBackward) for the type of a call.
template <class Body>
void visit_backward(const Conv2dGeometry& c, Types types, const Conv2dBackward& given, Body body) {
  const Conv2dGeometry merged = convolution::merge_groups(c);
  visit(types.input, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) < 8) body(ConvBackward<T>(merged, convolution::own_groups(c), types, given));
  });
}

bool any_wanted(const Conv2dBackward& given) {
  return given.grad_input || given.grad_weight || given.grad_map || given.grad_mask;
}
bool is_empty(const Conv2dGeometry& c) { return c.geometry.columns_numel() == 0 || c.output_numel() == 0; }

void check_call(const Conv2dGeometry& c, Types types, bool deterministic) {
  if (!convolution::backward_supported(c, types, false)) {
    throw unsupported_device("the backward of conv2d has no kernels for this call: see conv2d_supported");
  }
  if (deterministic) throw unsupported_device("the backward of conv2d has no deterministic kernels");
}

}  // namespace

bool convolution::backward_supported(const Conv2dGeometry& c, Types types, bool deterministic) {
  if (!convolution::has_products(merge_groups(c), types) || deterministic) return false;
  bool fits = false;
  visit_backward(c, types, {}, [&](const auto& backward) { fits = backward.fits(); });
  return fits;
}

std::size_t convolution::backward_workspace_bytes(const Conv2dGeometry& c, Types types, const Conv2dBackward& given,
                                                  bool deterministic) {
  check_call(c, types, deterministic);
  if (!any_wanted(given) || is_empty(c)) return 0;
  std::size_t bytes = 0;
  visit_backward(c, types, given, [&](const auto& backward) { bytes = backward.bytes(); });
  return bytes;
}

void convolution::backward(const Conv2dGeometry& c, Types types, const Conv2dBackward& given, bool deterministic,
                           Stream stream) {
  check_call(c, types, deterministic);
  if (!any_wanted(given)) return;
  if (is_empty(c)) {  // no column carries a gradient
    const auto clear = [&](void* gradient, DType type, std::int64_t count) {
      const std::size_t bytes = size_of(type) * static_cast<std::size_t>(count);
      if (gradient && bytes > 0) DDU_CUDA_CHECK(cudaMemsetAsync(gradient, 0, bytes, stream));
    };
    clear(given.grad_input, types.input, c.geometry.input_numel());
    clear(given.grad_weight, types.input, c.weight_numel());
    clear(given.grad_map, types.map, c.geometry.map_numel());
    return clear(given.grad_mask, types.input, c.mask_numel());
  }
  visit_backward(c, types, given, [&](const auto& backward) { backward.run(stream); });
}

}  // namespace ddu::cuda
