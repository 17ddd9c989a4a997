// LibTorch: the convolution whose dilation is a map, as Python has it (cases.py).

#include <ddu/torch.h>
#include <ddu/torch_library.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "torch_cases.h"

namespace {

using Tensors = std::vector<at::Tensor>;

bool same(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() && b.defined() && a.scalar_type() == b.scalar_type() && at::equal(a, b);
}

ddu::PaddingMode mode_of(const Case& given) {
  return given.text("padding_mode") == "border" ? ddu::PaddingMode::border : ddu::PaddingMode::zeros;
}

/// Those of a call, undefined for one that Python was not given.
Tensors tensors_of(const Case& given) {
  Tensors tensors;
  for (const c10::IValue& value : given["tensors"].toListRef()) {
    const at::Tensor tensor = value.toTensor();
    const bool is_given = tensor.dim() != 1 || tensor.size(0) > 0;
    tensors.push_back(is_given ? tensor.detach().clone(at::MemoryFormat::Preserve) : at::Tensor());
  }
  return tensors;
}

at::Tensor function(const Tensors& t, const Case& given) {
  const ddu::TorchConv2dOptions options{given.pair("stride"), given.pair("padding"), given.pair("dilation"), mode_of(given)};
  return ddu::torch_conv2d(t[0], t[1], t[2], t[3], options, t[4]);
}

at::Tensor of_same_size(const Tensors& t, const Case& given) {
  return ddu::torch_conv2d(t[0], t[1], t[2], {}, {{1, 1}, ddu::same_padding, given.pair("dilation"), mode_of(given)});
}

/// The registered operator by its schema, as an exported program calls it: with a rate for each position.
at::Tensor registered(const Tensors& t, const Case& given) {
  torch::jit::Stack stack;
  const at::Tensor output = given.tensor("output");
  std::vector<std::int64_t> sizes = t[2].sizes().vec();
  sizes[sizes.size() - 2] = output.size(-2);
  sizes[sizes.size() - 1] = output.size(-1);
  const at::Tensor map = t[2].expand(sizes);
  for (const at::Tensor& tensor : {t[0], t[1], map, t[3], t[4]}) {
    stack.emplace_back(tensor.defined() ? c10::IValue(tensor) : c10::IValue());
  }
  for (const char* option : {"stride", "padding", "dilation"}) {
    const ddu::Pair pair = given.pair(option);
    stack.emplace_back(std::vector<std::int64_t>{pair[0], pair[1]});
  }
  stack.emplace_back(given.text("padding_mode"));
  c10::Dispatcher::singleton().findSchemaOrThrow("dynamic_dilation_unfold::conv2d", "").callBoxed(stack);
  return stack.at(0).toTensor();
}

/// Output, layout and gradients of all tensors, or of one alone.
template <class Forward>
void check(const Case& given, const std::string& name, Forward forward, int alone = -1) {
  const Tensors tensors = tensors_of(given);
  const auto wanted = [&](std::size_t i) { return tensors[i].defined() && (alone < 0 || alone == static_cast<int>(i)); };
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (wanted(i)) tensors[i].requires_grad_();
  }
  const at::Tensor output = forward(tensors, given);
  expect(same(output, given.tensor("output")), name + ": output");
  expect(output.strides() == given.tensor("output").strides(), name + ": layout");
  if (!output.requires_grad()) return;
  output.backward(given.tensor("grad"));
  const auto grads = given["grads"].toListRef();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::string which = name + ": gradient " + std::to_string(i);
    if (wanted(i)) expect(same(tensors[i].grad(), grads[i].toTensor()), which);
    if (tensors[i].defined() && !wanted(i)) expect(!tensors[i].grad().defined(), which + " is not wanted");
  }
  if (wanted(0)) expect(tensors[0].grad().strides() == grads[0].toTensor().strides(), name + ": layout of a gradient");
}

void test_errors(const Case& cases) {
  for (const Case& given : cases.list("conv2d_errors")) {
    const Tensors t = tensors_of(given);
    ddu::TorchConv2dOptions options{given.pair("stride")};
    options.padding = given["padding"].isString() ? ddu::Conv2dPadding(ddu::same_padding) : given.pair("padding");
    options.padding_mode = mode_of(given);
    std::string kind = "none", message;
    try {
      ddu::torch_conv2d(t[0], t[1], t[2], t[3], options, t[4]);
    } catch (const ddu::invalid_argument& e) {
      kind = "invalid_argument", message = e.what();
    } catch (const ddu::type_error& e) {
      kind = "type_error", message = e.what();
    }
    expect(kind == given.text("kind"), "an " + kind + " where Python has " + given.text("kind"));
    expect(message == given.text("message"), "'" + message + "' where Python says '" + given.text("message") + "'");
  }
}

