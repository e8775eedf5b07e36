// Softmax of classes that lie side by side, wherever the rows are: some threads of a warp, or a block, for each row.
//
// A row is read once and kept in shared memory; of one that is too long for it, what does not fit is read again, from
// the end, which the caches still have. A thread reads every logit before it, or any thread after a barrier, writes
// that element of the gradient: the gradient may overwrite the logits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "memory.cuh"
#include "softmax_decision.cuh"

namespace fastloss {

// One of the 2^k lanes that exchange by xor merges what all have; all of them get the same bits.
template <class S>
__device__ __forceinline__ void merge_lanes(ClassSum<S>& classes, int lanes) {
#pragma unroll 1
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    S max = __shfl_xor_sync(0xffffffff, classes.max, offset);
    S sum = __shfl_xor_sync(0xffffffff, classes.sum, offset);
    classes.merge(max, sum);
  }
}

// Merges what the threads of a row have; all of them get the same bits. threads: a power of two; beyond 32, the block.
template <class S>
__device__ __forceinline__ void merge_threads(ClassSum<S>& classes, int threads) {
  merge_lanes(classes, min(threads, 32));
  if (threads <= 32) {
    __syncwarp();  // all of the row's logits were read
    return;
  }
  __shared__ ClassSum<S> of_warp[32];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = classes;
  __syncthreads();  // every warp's part is there; and all of the row's logits were read
  const int lane = threadIdx.x % 32;
  classes = {S(-INFINITY), 0};
  if (lane < threads / 32) classes = of_warp[lane];  // a lane each: shorter than a walk over all
  merge_lanes(classes, 32);
  __syncthreads();  // the parts may be written again
}

// Sum over the threads of a row, in each of them.
template <class S>
__device__ __forceinline__ S add_threads(S value, int threads) {
  if (threads > 32) {
    __shared__ S sum;
    const double of_block = block_sum(double(value));
    if (threadIdx.x == 0) sum = S(of_block);
    __syncthreads();  // it is written; block_sum's barriers come before the next
    return sum;
  }
#pragma unroll 1
  for (int offset = threads / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
  return value;
}

// A thread's packs of a row: every threads-th, the first of them kept in shared memory.
template <class T, int kBatch>  // packs that are loaded before the first is used: bytes in flight
struct RowPacks {
  static constexpr int kSize = Pack<T>::kSize;

  const T* x;      // the row's first pack
  T* kept;         // the same in shared memory
  int packs;       // of the row
  int kept_packs;  // of them, in shared memory
  int threads;     // of the row
  int lane;

  // visit(first, packs_array): pack b of the array is first + b * threads. In order, or from the end.
  template <class Visit>
  __device__ __forceinline__ void read(const Visit& visit) const {
    int i = lane;
    for (int batch = batches(); batch > 0; --batch, i += kBatch * threads) {
      Pack<T> loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) loaded[b] = load_pack(x + (i + b * threads) * kSize);
      if (i < kept_packs) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) keep(i + b * threads, loaded[b]);
      }
      visit(i, loaded);
    }
    for (; i < packs; i += threads) {
      Pack<T> loaded[1] = {load_pack(x + i * kSize)};
      keep(i, loaded[0]);
      visit(i, loaded);
    }
  }

  template <class Visit>
  __device__ __forceinline__ void read_again(const Visit& visit) const {
    int left = max(packs - lane + threads - 1, 0) >> (31 - __clz(threads));  // of this thread's packs
    for (const int in_batches = batches() * kBatch; left > in_batches; --left) {
      int i = lane + (left - 1) * threads;
      Pack<T> loaded[1] = {again(i)};
      visit(i, loaded);
    }
    for (; left > 0; left -= kBatch) {
      int i = lane + (left - kBatch) * threads;
      Pack<T> loaded[kBatch];
      if (i + (kBatch - 1) * threads < kept_packs) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) loaded[b] = load_shared_pack(kept + (i + b * threads) * kSize);
      } else {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) loaded[b] = again(i + b * threads);
      }
      visit(i, loaded);
    }
  }

 private:
  // Two lanes that share a 32-byte sector have as many: they access it together.
  __device__ __forceinline__ int batches() const {
    return max(packs - (lane | 1) + threads - 1, 0) >> (31 - __clz(kBatch * threads));  // a power of two
  }
  __device__ __forceinline__ void keep(int i, const Pack<T>& pack) const {
    if (i < kept_packs) store_shared_pack(kept + i * kSize, pack);
  }
  __device__ __forceinline__ Pack<T> again(int i) const {
    return i < kept_packs ? load_shared_pack(kept + i * kSize) : load_pack(x + i * kSize);
  }
};

