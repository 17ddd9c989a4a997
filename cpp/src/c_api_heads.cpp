// The C API of aggregate and correlate.

#include "c_api.h"
#include "ddu/aggregate.h"
#include "ddu/correlate.h"

namespace ddu {
namespace {

void expect_workspace(const void* workspace, std::size_t bytes) {
  expect(workspace || bytes == 0, "workspace must not be null");
}

void expect_pointers(const HeadGeometry& g, const Aggregate& t) {
  expect_format(t.input_format);
  if (g.values_numel() == 0) return;
  expect(t.input && t.weights && t.dilation_map && t.output, "input, weights, dilation_map and output must not be null");
}
void expect_pointers(const HeadGeometry& g, const AggregateBackward& t) {
  expect_format(t.input_format);
  if (g.values_numel() == 0) return;
  expect(t.grad_output && t.input && t.weights && t.dilation_map,
         "grad_output, input, weights and dilation_map must not be null");
}
void expect_pointers(const HeadGeometry& g, const Correlate& t) {
  expect_format(t.input_format);
  expect(t.scores || g.factors_numel() == 0, "scores must not be null");
  if (g.values_numel() == 0) return;
  expect(t.query && t.key && t.dilation_map, "query, key and dilation_map must not be null");
}
void expect_pointers(const HeadGeometry& g, const CorrelateBackward& t) {
  expect_format(t.input_format);
  if (g.values_numel() == 0) return;
  expect(t.grad_scores && t.query && t.key && t.dilation_map, "grad_scores, query, key and dilation_map must not be null");
}

/// Writes what bytes(geometry, types, tensors) says.
template <class Tensors, class Given, class Bytes>
ddu_status ask_bytes(const ddu_head_geometry* geometry, ddu_types types, const Given* tensors, size_t* result,
                     Bytes bytes) noexcept {
  return guarded([&] {
    const auto g = required<HeadGeometry>("geometry", geometry);
    const auto t = required<Tensors>("tensors", tensors);
    expect(result, "bytes must not be null");
    *result = bytes(g, types_of(types), t);
  });
}

/// Calls run(geometry, types, tensors), once the pointers that it needs are there.
template <class Tensors, class Given, class Bytes, class Run>
ddu_status call(const ddu_head_geometry* geometry, ddu_types types, const Given* tensors, Bytes bytes, Run run) noexcept {
  return guarded([&] {
    const auto g = required<HeadGeometry>("geometry", geometry);
    const auto t = required<Tensors>("tensors", tensors);
    expect_pointers(g, t);
    expect_workspace(t.workspace, bytes(g, types_of(types), t));
    run(g, types_of(types), t);
  });
}

Shape shape_of(const char* null, const int64_t* sizes, int dims) {
  expect(sizes || dims == 0, null);
  return {sizes, dims};
}

}  // namespace
}  // namespace ddu

ddu_status ddu_make_aggregate_geometry(const int64_t* input_sizes, int input_dims, const int64_t* weights_sizes,
                                       int weights_dims, const int64_t* map_sizes, int map_dims, const ddu_options* options,
                                       ddu_head_geometry* geometry) noexcept {
  return ddu::guarded([&] {
    ddu::expect(geometry, "geometry must not be null");
    *geometry = ddu::same_bytes<ddu_head_geometry>(ddu::make_aggregate_geometry(
        ddu::shape_of("input_sizes must not be null", input_sizes, input_dims),
        ddu::shape_of("weights_sizes must not be null", weights_sizes, weights_dims),
        ddu::shape_of("map_sizes must not be null", map_sizes, map_dims), ddu::options_of(options)));
  });
}

ddu_status ddu_make_correlate_geometry(const int64_t* query_sizes, int query_dims, const int64_t* key_sizes, int key_dims,
                                       const int64_t* map_sizes, int map_dims, const ddu_options* options, int64_t heads,
                                       ddu_head_geometry* geometry) noexcept {
  return ddu::guarded([&] {
    ddu::expect(geometry, "geometry must not be null");
    *geometry = ddu::same_bytes<ddu_head_geometry>(ddu::make_correlate_geometry(
        ddu::shape_of("query_sizes must not be null", query_sizes, query_dims),
        ddu::shape_of("key_sizes must not be null", key_sizes, key_dims),
        ddu::shape_of("map_sizes must not be null", map_sizes, map_dims), ddu::options_of(options), heads));
  });
}

ddu_status ddu_cpu_aggregate(const ddu_head_geometry* geometry, ddu_types types, const ddu_aggregate* tensors,
                             int threads) noexcept {
  return ddu::call<ddu::Aggregate>(
      geometry, types, tensors, [&](auto&&... sizes) { return ddu::cpu::aggregate_workspace_bytes(sizes..., threads); },
      [&](auto&&... given) { ddu::cpu::aggregate(given..., threads); });
}
ddu_status ddu_cpu_aggregate_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types, const ddu_aggregate* tensors,
                                             int threads, size_t* bytes) noexcept {
  return ddu::ask_bytes<ddu::Aggregate>(
      geometry, types, tensors, bytes, [&](auto&&... sizes) { return ddu::cpu::aggregate_workspace_bytes(sizes..., threads); });
}
ddu_status ddu_cuda_aggregate(const ddu_head_geometry* geometry, ddu_types types, const ddu_aggregate* tensors,
                              void* stream) noexcept {
  return ddu::call<ddu::Aggregate>(
      geometry, types, tensors, [&](auto&&... sizes) { return ddu::cuda::aggregate_workspace_bytes(sizes...); },
      [&](auto&&... given) { ddu::cuda::aggregate(given..., static_cast<ddu::cuda::Stream>(stream)); });
}
ddu_status ddu_cuda_aggregate_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types, const ddu_aggregate* tensors,
                                              size_t* bytes) noexcept {
  return ddu::ask_bytes<ddu::Aggregate>(geometry, types, tensors, bytes,
                                        [&](auto&&... sizes) { return ddu::cuda::aggregate_workspace_bytes(sizes...); });
}

