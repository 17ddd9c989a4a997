// The C++ API on plain memory: reproduces the calls that Python wrote (cases.py), to the bit on the CPU and within rounding on
// a CUDA device.   cpp_app DIRECTORY [cuda]        With "cuda", the lack of a device or of its runtime is a failure.

#include <ddu/aggregate.h>
#include <ddu/correlate.h>
#include <ddu/error.h>
#include <ddu/unfold.h>
#include <ddu/version.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#if defined(WITH_CUDART)
#include <cuda_runtime_api.h>
#endif

namespace {

int checks = 0, failures = 0;

void expect(bool fine, const std::string& what) {
  ++checks;
  if (fine) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

using Bytes = std::vector<char>;
std::size_t size_of(std::int64_t elements, ddu::DType type) { return static_cast<std::size_t>(elements) * ddu::size_of(type); }

/// A call, and what Python computed.
struct Case {
  ddu::Geometry geometry;
  ddu::Types types;
  Bytes input, map, grad, columns, grad_input, grad_map;
};

bool read(std::ifstream& file, Case& given) {
  std::int64_t header[20];
  if (!file.read(reinterpret_cast<char*>(header), sizeof header)) return false;
  const std::int64_t* next = header;
  given.types.input = static_cast<ddu::DType>(*next++);
  given.types.map = static_cast<ddu::DType>(*next++);
  const std::int64_t *input_sizes = next, *map_sizes = next + 4;
  next += 8;
  ddu::Options options;
  for (std::int64_t* pair : {options.kernel_size, options.stride, options.padding, options.dilation}) {
    pair[0] = *next++;
    pair[1] = *next++;
  }
  options.groups = *next++;
  options.padding_mode = static_cast<ddu::PaddingMode>(*next);
  given.geometry = ddu::make_geometry({input_sizes, 4}, {map_sizes, 4}, options);
  const auto tensor = [&](Bytes& bytes, std::int64_t elements, ddu::DType type) {
    bytes.resize(size_of(elements, type));
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  };
  const ddu::Geometry& g = given.geometry;
  tensor(given.input, g.input_numel(), given.types.input);
  tensor(given.map, g.map_numel(), given.types.map);
  tensor(given.grad, g.columns_numel(), given.types.input);
  tensor(given.columns, g.columns_numel(), given.types.input);
  tensor(given.grad_input, g.input_numel(), given.types.input);
  tensor(given.grad_map, g.map_numel(), given.types.map);
  return static_cast<bool>(file);
}

void test_cpu(const Case& given, int threads) {
  const ddu::Geometry& g = given.geometry;
  Bytes columns(given.columns.size());
  ddu::Unfold unfold{given.input.data(), given.map.data(), columns.data()};
  Bytes memory(ddu::cpu::unfold_workspace_bytes(g, given.types, unfold, threads) + 64);
  unfold.workspace = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
  ddu::cpu::unfold(g, given.types, unfold, threads);
  expect(columns == given.columns, "columns");
  for (const int wanted : {1, 2, 3}) {
    Bytes grad_input(given.grad_input.size()), grad_map(given.grad_map.size());
    ddu::UnfoldBackward tensors{given.grad.data(), given.input.data(), given.map.data(), nullptr, nullptr, nullptr};
    if (wanted & 1) tensors.grad_input = grad_input.data();
    if (wanted & 2) tensors.grad_map = grad_map.data();
    Bytes scratch(ddu::cpu::unfold_backward_workspace_bytes(g, given.types, tensors, threads) + 64);
    tensors.workspace = scratch.data() + (64 - reinterpret_cast<std::uintptr_t>(scratch.data()) % 64);
    ddu::cpu::unfold_backward(g, given.types, tensors, threads);
    if (wanted & 1) expect(grad_input == given.grad_input, "gradient of the input");
    if (wanted & 2) expect(grad_map == given.grad_map, "gradient of the map");
  }
}

/// Aggregate and correlate are sums of the columns: over taps with weights of one head, over channels with a query.
void test_heads() {
  constexpr std::int64_t kChannels = 5, kHeight = 6, kWidth = 7, kTaps = 9, kPositions = kHeight * kWidth;
  const std::int64_t image_sizes[] = {1, kChannels, kHeight, kWidth}, map_sizes[] = {1, 1, kHeight, kWidth};
  const std::int64_t weights_sizes[] = {1, 1, kTaps, kHeight, kWidth};
  const ddu::Options options{{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  const auto fill = [](std::int64_t size) {
    std::vector<double> values(static_cast<std::size_t>(size));
    for (double& value : values) value = static_cast<double>(std::rand()) / RAND_MAX;
    return values;
  };
  const auto image = fill(kChannels * kPositions), map = fill(kPositions), weights = fill(kTaps * kPositions);
  std::vector<double> columns(kChannels * kTaps * kPositions), sums(kChannels * kPositions), scores(kTaps * kPositions);
  const ddu::Types types{ddu::DType::float64, ddu::DType::float64};
  const ddu::HeadGeometry g = ddu::make_aggregate_geometry({image_sizes, 4}, {weights_sizes, 5}, {map_sizes, 4}, options);
  Bytes memory;
  const auto workspace = [&](std::size_t bytes) {
    memory.resize(bytes + 64);
    return memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
  };
  ddu::Unfold unfold{image.data(), map.data(), columns.data()};
  unfold.workspace = workspace(ddu::cpu::unfold_workspace_bytes(g.geometry, types, unfold, 2));
  ddu::cpu::unfold(g.geometry, types, unfold, 2);
  ddu::Aggregate aggregate{image.data(), weights.data(), map.data(), sums.data()};
  aggregate.workspace = workspace(ddu::cpu::aggregate_workspace_bytes(g, types, aggregate, 2));
  ddu::cpu::aggregate(g, types, aggregate, 2);
  ddu::Correlate correlate{sums.data(), image.data(), map.data(), scores.data()};
  correlate.workspace = workspace(ddu::cpu::correlate_workspace_bytes(g, types, correlate, 2));
  ddu::cpu::correlate(g, types, correlate, 2);
  double worst = 0;
  for (std::size_t p = 0; p < kPositions; ++p) {
    double expected_scores[kTaps] = {};
    for (std::size_t c = 0; c < kChannels; ++c) {
      double sum = 0;
      for (std::size_t t = 0; t < kTaps; ++t) {
        const double column = columns[(c * kTaps + t) * kPositions + p];
        sum += weights[t * kPositions + p] * column;
        expected_scores[t] += sums[c * kPositions + p] * column;
      }
      worst = std::fmax(worst, std::fabs(sums[c * kPositions + p] - sum));
    }
    for (std::size_t t = 0; t < kTaps; ++t)
      worst = std::fmax(worst, std::fabs(scores[t * kPositions + p] - expected_scores[t]));
  }
  expect(worst < 1e-12, "aggregate and correlate");
}

void test_errors(const Case& given) {
  const ddu::Unfold tensors{given.input.data(), given.map.data(), nullptr};
  try {
    ddu::cpu::unfold(given.geometry, {ddu::DType::float32, ddu::DType::float64}, tensors, 1);
    expect(false, "a map of another type");
  } catch (const ddu::type_error& e) {
    const char* text = "dilation_map must have the input's dtype float32, got float64";
    expect(std::strcmp(e.what(), text) == 0, e.what());
  }
  if (ddu::cuda::toolkit_version() != 0) return;
  try {
    ddu::cuda::unfold(given.geometry, given.types, tensors, nullptr);
    expect(false, "CUDA in a build without it");
  } catch (const ddu::cuda_error& e) {
    expect(std::strcmp(e.what(), "this build of dynamic_dilation_unfold has no CUDA kernels") == 0, e.what());
  }
}

#if defined(WITH_CUDART)

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(status));
  std::exit(EXIT_FAILURE);
}
#define CHECK(call) check((call), #call)

/// Device memory, filled with what is NaN in every type until it is written.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t size) : size_(size) {
    CHECK(cudaMalloc(&memory_, size + 1));
    CHECK(cudaMemset(memory_, 0xff, size + 1));
  }
  explicit DeviceBytes(const Bytes& bytes) : DeviceBytes(bytes.size()) {
    CHECK(cudaMemcpy(memory_, bytes.data(), size_, cudaMemcpyHostToDevice));
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes() { cudaFree(memory_); }
  void* data() const { return memory_; }
  Bytes host(cudaStream_t stream) const {
    Bytes bytes(size_);
    CHECK(cudaMemcpyAsync(bytes.data(), memory_, size_, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    return bytes;
  }

 private:
  void* memory_ = nullptr;
  std::size_t size_;
};

double element(const Bytes& bytes, std::size_t i, ddu::DType type) {
  const char* from = bytes.data() + i * ddu::size_of(type);
  if (type == ddu::DType::float64) {
    double value;
    return std::memcpy(&value, from, sizeof value), value;
  }
  std::uint32_t bits = 0;
  std::memcpy(&bits, from, ddu::size_of(type));
  if (type == ddu::DType::float16) {
    const int exponent = static_cast<int>(bits >> 10 & 31), mantissa = static_cast<int>(bits & 1023);
    if (exponent == 31) return NAN;
    const double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    return bits >> 15 ? -size : size;
  }
  if (type == ddu::DType::bfloat16) bits <<= 16;
  float value;
  return std::memcpy(&value, &bits, sizeof value), value;
}

/// The norm of the difference over the norm of what is expected is at most a few roundings of the type.
bool near(const Bytes& actual, const Bytes& expected, ddu::DType type) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size() / ddu::size_of(type); ++i) {
    const double one = element(actual, i, type), other = element(expected, i, type);
    difference += (one - other) * (one - other);
    norm += other * other;
  }
  const double tolerance[] = {1e-3, 8e-3, 1e-6, 1e-14};
  return std::sqrt(difference) <= tolerance[static_cast<int>(type)] * std::sqrt(norm);
}

/// Both calls on a stream, recorded there as a graph: so they neither synchronise nor work elsewhere. The graph is run twice.
void test_cuda(const Case& given, bool deterministic) {
  const ddu::Geometry& g = given.geometry;
  const DeviceBytes input(given.input), map(given.map), grad(given.grad);
  const DeviceBytes columns(given.columns.size()), grad_input(given.grad_input.size()), grad_map(given.grad_map.size());
  ddu::UnfoldBackward tensors{grad.data(), input.data(), map.data(), grad_input.data(), grad_map.data(), nullptr};
  const DeviceBytes workspace(ddu::cuda::unfold_backward_workspace_bytes(g, given.types, tensors, deterministic));
  tensors.workspace = workspace.data();
  ddu::Unfold forward{input.data(), map.data(), columns.data()};
  const DeviceBytes forward_workspace(ddu::cuda::unfold_workspace_bytes(g, given.types, forward));
  forward.workspace = forward_workspace.data();
  CHECK(cudaDeviceSynchronize());

  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ddu::cuda::unfold(g, given.types, forward, stream);
  ddu::cuda::unfold_backward(g, given.types, tensors, deterministic, stream);
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(stream, &graph));
  std::size_t nodes = 0;
  CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
  expect(nodes >= 2, "the calls are recorded on their stream");
  cudaGraphExec_t program;
  CHECK(cudaGraphInstantiateWithFlags(&program, graph, 0));
  Bytes before;
  for (const bool first : {true, false}) {
    CHECK(cudaGraphLaunch(program, stream));
    expect(near(columns.host(stream), given.columns, given.types.input), "columns on CUDA");
    expect(near(grad_input.host(stream), given.grad_input, given.types.input), "gradient of the input on CUDA");
    const Bytes now = grad_map.host(stream);
    expect(near(now, given.grad_map, given.types.map), "gradient of the map on CUDA");
    if (deterministic && !first) expect(now == before, "the same gradient of the map from run to run");
    before = now;
  }
  CHECK(cudaGraphExecDestroy(program));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
}

