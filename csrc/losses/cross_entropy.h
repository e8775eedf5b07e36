// Cross entropy: f(nll) = nll. Softmax, with and without label smoothing or class probabilities, and sigmoid.
#pragma once

#include "row.h"
#include "sigmoid.h"

namespace FASTLOSS_NAMESPACE {

struct CrossEntropy : OneClass {
  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(V nll, V /*p*/, V /*q*/) const {
    return {nll, V{} + 1};
  }
};

// Label smoothing (Szegedy et al. 2016, section 7) adds a sum over all classes: losses/softmax.h.
struct SmoothedCrossEntropy : CrossEntropy {
  static constexpr bool mixes = true;
};

// Targets are class probabilities: all of the loss is a sum over the classes.
struct SoftCrossEntropy : CrossEntropy {
  static constexpr bool mixes = true;
  static constexpr bool probabilities = true;
  static constexpr bool extended = true;
};

struct CrossEntropyLoss {
  static constexpr LossRow row = {
      .name = "cross_entropy", .parameter = "label_smoothing", .low = 0, .high = 1, .mixes = true};

  // Smoothing is in the algebra around it (losses/softmax.h).
  template <class S>
  static FASTLOSS_HD CrossEntropy any(S /*label_smoothing*/) {
    return {};
  }
  template <class S, class With>
  static auto with(S label_smoothing, const With& with) {
    if (label_smoothing > 0) return with(SmoothedCrossEntropy{});
    return with(CrossEntropy{});
  }
};

// The slope of the sigmoid losses is with respect to -z.
struct SigmoidCrossEntropy {
  static constexpr bool two_sided = false;

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(const Decision<V>& d, V target, bool soft) const {
    return {d.nll, soft ? select(target == 1, d.q, d.q - target) : d.q};
  }
};

}  // namespace FASTLOSS_NAMESPACE
