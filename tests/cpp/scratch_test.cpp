// How much scratch memory forwards on a CPU take for each thread: the figures of docs/cpp.md.

#include <gtest/gtest.h>

#include <tuple>

#include "ddu/aggregate.h"
#include "ddu/correlate.h"
#include "ddu/unfold.h"
#include "oracle.h"

namespace {

using ddu::DType;
using oracle::Case;

constexpr std::size_t kKiB = 1024;
constexpr std::tuple<DType, DType> kTypes[] = {{DType::float16, DType::float32},
                                               {DType::bfloat16, DType::bfloat16},
                                               {DType::float32, DType::float32},
                                               {DType::float64, DType::float64}};
// Small and large images, few and many channels, kernels that reach far.
const Case kCases[] = {
    {4, 64, 128, 128, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}},    {1, 1, 4096, 4096, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}},
    {2, 2048, 14, 14, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}},    {1, 12, 512, 512, {{7, 7}, {1, 1}, {18, 18}, {6, 6}, 3}},
    {1, 8, 256, 256, {{33, 33}, {1, 1}, {16, 16}, {1, 1}, 2}},
};

TEST(CpuScratchMemory, OfTheForwardIsAsDocumented) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "case " << &c - kCases);
    for (const auto& [type, map] : kTypes) {
      for (const auto format : {ddu::MemoryFormat::contiguous, ddu::MemoryFormat::channels_last}) {
        ddu::Unfold tensors{};
        tensors.input_format = format;
        const std::size_t one = ddu::cpu::unfold_workspace_bytes(c.geometry(), {type, map}, tensors, 1);
        EXPECT_GT(one, 0u);
        EXPECT_LE(one, 512 * kKiB);
        EXPECT_LE(ddu::cpu::unfold_workspace_bytes(c.geometry(), {type, map}, tensors, 8), 8 * one);
      }
    }
  }
}

// With scores of a tile: up to 256 KiB, or those of one head.
TEST(CpuScratchMemory, WithoutColumnsIsAsDocumented) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << "case " << &c - kCases);
    const ddu::HeadGeometry h{c.geometry(), c.channels % 4 == 0 ? 4 : 1, c.batch};
    for (const auto& [type, map] : kTypes) {
      const std::size_t aggregate = ddu::cpu::aggregate_workspace_bytes(h, {type, map}, {}, 1),
                        correlate = ddu::cpu::correlate_workspace_bytes(h, {type, map}, {}, 1);
      for (const std::size_t bytes : {aggregate, correlate}) {
        EXPECT_GT(bytes, 0u);
        EXPECT_LE(bytes, (512 + 256) * kKiB);
      }
    }
  }
}

}  // namespace
