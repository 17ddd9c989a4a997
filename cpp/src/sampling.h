#pragma once

// The sampling math, of the formula in ddu/unfold.h: where a tap lies, the 2x2 cell around it, and its bilinear weights. Host
// and device.
//
// A tap lies at   o*stride - padding + (K-1)/2*dilation + (k - (K-1)/2)*dilation*rate,   o counted in the whole output.
// The first three terms are a whole or a half number of pixels, known as an integer. So the position is kept as
// (integer base of the output position) + (small float): its fraction is as exact at column 10,000 as at column 0.
//
// With padding_mode border the image is extended by its own edge: at an index outside lies the nearest pixel,
// Sampler::pixel(index). A cell outside has the same pixel twice, so its value is that pixel and its slope 0, by the arithmetic
// of any other cell: as if coordinates were clamped to [0, size-1], where at size-1 and beyond, and below 0, nothing changes
// with the rate. What reads an extended image, as windows are, so needs nothing else; what reads pixels one by one has
// Sampler::pixels.

#include <cmath>
#include <cstdint>

#include "ddu/geometry.h"
#include "host_device.h"

namespace ddu {

/// Pixels `index` and `index + 1`, weighted `1 - fraction` and `fraction`. index is in [-2, size]: at both ends neither exists.
template <class Acc>
struct Cell {
  std::int32_t index;
  Acc fraction;
};

/// A cell as pixels that are read one by one: of a cell that has one pixel twice, only the first is, and has all the weight.
template <class Acc>
struct Pixels {
  std::int32_t index;
  Acc fraction;
  Acc offset;          // d(position)/d(rate): 0 where the value does not change with the position
  bool first, second;  // whether there is a pixel at index and at index + 1

  DDU_HD Acc first_weight() const { return first ? 1 - fraction : 0; }
  DDU_HD Acc second_weight() const { return second ? fraction : 0; }
};

/// The taps of one axis.
template <class Acc>
struct Sampler {
  std::int32_t size;
  std::int32_t stride;
  std::int32_t shift;  // base(o) = o*stride + shift
  Acc half;            // 0.5 where the centre lies between two pixels (even kernels), else 0
  Acc middle;          // (K-1)/2
  Acc dilation;
  bool border;  // padding_mode

  Sampler() = default;
  DDU_HD Sampler(const Axis& axis, PaddingMode padding_mode)
      : size(static_cast<std::int32_t>(axis.size)),
        stride(static_cast<std::int32_t>(axis.stride)),
        shift(static_cast<std::int32_t>(axis.origin * axis.stride + (axis.kernel_size - 1) * axis.dilation / 2 - axis.padding)),
        half((axis.kernel_size - 1) * axis.dilation % 2 != 0 ? Acc(0.5) : Acc(0)),
        middle(Acc(axis.kernel_size - 1) / 2),
        dilation(Acc(axis.dilation)),
        border(padding_mode == PaddingMode::border) {}

  /// Of a position of the call.
  DDU_HD std::int32_t base(std::int32_t position) const { return position * stride + shift; }

  /// d(position)/d(rate) of tap k. Exact, as make_geometry sees to it. Zero for the middle of an odd kernel: see centered().
  DDU_HD Acc offset(int k) const { return (Acc(k) - middle) * dilation; }

  /// Whether tap k stays in its pixel whatever the rate is, so that the second pixel of its cell weighs nothing. It is the
  /// middle one of an odd kernel, which lies on a pixel (half is 0).
  DDU_HD bool centered(int k) const { return offset(k) == 0; }

  /// The cell of a tap. A rate that is not finite must be dealt with by the caller; any finite one is fine, since the
  /// range is cut before the conversion to an integer.
  DDU_HD Cell<Acc> cell(std::int32_t base, Acc offset, Acc rate) const {
    constexpr Acc far = Acc(1 << 30);
    const Acc position = fmin_(fmax_(half + offset * rate, -far), far);
    const Acc whole = floor_(position);
    // |base| and |whole| are at most 2^30 each, so the sum cannot overflow.
    const std::int32_t index = base + static_cast<std::int32_t>(whole);
    return {index < -2 ? -2 : index > size ? size : index, position - whole};
  }

  /// Which pixel lies at an index of the extended image: outside the image there is none, unless its edge extends it.
  DDU_HD std::int32_t pixel(std::int32_t index) const {
    if (!border) return index;
    return index < 0 ? 0 : index >= size ? size - 1 : index;
  }

