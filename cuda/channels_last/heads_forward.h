#pragma once

// The host side that the forward calls of operators without columns share: their kernels differ, and what they are given.

#include <type_traits>

#include "image_rows.h"

namespace ddu::cuda::channels_last {

/// Scratch memory of a forward call: the copy of its image, if it needs one.
inline std::size_t forward_workspace_bytes(const HeadGeometry& h, Types types, MemoryFormat format) {
  check_types(types);
  if (h.geometry.columns_numel() == 0) return 0;
  return ImageToRead(h, types.input, format, nullptr, nullptr).bytes;
}

/// Calls body with a null pointer of the type and, as a constant, the channels of a lane: 16 bytes of them, or one.
template <class Body>
void visit_lanes(DType type, const ImageRows& image, Body body) {
  visit(type, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    if (image.vectors) return body(element, std::integral_constant<int, kVec<T>>{});
    body(element, std::integral_constant<int, 1>{});
  });
}

/// Launches a kernel whose warps have a table of taps each, and whose blocks have `shared` bytes beside.
template <class T, class Pointers, class... Others>
void launch_forward(void (*kernel)(HeadParams<accumulator_t<T>>, Pointers, Others...), const HeadParams<accumulator_t<T>>& p,
                    const Pointers& tensors, Stream stream, std::size_t shared = 0, const Others&... others) {
  shared += static_cast<std::size_t>(kRowWarps * TapTable<accumulator_t<T>, false>::bytes(p.run));
  launch(kernel, {blocks_of(p), kRowThreads, shared, true}, stream, p, tensors, others...);
}

}  // namespace ddu::cuda::channels_last
