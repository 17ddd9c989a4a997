// make_geometry: its sizes, and the whole text of every message.

#include "ddu/geometry.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "ddu/dtype.h"
#include "ddu/error.h"

namespace {

using Sizes = std::vector<std::int64_t>;

ddu::Geometry make(const Sizes& input, const Sizes& map, const ddu::Options& options = {}) {
  return ddu::make_geometry({input.data(), static_cast<int>(input.size())}, {map.data(), static_cast<int>(map.size())},
                            options);
}

std::string message(const Sizes& input, const Sizes& map, const ddu::Options& options = {}) {
  try {
    make(input, map, options);
  } catch (const ddu::invalid_argument& e) {
    return e.what();
  }
  return "accepted";
}

ddu::Options options(std::int64_t kernel_size, std::int64_t stride = 1, std::int64_t padding = 0, std::int64_t dilation = 1,
                     std::int64_t groups = 1) {
  return {{kernel_size, kernel_size}, {stride, stride}, {padding, padding}, {dilation, dilation}, groups};
}

TEST(Geometry, SizesFollowUnfold) {
  const ddu::Options o{{3, 2}, {2, 1}, {1, 0}, {2, 3}, 2};
  const ddu::Geometry g = make({5, 4, 11, 13}, {5, 2, 5, 10}, o);
  EXPECT_EQ(g.h.out_size, 5);   // (11 + 2 - 2*2 - 1) / 2 + 1
  EXPECT_EQ(g.w.out_size, 10);  // 13 - 3 - 1 + 1
  EXPECT_EQ(g.taps(), 6);
  EXPECT_EQ(g.positions(), 50);
  EXPECT_EQ(g.group_channels(), 2);
  EXPECT_EQ(g.input_numel(), 5 * 4 * 11 * 13);
  EXPECT_EQ(g.map_numel(), 5 * 2 * 50);
  EXPECT_EQ(g.columns_numel(), 5 * 4 * 6 * 50);
  EXPECT_EQ(g.map_offset(3, 1), 7 * 50);
  EXPECT_TRUE(std::is_trivially_copyable_v<ddu::Geometry>);
}

TEST(Geometry, UnbatchedAndBroadcast) {
  EXPECT_EQ(make({2, 5, 5}, {1, 5, 5}, options(3, 1, 1)).batch, 1);
  const ddu::Geometry g = make({7, 2, 5, 5}, {1, 1, 5, 5}, options(3, 1, 1));
  EXPECT_EQ(g.map_batch, 1);
  EXPECT_EQ(g.map_offset(6, 0), 0);
}

TEST(Geometry, EmptyBatchAndChannels) {
  EXPECT_EQ(make({0, 3, 5, 5}, {0, 1, 5, 5}, options(3, 1, 1)).columns_numel(), 0);
  EXPECT_EQ(make({0, 3, 5, 5}, {1, 1, 5, 5}, options(3, 1, 1)).columns_numel(), 0);
  EXPECT_EQ(make({2, 0, 5, 5}, {2, 1, 5, 5}, options(3, 1, 1)).columns_numel(), 0);
}

TEST(Geometry, OptionsOutOfRange) {
  EXPECT_EQ(message({1, 1, 5, 5}, {1, 1, 5, 5}, options(0)), "kernel_size must be between 1 and 268435456, got (0, 0)");
  EXPECT_EQ(message({1, 1, 5, 5}, {1, 1, 5, 5}, options(1, 0)), "stride must be between 1 and 268435456, got (0, 0)");
  EXPECT_EQ(message({1, 1, 5, 5}, {1, 1, 5, 5}, options(1, 1, -1)), "padding must be between 0 and 268435456, got (-1, -1)");
  EXPECT_EQ(message({1, 1, 5, 5}, {1, 1, 5, 5}, options(1, 1, 0, 268435457)),
            "dilation must be between 1 and 268435456, got (268435457, 268435457)");
  EXPECT_EQ(message({1, 1, 5, 5}, {1, 1, 5, 5}, {{3, 0}, {1, 1}, {0, 0}, {1, 1}, 1}),
            "kernel_size must be between 1 and 268435456, got (3, 0)");
  EXPECT_EQ(message({1, 1, 5, 5}, {1, 1, 5, 5}, options((1 << 20) + 1, 1, 0, 1 << 20)),
            "dilation * (kernel_size - 1) must be at most 16777216, up to where float32 is exact, got 1048576 * 1048576");
  EXPECT_EQ(message({1, 1, 1, 5}, {1, 1, 1, 5}, options(2, 1, 1 << 23, (1 << 24) + 1)),
            "dilation * (kernel_size - 1) must be at most 16777216, up to where float32 is exact, got 16777217 * 1");
}

// With a kernel of one pixel the dilation has no meaning.
TEST(Geometry, LargestSpan) {
  EXPECT_EQ(make({1, 1, 1, (1 << 24) + 2}, {1, 1, 1, 2}, {{1, 2}, {1, 1}, {0, 0}, {1, 1 << 24}, 1}).w.out_size, 2);
  EXPECT_EQ(make({1, 1, 5, 5}, {1, 1, 5, 5}, options(1, 1, 0, 1 << 28)).w.out_size, 5);
}

TEST(Geometry, PartsOfTheOutput) {
  ddu::Options o = options(3, 1, 1);
  o.part = true;
  o.origin[0] = 5;
  const ddu::Geometry g = make({2, 4, 8, 9}, {1, 1, 3, 9}, o);
  EXPECT_EQ(g.h.out_size, 3);
  EXPECT_EQ(g.h.origin, 5);
  EXPECT_EQ(g.w.out_size, 9);
  EXPECT_EQ(g.w.origin, 0);
  EXPECT_EQ(g.map_numel(), 27);
  EXPECT_EQ(make({4, 8, 9}, {1, 3, 9}, o).positions(), 27);
  const std::string refused = "a part of the output must lie within its 8 x 9 positions, got origin (5, 0) and dilation_map ";
  EXPECT_EQ(message({2, 4, 8, 9}, {1, 1, 4, 9}, o), refused + "[1, 1, 4, 9]");
  EXPECT_EQ(message({2, 4, 8, 9}, {1, 1, 0, 9}, o), refused + "[1, 1, 0, 9]");
  EXPECT_EQ(message({2, 4, 8, 9}, {1, 1, 3, 10}, o), refused + "[1, 1, 3, 10]");
  EXPECT_EQ(message({2, 4, 8, 9}, {3, 1, 3, 9}, o),
            "dilation_map must have shape [2, 1, 3, 9] (or batch 1) for input [2, 4, 8, 9] with groups=1, got [3, 1, 3, 9]");
  EXPECT_EQ(message({2, 4, 8, 9}, {3, 9}, o),
            "dilation_map must have shape [2, 1, 8, 9] (or batch 1) for input [2, 4, 8, 9] with groups=1, got [3, 9]");
  o.origin[0] = -1;
  EXPECT_EQ(message({2, 4, 8, 9}, {1, 1, 3, 9}, o),
            "a part of the output must lie within its 8 x 9 positions, got origin (-1, 0) and dilation_map [1, 1, 3, 9]");
  o.part = false;
  o.origin[0] = 5;
  EXPECT_EQ(message({2, 4, 8, 9}, {1, 1, 3, 9}, o), "origin (5, 0) is where a part of the output begins, but part is false");
}

TEST(Geometry, PaddingModes) {
  ddu::Options o = options(3, 1, 1);
  EXPECT_EQ(make({2, 4, 8, 9}, {1, 1, 8, 9}, o).padding_mode, ddu::PaddingMode::zeros);
  o.padding_mode = ddu::PaddingMode::border;
  EXPECT_EQ(make({2, 4, 8, 9}, {1, 1, 8, 9}, o).padding_mode, ddu::PaddingMode::border);
  o.padding_mode = static_cast<ddu::PaddingMode>(2);
  EXPECT_EQ(message({2, 4, 8, 9}, {1, 1, 8, 9}, o), "padding_mode must be zeros (0) or border (1), got 2");
}

TEST(Geometry, InputShape) {
  EXPECT_EQ(message({5, 5}, {5, 5}), "input must have shape [B, C, H, W] or [C, H, W], got [5, 5]");
  EXPECT_EQ(message({1, 1, 1, 5, 5}, {5, 5}), "input must have shape [B, C, H, W] or [C, H, W], got [1, 1, 1, 5, 5]");
  EXPECT_EQ(message({-1, 2, 5, 5}, {1, 1, 5, 5}), "input sizes must not be negative, got [-1, 2, 5, 5]");
  EXPECT_EQ(message({1, -2, 5, 5}, {1, 1, 5, 5}), "input sizes must not be negative, got [1, -2, 5, 5]");
  EXPECT_EQ(message({1, 2, 0, 5}, {1, 1, 1, 5}), "input height and width must be between 1 and 268435456, got [1, 2, 0, 5]");
}

TEST(Geometry, Groups) {
  EXPECT_EQ(message({1, 4, 5, 5}, {1, 3, 5, 5}, options(1, 1, 0, 1, 3)),
            "groups must be positive and divide the input's 4 channels, got 3");
  EXPECT_EQ(message({1, 4, 5, 5}, {1, 1, 5, 5}, options(1, 1, 0, 1, 0)),
            "groups must be positive and divide the input's 4 channels, got 0");
}

TEST(Geometry, WindowTooLarge) {
  EXPECT_EQ(message({1, 1, 4, 9}, {1, 1, 3, 3}, {{3, 3}, {1, 1}, {0, 1}, {2, 1}, 1}),
            "input [1, 1, 4, 9] with padding (0, 1) is smaller than the window of kernel_size (3, 3) and dilation (2, 1): "
            "no output position fits");
}

TEST(Geometry, MapShape) {
  EXPECT_EQ(message({2, 4, 8, 9}, {2, 1, 8, 9}, options(3, 1, 1, 1, 2)),
            "dilation_map must have shape [2, 2, 8, 9] (or batch 1) for input [2, 4, 8, 9] with groups=2, got [2, 1, 8, 9]; "
            "this map fits groups=1");
  EXPECT_EQ(message({4, 8, 9}, {5, 1, 8, 9}, options(3, 1, 1)),
            "dilation_map must have shape [1, 8, 9] for input [4, 8, 9] with groups=1, got [5, 1, 8, 9]");
  EXPECT_EQ(message({2, 4, 8, 9}, {3, 1, 8, 9}, options(3, 1, 1)),
            "dilation_map must have shape [2, 1, 8, 9] (or batch 1) for input [2, 4, 8, 9] with groups=1, got [3, 1, 8, 9]");
}

TEST(Geometry, MapShapeHintsAtPadding) {
  EXPECT_EQ(message({1, 4, 8, 9}, {1, 1, 8, 9}, options(5, 1, 0, 2)),
            "input [1, 4, 8, 9] with padding (0, 0) is smaller than the window of kernel_size (5, 5) and dilation (2, 2): no "
            "output position fits; this map fits padding=(4, 4)");
  EXPECT_EQ(message({1, 4, 8, 9}, {1, 1, 8, 9}, options(3)),
            "dilation_map must have shape [1, 1, 6, 7] for input [1, 4, 8, 9] with groups=1, got [1, 1, 8, 9]; this map fits "
            "padding=(1, 1)");
  EXPECT_EQ(message({1, 4, 8, 9}, {1, 1, 8, 8}, options(3)),
            "dilation_map must have shape [1, 1, 6, 7] for input [1, 4, 8, 9] with groups=1, got [1, 1, 8, 8]");
}

/// What a message suggests, "" for nothing.
std::string hint(const Sizes& input, const Sizes& map, const ddu::Options& options = {}) {
  const std::string text = message(input, map, options);
  const std::size_t end = text.rfind("; ");
  return end == std::string::npos ? "" : text.substr(end + 2);
}

TEST(Geometry, HintsAtOptions) {
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 8, 6, 7}, options(3, 1, 1)), "this map fits groups=8");
  EXPECT_EQ(hint({2, 8, 6, 7}, {1, 4, 6, 7}, options(3, 1, 1, 1, 2)), "this map fits groups=4");
  EXPECT_EQ(hint({8, 6, 7}, {8, 6, 7}, options(3, 1, 1)), "this map fits groups=8");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 1, 6, 7}, options(3, 2, 1)), "this map fits stride=(1, 1)");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 1, 3, 4}, options(3, 1, 1)), "this map fits stride=(2, 2)");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 1, 6, 7}, options(3, 2)), "this map fits padding=(1, 1) and stride=(1, 1)");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 1, 4, 5}, options(3, 1, 1)), "this map fits padding=(0, 0)");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 8, 6, 7}, options(3)), "this map fits padding=(1, 1) and groups=8");
  EXPECT_EQ(hint({2, 4, 33, 33}, {2, 1, 33, 33}, options(3, 1, 1, 18)), "this map fits padding=(18, 18)");
  // Suggestions that nobody could have meant, or that would not do.
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 1, 6, 7}, options(99)), "");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 3, 6, 7}, options(3, 1, 1)), "");
  EXPECT_EQ(hint({2, 8, 6, 7}, {3, 8, 6, 7}, options(3, 1, 1)), "");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 0, 6, 7}, options(3, 1, 1)), "");
  EXPECT_EQ(hint({2, 0, 6, 7}, {2, 3, 5, 5}, options(3, 1, 1)), "");
}

