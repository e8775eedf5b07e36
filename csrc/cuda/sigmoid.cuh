// Sigmoid losses on CUDA: loss and gradient of independent yes/no decisions in one pass over the logits.
//
// Fused: one exponential a logit, from which come p, q and nll of the target, f and f', and the gradient. Grid-stride
// over runs of decisions, 16 bytes of logits each, that begin where those of what is written do; logits and targets
// that lie otherwise are taken out of the 16 bytes on both sides. Decision by decision what is left at both ends, or
// all where the tensors that are written are not aligned alike. A thread reads its run before it writes it, and of a
// run that is shifted nobody else writes: so the gradient may overwrite the logits.
//
// Launches: one; with a memset of the tickets before it where losses are added; with the histogram's for GHM-C; with
// that of the weights where a mean divides by their sum.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../losses/sigmoid.h"
#include "histogram.cuh"
#include "launch.cuh"
#include "memory.cuh"

namespace fastloss {

// On a multiprocessor: leaves the registers that are needed. many: of the kernels that need more of them.
template <class T, bool many = false>
constexpr int kSigmoidBlocks = sizeof(T) == 8           ? 2
                               : many && sizeof(T) == 2 ? 3
                                                        : 4;

struct SigmoidLaunch {
  SigmoidParams params;
  SigmoidSchedule schedule;
  Scratch* scratch;
  GradientNorms norms;  // where sigmoid_count leaves them; without, they become GHM-C's weights
};

// What is known of decisions i .. i + K - 1.
template <class T, int K>
struct SigmoidRun {
  using S = Compute<T>;
  S logits[K], target[K];
  bool valid[K];

  __device__ SigmoidRun(const SigmoidLaunch& launch, int64_t i) {
    const SigmoidParams& params = launch.params;
    Run<T, K> x = run_at(static_cast<const T*>(params.input) + i, launch.schedule.input_shift);
#pragma unroll
    for (int k = 0; k < K; ++k) logits[k] = to_compute(x.at[k]);
    const int shift = launch.schedule.target_shift;
    if (std::is_same_v<T, S> || params.target_is_compute_type) {
      Run<S, K> t = run_at(static_cast<const S*>(params.target) + i, shift);
#pragma unroll
      for (int k = 0; k < K; ++k) target[k] = t.at[k];
    } else {
      Run<T, K> t = run_at(static_cast<const T*>(params.target) + i, shift);
#pragma unroll
      for (int k = 0; k < K; ++k) target[k] = to_compute(t.at[k]);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) valid[k] = true;
    if (params.mask && (K == 1 || launch.schedule.mask_in_runs)) {
      Run<uint8_t, K> m = load_run<K>(params.mask + i);
#pragma unroll
      for (int k = 0; k < K; ++k) valid[k] = m.at[k] != 0;
    } else if (params.mask) {
#pragma unroll
      for (int k = 0; k < K; ++k) valid[k] = params.mask[i + k] != 0;
    }
  }

  __device__ bool soft(int k) const { return target[k] != 0 && target[k] != 1; }
  __device__ Decision<S> decision(int k) const {
    return decide(logits[k], decision_exp(logits[k]), target[k], soft(k));
  }

