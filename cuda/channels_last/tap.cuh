#pragma once

// The geometry of taps, worked out once and shared: by one lane for one position and tap, and read from shared memory by all
// lanes that share the position.

#include "params.cuh"

namespace ddu::cuda {

/// For callers of TapTable::fill who do not ask in which pixel a tap starts.
struct IgnorePixel {
  __device__ __forceinline__ void operator()(int, int, int) const {}
};

/// A warp's table for one or more taps of its run: an entry for each tap and position.
template <class Acc, bool kSlopes>
struct TapTable {
  struct alignas(sizeof(Acc) * 4) CornerWeights {
    Acc corner[4];  // a b / c d
  };
  struct alignas(sizeof(Acc) * 4) Slopes {
    SlopeWeights<Acc> of;
  };
  // Element offset of corner a in its image, times 256, plus two masks of corners: bits 0 to 3 say which lie in the image, bits
  // 4 to 7 which of those have a weight.
  using Where = long long;

  CornerWeights* weights;
  Where* where;
  Slopes* slopes;
  Acc* rates;

  static constexpr int kEntryBytes = int(sizeof(CornerWeights) + sizeof(Where) + (kSlopes ? sizeof(Slopes) : 0));
  /// Entries for a run: those of several taps where the run is short, so that every lane works one out.
  __host__ __device__ static constexpr int entries(int run) { return run < 32 ? 32 : run; }
  __host__ __device__ static constexpr int bytes(int run) {
    return (entries(run) * kEntryBytes + run * int(sizeof(Acc)) + 15) / 16 * 16;
  }

  __device__ TapTable(char* shared, int run) {
    char* mine = shared + int(threadIdx.x) / 32 * bytes(run);
    weights = reinterpret_cast<CornerWeights*>(mine);
    mine += entries(run) * sizeof(CornerWeights);
    where = reinterpret_cast<Where*>(mine);
    mine += entries(run) * sizeof(Where);
    slopes = reinterpret_cast<Slopes*>(mine);
    if (kSlopes) mine += entries(run) * sizeof(Slopes);
    rates = reinterpret_cast<Acc*>(mine);
  }

  template <class Work>
  __device__ void load_rates(const RowParams<Acc>& p, const Work& work, const void* map) const {
#pragma unroll 1
    for (int i = int(threadIdx.x) % 32; i < work.run; i += 32) {
      const bool there = work.first_position + i < p.positions;
      rates[i] = there ? load_rate<Acc>(map, p.map_type, work.map_plane(p) * p.positions + work.first_position + i) : Acc(0);
    }
  }

  /// Works out the taps from `tap` on, `entries(run) / run` of them. `note(entry, y, x)` is told where corner a of each lies.
  template <class Work, class Note = IgnorePixel>
  __device__ void fill(const RowParams<Acc>& p, const Work& work, int tap, Note note = {}) const {
    __syncwarp();  // the entries before have been read, and the rates are there
    const int shift = 31 - __clz(work.run);
#pragma unroll 1  // most often an entry a lane
    for (int e = int(threadIdx.x) % 32; e < entries(work.run); e += 32) {
      const int i = e & (work.run - 1);
      unsigned kx = unsigned(tap + (e >> shift));
      const int ky = int(p.by_kernel_w.take(kx));
      int oy, ox;
      work.place(p, i, oy, ox);
      const Acc rate = rates[i];
      const Pixels<Acc> y = p.y.pixels(p.y.base(oy), p.y.offset(ky), rate);
      const Pixels<Acc> x = p.x.pixels(p.x.base(ox), p.x.offset(int(kx)), rate);
      const ddu::Weights<Acc> weights_of(y.fraction, x.fraction);
      CornerWeights w{{weights_of.a(), weights_of.b(), weights_of.c(), weights_of.d()}};
      // Where there is no pixel, nothing weighs.
      const bool is[4] = {y.first && x.first, y.first && x.second, y.second && x.first, y.second && x.second};
      unsigned inside = 0, needed = 0;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        if (!is[corner]) w.corner[corner] = 0;
        inside |= is[corner] ? 1u << corner : 0;
        needed |= w.corner[corner] != 0 ? 1u << corner : 0;
      }
      if (!is_finite(rate)) {  // reads nothing, and makes NaN of the zeros instead
        inside = 0;
        for (Acc& weight : w.corner) weight = nan_unless_finite(rate);
      }
      const std::int64_t offset = (std::int64_t{y.index} * p.width + x.index) * p.rows.pixel;
      note(e, y.index, x.index);
      weights[e] = w;
      where[e] = offset * 256 + ((needed & inside) << 4 | inside);
      if constexpr (kSlopes) slopes[e] = {SlopeWeights<Acc>(y.fraction, x.fraction, y.offset, x.offset)};
    }
    __syncwarp();
  }
};

}  // namespace ddu::cuda
