// The losses: value f(nll) and slope f'(nll) of one decision, as functors. Everything else in csrc/ is schedule.
//
// A decision is one number, nll = -log p, where p is the probability of the target. The schedules compute nll, p and
// q = 1 - p from the logits and multiply the slope by dnll/dx: p_k - onehot_k (softmax) or sigmoid(x) - t (sigmoid).
// A new loss is one struct here and one line in each schedule's list of losses.
//
// Host and device, no torch. V is a float or double, or a SIMD vector of csrc/cpu/lanes.h; hence select for ?:. The CPU
// compiles this file once per instruction set, each in its own FASTLOSS_NAMESPACE, where the vectors' pow and select
// are.
#pragma once

#include <cmath>
#include <cstdint>

#include "params.h"

#ifdef __CUDACC__
#include "cuda/math.cuh"
#define FASTLOSS_HD __host__ __device__ __forceinline__
#else
#define FASTLOSS_HD inline __attribute__((always_inline))
#endif

#ifndef FASTLOSS_NAMESPACE
#define FASTLOSS_NAMESPACE fastloss
#endif

namespace FASTLOSS_NAMESPACE {

using std::exp;
using std::pow;
using std::sqrt;

// Where the GPU has something shorter, cuda/math.cuh overloads these for its scalars.
template <class V>
FASTLOSS_HD V divide(V a, V b) {
  return a / b;
}
template <class V>
FASTLOSS_HD V exp_nonpositive(V x) {
  return exp(x);
}

// log(1 + e) for e in [0, 1], in float: 2.4 ULP. cuda/math.cuh and cpu/lanes.h overload it for double.
template <class V>
FASTLOSS_HD V log1p_unit(V e) {
  V y = 0.005384021f * e - 0.030110803f;
  y = y * e + 0.07921048f;
  y = y * e - 0.137466f;
  y = y * e + 0.19145106f;
  y = y * e - 0.24852943f;
  y = y * e + 0.33320343f;
  y = y * e - 0.49999553f;
  return (y * e + 1) * e;
}

// -|x|
FASTLOSS_HD float negative_abs(float x) { return -std::fabs(x); }
FASTLOSS_HD double negative_abs(double x) { return -std::fabs(x); }

// max(x, 0)
template <class V>
FASTLOSS_HD V positive_part(V x) {
  return x > V{} ? x : V{};
}

template <class V>
struct ValueSlope {
  V value;  // f(nll)
  V slope;  // f'(nll)
};

FASTLOSS_HD float select(bool condition, float a, float b) { return condition ? a : b; }
FASTLOSS_HD double select(bool condition, double a, double b) { return condition ? a : b; }

FASTLOSS_HD int32_t to_index(float x) { return int32_t(x); }
FASTLOSS_HD int32_t to_index(double x) { return int32_t(x); }

// p * nll, which at p = 0 (a hopeless prediction) is 0, and not 0 * inf.
template <class V>
FASTLOSS_HD V p_times_nll(V nll, V p) {
  return select(p > V{} + 0, p * nll, V{} + 0);
}

// q^gamma for q in [0, 1], gamma >= 0. The branches are on a number that is the same for every decision of a call.
template <class V, class S>
FASTLOSS_HD V power(V q, S gamma) {
  if (gamma == 2) return q * q;
  if (gamma == 1) return q;
  if (gamma == S(0.5)) return sqrt(q);
  if (gamma == 0) return V{} + 1;
  return pow(q, gamma);
}

struct CrossEntropy {
  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(V nll, V /*p*/, V /*q*/) const {
    return {nll, V{} + 1};
  }
};

// Focal loss: q^gamma * nll (Lin et al. 2017, section 3.2). Finite for every gamma >= 0, at p = 1 and at p = 0.
// A gamma that is the same in all calls can be in the type (fixed > 0), so that nothing asks for it in a loop.
template <class S, int fixed = 0>
struct Focal {
  S any_gamma;

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(V nll, V p, V q) const {
    const S gamma = fixed > 0 ? S(fixed) : any_gamma;
    V p_nll = p_times_nll(nll, p);
    if (gamma >= 1) {  // no division: q^(gamma - 1) is finite
      V lower = power(q, gamma - 1);
      return {lower * q * nll, lower * (q + gamma * p_nll)};
    }
    V factor = power(q, gamma);
    // The limit of nll / q at q = 0 (a right prediction: 1e-16 is nothing beside 1) is 1.
    V p_nll_over_q = select(q > V{} + 1e-16f, divide(p_nll, q), p);
    return {factor * nll, factor * (gamma * p_nll_over_q + 1)};
  }

