// How much scratch memory calls on CUDA take: the figures of docs/cpp.md.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "ddu/aggregate.h"
#include "ddu/correlate.h"
#include "ddu/geometry.h"
#include "ddu/unfold.h"

namespace {

bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Of a square kernel whose outputs are as large as its images.
ddu::Options same_size(std::int64_t kernel_size) {
  const std::int64_t padding = kernel_size / 2;
  return {{kernel_size, kernel_size}, {1, 1}, {padding, padding}, {1, 1}, 1};
}
ddu::Geometry geometry_of(std::int64_t batch, std::int64_t channels, std::int64_t size, std::int64_t kernel_size) {
  const std::int64_t input_sizes[] = {batch, channels, size, size}, map_sizes[] = {batch, 1, size, size};
  return ddu::make_geometry({input_sizes, 4}, {map_sizes, 4}, same_size(kernel_size));
}

/// Of an input's type.
ddu::Types types_of(ddu::DType type) { return {type, type == ddu::DType::float64 ? type : ddu::DType::float32}; }

/// Bytes over those of the input.
double share_of_input(std::size_t bytes, const ddu::Geometry& g, ddu::DType type) {
  return double(bytes) / double(std::size_t(g.input_numel()) * ddu::size_of(type));
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  EXPECT_EQ(cudaDeviceGetAttribute(&value, which, 0), cudaSuccess);
  return value;
}
/// Whether a multiprocessor has the shared memory of an H100's, of which figures of whole images are.
bool has_much_shared_memory() { return attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) >= 228 * 1024; }

/// Scratch bytes of a forward of 3x3 over bytes of its input.
double forward_scratch_share(std::int64_t channels, ddu::DType type, ddu::MemoryFormat format, std::int64_t batch = 4,
                             std::int64_t size = 128) {
  const ddu::Geometry g = geometry_of(batch, channels, size, 3);
  ddu::Unfold tensors{};
  tensors.input_format = format;
  const auto bytes = ddu::cuda::unfold_workspace_bytes(g, types_of(type), tensors);
  return share_of_input(bytes, g, type);
}

TEST(CudaScratchMemory, OfTheForwardIsAsDocumented) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  for (const auto type : {ddu::DType::float16, ddu::DType::bfloat16, ddu::DType::float32, ddu::DType::float64}) {
    EXPECT_EQ(forward_scratch_share(64, type, ddu::MemoryFormat::channels_last), 0);
    EXPECT_GE(forward_scratch_share(64, type, ddu::MemoryFormat::contiguous), 1);
    EXPECT_LE(forward_scratch_share(64, type, ddu::MemoryFormat::contiguous), 1.01);
  }
  EXPECT_GE(forward_scratch_share(2, ddu::DType::float32, ddu::MemoryFormat::contiguous), 2);
  EXPECT_LE(forward_scratch_share(2, ddu::DType::float32, ddu::MemoryFormat::contiguous), 2.1);
  for (const auto type : {ddu::DType::float16, ddu::DType::bfloat16, ddu::DType::float32})
    EXPECT_EQ(forward_scratch_share(1, type, ddu::MemoryFormat::contiguous), 0);
}

TEST(CudaScratchMemory, OfTheForwardOfSmallImagesIsAsDocumented) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  if (!has_much_shared_memory()) GTEST_SKIP() << "figures of an H100";
  const auto share = [](ddu::DType type, std::int64_t batch, std::int64_t channels, std::int64_t size) {
    return forward_scratch_share(channels, type, ddu::MemoryFormat::contiguous, batch, size);
  };
  for (const auto type : {ddu::DType::float16, ddu::DType::bfloat16, ddu::DType::float32}) {
    EXPECT_EQ(share(type, 64, 256, 32), 0);
    EXPECT_GT(share(type, 64, 256, 40), 0);
    if (attribute(cudaDevAttrMultiProcessorCount) >= 128) {  // which 64x64 do not fill
      EXPECT_EQ(share(type, 1, 4, 64), 0);
    }
  }
}

/// Scratch bytes over bytes of the input, of both gradients of a square kernel over 4x64x128x128.
double scratch_share(std::int64_t kernel_size, ddu::DType type, bool deterministic,
                     ddu::MemoryFormat format = ddu::MemoryFormat::contiguous, std::int64_t batch = 4,
                     std::int64_t size = 128) {
  const ddu::Geometry g = geometry_of(batch, 64, size, kernel_size);
  char some;  // its address is not used
  ddu::UnfoldBackward tensors{nullptr, nullptr, nullptr, &some, &some, nullptr};
  tensors.input_format = format;
  const auto bytes = ddu::cuda::unfold_backward_workspace_bytes(g, types_of(type), tensors, deterministic);
  return share_of_input(bytes, g, type);
}

