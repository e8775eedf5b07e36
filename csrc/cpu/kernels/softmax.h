// Softmax losses: loss and gradient of a block of decisions in one pass over the logits.
#pragma once

#include "losses.h"
#include "softmax_rows.h"
#include "softmax_tiles.h"

namespace FASTLOSS_NAMESPACE {

inline double softmax(const SoftmaxParams& params, const Schedule& schedule, const CallScale& scale,
                      const GhmcDecisions* found, int64_t begin, int64_t end) {
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    return with_loss<Compute<T>>(params, [&](auto loss_of) {
      using Loss = decltype(loss_of);
      if (schedule.path == Path::rows) {
        return SoftmaxRows<T, Loss>(params, schedule, scale, found, loss_of).run(begin, end);
      }
      return SoftmaxTiles<T, Loss>(params, schedule, scale, found, loss_of).run(begin, end);
    });
  });
}

}  // namespace FASTLOSS_NAMESPACE
