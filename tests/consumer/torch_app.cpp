// LibTorch: reproduces, to the bit on the CPU, what Python wrote (cases.py), and runs its exported program.
//   torch_app DIRECTORY [cuda]        with "cuda", also on the CUDA device

#include <ddu/torch.h>
#include <ddu/torch_library.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/nn/modules/container/sequential.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "torch_cases.h"

#if WITH_PACKAGES
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#endif

namespace {

int checks = 0, failures = 0;

bool same(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() && b.defined() && a.scalar_type() == b.scalar_type() && at::equal(a, b);
}

Case read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return Case(torch::jit::pickle_load({std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()}));
}

const auto unfold_op = [] { return c10::Dispatcher::singleton().findSchemaOrThrow("dynamic_dilation_unfold::unfold", ""); };

at::Tensor call_operator(const at::Tensor& input, const at::Tensor& map, const Case& options) {
  using Ints = at::IntArrayRef;
  const auto op = unfold_op()
                      .typed<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                        c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymInt, c10::string_view)>();
  const auto ints = [&](const char* name) { return options.pair(name); };
  const auto k = ints("kernel_size"), s = ints("stride"), p = ints("padding"), d = ints("dilation");
  return op.call(input, map, c10::fromIntArrayRefSlow(Ints(k)), c10::fromIntArrayRefSlow(Ints(s)),
                 c10::fromIntArrayRefSlow(Ints(p)), c10::fromIntArrayRefSlow(Ints(d)), options["groups"].toInt(),
                 options["padding_mode"].toStringView());
}

template <class Call>
void check_values(const Case& given, const std::string& name, Call call) {
  for (const bool first : {true, false}) {
    for (const bool second : {true, false}) {
      const auto x = given.tensor("input").detach().clone(at::MemoryFormat::Preserve).requires_grad_(first);
      const auto map = given.tensor("map").detach().clone().requires_grad_(second);
      const at::Tensor columns = call(x, map);
      expect(same(columns, given.tensor("columns")), name + ": columns");
      expect(columns.requires_grad() == (first || second), name + ": requires_grad");
      if (!columns.requires_grad()) continue;
      columns.backward(given.tensor("grad"));
      expect(first ? same(x.grad(), given.tensor("grad_input")) : !x.grad().defined(), name + ": gradient of the input");
      expect(second ? same(map.grad(), given.tensor("grad_map")) : !map.grad().defined(), name + ": gradient of the map");
    }
  }
}

void test_values(const Case& cases) {
  int number = 0;
  for (const Case& given : cases.list("values")) {
    const std::string name = "call " + std::to_string(number++);
    const auto function = [&](const at::Tensor& x, const at::Tensor& map) {
      return ddu::torch_unfold(x, given.pair("kernel_size"), map, given.options());
    };
    const auto module = [&](const at::Tensor& x, const at::Tensor& map) {
      return ddu::nn::DynamicDilationUnfold(given.pair("kernel_size"), given.options())(x, map);
    };
    check_values(given, name, function);
    check_values(given, name + " of the module", module);
    check_values(given, name + " of the operator",
                 [&](const at::Tensor& x, const at::Tensor& map) { return call_operator(x, map, given); });
  }
  expect(number > 50, "there are calls to compare");
}

