// GHM-C (Li et al. 2019, section 3.2): f(nll) = beta[bin(g)]^power * nll with the gradient norm g = q, beta constant
// and power 1, unless it is to be damped. The schedules count the bins, turn the counts into beta and weight cross
// entropy by it.
#pragma once

#include "cross_entropy.h"
#include "params.h"
#include "row.h"

namespace FASTLOSS_NAMESPACE {

constexpr int64_t kMaxBins = 65536;

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

// beta^power of one bin: total valid decisions, num_nonempty bins that have any.
FASTLOSS_HD double ghm_bin_weight(const GhmState& state, int32_t bin, int64_t count, int64_t total,
                                  int32_t num_nonempty) {
  double histogram = ghm_histogram(state, bin, count);
  double n = state.normalizer == Normalizer::nonempty ? num_nonempty : state.bins;
  if (count == 0) return 0;
  const double beta = double(total) / (n * histogram);
  return state.power == 1 ? beta : pow(beta, state.power);
}

// Cross entropy weighted by a look-up of beta, bin_weights(gradient_norm). Lookup: how a device stages the weights.
template <class Lookup>
struct Ghmc : OneClass {
  static constexpr bool two_sided = false;
  Lookup bin_weights;

  FASTLOSS_HD explicit Ghmc(const Lookup& lookup) : bin_weights(lookup) {}

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(V nll, V p, V q) const {
    return weighted(CrossEntropy{}(nll, p, q), bin_weights(q));
  }
  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(const Decision<V>& d, V target, bool soft) const {
    return weighted(SigmoidCrossEntropy{}(d, target, soft), bin_weights(gradient_norm(d, target, soft)));
  }

 private:
  template <class V>
  static FASTLOSS_HD ValueSlope<V> weighted(ValueSlope<V> f, V beta) {
    return {beta * f.value, beta * f.slope};
  }
};

}  // namespace FASTLOSS_NAMESPACE
