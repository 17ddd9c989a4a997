#include "ddu/geometry.h"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "ddu/dtype.h"
#include "ddu/error.h"

namespace ddu {
namespace {

static_assert(std::is_trivially_copyable_v<Geometry>, "Geometry is a kernel parameter");

// Sizes and options stay far enough below 2^31 that a coordinate, its neighbours and its window fit 32 bits.
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 28;
constexpr std::int64_t kMaxElements = std::int64_t{1} << 60;
// The span of a window's taps, of which half is the largest offset of a tap from the centre. Whole and half numbers up to there
// are exact in float32, so that a map of ones meets pixels.
constexpr std::int64_t kMaxSpan = std::int64_t{1} << 24;

[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw invalid_argument(text);
}

struct ShapeText {
  char text[192];
  explicit ShapeText(Shape shape) {
    std::size_t used = static_cast<std::size_t>(std::snprintf(text, sizeof text, "["));
    for (int i = 0; i < shape.dims && used < sizeof text - 24; ++i) {
      used += static_cast<std::size_t>(
          std::snprintf(text + used, sizeof text - used, i ? ", %" PRId64 : "%" PRId64, shape.sizes[i]));
    }
    std::snprintf(text + used, sizeof text - used, "]");
  }
};

void check_option(const char* name, const std::int64_t (&values)[2], std::int64_t least) {
  for (std::int64_t value : values) {
    if (value < least || value > kMaxExtent) {
      fail("%s must be between %" PRId64 " and %" PRId64 ", got (%" PRId64 ", %" PRId64 ")", name, least, kMaxExtent, values[0],
           values[1]);
    }
  }
}

std::int64_t product(std::int64_t a, std::int64_t b) { return a != 0 && b > kMaxElements / a ? kMaxElements + 1 : a * b; }

// F.unfold's rule. Zero or less means that the window does not fit.
std::int64_t output_size(std::int64_t size, const Options& options, int axis, std::int64_t padding) {
  const std::int64_t span = size + 2 * padding - options.dilation[axis] * (options.kernel_size[axis] - 1) - 1;
  return span < 0 ? 0 : span / options.stride[axis] + 1;
}

// What to say when a map does not fit: if it would with padding = dilation * (kernel_size - 1) / 2, that is the likely slip.
struct PaddingHint {
  char text[160] = "";
  PaddingHint(Shape input, Shape map, const Options& options) {
    if (map.dims < 2) return;
    std::int64_t same[2];
    bool fits = true;
    for (int axis = 0; axis < 2; ++axis) {
      const std::int64_t span = options.dilation[axis] * (options.kernel_size[axis] - 1);
      same[axis] = span / 2;
      fits = fits && span % 2 == 0 &&
             output_size(input.sizes[input.dims - 2 + axis], options, axis, same[axis]) == map.sizes[map.dims - 2 + axis];
    }
    if (fits && (same[0] != options.padding[0] || same[1] != options.padding[1])) {
      std::snprintf(text, sizeof text, "; this map fits padding=(%" PRId64 ", %" PRId64 ")", same[0], same[1]);
    }
  }
};

}  // namespace

error::error(const char* message) noexcept { std::snprintf(message_, sizeof message_, "%s", message); }
const char* error::what() const noexcept { return message_; }

const char* name_of(DType type) {
  switch (type) {
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
  }
  return "unknown";
}

void check_types(Types types) {
  if (types.map == types.input || (is_half(types.input) && types.map == DType::float32)) return;
  char text[256];
  std::snprintf(text, sizeof text, "dilation_map must have the input's dtype %s%s, got %s", name_of(types.input),
                is_half(types.input) ? " or float32" : "", name_of(types.map));
  throw type_error(text);
}

Geometry make_geometry(Shape input, Shape map, const Options& options) {
  check_option("kernel_size", options.kernel_size, 1);
  check_option("stride", options.stride, 1);
  check_option("padding", options.padding, 0);
  check_option("dilation", options.dilation, 1);
  if (input.dims != 3 && input.dims != 4) {
    fail("input must have shape [B, C, H, W] or [C, H, W], got %s", ShapeText(input).text);
  }
  const std::int64_t* chw = input.sizes + (input.dims - 3);
  if (input.sizes[0] < 0 || chw[0] < 0) fail("input sizes must not be negative, got %s", ShapeText(input).text);
  for (int i = 1; i < 3; ++i) {
    if (chw[i] < 1 || chw[i] > kMaxExtent) {
      fail("input height and width must be between 1 and %" PRId64 ", got %s", kMaxExtent, ShapeText(input).text);
    }
  }

  Geometry geometry{};
  geometry.batch = input.dims == 4 ? input.sizes[0] : 1;
  geometry.channels = chw[0];
  geometry.groups = options.groups;
  if (options.groups < 1 || chw[0] % options.groups != 0) {
    fail("groups must be positive and divide the input's %" PRId64 " channels, got %" PRId64, chw[0], options.groups);
  }
  Axis* axes[2] = {&geometry.h, &geometry.w};
  for (int i = 0; i < 2; ++i) {
    if (product(options.dilation[i], options.kernel_size[i] - 1) > kMaxSpan) {
      fail("dilation * (kernel_size - 1) must be at most %" PRId64 ", up to where float32 is exact, got %" PRId64 " * %" PRId64,
           kMaxSpan, options.dilation[i], options.kernel_size[i] - 1);
    }
    *axes[i] = {chw[1 + i],
                output_size(chw[1 + i], options, i, options.padding[i]),
                options.kernel_size[i],
                options.stride[i],
                options.padding[i],
                options.dilation[i]};
  }
  if (geometry.h.out_size < 1 || geometry.w.out_size < 1) {
    fail("input %s with padding (%" PRId64 ", %" PRId64 ") is smaller than the window of kernel_size (%" PRId64 ", %" PRId64
         ") and dilation (%" PRId64 ", %" PRId64 "): no output position fits%s",
         ShapeText(input).text, options.padding[0], options.padding[1], options.kernel_size[0], options.kernel_size[1],
         options.dilation[0], options.dilation[1], PaddingHint(input, map, options).text);
  }

  const std::int64_t wanted[4] = {geometry.batch, options.groups, geometry.h.out_size, geometry.w.out_size};
  const Shape expected{wanted + (4 - input.dims), input.dims};
  bool fits = map.dims == input.dims;
  for (int i = 0; fits && i < map.dims; ++i) {
    const bool broadcast = map.dims == 4 && i == 0 && map.sizes[0] == 1;
    fits = broadcast || map.sizes[i] == expected.sizes[i];
  }
  if (!fits) {
    const bool batched = input.dims == 4 && geometry.batch != 1;
    fail("dilation_map must have shape %s%s for input %s with groups=%" PRId64 ", got %s%s", ShapeText(expected).text,
         batched ? " (or batch 1)" : "", ShapeText(input).text, options.groups, ShapeText(map).text,
         PaddingHint(input, map, options).text);
  }
  geometry.map_batch = map.dims == 4 ? map.sizes[0] : 1;

  const std::int64_t planes = product(geometry.batch, geometry.channels);
  const std::int64_t columns = product(product(planes, geometry.taps()), product(geometry.h.out_size, geometry.w.out_size));
  if (columns > kMaxElements || product(planes, product(chw[1], chw[2])) > kMaxElements) {
    fail("input %s gives more than 2^60 elements", ShapeText(input).text);
  }
  return geometry;
}

}  // namespace ddu
