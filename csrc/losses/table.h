// The losses. From these two lists come, on both devices, the ops' schemas, the checks of their parameter, their
// registration and the choice of the kernel; what Python binds, fakes and differentiates, it reads from the schemas.
#pragma once

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
using SigmoidLosses = Table<SigmoidFocalLoss>;

namespace detail {

template <class S, class With, class First, class... Rest>
auto with_row(Table<First, Rest...>, int32_t row, double parameter, const With& with) {
  if constexpr (sizeof...(Rest) > 0) {
    if (row > 0) return with_row<S>(Table<Rest...>{}, row - 1, parameter, with);
  }
  return First::template with<S>(S(parameter), with);
}

}  // namespace detail

// Calls with(functor) for the loss of a call. S is what it computes in.
template <class S, class With>
auto with_loss(const SoftmaxParams& params, const With& with) {
  return detail::with_row<S>(SoftmaxLosses{}, params.loss_row, params.parameter, with);
}
template <class S, class With>
auto with_loss(const SigmoidParams& params, const With& with) {
  return detail::with_row<S>(SigmoidLosses{}, params.loss_row, params.parameter, with);
}

}  // namespace FASTLOSS_NAMESPACE