template <class T, class LossOf>
__global__ void __launch_bounds__(max_row_threads(sizeof(T), LossOf::mixes), 1)
    softmax_rows(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf>;
  constexpr int size = Pack<T>::kSize;
  extern __shared__ uint4 shared[];  // [rows of the block, row_bytes]; a thread reads only what it wrote there
  __shared__ uint32_t counters[Softmax::storage_size];
  Softmax softmax(launch, loss_of, counters);
  const SoftmaxParams& params = launch.params;
  const int C = int(params.C);
  const int threads = launch.schedule.threads_per_row;
  const int lane = threadIdx.x % threads;
  const int row_in_block = threadIdx.x / threads;
  const int rows = blockDim.x / threads;
  T* kept = reinterpret_cast<T*>(reinterpret_cast<char*>(shared) + row_in_block * launch.schedule.row_bytes);

  int64_t step = int64_t(gridDim.x) * rows;
  // The loop is the block's, not the row's: every thread comes to every shuffle and barrier.
  for (int64_t first = int64_t(blockIdx.x) * rows; first < params.N; first += step) {
    const int64_t position = first + row_in_block;
    const bool exists = position < params.N;
    const int64_t target = Softmax::probabilities ? (exists ? 0 : -1)
                           : exists               ? load_target(params, position)
                                                  : params.ignore_index;
    const Offsets offsets(params.layout, exists ? position : first);
    const T* x = softmax.input() + offsets.input;                       // [C]
    T* g = softmax.writes() ? softmax.grad() + offsets.grad : nullptr;  // [C]
    const int32_t y = Softmax::probabilities ? int32_t(target) : class_of(params, target);
    // Elements of x and g that are 16 bytes in both, from the start of a 32-byte sector on.
    const Split<T, int> split(!g || same_alignment(x, g) ? elements_before_sector(x) : C, C);
    const int used = y < 0 ? 0 : C;  // an ignored row's logits are not read
    RowPacks<T, LossOf::extended ? 2 : 4> row{
        x + split.head, kept, min(split.packs, used), launch.schedule.row_bytes / kPackBytes, threads, lane};
    const int scalars = min(split.scalars, used);

    S target_logit = y < 0 ? S(0) : to_compute(x[y]);
    // Whether class probabilities are read in packs, as the logits are.
    const bool whole = softmax.reads_like_input() && same_alignment(softmax.soft_target() + offsets.grad, x);
    ClassSum<S> classes;
    S terms = 0;
    row.read([&](int i, const auto& loaded) {
      constexpr int batch = sizeof(loaded) / sizeof(Pack<T>);
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        S logits[size];
#pragma unroll
        for (int j = 0; j < size; ++j) logits[j] = softmax.logit(loaded[b].at[j]);
        classes.add(logits);
        if constexpr (Softmax::probabilities) {
          const int c = split.pack(i + b * threads);
          S term[size];
          softmax.terms(c, 1, offsets.grad + c, whole, term);
#pragma unroll
          for (int j = 0; j < size; ++j) terms += term[j];
        }
      }
    });
#pragma unroll 1
    for (int i = lane; i < scalars; i += threads) {
      const int c = split.scalar(i);
      S logits[1] = {softmax.logit(x[c])};
      classes.add(logits);
      if constexpr (Softmax::probabilities) terms += softmax.term(c, offsets.grad + c);
    }
    merge_threads(classes, threads);  // and orders all reads of the row, target_logit's too, before its writes
    if constexpr (Softmax::probabilities) terms = add_threads(terms, threads);

    if constexpr (Softmax::counts) {
      if (exists && lane == 0) softmax.count(classes, target_logit, y, position);
      continue;
    }
    SoftmaxDecision<S> decision = softmax.decide(classes, softmax.logit_of(target_logit), y, position, terms);
    S weighted = 0;
    if (softmax.second_pass() && y >= 0) {
      row.read_again([&](int i, auto& loaded) {
        constexpr int batch = sizeof(loaded) / sizeof(Pack<T>);
#pragma unroll
        for (int b = 0; b < batch; ++b) {
          const int c = split.pack(i + b * threads);
          S term[size];
          softmax.terms(c, 1, offsets.grad + c, whole, term);
#pragma unroll
          for (int j = 0; j < size; ++j) {
            const S element = to_compute(loaded[b].at[j]);
            const S shifted = softmax.logit_of(element) - classes.max;
            if constexpr (Softmax::mixes) weighted += term[j] * shifted;
            loaded[b].at[j] = to_storage<T>(softmax.gradient(decision.gradient, exp_nonpositive(shifted), element,
                                                             term[j] * decision.gradient_share));
          }
        }
        if (!g) return;
#pragma unroll
        for (int b = 0; b < batch; ++b) store_pack(g + split.pack(i + b * threads), loaded[b]);
      });
      // The thread that wrote the target's pack writes the target again, with its onehot.
      const int in_packs = y - split.head;
      const bool wrote_target = in_packs >= 0 && in_packs / size < split.packs && in_packs / size % threads == lane;
      if (!Softmax::probabilities && g && wrote_target) {
        g[y] = softmax.target_gradient(decision, target_logit, softmax.term(y, offsets.grad + y));
      }
#pragma unroll 1
      for (int i = lane; i < scalars; i += threads) {
        const int c = split.scalar(i);
        const S element = to_compute(x[c]);
        const S shifted = softmax.logit_of(element) - classes.max;
        const S term = softmax.term(c, offsets.grad + c);
        if constexpr (Softmax::mixes) weighted += term * shifted;
        const S value = softmax.gradient(decision.gradient, exp_nonpositive(shifted), element,
                                         term * decision.gradient_share, c == y);
        if (g) g[c] = to_storage<T>(value);
      }
    } else if (g && exists) {  // ignored: 0, whatever the logits
      Pack<T> zeros{};
      for (int i = lane; i < split.packs; i += threads) store_pack(g + split.pack(i), zeros);
#pragma unroll 1
      for (int i = lane; i < split.scalars; i += threads) g[split.scalar(i)] = zeros.at[0];
    }
    if constexpr (LossOf::mixes) weighted = add_threads(weighted, threads);
    if (exists && lane == 0) softmax.finish(decision, position, weighted);
  }
  softmax.conclude_launch();
}

}  // namespace fastloss
