// The emulated products of core/mma.cuh against a plain product of matrices, by the layouts that are drawn there.

#include "cuda.h"
// It comes first: it stands for what the compiler of CUDA knows.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "../../../cuda/core/mma.cuh"

namespace {

template <class T>
class Mma : public testing::Test {};
using Types = testing::Types<__half, __nv_bfloat16, float>;
TYPED_TEST_SUITE(Mma, Types);

/// Puts elements into a word: two of a half type, or one float as TF32.
template <class T>
unsigned word_of(const T* elements) {
  if constexpr (sizeof(T) == 4) {
    return ddu::cuda::to_tf32(*elements);
  } else {
    return emulation::bits<unsigned short>(elements[0]) | unsigned{emulation::bits<unsigned short>(elements[1])} << 16;
  }
}

TYPED_TEST(Mma, IsAProductOfMatrices) {
  using T = TypeParam;
  constexpr int kDepth = ddu::cuda::kMmaDepth<T>, kOfWord = 4 / int(sizeof(T));
  std::mt19937 random(1);
  const auto value = [&] { return T(float(std::uniform_int_distribution<int>(-64, 64)(random)) / 16); };  // exact in all
  std::vector<T> a(16 * kDepth), b(8 * kDepth);  // rows of A, columns of B
  for (T& element : a) element = value();
  for (T& element : b) element = value();
  std::vector<float> d(16 * 8);
  for (float& element : d) element = float(value());
  const std::vector<float> before = d;
  for (const bool backwards : {false, true}) {
    if (backwards) setenv("DDU_EMULATION_BACKWARDS", "1", 1);
    d = before;
    emulation::run(1, 32, 0, [&] {
      const int g = int(threadIdx.x) / 4, q = int(threadIdx.x) % 4;
      unsigned of_a[4], of_b[2];
      for (int i = 0; i < 4; ++i) of_a[i] = word_of(&a[(g + i % 2 * 8) * kDepth + (q + i / 2 * 4) * kOfWord]);
      for (int i = 0; i < 2; ++i) of_b[i] = word_of(&b[g * kDepth + (q + i * 4) * kOfWord]);
      float of_d[4];
      for (int i = 0; i < 4; ++i) of_d[i] = d[(g + i / 2 * 8) * 8 + q * 2 + i % 2];
      ddu::cuda::mma<T>(of_d, of_a, of_b);
      for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + q * 2 + i % 2] = of_d[i];
    });
    unsetenv("DDU_EMULATION_BACKWARDS");
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        double expected = before[row * 8 + column];
        for (int k = 0; k < kDepth; ++k) expected += double(float(a[row * kDepth + k])) * float(b[column * kDepth + k]);
        EXPECT_EQ(d[row * 8 + column], expected) << "row " << row << ", column " << column;
      }
  }
}

TEST(MmaRounding, OfTf32) {
  const auto rounded = [](float value) { return emulation::bits<float>(ddu::cuda::to_tf32(value)); };
  const float unit = std::ldexp(1.f, -10);
  EXPECT_EQ(rounded(1 + unit), 1 + unit);
  EXPECT_EQ(rounded(1 + unit / 2), 1 + unit);  // ties away from zero
  EXPECT_EQ(rounded(-1 - unit / 2), -1 - unit);
  EXPECT_EQ(rounded(1 + unit * 0.49f), 1);
  EXPECT_EQ(rounded(INFINITY), INFINITY);
  EXPECT_TRUE(std::isnan(rounded(NAN)));
}

}  // namespace
