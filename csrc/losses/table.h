// The losses. From these two lists come, on both devices, the ops' schemas, the checks of their parameter, their
// registration and the choice of the kernel; what Python binds, fakes and differentiates, it reads from the schemas.
#pragma once

#include "asymmetric_loss.h"
#include "cross_entropy.h"
#include "focal_loss.h"
#include "ghmc_loss.h"
#include "params.h"
#include "poly_loss.h"

namespace FASTLOSS_NAMESPACE {

template <class... Losses>
struct Table {
  static constexpr int32_t size = sizeof...(Losses);
  static constexpr LossRow rows[] = {Losses::row...};
};

using SoftmaxLosses = Table<CrossEntropyLoss, FocalLoss, PolyLoss>;
using SigmoidLosses = Table<SigmoidFocalLoss, AsymmetricLoss>;

namespace detail {

// parameters: what the losses of this table choose their functor by.
template <class S, class Parameters, class With, class First, class... Rest>
auto with_row(Table<First, Rest...>, int32_t row, const Parameters& parameters, const With& with) {
  if constexpr (sizeof...(Rest) > 0) {
    if (row > 0) return with_row<S>(Table<Rest...>{}, row - 1, parameters, with);
  }
  return First::template with<S>(parameters, with);
}

// Any softmax loss, with everything that SoftmaxExtras asks for: its row is looked at as it runs. One functor, since a
// kernel for each loss would be as many again, for what few calls want.
template <class S>
struct AnySoftmax : OneClass {
  static constexpr bool mixes = true;
  static constexpr bool extended = true;
  int32_t row;
  double parameter;

  FASTLOSS_HD AnySoftmax(int32_t r, double p) : row(r), parameter(p) {}

  template <class V>
  FASTLOSS_HD ValueSlope<V> operator()(V nll, V p, V q) const {
    return of_row(SoftmaxLosses{}, row, nll, p, q);
  }

 private:
  template <class V, class First, class... Rest>
  FASTLOSS_HD ValueSlope<V> of_row(Table<First, Rest...>, int32_t r, V nll, V p, V q) const {
    if constexpr (sizeof...(Rest) > 0) {
      if (r > 0) return of_row(Table<Rest...>{}, r - 1, nll, p, q);
    }
    return First::any(S(parameter))(nll, p, q);
  }
};

}  // namespace detail

// Calls with(functor) for the loss of a call. S is what it computes in.
template <class S, class With>
auto with_loss(const SoftmaxParams& params, const With& with) {
  if (params.probabilities) return with(SoftCrossEntropy{});
  if (params.extended) return with(detail::AnySoftmax<S>(params.loss_row, params.parameter));
  return detail::with_row<S>(SoftmaxLosses{}, params.loss_row, params.parameter, with);
}
template <class S, class With>
auto with_loss(const SigmoidParams& params, const With& with) {
  return detail::with_row<S>(SigmoidLosses{}, params.loss_row, params, with);
}

}  // namespace FASTLOSS_NAMESPACE
