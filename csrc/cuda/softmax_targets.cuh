// The targets of softmax decisions, and the launch before the loss's that adds up what a mean divides by.
#pragma once

#undef NDEBUG  // the assertion on the targets is for users
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

#include "memory.cuh"
#include "reduce.cuh"

namespace fastloss {

// The class of a decision, or -1 where it is ignored. A target out of range ends the kernel: nothing is read there.
__device__ __forceinline__ int32_t class_of(const SoftmaxParams& params, int64_t y) {
  if (y == params.ignore_index) return -1;
  assert(uint64_t(y) < uint64_t(params.C) && "target should be in [0, C) or ignore_index");
  return int32_t(y);  // C is below 2^31
}

// The class index of a decision. probabilities: the loss has none, and every decision counts.
__device__ __forceinline__ int64_t load_target(const SoftmaxParams& params, int64_t position) {
  return params.target_is_int64 ? static_cast<const int64_t*>(params.target)[position]
                                : static_cast<const int32_t*>(params.target)[position];
}

__device__ __forceinline__ int32_t target_of(const SoftmaxParams& params, int64_t position) {
  return class_of(params, load_target(params, position));
}

// A thread's part of the sum of weight[target] times the sample weights, or of the number of targets. Four loads are in
// flight.
template <class S, class Target>
__device__ double sum_of_targets(const SoftmaxParams& params, const Target* target) {
  constexpr int batch = 4;
  const S* weight = static_cast<const S*>(params.weight);
  const S* sample_weight = static_cast<const S*>(params.sample_weight);
  const int64_t step = int64_t(gridDim.x) * kCountThreads;
  double sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * kCountThreads + threadIdx.x; i < params.N; i += batch * step) {
    Target y[batch];
#pragma unroll
    for (int b = 0; b < batch; ++b) y[b] = target[min(i + b * step, params.N - 1)];
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      int32_t c = i + b * step < params.N ? class_of(params, y[b]) : -1;
      if (c >= 0) sum += (weight ? double(weight[c]) : 1.0) * (sample_weight ? sample_weight[i + b * step] : 1);
    }
  }
  return sum;
}

// The same for class probabilities: those have no weight of their own.
template <class S>
__device__ double sum_of_sample_weights(const SoftmaxParams& params, double* largest) {
  const S* sample_weight = static_cast<const S*>(params.sample_weight);
  double sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * kCountThreads + threadIdx.x; i < params.N;
       i += int64_t(gridDim.x) * kCountThreads) {
    double w = sample_weight ? double(sample_weight[i]) : 1.0;
    sum += w;
    *largest = max(*largest, fabs(w));
  }
  return sum;
}

// Leaves in scratch: the sum of weight[target] (or the number of targets) over the decisions that are not ignored, in
// parts; the largest sample weight, in parts; sum_k w_k and max_k |w_k|; the loss's ticket at zero.
template <class S>
__global__ void __launch_bounds__(kCountThreads)
    count_targets(const __grid_constant__ SoftmaxParams params, Scratch* scratch) {
  const S* weight = static_cast<const S*>(params.weight);  // [C]
  double largest = 0, sum = 0;
  if (params.probabilities || (params.sample_weight && params.stored_scale)) {
    sum = sum_of_sample_weights<S>(params, &largest);
    largest = block_max(largest);
    if (threadIdx.x == 0) scratch->largest_sample_weight[blockIdx.x] = largest;
  }
  if (!params.probabilities && !params.denominator) {
    sum = params.target_is_int64 ? sum_of_targets<S>(params, static_cast<const int64_t*>(params.target))
                                 : sum_of_targets<S>(params, static_cast<const int32_t*>(params.target));
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) scratch->denominator[blockIdx.x] = sum;
  if (blockIdx.x > 0) return;
  if (threadIdx.x == 0) scratch->loss_ticket = 0;
  if (!weight) return;
  largest = sum = 0;
  for (int32_t c = threadIdx.x; c < params.C; c += kCountThreads) {
    double w = weight[c];
    sum += w;
    largest = max(largest, fabs(w));
  }
  sum = block_sum(sum);
  largest = block_max(largest);
  if (threadIdx.x == 0) {
    scratch->class_weights = sum;
    scratch->largest_weight = largest;
  }
}

}  // namespace fastloss
