#include "ddu/error.h"

#include <cstdio>

namespace ddu {

error::error(const char* message) noexcept { std::snprintf(message_, sizeof message_, "%s", message); }
const char* error::what() const noexcept { return message_; }

}  // namespace ddu