TEST(Geometry, HintsAtViews) {
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 6, 7}, options(3, 1, 1)), "it fits as dilation_map.unsqueeze(1)");
  EXPECT_EQ(hint({2, 8, 6, 7}, {4, 6, 7}, options(3, 1, 1, 1, 4)), "it fits as dilation_map.unsqueeze(0)");
  EXPECT_EQ(hint({2, 8, 6, 7}, {6, 7}, options(3, 1, 1)), "it fits as dilation_map[None, None]");
  EXPECT_EQ(hint({8, 6, 7}, {6, 7}, options(3, 1, 1)), "it fits as dilation_map[None]");
  EXPECT_EQ(hint({8, 6, 7}, {1, 1, 6, 7}, options(3, 1, 1)), "it fits as dilation_map.squeeze(0)");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 6, 7, 4}, options(3, 1, 1, 1, 4)), "it fits as dilation_map.permute(0, 3, 1, 2)");
  EXPECT_EQ(hint({8, 6, 7}, {6, 7, 1}, options(3, 1, 1)), "it fits as dilation_map.permute(2, 0, 1)");
  EXPECT_EQ(hint({2, 8, 6, 7}, {2, 7, 6}, options(3, 1, 1)), "");
  EXPECT_EQ(hint({2, 8, 6, 7}, {7}, options(3, 1, 1)), "");
  EXPECT_EQ(hint({2, 8, 6, 7}, {1, 2, 1, 6, 7}, options(3, 1, 1)), "");
}

