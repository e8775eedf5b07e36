// The sigmoid decision: one yes or no a logit. What the sigmoid losses are functions of.
#pragma once

#include "params.h"
#include "row.h"

namespace FASTLOSS_NAMESPACE {

// Label 1 or 0 gives z = x or -x; a soft target is taken for 0.
template <class V>
struct Decision {
  V nll;   // softplus(-z); for a soft target the binary cross entropy
  V p, q;  // sigmoid(z), sigmoid(-z)
};

// The one exponential that a decision needs, in [0, 1].
template <class V>
FASTLOSS_HD V decision_exp(V x) {
  return exp_nonpositive(negative_abs(x));
}

// e: decision_exp(x). soft: target may be neither 0 nor 1; the same for all lanes of a vector.
template <class V>
FASTLOSS_HD Decision<V> decide(V x, V e, V target, bool soft) {
  V minus_z = select(target == 1, -x, x);
  V inverse = divide(V{} + 1, 1 + e);
  V small = e * inverse;
  V p = select(minus_z < 0, inverse, small);
  V q = select(minus_z < 0, small, inverse);
  V nll = positive_part(minus_z) + log1p_unit(e);
  // bce = softplus(x) - x t, and a soft target was taken for 0.
  if (soft) nll = select((target == 0) | (target == 1), nll, nll - x * target);
  return {nll, p, q};
}

// |sigmoid(x) - t|, what GHM-C's bins are over.
template <class V>
FASTLOSS_HD V gradient_norm(const Decision<V>& d, V target, bool soft) {
  if (!soft) return d.q;
  V difference = d.q - target;
  V norm = select(difference < 0, -difference, difference);
  return select((target == 1) | (target == 0), d.q, norm);
}

// What value and slope of a decision are multiplied by. Sigmoid focal loss's alpha >= 0 is the weight of class 1, class
// 0 has the rest, a soft target lies between them; without (alpha < 0) all have 1. The slope becomes one with respect
// to x, times scale. F: the same for all decisions (S), or one for each of V.
template <class S, class F = S>
struct ClassBalance {
  F zero, one;
  S scale;
  F slope_of_zero, slope_of_one;

  FASTLOSS_HD ClassBalance(double alpha, double scale_of_slope)
      : ClassBalance(alpha >= 0 ? S(1 - alpha) : S(1), alpha >= 0 ? S(alpha) : S(1), S(scale_of_slope)) {}
  FASTLOSS_HD ClassBalance(F weight_of_zero, F weight_of_one, S scale_of_slope)
      : zero(weight_of_zero),
        one(weight_of_one),
        scale(scale_of_slope),
        slope_of_zero(scale * zero),
        slope_of_one(-scale * one) {}

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(ValueSlope<V> f, V target, bool soft) const {
    V value = zero - V{}, slope = slope_of_zero - V{};  // minus: the compiler sees that it does nothing
    if (soft) {
      value = (one - zero) * target + zero;
      slope = value * scale;
    }
    return {select(target == 1, one - V{}, value) * f.value, select(target == 1, slope_of_one - V{}, slope) * f.slope};
  }
};

// share * x, but 0 without a share, whatever x is.
template <class V>
FASTLOSS_HD V times_share(V share, V x) {
  return select(share == 0, V{}, share * x);
}

template <class LossOf, class Balance, class V>
FASTLOSS_HD ValueSlope<V> balanced(const LossOf& loss_of, const Balance& balance, V x, V e, V target, bool soft) {
  return balance(loss_of(decide(x, e, target, soft), target, soft), target, soft);
}

// Value and slope (with respect to x, times balance.scale) of a decision of the logit x; e: decision_exp(x).
template <class LossOf, class Balance, class V>
FASTLOSS_HD ValueSlope<V> conclude(const LossOf& loss_of, const Balance& balance, V x, V e, V target, bool soft) {
  if constexpr (LossOf::two_sided) {
    ValueSlope<V> one = balanced(loss_of, balance, x, e, soft ? V{} + 1 : target, false);
    if (!soft) return one;
    ValueSlope<V> zero = balanced(loss_of, balance, x, e, V{}, false);  // a soft target has a share of both
    return {times_share(target, one.value) + times_share(1 - target, zero.value),
            times_share(target, one.slope) + times_share(1 - target, zero.slope)};
  } else {
    return balanced(loss_of, balance, x, e, target, soft);
  }
}

}  // namespace FASTLOSS_NAMESPACE
