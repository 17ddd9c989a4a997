#pragma once

#include <cstddef>
#include <cstdint>

#include "integer.h"

namespace ddu {

/// Cuts the caller's scratch memory into arrays, for every device. One function, most often a constructor, lays out the arrays
/// of a call or of a thread: it runs without memory to learn how many bytes they are, and with it to learn where they lie.
class Workspace {
 public:
  explicit Workspace(void* memory = nullptr) : memory_(static_cast<unsigned char*>(memory)) {}

  /// The next array; null where it is empty or there is no memory.
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t offset = bytes_;
    bytes_ += round_up(sizeof(T) * static_cast<std::size_t>(count), std::size_t{256});
    return memory_ && count > 0 ? reinterpret_cast<T*>(memory_ + offset) : nullptr;
  }
  /// Of what was taken so far.
  std::size_t bytes() const { return bytes_; }

  /// Two layouts of the same memory, one used after the other: both start as copies of one Workspace.
  static Workspace overlay(const Workspace& a, const Workspace& b) { return a.bytes_ > b.bytes_ ? a : b; }

 private:
  unsigned char* memory_;
  std::size_t bytes_ = 0;
};

/// Scratch memory of which a part lies where a result will be written later: arrays that nobody reads any more by then. They go
/// there as long as there is room, in the order in which they are taken.
class BorrowedWorkspace {
 public:
  /// `lent`: so many bytes, aligned as scratch memory is; null for none.
  BorrowedWorkspace(Workspace& own, void* lent, std::size_t bytes) : own_(own), lent_(lent), room_(lent ? bytes : 0) {}

  template <class T>
  T* take(std::int64_t count) {
    const bool fits = lent_.bytes() + sizeof(T) * static_cast<std::size_t>(count) <= room_;
    return fits ? lent_.take<T>(count) : own_.take<T>(count);
  }

 private:
  Workspace& own_;
  Workspace lent_;
  std::size_t room_;
};

}  // namespace ddu