TEST(Geometry, TooManyElements) {
  const std::int64_t many = std::int64_t{1} << 40;
  EXPECT_EQ(message({many, many, 4, 4}, {1, 1, 4, 4}),
            "input [1099511627776, 1099511627776, 4, 4] gives more than 2^60 elements");
}

TEST(Geometry, LongShapesAreCut) {
  const Sizes input(50, 1234567890123456789);
  const std::string text = message(input, {1, 1, 4, 4});
  EXPECT_EQ(text.rfind("input must have shape [B, C, H, W] or [C, H, W], got [1234567890123456789, ", 0), 0u) << text;
}

TEST(Types, MustGoTogether) {
  using ddu::DType;
  const auto check = [](DType input, DType map) -> std::string {
    try {
      ddu::check_types({input, map});
    } catch (const ddu::type_error& e) {
      return e.what();
    }
    return "accepted";
  };
  for (DType type : {DType::float16, DType::bfloat16, DType::float32, DType::float64}) EXPECT_EQ(check(type, type), "accepted");
  EXPECT_EQ(check(DType::float16, DType::float32), "accepted");
  EXPECT_EQ(check(DType::bfloat16, DType::float32), "accepted");
  EXPECT_EQ(check(DType::float32, DType::float64), "dilation_map must have the input's dtype float32, got float64");
  EXPECT_EQ(check(DType::float64, DType::float32), "dilation_map must have the input's dtype float64, got float32");
  EXPECT_EQ(check(DType::float16, DType::bfloat16),
            "dilation_map must have the input's dtype float16 or float32, got bfloat16");
}

}  // namespace
