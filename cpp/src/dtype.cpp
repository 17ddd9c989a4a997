#include "ddu/dtype.h"

#include <cstdio>

#include "ddu/error.h"

namespace ddu {

const char* name_of(DType type) {
  switch (type) {
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
  }
  return "unknown";
}

void check_types(Types types) {
  if (types.map == types.input || (is_half(types.input) && types.map == DType::float32)) return;
  char text[256];
  std::snprintf(text, sizeof text, "dilation_map must have the input's dtype %s%s, got %s", name_of(types.input),
                is_half(types.input) ? " or float32" : "", name_of(types.map));
  throw type_error(text);
}

}  // namespace ddu
