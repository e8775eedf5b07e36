// What every loss consists of: value f(nll) and slope f'(nll) of one decision, and a row of the table.
//
// A decision is one number, nll = -log p, where p is the probability of the target. The schedules compute nll, p and
// q = 1 - p from the logits and multiply the slope by dnll/dx: p_k - onehot_k (softmax) or sigmoid(x) - t (sigmoid).
//
// A new loss is a file beside this one and its name in table.h: a functor with the operator below, and a struct with
//   static constexpr LossRow row;
//   template <class S, class With> static auto with(S parameter, const With& with) { return with(functor); }
#pragma once

#include "math.h"

namespace FASTLOSS_NAMESPACE {

template <class V>
struct ValueSlope {
  V value;  // f(nll)
  V slope;  // f'(nll)
};

struct LossRow {
  const char* name;       // of the op and of the Python function
  const char* parameter;  // the op's argument
  double low, high;       // its range
};

// The largest slope of a loss: 1 + parameter bounds that of every row (and label smoothing's mass). Times the largest
// weight and divided by the denominator it bounds a gradient.
FASTLOSS_HD double steepest(double parameter) { return 1 + std::fabs(parameter); }

// What a float16 gradient that is nowhere larger than `bound` is stored times: the power of two that brings it to the
// upper end of float16, whose range (6e-8 to 65504) the gradient of a mean over many decisions would fall out of.
FASTLOSS_HD double float16_scale(double bound) {
  if (!(bound > 0 && bound < 1e30)) return 1;  // no decision, or no bound
  int exponent;
  std::frexp(bound, &exponent);  // bound < 2^exponent
  return std::ldexp(1.0, 15 - exponent);
}

}  // namespace FASTLOSS_NAMESPACE
