// Targets of the softmax losses: reading W of them, checking them and adding up their weights.
#pragma once

#include "storage.h"

namespace FASTLOSS_NAMESPACE {

inline int64_t target_at(const SoftmaxParams& params, int64_t position) {
  return params.target_is_int64 ? static_cast<const int64_t*>(params.target)[position]
                                : static_cast<const int32_t*>(params.target)[position];
}

// W targets as lanes of M; -1 where a decision is ignored, and beyond count.
template <class M>
inline M load_targets(const SoftmaxParams& params, int64_t position, int count) {
  const int64_t ignore_index = params.ignore_index;
  const int64_t* wide = static_cast<const int64_t*>(params.target) + position;
  const int32_t* narrow = static_cast<const int32_t*>(params.target) + position;
  if constexpr (sizeof(M) == sizeof(i32)) {
    if (count == W && params.target_is_int64) {
      half_i64 low = load_bits<half_i64>(wide), high = load_bits<half_i64>(wide + W / 2);
      low = low == ignore_index ? half_i64{} - 1 : low;
      high = high == ignore_index ? half_i64{} - 1 : high;
      return narrow_halves(low, high, std::make_integer_sequence<int, W>{});
    }
  }
  M y = M{} - 1;
  for (int lane = 0; lane < count; ++lane) {
    int64_t target = params.target_is_int64 ? wide[lane] : narrow[lane];
    if (target != ignore_index) y[lane] = target;
  }
  return y;
}

// How many of [begin, end) are not ignored, and the first that is out of range or -1.
template <class Index>
inline TargetSum count_targets(const SoftmaxParams& params, int64_t begin, int64_t end) {
  using V = std::conditional_t<sizeof(Index) == 8, half_i64, i32>;
  constexpr int lanes = sizeof(V) / sizeof(Index);
  const Index* target = static_cast<const Index*>(params.target);
  const Index ignore_index = Index(params.ignore_index), C = Index(params.C);
  const V never = V{} - Index(ignore_index != params.ignore_index);  // an int32 target cannot be what int32 cannot hold
  V valid_sum = {}, bad = {};
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    V y = load_bits<V>(target + i);
    V valid = (V)(y != ignore_index) | never;
    valid_sum -= valid;  // true is -1
    bad |= valid & ((y < 0) | (y >= C));
  }
  TargetSum sum = {0, -1};
  bool any_bad = false;
  for (int lane = 0; lane < lanes; ++lane) {
    sum.weight += double(valid_sum[lane]);
    any_bad |= bad[lane] != 0;
  }
  // One by one: what is left over, and everything to find the one that is out of range.
  for (int64_t at = any_bad ? begin : i; at < end && sum.out_of_range < 0; ++at) {
    int64_t y = target[at];
    if (y == params.ignore_index) continue;
    if (y < 0 || y >= params.C) sum.out_of_range = at;
    if (at >= i) sum.weight += 1;
  }
  return sum;
}

// The weights of the decisions that are not ignored. S: the compute type.
template <class S>
inline double weigh_targets(const SoftmaxParams& params, int64_t begin, int64_t end) {
  const S* weight = static_cast<const S*>(params.weight);
  const S* sample_weight = static_cast<const S*>(params.sample_weight);
  double sum = 0;
  for (int64_t at = begin; at < end; ++at) {
    double of_decision = sample_weight ? sample_weight[at] : 1;
    if (!params.probabilities) {
      const int64_t y = target_at(params, at);
      if (y == params.ignore_index) continue;
      if (weight) of_decision *= weight[y];
    }
    sum += of_decision;
  }
  return sum;
}

// The same with the weights of the decisions for their number, where there are weights. Class probabilities are not
// looked at, and class weights are no part of the sum there, as F.cross_entropy has it.
inline TargetSum scan_targets(const SoftmaxParams& params, int64_t begin, int64_t end) {
  TargetSum sum{double(end - begin), -1};
  if (!params.probabilities) {
    sum = params.target_is_int64 ? count_targets<int64_t>(params, begin, end)
                                 : count_targets<int32_t>(params, begin, end);
  }
  const bool weighs = params.sample_weight || (params.weight && !params.probabilities);
  if (!weighs || params.denominator || sum.out_of_range >= 0) return sum;
  sum.weight = params.dtype == DType::float64 ? weigh_targets<double>(params, begin, end)
                                              : weigh_targets<float>(params, begin, end);
  return sum;
}

}  // namespace FASTLOSS_NAMESPACE
