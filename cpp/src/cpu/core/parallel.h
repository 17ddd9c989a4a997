#pragma once

// The parallel loop. Workers are those of the process's OpenMP, which torch's are too.

#include <algorithm>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace ddu::cpu {

/// How a thread rounds, and whether it takes tiny numbers for 0. Each thread has its own, so workers must take the caller's, or
/// results would depend on who computes what.
class FloatingPointState {
 public:
#if defined(__SSE2__)
  static FloatingPointState current() { return FloatingPointState(_mm_getcsr()); }
  void set() const { _mm_setcsr(bits_); }

 private:
  using Bits = unsigned;
#elif defined(__aarch64__) && defined(__GNUC__)
  static FloatingPointState current() {
    std::uint64_t bits;
    __asm__ volatile("mrs %0, fpcr" : "=r"(bits));
    return FloatingPointState(bits);
  }
  void set() const { __asm__ volatile("msr fpcr, %0" : : "r"(bits_)); }

 private:
  using Bits = std::uint64_t;
#else
  static FloatingPointState current() {
    std::fenv_t bits;
    std::fegetenv(&bits);
    return FloatingPointState(bits);
  }
  void set() const { std::fesetenv(&bits_); }

 private:
  using Bits = std::fenv_t;
#endif
  explicit FloatingPointState(Bits bits) : bits_(bits) {}
  Bits bits_;
};

/// Puts a thread under another's state for as long as it lives.
class UnderState {
 public:
  explicit UnderState(const FloatingPointState& state) : own_(FloatingPointState::current()) { state.set(); }
  ~UnderState() { own_.set(); }
  UnderState(const UnderState&) = delete;
  UnderState& operator=(const UnderState&) = delete;

 private:
  const FloatingPointState own_;
};

/// Threads for a number of tasks, of `threads` at most.
inline int team_size(std::int64_t tasks, int threads) {
  return static_cast<int>(std::clamp<std::int64_t>(tasks, 1, std::max(threads, 1)));
}

/// Calls body(task, thread) for all tasks; the thread is below team_size(tasks, threads).
template <class Body>
void parallel_for(std::int64_t tasks, [[maybe_unused]] int threads, Body body) {
#if defined(_OPENMP)
  const int team = team_size(tasks, threads);
  if (team > 1) {
    const FloatingPointState callers = FloatingPointState::current();
#pragma omp parallel num_threads(team)
    {
      const UnderState state(callers);
      const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t task = 0; task < tasks; ++task) body(task, thread);
    }
    return;
  }
#endif
  for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
}

}  // namespace ddu::cpu
