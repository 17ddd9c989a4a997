// The host side of attention and its backward:
//
//     (planes_to_rows_kernel      key and value, channels-last, unless they lie so)
//     attention_kernel            the output, in the key's format, and the normalizers
//
//     (planes_to_rows_kernel      the same, and zeros in the sums of their gradients beside them)
//     attention_backward_kernel   every gradient that is wanted, those of key, value and map in sums
//     (rows_to_planes_kernel or convert_kernel   sums to the gradients of key and value)
//     (add_arrays_kernel          sums to the gradient of the map)

#include "ddu/attention.h"

#include "channels_last/attention_backward.cuh"
#include "channels_last/heads_forward.h"

namespace ddu::cuda {
namespace {

using namespace channels_last;

constexpr int kChannels = 4;  // of a lane, in the backward

int vectors_of(DType type) { return static_cast<int>(16 / size_of(type)); }

std::size_t backward_shared_bytes(const HeadParams<float>& p) {
  return static_cast<std::size_t>(kRowWarps * TapTable<float, true>::bytes(p.run) +
                                  PositionBoard<kChannels>::bytes(p.log_unit_lanes));
}

template <class Body>
void visit_types(DType type, Body body) {
  visit(type, [&](auto* element) {
    if constexpr (sizeof(*element) < 8) body(element);
  });
}

ScoreParams<float> score_params(const Attention& given) {
  const std::int64_t (&strides)[4] = given.bias_strides;
  return {float(given.scale * kLog2E), given.bias, strides[0], strides[1], strides[2], strides[3]};
}

template <class T>
void run(const HeadGeometry& h, Types types, const Attention& given, const ImageToRead& key, const ImageToRead& value,
         Stream stream) {
  constexpr int kN = kVec<T>;
  const std::size_t at_once = value_bytes<T, kN>(key.image);
  const auto p = head_params<T>(h, types, key.image, kN, false,
                                is_aligned(given.query, at_once) && is_aligned(given.output, at_once), false, kForwardColumns);
  const AttentionPointers<T> tensors{static_cast<const T*>(given.query),
                                     static_cast<const T*>(key.read(types.input, given.key, stream)),
                                     static_cast<const T*>(value.read(types.input, given.value, stream)),
                                     given.dilation_map,
                                     static_cast<T*>(given.output),
                                     given.normalizers,
                                     {key.strange, key.strange_count},
                                     {value.strange, value.strange_count}};
  const auto shared = static_cast<std::size_t>(kRowWarps * TapTable<float, false>::bytes(p.run));
  launch(attention_kernel<T, kN>, {blocks_of(p), kRowThreads, shared, true}, stream, p, score_params(given), tensors);
}

/// The rows of a forward call, one copy behind the other.
struct BothImages {
  ImageToRead key, value;

  BothImages(const HeadGeometry& h, DType type, const Attention& given)
      : key(h, type, given.input_format, given.key, given.workspace),
        value(h, type, given.input_format, given.value,
              given.workspace ? static_cast<char*>(given.workspace) + key.bytes : nullptr) {}
};

/// A gradient of key or value: its sums, and the copy of the image. Where the copy is no larger than the gradient it lies there
/// until the gradient is written.
template <class T>
struct Sampled {
  const T* given;
  T* gradient;
  T* copy = nullptr;
  ImageSums sums;

  Sampled(const void* tensor, void* grad) : given(static_cast<const T*>(tensor)), gradient(static_cast<T*>(grad)) {}
  static bool in_place(const ImageRows& image) { return image.own && std::is_same_v<T, float>; }

  void lay_out(const ImageRows& image, const Geometry& g, Workspace& workspace) {
    if (!image.own) {
      const bool fits = gradient && image.numel() == g.input_numel() && is_aligned(gradient, 16);
      // A workspace is asked for without pointers that could be aligned: room for the copy counts either way.
      copy = fits ? gradient : workspace.template take<T>(image.numel());
    }
    if (!gradient) return;
    sums.array = image.numel();
    sums.words = in_place(image) ? static_cast<void*>(gradient) : workspace.template take<float>(image.numel());
  }
  void prepare(const ImageRows& image, DType type, Stream stream) const {
    if (!image.own) {
      RowsToClear cleared;
      if (gradient) cleared = {static_cast<unsigned char*>(sums.words), int(sizeof(float))};
      planes_to_rows(image.units, type, image.rows, {}, given, copy, cleared, nullptr, stream);
    } else if (gradient) {
      DDU_CUDA_CHECK(cudaMemsetAsync(sums.words, 0, sizeof(float) * static_cast<std::size_t>(image.numel()), stream));
    }
  }
  const T* rows() const { return copy ? copy : given; }
  void write(const ImageRows& image, DType type, Stream stream) const {
    if (gradient && !in_place(image)) sums_to_image(image, type, sums, gradient, stream);
  }
};

template <class T>
class Backward {
 public:
  Backward(const HeadGeometry& h, Types types, const AttentionBackward& given, const ImageRows& image)
      : types_(types),
        given_(given),
        image_(image),
        key_(given.forward.key, given.grad_key),
        value_(given.forward.value, given.grad_value) {
    const std::size_t at_once = value_bytes<T, kChannels>(image);
    bool aligned = true;
    for (const void* tensor : {given.forward.query, given.grad_output, static_cast<const void*>(given.forward.output),
                               static_cast<const void*>(given.grad_query)}) {
      aligned = aligned && is_aligned(tensor, at_once);
    }
    params_ = head_params<T>(h, types, image, kChannels, false, aligned, false);
    Workspace workspace(given.workspace);
    key_.lay_out(image, h.geometry, workspace);
    value_.lay_out(image, h.geometry, workspace);
    const Geometry& g = h.geometry;
    map_.lay_out(workspace, given.grad_map, types.map, g.map_numel(), params_.slices * (g.map_batch == 1 ? g.batch : 1), false);
    map_.always_sums(workspace);
    bytes_ = workspace.bytes();
  }
  std::size_t bytes() const { return bytes_; }

