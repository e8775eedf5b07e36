// Cross entropy: f(nll) = nll. Softmax, with and without label smoothing, and sigmoid.
#pragma once

#include "row.h"
#include "sigmoid.h"

namespace FASTLOSS_NAMESPACE {

struct CrossEntropy {
  static constexpr bool smooths = false;

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(V nll, V /*p*/, V /*q*/) const {
    return {nll, V{} + 1};
  }
};

// Label smoothing (Szegedy et al. 2016, section 7) adds a sum over all classes: losses/softmax.h.
struct SmoothedCrossEntropy : CrossEntropy {
  static constexpr bool smooths = true;
};

struct CrossEntropyLoss {
  static constexpr LossRow row = {"cross_entropy", "label_smoothing", 0, 1};

  template <class S, class With>
  static auto with(S label_smoothing, const With& with) {
    if (label_smoothing > 0) return with(SmoothedCrossEntropy{});
    return with(CrossEntropy{});
  }
};

// The slope of the sigmoid losses is with respect to -z.
struct SigmoidCrossEntropy {
  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(const Decision<V>& d, V target, bool soft) const {
    return {d.nll, soft ? select(target == 1, d.q, d.q - target) : d.q};
  }
};

}  // namespace FASTLOSS_NAMESPACE
