#include "ddu/geometry.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "shape_text.h"

namespace ddu {
namespace {

static_assert(std::is_trivially_copyable_v<Geometry>, "Geometry is a kernel parameter");

// Sizes and options stay far enough below 2^31 that a coordinate, its neighbours and its window fit 32 bits.
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 28;
// The span of a window's taps, of which half is the largest offset of a tap from the centre. Whole and half numbers up to there
// are exact in float32, so that a map of ones meets pixels.
constexpr std::int64_t kMaxSpan = std::int64_t{1} << 24;

void check_option(const char* name, const std::int64_t (&values)[2], std::int64_t least) {
  for (std::int64_t value : values) {
    if (value < least || value > kMaxExtent) {
      fail("%s must be between %" PRId64 " and %" PRId64 ", got (%" PRId64 ", %" PRId64 ")", name, least, kMaxExtent, values[0],
           values[1]);
    }
  }
}

/// The shape that a map must have, of as many dimensions as the input. Batch 1 does as well. The map of a part of the output
/// has rows and columns of its own.
struct MapShape {
  std::int64_t sizes[4];
  int dims;

  MapShape(Shape input, Shape map, const Options& options)
      : sizes{input.dims == 4 ? input.sizes[0] : 1, options.groups}, dims(input.dims) {
    const bool own = options.part && map.dims == dims;
    for (int axis = 0; axis < 2; ++axis) {
      const int i = dims - 2 + axis;
      sizes[2 + axis] = own ? map.sizes[i] : output_size(input.sizes[i], options, axis);
    }
  }
  Shape shape() const { return {sizes + (4 - dims), dims}; }
  bool is_of(Shape map) const {
    if (map.dims != dims) return false;
    for (int i = 0; i < dims; ++i) {
      const bool broadcast = dims == 4 && i == 0 && map.sizes[0] == 1;
      if (!broadcast && map.sizes[i] != shape().sizes[i]) return false;
    }
    return true;
  }
};

/// What to say when a map does not fit: what it would fit if a likely slip were mended, if anything.
class MapHint {
 public:
  char text[160] = "";

  MapHint(Shape input, Shape map, const Options& options) : input_(input), map_(map), given_(options) {
    if (map.dims < 2 || map.dims > 4 || options.part) return;
    suggest_view() || suggest_options();
  }

 private:
  // The same values seen otherwise, in the right shape.
  bool suggest_view() {
    const std::int64_t* s = map_.sizes;
    const auto views = [&](std::initializer_list<std::int64_t> sizes, const char* how) {
      const Shape view{sizes.begin(), static_cast<int>(sizes.size())};
      if (!MapShape(input_, view, given_).is_of(view)) return false;
      std::snprintf(text, sizeof text, "; it fits as dilation_map%s", how);
      return true;
    };
    switch (map_.dims * 10 + input_.dims) {
      case 24:
        return views({1, 1, s[0], s[1]}, "[None, None]");
      case 23:
        return views({1, s[0], s[1]}, "[None]");
      case 34:
        return views({s[0], 1, s[1], s[2]}, ".unsqueeze(1)") || views({1, s[0], s[1], s[2]}, ".unsqueeze(0)");
      case 33:
        return views({s[2], s[0], s[1]}, ".permute(2, 0, 1)");
      case 44:
        return views({s[0], s[3], s[1], s[2]}, ".permute(0, 3, 1, 2)");
      case 43:
        return s[0] == 1 && views({s[1], s[2], s[3]}, ".squeeze(0)");
      default:
        return false;
    }
  }

  // Other options, of which one or two are changed.
  bool suggest_options() {
    if (map_.dims != input_.dims) return false;
    Options padded = given_;
    bool plausible = true;  // nobody means to pad by more than the image
    for (int axis = 0; axis < 2; ++axis) {
      const std::int64_t span = given_.dilation[axis] * (given_.kernel_size[axis] - 1);
      plausible = plausible && span % 2 == 0 && span / 2 < input_.sizes[input_.dims - 2 + axis];
      padded.padding[axis] = span / 2;
    }
    const std::int64_t channels = input_.sizes[input_.dims - 3], planes = map_.sizes[map_.dims - 3];
    const bool divides = planes > 0 && channels % planes == 0;
    const auto grouped = [&](Options options) {
      options.groups = planes;
      return divides && suggest(options);
    };
    const auto strided = [&](Options options) {
      for (std::int64_t stride = 1; stride <= 4; ++stride) {
        options.stride[0] = options.stride[1] = stride;
        if (suggest(options)) return true;
      }
      return false;
    };
    Options bare = given_;
    bare.padding[0] = bare.padding[1] = 0;
    if (grouped(given_) || (plausible && suggest(padded)) || strided(given_) || suggest(bare)) return true;
    return plausible && (grouped(padded) || strided(padded));
  }

  bool suggest(const Options& options) {
    if (!MapShape(input_, map_, options).is_of(map_)) return false;
    append("padding", options.padding, given_.padding);
    append("stride", options.stride, given_.stride);
    if (options.groups != given_.groups) {
      char change[32];
      std::snprintf(change, sizeof change, "groups=%" PRId64, options.groups);
      append(change);
    }
    return true;
  }
  void append(const char* name, const std::int64_t (&values)[2], const std::int64_t (&given)[2]) {
    if (values[0] == given[0] && values[1] == given[1]) return;
    char change[64];
    std::snprintf(change, sizeof change, "%s=(%" PRId64 ", %" PRId64 ")", name, values[0], values[1]);
    append(change);
  }
  void append(const char* change) {
    const std::size_t used = std::strlen(text);
    std::snprintf(text + used, sizeof text - used, "%s%s", used ? " and " : "; this map fits ", change);
  }

