#pragma once

// The convolution whose dilation is a map, for LibTorch: see ddu/torch.h.

#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "ddu/conv2d_geometry.h"
#include "ddu/torch/chunks.h"
#include "ddu/torch/common.h"
#include "ddu/torch/conv2d_kernels.h"

namespace ddu {

/// As much padding as gives as many positions as pixels; needs stride 1.
struct SamePadding {};
inline constexpr SamePadding same_padding{};

/// Pixels around the image, (height, width), or `same_padding`: {1, 1}, ddu::Pair or ddu::same_padding.
class Conv2dPadding {
 public:
  constexpr Conv2dPadding(std::int64_t height, std::int64_t width) : pixels_(Pair{height, width}) {}
  constexpr Conv2dPadding(Pair pixels) : pixels_(pixels) {}
  constexpr Conv2dPadding(SamePadding) {}

  constexpr bool is_same() const { return !pixels_; }
  constexpr Pair pixels() const { return pixels_.value_or(Pair{0, 0}); }

 private:
  std::optional<Pair> pixels_;
};

struct TorchConv2dOptions {
  Pair stride{1, 1};
  Conv2dPadding padding{0, 0};
  Pair dilation{1, 1};
  PaddingMode padding_mode = PaddingMode::zeros;
};

namespace torch_detail {

/// Sizes of the window, and the map's groups.
inline Options conv2d_options(const at::Tensor& weight, const at::Tensor& map, const TorchOptions& given) {
  if (!weight.defined() || weight.dim() != 4) return options_of({1, 1}, given, map);  // for the error that says so
  return options_of({weight.size(2), weight.size(3)}, given, map);
}

/// Throws, with Python's messages, for what no kernel takes.
inline Types check_conv2d(const TensorsOfConv2d& tensors) {
  const auto& [input, weight, map, bias, mask] = tensors;
  return check_tensors({{"input", input},
                        {"weight", weight},
                        {"dilation_map", map, true},
                        {"bias", bias, false, true},
                        {"mask", mask, false, true}});
}

/// The same for sizes and options that do not fit.
inline Conv2dGeometry conv2d_geometry(const TensorsOfConv2d& tensors, const Options& window) {
  const auto& [input, weight, map, bias, mask] = tensors;
  const Shape mask_shape = mask.defined() ? shape_of(mask) : Shape{nullptr, 0};
  const Conv2dGeometry geometry = make_conv2d_geometry(shape_of(input), shape_of(weight), shape_of(map), mask_shape, window);
  if (bias.defined() && bias.sizes() != weight.sizes().slice(0, 1)) {
    std::ostringstream text;
    text << "bias must have shape " << weight.sizes().slice(0, 1) << " beside weight " << weight.sizes() << ", got "
         << bias.sizes();
    throw invalid_argument(text.str().c_str());
  }
  return geometry;
}

/// For work in torch: no autograd and no autocast.
struct Alone {
  const at::NoGradGuard no_grad;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

/// The tensors of a batched call as torch reads them.
inline TensorsOfConv2d as_batch(const TensorsOfConv2d& given) {
  TensorsOfConv2d tensors;
  constexpr std::array<const char*, 5> names{"input", "weight", "dilation_map", "bias", "mask"};
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (given[i].defined()) tensors[i] = resolved(names[i], given[i]);
  }
  if (given[0].dim() == 4) return tensors;
  for (std::size_t i = 0; i < tensors.size(); i += 2) {  // weight and bias have no batch
    if (tensors[i].defined()) tensors[i] = tensors[i].unsqueeze(0);
  }
  return tensors;
}

inline std::vector<std::int64_t> output_sizes(const Conv2dGeometry& g, bool batched) {
  std::vector<std::int64_t> sizes{g.out_channels, g.geometry.h.out_size, g.geometry.w.out_size};
  if (batched) sizes.insert(sizes.begin(), g.geometry.batch);
  return sizes;
}

inline at::Tensor conv2d(const TensorsOfConv2d& given, const Options& window) {
  const Types types = check_conv2d(given);
  const Conv2dGeometry geometry = conv2d_geometry(given, window);
  const std::vector<std::int64_t> sizes = output_sizes(geometry, given[0].dim() == 4);
  const Alone alone;
  at::Tensor output = at::empty(sizes, given[0].options(), torch_format(format_of(given[0])));
  if (output.numel() == 0) return output;
  if (reads_float32(geometry, given)) {
    const at::Tensor wide = at::empty_like(output, output.options().dtype(at::kFloat));
    if (conv2d_by_kernels(geometry, all_float32, in_float32(given), wide)) return output.copy_(wide);
  }
  if (conv2d_by_kernels(geometry, types, given, output)) return output;
  const auto [input, weight, map, bias, mask] = as_batch(given);
  chunked_forward({input, weight, map, mask, window}, bias, output.dim() == 3 ? output.unsqueeze(0) : output);
  return output;
}

/// Gradients, undefined for one that is not wanted.
inline TensorsOfConv2d conv2d_backward(const at::Tensor& given_grad, const TensorsOfConv2d& given, const Options& window,
                                       WantedOfConv2d wanted) {
  const Types types = check_conv2d(given);
  const Conv2dGeometry geometry = conv2d_geometry(given, window);
  check_grad(given_grad, given[0], output_sizes(geometry, given[0].dim() == 4));
  const Alone alone;
  const at::Tensor grad = given[0].dim() == 4 ? resolved("grad", given_grad) : resolved("grad", given_grad).unsqueeze(0);
  const auto [input, weight, map, bias, mask] = as_batch(given);
  TensorsOfConv2d grads;
  const at::ScalarType sum_dtype = at::promote_types(input.scalar_type(), at::kFloat);
  if (wanted[3] && bias.defined()) grads[3] = grad.sum({0, 2, 3}, false, sum_dtype).to(bias.scalar_type());
  const auto by_kernels = [&] {
    if (!reads_float32(geometry, given)) return conv2d_backward_by_kernels(geometry, types, given_grad, given, wanted, grads);
    return conv2d_backward_by_kernels(geometry, all_float32, given_grad.to(at::kFloat), in_float32(given), wanted, grads);
  };
  if (by_kernels()) {
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (grads[i].defined()) grads[i] = grads[i].to(given[i].scalar_type());
    }
    return grads;
  }
  const ChunkedCall call(input, weight, map, mask, window);
  const auto zeros = [&](bool want, const at::Tensor& like) {
    return want && like.defined() ? at::zeros(like.sizes(), like.options().dtype(call.sum_dtype)) : at::Tensor();
  };
  if (wanted[0]) grads[0] = at::empty(input.sizes(), input.options(), torch_format(format_of(given[0])));
  const ChunkSums sums{zeros(wanted[1], call.weight), zeros(wanted[2], map), zeros(wanted[4], mask)};
  if (call.channels > 0 && (wanted[0] || sums.weight.defined() || sums.map.defined() || sums.mask.defined())) {
    chunked_backward(call, grad, grads[0], sums);
  }
  grads[1] = sums.weight;
  grads[2] = sums.map;
  grads[4] = sums.mask;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    if (grads[i].defined()) grads[i] = grads[i].to(given[i].scalar_type()).view(given[i].sizes());
  }
  return grads;
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Autograd takes no undefined tensor for an argument.
using OptionalTensor = std::optional<at::Tensor>;
inline OptionalTensor optional_of(const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }
inline TensorsOfConv2d tensors_of(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& map,
                                  const OptionalTensor& bias, const OptionalTensor& mask) {
  return {input, weight, map, bias.value_or(at::Tensor()), mask.value_or(at::Tensor())};
}

struct Conv2dBackwardFunction : torch::autograd::Function<Conv2dBackwardFunction> {
  static variable_list forward(AutogradContext*, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                               const at::Tensor& map, const OptionalTensor& bias, const OptionalTensor& mask,
                               const Options& window, WantedOfConv2d wanted) {
    variable_list all;
    for (at::Tensor& gradient : conv2d_backward(grad, tensors_of(input, weight, map, bias, mask), window, wanted)) {
      all.push_back(gradient.defined() ? std::move(gradient) : at::zeros({0}, input.options()));  // as a schema demands
    }
    return all;
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    throw error("ddu::torch_conv2d is differentiable once: second derivatives are there in Python");
  }
};

struct Conv2dFunction : torch::autograd::Function<Conv2dFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& map,
                            const OptionalTensor& bias, const OptionalTensor& mask, const Options& window) {
    const TensorsOfConv2d tensors = tensors_of(input, weight, map, bias, mask);
    ctx->save_for_backward({tensors.begin(), tensors.end()});
    ctx->saved_data["options"] = packed(window);
    return conv2d(tensors, window);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    WantedOfConv2d wanted{};
    std::size_t given = 0;  // autograd counts the tensors that it was given
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = saved[i].defined() && ctx->needs_input_grad(given++);
    variable_list grads =
        Conv2dBackwardFunction::apply(grad_outputs[0], saved[0], saved[1], saved[2], optional_of(saved[3]),
                                      optional_of(saved[4]), unpacked(ctx->saved_data.at("options").toIntVector()), wanted);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (!wanted[i]) grads[i] = at::Tensor();
    }
    grads.emplace_back();  // nothing for the options
    return grads;
  }
};

