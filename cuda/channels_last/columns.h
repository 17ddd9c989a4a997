#pragma once

// Host side of the channels-last way: unfold and its backward, at any rates, from either memory format.

#include "ddu/geometry.h"
#include "ddu/unfold.h"
#include "marks.cuh"

namespace ddu::cuda::channels_last {

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold& given);
/// What comes before unfold: the input is turned, or looked at. Nothing is done where no tile is marked.
void prepare_unfold(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles, Stream stream);
/// The columns of the marked tiles, or all of them.
void unfold(const Geometry& g, Types types, const Unfold& given, const TileMarks& tiles, Stream stream);

std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic);
void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, Stream stream);

/// Whether the environment asks for this way wherever there is a choice (DDU_CUDA_PATH=channels_last): for tests.
bool forced();

}  // namespace ddu::cuda::channels_last
