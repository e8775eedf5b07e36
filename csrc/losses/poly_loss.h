// Poly-1: f(nll) = nll + epsilon * q, the first term of cross entropy's series in q weighted anew (Leng et al. 2022,
// "PolyLoss", section 4.1).
#pragma once

#include "row.h"

namespace FASTLOSS_NAMESPACE {

template <class S>
struct Poly : OneClass {
  S epsilon;

  FASTLOSS_HD explicit Poly(S e) : epsilon(e) {}

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(V nll, V p, V q) const {
    return {nll + epsilon * q, 1 + epsilon * p};
  }
};

struct PolyLoss {
  static constexpr LossRow row = {"poly_loss", "epsilon", -1, 1e4};

  template <class S>
  static FASTLOSS_HD Poly<S> any(S epsilon) {
    return Poly<S>(epsilon);
  }
  template <class S, class With>
  static auto with(S epsilon, const With& with) {
    return with(any(epsilon));
  }
};

}  // namespace FASTLOSS_NAMESPACE
