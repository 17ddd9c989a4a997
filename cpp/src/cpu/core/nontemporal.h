#pragma once

// Hints about memory, and stores that go past the caches. An output that no cache can keep is written once: reading its lines
// first, as plain stores make a processor do, would double the traffic, and channels a power of two apart fight for the same
// cache sets.

#include <cstdint>
#include <cstring>

#include "../../half.h"
#include "caches.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ddu::cpu {
namespace {

/// Writes a whole line of memory at an address aligned to it.
inline void store_line(const void* from, void* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX__)
  for (int i = 0; i < 2; ++i)
    _mm256_stream_si256(static_cast<__m256i*>(to) + i, _mm256_loadu_si256(static_cast<const __m256i*>(from) + i));
#elif defined(__SSE2__)
  for (int i = 0; i < 4; ++i)
    _mm_stream_si128(static_cast<__m128i*>(to) + i, _mm_loadu_si128(static_cast<const __m128i*>(from) + i));
#else
  std::memcpy(to, from, kLine);
#endif
}

/// Rounds a run of values and stores it past the caches.
template <class T>
void store_nontemporal(const accumulator_t<T>* values, T* target, int count) {
  constexpr int step = static_cast<int>(kLine / sizeof(T));
  const int before = static_cast<int>(-reinterpret_cast<std::uintptr_t>(target) % kLine / sizeof(T));
  int i = before < count ? before : count;
  narrow(values, target, i);
  for (; i + step <= count; i += step) {
    T line[step];
    narrow(values + i, line, step);
    store_line(line, target + i);
  }
  narrow(values + i, target + i, count - i);
}

/// Asks for memory that will be read soon.
inline void prefetch(const void* from, std::int64_t bytes) {
#if defined(__GNUC__)
  for (std::int64_t i = 0; i < bytes; i += static_cast<std::int64_t>(kLine))
    __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
#endif
}

/// To be called by a thread that has stored past the caches, before others read it.
inline void finish_nontemporal() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace ddu::cpu
