// Sigmoid losses on CUDA: loss and gradient of independent yes/no decisions in one pass over the logits.
//
// Fused: one exponential a logit, from which come p, q and nll of the target, f and f', and the gradient. Grid-stride
// over runs of decisions, 16 bytes of logits each, where every buffer is aligned for it; else, and for what is left at
// the end, decision by decision. A thread reads its run before it writes it, so the gradient may overwrite the logits.
//
// Launches: one; with a memset of the tickets before it where losses are added; with the histogram's for GHM-C.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../losses/sigmoid.h"
#include "histogram.cuh"
#include "launch.cuh"
#include "memory.cuh"

namespace fastloss {

template <class T>
constexpr int kSigmoidBlocks = sizeof(T) == 8 ? 2 : 4;  // on a multiprocessor: leaves the registers that are needed

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

  __device__ SigmoidRun(const SigmoidParams& params, int64_t i) {
    Run<T, K> x = load_run<K>(static_cast<const T*>(params.input) + i);
#pragma unroll
    for (int k = 0; k < K; ++k) logits[k] = to_compute(x.at[k]);
    if (params.target_is_compute_type) {
      Run<S, K> t = load_run<K>(static_cast<const S*>(params.target) + i);
#pragma unroll
      for (int k = 0; k < K; ++k) target[k] = t.at[k];
    } else {
      Run<T, K> t = load_run<K>(static_cast<const T*>(params.target) + i);
#pragma unroll
      for (int k = 0; k < K; ++k) target[k] = to_compute(t.at[k]);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) valid[k] = true;
    if (params.mask) {
      Run<uint8_t, K> m = load_run<K>(params.mask + i);
#pragma unroll
      for (int k = 0; k < K; ++k) valid[k] = m.at[k] != 0;
    }
  }

  __device__ bool soft(int k) const { return target[k] != 0 && target[k] != 1; }
  __device__ Decision<S> decision(int k) const {
    return decide(logits[k], decision_exp(logits[k]), target[k], soft(k));
  }
};

// Calls each(SigmoidRun, index of its first decision) for all decisions, spread over the grid.
template <class T, class Each>
__device__ __forceinline__ void for_each_run(const SigmoidLaunch& launch, const Each& each) {
  constexpr int kRun = Pack<T>::kSize;
  const int64_t N = launch.params.N;
  const int64_t thread = int64_t(blockIdx.x) * kSigmoidThreads + threadIdx.x;
  const int64_t threads = int64_t(gridDim.x) * kSigmoidThreads;
  const int64_t runs = launch.schedule.path == SigmoidPath::runs ? N / kRun : 0;
  for (int64_t r = thread; r < runs; r += threads) each(SigmoidRun<T, kRun>(launch.params, r * kRun), r * kRun);
  for (int64_t i = runs * kRun + thread; i < N; i += threads) each(SigmoidRun<T, 1>(launch.params, i), i);
}

// What a mean divides by, else 1.
__device__ inline double sigmoid_denominator(const SigmoidLaunch& launch) {
  const SigmoidParams& params = launch.params;
  if (params.reduction != Reduction::mean) return 1;
  // As mmdetection has it: GHM-C of a batch without any valid decision has the mean 0, not nan.
  return params.ghmc ? max(launch.scratch->denominator[0], 1.0) : double(params.N);
}

// What gradients are multiplied by: stored_scale / denominator. Of float16, stored_scale is the same in every block and
// written by one thread. Not inlined: the registers are the loop's.
template <class T>
__device__ __noinline__ double sigmoid_gradient_scale(const SigmoidLaunch& launch) {
  const SigmoidParams& params = launch.params;
  const double denominator = sigmoid_denominator(launch);
  if (!std::is_same_v<T, __half> || !params.stored_scale) return 1 / denominator;
  const ClassBalance<double> balance(params.alpha, 1);
  double largest = max(fabs(balance.zero), fabs(balance.one));
  if (params.ghmc) largest *= launch.scratch->largest_weight;
  return write_stored_scale(params.stored_scale, steepest(params.parameter) * largest / denominator) / denominator;
}

template <class T, class LossOf>
__global__ void __launch_bounds__(kSigmoidThreads, kSigmoidBlocks<T>)
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
#pragma unroll
    for (int k = 0; k < K; ++k) {
      ValueSlope<S> f = balance(loss_of(in.decision(k), in.target[k], in.soft(k)), in.target[k], in.soft(k));
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
#pragma unroll
    for (int k = 0; k < K; ++k) {
      int32_t bin = -1;
      if (in.valid[k]) {
        bin = ghm_bin(gradient_norm(in.decision(k), in.target[k], in.soft(k)), state.bins);
        histogram.add(bin);
      }
      if (launch.norms.bin) launch.norms.bin[i + k] = bin;
    }
  });
  conclude_histogram(histogram, state, launch.norms, launch.scratch, launch.params.bin_weight);
}

// ---- launching

template <class T>
cudaError_t launch_sigmoid_before(const SigmoidLaunch& launch, cudaStream_t stream) {
  const SigmoidParams& params = launch.params;
  if (!params.ghmc && params.reduction == Reduction::none) return cudaSuccess;
  cudaError_t error = reset_scratch(launch.scratch, params.ghm.bins, stream);
  if (error != cudaSuccess || !params.ghmc) return error;
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
      return launch_kernel(sigmoid_loss<T, decltype(loss_of)>, launch.schedule.blocks, kSigmoidThreads, 0, stream,
                           launch, loss_of);
    });
  });
}

// Writes norms. params are GHM-C's.
inline cudaError_t launch_sigmoid_gradient_norms(const SigmoidParams& params, const GradientNorms& norms,
                                                 void* workspace, cudaStream_t stream) {
  const SigmoidLaunch launch{params, schedule_of(params), static_cast<Scratch*>(workspace), norms};
  return with_storage(params.dtype,
                      [&](auto storage) { return launch_sigmoid_before<decltype(storage)>(launch, stream); });
}

}  // namespace fastloss