  // A soft target t in [0, 1] of the sigmoid form: q = p + t - 2 p t with p = sigmoid(x), f = q^gamma * bce(x, t).
  // Here the slope is df/dx itself. Not for t = 0 or 1, where q may be 0 and the functor above is exact.
  template <class V>
  FASTLOSS_HD ValueSlope<V> soft(V bce, V p, V t) const {
    const S gamma = fixed > 0 ? S(fixed) : any_gamma;
    V q = p + t - 2 * p * t;
    V factor = power(q, gamma);
    return {factor * bce, factor * (p - t + gamma * bce * p * (1 - p) * (1 - 2 * t) / q)};
  }
};

// ---- sigmoid: one yes/no decision a logit

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

// The sigmoid losses: here the slope is with respect to -z. GHM-C is beta times the cross entropy.
struct SigmoidCrossEntropy {
  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(const Decision<V>& d, V target, bool soft) const {
    return {d.nll, soft ? select(target == 1, d.q, d.q - target) : d.q};
  }
};

template <class FocalLoss>
struct SigmoidFocal {
  FocalLoss focal;

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(const Decision<V>& d, V target, bool soft) const {
    ValueSlope<V> f = focal(d.nll, d.p, d.q);
    f.slope = d.q * f.slope;
    if (soft) {
      ValueSlope<V> s = focal.soft(d.nll, d.q, target);
      auto hard = (target == 1) | (target == 0);
      f = {select(hard, f.value, s.value), select(hard, f.slope, s.slope)};
    }
    return f;
  }
};

// What value and slope of a decision are multiplied by. Sigmoid focal loss's alpha >= 0 is the weight of class 1, class
// 0 has the rest, a soft target lies between them; without (alpha < 0) all have 1. The slope becomes one with respect
// to x, times scale.
template <class S>
struct ClassBalance {
  S zero, one;
  S scale, slope_of_zero, slope_of_one;

  FASTLOSS_HD ClassBalance(double alpha, double scale_of_slope)
      : zero(alpha >= 0 ? S(1 - alpha) : S(1)),
        one(alpha >= 0 ? S(alpha) : S(1)),
        scale(S(scale_of_slope)),
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

// GHM-C (Li et al. 2019, section 3.2): beta[bin] * nll, beta constant. The schedule looks beta up by ghm_bin(q).
// bins has the type of a scalar of V, or is an int32 where V is a scalar.
template <class V, class S>
FASTLOSS_HD auto ghm_bin(V gradient_norm, S bins) {
  V scaled = gradient_norm * bins;
  S last = bins - 1;
  // Written so that a nan takes the last bin: the conversion of a nan is undefined.
  return to_index(select(scaled < last, scaled, V{} + last));
}

// What divides N in beta: this batch's count, or the running count with its start-up bias removed. Updates the running
// statistics when training.
FASTLOSS_HD double ghm_histogram(const GhmState& state, int32_t bin, int64_t count) {
  if (state.momentum <= 0) return double(count);
  if (state.training && count > 0) {
    double& running = state.running_histogram[bin];
    running = state.momentum * running + (1 - state.momentum) * double(count);
    state.num_updates[bin] += 1;
  }
  // A bin that no training step has filled has no history: it is weighted by this batch's own count.
  int64_t updates = state.num_updates[bin];
  if (updates == 0) return double(count);
  return state.running_histogram[bin] / (state.bias_correction ? 1 - pow(state.momentum, double(updates)) : 1.0);
}

// beta of one bin: total valid decisions, num_nonempty bins that have any.
FASTLOSS_HD double ghm_bin_weight(const GhmState& state, int32_t bin, int64_t count, int64_t total,
                                  int32_t num_nonempty) {
  double histogram = ghm_histogram(state, bin, count);
  return count == 0 ? 0 : double(total) / (double(state.nonempty ? num_nonempty : state.bins) * histogram);
}

}  // namespace FASTLOSS_NAMESPACE