ddu_status ddu_cpu_aggregate_backward(const ddu_head_geometry* geometry, ddu_types types, const ddu_aggregate_backward* tensors,
                                      int threads) noexcept {
  return ddu::call<ddu::AggregateBackward>(
      geometry, types, tensors,
      [&](auto&&... sizes) { return ddu::cpu::aggregate_backward_workspace_bytes(sizes..., threads); },
      [&](auto&&... given) { ddu::cpu::aggregate_backward(given..., threads); });
}
ddu_status ddu_cpu_aggregate_backward_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                      const ddu_aggregate_backward* tensors, int threads,
                                                      size_t* bytes) noexcept {
  return ddu::ask_bytes<ddu::AggregateBackward>(geometry, types, tensors, bytes, [&](auto&&... sizes) {
    return ddu::cpu::aggregate_backward_workspace_bytes(sizes..., threads);
  });
}
ddu_status ddu_cuda_aggregate_backward(const ddu_head_geometry* geometry, ddu_types types,
                                       const ddu_aggregate_backward* tensors, int deterministic, void* stream) noexcept {
  return ddu::call<ddu::AggregateBackward>(
      geometry, types, tensors,
      [&](auto&&... sizes) { return ddu::cuda::aggregate_backward_workspace_bytes(sizes..., deterministic != 0); },
      [&](auto&&... given) {
        ddu::cuda::aggregate_backward(given..., deterministic != 0, static_cast<ddu::cuda::Stream>(stream));
      });
}
ddu_status ddu_cuda_aggregate_backward_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                       const ddu_aggregate_backward* tensors, int deterministic,
                                                       size_t* bytes) noexcept {
  return ddu::ask_bytes<ddu::AggregateBackward>(geometry, types, tensors, bytes, [&](auto&&... sizes) {
    return ddu::cuda::aggregate_backward_workspace_bytes(sizes..., deterministic != 0);
  });
}

ddu_status ddu_cpu_correlate(const ddu_head_geometry* geometry, ddu_types types, const ddu_correlate* tensors,
                             int threads) noexcept {
  return ddu::call<ddu::Correlate>(
      geometry, types, tensors, [&](auto&&... sizes) { return ddu::cpu::correlate_workspace_bytes(sizes..., threads); },
      [&](auto&&... given) { ddu::cpu::correlate(given..., threads); });
}
ddu_status ddu_cpu_correlate_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types, const ddu_correlate* tensors,
                                             int threads, size_t* bytes) noexcept {
  return ddu::ask_bytes<ddu::Correlate>(
      geometry, types, tensors, bytes, [&](auto&&... sizes) { return ddu::cpu::correlate_workspace_bytes(sizes..., threads); });
}
ddu_status ddu_cuda_correlate(const ddu_head_geometry* geometry, ddu_types types, const ddu_correlate* tensors,
                              void* stream) noexcept {
  return ddu::call<ddu::Correlate>(
      geometry, types, tensors, [&](auto&&... sizes) { return ddu::cuda::correlate_workspace_bytes(sizes...); },
      [&](auto&&... given) { ddu::cuda::correlate(given..., static_cast<ddu::cuda::Stream>(stream)); });
}
ddu_status ddu_cuda_correlate_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types, const ddu_correlate* tensors,
                                              size_t* bytes) noexcept {
  return ddu::ask_bytes<ddu::Correlate>(geometry, types, tensors, bytes,
                                        [&](auto&&... sizes) { return ddu::cuda::correlate_workspace_bytes(sizes...); });
}

ddu_status ddu_cpu_correlate_backward(const ddu_head_geometry* geometry, ddu_types types, const ddu_correlate_backward* tensors,
                                      int threads) noexcept {
  return ddu::call<ddu::CorrelateBackward>(
      geometry, types, tensors,
      [&](auto&&... sizes) { return ddu::cpu::correlate_backward_workspace_bytes(sizes..., threads); },
      [&](auto&&... given) { ddu::cpu::correlate_backward(given..., threads); });
}
ddu_status ddu_cpu_correlate_backward_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                      const ddu_correlate_backward* tensors, int threads,
                                                      size_t* bytes) noexcept {
  return ddu::ask_bytes<ddu::CorrelateBackward>(geometry, types, tensors, bytes, [&](auto&&... sizes) {
    return ddu::cpu::correlate_backward_workspace_bytes(sizes..., threads);
  });
}
ddu_status ddu_cuda_correlate_backward(const ddu_head_geometry* geometry, ddu_types types,
                                       const ddu_correlate_backward* tensors, int deterministic, void* stream) noexcept {
  return ddu::call<ddu::CorrelateBackward>(
      geometry, types, tensors,
      [&](auto&&... sizes) { return ddu::cuda::correlate_backward_workspace_bytes(sizes..., deterministic != 0); },
      [&](auto&&... given) {
        ddu::cuda::correlate_backward(given..., deterministic != 0, static_cast<ddu::cuda::Stream>(stream));
      });
}
ddu_status ddu_cuda_correlate_backward_workspace_bytes(const ddu_head_geometry* geometry, ddu_types types,
                                                       const ddu_correlate_backward* tensors, int deterministic,
                                                       size_t* bytes) noexcept {
  return ddu::ask_bytes<ddu::CorrelateBackward>(geometry, types, tensors, bytes, [&](auto&&... sizes) {
    return ddu::cuda::correlate_backward_workspace_bytes(sizes..., deterministic != 0);
  });
}
