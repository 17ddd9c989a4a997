// What the CPU's kernels say of themselves: the instruction set, which is chosen here, and whether they are parallel.

#include "targets.h"

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "ddu/device.h"

namespace ddu::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};  // of the values of Target

bool has(Target target) {
#if defined(DDU_X86_TARGETS)
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C, which clang < 16 cannot ask for.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return target == Target::avx512 ? avx512 : target == Target::avx2 ? avx2 : true;
#else
  return target == Target::baseline;
#endif
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool is_same_name(const char* a, const char* b) {
  std::size_t i = 0;
  while (a[i] != '\0' && lower(a[i]) == lower(b[i])) ++i;
  return lower(a[i]) == lower(b[i]);
}

Target choose() {
  const char* wish = std::getenv("DDU_CPU_CAPABILITY");
  const Target best = has(Target::avx512) ? Target::avx512 : has(Target::avx2) ? Target::avx2 : Target::baseline;
  if (!wish || !*wish) return best;
  for (const Target target : {Target::baseline, Target::avx2, Target::avx512}) {
    if (!is_same_name(wish, kNames[static_cast<int>(target)])) continue;
    if (has(target)) return target;
    std::fprintf(stderr, "DDU_CPU_CAPABILITY=%s: this processor or build lacks that, so baseline runs\n", wish);
    return Target::baseline;
  }
  std::fprintf(stderr, "DDU_CPU_CAPABILITY=%s is none of avx512, avx2 and baseline, so %s runs\n", wish,
               kNames[static_cast<int>(best)]);
  return best;
}

}  // namespace

Target target() {
  static const Target chosen = choose();
  return chosen;
}

const char* capability() { return kNames[static_cast<int>(target())]; }

bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

}  // namespace ddu::cpu
