// Softmax of classes that lie side by side, wherever the rows are: some threads of a warp, or a block, for each row.
//
// A row is kept in shared memory and read once; one too long for it twice. A thread reads every logit before it, or any
// thread after a barrier, writes that element of the gradient: the gradient may overwrite the logits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "memory.cuh"
#include "softmax_decision.cuh"

namespace fastloss {

// Merges what the threads of a row have; all of them get the same bits. threads: a power of two; beyond 32, the block.
template <class S>
__device__ __forceinline__ void merge_threads(ClassSum<S>& classes, int threads) {
#pragma unroll 1
  for (int offset = min(threads, 32) / 2; offset > 0; offset /= 2) {
    S max = __shfl_xor_sync(0xffffffff, classes.max, offset);
    S sum = __shfl_xor_sync(0xffffffff, classes.sum, offset);
    classes.merge(max, sum);
  }
  if (threads <= 32) return;
  __shared__ S maxima[kMaxRowThreads / 32], sums[kMaxRowThreads / 32];
  if (threadIdx.x % 32 == 0) {
    maxima[threadIdx.x / 32] = classes.max;
    sums[threadIdx.x / 32] = classes.sum;
  }
  __syncthreads();  // every warp's part is there; and all of the row's logits were read
  classes = {maxima[0], sums[0]};
#pragma unroll 1
  for (int warp = 1; warp < threads / 32; ++warp) classes.merge(maxima[warp], sums[warp]);
  __syncthreads();  // the parts may be written again
}

// Sum over the threads of a row, in its first.
template <class S>
__device__ __forceinline__ S add_threads(S value, int threads) {
  if (threads > 32) return S(block_sum(double(value)));
#pragma unroll 1
  for (int offset = threads / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
  return value;
}

template <class T, class LossOf>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    softmax_rows(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf>;
  constexpr uint32_t size = Pack<T>::kSize;
  constexpr int batch = 4;           // packs that a thread loads before it uses the first: bytes in flight
  extern __shared__ uint4 shared[];  // [rows of the block, staged_bytes]
  __shared__ uint32_t counters[Softmax::storage_size];
  Softmax softmax(launch, loss_of, counters);
  const SoftmaxParams& params = launch.params;
  const uint32_t C = uint32_t(params.C);  // below 2^31: indices past the end still fit
  const uint32_t threads = launch.schedule.threads_per_row;
  const uint32_t lane = threadIdx.x % threads;
  const uint32_t row_in_block = threadIdx.x / threads;
  const uint32_t rows = blockDim.x / threads;
  const bool staged = launch.schedule.row_bytes > 0;

  int64_t step = int64_t(gridDim.x) * rows;
  // The loop is the block's, not the row's: every thread comes to every shuffle and barrier.
  for (int64_t first = int64_t(blockIdx.x) * rows; first < params.N; first += step) {
    const int64_t position = first + row_in_block;
    const bool exists = position < params.N;
    const Offsets offsets(params.layout, exists ? position : first);
    const T* x = softmax.input() + offsets.input;                       // [C]
    T* g = softmax.writes() ? softmax.grad() + offsets.grad : nullptr;  // [C]
    const int32_t y = exists ? target_of(params, position) : -1;
    // Elements of x and g that are 16 bytes in both.
    const Split<T, uint32_t> split(x, C, !g || same_alignment(x, g));
    const uint32_t packs = y < 0 ? 0 : split.packs;
    const uint32_t scalars = y < 0 ? 0 : split.scalars;
    // A warp takes packs from the start of a 32-byte sector on, else its accesses have half a sector at both ends. Pack
    // -1, where the first is a sector's second half, is none: unsigned, it is past the end.
    const int32_t first_pack = int32_t(lane) - int32_t(reinterpret_cast<uintptr_t>(x + split.head) / 16 % 2);
    // Shifted so that packs are packs in shared memory too. A thread reads there only what it wrote: no barrier.
    T* row = reinterpret_cast<T*>(reinterpret_cast<char*>(shared) + row_in_block * launch.schedule.row_bytes) +
             (size - split.head % size) % size;  // [C]

    S target_logit = y < 0 ? S(0) : to_compute(x[y]);
    ClassSum<S> classes;
    for (int32_t i = first_pack; i < int32_t(packs); i += batch * threads) {
      Pack<T> loaded[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (i + b * threads < packs) loaded[b] = load_pack(x + split.pack(i + b * threads));
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (i + b * threads >= packs) continue;
        if (staged) store_shared_pack(row + split.pack(i + b * threads), loaded[b]);
        S logits[size];
#pragma unroll
        for (uint32_t j = 0; j < size; ++j) logits[j] = to_compute(loaded[b].at[j]);
        classes.add(logits);
      }
    }
    for (uint32_t i = lane; i < scalars; i += threads) {
      T loaded = x[split.scalar(i)];
      if (staged) row[split.scalar(i)] = loaded;
      S logits[1] = {to_compute(loaded)};
      classes.add(logits);
    }
    merge_threads(classes, threads);  // and orders all reads of the row, target_logit's too, before its writes

    if constexpr (Softmax::counts) {
      if (exists && lane == 0) softmax.count(classes, target_logit, y, position);
      continue;
    }
    SoftmaxDecision<S> decision = softmax.decide(classes, target_logit, y);
    S weighted = 0;
    if (softmax.second_pass() && y >= 0) {
      for (int32_t i = first_pack; i < int32_t(packs); i += threads) {
        if (i < 0) continue;
        uint32_t at = split.pack(i);
        Pack<T> pack = staged ? load_shared_pack(row + at) : load_pack(x + at);
#pragma unroll
        for (uint32_t j = 0; j < size; ++j) {
          S shifted = to_compute(pack.at[j]) - classes.max;
          pack.at[j] = to_storage<T>(softmax.gradient(decision, shifted, at + j, weighted));
        }
        if (y - at < size) {  // seldom
#pragma unroll
          for (uint32_t j = 0; j < size; ++j) {
            if (at + j == uint32_t(y)) pack.at[j] = softmax.target_gradient(decision, target_logit);
          }
        }
        if (g) store_pack(g + at, pack);
      }
      for (uint32_t i = lane; i < scalars; i += threads) {
        uint32_t c = split.scalar(i);
        S shifted = to_compute(staged ? row[c] : x[c]) - classes.max;
        S value = softmax.gradient(decision, shifted, c, weighted);
        if (g) g[c] = c == uint32_t(y) ? softmax.target_gradient(decision, target_logit) : to_storage<T>(value);
      }
    } else if (g && exists) {  // ignored: 0, whatever the logits
      Pack<T> zeros{};
      for (int32_t i = first_pack; i < int32_t(split.packs); i += threads) {
        if (i >= 0) store_pack(g + split.pack(i), zeros);
      }
      for (uint32_t i = lane; i < split.scalars; i += threads) g[split.scalar(i)] = zeros.at[0];
    }
    if constexpr (LossOf::smooths) weighted = add_threads(weighted, threads);
    if (exists && lane == 0) softmax.finish(decision, position, weighted);
  }
  softmax.conclude_launch();
}

}  // namespace fastloss
