#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "ddu/error.h"
#include "ddu/unfold.h"

namespace ddu::cuda {

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // leave nothing behind for the next caller, where CUDA lets go of it
  char text[1024];
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction ||
      status == cudaErrorUnsupportedPtxVersion) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    std::snprintf(text, sizeof text,
                  "this build of dynamic_dilation_unfold has kernels for the architectures %s (CUDA %d.%d), and none that CUDA "
                  "device %d of compute capability %d.%d can run",
                  architectures(), toolkit_version() / 1000, toolkit_version() % 1000 / 10, device, major, minor);
    throw unsupported_device(text);
  }
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    std::snprintf(
        text, sizeof text,
        "this build of dynamic_dilation_unfold needs a driver for CUDA %d.%d, and the installed one serves CUDA %d.%d",
        toolkit_version() / 1000, toolkit_version() % 1000 / 10, driver / 1000, driver % 1000 / 10);
    throw unsupported_device(text);
  }
  std::snprintf(text, sizeof text, "CUDA error %d (%s): %s, in %s at %s:%d", static_cast<int>(status), cudaGetErrorName(status),
                cudaGetErrorString(status), call, file, line);
  throw cuda_error(text);
}

namespace {
__global__ void any_kernel() {}
}  // namespace

const Device& current_device() {
  constexpr int kMaxDevices = 64;
  static Device devices[kMaxDevices];
  static std::once_flag asked[kMaxDevices];
  int index = 0;
  DDU_CUDA_CHECK(cudaGetDevice(&index));
  if (index >= kMaxDevices) throw cuda_error("more than 64 CUDA devices");
  std::call_once(asked[index], [&] {
    Device device{};
    DDU_CUDA_CHECK(cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, index));
    DDU_CUDA_CHECK(cudaDeviceGetAttribute(&device.minor, cudaDevAttrComputeCapabilityMinor, index));
    DDU_CUDA_CHECK(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index));
    DDU_CUDA_CHECK(
        cudaDeviceGetAttribute(&device.shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, index));
    DDU_CUDA_CHECK(cudaDeviceGetAttribute(&device.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
    int driver = 0;
    cudaFuncAttributes code{};
    DDU_CUDA_CHECK(cudaDriverGetVersion(&driver));
    DDU_CUDA_CHECK(cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(&any_kernel)));
    // Kernels wait for each other from sm_90 on: those that run here may be translated from older code, for any device. And
    // older drivers cannot capture such launches into a graph.
    device.overlaps = code.ptxVersion >= 90 && driver >= 12030;
    device.has_mma = code.ptxVersion >= 80;
    devices[index] = device;
  });
  return devices[index];
}

Path requested_path() {
  const char* path = std::getenv("DDU_CUDA_PATH");
  if (path && std::strcmp(path, "planar") == 0) return Path::planar;
  if (path && std::strcmp(path, "wide") == 0) return Path::wide;
  if (path && std::strcmp(path, "channels_last") == 0) return Path::channels_last;
  return Path::either;
}

bool requests_columns() {
  const char* way = std::getenv("DDU_CUDA_CONV2D");
  return way && std::strcmp(way, "columns") == 0;
}

int toolkit_version() { return CUDART_VERSION; }
const char* architectures() { return DDU_CUDA_ARCHITECTURES; }

}  // namespace ddu::cuda