void test_rest() {
  const at::Tensor x = at::rand({1, 2, 6, 7}).requires_grad_(), weight = at::rand({3, 2, 3, 3}).requires_grad_(),
                   map = at::rand({1, 1, 1, 1});
  const at::Tensor output = ddu::torch_conv2d(x, weight, map, {}, {{1, 1}, ddu::same_padding});
  std::string message;
  try {
    torch::autograd::grad({output.square().sum()}, {x}, {}, true, true)[0].sum().backward();
  } catch (const std::exception& e) {
    message = e.what();
  }
  expect(message.find("differentiable once") != std::string::npos, "second derivative: '" + message + "'");

  // Under autocast values take its type, gradients the tensors' own; its products are in that type without being cast again.
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const at::Tensor cast = ddu::torch_conv2d(x, weight, map, {}, {{1, 1}, ddu::same_padding});
  at::autocast::set_autocast_enabled(at::kCPU, false);
  const auto as_half = [](const at::Tensor& tensor) { return tensor.detach().to(at::kBFloat16); };
  expect(same(cast, ddu::torch_conv2d(as_half(x), as_half(weight), map, {}, {{1, 1}, ddu::same_padding})), "autocast");
  cast.sum().backward();
  expect(weight.grad().scalar_type() == at::kFloat, "gradients under autocast");
}

/// Chunks that are not all columns: of one row, and where the product wants more channels than there are.
void test_chunk_sizes() {
  struct Sizes {
    std::vector<std::int64_t> image, weight;
  };
  for (const auto& [image, weight] : {Sizes{{1, 64, 1, 8192}, {8, 64, 1, 25}}, Sizes{{1, 3, 256, 256}, {256, 3, 7, 7}},
                                      Sizes{{1, 3, 1, 65536}, {256, 3, 1, 49}}, Sizes{{1, 67, 64, 64}, {5, 67, 3, 3}}}) {
    ddu::Options options;
    for (int i = 0; i < 2; ++i) {
      options.kernel_size[i] = weight[2 + i];
      options.padding[i] = weight[2 + i] / 2;
    }
    const ddu::torch_detail::ChunkedCall call(at::empty(image), at::empty(weight), at::empty({1, 1, image[2], image[3]}), {},
                                              options);
    const std::int64_t step = call.channel_step();
    const auto fits = [&](std::int64_t channels, std::int64_t most) {
      const auto steps = call.steps(channels, most);
      const std::int64_t most_bytes = std::max(call.budget, call.batch * call.channels * call.rows * call.row_bytes / 8);
      return channels * steps.rows * steps.of_row * call.position_bytes <= most_bytes;
    };
    expect(fits(call.channels, call.budget), "a chunk of " + std::to_string(image[3]) + " positions a row");
    expect(fits(step, call.most_in_backward()), "a chunk of " + std::to_string(step) + " channels");
    expect(image[1] != 67 || step == 23, "67 channels in three chunks");
  }
}

}  // namespace

void test_conv2d(const Case& cases) {
  int number = 0;
  for (const Case& given : cases.list("conv2d")) {
    const std::string name = "conv2d " + std::to_string(number++);
    check(given, name, function);
    check(given, name + " of the operator", registered);
    for (int alone = 0; alone < 5; ++alone) check(given, name + " to " + std::to_string(alone) + " alone", function, alone);
  }
  expect(number > 20, "there are convolutions to compare");
  for (const Case& given : cases.list("conv2d_same")) {
    check(given, "padding that keeps the size", of_same_size);
    at::globalContext().setDeterministicAlgorithms(true, false);
    check(given, "padding that keeps the size, deterministic", of_same_size);
    at::globalContext().setDeterministicAlgorithms(false, false);
    const Tensors t = tensors_of(given);
    const std::string name = of_same_size({t[0].requires_grad_(), t[1], t[2]}, given).grad_fn()->next_edge(0).function->name();
    expect(name.find("Replication") == std::string::npos,
           "the input is padded by " + name + ", which CUDA has not deterministic");
  }
  test_errors(cases);
  test_chunk_sizes();
  test_rest();
}
