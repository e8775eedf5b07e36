// What the CUDA kernels share: storage types and 16-byte accesses, ordered sums, histograms, and the scratch memory
// through which the launches of one call talk to each other.
//
// Kernels are templates over plain pointers and structs; launchers are host functions of (params, workspace, stream)
// that return a cudaError_t and never synchronise. No torch here, so that all of it also runs in an emulator.
//
// Sums are the same bits from run to run: each block adds its own in a fixed order, and the block that finishes last
// adds the blocks' sums in a fixed order. The only atomics are on integers, whose order does not matter.
//
// The entry points:
//   softmax_launch.cuh  size_t softmax_workspace_bytes(const SoftmaxParams&)
//                       cudaError_t launch_softmax_loss(const SoftmaxParams&, void* workspace, cudaStream_t)
//                       cudaError_t launch_softmax_histogram(const SoftmaxParams&, int64_t* counts, void* workspace,
//                                                            cudaStream_t)
//   scale_gradient.cuh  cudaError_t launch_scale_gradient(const ScaleParams&, cudaStream_t)
//                       the gradient in place times grad_output, a number on the device or one for each decision
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../losses.h"
#include "../params.h"

namespace fastloss {

// ---- storage (T) and computation (Compute<T>)

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

__device__ __forceinline__ float to_compute(float x) { return x; }
__device__ __forceinline__ double to_compute(double x) { return x; }
__device__ __forceinline__ float to_compute(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_compute(__half x) { return __half2float(x); }

// Rounds to nearest even, once.
template <class T>
__device__ __forceinline__ T to_storage(Compute<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// 16 bytes of elements: one load or store of a thread.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

template <class T>
__device__ __forceinline__ Pack<T> pack_of(uint4 raw) {
  Pack<T> pack;
  memcpy(&pack, &raw, 16);
  return pack;
}

template <class T>
__device__ __forceinline__ uint4 bits_of(const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, 16);
  return raw;
}

// Accesses of 16 aligned bytes. In PTX, because the compiler splits some of them where they are written in C++. Global
// loads do not take the read-only path: the gradient may be the input.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* global) {
  uint4 raw;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
               : "l"(__cvta_generic_to_global(global))
               : "memory");
  return pack_of<T>(raw);
}

template <class T>
__device__ __forceinline__ void store_pack(T* global, const Pack<T>& pack) {
  uint4 raw = bits_of(pack);
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)), "r"(raw.x),
               "r"(raw.y), "r"(raw.z), "r"(raw.w)
               : "memory");
}

template <class T>
__device__ __forceinline__ Pack<T> load_shared_pack(const T* shared) {
  uint4 raw;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
               : "r"(uint32_t(__cvta_generic_to_shared(shared)))
               : "memory");
  return pack_of<T>(raw);
}

template <class T>
__device__ __forceinline__ void store_shared_pack(T* shared, const Pack<T>& pack) {
  uint4 raw = bits_of(pack);
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(uint32_t(__cvta_generic_to_shared(shared))), "r"(raw.x),
               "r"(raw.y), "r"(raw.z), "r"(raw.w)
               : "memory");
}

__device__ __forceinline__ bool same_alignment(const void* a, const void* b) {
  return ((reinterpret_cast<uintptr_t>(a) ^ reinterpret_cast<uintptr_t>(b)) & 15) == 0;
}

// Cuts elements [0, count) at `at` into aligned 16-byte packs and the elements before and after them:
//   for (i < packs) access pack(i) .. pack(i) + Pack<T>::kSize - 1;  for (i < scalars) access scalar(i)
// Without `vectorize` all are scalars: for two buffers that are not aligned alike.
template <class T, class Index>
struct Split {
  Index head, packs, scalars;

  __device__ Split(const T* at, Index count, bool vectorize) {
    constexpr Index size = Pack<T>::kSize;
    Index before = Index((16 - (reinterpret_cast<uintptr_t>(at) & 15)) % 16 / sizeof(T));
    head = vectorize ? (before < count ? before : count) : count;
    packs = (count - head) / size;
    scalars = count - packs * size;
  }
  __device__ Index pack(Index i) const { return head + i * Pack<T>::kSize; }
  __device__ Index scalar(Index i) const { return i < head ? i : i + packs * Pack<T>::kSize; }
};

// Offsets of a decision's first class.
struct Offsets {
  int64_t input = 0, grad = 0;  // 64 bits: tensors of more than 2^31 elements

