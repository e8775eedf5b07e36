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
    V weighted;      // sum_k term_k (x_k - max), if the target mixes classes
  };
  // What a mixture has beside: of each class, and all of them.
  struct Mixture {
    V terms{};  // sum_k term_k, of a soft target
    V share{};  // of the gradient
  };

  const SoftmaxParams& params;
  const Schedule& schedule;
  const Loss loss_of;
  const SoftmaxScale<S> scale;
  const LogitOf<Loss, S> logit_of{params};
  const S* weight = static_cast<const S*>(params.weight);                // [C] or null
  const S* sample_weight = static_cast<const S*>(params.sample_weight);  // [N] or null
  const T* input = static_cast<const T*>(params.input);
  T* grad = static_cast<T*>(params.grad);
  S* const loss = params.reduction == Reduction::none ? static_cast<S*>(params.loss) : nullptr;  // [N]
  S* const lse = Loss::extended ? static_cast<S*>(params.lse) : nullptr;                         // [N]
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

  // Loss and gradient of W decisions, the first count of them from a position on, 0 where they are not valid.
  FASTLOSS_LANE_FN V finish(const Sums& sums, const DecisionWeight<V>& weights, M valid, int64_t position, int count,
                            SoftmaxGradient<V>& gradient, Mixture& mixture) const {
    const Likelihood<V> found = likelihood(sums.max, sums.sum, sums.target_logit);
    const SoftmaxOutcome<V> outcome = conclude(loss_of, found, sums.max, weights, mixture.terms, scale);
    V value = outcome.value;
    if constexpr (Loss::mixes) {
      value += mixed_value<Loss>(found.log_sum, sums.weighted, outcome.share, outcome.terms, scale);
      mixture.share = select(valid, outcome.gradient_share, V{});
    }
    gradient.probability = select(valid, outcome.gradient.probability, V{});
    gradient.onehot = select(valid, outcome.gradient.onehot, V{});
    value = select(valid, value, V{});
    if (lse) store_first(lse + position, select(valid, sums.max + found.log_sum, V{}), count);
    if (loss) store_first(loss + position, value, count);
    if (max_of) {
      store_first(max_of + position, sums.max, count);
      store_first(sum_of + position, sums.sum, count);
    }
    return value;
  }
};

// A decision's class probabilities, which lie as the gradient does.
template <class T>
struct Probabilities {
  using S = Compute<T>;
  using V = Vec<T>;

  const void* target;
  bool is_compute_type;

  explicit Probabilities(const SoftmaxParams& params)
      : target(params.target), is_compute_type(params.target_is_compute_type) {}

  // count of them side by side, the others 0.
  FASTLOSS_LANE_FN V at(int64_t offset, int count) const {
    return std::is_same_v<T, S> || is_compute_type ? load_some(static_cast<const S*>(target) + offset, count)
                                                   : load_some(static_cast<const T*>(target) + offset, count);
  }
  FASTLOSS_LANE_FN void fetch(int64_t offset) const {
    const int64_t size = is_compute_type ? sizeof(S) : sizeof(T);
    __builtin_prefetch(static_cast<const char*>(target) + offset * size, 0, 2);
  }

 private:
  template <class U>
  static FASTLOSS_LANE_FN V load_some(const U* source, int count) {
    return count == W ? load(source) : load_first(source, count);
  }
};

}  // namespace FASTLOSS_NAMESPACE
