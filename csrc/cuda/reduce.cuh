// Sums over the grid that are the same bits from run to run, and the scratch memory that the launches of a call share.
//
// Each block adds its own in a fixed order, and the block that finishes last adds the blocks' sums in a fixed order.
// The only atomics are on integers, whose order does not matter.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../losses/row.h"
#include "schedule.h"

namespace fastloss {

// In the caller's workspace, uninitialised at first. The histogram, counts [bins], follows it, from the start of a
// 32-byte sector.
struct alignas(32) Scratch {
  double loss[kMaxBlocks];              // of each block
  double denominator[kMaxCountBlocks];  // of a mean: a part of each block of count_targets; GHM-C: one, the decisions
  double largest_sample_weight[kMaxCountBlocks];  // likewise
  double class_weights;                           // sum_k w_k
  double largest_weight;                          // max_k |w_k|; GHM-C: max beta
  uint32_t loss_ticket;
  uint32_t histogram_ticket;

  // Atomics have no signed 64-bit addition; counts are never negative. 64 bits: there may be 2^32 decisions.
  __host__ __device__ unsigned long long* counts() { return reinterpret_cast<unsigned long long*>(this + 1); }
};

// Of device memory, aligned to 32 bytes; its contents do not matter.
inline size_t workspace_bytes(int32_t bins) { return sizeof(Scratch) + size_t(bins) * sizeof(unsigned long long); }

// Zeroes tickets and histogram.
inline cudaError_t reset_scratch(Scratch* scratch, int32_t bins, cudaStream_t stream) {
  size_t before = offsetof(Scratch, loss_ticket);  // the tickets come last, then the counts
  return cudaMemsetAsync(reinterpret_cast<char*>(scratch) + before, 0, workspace_bytes(bins) - before, stream);
}

// Every thread's value combined, in thread 0 (the others get rubbish). Called by all threads of the block, a whole
// number of warps. Not inlined, here and below: once or twice a block, and the library's size is counted in kernels.
template <class Combine>
__device__ __noinline__ double block_combine(double value, const Combine& combine) {
  __shared__ double warp_values[32];
#pragma unroll 1
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_down_sync(0xffffffff, value, offset));
  if (threadIdx.x % 32 == 0) warp_values[threadIdx.x / 32] = value;
  __syncthreads();  // warp_values is complete
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int warp = 1; warp < int(blockDim.x) / 32; ++warp) value = combine(value, warp_values[warp]);
  }
  __syncthreads();  // warp_values may be written again
  return value;
}

// In double: thousands of losses are added, and it holds integers up to 2^53 exactly.
struct Add {
  __device__ double operator()(double a, double b) const { return a + b; }
};
struct Larger {
  __device__ double operator()(double a, double b) const { return max(a, b); }
};
__device__ __forceinline__ double block_sum(double value) { return block_combine(value, Add{}); }
__device__ __forceinline__ double block_max(double value) { return block_combine(value, Larger{}); }

// Whether this block is the last of the grid to come here; if so, it sees what the others wrote before.
__device__ __noinline__ inline bool is_last_block(uint32_t* ticket) {
  __shared__ bool last;
  __syncthreads();  // every thread has written
  if (threadIdx.x == 0) {
    uint32_t before;
    // Releases what the block wrote, by way of the barrier, and acquires what the others did: one fence a block. An
    // integer: who is last may differ, no sum does.
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(ticket))
                 : "memory");
    last = before == gridDim.x - 1;
  }
  __syncthreads();  // last is written, and no thread reads before the ticket
  return last;
}

// A thread's part of the sum of partials [count], in a fixed order: every step-th from first on. Past the L1 cache:
// other blocks wrote them.
__device__ __forceinline__ double strided_sum(const double* partials, int count, int first, int step) {
  constexpr int batch = 8;  // loads in flight: the GPU waits for this
  double sum = 0;
#pragma unroll 1
  for (; first < count; first += batch * step) {
    double part[batch];
#pragma unroll
    for (int b = 0; b < batch; ++b) part[b] = first + b * step < count ? __ldcg(partials + first + b * step) : 0.0;
#pragma unroll
    for (int b = 0; b < batch; ++b) sum += part[b];
  }
  return sum;
}

// The power of two that float16 gradients of up to `bound` are stored times. Called by every thread; one writes it.
__device__ __forceinline__ double write_stored_scale(float* stored_scale, double bound) {
  double scale = float16_scale(bound);
  if (blockIdx.x == 0 && threadIdx.x == 0) *stored_scale = float(scale);
  return scale;
}

// Adds the threads' losses over the grid and writes loss [1], divided by thread 0's denominator. Called once by every
// thread.
template <class S>
__device__ void reduce_loss(double value, double denominator, Scratch* scratch, S* loss) {
  double sum = block_sum(value);
  if (threadIdx.x == 0) scratch->loss[blockIdx.x] = sum;
  if (!is_last_block(&scratch->loss_ticket)) return;
  sum = block_sum(strided_sum(scratch->loss, gridDim.x, threadIdx.x, blockDim.x));
  if (threadIdx.x == 0) *loss = S(sum / denominator);
}

}  // namespace fastloss
