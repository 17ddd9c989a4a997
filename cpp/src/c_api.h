#pragma once

// What the C functions of every operator share: structs of C as those of C++, and exceptions as statuses.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <type_traits>

#include "ddu/ddu_c.h"
#include "ddu/dtype.h"
#include "ddu/error.h"
#include "ddu/geometry.h"
#include "ddu/memory_format.h"

namespace ddu {

/// Keeps the text for ddu_last_error.
ddu_status failed(ddu_status status, const char* message) noexcept;

template <class Body>
ddu_status guarded(Body body) noexcept {
  try {
    body();
    return DDU_OK;
  } catch (const invalid_argument& e) {
    return failed(DDU_INVALID_ARGUMENT, e.what());
  } catch (const type_error& e) {
    return failed(DDU_TYPE_ERROR, e.what());
  } catch (const cuda_error& e) {
    return failed(DDU_CUDA_ERROR, e.what());
  } catch (const std::exception& e) {
    return failed(DDU_INTERNAL_ERROR, e.what());
  } catch (...) {
    return failed(DDU_INTERNAL_ERROR, "unknown exception");
  }
}

template <class Target, class Source>
Target same_bytes(const Source& source) {
  static_assert(sizeof(Target) == sizeof(Source) && std::is_trivially_copyable_v<Target>, "the C struct mirrors the C++ one");
  Target target;
  std::memcpy(static_cast<void*>(&target), &source, sizeof target);
  return target;
}

template <class Target, class Source>
Target required(const char* name, const Source* source) {
  if (source) return same_bytes<Target>(*source);
  char text[64];
  std::snprintf(text, sizeof text, "%s must not be null", name);
  throw invalid_argument(text);
}

inline Types types_of(ddu_types types) {
  const ddu_dtype given[] = {types.input, types.map};
  for (const ddu_dtype type : given) {
    if (type >= DDU_FLOAT16 && type <= DDU_FLOAT64) continue;
    char text[64];
    std::snprintf(text, sizeof text, "a dtype must be between 0 and 3, got %d", static_cast<int>(type));
    throw type_error(text);
  }
  const Types checked{static_cast<DType>(types.input), static_cast<DType>(types.map)};
  check_types(checked);
  return checked;
}

inline void expect(bool fine, const char* message) {
  if (!fine) throw invalid_argument(message);
}

inline Options options_of(const ddu_options* given) {
  expect(given, "options must not be null");
  Options options;
  std::copy_n(given->kernel_size, 2, options.kernel_size);
  std::copy_n(given->stride, 2, options.stride);
  std::copy_n(given->padding, 2, options.padding);
  std::copy_n(given->dilation, 2, options.dilation);
  options.groups = given->groups;
  options.padding_mode = static_cast<PaddingMode>(given->padding_mode);
  options.part = given->part != 0;
  std::copy_n(given->origin, 2, options.origin);
  return options;
}

inline void expect_format(MemoryFormat format) {
  expect(format == MemoryFormat::contiguous || format == MemoryFormat::channels_last,
         "input_format must be DDU_CONTIGUOUS or DDU_CHANNELS_LAST");
}

}  // namespace ddu
