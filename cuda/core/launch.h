#pragma once

// How the host launches kernels.

#include <climits>

#include "ddu/error.h"
#include "ddu/unfold.h"
#include "device.h"
#include "numeric.cuh"

namespace ddu::cuda {

/// A number of blocks, if one launch can have so many.
inline unsigned grid_size(std::int64_t blocks) {
  if (blocks > INT_MAX) throw invalid_argument("the tensors are too large for one launch: split the batch");
  return static_cast<unsigned>(blocks);
}

/// What a launch is made of, but for the kernel and its arguments.
struct Grid {
  unsigned blocks;
  int threads;
  std::size_t shared = 0;  // bytes of dynamic memory
  bool overlap = false;    // starts while the kernel before it still runs, and calls wait_for_previous()
};

/// Launches a kernel, with as much dynamic shared memory as it asks for.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, Stream stream, Arguments... arguments) {
  if (grid.blocks == 0) return;
  if (grid.shared > 40 * 1024) {  // 48 KiB come unasked, and kernels have a little of their own
    DDU_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(grid.shared)));
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  const unsigned attributes = grid.overlap && current_device().overlaps ? 1 : 0;
  const cudaLaunchConfig_t config{dim3(grid.blocks), dim3(static_cast<unsigned>(grid.threads)), grid.shared, stream, &overlap,
                                  attributes};
  DDU_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

/// Calls body with a null pointer of the element type.
template <class Body>
void visit(DType type, Body body) {
  switch (type) {
    case DType::float16:
      return body(static_cast<__half*>(nullptr));
    case DType::bfloat16:
      return body(static_cast<__nv_bfloat16*>(nullptr));
    case DType::float32:
      return body(static_cast<float*>(nullptr));
    case DType::float64:
      return body(static_cast<double*>(nullptr));
  }
}

}  // namespace ddu::cuda
