// Softmax of few classes in contiguous rows: a thread a row, which it holds in registers.
//
// A warp takes 32 rows at a time through its own part of shared memory, where the next rows arrive while it computes:
// no thread waits for another warp. The logits are read once and the gradient is written once, both 16 bytes at a time,
// and each logit has one exponential; an extended loss leaves its row in shared memory, and has two. A warp reads all
// logits of its rows before it writes their gradient: the gradient may overwrite the logits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "memory.cuh"
#include "softmax_decision.cuh"

namespace fastloss {

// A lane meets its classes in the order i ^ class_swizzle, so that the 32 rows of a warp are in 32 banks: rows that
// share banks are gcd(row length in banks, banks) in number, a power of two that divides the row's length.
template <class T>
__device__ __forceinline__ int class_swizzle(int lane, int C) {
  constexpr int bank_bytes = sizeof(T) < 4 ? 4 : sizeof(T);  // 8-byte elements are read by half a warp at a time
  constexpr int banks = 128 / bank_bytes;
  int row_bytes = C * int(sizeof(T));
  if (row_bytes % bank_bytes != 0) return 0;  // an odd number of halves
  int stride = row_bytes / bank_bytes;
  int shared_by = min(stride & -stride, banks);
  return lane % banks * shared_by / banks * (bank_bytes / int(sizeof(T)));
}

// How the lanes of a warp share its rows, count elements: 16 bytes at a time where they can be. before:
// elements_before_pack, the same for every tile; or count, and all are scalars. A lane's pointers are to its first
// pack.
template <class T, int kClasses>
struct WarpRows {
  static constexpr int kPacksOfLane = (kClasses * int(sizeof(T)) + kPackBytes - 1) / kPackBytes;
  static constexpr int kElements = 32 * Pack<T>::kSize;  // that the lanes move at a time

  static __device__ __forceinline__ int first_pack(int before) {
    return before + int(threadIdx.x % 32) * Pack<T>::kSize;
  }

  // Starts the copy to shared memory that is aligned like x.
  static __device__ __forceinline__ void load(T* tile, const T* x, int before, int count) {
    const Split<T, int> split(before, count);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < kPacksOfLane; ++b) {
      if (lane + b * 32 < split.packs) copy_pack(tile + b * kElements, x + b * kElements);
    }
#pragma unroll 1
    for (int i = lane; i < split.scalars; i += 32) {
      const int at = split.scalar(i) - first_pack(before);
      tile[at] = x[at];
    }
  }

  static __device__ __forceinline__ void store(T* g, const T* tile, int before, bool aligned_alike, int count) {
    const Split<T, int> split(aligned_alike ? before : count, count);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < kPacksOfLane; ++b) {
      if (lane + b * 32 < split.packs) store_pack(g + b * kElements, load_shared_pack(tile + b * kElements));
    }
#pragma unroll 1
    for (int i = lane; i < split.scalars; i += 32) {
      const int at = split.scalar(i) - first_pack(before);
      g[at] = tile[at];
    }
  }
};

