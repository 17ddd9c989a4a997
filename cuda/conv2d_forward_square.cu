// The convolution's kernel for 3x3 taps, with products of warps. One for warpgroups has a file of its own.

#include "convolution/square_launch.cuh"

namespace ddu::cuda::convolution {

#if !defined(DDU_HAS_SM90)
bool has_warpgroup_kernels() { return false; }
void launch_warpgroup_kernel(const SquareCall&, const Geometry&, Stream) {}
#endif

void launch_square_kernel(const SquareCall& call, const Geometry& g, Stream stream) {
  visit(call.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(T) < 8) {
      launch_square<T, 64, false>(call.params, call, g, stream);
    }
  });
}

}  // namespace ddu::cuda::convolution
