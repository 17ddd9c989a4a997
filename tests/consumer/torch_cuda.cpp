#include "torch_cases.h"

#if defined(DDU_TORCH_CUDA)
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#endif

#if !defined(DDU_TORCH_CUDA)
void test_cuda(const Case&, const std::string&) { expect(false, "this Torch has no CUDA"); }
#else

namespace {

/// The norm of the difference over the norm of what is expected is at most a few roundings of the type; of products, several
/// times that. A float32 map's gradient beside a half input is made of values that were rounded to the input's `rounded` type.
bool near(const at::Tensor& actual, const at::Tensor& expected, double times = 1,
          c10::optional<at::ScalarType> rounded = c10::nullopt) {
  if (!actual.defined() || actual.scalar_type() != expected.scalar_type() || !actual.is_cuda()) return false;
  const at::ScalarType type = rounded.value_or(expected.scalar_type());
  const double tolerance = type == at::kDouble ? 1e-14 : type == at::kFloat ? 1e-6 : type == at::kHalf ? 1e-3 : 8e-3;
  const at::Tensor one = actual.cpu().to(at::kDouble), other = expected.cpu().to(at::kDouble);
  return (one - other).norm().item<double>() <= times * tolerance * other.norm().item<double>();
}

/// Columns and both gradients.
std::vector<at::Tensor> results(const Case& given, at::Device device) {
  const auto leaf = [&](const char* name) { return given.tensor(name).to(device).detach().requires_grad_(); };
  const at::Tensor x = leaf("input"), map = leaf("map");
  const at::Tensor columns = ddu::torch_unfold(x, given.pair("kernel_size"), map, given.options());
  columns.backward(given.tensor("grad").to(device));
  return {columns.detach(), x.grad(), map.grad()};
}

void check_results(const std::vector<at::Tensor>& actual, const Case& given, const std::string& name) {
  expect(near(actual[0], given.tensor("columns")), name + ": columns");
  expect(near(actual[1], given.tensor("grad_input")), name + ": gradient of the input");
  expect(near(actual[2], given.tensor("grad_map")), name + ": gradient of the map");
}

void test_values(const Case& cases) {
  int number = 0;
  for (const Case& given : cases.list("values")) {
    const std::string name = "CUDA, call " + std::to_string(number++);
    check_results(results(given, at::kCUDA), given, name);
    at::globalContext().setDeterministicAlgorithms(true, false);
    const std::vector<at::Tensor> once = results(given, at::kCUDA), again = results(given, at::kCUDA);
    at::globalContext().setDeterministicAlgorithms(false, false);
    check_results(once, given, name + ", deterministic");
    for (std::size_t i = 0; i < once.size(); ++i) expect(at::equal(once[i], again[i]), name + ": the same from run to run");
  }
}

/// Tensors of a device that is not the current one; with a single device there is no such.
void test_device(const Case& given) {
  const c10::DeviceIndex devices = c10::cuda::device_count();
  for (c10::DeviceIndex index = 0; index < devices; ++index) {
    c10::cuda::set_device(0);
    const at::Device device(at::kCUDA, index);
    const std::vector<at::Tensor> actual = results(given, device);
    check_results(actual, given, "on device " + std::to_string(index));
    expect(actual[0].device() == device, "the result is on its device");
    expect(c10::cuda::current_device() == 0, "the current device stays");
  }
  c10::cuda::set_device(0);
}

/// Recorded from a stream that is not the default one: a call on any other would not be part of the graph, or end it.
void test_stream(const Case& given) {
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  const auto leaf = [&](const char* name) { return given.tensor(name).cuda().detach().requires_grad_(); };
  const at::Tensor x = leaf("input"), map = leaf("map"), grad = given.tensor("grad").cuda();
  const auto call = [&] {
    const at::Tensor columns = ddu::torch_unfold(x, given.pair("kernel_size"), map, given.options());
    const auto grads = torch::autograd::grad({columns}, {x, map}, {grad});
    return std::vector<at::Tensor>{columns.detach(), grads[0], grads[1]};
  };
  for (int warm_up = 0; warm_up < 3; ++warm_up) call();
  c10::cuda::getCurrentCUDAStream().synchronize();
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const std::vector<at::Tensor> recorded = call();
  graph.capture_end();
  {
    const at::NoGradGuard no_grad;
    for (const at::Tensor& result : recorded) result.zero_();
  }
  graph.replay();
  check_results(recorded, given, "replayed graph");
}

using Tensors = std::vector<at::Tensor>;

/// The output, and a gradient of each tensor that is given.
Tensors convolved(const Case& given) {
  Tensors tensors, results;
  for (const c10::IValue& value : given["tensors"].toListRef()) {
    const at::Tensor tensor = value.toTensor();
    const bool is_given = tensor.dim() != 1 || tensor.size(0) > 0;
    tensors.push_back(is_given ? tensor.cuda().detach().requires_grad_() : at::Tensor());
  }
  const bool border = given.text("padding_mode") == "border";
  const ddu::TorchConv2dOptions options{given.pair("stride"), given.pair("padding"), given.pair("dilation"),
                                        border ? ddu::PaddingMode::border : ddu::PaddingMode::zeros};
  const at::Tensor output = ddu::torch_conv2d(tensors[0], tensors[1], tensors[2], tensors[3], options, tensors[4]);
  output.backward(given.tensor("grad").cuda());
  results.push_back(output.detach());
  for (const at::Tensor& tensor : tensors) results.push_back(tensor.defined() ? tensor.grad() : at::Tensor());
  return results;
}

/// Beside what Python computes on a CPU: by the kernels where there are some, and by columns, whose products cuBLAS makes.
void check_convolved(const Case& given, const std::string& name, double times) {
  const Tensors actual = convolved(given);
  expect(near(actual[0], given.tensor("output"), times), name + ": output");
  expect(actual[0].strides() == given.tensor("output").strides(), name + ": layout");
  const auto expected = given["grads"].toListRef();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const at::Tensor& gradient = actual[i + 1];
    if (!gradient.defined()) continue;
    expect(near(gradient, expected[i].toTensor(), times, actual[0].scalar_type()), name + ": gradient " + std::to_string(i));
    if (i == 0) expect(gradient.strides() == expected[i].toTensor().strides(), name + ": layout of a gradient");
  }
}

