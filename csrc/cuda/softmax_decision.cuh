// What the softmax schedules share: the sums over a decision's classes, what they come to, and the sum of the losses.
//
// Fused: max, exponentials and their sum, nll, f and f', the gradient f'(nll) * (p - onehot), and the losses' sum.
// Precondition: what scratch has to hold was written by an earlier launch (softmax_launch.cuh).
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../losses/cross_entropy.h"
#include "../losses/softmax.h"
#include "histogram.cuh"
#include "memory.cuh"
#include "reduce.cuh"
#include "softmax_targets.cuh"

namespace fastloss {

// One launch: the call's parameters and what the launcher chose.
struct SoftmaxLaunch {
  SoftmaxParams params;
  SoftmaxSchedule schedule;
  Scratch* scratch;
  GradientNorms norms;    // where CountNorms leaves its histogram; without, it becomes GHM-C's weights
  int denominator_parts;  // of a mean, in scratch
};

// GHM-C's first pass: counts where the decisions' gradient norms fall.
struct CountNorms : CrossEntropy {};
struct NoHistogram {
  __device__ NoHistogram(uint32_t*, Scratch*, int32_t) {}
};

// What some classes of a decision come to.
template <class S>
struct ClassSum {
  S max = -INFINITY;
  S sum = 0;  // sum_k exp(x_k - max)

  template <int n>
  __device__ __forceinline__ void add(const S (&x)[n]) {
    S high = max;
#pragma unroll
    for (int i = 0; i < n; ++i) high = fmax(high, x[i]);  // a nan comes in by its exponential
    S reference = finite(high);
    S part = 0;  // added in one: a long sum gets inexact by its number of additions
#pragma unroll
    for (int i = 0; i < n; ++i) part += exp_nonpositive(x[i] - reference);
    sum = sum * exp_nonpositive(max - reference) + part;
    max = high;
  }

  __device__ __forceinline__ void merge(S other_max, S other_sum) {
    S high = fmax(max, other_max);
    S reference = finite(high);
    // Symmetric, so that both sides of a butterfly get the same bits.
    sum = sum * exp_nonpositive(max - reference) + other_sum * exp_nonpositive(other_max - reference);
    max = high;
  }

  // No class above -inf yet: exponentials are to be 0, not exp(-inf - -inf).
  static __device__ __forceinline__ S finite(S high) { return high == S(-INFINITY) ? S(0) : high; }
};

template <class S>
struct SoftmaxDecision {
  int32_t y;  // -1: ignored
  S max, log_sum, value;
  SoftmaxGradient<S> gradient;
};

// A block's part of a launch. Constructed and concluded by all threads of the block.
template <class T, class LossOf>
struct SoftmaxBlock {
  using S = Compute<T>;
  static constexpr bool smooths = LossOf::smooths;
  static constexpr bool counts = std::is_same_v<LossOf, CountNorms>;

  const SoftmaxLaunch& launch;
  const SoftmaxParams& params;
  const LossOf& loss_of;
  const S* weight;  // [C] or null
  double denominator;
  SoftmaxScale<S> scale;
  double total = 0;  // of this thread's losses

  std::conditional_t<counts, BlockHistogram, NoHistogram> histogram;

  // storage: shared memory of storage_size.
  static constexpr int storage_size = counts ? BlockHistogram::kEntries : 1;
  __device__ SoftmaxBlock(const SoftmaxLaunch& l, const LossOf& loss, uint32_t* storage)
      : launch(l),
        params(l.params),
        loss_of(loss),
        weight(static_cast<const S*>(l.params.weight)),
        denominator(!counts && l.params.reduction == Reduction::mean ? mean_denominator() : 1),
        scale(l.params, stored_scale(), denominator, smooths && weight ? l.scratch->class_weights : double(l.params.C)),
        histogram(storage, l.scratch, l.params.ghm.bins) {
    stage_loss(loss_of);
  }