 private:
  template <class U>
  static __device__ __forceinline__ Run<U, K> run_at(const U* source, int shift) {
    if constexpr (K > 1) {
      if (shift != 0) return load_shifted_run<K>(source, shift);
    }
    return load_run<K>(source);
  }
};

// Calls each(SigmoidRun, index of its first decision) for all decisions, spread over the grid.
template <class T, class Each>
__device__ __forceinline__ void for_each_run(const SigmoidLaunch& launch, const Each& each) {
  constexpr int kRun = Pack<T>::kSize;
  const int64_t N = launch.params.N;
  const int64_t thread = int64_t(blockIdx.x) * kSigmoidThreads + threadIdx.x;
  const int64_t threads = int64_t(gridDim.x) * kSigmoidThreads;
  const int64_t head = launch.schedule.head, runs = launch.schedule.runs;
  for (int64_t r = thread; r < runs; r += threads) {
    const int64_t i = head + r * kRun;
    each(SigmoidRun<T, kRun>(launch, i), i);
  }
  for (int64_t s = thread; s < N - runs * kRun; s += threads) {
    const int64_t i = s < head ? s : s + runs * kRun;
    each(SigmoidRun<T, 1>(launch, i), i);
  }
}

// The numbers of decisions i .. i + K - 1.
template <int K, class S>
__device__ __forceinline__ void read_broadcast(const Broadcast& from, int64_t i, S (&into)[K]) {
  const S* values = static_cast<const S*>(from.values);
  int64_t at, used;
  if (i >> 32 == 0 && from.inner >> 32 == 0 && from.size >> 32 == 0) {  // divisions of 64 bits are long
    at = uint32_t(i) / uint32_t(from.inner) % uint32_t(from.size);
    used = uint32_t(i) % uint32_t(from.inner);
  } else {
    at = i / from.inner % from.size;
    used = i % from.inner;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    into[k] = values[at];
    if (++used == from.inner) {
      used = 0;
      if (++at == from.size) at = 0;
    }
  }
}

// What a mean divides by, else 1.
__device__ inline double sigmoid_denominator(const SigmoidLaunch& launch) {
  const SigmoidParams& params = launch.params;
  if (params.reduction != Reduction::mean) return 1;
  if (params.denominator) return *params.denominator;
  // As mmdetection has it: GHM-C of a batch without any valid decision has the mean 0, not nan.
  if (params.ghmc) return max(launch.scratch->denominator[0], 1.0);
  return needs_weights(params) ? launch.scratch->denominator[0] : double(params.N);
}

// What gradients are multiplied by: stored_scale / denominator. Of float16, stored_scale is the same in every block and
// written by one thread. Not inlined: the registers are the loop's.
template <class T>
__device__ __noinline__ double sigmoid_gradient_scale(const SigmoidLaunch& launch) {
  const SigmoidParams& params = launch.params;
  const double denominator = sigmoid_denominator(launch);
  if (!std::is_same_v<T, __half> || !params.stored_scale) return 1 / denominator;
  const ClassBalance<double> balance(params.alpha, 1);
  double largest = params.class_alpha.values ? 1 : max(balance.zero, balance.one);
  if (params.ghmc || params.sample_weight.values) largest *= launch.scratch->largest_weight;
  return write_stored_scale(params.stored_scale, steepest(params) * largest / fabs(denominator)) / denominator;
}

// Adds the weights of decisions i .. i + K - 1 that count.
template <int K, class S>
__device__ __forceinline__ void add_weights(const SigmoidParams& params, int64_t i, double* sum, double* largest) {
  S weight[K];
  if (params.sample_weight.values) read_broadcast(params.sample_weight, i, weight);
  Run<uint8_t, K> counts;
  if (params.mask) counts = load_run<K>(params.mask + i);
  S run_sum = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    S w = params.sample_weight.values ? weight[k] : S(1);
    w = params.mask && !counts.at[k] ? S(0) : w;
    run_sum += w;
    *largest = max(*largest, double(fabs(w)));
  }
  *sum += double(run_sum);
}

// Leaves in scratch what a mean divides by and the largest weight: of the decisions that count.
template <class T>
__global__ void __launch_bounds__(kSigmoidThreads) sigmoid_weigh(const __grid_constant__ SigmoidLaunch launch) {
  const SigmoidParams& params = launch.params;
  Scratch* scratch = launch.scratch;
  double sum = 0, largest = 0;
  constexpr int kRun = 16;  // of the mask: 16 bytes
  const int64_t runs = reinterpret_cast<uintptr_t>(params.mask) % kRun == 0 ? params.N / kRun : 0;
  const int64_t thread = int64_t(blockIdx.x) * kSigmoidThreads + threadIdx.x;
  const int64_t threads = int64_t(gridDim.x) * kSigmoidThreads;
  for (int64_t r = thread; r < runs; r += threads) add_weights<kRun, Compute<T>>(params, r * kRun, &sum, &largest);
  for (int64_t i = runs * kRun + thread; i < params.N; i += threads) {
    add_weights<1, Compute<T>>(params, i, &sum, &largest);
  }
  sum = block_sum(sum);
  largest = block_max(largest);
  double* sums = scratch->loss;  // [blocks]: the losses come later
  double* sizes = scratch->loss + kMaxCountBlocks;
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    sizes[blockIdx.x] = largest;
  }
  if (!is_last_block(&scratch->histogram_ticket)) return;
  sum = block_sum(strided_sum(sums, gridDim.x, threadIdx.x, blockDim.x));
  largest = 0;
  for (int b = threadIdx.x; b < int(gridDim.x); b += blockDim.x) largest = max(largest, __ldcg(sizes + b));
  largest = block_max(largest);
  if (threadIdx.x == 0) {
    scratch->denominator[0] = sum;
    scratch->largest_weight = largest;
  }
}