void test_conv2d_cuda(const Case& cases) {
  at::Context& context = at::globalContext();
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 1);  // torch asks for it where products are to be deterministic
  int number = 0;
  for (const Case& given : cases.list("conv2d")) {
    const std::string name = "CUDA, conv2d " + std::to_string(number++);
    const bool is_float = given.tensor("output").scalar_type() == at::kFloat;
    check_convolved(given, name, is_float ? 1000 : 2);  // TF32 has as many digits as float16
    context.setAllowTF32CuDNN(false);
    check_convolved(given, name + " without TF32", is_float ? 10 : 2);
    context.setAllowTF32CuDNN(true);
    context.setDeterministicAlgorithms(true, false);
    check_convolved(given, name + ", deterministic", is_float ? 1000 : 2);
    context.setDeterministicAlgorithms(false, false);
  }
  expect(number > 20, "there are convolutions to compare");
}

/// The kernels serve what conv2d_supported says: products of TF32 are not what columns of float32 give. (Of half types the two
/// may be the same, to the last bit.)
void test_conv2d_kernels() {
  const at::Tensor x = at::rand({2, 64, 24, 20}, at::dtype(at::kFloat).device(at::kCUDA)), map = at::rand_like(x[0][0]),
                   weight = at::rand({32, 64, 3, 3}, x.options()) - 0.5;
  const auto call = [&] { return ddu::torch_conv2d(x, weight, map.expand({2, 1, 24, 20}), {}, {{1, 1}, {1, 1}}); };
  const at::Tensor by_kernels = call();
  setenv("DDU_CUDA_CONV2D", "columns", 1);
  const at::Tensor by_columns = call();
  unsetenv("DDU_CUDA_CONV2D");
  expect(near(by_kernels, by_columns.cpu(), 1000), "the convolution's kernels");
  const std::int64_t weight_sizes[] = {32, 64, 3, 3}, sizes[] = {2, 64, 24, 20}, map_sizes[] = {2, 1, 24, 20};
  ddu::Options options;
  options.padding[0] = options.padding[1] = 1;
  auto geometry = ddu::make_conv2d_geometry({sizes, 4}, {weight_sizes, 4}, {map_sizes, 4}, {nullptr, 0}, options);
  geometry.allow_tf32 = true;
  const bool served = ddu::cuda::conv2d_supported(geometry, {ddu::DType::float32, ddu::DType::float32});
  expect(at::equal(by_kernels, by_columns) != served, "the kernels serve where they say so");
}