  const Shape input_, map_;
  const Options& given_;
};

/// Cuts the output down to the positions from the origin on that the map has.
void take_part(Geometry& geometry, Shape map, const Options& options) {
  Axis* axes[2] = {&geometry.h, &geometry.w};
  for (int i = 0; i < 2; ++i) {
    const std::int64_t positions = map.sizes[map.dims - 2 + i], all = axes[i]->out_size, origin = options.origin[i];
    if (origin < 0 || positions < 1 || origin > all || positions > all - origin) {
      fail("a part of the output must lie within its %" PRId64 " x %" PRId64 " positions, got origin (%" PRId64 ", %" PRId64
           ") and dilation_map %s",
           geometry.h.out_size, geometry.w.out_size, options.origin[0], options.origin[1], ShapeText(map).text);
    }
  }
  for (int i = 0; i < 2; ++i) {
    axes[i]->out_size = map.sizes[map.dims - 2 + i];
    axes[i]->origin = options.origin[i];
  }
}

}  // namespace

Geometry make_geometry(const char* name, Shape input, Shape map, const Options& options) {
  check_option("kernel_size", options.kernel_size, 1);
  check_option("stride", options.stride, 1);
  check_option("padding", options.padding, 0);
  check_option("dilation", options.dilation, 1);
  if (options.padding_mode != PaddingMode::zeros && options.padding_mode != PaddingMode::border) {
    fail("padding_mode must be zeros (0) or border (1), got %d", static_cast<int>(options.padding_mode));
  }
  if (!options.part && (options.origin[0] != 0 || options.origin[1] != 0)) {
    fail("origin (%" PRId64 ", %" PRId64 ") is where a part of the output begins, but part is false", options.origin[0],
         options.origin[1]);
  }
  if (input.dims != 3 && input.dims != 4) {
    fail("%s must have shape [B, C, H, W] or [C, H, W], got %s", name, ShapeText(input).text);
  }
  const std::int64_t* chw = input.sizes + (input.dims - 3);
  if (input.sizes[0] < 0 || chw[0] < 0) fail("%s sizes must not be negative, got %s", name, ShapeText(input).text);
  for (int i = 1; i < 3; ++i) {
    if (chw[i] < 1 || chw[i] > kMaxExtent) {
      fail("%s height and width must be between 1 and %" PRId64 ", got %s", name, kMaxExtent, ShapeText(input).text);
    }
  }

  Geometry geometry{};
  geometry.batch = input.dims == 4 ? input.sizes[0] : 1;
  geometry.channels = chw[0];
  geometry.groups = options.groups;
  geometry.padding_mode = options.padding_mode;
  if (options.groups < 1 || chw[0] % options.groups != 0) {
    fail("groups must be positive and divide the %s's %" PRId64 " channels, got %" PRId64, name, chw[0], options.groups);
  }
  Axis* axes[2] = {&geometry.h, &geometry.w};
  for (int i = 0; i < 2; ++i) {
    if (product(options.dilation[i], options.kernel_size[i] - 1) > kMaxSpan) {
      fail("dilation * (kernel_size - 1) must be at most %" PRId64 ", up to where float32 is exact, got %" PRId64 " * %" PRId64,
           kMaxSpan, options.dilation[i], options.kernel_size[i] - 1);
    }
    *axes[i] = {chw[1 + i],
                output_size(chw[1 + i], options, i),
                options.kernel_size[i],
                options.stride[i],
                options.padding[i],
                options.dilation[i],
                0};
  }
  if (geometry.h.out_size < 1 || geometry.w.out_size < 1) {
    fail("%s %s with padding (%" PRId64 ", %" PRId64 ") is smaller than the window of kernel_size (%" PRId64 ", %" PRId64
         ") and dilation (%" PRId64 ", %" PRId64 "): no output position fits%s",
         name, ShapeText(input).text, options.padding[0], options.padding[1], options.kernel_size[0], options.kernel_size[1],
         options.dilation[0], options.dilation[1], MapHint(input, map, options).text);
  }

  const MapShape expected(input, map, options);
  if (!expected.is_of(map)) {
    const bool batched = input.dims == 4 && geometry.batch != 1;
    fail("dilation_map must have shape %s%s for %s %s with groups=%" PRId64 ", got %s%s", ShapeText(expected.shape()).text,
         batched ? " (or batch 1)" : "", name, ShapeText(input).text, options.groups, ShapeText(map).text,
         MapHint(input, map, options).text);
  }
  geometry.map_batch = map.dims == 4 ? map.sizes[0] : 1;
  if (options.part) take_part(geometry, map, options);

  const std::int64_t planes = product(geometry.batch, geometry.channels);
  const std::int64_t columns = product(product(planes, geometry.taps()), product(geometry.h.out_size, geometry.w.out_size));
  if (columns > kMaxElements || product(planes, product(chw[1], chw[2])) > kMaxElements) {
    fail("%s %s gives more than 2^60 elements", name, ShapeText(input).text);
  }
  return geometry;
}

Geometry make_geometry(Shape input, Shape map, const Options& options) { return make_geometry("input", input, map, options); }

}  // namespace ddu
