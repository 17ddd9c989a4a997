// make_conv2d_geometry: its sizes, and the whole text of every message.

#include "ddu/conv2d_geometry.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ddu/error.h"

namespace {

using Sizes = std::vector<std::int64_t>;

ddu::Shape shape(const Sizes& sizes) { return {sizes.data(), static_cast<int>(sizes.size())}; }

ddu::Options padded() {
  ddu::Options options;
  options.padding[0] = options.padding[1] = 1;
  return options;
}

ddu::Conv2dGeometry make(const Sizes& input, const Sizes& weight, const Sizes& map, const Sizes& mask = {}) {
  return ddu::make_conv2d_geometry(shape(input), shape(weight), shape(map), shape(mask), padded());
}

std::string message(const Sizes& input, const Sizes& weight, const Sizes& map, const Sizes& mask = {}) {
  try {
    make(input, weight, map, mask);
  } catch (const ddu::invalid_argument& e) {
    return e.what();
  }
  return "accepted";
}

TEST(Conv2dGeometry, Sizes) {
  const ddu::Conv2dGeometry g = make({5, 12, 6, 7}, {8, 3, 3, 3}, {1, 2, 6, 7}, {5, 6, 9, 6, 7});
  EXPECT_EQ(g.geometry.groups, 2);
  EXPECT_EQ(g.geometry.taps(), 9);
  EXPECT_EQ(g.geometry.map_batch, 1);
  EXPECT_EQ(g.out_channels, 8);
  EXPECT_EQ(g.weight_groups, 4);
  EXPECT_EQ(g.weight_group_channels(), 3);
  EXPECT_EQ(g.weight_group_outputs(), 2);
  EXPECT_EQ(g.heads, 6);
  EXPECT_EQ(g.head_channels(), 2);
  EXPECT_EQ(g.mask_batch, 5);
  EXPECT_EQ(g.weight_numel(), 8 * 3 * 9);
  EXPECT_EQ(g.output_numel(), 5 * 8 * 42);
  EXPECT_EQ(g.mask_numel(), 5 * 6 * 9 * 42);
  EXPECT_EQ(g.mask_offset(4, 5), (4 * 6 + 5) * 9 * 42);
  EXPECT_FALSE(g.allow_tf32);
}

TEST(Conv2dGeometry, WithoutBatchOrMask) {
  const ddu::Conv2dGeometry g = make({4, 6, 7}, {8, 4, 3, 3}, {4, 6, 7});
  EXPECT_EQ(g.geometry.batch, 1);
  EXPECT_EQ(g.geometry.groups, 4);
  EXPECT_FALSE(g.has_mask);
  EXPECT_EQ(g.mask_numel(), 0);
  EXPECT_EQ(make({4, 6, 7}, {8, 4, 3, 3}, {4, 6, 7}, {2, 9, 6, 7}).heads, 2);
  EXPECT_EQ(message({2, 4, 6, 7}, {8, 4, 3, 3}, {2, 1, 6, 7}, {1, 4, 9, 6, 7}), "accepted");
  EXPECT_EQ(message({2, 0, 6, 7}, {8, 0, 3, 3}, {2, 1, 6, 7}), "accepted");
}

TEST(Conv2dGeometry, Messages) {
  EXPECT_EQ(message({2, 4, 6, 7}, {4, 3, 3}, {2, 1, 6, 7}), "weight must have shape [O, C/conv_groups, kH, kW], got [4, 3, 3]");
  EXPECT_EQ(message({2, 4, 6, 7}, {8, 3, 3, 3}, {2, 1, 6, 7}),
            "weight [8, 3, 3, 3] has 3 input channels, which must be the input's 4 or divide them");
  EXPECT_EQ(message({2, 0, 6, 7}, {8, 3, 3, 3}, {2, 1, 6, 7}),
            "weight [8, 3, 3, 3] has 3 input channels, which must be the input's 0 or divide them");
  EXPECT_EQ(message({2, 4, 6, 7}, {8, 0, 3, 3}, {2, 1, 6, 7}),
            "weight [8, 0, 3, 3] has 0 input channels, which must be the input's 4 or divide them");
  EXPECT_EQ(message({2, 6, 6, 7}, {8, 2, 3, 3}, {2, 1, 6, 7}),
            "weight [8, 2, 3, 3] beside 6 channels is one of 3 groups, which must divide its 8 output channels");
  EXPECT_EQ(message({2, 4, 6, 7}, {8, 4, 3, 3}, {2, 3, 6, 7}),
            "dilation_map must have a number of groups that divides the input's 4 channels, got 3 in shape [2, 3, 6, 7]");
  EXPECT_EQ(message({2, 4, 6, 7}, {8, 4, 3, 3}, {2, 1, 6, 8}),
            "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, got [2, 1, 6, 8]");
  EXPECT_EQ(
      message({2, 4, 6, 7}, {8, 4, 3, 3}, {2, 1, 6, 7}, {2, 1, 8, 6, 7}),
      "mask must have shape [2 or 1, heads, 9, 6, 7] for input [2, 4, 6, 7] and weight [8, 4, 3, 3], got [2, 1, 8, 6, 7]");
  EXPECT_EQ(message({4, 6, 7}, {8, 4, 3, 3}, {1, 6, 7}, {9, 6, 7}),
            "mask must have shape [heads, 9, 6, 7] for input [4, 6, 7] and weight [8, 4, 3, 3], got [9, 6, 7]; it fits as "
            "mask.unflatten(-3, (1, 9))");
  EXPECT_EQ(message({2, 4, 6, 7}, {8, 4, 3, 3}, {2, 1, 6, 7}, {2, 3, 9, 6, 7}),
            "mask must have a number of heads that divides the input's 4 channels, got 3");
  EXPECT_EQ(message({2, 4, 6, 7}, {std::int64_t{1} << 58, 4, 3, 3}, {2, 1, 6, 7}),
            "weight [288230376151711744, 4, 3, 3] gives more than 2^60 elements of the output");
}

}  // namespace