  /// Whether both pixels of a cell are the same one, so that its fraction says nothing.
  DDU_HD bool has_one_pixel(std::int32_t index) const { return border && (index < 0 || index >= size - 1); }

  /// The same cell for who reads its pixels one by one.
  DDU_HD Pixels<Acc> pixels(std::int32_t base, Acc offset, Acc rate) const {
    const Cell<Acc> cell = this->cell(base, offset, rate);
    // Selected rather than branched to: as two returns, compilers made the code that follows twice.
    const bool one = has_one_pixel(cell.index);
    const std::int32_t index = pixel(cell.index);
    const bool second = !one && cell.index >= -1 && cell.index < size - 1;
    return {index, one ? Acc(0) : cell.fraction, one ? Acc(0) : offset, index >= 0 && index < size, second};
  }

 private:
  DDU_HD static float floor_(float x) { return ::floorf(x); }
  DDU_HD static double floor_(double x) { return ::floor(x); }
  DDU_HD static Acc fmin_(Acc a, Acc b) { return a < b ? a : b; }
  DDU_HD static Acc fmax_(Acc a, Acc b) { return a > b ? a : b; }
};

/// What the corners a b / c d of a cell weigh.
template <class Acc>
struct Weights {
  Acc fy, fx, gy, gx;

  DDU_HD Weights(Acc fy, Acc fx) : fy(fy), fx(fx), gy(1 - fy), gx(1 - fx) {}
  DDU_HD Acc a() const { return gy * gx; }
  DDU_HD Acc b() const { return gy * fx; }
  DDU_HD Acc c() const { return fy * gx; }
  DDU_HD Acc d() const { return fy * fx; }
};

/// The same of one corner: `down` and `right` are 0 or 1.
template <class Acc>
DDU_HD Acc corner_weight(int down, int right, Acc fy, Acc fx) {
  return (down ? fy : 1 - fy) * (right ? fx : 1 - fx);
}

/// Value of a cell from its corners a b / c d. Exact at whole positions: 1*a + 0*b + 0*c + 0*d.
/// A value is a number, or several that share their fractions (a vector type with the operators of a number).
template <class Value, class Acc>
DDU_HD Value interpolate(Value a, Value b, Value c, Value d, Acc fy, Acc fx) {
  const Weights<Acc> weights(fy, fx);
  return weights.a() * a + weights.b() * b + weights.c() * c + weights.d() * d;
}

/// What the two pixels of a cell weigh along one axis, for a tap that is centered in the other.
template <class Acc>
struct AxisWeights {
  Acc first, second;

  DDU_HD explicit AxisWeights(Acc fraction) : first(1 - fraction), second(fraction) {}
};

/// The value of such a tap: two of its corners weigh nothing.
template <class Value, class Acc>
DDU_HD Value interpolate(Value a, Value b, Acc fraction) {
  const AxisWeights<Acc> weights(fraction);
  return weights.first * a + weights.second * b;
}

/// d(interpolate)/dy and d(interpolate)/dx.
template <class Value, class Acc>
DDU_HD Value slope_y(Value a, Value b, Value c, Value d, Acc fx) {
  return (1 - fx) * (c - a) + fx * (d - b);
}
template <class Value, class Acc>
DDU_HD Value slope_x(Value a, Value b, Value c, Value d, Acc fy) {
  return (1 - fy) * (b - a) + fy * (d - c);
}

/// d(interpolate)/d(rate), for taps whose position moves by (offset_y, offset_x) per unit of rate.
template <class Value, class Acc>
DDU_HD Value slope(Value a, Value b, Value c, Value d, Acc fy, Acc fx, Acc offset_y, Acc offset_x) {
  return offset_y * slope_y(a, b, c, d, fx) + offset_x * slope_x(a, b, c, d, fy);
}

/// What differences of a cell's corners a b / c d weigh in that slope.
template <class Acc>
struct SlopeWeights {
  Acc left, right, top, bottom;  // of c-a, d-b, b-a, d-c

  SlopeWeights() = default;
  DDU_HD SlopeWeights(Acc fy, Acc fx, Acc offset_y, Acc offset_x)
      : left(offset_y * (1 - fx)), right(offset_y * fx), top(offset_x * (1 - fy)), bottom(offset_x * fy) {}
};

template <class Acc>
DDU_HD bool is_finite(Acc x) {
  return x - x == Acc(0);
}

/// What is added to a value that must be NaN unless x is finite: NaN, or 0.
template <class Acc>
DDU_HD Acc nan_unless_finite(Acc x) {
  return x - x;
}

}  // namespace ddu
