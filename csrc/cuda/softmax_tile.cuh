// Softmax of few classes in contiguous rows: a thread a row, of a tile of rows that is staged in shared memory.
//
// The logits are read once and the gradient is written once, both 16 bytes at a time. A thread reads every logit before
// it, or any thread after a barrier, writes that element of the gradient: the gradient may overwrite the logits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "memory.cuh"
#include "softmax_decision.cuh"

namespace fastloss {

// A thread walks its row from class `first` on and around, so that the 32 rows of a warp are in 32 banks: rows that
// share banks are gcd(row length in banks, banks) in number, and start at different ones.
template <class T>
__device__ __forceinline__ int first_class(int lane, int C) {
  constexpr int bank_bytes = sizeof(T) < 4 ? 4 : sizeof(T);  // 8-byte elements are read by half a warp at a time
  constexpr int banks = 128 / bank_bytes;
  int row_bytes = C * int(sizeof(T));
  if (row_bytes % bank_bytes != 0) return 0;  // an odd number of halves
  int stride = row_bytes / bank_bytes;
  int shared_by = min(stride & -stride, banks);
  return lane % banks / (banks / shared_by) * (bank_bytes / int(sizeof(T)));
}

template <class T, class LossOf>
__global__ void __launch_bounds__(kTileThreads, sizeof(T) == 8 ? 5 : 7)
    softmax_tile(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf>;
  constexpr int batch = 4;           // packs that a thread loads before it stores the first: bytes in flight
  extern __shared__ uint4 shared[];  // [tile_rows, C] of T, and up to one pack before
  __shared__ uint32_t counters[Softmax::storage_size];
  Softmax softmax(launch, loss_of, counters);
  const SoftmaxParams& params = launch.params;
  const int C = int(params.C);
  const int start = first_class<T>(threadIdx.x % 32, C);

  int64_t step = int64_t(gridDim.x) * launch.schedule.rows;
  for (int64_t first = int64_t(blockIdx.x) * launch.schedule.rows; first < params.N; first += step) {
    const int rows = int(min(int64_t(launch.schedule.rows), params.N - first));
    const T* x = softmax.input() + first * C;  // [rows, C]
    // Aligned like x, so that packs are packs in shared memory too.
    T* tile = reinterpret_cast<T*>(shared) + (reinterpret_cast<uintptr_t>(x) & 15) / sizeof(T);  // [rows, C]
    Split<T, int> in(x, rows * C, true);
    for (int i = threadIdx.x; i < in.packs; i += batch * kTileThreads) {
      Pack<T> loaded[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (i + b * kTileThreads < in.packs) loaded[b] = load_pack(x + in.pack(i + b * kTileThreads));
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (i + b * kTileThreads < in.packs) store_shared_pack(tile + in.pack(i + b * kTileThreads), loaded[b]);
      }
    }
    for (int i = threadIdx.x; i < in.scalars; i += kTileThreads) tile[in.scalar(i)] = x[in.scalar(i)];
    __syncthreads();  // the tile is staged, and all of x read

    for (int r = threadIdx.x; r < rows; r += kTileThreads) {
      T* row = tile + r * C;  // [C]
      auto for_each_class = [C, start](auto&& visit) {
        int c = start;
#pragma unroll 4
        for (int i = 0; i < C; ++i) {
          visit(c);
          c = c + 1 == C ? 0 : c + 1;
        }
      };
      const int32_t y = target_of(params, first + r);
      const S target_logit = y < 0 ? S(0) : to_compute(row[y]);
      ClassSum<S> classes;
      for_each_class([&](int c) { classes.max = fmax(classes.max, to_compute(row[c])); });
      for_each_class([&](int c) { classes.sum += exp_nonpositive(to_compute(row[c]) - classes.max); });
      if constexpr (Softmax::counts) {
        softmax.count(classes, target_logit, y, first + r);
        continue;
      }
      SoftmaxDecision<S> decision = softmax.decide(classes, target_logit, y);
      S weighted = 0;
      if (softmax.second_pass()) {
        for_each_class([&](int c) {
          S shifted = to_compute(row[c]) - classes.max;
          S g = softmax.gradient(decision, shifted, c, weighted);
          row[c] = to_storage<T>(y < 0 ? S(0) : g);  // ignored: 0, whatever the logits
        });
        if (y >= 0) row[y] = softmax.target_gradient(decision, target_logit);
      }
      softmax.finish(decision, first + r, weighted);
    }
    __syncthreads();  // the gradient is in the tile, or no row is read any more
    if (softmax.writes()) {
      T* g = softmax.grad() + first * C;  // [rows, C]
      Split<T, int> out(g, rows * C, same_alignment(g, tile));
      for (int i = threadIdx.x; i < out.packs; i += kTileThreads) {
        store_pack(g + out.pack(i), load_shared_pack(tile + out.pack(i)));
      }
      for (int i = threadIdx.x; i < out.scalars; i += kTileThreads) g[out.scalar(i)] = tile[out.scalar(i)];
      __syncthreads();  // the tile is written out before the next one comes
    }
  }
  softmax.conclude_launch();
}

}  // namespace fastloss
