// The convolution's kernels for devices of compute capability 9.0 alone. Compiled for sm_90a, and for nothing else.

#include "convolution/square_launch.cuh"

namespace ddu::cuda::convolution {

bool has_warpgroup_kernels() { return current_device().major == 9 && current_device().minor == 0; }

void launch_warpgroup_kernel(const SquareCall& call, const Geometry& g, Stream stream) {
  visit(call.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) < 8) {
      if (call.outputs == 64) return launch_square<T, 64, true>(call.params, call, g, stream);
      if (call.outputs == 128) return launch_square<T, 128, true>(call.params, call, g, stream);
      launch_square<T, 256, true>(call.params, call, g, stream);
    }
  });
}

}  // namespace ddu::cuda::convolution