#endif

/// Why nothing can run on CUDA; null where it can.
const char* no_cuda() {
  if (ddu::cuda::toolkit_version() == 0) return "this libddu has no CUDA kernels";
#if defined(WITH_CUDART)
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0 ? nullptr : "there is no CUDA device";
#else
  return "this program was built without the CUDA toolkit";
#endif
}

int run(const std::string& directory, bool must_have_cuda) {
  const char* reason = no_cuda();
  std::ifstream file(directory + "/values.bin", std::ios::binary);
  Case given;
  int calls = 0;
  for (; read(file, given); ++calls) {
    const int failed = failures;
    test_cpu(given, 1);
    test_cpu(given, 3);
    test_errors(given);
#if defined(WITH_CUDART)
    if (!reason) {
      test_cuda(given, false);
      test_cuda(given, true);
    }
#endif
    if (failures > failed) std::printf("  in call %d of values.bin\n", calls);
  }
  expect(calls >= 20, "there are calls to compare");
  expect(std::strcmp(ddu::version(), DDU_VERSION) == 0, "the version of the header and of the library");
  expect(!reason || !must_have_cuda, "CUDA is wanted");
  std::printf("libddu %s (%s, CUDA %d): %d calls, %d checks, %d failures; CUDA %s\n", ddu::version(), ddu::cpu::capability(),
              ddu::cuda::toolkit_version(), calls, checks, failures, reason ? reason : "compared too");
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) return std::fprintf(stderr, "usage: cpp_app DIRECTORY [cuda]\n"), EXIT_FAILURE;
  try {
    test_heads();
    return run(arguments[1], count > 2 && std::strcmp(arguments[2], "cuda") == 0);
  } catch (const ddu::error& e) {
    std::printf("FAILED: %s\n", e.what());
    return EXIT_FAILURE;
  }
}
