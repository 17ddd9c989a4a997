#pragma once

// Host side of the channels-last way: unfold and its backward, at any rates, from either memory format.

#include "ddu/geometry.h"
#include "ddu/unfold.h"

namespace ddu::cuda::channels_last {

std::size_t unfold_workspace_bytes(const Geometry& g, Types types, const Unfold& given);
void unfold(const Geometry& g, Types types, const Unfold& given, Stream stream);

std::size_t unfold_backward_workspace_bytes(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic);
void unfold_backward(const Geometry& g, Types types, const UnfoldBackward& given, bool deterministic, Stream stream);

/// Whether the environment asks for this way wherever there is a choice (DDU_CUDA_PATH=channels_last): for tests.
bool forced();

}  // namespace ddu::cuda::channels_last