TEST(CudaScratchMemory, OfTheBackwardIsAsDocumented) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  const auto within = [](double share, double low, double high) {
    EXPECT_GE(share, low);
    EXPECT_LE(share, high);
  };
  within(scratch_share(3, ddu::DType::float32, false), 2, 2.1);
  within(scratch_share(3, ddu::DType::float64, false), 2, 2.1);
  within(scratch_share(3, ddu::DType::float16, false), 5, 5.1);
  within(scratch_share(3, ddu::DType::float32, true), 5.05, 5.2);
  within(scratch_share(5, ddu::DType::float32, true), 5.05, 5.2);
  within(scratch_share(3, ddu::DType::float16, true), 11.1, 11.3);
  within(scratch_share(3, ddu::DType::float32, true, ddu::MemoryFormat::channels_last), 7.05, 7.2);
  within(scratch_share(3, ddu::DType::float16, true, ddu::MemoryFormat::channels_last), 13.1, 13.3);
  within(scratch_share(3, ddu::DType::float64, true), 3, 3.1);
  if (!has_much_shared_memory()) return;
  const auto of_small = [](ddu::DType type, std::int64_t size) {
    return scratch_share(3, type, false, ddu::MemoryFormat::contiguous, 256, size);
  };
  EXPECT_EQ(of_small(ddu::DType::float32, 32), 0);
  within(of_small(ddu::DType::float16, 32), 2, 2.01);
  EXPECT_GT(of_small(ddu::DType::float32, 40), 0);
}

/// Scratch bytes of correlate, or of its backward to all arguments, over bytes of its key: as aggregate_share.
double correlate_share(ddu::DType type, ddu::MemoryFormat format, bool backward, bool deterministic) {
  const std::int64_t sizes[] = {4, 64, 128, 128}, map_sizes[] = {4, 1, 128, 128};
  const ddu::HeadGeometry h = ddu::make_correlate_geometry({sizes, 4}, {sizes, 4}, {map_sizes, 4}, same_size(3), 4);
  const ddu::Types types = types_of(type);
  ddu::Correlate forward{};
  forward.input_format = format;
  char some;  // its address is not used
  ddu::CorrelateBackward gradients{};
  gradients.grad_query = gradients.grad_key = gradients.grad_map = &some;
  gradients.input_format = format;
  const std::size_t bytes = backward ? ddu::cuda::correlate_backward_workspace_bytes(h, types, gradients, deterministic)
                                     : ddu::cuda::correlate_workspace_bytes(h, types, forward);
  return share_of_input(bytes, h.geometry, type);
}

/// Scratch bytes of aggregate, or of its backward to all arguments, over bytes of its input: 4x64x128x128, 3x3, 4 heads.
double aggregate_share(ddu::DType type, ddu::MemoryFormat format, bool backward, bool deterministic) {
  const std::int64_t input_sizes[] = {4, 64, 128, 128}, weights_sizes[] = {4, 4, 9, 128, 128}, map_sizes[] = {4, 1, 128, 128};
  const ddu::HeadGeometry h = ddu::make_aggregate_geometry({input_sizes, 4}, {weights_sizes, 5}, {map_sizes, 4}, same_size(3));
  const ddu::Types types = types_of(type);
  ddu::Aggregate forward{};
  forward.input_format = format;
  char some;  // its address is not used
  ddu::AggregateBackward gradients{};
  gradients.grad_input = gradients.grad_weights = gradients.grad_map = &some;
  gradients.input_format = format;
  const std::size_t bytes = backward ? ddu::cuda::aggregate_backward_workspace_bytes(h, types, gradients, deterministic)
                                     : ddu::cuda::aggregate_workspace_bytes(h, types, forward);
  return share_of_input(bytes, h.geometry, type);
}

TEST(CudaScratchMemory, WithoutColumnsIsAsDocumented) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  using ddu::DType;
  constexpr auto contiguous = ddu::MemoryFormat::contiguous, channels_last = ddu::MemoryFormat::channels_last;
  const auto within = [](double actual, double low, double high) {
    EXPECT_GE(actual, low);
    EXPECT_LE(actual, high);
  };
  for (const auto share : {aggregate_share, correlate_share}) {
    SCOPED_TRACE(share == aggregate_share ? "aggregate" : "correlate");
    for (const DType type : {DType::float16, DType::float32, DType::float64}) {
      within(share(type, contiguous, false, false), 1, 1.01);
      EXPECT_EQ(share(type, channels_last, false, false), 0);
      const double sums = std::max(1.0, 4.0 / double(ddu::size_of(type)));  // in float32 for half types
      within(share(type, contiguous, true, false), 1 + sums, 1 + sums + 0.01);
      // A channels_last gradient holds its sums itself, where it has their type.
      within(share(type, channels_last, true, false), sums > 1 ? sums : 0, sums > 1 ? sums + 0.01 : 0);
    }
    within(share(DType::float32, contiguous, true, true), 3.1, 3.2);
    within(share(DType::float32, channels_last, true, true), 2.1, 2.2);
    within(share(DType::float16, contiguous, true, true), 5.2, 5.3);
    within(share(DType::float16, channels_last, true, true), 4.2, 4.3);
    within(share(DType::float64, contiguous, true, true), 3, 3.1);
  }
}

}  // namespace