  void run(Stream stream) const {
    map_.clear(stream);
    key_.prepare(image_, types_.input, stream);
    value_.prepare(image_, types_.input, stream);
    const Attention& forward = given_.forward;
    AttentionBackwardPointers<T> tensors{};
    tensors.query = static_cast<const T*>(forward.query);
    tensors.key = key_.rows();
    tensors.value = value_.rows();
    tensors.output = static_cast<const T*>(forward.output);
    tensors.grad_output = static_cast<const T*>(given_.grad_output);
    tensors.map = forward.dilation_map;
    tensors.normalizers = forward.normalizers;
    tensors.key_sums = key_.sums.template as<FloatingSums<T>>();
    tensors.value_sums = value_.sums.template as<FloatingSums<T>>();
    tensors.grad_query = static_cast<T*>(given_.grad_query);
    tensors.grad_scores = given_.grad_scores;
    tensors.grad_map = map_.sums;
    tensors.map_part = map_.part();
    std::size_t shared = backward_shared_bytes(params_);
    const std::size_t lists = static_cast<std::size_t>(PixelLists<kChannels>::bytes(params_));
    if ((key_.gradient || value_.gradient) && shared + lists <= std::size_t(current_device().shared_per_block)) {
      tensors.batch = PixelLists<kChannels>::batch(params_);
      if (tensors.batch > 0) shared += lists;
    }
    launch(attention_backward_kernel<T, kChannels>, {blocks_of(params_), kRowThreads, shared, true}, stream, params_,
           score_params(forward), tensors);
    key_.write(image_, types_.input, stream);
    value_.write(image_, types_.input, stream);
    map_.write(stream);
  }

 private:
  Types types_;
  const AttentionBackward& given_;
  const ImageRows& image_;
  Sampled<T> key_, value_;
  HeadParams<float> params_;
  SharedGradient<float> map_;
  std::size_t bytes_;
};

template <class Body>
void visit_backward(const HeadGeometry& h, Types types, const AttentionBackward& given, Body body) {
  const ImageRows image(h, format_of(h, given.forward.input_format), vectors_of(types.input), true);
  visit_types(types.input,
              [&](auto* element) { body(Backward<std::remove_pointer_t<decltype(element)>>(h, types, given, image)); });
}

}  // namespace

bool attention_supported(const HeadGeometry& h, Types types, MemoryFormat format) {
  const std::int64_t channels = h.head_channels();
  if (types.input == DType::float64 || h.heads % h.geometry.groups != 0) return false;
  if (channels < 1 || h.geometry.columns_numel() == 0) return false;
  if (!ImageRows(h, format_of(h, format), vectors_of(types.input), true).vectors) return false;
  HeadParams<float> params{};
  divide_channels(h, kChannels, false, params);
  params.run = run_of(params);
  return params.unit_slices == 1 && backward_shared_bytes(params) <= std::size_t(current_device().shared_per_block);
}

std::size_t attention_workspace_bytes(const HeadGeometry& h, Types types, const Attention& tensors) {
  Attention given = tensors;
  given.workspace = nullptr;
  const BothImages images(h, types.input, given);
  return images.key.bytes + images.value.bytes;
}

void attention(const HeadGeometry& h, Types types, const Attention& tensors, Stream stream) {
  check_types(types);
  const BothImages images(h, types.input, tensors);
  visit_types(types.input, [&](auto* element) {
    run<std::remove_pointer_t<decltype(element)>>(h, types, tensors, images.key, images.value, stream);
  });
}

std::size_t attention_backward_workspace_bytes(const HeadGeometry& h, Types types, const AttentionBackward& tensors) {
  std::size_t bytes = 0;
  visit_backward(h, types, tensors, [&](const auto& backward) { bytes = backward.bytes(); });
  return bytes;
}

void attention_backward(const HeadGeometry& h, Types types, const AttentionBackward& tensors, Stream stream) {
  check_types(types);
  visit_backward(h, types, tensors, [&](const auto& backward) { backward.run(stream); });
}

}  // namespace ddu::cuda
