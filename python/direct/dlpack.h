#pragma once

// What tensor.h uses of DLPack's table of C functions, which torch >= 2.10 offers as Tensor.__dlpack_c_exchange_api__. The
// layout is that of DLPack 1.x, whose major version stands at its head.

#include <cstdint>

namespace dlpack {

constexpr std::int32_t kCpu = 1, kCuda = 2;      // types of devices
constexpr std::uint8_t kFloat = 2, kBfloat = 4;  // codes of types

/// A tensor as another library sees it. It owns nothing.
struct Tensor {
  void* data;
  std::int32_t device_type, device_index;
  std::int32_t dims;
  std::uint8_t type_code, type_bits;
  std::uint16_t type_lanes;
  std::int64_t* sizes;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;
  void *allocate, *export_owned, *import_owned;
  int (*view)(void* object, Tensor* tensor);  ///< 0, or -1 with a Python exception set
};

constexpr char kCapsuleName[] = "dlpack_exchange_api";

}  // namespace dlpack
