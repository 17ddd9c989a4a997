#include "torch_cases.h"

#if defined(DDU_TORCH_CUDA)
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/autograd.h>
#endif

#if !defined(DDU_TORCH_CUDA)
void test_cuda(const Case&, const std::string&) { expect(false, "this Torch has no CUDA"); }
#else

namespace {

/// The norm of the difference over the norm of what is expected is at most a few roundings of the type.
bool near(const at::Tensor& actual, const at::Tensor& expected) {
  if (!actual.defined() || actual.scalar_type() != expected.scalar_type() || !actual.is_cuda()) return false;
  const at::ScalarType type = expected.scalar_type();
  const double tolerance = type == at::kDouble ? 1e-14 : type == at::kFloat ? 1e-6 : type == at::kHalf ? 1e-3 : 8e-3;
  const at::Tensor one = actual.cpu().to(at::kDouble), other = expected.cpu().to(at::kDouble);
  return (one - other).norm().item<double>() <= tolerance * other.norm().item<double>();
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
  const std::vector<Case> runs = cases.list("program_cuda");  // none where torch cannot make any (cases.py says why)
  if (!runs.empty()) test_program(runs, directory + "/model-cuda.pt2");
}

#endif
