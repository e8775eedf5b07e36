// What every loss consists of: value f(nll) and slope f'(nll) of one decision, and a row of the table.
//
// A decision is one number, nll = -log p, where p is the probability of the target. The schedules compute nll, p and
// q = 1 - p from the logits and multiply the slope by dnll/dx: p_k - onehot_k (softmax) or sigmoid(x) - t (sigmoid).
//
// A new loss is a file beside this one and its name in table.h: a functor with the operator below, and a struct with
//   static constexpr LossRow row;
//   template <class S> static FASTLOSS_HD auto any(S parameter) { return functor; }
//   template <class S, class With> static auto with(S parameter, const With& with) { return with(functor); }
// where with may choose a functor that is quicker for this parameter.
// A sigmoid loss's functor is of a Decision (sigmoid.h), and its `with` is given the call's SigmoidParams.
#pragma once

#include "math.h"
#include "params.h"

namespace FASTLOSS_NAMESPACE {

template <class V>
struct ValueSlope {
  V value;  // f(nll)
  V slope;  // f'(nll)
};

// What a functor of a softmax loss is, beside f.
struct OneClass {
  static constexpr bool mixes = false;          // the target is a mixture of classes: each has a term of its own
  static constexpr bool probabilities = false;  // which it is given as probabilities
  static constexpr bool extended = false;       // SoftmaxExtras are asked for
};

struct LossRow {
  const char* name;         // of the op and of the Python function
  const char* parameter;    // the op's argument
  double low, high;         // its range
  bool mixes = false;       // softmax: that parameter is label smoothing, and targets may be class probabilities
  bool asymmetric = false;  // sigmoid: gamma_negative and margin follow it
};

// The largest slope of a loss: 1 + parameter bounds that of every row (and label smoothing's mass). Times the largest
// weight and divided by the denominator it bounds a gradient.
FASTLOSS_HD double steepest(double parameter) { return 1 + std::fabs(parameter); }

FASTLOSS_HD double steepest(const SoftmaxParams& params) {
  const double slope = steepest(params.parameter);
  if (!params.extended) return slope;
  const SoftmaxExtras& extras = params.extras;
  // float16's largest logit, scaled or capped; and log C, which is below 22.
  const double lse = 22 + (extras.softcap > 0 ? extras.softcap : 65504 * extras.logit_scale);
  return extras.logit_scale * (slope + 2 * std::fabs(extras.z_loss) * lse);
}
FASTLOSS_HD double steepest(const SigmoidParams& params) {
  const double gamma = params.parameter > params.gamma_negative ? params.parameter : params.gamma_negative;
  return steepest(gamma);
}

// What a float16 gradient that is nowhere larger than `bound` is stored times: the power of two that brings it to the
// upper end of float16, whose range (6e-8 to 65504) the gradient of a mean over many decisions would fall out of.
FASTLOSS_HD double float16_scale(double bound) {
  if (!(bound > 0 && bound < 1e30)) return 1;  // no decision, or no bound
  int exponent;
  std::frexp(bound, &exponent);  // bound < 2^exponent
  return std::ldexp(1.0, 15 - exponent);
}

}  // namespace FASTLOSS_NAMESPACE
