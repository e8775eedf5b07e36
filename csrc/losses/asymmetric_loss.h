// Asymmetric loss: focal loss with an exponent for each class, and the probability of the negatives shifted (Ridnik et
// al. 2021, "Asymmetric Loss for Multi-Label Classification", section 3.2). With p = sigmoid(x) and p_m = max(p -
// margin, 0) it is (1 - p)^gamma_positive * -log p where the label is 1, p_m^gamma_negative * -log(1 - p_m) where it
// is 0.
#pragma once

#include <type_traits>

#include "cross_entropy.h"
#include "focal_loss.h"
#include "params.h"
#include "row.h"
#include "sigmoid.h"

namespace FASTLOSS_NAMESPACE {

// What f is of, and how steep its nll is in the logit.
template <class V>
struct Term {
  V nll, p, q;
  V steepness;
};

// Positive, Negative: f of each class.
template <class Positive, class Negative, class S>
struct Asymmetric {
  static constexpr bool two_sided = true;
  Positive positive;
  Negative negative;
  S margin;

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(const Decision<V>& d, V target, bool /*soft*/) const {
    const Term<V> one = {d.nll, d.p, d.q, d.q}, zero = margin < S(1e-30) ? one : shifted(d);
    if constexpr (std::is_same_v<V, S> && std::is_same_v<Positive, Negative>) {
      // One decision at a time: the code of one f.
      const Term<V> term = target == 1 ? one : zero;
      return times((target == 1 ? positive : negative)(term.nll, term.p, term.q), term.steepness);
    } else {
      ValueSlope<V> f = times(positive(one.nll, one.p, one.q), one.steepness);
      ValueSlope<V> g = times(negative(zero.nll, zero.p, zero.q), zero.steepness);
      return {select(target == 1, f.value, g.value), select(target == 1, f.slope, g.slope)};
    }
  }

 private:
  template <class V>
  static FASTLOSS_HD ValueSlope<V> times(ValueSlope<V> f, V steepness) {
    return {f.value, f.slope * steepness};
  }

  // A margin below 1e-30 is none: the kernels' logarithm knows no subnormal number.
  template <class V>
  FASTLOSS_HD Term<V> shifted(const Decision<V>& d) const {
    auto discarded = d.q <= V{} + margin;  // a nan is not
    V q = select(discarded, V{}, d.q - margin);
    V p = select(discarded, V{} + 1, d.p + margin);
    return {nll_of(p, q), p, q, select(discarded, V{}, d.q * divide(d.p, p))};
  }
};

struct AsymmetricLoss {
  static constexpr LossRow row = {
      .name = "asymmetric_loss", .parameter = "gamma_positive", .low = 0, .high = 16, .asymmetric = true};

  template <class S, class With>
  static auto with(const SigmoidParams& params, const With& with) {
    const S positive = S(params.parameter), negative = S(params.gamma_negative), margin = S(params.margin);
    // The paper's choice.
    if (positive == 0 && negative == 4) {
      return with(Asymmetric<CrossEntropy, Focal<S, 4>, S>{CrossEntropy{}, Focal<S, 4>{}, margin});
    }
    return with(Asymmetric<Focal<S>, Focal<S>, S>{Focal<S>{positive}, Focal<S>{negative}, margin});
  }
};

}  // namespace FASTLOSS_NAMESPACE
