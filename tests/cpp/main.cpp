// Runs the tests of a program, unless this processor lacks what they are for: then it exits with 77, which ctest shows as
// skipped.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ddu/unfold.h"

namespace {

bool can_run() {
#if defined(DDU_TEST_NEEDS)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports(DDU_TEST_NEEDS)) return false;
#endif
  const char* capability = std::getenv("DDU_CPU_CAPABILITY");
  const bool needs = capability && (std::strcmp(capability, "avx2") == 0 || std::strcmp(capability, "avx512") == 0);
  return !needs || std::strcmp(capability, ddu::cpu::capability()) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!can_run()) {
    std::printf("This processor cannot run these tests.\n");
    return 77;
  }
  return RUN_ALL_TESTS();
}