/// The input with its last row or column once more. By at::cat, since torch's own padding has no deterministic backward on
/// CUDA.
inline at::Tensor with_last_twice(const at::Tensor& input, std::int64_t dim) {
  return at::cat({input, input.narrow(dim, input.size(dim) - 1, 1)}, dim);
}

/// The options with padding in pixels, and the input with a row or column more where an odd number of them is to be padded.
/// What no call takes stays as it is, for the error that says so.
inline std::pair<at::Tensor, TorchOptions> with_pixels(const at::Tensor& input, const at::Tensor& weight,
                                                       const TorchConv2dOptions& given) {
  TorchOptions options{given.stride, given.padding.pixels(), given.dilation, 1, given.padding_mode};
  if (!given.padding.is_same() || !weight.defined() || weight.dim() != 4) return {input, options};
  if (given.stride != Pair{1, 1}) {
    std::ostringstream text;
    text << R"(padding="same" needs stride 1, got [)" << given.stride[0] << ", " << given.stride[1] << ']';
    throw invalid_argument(text.str().c_str());
  }
  for (std::size_t axis = 0; axis < 2; ++axis) {
    if (given.dilation[axis] < 1 || weight.size(static_cast<std::int64_t>(axis) + 2) < 1) return {input, options};
  }
  const Pair totals{given.dilation[0] * (weight.size(2) - 1), given.dilation[1] * (weight.size(3) - 1)};
  options.padding = {totals[0] / 2, totals[1] / 2};
  if (totals[0] % 2 == 0 && totals[1] % 2 == 0) return {input, options};
  check_dense("input", input);
  const bool is_image = input.dim() == 3 || input.dim() == 4;
  if (!is_image || input.size(-2) < 1 || input.size(-1) < 1) return {input, options};
  if (given.padding_mode == PaddingMode::zeros) {
    return {at::constant_pad_nd(input, {0, totals[1] % 2, 0, totals[0] % 2}), options};
  }
  at::Tensor padded = input;
  for (std::size_t axis = 0; axis < 2; ++axis) {
    if (totals[axis] % 2 != 0) padded = with_last_twice(padded, static_cast<std::int64_t>(axis) - 2);
  }
  return {padded, options};
}

