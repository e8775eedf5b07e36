// The softmax decision: from the sums over a decision's classes to its loss and the gradient of each class.
#pragma once

#include "params.h"
#include "row.h"

namespace FASTLOSS_NAMESPACE {

// What the decisions of one call have in common.
template <class S>
struct SoftmaxScale {
  S gradient;       // stored_scale / denominator, and what every logit's gradient has from logit_scale
  S class_weights;  // sum_k w_k
  S hard, smooth;   // 1 - label_smoothing, label_smoothing / C: shares of the target and of every class
  S z_loss;

  FASTLOSS_HD SoftmaxScale(const SoftmaxParams& params, double stored_scale, double denominator,
                           double sum_of_class_weights)
      : gradient(S(stored_scale / denominator * (params.extended ? params.extras.logit_scale : 1))),
        class_weights(S(sum_of_class_weights)),
        hard(S(1 - params.label_smoothing)),
        smooth(S(params.label_smoothing / double(params.C))),
        z_loss(S(params.extras.z_loss)) {}
};

// tanh(a). The error is that of one_minus_p: a few ULP at any a.
template <class V>
FASTLOSS_HD V tanh_of(V a) {
  V minus_two = negative_abs(a + a);
  V e = exp_nonpositive(minus_two);
  V size = divide(one_minus_p(-minus_two, e), 1 + e);
  return select(a < 0, -size, size);
}

// From an element of the input to the logit that the loss is a function of. The identity unless the loss is extended.
template <class LossOf, class S>
struct LogitOf {
  S scale, softcap, inverse_softcap;

  FASTLOSS_HD explicit LogitOf(const SoftmaxParams& params)
      : scale(S(params.extras.logit_scale)),
        softcap(S(params.extras.softcap)),
        inverse_softcap(softcap > 0 ? 1 / softcap : S(0)) {}

  FASTLOSS_HD bool caps() const { return LossOf::extended && softcap > 0; }

  template <class V>
  FASTLOSS_HD V operator()(V x) const {
    if constexpr (LossOf::extended) {
      x = x * scale;
      if (softcap > 0) x = softcap * tanh_of(x * inverse_softcap);
    }
    return x;
  }

  // The logit's derivative with respect to the element, without scale, which SoftmaxScale::gradient has. Only if
  // caps(): else it is 1.
  template <class V>
  FASTLOSS_HD V slope(V x) const {
    V e = exp_nonpositive(negative_abs((x + x) * (scale * inverse_softcap)));
    V root = divide(V{} + 1, 1 + e);
    return 4 * e * root * root;  // 1 - tanh^2, without cancellation
  }
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

// Where a target mixes classes, class k has a term of its own: w_k times its probability in the target, smoothed; or
// w_k alone, and the decision's share is what smoothing gives to every class.
template <class LossOf, class V, class S>
FASTLOSS_HD V class_term(V w, V probability, const SoftmaxScale<S>& scale) {
  if constexpr (LossOf::probabilities) return w * (scale.hard * probability + scale.smooth);
  return w;
}

// The gradient of class k is exp(x_k - max) * probability - (k == y) * onehot - term_k * share: f'(nll) * (p_k -
// onehot_k), smoothing, weights and scales included.
template <class V>
struct SoftmaxGradient {
  V probability, onehot;
};

template <class V>
struct SoftmaxOutcome {
  V value;         // of the loss; a mixture adds mixed_value
  V share, terms;  // for that
  SoftmaxGradient<V> gradient;
  V gradient_share;  // share, scaled as the gradient is
};

// A decision's weights: w_y times its sample weight, and that alone.
template <class V>
struct DecisionWeight {
  V row, sample;
};

// terms: sum_k term_k of a soft target.
template <class LossOf, class V, class S>
FASTLOSS_HD SoftmaxOutcome<V> conclude(const LossOf& loss_of, const Likelihood<V>& found, V max,
                                       const DecisionWeight<V>& weight, V terms, const SoftmaxScale<S>& scale) {
  V value{}, slope{}, share{};
  if constexpr (!LossOf::probabilities) {
    ValueSlope<V> f = loss_of(found.nll, found.p, found.q);
    value = weight.row * f.value;
    slope = weight.row * f.slope;
  }
  V mass = slope;  // what the probabilities are multiplied by: the slope, and all the terms
  if constexpr (LossOf::mixes) {
    share = LossOf::probabilities ? weight.sample : weight.sample * scale.smooth;
    if constexpr (!LossOf::probabilities) {
      terms = V{} + scale.class_weights;
      value *= scale.hard;
      slope *= scale.hard;
    }
    mass = slope + share * terms;
  }
  if constexpr (LossOf::extended) {
    if (scale.z_loss != 0) {  // else an infinite logsumexp would come through as nan
      V lse = max + found.log_sum;
      V z = weight.sample * scale.z_loss * lse;
      value += z * lse;
      mass += z + z;
    }
  }
  return {
      value, share, terms, {mass * scale.gradient * found.inverse_sum, slope * scale.gradient}, share * scale.gradient};
}

// weighted: sum_k term_k (x_k - max). Without smoothing that may be infinite, and nothing is made of it.
template <class LossOf, class V, class S>
FASTLOSS_HD V mixed_value(V log_sum, V weighted, V share, V terms, const SoftmaxScale<S>& scale) {
  if (!LossOf::probabilities && scale.smooth == 0) return V{};
  return share * (terms * log_sum - weighted);
}

// Gradient of one class, e = exp(x_k - max), mixed = term_k * share.
template <class LossOf, class V, class IsTarget>
FASTLOSS_HD V class_gradient(const SoftmaxGradient<V>& gradient, V e, IsTarget is_target, V mixed) {
  V g = e * gradient.probability;
  if constexpr (!LossOf::probabilities) g -= select(is_target, gradient.onehot, V{});
  if constexpr (LossOf::mixes) g -= mixed;
  return g;
}

}  // namespace FASTLOSS_NAMESPACE