  __device__ Offsets(const Layout& layout, int64_t position) {
#pragma unroll 1  // 64-bit divisions are long
    for (int d = layout.ndim - 1; d > 0; --d) {
      int64_t index = position % layout.size[d];
      position /= layout.size[d];
      input += index * layout.stride[d];
      grad += index * layout.grad_stride[d];
    }
    input += position * layout.stride[0];
    grad += position * layout.grad_stride[0];
  }
};

// ---- mathematics that losses.h leaves to the device

// 1 - p for p = exp(-nll), without the cancellation at p near 1.
template <class S>
__device__ __forceinline__ S one_minus_p(S nll) {
  return -expm1(-nll);
}

// GHM-C's beta of each bin. Every decision looks one up, so each block stages them in shared memory.
template <class S>
struct BinWeights {
  static constexpr int32_t kMaxStaged = 32;  // a bank for each; of more bins, beta is looked up in global memory

  const double* global;  // [bins]
  int32_t bins;

  // Called by all threads of a block, kMaxStaged or more, before any look-up.
  __device__ void stage() const {
    if (bins > kMaxStaged) return;
    if (int32_t(threadIdx.x) < bins) staged()[threadIdx.x] = S(global[threadIdx.x]);
    __syncthreads();  // staged before they are looked up
  }

  __device__ S of(S gradient_norm) const {
    int32_t bin = ghm_bin(gradient_norm, bins);
    return bins <= kMaxStaged ? staged()[bin] : S(global[bin]);
  }

 private:
  static __device__ S* staged() {
    __shared__ S weights[kMaxStaged];
    return weights;
  }
};

template <class S>
struct GhmcLoss {
  BinWeights<S> bin_weights;
  __device__ void stage() const { bin_weights.stage(); }
  __device__ ValueSlope<S> operator()(S nll, S /*p*/, S q) const {
    S beta = bin_weights.of(q);
    return {beta * nll, beta};
  }
};

// What a loss keeps in shared memory, if anything. Called by all threads of a block before its first decision.
template <class LossOf>
__device__ __forceinline__ void stage_loss(const LossOf& loss_of) {
  if constexpr (requires { loss_of.stage(); }) loss_of.stage();
}

// ---- scratch memory

// Grids are capped, so that there is a bound on the partial sums; blocks then loop. The caps do not depend on the GPU:
// nor do the sums. Tests lower the first, so that small batches loop too.
#ifndef FASTLOSS_MAX_BLOCKS
#define FASTLOSS_MAX_BLOCKS 8192
#endif
constexpr int kMaxBlocks = FASTLOSS_MAX_BLOCKS;
constexpr int kMaxCountBlocks = 256;

// In the caller's workspace, uninitialised at first. The histogram, counts [bins], follows it, from the start of a
// 32-byte sector.
struct alignas(32) Scratch {
  double loss[kMaxBlocks];              // of each block
  double denominator[kMaxCountBlocks];  // of a mean: a part of each block of count_targets; GHM-C: one, the decisions
  double class_weights;                 // sum_k w_k
  uint32_t loss_ticket;
  uint32_t histogram_ticket;

  // Atomics have no signed 64-bit addition; counts are never negative. 64 bits: there may be 2^32 decisions.
  __host__ __device__ unsigned long long* counts() { return reinterpret_cast<unsigned long long*>(this + 1); }
};

inline size_t scratch_bytes(int32_t bins) { return sizeof(Scratch) + size_t(bins) * sizeof(unsigned long long); }

// Zeroes tickets and histogram.
inline cudaError_t reset_scratch(Scratch* scratch, int32_t bins, cudaStream_t stream) {
  size_t before = offsetof(Scratch, loss_ticket);  // the tickets come last, then the counts
  return cudaMemsetAsync(reinterpret_cast<char*>(scratch) + before, 0, scratch_bytes(bins) - before, stream);
}

// ---- ordered sums

// Sum over a warp, in its first lane. In double: thousands of losses are added, and it holds integers up to 2^53
// exactly.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll 1
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffff, value, offset);
  return value;
}

// Sum of every thread's value, in thread 0 (the others get rubbish). Called by all threads of the block, a whole number
// of warps. Not inlined, here and below: once or twice a block, and the library's size is counted in kernels.
__device__ __noinline__ inline double block_sum(double value) {
  __shared__ double warp_sums[32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();  // warp_sums is complete
  if (threadIdx.x == 0) {
    value = 0;
#pragma unroll 1
    for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) value += warp_sums[warp];
  }
  __syncthreads();  // warp_sums may be written again
  return value;
}

