#include "ddu/conv2d_geometry.h"

#include <cinttypes>
#include <cstdio>
#include <type_traits>

#include "shape_text.h"

namespace ddu {
namespace {

static_assert(std::is_trivially_copyable_v<Conv2dGeometry>, "Conv2dGeometry is a kernel parameter");

/// How many groups the weight's channels make of the input's.
std::int64_t weight_groups_of(Shape weight, std::int64_t channels) {
  const std::int64_t outputs = weight.sizes[0], of_group = weight.sizes[1];
  const std::int64_t groups = of_group > 0 ? channels / of_group : 1;
  if (of_group < 0 || groups == 0 || channels != groups * of_group) {
    fail("weight %s has %" PRId64 " input channels, which must be the input's %" PRId64 " or divide them",
         ShapeText(weight).text, of_group, channels);
  }
  if (outputs % groups != 0) {
    fail("weight %s beside %" PRId64 " channels is one of %" PRId64 " groups, which must divide its %" PRId64
         " output channels",
         ShapeText(weight).text, channels, groups, outputs);
  }
  return groups;
}

void check_mask(const Conv2dGeometry& made, Shape input, Shape weight, Shape mask) {
  const Geometry& g = made.geometry;
  const bool batched = input.dims == 4;
  const std::int64_t* const s = mask.sizes + (mask.dims - 4);
  const bool fits = mask.dims == input.dims + 1 && s[0] > 0 && s[1] == g.taps() && s[2] == g.h.out_size &&
                    s[3] == g.w.out_size && (!batched || mask.sizes[0] == 1 || mask.sizes[0] == g.batch);
  if (!fits) {
    char batch[32] = "";
    if (batched) std::snprintf(batch, sizeof batch, "%" PRId64 " or 1, ", g.batch);
    char hint[96] = "";  // for a mask as deformable convolutions have it: heads and taps in one dimension
    const bool joined = mask.dims == input.dims && s[1] > 0 && s[1] % g.taps() == 0 && s[2] == g.h.out_size &&
                        s[3] == g.w.out_size && g.channels % (s[1] / g.taps()) == 0;
    if (joined) {
      std::snprintf(hint, sizeof hint, "; it fits as mask.unflatten(-3, (%" PRId64 ", %" PRId64 "))", s[1] / g.taps(),
                    g.taps());
    }
    fail("mask must have shape [%sheads, %" PRId64 ", %" PRId64 ", %" PRId64 "] for input %s and weight %s, got %s%s", batch,
         g.taps(), g.h.out_size, g.w.out_size, ShapeText(input).text, ShapeText(weight).text, ShapeText(mask).text, hint);
  }
  if (g.channels % made.heads != 0) {
    fail("mask must have a number of heads that divides the input's %" PRId64 " channels, got %" PRId64, g.channels,
         made.heads);
  }
}

}  // namespace

Conv2dGeometry make_conv2d_geometry(Shape input, Shape weight, Shape dilation_map, Shape mask, const Options& given) {
  if (weight.dims != 4) fail("weight must have shape [O, C/conv_groups, kH, kW], got %s", ShapeText(weight).text);
  const bool has_channels = input.dims == 3 || input.dims == 4;
  const std::int64_t channels = has_channels ? input.sizes[input.dims - 3] : 0;
  Options options = given;
  options.kernel_size[0] = weight.sizes[2];
  options.kernel_size[1] = weight.sizes[3];
  options.groups = 1;
  if (has_channels && input.dims == dilation_map.dims) {
    options.groups = dilation_map.sizes[dilation_map.dims - 3];
    if (options.groups < 1 || channels % options.groups != 0) {
      fail("dilation_map must have a number of groups that divides the input's %" PRId64 " channels, got %" PRId64
           " in shape %s",
           channels, options.groups, ShapeText(dilation_map).text);
    }
  }
  Conv2dGeometry made{};
  made.geometry = make_geometry(input, dilation_map, options);
  made.out_channels = weight.sizes[0];
  made.weight_groups = weight_groups_of(weight, channels);
  made.heads = made.mask_batch = 1;
  made.has_mask = mask.dims != 0;
  if (made.has_mask) {
    if (mask.dims >= 4) made.heads = mask.sizes[mask.dims - 4];
    if (mask.dims == 5) made.mask_batch = mask.sizes[0];
    check_mask(made, input, weight, mask);
  }
  const std::int64_t outputs = product(made.geometry.batch, product(made.out_channels, made.geometry.positions()));
  if (made.out_channels < 0 || outputs > kMaxElements) {
    fail("weight %s gives more than 2^60 elements of the output", ShapeText(weight).text);
  }
  return made;
}

}  // namespace ddu
