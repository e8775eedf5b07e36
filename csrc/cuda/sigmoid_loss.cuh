// Sigmoid losses on CUDA: loss and gradient of independent yes/no decisions in one pass over the logits.
//
// Fused: one exponential a logit, from which come p, q and nll of the target, f and f', and the gradient. Grid-stride
// over runs of decisions, 16 bytes of logits each, where every buffer is aligned for it; else, and for what is left at
// the end, decision by decision. A thread reads its run before it writes it, so the gradient may overwrite the logits.
//
// Launches: one; with a memset of the tickets before it where losses are added; with the histogram's for GHM-C.
#pragma once

#include "common.cuh"

namespace fastloss {

constexpr int kSigmoidThreads = 256;
template <class T>
constexpr int kSigmoidBlocks = sizeof(T) == 8 ? 2 : 4;  // on a multiprocessor: leaves the registers that are needed

struct SigmoidLaunch {
  SigmoidParams params;
  Scratch* scratch;
  bool vectorize;  // every buffer is aligned for runs
};

// K elements side by side: one, or a run of them in accesses of 16 bytes (of fewer for the mask).
template <class U, int K>
struct alignas(K * sizeof(U) < 16 ? K * sizeof(U) : 16) Run {
  U at[K];
};

template <int K, class U>
__device__ __forceinline__ Run<U, K> load_run(const U* source) {
  if constexpr (K * sizeof(U) < 16) {
    return *reinterpret_cast<const Run<U, K>*>(source);
  } else {
    Run<U, K> run;
#pragma unroll
    for (int k = 0; k < K; k += Pack<U>::kSize) reinterpret_cast<Pack<U>&>(run.at[k]) = load_pack(source + k);
    return run;
  }
}

template <int K, class U>
__device__ __forceinline__ void store_run(U* target, const Run<U, K>& run) {
  if constexpr (K * sizeof(U) < 16) {
    *reinterpret_cast<Run<U, K>*>(target) = run;
  } else {
#pragma unroll
    for (int k = 0; k < K; k += Pack<U>::kSize) store_pack(target + k, reinterpret_cast<const Pack<U>&>(run.at[k]));
  }
}

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
  const int64_t runs = launch.vectorize ? N / kRun : 0;
  for (int64_t r = thread; r < runs; r += threads) each(SigmoidRun<T, kRun>(launch.params, r * kRun), r * kRun);
  for (int64_t i = runs * kRun + thread; i < N; i += threads) each(SigmoidRun<T, 1>(launch.params, i), i);
}

// ---- losses: value, and slope with respect to -z

template <class S>
struct SigmoidGhmcLoss {
  BinWeights<S> bin_weights;
  __device__ void stage() const { bin_weights.stage(); }
  __device__ ValueSlope<S> operator()(const Decision<S>& d, S target, bool soft) const {
    S beta = bin_weights.of(gradient_norm(d, target, soft));
    ValueSlope<S> f = SigmoidCrossEntropy{}(d, target, soft);
    return {beta * f.value, beta * f.slope};
  }
};

// ---- kernels

// What a mean divides by, else 1.
__device__ inline double sigmoid_denominator(const SigmoidLaunch& launch) {
  const SigmoidParams& params = launch.params;
  if (params.reduction != Reduction::mean) return 1;
  // As mmdetection has it: GHM-C of a batch without any valid decision has the mean 0, not nan.
  return params.kind == Loss::ghmc ? max(launch.scratch->denominator[0], 1.0) : double(params.N);
}

template <class T, class LossOf>
__global__ void __launch_bounds__(kSigmoidThreads, kSigmoidBlocks<T>)
    sigmoid_loss(const __grid_constant__ SigmoidLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  const SigmoidParams& params = launch.params;
  const ClassBalance<S> balance(params.alpha, params.grad_scale / sigmoid_denominator(launch));
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

// GHM-C's first pass: counts the gradient norms; the last block turns the counts into beta.
template <class T>
__global__ void __launch_bounds__(kSigmoidThreads, kSigmoidBlocks<T>)
    sigmoid_histogram(const __grid_constant__ SigmoidLaunch launch) {
  __shared__ uint32_t storage[BlockHistogram::kEntries];
  const GhmState& state = launch.params.ghm;
  BlockHistogram histogram(storage, launch.scratch, state.bins);
  for_each_run<T>(launch, [&](const auto& in, int64_t /*i*/) {
    constexpr int K = sizeof(in.logits) / sizeof(Compute<T>);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (in.valid[k]) histogram.add(ghm_bin(gradient_norm(in.decision(k), in.target[k], in.soft(k)), state.bins));
    }
  });
  histogram.flush();
  if (is_last_block(&launch.scratch->histogram_ticket)) {
    finish_histogram(state, launch.scratch, launch.params.bin_weight);
  }
}

// ---- launching

// Of device memory, aligned to 32 bytes; its contents do not matter.
inline size_t sigmoid_workspace_bytes(const SigmoidParams& params) { return scratch_bytes(params.ghm.bins); }

template <class T>
bool aligned_for_runs(const SigmoidParams& params) {
  auto aligned = [](const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  return aligned(params.input, 16) && aligned(params.grad, 16) && aligned(params.target, 16) &&
         aligned(params.mask, Pack<T>::kSize) && (params.reduction != Reduction::none || aligned(params.loss, 16));
}

template <class T, class LossOf>
cudaError_t launch_sigmoid_kernel(const SigmoidLaunch& launch, const LossOf& loss_of, int blocks, cudaStream_t stream) {
  sigmoid_loss<T><<<blocks, kSigmoidThreads, 0, stream>>>(launch, loss_of);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_sigmoid_of(SigmoidLaunch launch, cudaStream_t stream) {
  using S = Compute<T>;
  const SigmoidParams& params = launch.params;
  launch.vectorize = aligned_for_runs<T>(params);
  // Many decisions: several runs a thread, so that what a block does at its end weighs less.
  int runs_per_thread = params.N < (1 << 20) ? 1 : 4;
  int blocks = num_blocks(params.N, kSigmoidThreads * Pack<T>::kSize * runs_per_thread, kMaxBlocks);
  bool ghmc = params.kind == Loss::ghmc;
  if (ghmc || params.reduction != Reduction::none) {
    cudaError_t error = reset_scratch(launch.scratch, params.ghm.bins, stream);
    if (error != cudaSuccess) return error;
  }
  if (ghmc) {
    sigmoid_histogram<T><<<blocks, kSigmoidThreads, 0, stream>>>(launch);
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    SigmoidGhmcLoss<S> loss_of{{params.bin_weight, params.ghm.bins}};
    return launch_sigmoid_kernel<T>(launch, loss_of, blocks, stream);
  }
  if (params.gamma == 0) return launch_sigmoid_kernel<T>(launch, SigmoidCrossEntropy{}, blocks, stream);
  return launch_sigmoid_kernel<T>(launch, SigmoidFocal<Focal<S>>{{S(params.gamma)}}, blocks, stream);
}

// Writes loss, grad (if any) and, for GHM-C, bin_weight and the running statistics.
inline cudaError_t launch_sigmoid_loss(const SigmoidParams& params, void* workspace, cudaStream_t stream) {
  SigmoidLaunch launch{params, static_cast<Scratch*>(workspace), false};
  return with_storage(params.dtype, [&](auto storage) { return launch_sigmoid_of<decltype(storage)>(launch, stream); });
}

}  // namespace fastloss
