#pragma once

#include <cstdint>

#include "ddu/export.h"

namespace ddu {

using size_t = decltype(sizeof(0));  ///< std::size_t, without its header

/// Element type of a tensor.
enum class DType : std::int32_t { float16 = 0, bfloat16 = 1, float32 = 2, float64 = 3 };

/// The two element types of one call: of the input (and output, and their gradients), and of the dilation map.
struct Types {
  DType input;
  DType map;
};

constexpr size_t size_of(DType type) { return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2; }

constexpr bool is_half(DType type) { return size_of(type) == 2; }

/// "float16", "bfloat16", "float32" or "float64".
DDU_API const char* name_of(DType type);

/// The map has the input's type, or float32 beside a half input. Throws ddu::type_error naming both otherwise.
DDU_API void check_types(Types types);

}  // namespace ddu
