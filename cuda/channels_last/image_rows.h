#pragma once

// An image to rows of channels, and sums in such rows to its gradient: what operators without columns share. Compiled once.

#include "head_plan.h"
#include "ordered_sums.cuh"

namespace ddu::cuda::channels_last {

/// How many bytes the conversion writes for each image that tell whether it has pixels that are not finite.
int strange_bytes(const ImageRows& image, DType type);

/// The rows that a forward call reads: the caller's, or a copy in its scratch memory.
struct ImageToRead {
  ImageRows image;
  void* copy = nullptr;
  unsigned char* strange = nullptr;  // of the copy, as StrangePixels has them
  int strange_count = 0;
  std::size_t bytes;  // of scratch memory

  ImageToRead(const HeadGeometry& h, DType type, MemoryFormat format, const void* given, void* memory)
      : image(h, format_of(h, format), static_cast<int>(16 / size_of(type)), is_aligned(given, 16)) {
    Workspace workspace(memory);
    if (!image.own) {
      copy = workspace.take<unsigned char>(image.numel() * static_cast<std::int64_t>(size_of(type)));
      strange_count = strange_bytes(image, type);
      strange = workspace.take<unsigned char>(std::int64_t{strange_count} * h.geometry.batch);
    }
    bytes = workspace.bytes();
  }
  /// Makes the copy, if there is one, and returns the rows.
  const void* read(DType type, const void* given, Stream stream) const {
    if (image.own) return given;
    planes_to_rows(image.units, type, image.rows, {}, given, copy, {}, strange, stream);
    return copy;
  }
};

/// Sums of an image's gradient in rows, as FloatingSums or OrderedSums has them.
struct ImageSums {
  bool ordered = false;
  void* words = nullptr;
  unsigned* strange = nullptr;
  unsigned long long* largest = nullptr;
  int bits = 0;
  std::int64_t array = 0;

  template <class Sums>
  Sums as() const {
    Sums sums{};
    sums.words = static_cast<typename Sums::Word*>(words);
    if constexpr (Sums::kOrdered) {
      sums.array = array;
      sums.strange = strange;
      sums.largest = largest;
      sums.bits = bits;
    }
    return sums;
  }
};

/// What gradients of columns are products of: values, factors of heads or ones, and of a depthwise convolution weights of
/// channels, with `outputs` values for each.
struct LargestTerms {
  const void *values = nullptr, *factors = nullptr, *weight = nullptr;
  std::int64_t outputs = 1;
  unsigned long long* words = nullptr;  // scratch memory, zero: the largest of each
};

/// Finds the largest gradient of a column that each channel of each image can have: the largest value of the image times the
/// largest factor of the head, times the largest weight of the channel. sums.largest is where it goes.
void find_largest(const HeadGeometry& h, DType type, const LargestTerms& terms, const ImageSums& sums, Stream stream);
/// Elements of `words`.
inline std::int64_t largest_words(const HeadGeometry& h) {
  return h.geometry.batch + h.factors_batch * h.heads + h.geometry.channels;
}

/// The gradient from its sums, unless they are the gradient itself.
void sums_to_image(const ImageRows& image, DType type, const ImageSums& sums, void* gradient, Stream stream);

}  // namespace ddu::cuda::channels_last
