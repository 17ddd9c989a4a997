// LibTorch: aggregate, correlate, coverage and attention, as Python has them (cases.py).

#include <ddu/torch.h>
#include <ddu/torch_library.h>

#include <sstream>
#include <string>
#include <vector>

#include "torch_cases.h"

namespace {

bool same(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() && b.defined() && a.scalar_type() == b.scalar_type() && at::equal(a, b);
}

/// Calls forward(tensors) and compares its output, its layout, and the gradients of all tensors, with `near` within rounding.
template <class Forward>
void check(const Case& given, const std::string& name, Forward forward, bool near = false) {
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& value : given["tensors"].toListRef()) {
    tensors.push_back(value.toTensor().detach().clone(at::MemoryFormat::Preserve).requires_grad_());
  }
  const auto compare = [&](const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
    const at::ScalarType type = expected.scalar_type();
    const double tolerance = type == at::kDouble ? 1e-12 : type == at::kFloat ? 1e-5 : 2e-2;
    const bool fine =
        near ? actual.scalar_type() == type && at::allclose(actual, expected, tolerance, tolerance) : same(actual, expected);
    expect(fine, name + ": " + what);
  };
  const at::Tensor output = forward(tensors);
  compare(output, given.tensor("output"), "output");
  expect(output.strides() == given.tensor("output").strides(), name + ": layout");
  output.backward(given.tensor("grad"));
  const auto grads = given["grads"].toListRef();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    compare(tensors[i].grad(), grads[i].toTensor(), "gradient " + std::to_string(i));
  }
}

/// The registered operator by its schema, as an exported program calls it.
at::Tensor call(const char* name, const std::vector<at::Tensor>& tensors, const Case& given, bool heads) {
  torch::jit::Stack stack;
  for (const at::Tensor& tensor : tensors) stack.emplace_back(tensor);
  for (const char* option : {"kernel_size", "stride", "padding", "dilation"}) {
    const ddu::Pair pair = given.pair(option);
    stack.emplace_back(std::vector<std::int64_t>{pair[0], pair[1]});
  }
  if (heads) stack.emplace_back(given["heads"].toInt());
  stack.emplace_back(given.text("padding_mode"));
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
  return stack.at(0).toTensor();
}

template <class Call>
std::string thrown_by(Call call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

}  // namespace

void test_heads(const Case& cases) {
  int number = 0;
  for (const Case& given : cases.list("heads")) {
    const std::string name = given.text("operator"), which = name + " " + std::to_string(number++);
    const ddu::Pair kernel_size = given.pair("kernel_size");
    const bool border = given.text("padding_mode") == "border";
    const ddu::TorchOptions options{given.pair("stride"), given.pair("padding"), given.pair("dilation"), 1,
                                    border ? ddu::PaddingMode::border : ddu::PaddingMode::zeros};
    using Tensors = std::vector<at::Tensor>;
    if (name == "aggregate") {
      check(given, which, [&](const Tensors& t) { return ddu::torch_aggregate(t[0], t[1], t[2], kernel_size, options); });
      check(given, which + " of the operator",
            [&](const Tensors& t) { return call("dynamic_dilation_unfold::aggregate", t, given, false); });
    } else if (name == "correlate") {
      const std::int64_t heads = given["heads"].toInt();
      check(given, which,
            [&](const Tensors& t) { return ddu::torch_correlate(t[0], t[1], t[2], kernel_size, options, heads); });
      check(given, which + " of the operator",
            [&](const Tensors& t) { return call("dynamic_dilation_unfold::correlate", t, given, true); });
    } else if (name == "coverage") {
      check(given, which, [&](const Tensors& t) { return ddu::torch_coverage(t[0], {9, 10}, kernel_size, options); });
    } else {
      const std::int64_t heads = given["heads"].toInt();
      check(
          given, which,
          [&](const Tensors& t) {
            return ddu::torch_attention(t[0], t[1], t[2], t[3], kernel_size, options, heads,
                                        t.size() > 4 ? t[4] : at::Tensor());
          },
          true);
    }
  }
  expect(number > 10, "there are calls of operators with heads to compare");

  const auto x = at::rand({2, 4, 5, 6}), map = at::ones({2, 1, 5, 6});
  const auto weights = thrown_by([&] { ddu::torch_aggregate(x, at::rand({2, 18, 5, 6}), map, {3, 3}, {{1, 1}, {1, 1}}); });
  expect(weights ==
             "weights must have shape [2, heads, 9, 5, 6] (or batch 1) for input [2, 4, 5, 6] and kernel_size (3, 3), got [2, "
             "18, 5, 6]; it fits as weights.unflatten(-3, (2, 9))",
         weights);
  const auto type = thrown_by([&] { ddu::torch_correlate(x.to(at::kDouble), x, map, {3, 3}, {{1, 1}, {1, 1}}); });
  expect(type == "query and key must have one dtype, got torch.float64 and torch.float32", type);
  const auto heads = thrown_by([&] { ddu::torch_correlate(x, x, map, {3, 3}, {{1, 1}, {1, 1}}, 3); });
  expect(heads == "heads must be positive and divide the 4 channels of query, got 3", heads);
}
