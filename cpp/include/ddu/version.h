#pragma once

// For C too.

#include "ddu/export.h"

#define DDU_VERSION "0.1.0"

#ifdef __cplusplus
namespace ddu {

/// DDU_VERSION of the library that runs, which may be newer than the header's.
DDU_API const char* version();

}  // namespace ddu
#endif