/// What an error about a padded input says, with the shape as it was given and without options that fit the padded one.
inline std::string of_given_input(const invalid_argument& error, const at::Tensor& padded, const at::Tensor& given) {
  const auto named = [](const at::Tensor& input) {
    std::ostringstream text;
    text << "input " << input.sizes();
    return text.str();
  };
  std::string message = error.what();
  message = message.substr(0, message.find("; this map fits"));
  const std::string name = named(padded);
  const std::size_t at = message.find(name);
  if (at != std::string::npos) message.replace(at, name.size(), named(given));
  return message;
}

}  // namespace torch_detail

/// torch.nn.functional.conv2d whose dilation is a map; differentiable once in all tensors.
///
///   output[b, o, oy, ox] = bias[o] + sum over c, t of weight[o, c, t] * mask[b, head of c, t, oy, ox] * S[b, c, t, oy, ox]
///
/// where S is what torch_unfold has at channel c and tap t = ky*kW + kx. On CUDA, kernels that need no columns compute it where
/// cuda::conv2d_supported says so, of float32 if torch's convolutions may use TF32 or it is depthwise, and on a CPU where
/// cpu::conv2d_supported does, with half types converted to float32. Elsewhere columns are
/// made a few at a time, for torch's own matrix products, and never all in memory. Sums are float32 for half types, and rounded
/// once. Whether products of columns round float32 factors to TF32 is for torch's flags of matrix products to say, not for
/// those of its convolutions.
///
/// input         [B, C, H, W] or [C, H, W]
/// weight        [O, C/conv_groups, kH, kW]: how many groups there are follows from C; they divide O, and have nothing to do
///               with the map's
/// dilation_map  [B or 1, groups, Ho or 1, Wo or 1], or without the batch; groups divides C
/// bias          [O]; undefined for none
/// mask          [B or 1, heads, kH*kW, Ho, Wo], without the batch beside such an input; heads divides C; undefined for none
/// returns       [B, O, Ho, Wo] or [O, Ho, Wo], in the input's memory format
///
/// The rest is as for torch_unfold.
inline at::Tensor torch_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& dilation_map,
                               const at::Tensor& bias = {}, const TorchConv2dOptions& options = {},
                               const at::Tensor& mask = {}) {
  const auto [padded, given] = torch_detail::with_pixels(input, weight, options);
  torch_detail::TensorsOfConv2d tensors = torch_detail::autocast<5>({padded, weight, dilation_map, bias, mask}, 2);
  const Options window = torch_detail::conv2d_options(tensors[1], tensors[2], given);
  torch_detail::check_conv2d(tensors);
  tensors[2] = torch_detail::full_map(tensors[0], tensors[2], window);
  try {
    return torch_detail::Conv2dFunction::apply(tensors[0], tensors[1], tensors[2], torch_detail::optional_of(tensors[3]),
                                               torch_detail::optional_of(tensors[4]), window);
  } catch (const invalid_argument& error) {
    if (padded.is_same(input)) throw;
    throw invalid_argument(torch_detail::of_given_input(error, padded, input).c_str());
  }
}

}  // namespace ddu
