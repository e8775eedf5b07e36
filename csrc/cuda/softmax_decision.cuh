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
  S share, terms;  // for mixed_value
  SoftmaxGradient<S> gradient;
  S gradient_share;
};

// A block's part of a launch. Constructed and concluded by all threads of the block.
template <class T, class LossOf>
struct SoftmaxBlock {
  using S = Compute<T>;
  static constexpr bool mixes = LossOf::mixes;
  static constexpr bool probabilities = LossOf::probabilities;
  static constexpr bool counts = std::is_same_v<LossOf, CountNorms>;

  const SoftmaxLaunch& launch;
  const SoftmaxParams& params;
  const LossOf& loss_of;
  const S* weight;         // [C] or null
  const S* sample_weight;  // [N] or null
  double denominator;
  SoftmaxScale<S> scale;
  LogitOf<LossOf, S> logit_of;
  double total = 0;  // of this thread's losses

  std::conditional_t<counts, BlockHistogram, NoHistogram> histogram;

  // storage: shared memory of storage_size.
  static constexpr int storage_size = counts ? BlockHistogram::kEntries : 1;
  __device__ SoftmaxBlock(const SoftmaxLaunch& l, const LossOf& loss, uint32_t* storage)
      : launch(l),
        params(l.params),
        loss_of(loss),
        weight(static_cast<const S*>(l.params.weight)),
        sample_weight(static_cast<const S*>(l.params.sample_weight)),
        denominator(!counts && l.params.reduction == Reduction::mean ? mean_denominator() : 1),
        scale(l.params, stored_scale(), denominator, mixes && weight ? l.scratch->class_weights : double(l.params.C)),
        logit_of(l.params),
        histogram(storage, l.scratch, l.params.ghm.bins) {
    stage_loss(loss_of);
  }

  __device__ const T* input() const { return static_cast<const T*>(params.input); }
  __device__ T* grad() const { return static_cast<T*>(params.grad); }
  __device__ S weight_of(int32_t c) const { return weight ? weight[c] : S(1); }
  __device__ bool writes() const { return !counts && params.grad != nullptr; }
  // Whether a decision's classes are walked a second time.
  __device__ bool second_pass() const { return mixes || writes(); }

  // The logit of an element.
  __device__ __forceinline__ S logit(T x) const { return logit_of(to_compute(x)); }

  // Where a decision's class index is known; one with class probabilities has 0, and is never ignored.
  __device__ __forceinline__ int32_t target(int64_t position) const {
    return probabilities ? 0 : target_of(params, position);
  }

  // terms: sum_k term_k, of class probabilities.
  __device__ SoftmaxDecision<S> decide(const ClassSum<S>& classes, S target_logit, int32_t y, int64_t position,
                                       S terms) const {
    if (y < 0) return {y, classes.max};
    const S sample = sample_weight ? sample_weight[position] : S(1);
    Likelihood<S> found = likelihood(classes.max, classes.sum, target_logit);
    const DecisionWeight<S> weights = {(probabilities ? S(1) : weight_of(y)) * sample, sample};
    SoftmaxOutcome<S> outcome = conclude(loss_of, found, classes.max, weights, terms, scale);
    return {y,
            classes.max,
            found.log_sum,
            outcome.value,
            outcome.share,
            outcome.terms,
            outcome.gradient,
            outcome.gradient_share};
  }

  // Class k's term, where the target mixes classes. at: where its probability lies.
  __device__ __forceinline__ S term(int32_t k, int64_t at) const {
    if constexpr (!mixes) return 0;
    S probability = 0;
    if constexpr (probabilities) {
      probability =
          params.target_is_compute_type ? static_cast<const S*>(params.target)[at] : to_compute(soft_target()[at]);
    }
    return class_term<LossOf>(weight_of(k), probability, scale);
  }

  // Class probabilities of the input's dtype, which can be read as its elements are.
  __device__ const T* soft_target() const { return static_cast<const T*>(params.target); }
  __device__ bool reads_like_input() const { return probabilities && !params.target_is_compute_type; }

  // The terms of n classes, or of one class of n decisions, whose probabilities lie side by side; step: from one's
  // class to the next. whole: they are read as the input's packs are.
  template <int n>
  __device__ __forceinline__ void terms(int32_t k, int step, int64_t at, bool whole, S (&out)[n]) const {
    if (whole) {
      const Run<T, n> run = load_run<n>(soft_target() + at);
#pragma unroll
      for (int j = 0; j < n; ++j) out[j] = class_term<LossOf>(weight_of(k + j * step), to_compute(run.at[j]), scale);
    } else {
#pragma unroll
      for (int j = 0; j < n; ++j) out[j] = term(k + j * step, at + j);
    }
  }

  // Gradient of class k, e = exp(x_k - max); x: the element, mixed: the class's term times the decision's share.
  __device__ __forceinline__ S gradient(const SoftmaxGradient<S>& factors, S e, S x, S mixed,
                                        bool is_target = false) const {
    S g = class_gradient<LossOf>(factors, e, is_target, mixed);
    return logit_of.caps() ? g * logit_of.slope(x) : g;
  }

  // Of the target's class, whose element is x.
  __device__ __forceinline__ T target_gradient(const SoftmaxDecision<S>& decision, S x, S term) const {
    return to_storage<T>(gradient(decision.gradient, exp_nonpositive(logit_of(x) - decision.max), x,
                                  term * decision.gradient_share, true));
  }

  // Called by one thread for each decision. weighted: sum_k term_k (x_k - max), if the target mixes classes.
  __device__ void finish(const SoftmaxDecision<S>& decision, int64_t position, S weighted) {
    S value = decision.value;
    if constexpr (mixes) {
      if (decision.y >= 0)
        value += mixed_value<LossOf>(decision.log_sum, weighted, decision.share, decision.terms, scale);
    }
    if constexpr (LossOf::extended) {
      if (params.lse) static_cast<S*>(params.lse)[position] = decision.y < 0 ? S(0) : decision.max + decision.log_sum;
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
  // The caller's, or the parts that an earlier launch left, in a fixed order.
  __device__ double mean_denominator() const {
    if (params.denominator) return *params.denominator;
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

  // Every thread by itself: only where a float16 gradient meets sample weights.
  __device__ double largest_sample_weight() const {
    double largest = 0;
#pragma unroll 1
    for (int part = 0; part < launch.denominator_parts; ++part) {
      largest = max(largest, __ldcg(launch.scratch->largest_sample_weight + part));
    }
    return largest;
  }

  // What a float16 gradient is stored times: the same in every block, written by one thread.
  __device__ double stored_scale() const {
    if constexpr (std::is_same_v<T, __half> && !counts) {
      if (!params.stored_scale) return 1;
      double largest = weight || params.ghmc ? launch.scratch->largest_weight : 1;
      if (sample_weight) largest *= largest_sample_weight();
      return write_stored_scale(params.stored_scale, steepest(params) * largest / fabs(denominator));
    }
    return 1;
  }
};

}  // namespace fastloss
