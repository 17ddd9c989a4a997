#pragma once

#include <exception>

#include "ddu/export.h"

namespace ddu {

/// Base of everything this library throws. The text lives inside the object: no allocation, no container in the ABI.
class DDU_API error : public std::exception {
 public:
  explicit error(const char* message) noexcept;
  const char* what() const noexcept override;

 private:
  char message_[1024];
};

/// A size, an option or a pointer that the caller must change. ValueError in Python.
class DDU_API invalid_argument : public error {
 public:
  using error::error;
};

/// Element types that do not go together. TypeError in Python.
class DDU_API type_error : public error {
 public:
  using error::error;
};

/// A CUDA call failed. RuntimeError in Python.
class DDU_API cuda_error : public error {
 public:
  using error::error;
};

/// This build has no CUDA kernels, none for the device's architecture, or needs a newer driver.
class DDU_API unsupported_device : public cuda_error {
 public:
  using cuda_error::cuda_error;
};

}  // namespace ddu
