#pragma once

// The transpose of gather: gradients of channels onto the four corners of a tap, in sums whose channels lie side by side.
//
// Where L2 can be asked for several additions at once it is: four floats by one instruction (sm_90 on), or a row of 256 bytes
// or more, staged in shared memory, by a bulk reduction. Bulk reductions are the faster way to add doubles and integers of 64
// bits, which have no vector instruction, and the slower one for floats (benchmarks/NOTES.md, "Channels last").

#include "gather.cuh"

namespace ddu::cuda {

/// Adds the first `count` of kN values to memory; in vectors, and all of them, where they lie aligned.
template <bool kAligned, class Word, int kN>
__device__ __forceinline__ void add_channels(Word* to, const Word (&value)[kN], int count) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kAligned && std::is_same_v<Word, float> && kN == 4) {
    // Nobody here reads the sums, so other accesses may move past it.
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(value[0]), "f"(value[1]), "f"(value[2]),
                 "f"(value[3]));
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (i < count) atomicAdd(to + i, value[i]);
    }
  }
}

/// Whether a device has bulk reductions.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kBulkReductions = false;
#else
constexpr bool kBulkReductions = true;
#endif

/// Adds `bytes` of words in shared memory to words in global memory, both at multiples of 16 bytes, beside the program.
/// From sm_90 on.
template <class Word>
__device__ __forceinline__ void add_bulk(Word* to, const Word* shared, int bytes) {
#if __CUDA_ARCH__ >= 900
  const auto from = unsigned(__cvta_generic_to_shared(shared));
  if constexpr (std::is_same_v<Word, float>) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
  } else if constexpr (std::is_same_v<Word, double>) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f64 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u64 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
  }
#elif !defined(__CUDA_ARCH__)
  for (int i = 0; i < bytes / int(sizeof(Word)); ++i) to[i] += shared[i];
#endif
}
/// Lets such additions read what this thread has written to shared memory.
__device__ __forceinline__ void publish_to_bulk() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// Closes the group of this thread's additions.
__device__ __forceinline__ void commit_bulk() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
/// Waits until this thread's additions have read shared memory.
__device__ __forceinline__ void wait_for_bulk_reads() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}

/// Sums in floating point, in any order.
template <class T>
struct FloatingSums {
  using Acc = accumulator_t<T>;
  using Word = Acc;
  static constexpr int kWords = 1;                          // arrays of words that a sum is made of
  static constexpr bool kOrdered = false;                   // whether the sum depends on the order of its terms
  static constexpr bool kBulk = std::is_same_v<T, double>;  // where rows are long enough

  Word* words;  // as channels-last tensors are; null if not wanted

  template <int kN>
  struct Lane {
    __device__ Lane(const FloatingSums&, std::int64_t, int) {}
    __device__ __forceinline__ void scale(Acc (&)[kN]) const {}
  };
  template <int kN>
  __device__ __forceinline__ void convert(const Acc (&term)[kN], Word (&word)[1][kN], const Lane<kN>&) const {
#pragma unroll
    for (int c = 0; c < kN; ++c) word[0][c] = term[c];
  }
};

/// A warp's rows on their way to L2: of kPositions positions of each quad the four corners' channels.
template <class Sums, int kChannels, int kPositions>
struct ScatterStage {
  using Word = typename Sums::Word;
  static constexpr int kLanes = 16;                     // that share a position
  static constexpr int kRow = kLanes * kChannels;       // words
  static constexpr int kArray = kPositions * 4 * kRow;  // of each of a sum's arrays, for one quad
  static constexpr int kBytes = 32 / kLanes * kArray * Sums::kWords * int(sizeof(Word));

  Word* rows;  // of this lane's quad

  __device__ __forceinline__ ScatterStage(char* shared, int quad)
      : rows(reinterpret_cast<Word*>(shared + int(threadIdx.x) / 32 * kBytes) + quad * kArray * Sums::kWords) {}
  __device__ __forceinline__ Word* row(int array, int position, int corner) const {
    return rows + array * kArray + (position * 4 + corner) * kRow;
  }
  /// Writes this lane's channels of a position's corner.
  __device__ __forceinline__ void write(int position, int corner, int vector,
                                        const Word (&word)[Sums::kWords][kChannels]) const {
    constexpr int kPiece = 16 / int(sizeof(Word));
#pragma unroll
    for (int array = 0; array < Sums::kWords; ++array) {
      Word* to = row(array, position, corner) + vector * kChannels;
#pragma unroll
      for (int c = 0; c < kChannels; c += kPiece) {
        Vec<Word, kPiece> piece;
#pragma unroll
        for (int i = 0; i < kPiece; ++i) piece.value[i] = word[array][c + i];
        VecBits<Vec<Word, kPiece>>::write(*reinterpret_cast<Vec<Word, kPiece>*>(to + c), piece);
      }
    }
  }
};

}  // namespace ddu::cuda