// kClasses: C, rounded up to a bucket; kFewest: more than those of the bucket below.
template <class T, class LossOf, int kClasses, int kFewest>
__global__ void __launch_bounds__(tile_threads(sizeof(T)), 1)
    softmax_tile(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf>;
  using Rows = WarpRows<T, kClasses>;
  constexpr int warps = tile_threads(sizeof(T)) / 32;
  extern __shared__ uint4 shared[];  // [warps, 2, tile_bytes]
  __shared__ uint32_t counters[Softmax::storage_size];
  const SoftmaxParams& params = launch.params;
  const int C = int(params.C), lane = threadIdx.x % 32;
  const int swizzle = class_swizzle<T>(lane, C);
  const T* input = static_cast<const T*>(params.input);  // [N, C]
  const int before = elements_before_pack(input);        // of every 32 rows: they are a multiple of 16 bytes
  // Aligned like the logits, so that packs are packs in shared memory too.
  T* const tiles =
      reinterpret_cast<T*>(reinterpret_cast<char*>(shared) + threadIdx.x / 32 * 2 * launch.schedule.tile_bytes +
                           (reinterpret_cast<uintptr_t>(input) & 15));  // [2, tile_elements]
  const int tile_elements = launch.schedule.tile_bytes / int(sizeof(T));

  const int64_t step = int64_t(gridDim.x) * warps * 32;
  int64_t next = (int64_t(blockIdx.x) * warps + threadIdx.x / 32) * 32;  // row that the next tile begins with
  const int first_pack = Rows::first_pack(before);
  const T* next_input = input + next * C + first_pack;
  int next_rows, buffer = 0;
  int64_t next_target = 0;
  auto fetch = [&] {
    const int64_t left = params.N - next;
    next_rows = left >= 32 ? 32 : max(int(left), 0);
    Rows::load(tiles + buffer * tile_elements + first_pack, next_input, before, next_rows * C);
    commit_copies();
    if constexpr (!Softmax::probabilities) {
      next_target = lane < next_rows ? load_target(params, next + lane) : params.ignore_index;
    }
  };
  fetch();
  Softmax softmax(launch, loss_of, counters);  // while the first rows arrive
  T* grad = softmax.grad() + next * C + first_pack;
  const bool writes = softmax.writes();
  const bool aligned_alike = same_alignment(softmax.grad(), input);

  while (next_rows > 0) {
    const int64_t first = next;
    const int rows = next_rows;
    const int32_t y = Softmax::probabilities ? 0 : class_of(params, next_target);
    T* const tile = tiles + buffer * tile_elements;  // [rows, C]
    next += step;
    next_input += step * C;
    buffer ^= 1;
    fetch();
    wait_for_copies<1>();  // all but those of the next rows
    __syncwarp();          // the other lanes' too

    if (lane < rows) {
      T* const row = tile + lane * C;  // [C]
      const S target_element = y < 0 ? S(0) : to_compute(row[y]);
      const S target_logit = softmax.logit_of(target_element);
      const int64_t of_row = (first + lane) * C;  // where its first class lies in every tensor
      auto term_of = [&](int c) { return softmax.term(c, of_row + c); };
      auto store_target = [&](const SoftmaxDecision<S>& decision) {
        if (!Softmax::probabilities) row[y] = softmax.target_gradient(decision, target_element, term_of(y));
      };
      if constexpr (LossOf::extended) {
        ClassSum<S> classes;
        S weighted = 0, terms = 0;
#pragma unroll 4
        for (int i = 0; i < C; ++i) classes.max = fmax(classes.max, softmax.logit(row[i ^ swizzle]));
        const S reference = ClassSum<S>::finite(classes.max);
#pragma unroll 4
        for (int i = 0; i < C; ++i) {
          const S shifted = softmax.logit(row[i ^ swizzle]) - reference, term = term_of(i ^ swizzle);
          classes.sum += exp_nonpositive(shifted);
          weighted += term * shifted;
          terms += term;
        }
        const SoftmaxDecision<S> decision = softmax.decide(classes, target_logit, y, first + lane, terms);
        softmax.finish(decision, first + lane, weighted);
        if (writes && y >= 0) {
#pragma unroll 4
          for (int i = 0; i < C; ++i) {
            T& at = row[i ^ swizzle];
            const S element = to_compute(at), e = exp_nonpositive(softmax.logit_of(element) - reference);
            at = to_storage<T>(
                softmax.gradient(decision.gradient, e, element, term_of(i ^ swizzle) * decision.gradient_share));
          }
          store_target(decision);
        }
      } else {
        // Class i ^ swizzle is at class_group[i % group] + i / group * group.
        constexpr int group = kClasses & -kClasses;
        T* class_group[group];
#pragma unroll
        for (int i = 0; i < group; ++i) class_group[i] = row + (i ^ swizzle);
        auto at = [&](int i) -> T& { return class_group[i % group][i / group * group]; };
        auto exists = [&](int i) { return i < kFewest || i < C; };

        S x[kClasses];  // logits, then exp(x_k - max)
        ClassSum<S> classes;
#pragma unroll
        for (int i = 0; i < kClasses; ++i) {
          x[i] = exists(i) ? to_compute(at(i)) : S(-INFINITY);
          classes.max = fmax(classes.max, x[i]);  // a nan comes in by its exponential
        }
        const S reference = ClassSum<S>::finite(classes.max);
        S weighted = 0;
#pragma unroll
        for (int i = 0; i < kClasses; ++i) {
          S shifted = x[i] - reference;
          if (Softmax::mixes && exists(i)) weighted += term_of(i ^ swizzle) * shifted;
          x[i] = exp_nonpositive(shifted);
          classes.sum += x[i];
        }
        if constexpr (Softmax::counts) {
          softmax.count(classes, target_logit, y, first + lane);
        } else {
          const SoftmaxDecision<S> decision = softmax.decide(classes, target_logit, y, first + lane, 0);
          softmax.finish(decision, first + lane, weighted);
          if (writes && y >= 0) {
#pragma unroll
            for (int i = 0; i < kClasses; ++i) {
              if (!exists(i)) continue;
              at(i) = to_storage<T>(
                  softmax.gradient(decision.gradient, x[i], 0, term_of(i ^ swizzle) * decision.gradient_share));
            }
            store_target(decision);
          }
        }
      }
      if (writes && y < 0) {  // ignored: 0, whatever the logits
#pragma unroll 1
        for (int c = 0; c < C; ++c) row[c] = to_storage<T>(S(0));
      }
    }
    __syncwarp();  // the gradient is in the tile, or no row is read any more
    if (writes) {
      Rows::store(grad, tile + first_pack, before, aligned_alike, rows * C);
      grad += step * C;
      __syncwarp();  // the tile is written out before other rows come
    }
  }
  softmax.conclude_launch();
}

}  // namespace fastloss
