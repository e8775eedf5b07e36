// GHM-C's histogram of gradient norms: counted by blocks, turned into beta by the last of them, looked up per decision.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../losses/table.h"
#include "reduce.cuh"

namespace fastloss {

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

// beta of every bin and the running statistics, from counts [bins]. Called by all threads of one block; the loss's
// launch comes after. Not inlined: once a call, and pow in double is long.
__device__ __noinline__ inline void finish_histogram(const GhmState& state, const unsigned long long* counts,
                                                     Scratch* scratch, double* bin_weight) {
  __shared__ double shared_total, shared_nonempty;
  double total = 0, nonempty = 0;
  for (int b = threadIdx.x; b < state.bins; b += blockDim.x) {
    unsigned long long count = __ldcg(counts + b);  // not from L1: other blocks added
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
  double largest = 0;
  for (int b = threadIdx.x; b < state.bins; b += blockDim.x) {
    double beta =
        ghm_bin_weight(state, b, int64_t(__ldcg(counts + b)), int64_t(shared_total), int32_t(shared_nonempty));
    bin_weight[b] = beta;
    largest = max(largest, beta);
  }
  largest = block_max(largest);
  if (threadIdx.x == 0) scratch->largest_weight = largest;
}

// The end of a pass that counts, by all threads of a block: the last block of the grid hands the counts out, or turns
// them into GHM-C's weights.
__device__ __forceinline__ void conclude_histogram(const BlockHistogram& histogram, const GhmState& state,
                                                   const GradientNorms& norms, Scratch* scratch, double* bin_weight) {
  histogram.flush();
  if (!is_last_block(&scratch->histogram_ticket)) return;
  if (!norms.counts) return finish_histogram(state, scratch->counts(), scratch, bin_weight);
  for (int b = threadIdx.x; b < state.bins; b += blockDim.x) {
    norms.counts[b] = int64_t(__ldcg(scratch->counts() + b));  // not from L1: other blocks added
  }
}

// GHM-C's weights from counts that the caller has, in the place of a pass that counts.
static __global__ void __launch_bounds__(kCountThreads)
    weigh_bins(const __grid_constant__ GhmState state, const int64_t* counts, Scratch* scratch, double* bin_weight) {
  finish_histogram(state, reinterpret_cast<const unsigned long long*>(counts), scratch, bin_weight);
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

  __device__ S operator()(S gradient_norm) const {
    int32_t bin = ghm_bin(gradient_norm, bins);
    return bins <= kMaxStaged ? staged()[bin] : S(global[bin]);
  }

 private:
  static __device__ S* staged() {
    __shared__ S weights[kMaxStaged];
    return weights;
  }
};

// What a loss keeps in shared memory, if anything. Called by all threads of a block before its first decision.
template <class LossOf>
__device__ __forceinline__ void stage_loss(const LossOf& loss_of) {
  if constexpr (requires { loss_of.bin_weights; }) loss_of.bin_weights.stage();
}

// Calls with(functor) for the loss of a call.
template <class S, class Params, class With>
auto with_loss_of_call(const Params& params, const With& with) {
  if (params.ghmc) return with(Ghmc<BinWeights<S>>{{params.bin_weight, params.ghm.bins}});
  return with_loss<S>(params, with);
}

}  // namespace fastloss
