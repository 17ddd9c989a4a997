#pragma once

// Functions that kernels of CUDA call too.

#if defined(__CUDACC__)
#define DDU_HD __host__ __device__ __forceinline__
#else
#define DDU_HD inline
#endif
