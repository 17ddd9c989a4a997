#include "image_rows.h"

#include <limits>

#include "../core/elementwise.cuh"
#include "rows_to_planes.cuh"

namespace ddu::cuda::channels_last {
namespace {

/// Calls body with a null pointer of T, and one of the kind of sums.
template <class Body>
void visit_sums(DType type, bool ordered, Body body) {
  visit(type, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    if (ordered) return body(element, static_cast<OrderedSums<T>*>(nullptr));
    body(element, static_cast<FloatingSums<T>*>(nullptr));
  });
}

/// The largest of each term, as bits of doubles: of images; of heads, null for ones; of channels, null for ones.
struct LargestOfTerms {
  const unsigned long long *values, *factors, *weights;
};

/// largest[image, channel] from those.
__global__ void __launch_bounds__(256)
    largest_products_kernel(const LargestOfTerms terms, unsigned long long* largest, std::int64_t count, int channels,
                            int head_channels, int heads, bool shared_factors, double limit) {
  const std::int64_t i = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i >= count) return;
  const std::int64_t image = i / channels;
  const int channel = int(i % channels), head = channel / head_channels;
  const auto number = [](unsigned long long bits) { return __longlong_as_double(static_cast<long long>(bits)); };
  double product = number(terms.values[image]);
  if (terms.factors) product *= number(terms.factors[(shared_factors ? 0 : image) * heads + head]);
  if (terms.weights) product *= number(terms.weights[channel]);
  largest[i] = static_cast<unsigned long long>(__double_as_longlong(product < limit ? product : limit));
}

template <class T>
void find_largest_of(const void* tensor, std::int64_t planes, std::int64_t count, unsigned long long* largest, Stream stream) {
  const auto search = largest_search(static_cast<const T*>(tensor), planes, count, largest);
  launch(largest_kernel<T>, {search.blocks, LargestSearch<T>::kThreads}, stream, search);
}

}  // namespace

int strange_bytes(const ImageRows& image, DType type) {
  int bytes = 0;
  visit(type, [&](auto* element) {
    bytes = Conversion<std::remove_pointer_t<decltype(element)>>(image.units, image.rows).image_blocks;
  });
  return bytes;
}

void planes_to_rows(const Geometry& g, DType type, const RowLayout& rows, const TileMarks& tiles, const void* planes,
                    void* copy, const RowsToClear& sums, unsigned char* strange, Stream stream) {
  visit(type, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const Conversion<T> conversion(g, rows);
    const unsigned blocks = tiles.marks ? few_blocks(conversion.blocks) : conversion.blocks;
    launch(planes_to_rows_kernel<T>, {blocks, kRowThreads, conversion.shared, tiles.marks != nullptr}, stream,
           conversion.work(planes, static_cast<T*>(copy), sums, strange), tiles);
  });
}

void rows_to_planes(const Geometry& g, DType type, const RowLayout& rows, const void* pixels, void* planes, Stream stream) {
  visit(type, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    if constexpr (sizeof(T) < 8) {
      const Conversion<T> conversion(g, rows);
      launch(rows_to_planes_kernel<T, PixelRows<T>>, {conversion.square_blocks, kRowThreads, 0, true}, stream,
             conversion.params, PixelRows<T>{static_cast<const T*>(pixels)}, static_cast<T*>(planes), conversion.whole(planes));
    }
  });
}

void find_largest(const HeadGeometry& h, DType type, const LargestTerms& terms, const ImageSums& sums, Stream stream) {
  const Geometry& g = h.geometry;
  unsigned long long* of_factors = terms.words + g.batch;
  unsigned long long* of_weights = of_factors + h.factors_batch * h.heads;
  double limit = 0;  // a term that is finite is no larger
  visit(type, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    limit = std::is_same_v<T, double> ? std::numeric_limits<double>::max() : double(std::numeric_limits<float>::max());
    find_largest_of<T>(terms.values, g.batch, g.channels * terms.outputs * g.positions(), terms.words, stream);
    if (terms.factors)
      find_largest_of<T>(terms.factors, h.factors_batch * h.heads, g.taps() * g.positions(), of_factors, stream);
    if (terms.weight) find_largest_of<T>(terms.weight, g.channels, terms.outputs * g.taps(), of_weights, stream);
  });
  const std::int64_t count = g.batch * g.channels;
  const LargestOfTerms found{terms.words, terms.factors ? of_factors : nullptr, terms.weight ? of_weights : nullptr};
  launch(largest_products_kernel, {grid_size(ceil_div(count, 256)), 256}, stream, found, sums.largest, count,
         static_cast<int>(g.channels), static_cast<int>(h.head_channels()), static_cast<int>(h.heads), h.factors_batch == 1,
         limit);
}

void sums_to_image(const ImageRows& image, DType type, const ImageSums& sums, void* gradient, Stream stream) {
  visit_sums(type, sums.ordered, [&](auto* element, auto* kind) {
    using T = std::remove_pointer_t<decltype(element)>;
    using Sums = std::remove_pointer_t<decltype(kind)>;
    T* to = static_cast<T*>(gradient);
    if (!image.own) {
      const Conversion<T> conversion(image.units, image.rows);
      launch(rows_to_planes_kernel<T, Sums>, {conversion.square_blocks, kRowThreads, 0, true}, stream, conversion.params,
             sums.as<Sums>(), to, conversion.whole(to));
    } else if constexpr (Sums::kOrdered) {
      const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(image.numel(), 256), 16384));
      launch(ordered_to_rows_kernel<T>, {blocks, 256}, stream, sums.as<Sums>(), image.numel(), image.rows.image,
             static_cast<int>(image.units.channels), to);
    } else if constexpr (sizeof(T) == 2) {
      launch(convert_kernel<T>, {grid_size(ElementRuns::blocks(image.numel())), ElementRuns::kThreads, 0, true}, stream,
             static_cast<const float*>(sums.words), to, image.numel(), is_aligned(to, 4 * sizeof(T)));
    }
  });
}

}  // namespace ddu::cuda::channels_last