  __device__ const T* input() const { return static_cast<const T*>(params.input); }
  __device__ T* grad() const { return static_cast<T*>(params.grad); }
  __device__ S weight_of(int32_t c) const { return weight ? weight[c] : S(1); }
  __device__ bool writes() const { return !counts && params.grad != nullptr; }
  // Whether a decision's classes are walked a second time.
  __device__ bool second_pass() const { return smooths || writes(); }

  __device__ SoftmaxDecision<S> decide(const ClassSum<S>& classes, S target_logit, int32_t y) const {
    if (y < 0) return {y, classes.max, 0, 0, {0, 0}};
    Likelihood<S> found = likelihood(classes.max, classes.sum, target_logit);
    SoftmaxOutcome<S> outcome = conclude(loss_of, found, weight_of(y), scale);
    return {y, classes.max, found.log_sum, outcome.value, outcome.gradient};
  }

  // Adds w_k * shifted if smoothed, shifted = x_k - max.
  __device__ __forceinline__ void add_weighted(S shifted, int32_t k, S& weighted) const {
    if constexpr (smooths) weighted += weight_of(k) * shifted;
  }

  // Gradient of class k, e = exp(x_k - max).
  __device__ __forceinline__ S gradient(const SoftmaxGradient<S>& factors, S e, int32_t k,
                                        bool is_target = false) const {
    return class_gradient<LossOf>(factors, e, is_target, smooths ? weight_of(k) : S(1), scale);
  }

  // Of the target's class, whose logit is x.
  __device__ __forceinline__ T target_gradient(const SoftmaxDecision<S>& decision, S x) const {
    return to_storage<T>(gradient(decision.gradient, exp_nonpositive(x - decision.max), decision.y, true));
  }

  // Called by one thread for each decision. weighted: sum_k w_k (x_k - max), if smoothed.
  __device__ void finish(const SoftmaxDecision<S>& decision, int64_t position, S weighted) {
    S value = decision.value;
    if constexpr (smooths) {
      if (decision.y >= 0) value += smoothed_value(decision.log_sum, weighted, scale);
    }
    if (params.reduction == Reduction::none) static_cast<S*>(params.loss)[position] = value;
    total += double(value);
  }

  // In place of decide and finish, for CountNorms. Called by one thread for each decision.
  __device__ void count(const ClassSum<S>& classes, S target_logit, int32_t y, int64_t position) const {
    int32_t bin = -1;
    if (y >= 0) {
      bin = ghm_bin(likelihood(classes.max, classes.sum, target_logit).q, params.ghm.bins);
      histogram.add(bin);
    }
    if (launch.norms.bin) launch.norms.bin[position] = bin;
  }

  __device__ void conclude_launch() const {
    if constexpr (counts) {
      conclude_histogram(histogram, params.ghm, launch.norms, launch.scratch, params.bin_weight);
    } else if (params.reduction != Reduction::none) {
      reduce_loss(total, denominator, launch.scratch, static_cast<S*>(params.loss));
    }
  }

 private:
  // The parts that an earlier launch left, in a fixed order.
  __device__ double mean_denominator() const {
    __shared__ double shared_sum;
    if (threadIdx.x < 32) {  // one warp: every block of the grid does this
      double sum = strided_sum(launch.scratch->denominator, launch.denominator_parts, threadIdx.x, 32);
#pragma unroll 1
      for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
      if (threadIdx.x == 0) shared_sum = sum;
    }
    __syncthreads();  // it is written
    return shared_sum;
  }

  // What a float16 gradient is stored times: the same in every block, written by one thread.
  __device__ double stored_scale() const {
    if constexpr (std::is_same_v<T, __half> && !counts) {
      if (!params.stored_scale) return 1;
      double largest = weight || params.ghmc ? launch.scratch->largest_weight : 1;
      return write_stored_scale(params.stored_scale, steepest(params.parameter) * largest / fabs(denominator));
    }
    return 1;
  }
};

}  // namespace fastloss