// weighted: decisions have factors of their own.
template <class T, class LossOf, bool weighted>
__global__ void __launch_bounds__(kSigmoidThreads,
                                  (kSigmoidBlocks<T, weighted || std::is_same_v<LossOf, SigmoidCrossEntropy>>))
    sigmoid_loss(const __grid_constant__ SigmoidLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  const SigmoidParams& params = launch.params;
  const ClassBalance<S> balance(params.alpha, sigmoid_gradient_scale<T>(launch));
  const bool stores_loss = params.reduction == Reduction::none;
  double sum = 0;
  stage_loss(loss_of);
  for_each_run<T>(launch, [&](const auto& in, int64_t i) {
    constexpr int K = sizeof(in.logits) / sizeof(S);
    Run<T, K> grad;
    Run<S, K> loss;
    S run_sum = 0;  // in double once a run: few GPUs are quick at it
    [[maybe_unused]] S alpha[K], weight[K];
    if constexpr (weighted) {
      if (params.class_alpha.values) read_broadcast(params.class_alpha, i, alpha);
      if (params.sample_weight.values) read_broadcast(params.sample_weight, i, weight);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      ClassBalance<S> of_decision = balance;
      if constexpr (weighted) {
        const S w = params.sample_weight.values ? weight[k] : S(1);
        const S one = params.class_alpha.values ? alpha[k] : balance.one;
        const S zero = params.class_alpha.values ? 1 - one : balance.zero;
        of_decision = {w * zero, w * one, balance.scale};
      }
      const S x = in.logits[k];
      ValueSlope<S> f = conclude(loss_of, of_decision, x, decision_exp(x), in.target[k], in.soft(k));
      loss.at[k] = in.valid[k] ? f.value : S(0);
      grad.at[k] = to_storage<T>(in.valid[k] ? f.slope : S(0));
      run_sum += loss.at[k];
    }
    sum += double(run_sum);
    if (params.grad) store_run(static_cast<T*>(params.grad) + i, grad);
    if (stores_loss) store_run(static_cast<S*>(params.loss) + i, loss);
  });
  if (stores_loss) return;
  // Read again, where it is needed: kept from above, it would take registers of every thread.
  const double denominator = threadIdx.x == 0 ? sigmoid_denominator(launch) : 1;
  reduce_loss(sum, denominator, launch.scratch, static_cast<S*>(params.loss));
}

// Counts the gradient norms; the last block turns the counts into GHM-C's weights, or hands them out.
template <class T>
__global__ void __launch_bounds__(kSigmoidThreads, kSigmoidBlocks<T>)
    sigmoid_count(const __grid_constant__ SigmoidLaunch launch) {
  __shared__ uint32_t storage[BlockHistogram::kEntries];
  const GhmState& state = launch.params.ghm;
  BlockHistogram histogram(storage, launch.scratch, state.bins);
  for_each_run<T>(launch, [&](const auto& in, int64_t i) {
    constexpr int K = sizeof(in.logits) / sizeof(Compute<T>);
    Run<int32_t, K> bin;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      bin.at[k] = -1;
      if (in.valid[k]) {
        bin.at[k] = ghm_bin(gradient_norm(in.decision(k), in.target[k], in.soft(k)), state.bins);
        histogram.add(bin.at[k]);
      }
    }
    if (launch.norms.bin) store_run(launch.norms.bin + i, bin);
  });
  conclude_histogram(histogram, state, launch.norms, launch.scratch, launch.params.bin_weight);
}

// ---- launching

template <class T>
cudaError_t launch_sigmoid_before(const SigmoidLaunch& launch, cudaStream_t stream) {
  const SigmoidParams& params = launch.params;
  if (!params.ghmc && !needs_weights(params) && params.reduction == Reduction::none) return cudaSuccess;
  cudaError_t error = reset_scratch(launch.scratch, params.ghm.bins, stream);
  if (error != cudaSuccess) return error;
  if (needs_weights(params)) {
    const int blocks = num_blocks(params.N, kSigmoidThreads * 16, kMaxCountBlocks);
    return launch_kernel(sigmoid_weigh<T>, blocks, kSigmoidThreads, 0, stream, launch);
  }
  if (!params.ghmc) return error;
  if (params.counts) {
    return launch_kernel(weigh_bins, 1, kCountThreads, 0, stream, params.ghm, params.counts, launch.scratch,
                         params.bin_weight);
  }
  return launch_kernel(sigmoid_count<T>, launch.schedule.blocks, kSigmoidThreads, 0, stream, launch);
}

// Writes loss, grad (if any) and, for GHM-C, bin_weight and the running statistics.
inline cudaError_t launch_sigmoid_loss(const SigmoidParams& params, void* workspace, cudaStream_t stream) {
  const SigmoidLaunch launch{params, schedule_of(params), static_cast<Scratch*>(workspace), {}};
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    cudaError_t error = launch_sigmoid_before<T>(launch, stream);
    if (error != cudaSuccess) return error;
    return with_loss_of_call<Compute<T>>(params, [&](auto loss_of) {
      auto launch_it = [&](auto kernel) {
        return launch_kernel(kernel, launch.schedule.blocks, kSigmoidThreads, 0, stream, launch, loss_of);
      };
      if constexpr (!requires { loss_of.bin_weights; }) {  // GHM-C's are not
        if (is_weighted(params)) return launch_it(&sigmoid_loss<T, decltype(loss_of), true>);
      }
      return launch_it(&sigmoid_loss<T, decltype(loss_of), false>);
    });
  });
}

// Writes norms. params are GHM-C's.
inline cudaError_t launch_sigmoid_gradient_norms(const SigmoidParams& params, const GradientNorms& norms,
                                                 void* workspace, cudaStream_t stream) {
  const SigmoidSchedule schedule = schedule_of(params, norms.bin);
  const SigmoidLaunch launch{params, schedule, static_cast<Scratch*>(workspace), norms};
  return with_storage(params.dtype,
                      [&](auto storage) { return launch_sigmoid_before<decltype(storage)>(launch, stream); });
}

}  // namespace fastloss