/// Recorded and replayed with other values: of both directions, on a stream of its own.
void test_conv2d_graph() {
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  const auto leaf = [](at::IntArrayRef sizes) {
    return at::rand(sizes, at::dtype(at::kHalf).device(at::kCUDA)).requires_grad_();
  };
  const at::Tensor x = leaf({2, 32, 20, 18}), weight = leaf({24, 32, 3, 3}), map = leaf({2, 1, 20, 18}),
                   grad = at::rand({2, 24, 20, 18}, x.options().requires_grad(false));
  const auto call = [&] {
    const at::Tensor output = ddu::torch_conv2d(x, weight, map, {}, {{1, 1}, {1, 1}});
    Tensors all = torch::autograd::grad({output}, {x, weight, map}, {grad});
    all.push_back(output.detach());
    return all;
  };
  for (int warm_up = 0; warm_up < 3; ++warm_up) call();
  c10::cuda::getCurrentCUDAStream().synchronize();
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const Tensors recorded = call();
  graph.capture_end();
  {
    const at::NoGradGuard no_grad;
    x.normal_();
  }
  graph.replay();
  const Tensors eager = call();
  for (std::size_t i = 0; i < eager.size(); ++i) {
    expect(near(recorded[i], eager[i].cpu()), "replayed convolution, result " + std::to_string(i));
  }
}

void test_rest() {
  const at::Tensor x = at::rand({1, 2, 8, 8}, at::kCUDA), map = at::rand({1, 1, 8, 8}, at::kCUDA);
  at::autocast::set_autocast_enabled(at::kCUDA, true);
  const at::Tensor cast = ddu::torch_unfold(x, {3, 3}, map, {{1, 1}, {1, 1}});
  at::autocast::set_autocast_enabled(at::kCUDA, false);
  expect(cast.scalar_type() == at::autocast::get_autocast_dtype(at::kCUDA), "autocast on CUDA");

  std::string message;
  try {
    ddu::torch_unfold(x, {3, 3}, map.cpu(), {{1, 1}, {1, 1}});
  } catch (const ddu::error& e) {
    message = e.what();
  }
  expect(message == "input and dilation_map must be on one device, got input on cuda:0 and dilation_map on cpu", message);
}

}  // namespace

void test_cuda(const Case& cases, const std::string& directory) {
  expect(ddu::cuda::toolkit_version() != 0, "libddu has CUDA kernels");
  expect(c10::cuda::device_count() > 0, "there is a CUDA device");
  test_values(cases);
  test_device(cases.list("values")[0]);
  test_stream(cases.list("values")[0]);
  test_rest();
  test_conv2d_cuda(cases);
  test_conv2d_kernels();
  test_conv2d_graph();
  for (const char* name : {"model-cuda", "conv2d-cuda", "conv2d-cuda-half"}) {
    const std::vector<Case> runs = cases.list(name);  // none where torch cannot make any (cases.py says why)
    if (!runs.empty()) test_program(runs, directory + "/" + name + ".pt2");
  }
}

#endif
