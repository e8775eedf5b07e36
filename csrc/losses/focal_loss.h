// Focal loss: f(nll) = q^gamma * nll (Lin et al. 2017, section 3.2). Finite for every gamma >= 0, at p = 1 and at p =
// 0.
#pragma once

#include "cross_entropy.h"
#include "params.h"
#include "row.h"
#include "sigmoid.h"

namespace FASTLOSS_NAMESPACE {

// p * nll, which at p = 0 (a hopeless prediction) is 0, and not 0 * inf.
template <class V>
FASTLOSS_HD V p_times_nll(V nll, V p) {
  return select(p > V{} + 0, p * nll, V{} + 0);
}

// A gamma that is the same in all calls can be in the type (fixed > 0), so that nothing asks for it in a loop.
template <class S, int fixed = 0>
struct Focal : OneClass {
  S any_gamma;

  FASTLOSS_HD Focal(S gamma = fixed) : any_gamma(gamma) {}

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
    // p (1 - p) before bce: where the one is 0, the other is so large that gamma * bce may be infinite.
    return {factor * bce, factor * (p - t + gamma * (p * (1 - p) * bce) * (1 - 2 * t) / q)};
  }
};

template <class FocalOf>
struct SigmoidFocal {
  static constexpr bool two_sided = false;
  FocalOf focal;

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

// On the GPU all threads of a warp take one branch: it is a softmax row's, and one more kernel for each schedule would
// only make the library larger. A sigmoid loss's is a logit's.
#ifdef __CUDACC__
constexpr bool kFixesGamma = false;
#else
constexpr bool kFixesGamma = true;
#endif

struct FocalLoss {
  static constexpr LossRow row = {"focal_loss", "gamma", 0, 16};

  template <class S>
  static FASTLOSS_HD Focal<S> any(S gamma) {
    return Focal<S>(gamma);
  }
  template <class S, class With>
  static auto with(S gamma, const With& with) {
    if constexpr (kFixesGamma) {
      if (gamma == 2) return with(Focal<S, 2>{});
    }
    return with(any(gamma));
  }
};

struct SigmoidFocalLoss {
  static constexpr LossRow row = {"sigmoid_focal_loss", "gamma", 0, 16};

  template <class S, class With>
  static auto with(const SigmoidParams& params, const With& with) {
    const S gamma = S(params.parameter);
    if (gamma == 0) return with(SigmoidCrossEntropy{});
    if (gamma == 2) return with(SigmoidFocal<Focal<S, 2>>{});
    return with(SigmoidFocal<Focal<S>>{Focal<S>(gamma)});
  }
};

}  // namespace FASTLOSS_NAMESPACE
