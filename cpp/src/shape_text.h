#pragma once

// What the checks of shapes share: messages, and the geometry of an image that goes by another name than input.

#include <cinttypes>
#include <cstdarg>
#include <cstddef>
#include <cstdio>

#include "ddu/error.h"
#include "ddu/geometry.h"

namespace ddu {

/// The most elements that a tensor may have.
constexpr std::int64_t kMaxElements = std::int64_t{1} << 60;

/// Throws invalid_argument.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
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

/// make_geometry for an image of another name, for its messages.
Geometry make_geometry(const char* name, Shape image, Shape map, const Options& options);

/// a * b, or a number above kMaxElements where it is that large.
inline std::int64_t product(std::int64_t a, std::int64_t b) {
  return a != 0 && b > kMaxElements / a ? kMaxElements + 1 : a * b;
}

}  // namespace ddu
