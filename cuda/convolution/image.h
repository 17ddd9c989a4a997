#pragma once

// The image as the convolution's kernels read it: rows of channels in which each unit, a run of channels with one group, one
// head and one weight group, starts and ends with whole vectors of 16 bytes. A caller's channels_last tensor often is so.

#include "../channels_last/image_rows.h"
#include "ddu/conv2d_geometry.h"
#include "own_groups.cuh"

namespace ddu::cuda::convolution {

/// The call as the kernels have it: as many weight groups at once as fill a product, 64 outputs or channels, where those have
/// one map and one mask (own_groups.cuh); or more of them, where so few would not be multiplied at all.
Conv2dGeometry merge_groups(const Conv2dGeometry& c);
/// The groups that are given.
inline OwnGroups own_groups(const Conv2dGeometry& given) {
  return {Divider(static_cast<unsigned>(given.weight_group_channels())),
          Divider(static_cast<unsigned>(given.weight_group_outputs()))};
}

/// The units of a call, as heads.
HeadGeometry units_of(const Conv2dGeometry& c);

/// The call as ImageRows knows calls, whose heads lie in one head of the mask and one weight group.
HeadGeometry with_heads(const Conv2dGeometry& c);
/// grad_output as an image, whose groups are the weight groups.
Geometry as_image(const Conv2dGeometry& c);

/// Whether the kernels multiply matrices of such calls, whose groups are merged, at all, in either direction.
bool has_products(const Conv2dGeometry& c, Types types);

struct ImageOfUnits {
  HeadGeometry units;
  channels_last::ImageToRead given;  // of planes, a copy
  channels_last::ImageRows rows;     // that the kernels read
  void* padded = nullptr;            // a copy of a channels_last tensor whose units have no whole vectors
  std::size_t bytes;                 // of scratch memory

  /// `input` tells whether a caller's rows start at multiples of 16 bytes; it is not read.
  ImageOfUnits(const Conv2dGeometry& c, DType type, MemoryFormat format, const void* input, void* memory);
  /// Makes the copy, if there is one, and returns the rows.
  const void* read(DType type, const void* input, Stream stream) const;
  /// Which images of the copy have pixels that are not finite.
  StrangePixels strange() const { return {given.strange, given.strange_count}; }
  /// Vectors of a unit of a pixel.
  int unit_vectors(DType type) const {
    return static_cast<int>(ceil_div(units.head_channels() * static_cast<std::int64_t>(size_of(type)), std::int64_t{16}));
  }
};

}  // namespace ddu::cuda::convolution
