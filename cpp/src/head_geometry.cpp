#include "ddu/head_geometry.h"

#include <cinttypes>
#include <cstdio>
#include <type_traits>

#include "shape_text.h"

namespace ddu {
namespace {

static_assert(std::is_trivially_copyable_v<HeadGeometry>, "HeadGeometry is a kernel parameter");

/// The geometry of a call whose groups are the map's.
Geometry geometry_of(const char* name, Shape image, Shape map, Options options) {
  options.groups = 1;
  if (image.dims == map.dims && (map.dims == 3 || map.dims == 4)) {
    options.groups = map.sizes[map.dims - 3];
    const std::int64_t channels = image.sizes[image.dims - 3];
    if (options.groups < 1 || channels % options.groups != 0) {
      fail("the groups of dilation_map %s, its dimension %d, must be positive and divide the %" PRId64 " channels of %s %s",
           ShapeText(map).text, map.dims - 3, channels, name, ShapeText(image).text);
    }
  }
  return make_geometry(name, image, map, options);
}

void check_heads(const HeadGeometry& g, const char* heads, const char* name) {
  if (g.heads < 1 || g.geometry.channels % g.heads != 0) {
    fail("%s must be positive and divide the %" PRId64 " channels of %s, got %" PRId64, heads, g.geometry.channels, name,
         g.heads);
  }
  if (product(product(g.geometry.batch, g.heads), product(g.geometry.taps(), g.geometry.positions())) > kMaxElements) {
    fail("%" PRId64 " heads give more than 2^60 elements", g.heads);
  }
}

/// How weights of as many dimensions as the input would fit, if their heads and taps are one dimension.
struct WeightsHint {
  char text[96] = "";

  WeightsHint(const Geometry& g, Shape input, Shape weights) {
    const std::int64_t* s = weights.sizes + (weights.dims - 3);
    const bool fits = weights.dims == input.dims && s[0] > 0 && s[0] % g.taps() == 0 && s[1] == g.h.out_size &&
                      s[2] == g.w.out_size && g.channels % (s[0] / g.taps()) == 0;
    if (!fits) return;
    std::snprintf(text, sizeof text, "; it fits as weights.unflatten(-3, (%" PRId64 ", %" PRId64 "))", s[0] / g.taps(),
                  g.taps());
  }
};

}  // namespace

HeadGeometry make_aggregate_geometry(Shape input, Shape weights, Shape dilation_map, const Options& options) {
  const Geometry g = geometry_of("input", input, dilation_map, options);
  const bool batched = input.dims == 4;
  const std::int64_t* const s = weights.sizes + (weights.dims - 4);
  const bool fits = weights.dims == input.dims + 1 && s[1] == g.taps() && s[2] == g.h.out_size && s[3] == g.w.out_size &&
                    (!batched || weights.sizes[0] == 1 || weights.sizes[0] == g.batch);
  if (!fits) {
    char batch[32] = "";
    if (batched) std::snprintf(batch, sizeof batch, "%" PRId64 ", ", g.batch);
    fail("weights must have shape [%sheads, %" PRId64 ", %" PRId64 ", %" PRId64 "]%s for input %s and kernel_size (%" PRId64
         ", %" PRId64 "), got %s%s",
         batch, g.taps(), g.h.out_size, g.w.out_size, batched && g.batch != 1 ? " (or batch 1)" : "", ShapeText(input).text,
         g.h.kernel_size, g.w.kernel_size, ShapeText(weights).text, WeightsHint(g, input, weights).text);
  }
  const HeadGeometry made{g, s[0], batched ? weights.sizes[0] : 1};
  check_heads(made, "the heads of weights", "input");
  return made;
}

HeadGeometry make_correlate_geometry(Shape query, Shape key, Shape dilation_map, const Options& options, std::int64_t heads) {
  const Geometry g = geometry_of("key", key, dilation_map, options);
  const std::int64_t expected[4] = {g.batch, g.channels, g.h.out_size, g.w.out_size};
  const Shape shape{expected + (4 - key.dims), key.dims};
  bool fits = query.dims == shape.dims;
  for (int i = 0; fits && i < shape.dims; ++i) fits = query.sizes[i] == shape.sizes[i];
  if (!fits) {
    fail("query must have shape %s, a vector for each position that key %s has, got %s", ShapeText(shape).text,
         ShapeText(key).text, ShapeText(query).text);
  }
  const HeadGeometry made{g, heads, g.batch};
  check_heads(made, "heads", "query");
  return made;
}

}  // namespace ddu
