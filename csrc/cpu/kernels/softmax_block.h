// What the tiles and the rows of a softmax loss have in common: the settings of a call, and the end of a decision.
#pragma once

#include "losses.h"
#include "storage.h"

namespace FASTLOSS_NAMESPACE {

// T is stored, S computed.
template <class T, class Loss>
struct SoftmaxBlock {
  using LossOf = Loss;
  using S = Compute<T>;
  using V = Vec<T>;
  using M = typename VectorOf<S>::M;

  // What the classes of W decisions come to.
  struct Sums {
    V max;
    V sum;           // sum_k exp(x_k - max)
    V target_logit;  // x_y
    V weighted;      // sum_k w_k (x_k - max), if smoothed
  };

  const SoftmaxParams& params;
  const Schedule& schedule;
  const Loss loss_of;
  const SoftmaxScale<S> scale;
  const S* weight = static_cast<const S*>(params.weight);  // [C] or null
  const T* input = static_cast<const T*>(params.input);
  T* grad = static_cast<T*>(params.grad);
  S* const loss = params.reduction == Reduction::none ? static_cast<S*>(params.loss) : nullptr;  // [N]
  S* max_of = nullptr;                                                                           // [N]
  S* sum_of = nullptr;                                                                           // [N]

  SoftmaxBlock(const SoftmaxParams& p, const Schedule& how, const CallScale& of_call, const GhmcDecisions* found,
               Loss functor)
      : params(p),
        schedule(how),
        loss_of(functor),
        scale(p, of_call.stored, of_call.denominator, of_call.class_weights) {
    if (found) {
      max_of = static_cast<S*>(found->max);
      sum_of = static_cast<S*>(found->sum);
    }
  }

  S weight_of(int64_t c) const { return weight ? weight[c] : S(1); }

  // Loss and gradient of W decisions, 0 where they are not valid.
  V finish(const Sums& sums, V row_weight, M valid, SoftmaxGradient<V>& gradient) const {
    const Likelihood<V> found = likelihood(sums.max, sums.sum, sums.target_logit);
    const SoftmaxOutcome<V> outcome = conclude(loss_of, found, row_weight, scale);
    V value = outcome.value;
    if constexpr (Loss::smooths) value += smoothed_value(found.log_sum, sums.weighted, scale);
    gradient.probability = select(valid, outcome.gradient.probability, V{});
    gradient.onehot = select(valid, outcome.gradient.onehot, V{});
    return select(valid, value, V{});
  }
};

}  // namespace FASTLOSS_NAMESPACE