/// Autocast of the CPU to bfloat16 while it lives.
class Autocast {
 public:
  explicit Autocast(bool enabled) {
    at::autocast::set_autocast_enabled(at::kCPU, enabled);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
  ~Autocast() { at::autocast::set_autocast_enabled(at::kCPU, false); }
};

void test_errors(const Case& cases) {
  for (const Case& given : cases.list("errors")) {
    const at::Tensor stored = given.tensor("map");
    const at::Tensor map = given["meta"].toBool() ? stored.to(at::kMeta) : stored;
    std::string kind = "none", message;
    const Autocast autocast(given["autocast"].toBool());
    try {
      ddu::torch_unfold(given.tensor("input"), given.pair("kernel_size"), map, given.options());
    } catch (const ddu::invalid_argument& e) {
      kind = "invalid_argument", message = e.what();
    } catch (const ddu::type_error& e) {
      kind = "type_error", message = e.what();
    } catch (const ddu::error& e) {
      kind = "error", message = e.what();
    }
    expect(kind == given.text("kind"), "an " + kind + " where Python has " + given.text("kind"));
    expect(message == given.text("message"), "'" + message + "' where Python says '" + given.text("message") + "'");
  }
}

/// What a call throws, "" for nothing.
template <class Call>
std::string thrown_by(Call call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

void test_rest(const Case& cases) {
  const auto x = at::rand({1, 2, 8, 8}).requires_grad_(), map = at::rand({1, 1, 8, 8}).requires_grad_();
  const auto on_meta = thrown_by([&] { ddu::torch_unfold(x.to(at::kMeta), {3, 3}, map.to(at::kMeta), {{1, 1}, {1, 1}}); });
  expect(on_meta == "there are kernels for cpu and cuda, got tensors on meta", on_meta);
  const auto of_eight_bits = thrown_by([&] { ddu::torch_unfold(x.to(at::kFloat8_e5m2), {3, 3}, map); });
  expect(of_eight_bits.find("got input torch.float8_e5m2 and dilation_map torch.float32") != std::string::npos, of_eight_bits);
  expect(thrown_by([&] { ddu::torch_unfold({}, {3, 3}, map); }) == "input must be a defined tensor", "undefined input");

  const auto sparse = thrown_by([&] { ddu::torch_unfold(x.detach().to_sparse(), {3, 3}, map); });
  expect(sparse == "input must be a dense tensor of layout torch.strided, got torch.sparse_coo", sparse);
  const auto freed_map = map.detach().clone();
  freed_map.storage().unsafeGetStorageImpl()->set_data_ptr_noswap({});
  freed_map.storage().unsafeGetStorageImpl()->set_nbytes(0);
  const auto freed = thrown_by([&] { ddu::torch_unfold(x, {3, 3}, freed_map, {{1, 1}, {1, 1}}); });
  expect(freed == "dilation_map has no memory that the kernels could read: was its storage freed?", freed);

  // Second derivatives are refused, not silently zero.
  const auto columns = ddu::torch_unfold(x, {3, 3}, map, {{1, 1}, {1, 1}});
  const auto grads = torch::autograd::grad({columns.square().sum()}, {x, map}, {}, true, true);
  const auto twice = thrown_by([&] { grads[0].sum().backward(); });
  expect(twice.find("differentiable once") != std::string::npos, "second derivative: '" + twice + "'");

  // A channels_last input is read as it lies, and its gradient lies so too.
  const auto last = at::rand({2, 3, 8, 8}).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_();
  const auto gradient_of = [](const at::Tensor& input) {
    const auto output = ddu::torch_unfold(input, {3, 3}, at::full({1, 1, 8, 8}, 1.5), {{1, 1}, {1, 1}});
    return torch::autograd::grad({output.square().sum()}, {input})[0];
  };
  const auto slope = gradient_of(last);
  expect(same(slope, gradient_of(last.detach().contiguous().requires_grad_())), "gradient of a channels_last input");
  expect(!ddu::cpu::reads_channels_last || slope.is_contiguous(at::MemoryFormat::ChannelsLast), "layout of that gradient");

  // One row, one column or one rate stands for all, and its gradient has its own shape.
  const std::vector<std::vector<std::int64_t>> shapes{{1, 1, 1, 1}, {1, 1, 1, 8}, {1, 1, 8, 1}};
  for (const auto& sizes : shapes) {
    const auto rates = at::rand(sizes).requires_grad_(),
               all = rates.detach().expand({1, 1, 8, 8}).contiguous().requires_grad_();
    const auto few = ddu::torch_unfold(x.detach(), {3, 3}, rates, {{1, 1}, {1, 1}});
    const auto full = ddu::torch_unfold(x.detach(), {3, 3}, all, {{1, 1}, {1, 1}});
    expect(same(few, full), "a map to broadcast");
    few.square().sum().backward();
    full.square().sum().backward();
    expect(at::allclose(rates.grad(), all.grad().sum_to_size(sizes), 1e-4, 1e-4), "gradient of a map to broadcast");
  }
  const auto narrow = thrown_by([&] { ddu::torch_unfold(x, {3, 3}, at::ones({1, 1, 1, 7}), {{1, 1}, {1, 1}}); });
  expect(narrow.find("dilation_map must have shape [1, 1, 8, 8]") == 0, narrow);

  const Case autocast(cases["autocast"]);
  const auto cast = [&] {
    const Autocast enabled(true);
    return ddu::torch_unfold(autocast.tensor("input"), {3, 3}, autocast.tensor("map"), {{1, 1}, {1, 1}});
  }();
  expect(same(cast, autocast.tensor("columns")), "autocast");

  std::ostringstream printed;
  printed << ddu::nn::DynamicDilationUnfold(ddu::Pair{3, 5}, ddu::TorchOptions{{2, 2}, {1, 2}, {1, 1}, 4});
  expect(printed.str() == cases.text("module"), printed.str());
  torch::nn::Sequential sequential(ddu::nn::DynamicDilationUnfold(ddu::Pair{3, 3}, ddu::TorchOptions{{1, 1}, {1, 1}}));
  expect(same(sequential->forward(x, map), columns), "in a Sequential");
  const auto clone = ddu::nn::DynamicDilationUnfold(ddu::Pair{3, 3})->clone();
  expect(clone->as<ddu::nn::DynamicDilationUnfold>()->kernel_size == ddu::Pair{3, 3}, "clone");

  // Any thread may call.
  std::vector<std::thread> threads;
  std::vector<at::Tensor> results(4);
  for (at::Tensor& result : results) {
    threads.emplace_back([&] { result = ddu::torch_unfold(x.detach(), {3, 3}, map.detach(), {{1, 1}, {1, 1}}); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const at::Tensor& result : results) expect(same(result, columns.detach()), "threads");
}

void test_operators() {
  const auto x = at::rand({1, 2, 8, 8}), map = at::rand({1, 1, 8, 8});
  const auto backward = [&](const at::Tensor& grad, std::vector<std::int64_t> kernel_size) {
    const std::vector<std::int64_t> one{1, 1};
    return thrown_by(
        [&] { ddu::torch_detail::backward_autograd(grad, x, map, kernel_size, one, one, one, 1, "zeros", {true, true}); });
  };
  expect(backward(at::ones({1, 18, 64}), {3, 3}).empty(), "a gradient like the output");
  const auto shape = backward(at::ones({1, 64, 18}), {3, 3});
  expect(shape ==
             "grad must be torch.float32 of shape [1, 18, 64] on cpu, as the output is, got torch.float32 of shape "
             "[1, 64, 18] on cpu",
         shape);
  const auto type = backward(at::ones({1, 18, 64}, at::kDouble), {3, 3});
  expect(type.find("got torch.float64 of shape") != std::string::npos, type);
  const auto pair = backward(at::ones({1, 18, 64}), {3, 3, 3});
  expect(pair == "kernel_size must be a pair of ints, got [3, 3, 3]", pair);
}

/// Several threads register at once. Whichever returns first, the operators work: not the schemas alone are there.
void test_registration() {
  std::vector<std::thread> threads;
  std::vector<std::string> thrown(4);
  for (std::string& message : thrown) {
    threads.emplace_back([&] {
      message = thrown_by([] {
        ddu::register_torch_operators();
        const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("dynamic_dilation_unfold::unfold_backward", "");
        if (!op.hasKernelForDispatchKey(c10::DispatchKey::Autograd)) throw std::runtime_error("no kernel");
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& message : thrown) expect(message.empty(), "registration: " + message);
}

void test_schemas(const Case& cases) {
  const auto schemas = cases["schemas"].toListRef();
  std::size_t index = 0;
  for (const char* name : {"unfold", "aggregate", "correlate", "conv2d"}) {
    for (const char* backward : {"", "_backward"}) {
      const std::string full = std::string("dynamic_dilation_unfold::") + name + backward;
      std::ostringstream schema;
      schema << c10::Dispatcher::singleton().findSchemaOrThrow(full.c_str(), "").schema();
      expect(schema.str() == schemas[index].toStringRef(), schema.str() + " is " + schemas[index].toStringRef() + " in Python");
      ++index;
    }
  }
}

}  // namespace

void expect(bool fine, const std::string& what) {
  ++checks;
  if (fine) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

void test_program(const std::vector<Case>& runs, [[maybe_unused]] const std::string& package) {
#if WITH_PACKAGES
  const at::NoGradGuard no_grad;
  torch::inductor::AOTIModelPackageLoader program(package);
  for (const Case& run : runs) {
    const at::Tensor input = run.tensor("input"), expected = run.tensor("output");
    const std::vector<at::Tensor> outputs = program.run({input});
    const bool half = input.scalar_type() == at::kHalf;
    const bool fine =
        outputs.size() == 1 && (input.is_cpu() ? same(outputs[0], expected)
                                               : at::allclose(outputs[0], expected, half ? 1e-3 : 1e-5, half ? 1e-3 : 1e-8));
    expect(fine, package + " gives what it gives in Python");
    expect(at::allclose(outputs[0], run.tensor("eager"), half ? 1e-2 : 1e-4, half ? 1e-2 : 1e-5),
           package + " gives what the model does");
  }
  expect(!runs.empty(), "there are runs of " + package);
#else
  expect(runs.empty(), "this Torch has no packages");
#endif
}

int main(int count, char** arguments) {
  if (count < 2) return std::fprintf(stderr, "usage: torch_app DIRECTORY [cuda]\n"), EXIT_FAILURE;
  const std::string directory = arguments[1];
  try {
    const Case cases = read(directory + "/cases.pt");
    test_registration();
    test_values(cases);
    test_errors(cases);
    test_rest(cases);
    test_heads(cases);
    test_conv2d(cases);
    test_operators();
    test_schemas(cases);
    test_program(cases.list("program"), directory + "/model.pt2");
    test_program(cases.list("program_conv2d"), directory + "/conv2d.pt2");
    if (count > 2 && std::string(arguments[2]) == "cuda") test_cuda(cases, directory);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return EXIT_FAILURE;
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures || !checks ? EXIT_FAILURE : EXIT_SUCCESS;
}
