#pragma once

// The operators for LibTorch, compiled by the application against its own Torch (>= 2.4). Link DynamicDilationUnfold::torch,
// which also sets DDU_TORCH_CUDA where that Torch has CUDA: without it, CUDA tensors are refused.
//
//   at::Tensor columns = ddu::torch_unfold(input, {3, 3}, dilation_map, {.padding = {1, 1}});        // C++20
//
// ddu/torch_library.h registers the operators for exported programs.

#include "ddu/torch/aggregate.h"  // IWYU pragma: export
#include "ddu/torch/attention.h"  // IWYU pragma: export
#include "ddu/torch/conv2d.h"     // IWYU pragma: export
#include "ddu/torch/correlate.h"  // IWYU pragma: export
#include "ddu/torch/unfold.h"     // IWYU pragma: export
