// The softmax decision: from the sums over a decision's classes to its loss and the gradient of each class.
#pragma once

#include "params.h"
#include "row.h"

namespace FASTLOSS_NAMESPACE {

// What the decisions of one call have in common.
template <class S>
struct SoftmaxScale {
  S gradient;       // stored_scale / denominator
  S class_weights;  // sum_k w_k
  S hard, smooth;   // 1 - label_smoothing, label_smoothing / C: shares of the target and of every class

  // The parameter of a loss that smooths is label_smoothing; the others do not read the last three.
  FASTLOSS_HD SoftmaxScale(const SoftmaxParams& params, double stored_scale, double denominator,
                           double sum_of_class_weights)
      : gradient(S(stored_scale / denominator)),
        class_weights(S(sum_of_class_weights)),
        hard(S(1 - params.parameter)),
        smooth(S(params.parameter / double(params.C))) {}
};

template <class V>
struct Likelihood {
  V nll, p, q;
  V log_sum, inverse_sum;
};

// sum: sum_k exp(x_k - max); target_logit: x_y.
template <class V>
FASTLOSS_HD Likelihood<V> likelihood(V max, V sum, V target_logit) {
  V inverse_sum = divide(V{} + 1, sum);
  V log_sum = log(sum);
  V nll = log_sum - (target_logit - max);
  nll = select(nll < 0, V{}, nll);  // a rounding error at p = 1; nan stays
  V p = exp_nonpositive(-nll);
  return {nll, p, one_minus_p(nll, p), log_sum, inverse_sum};
}

// The gradient of class k is exp(x_k - max) * probability - (k == y) * onehot - w_k * smooth: f'(nll) * (p_k -
// onehot_k), smoothing, weights and scales included.
template <class V>
struct SoftmaxGradient {
  V probability, onehot;
};

template <class V>
struct SoftmaxOutcome {
  V value;  // of the loss; smoothing adds smoothed_value
  SoftmaxGradient<V> gradient;
};

// row_weight: w_y.
template <class LossOf, class V, class S>
FASTLOSS_HD SoftmaxOutcome<V> conclude(const LossOf& loss_of, const Likelihood<V>& found, V row_weight,
                                       const SoftmaxScale<S>& scale) {
  ValueSlope<V> f = loss_of(found.nll, found.p, found.q);
  V value = row_weight * f.value;
  V slope = row_weight * f.slope;
  V mass = slope;  // what the probabilities are multiplied by: the slope, and all the smoothed targets
  if constexpr (LossOf::smooths) {
    value *= scale.hard;
    slope *= scale.hard;
    mass = slope + scale.smooth * scale.class_weights;
  }
  return {value, {mass * scale.gradient * found.inverse_sum, slope * scale.gradient}};
}

// weighted: sum_k w_k (x_k - max).
template <class V, class S>
FASTLOSS_HD V smoothed_value(V log_sum, V weighted, const SoftmaxScale<S>& scale) {
  return scale.smooth * (scale.class_weights * log_sum - weighted);
}

// Gradient of one class, e = exp(x_k - max), w = w_k.
template <class LossOf, class V, class S, class IsTarget>
FASTLOSS_HD V class_gradient(const SoftmaxGradient<V>& gradient, V e, IsTarget is_target, V w,
                             const SoftmaxScale<S>& scale) {
  V g = e * gradient.probability - select(is_target, gradient.onehot, V{});
  if constexpr (LossOf::smooths) g -= w * (scale.smooth * scale.gradient);
  return g;
}

}  // namespace FASTLOSS_NAMESPACE
