#pragma once

// Host side of the channels-last way: unfold and its backward, at any rates, from either memory format.

#include "../core/ordered_sums.cuh"
#include "ddu/geometry.h"
#include "ddu/unfold.h"
#include "params.cuh"

namespace ddu::cuda::channels_last {

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles);
/// What planar blocks have found of the shares of marked tiles that they turned, as in SharedCopy; where TileMarks::share is 0,
/// nothing.
struct TurnedShares {
  const unsigned char* strange = nullptr;  // [image, group, block of channels, tile]
  int channel_blocks = 0;                  // of a group
};
/// The columns of the marked tiles, or all of them.
void unfold(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles, Stream stream,
            const TurnedShares& turned = {});

/// The copy of a planar call's input, in the workspace of these kernels.
struct InputCopy {
  void* rows;
  RowLayout layout;
};
InputCopy input_copy(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles);

/// The part of a backward call that planar kernels leave to these.
struct Rest {
  TileMarks tiles;         // marks null: all of it
  void* grad_input;        // planes of sums to add to, float32 for half types; null if not wanted
  void* grad_map;          // sums, or arrays of them; null if not wanted
  bool grad_map_is_whole;  // sums to add to, as grad_map_arrays() == 0 says; else arrays to write, zero so far at the positions
                           // of marked tiles
  // Deterministic: sums that wide tiles have added to, or null, which come to grad_input beside those of these kernels; the
  // largest gradients, zero before prepare_rest; and marks of those that are left out.
  OrderedPlanes planes;
};

/// The first step of a deterministic call's rest, before wide tiles add to rest.planes: what these kernels need, and zeros and
/// units for both.
void prepare_rest(const Geometry& g, Types types, const UnfoldBackward& given, Stream stream, const Rest& rest);

/// Scratch memory of the call, or of its rest.
std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic,
                                            bool rest = false);
/// How many arrays of sums for the map the rest of a deterministic call writes.
std::int64_t rest_map_arrays(const Geometry& g, Types types, const UnfoldBackward& given);
void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, Stream stream,
                     const Rest* rest = nullptr);

}  // namespace ddu::cuda::channels_last