// Whether this block is the last of the grid to come here; if so, it sees what the others wrote before.
__device__ __noinline__ inline bool is_last_block(uint32_t* ticket) {
  __shared__ bool last;
  __threadfence();  // what this thread wrote is visible before the ticket is
  __syncthreads();  // every thread has fenced
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;  // integer: who is last may differ, no sum does
  __syncthreads();                                                      // last is written
  if (last) __threadfence();                                            // reads after the ticket
  return last;
}

// Adds partials [count] in a fixed order; the sum is in thread 0. Past the L1 cache: other blocks wrote them.
__device__ __noinline__ inline double ordered_sum(const double* partials, int count) {
  double sum = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += __ldcg(partials + i);
  return block_sum(sum);
}

// Adds the threads' losses over the grid and writes loss [1], divided by thread 0's denominator. Called once by every
// thread.
template <class S>
__device__ void reduce_loss(double value, double denominator, Scratch* scratch, S* loss) {
  double sum = block_sum(value);
  if (threadIdx.x == 0) scratch->loss[blockIdx.x] = sum;
  if (!is_last_block(&scratch->loss_ticket)) return;
  sum = ordered_sum(scratch->loss, gridDim.x);
  if (threadIdx.x == 0) *loss = S(sum / denominator);
}

// ---- histograms

// Counts in shared memory, then adds the block's counts to the scratch's. Few bins are kept in up to 32 copies, one for
// each lane: most decisions fall into the same bin, and lanes that hit one address wait for each other.
struct BlockHistogram {
  static constexpr int kEntries = 2048;

  uint32_t* shared;            // [bins, copies]; 32 bits: a block never sees 2^32 decisions between two flushes
  unsigned long long* counts;  // [bins]
  int32_t bins;
  int32_t copies;  // a power of two; 0: too many bins, counted in global memory

  // storage: shared memory of kEntries. Called by all threads, as is flush.
  __device__ BlockHistogram(uint32_t* storage, Scratch* scratch, int32_t num_bins)
      : shared(storage), counts(scratch->counts()), bins(num_bins), copies(32) {
    while (bins * copies > kEntries) copies /= 2;
    for (int i = threadIdx.x; i < bins * copies; i += blockDim.x) shared[i] = 0;
    __syncthreads();  // zeroed before anything is added
  }

  __device__ void add(int32_t bin) const {
    if (copies > 0) {
      atomicAdd(shared + bin * copies + (threadIdx.x & (copies - 1)), 1u);
    } else {
      atomicAdd(counts + bin, 1ull);
    }
  }

  __device__ void flush() const {
    __syncthreads();  // everything is added
    for (int b = threadIdx.x; copies > 0 && b < bins; b += blockDim.x) {
      uint32_t sum = 0;
      for (int copy = 0; copy < copies; ++copy) sum += shared[b * copies + copy];
      if (sum > 0) atomicAdd(counts + b, (unsigned long long)sum);
    }
  }
};

// beta of every bin and the running statistics, from the counts of the whole grid. Called by all threads of the block
// that is_last_block(&scratch->histogram_ticket). Not inlined: once a call, and pow in double is long.
__device__ __noinline__ inline void finish_histogram(const GhmState& state, Scratch* scratch, double* bin_weight) {
  __shared__ double shared_total, shared_nonempty;
  double total = 0, nonempty = 0;
  for (int b = threadIdx.x; b < state.bins; b += blockDim.x) {
    unsigned long long count = __ldcg(scratch->counts() + b);
    total += double(count);
    nonempty += count > 0;
  }
  total = block_sum(total);
  nonempty = block_sum(nonempty);
  if (threadIdx.x == 0) {
    shared_total = scratch->denominator[0] = total;
    shared_nonempty = nonempty;
  }
  __syncthreads();  // the totals are written
  for (int b = threadIdx.x; b < state.bins; b += blockDim.x) {
    bin_weight[b] = ghm_bin_weight(state, b, int64_t(__ldcg(scratch->counts() + b)), int64_t(shared_total),
                                   int32_t(shared_nonempty));
  }
}

// ---- launching

// What any kernel may have; more is asked for with cudaFuncSetAttribute.
constexpr int kDefaultSharedBytes = 48 * 1024 - 1024;

// Calls f with a value of the storage type.
template <class F>
cudaError_t with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::float64:
      return f(double{});
    case DType::bfloat16:
      return f(__nv_bfloat16{});
    case DType::float16:
      return f(__half{});
  }
  return cudaErrorInvalidValue;
}

// Blocks for `work` items at `per_block` each: at least one, so that an empty batch still has its loss written.
inline int num_blocks(int64_t work, int64_t per_block, int max_blocks) {
  return int(std::clamp<int64_t>((work + per_block - 1) / per_block, 1, max_blocks));
}

}  // namespace fastloss
