// The C API: the C++ one without exceptions.

#include "c_api.h"

#include <cstdio>

#include "ddu/device.h"
#include "ddu/unfold.h"
#include "ddu/version.h"

namespace ddu {

const char* version() { return DDU_VERSION; }

namespace {

thread_local char last_error[1024];

}  // namespace

ddu_status failed(ddu_status status, const char* message) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", message);
  return status;
}

namespace {

void expect_pointers(const Geometry& g, const Unfold& tensors, std::size_t workspace) {
  expect_format(tensors.input_format);
  if (g.columns_numel() == 0) return;
  expect(tensors.input && tensors.dilation_map && tensors.output, "input, dilation_map and output must not be null");
  expect(tensors.workspace || workspace == 0, "workspace must not be null");
}

void expect_pointers(const Geometry& g, const UnfoldBackward& tensors, std::size_t workspace) {
  expect_format(tensors.input_format);
  if (g.columns_numel() == 0) return;
  expect(tensors.grad_output && tensors.input && tensors.dilation_map, "grad_output, input and dilation_map must not be null");
  expect(tensors.workspace || workspace == 0, "workspace must not be null");
}

}  // namespace
}  // namespace ddu

const char* ddu_last_error() noexcept { return ddu::last_error; }
const char* ddu_version() noexcept { return ddu::version(); }
const char* ddu_cpu_capability() noexcept { return ddu::cpu::capability(); }
int ddu_cpu_has_openmp() noexcept { return ddu::cpu::has_openmp(); }
int ddu_cuda_toolkit_version() noexcept { return ddu::cuda::toolkit_version(); }
const char* ddu_cuda_architectures() noexcept { return ddu::cuda::architectures(); }

ddu_status ddu_make_geometry(const int64_t* input_sizes, int input_dims, const int64_t* map_sizes, int map_dims,
                             const ddu_options* options, ddu_geometry* geometry) noexcept {
  return ddu::guarded([&] {
    ddu::expect(input_sizes || input_dims == 0, "input_sizes must not be null");
    ddu::expect(map_sizes || map_dims == 0, "map_sizes must not be null");
    ddu::expect(geometry, "geometry must not be null");
    *geometry = ddu::same_bytes<ddu_geometry>(
        ddu::make_geometry({input_sizes, input_dims}, {map_sizes, map_dims}, ddu::options_of(options)));
  });
}

ddu_status ddu_cpu_unfold(const ddu_geometry* geometry, ddu_types types, const ddu_unfold* tensors, int threads) noexcept {
  return ddu::guarded([&] {
    const auto g = ddu::required<ddu::Geometry>("geometry", geometry);
    const auto t = ddu::required<ddu::Unfold>("tensors", tensors);
    ddu::expect_pointers(g, t, ddu::cpu::unfold_workspace_bytes(g, ddu::types_of(types), t, threads));
    ddu::cpu::unfold(g, ddu::types_of(types), t, threads);
  });
}

ddu_status ddu_cpu_unfold_workspace_bytes(const ddu_geometry* geometry, ddu_types types, const ddu_unfold* tensors, int threads,
                                          size_t* bytes) noexcept {
  return ddu::guarded([&] {
    const auto g = ddu::required<ddu::Geometry>("geometry", geometry);
    const auto t = ddu::required<ddu::Unfold>("tensors", tensors);
    ddu::expect(bytes, "bytes must not be null");
    *bytes = ddu::cpu::unfold_workspace_bytes(g, ddu::types_of(types), t, threads);
  });
}

ddu_status ddu_cpu_unfold_backward_workspace_bytes(const ddu_geometry* geometry, ddu_types types,
                                                   const ddu_unfold_backward* tensors, int threads, size_t* bytes) noexcept {
  return ddu::guarded([&] {
    const auto g = ddu::required<ddu::Geometry>("geometry", geometry);
    const auto t = ddu::required<ddu::UnfoldBackward>("tensors", tensors);
    ddu::expect(bytes, "bytes must not be null");
    *bytes = ddu::cpu::unfold_backward_workspace_bytes(g, ddu::types_of(types), t, threads);
  });
}

ddu_status ddu_cpu_unfold_backward(const ddu_geometry* geometry, ddu_types types, const ddu_unfold_backward* tensors,
                                   int threads) noexcept {
  return ddu::guarded([&] {
    const auto g = ddu::required<ddu::Geometry>("geometry", geometry);
    const auto t = ddu::required<ddu::UnfoldBackward>("tensors", tensors);
    ddu::expect_pointers(g, t, ddu::cpu::unfold_backward_workspace_bytes(g, ddu::types_of(types), t, threads));
    ddu::cpu::unfold_backward(g, ddu::types_of(types), t, threads);
  });
}

ddu_status ddu_cuda_unfold(const ddu_geometry* geometry, ddu_types types, const ddu_unfold* tensors, void* stream) noexcept {
  return ddu::guarded([&] {
    const auto g = ddu::required<ddu::Geometry>("geometry", geometry);
    const auto t = ddu::required<ddu::Unfold>("tensors", tensors);
    ddu::expect_pointers(g, t, ddu::cuda::unfold_workspace_bytes(g, ddu::types_of(types), t));
    ddu::cuda::unfold(g, ddu::types_of(types), t, static_cast<ddu::cuda::Stream>(stream));
  });
}

ddu_status ddu_cuda_unfold_workspace_bytes(const ddu_geometry* geometry, ddu_types types, const ddu_unfold* tensors,
                                           size_t* bytes) noexcept {
  return ddu::guarded([&] {
    const auto g = ddu::required<ddu::Geometry>("geometry", geometry);
    const auto t = ddu::required<ddu::Unfold>("tensors", tensors);
    ddu::expect(bytes, "bytes must not be null");
    *bytes = ddu::cuda::unfold_workspace_bytes(g, ddu::types_of(types), t);
  });
}

ddu_status ddu_cuda_unfold_backward_workspace_bytes(const ddu_geometry* geometry, ddu_types types,
                                                    const ddu_unfold_backward* tensors, int deterministic,
                                                    size_t* bytes) noexcept {
  return ddu::guarded([&] {
    const auto g = ddu::required<ddu::Geometry>("geometry", geometry);
    const auto t = ddu::required<ddu::UnfoldBackward>("tensors", tensors);
    ddu::expect(bytes, "bytes must not be null");
    *bytes = ddu::cuda::unfold_backward_workspace_bytes(g, ddu::types_of(types), t, deterministic != 0);
  });
}

ddu_status ddu_cuda_unfold_backward(const ddu_geometry* geometry, ddu_types types, const ddu_unfold_backward* tensors,
                                    int deterministic, void* stream) noexcept {
  return ddu::guarded([&] {
    const auto g = ddu::required<ddu::Geometry>("geometry", geometry);
    const auto t = ddu::required<ddu::UnfoldBackward>("tensors", tensors);
    ddu::expect_pointers(g, t, ddu::cuda::unfold_backward_workspace_bytes(g, ddu::types_of(types), t, deterministic != 0));
    ddu::cuda::unfold_backward(g, ddu::types_of(types), t, deterministic != 0, static_cast<ddu::cuda::Stream>(stream));
  });
}
