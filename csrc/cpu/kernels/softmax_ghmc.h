// GHM-C after cross entropy: its loss is beta * nll and its gradient beta times cross entropy's, so what is left of a
// second pass are one factor a decision, and a multiplication of the gradient while it is in cache or, where that is
// not done, one exponential a logit.
#pragma once

#include "ghm.h"
#include "losses.h"
#include "rows.h"
#include "scale_gradient.h"
#include "targets.h"
#include "tiles.h"

namespace FASTLOSS_NAMESPACE {

template <class T>
struct SoftmaxGhmc {
  using S = Compute<T>;
  using V = Vec<T>;
  using M = typename VectorOf<S>::M;

  const SoftmaxParams& params;
  const Schedule& schedule;
  const GhmcDecisions& found;
  const SoftmaxScale<S> scale;
  const BinWeights<S> beta_of{params.bin_weight, params.ghm.bins};
  const S* nll = static_cast<const S*>(found.nll);
  const S* max_of = static_cast<const S*>(found.max);
  const S* sum_of = static_cast<const S*>(found.sum);
  const T* input = static_cast<const T*>(params.input);
  T* grad = static_cast<T*>(params.grad);

  double run(int64_t begin, int64_t end) const {
    Sum sum;
    if (schedule.output == Output::loss_only) {
      for (int64_t position = begin; position < end; position += W) weigh(position, end, sum);
    } else if (schedule.output == Output::multiplied) {
      multiply(begin, end, sum);
    } else if (schedule.path == Path::rows) {
      rows(begin, end, sum);
    } else {
      tiles(begin, end, sum);
    }
    return sum.total();
  }

 private:
  // Adds the losses of W decisions to sum, or writes them where reduction is none. Returns what cross entropy's
  // gradient is to be multiplied by: beta and the scale, 0 where a decision is ignored.
  V weigh(int64_t position, int64_t end, Sum& sum) const {
    const int count = int(std::min<int64_t>(end - position, W));
    M bin = load_bins<M>(found.bin + position, count);
    M valid = bin >= 0;
    V beta = beta_of.at(bin & valid);
    V value = select(valid, beta * load_first(nll + position, count), V{});
    if (params.reduction == Reduction::none) store_first(static_cast<S*>(params.loss) + position, value, count);
    sum.add(value);
    return select(valid, beta * scale.gradient, V{});
  }

  void multiply(int64_t begin, int64_t end, Sum& sum) const {
    Layout layout = params.layout;  // the gradient is both what is multiplied and where it goes
    std::copy(layout.grad_stride, layout.grad_stride + kMaxDims, layout.stride);
    const RowScale<T> scale_rows(grad, grad, params.C, layout);
    Positions positions(layout, begin);
    for (int64_t position = begin; position < end; position += W) {
      Tile tile;
      tile.take(positions, int(std::min<int64_t>(end - position, W)));
      scale_rows(tile, weigh(position, end, sum));
    }
  }

  void tiles(int64_t begin, int64_t end, Sum& sum) const {
    auto to_gradients = [&](V* staged, int tiles, int64_t position, Fetch<T> fetch) {
      for (int i = 0; i < tiles; ++i, fetch.next_tile()) {
        to_gradient(staged + i * params.C, position + i * W, end, fetch, sum);
      }
    };
    auto gradient_of = [](const V* staged, int) { return [staged](int64_t c) FASTLOSS_LAMBDA { return staged[c]; }; };
    for_each_tile<T>(params, schedule, begin, end, to_gradients, gradient_of);
  }

  // Cross entropy's gradient times factor, from what the first pass found.
  FASTLOSS_LANE_FN V gradient_at(V logits, V max, V probability, V onehot, M is_target) const {
    return class_gradient<CrossEntropy>(SoftmaxGradient<V>{probability, onehot}, exp(logits - max), is_target, V{});
  }

  // staged [C]: logits in, gradient out.
  void to_gradient(V* staged, int64_t position, int64_t end, const Fetch<T>& fetch, Sum& sum) const {
    const int32_t C = int32_t(params.C);
    const int count = int(std::min<int64_t>(end - position, W));
    const M target = load_targets<M>(params, position, count);
    const M valid = target != M{} - 1;
    const V factor = weigh(position, end, sum);
    const V max = load_first(max_of + position, count);
    const V probability = select(valid, factor / load_first(sum_of + position, count), V{});
    const bool ignores = any(~valid);
    M c_lanes = {};
    for (int32_t c = 0; c < C; ++c, c_lanes += 1) {
      fetch.of_class(c);
      V g = gradient_at(staged[c], max, probability, factor, target == c_lanes);
      staged[c] = ignores ? select(valid, g, V{}) : g;  // whatever the logits: 0 * nan is not 0
    }
  }

  void rows(int64_t begin, int64_t end, Sum& sum) const {
    Positions positions(params.layout, begin);
    V factor = {};
    for (int64_t position = begin; position < end; ++position, positions.advance(1)) {
      const int lane = int((position - begin) % W);
      if (lane == 0) factor = weigh(position, end, sum);
      write_row(input + positions.input, grad + positions.grad, position, factor[lane]);
    }
    if (schedule.output == Output::streamed) finish_streaming();
  }

  void write_row(const T* x, T* row, int64_t position, S factor) const {
    if (found.bin[position] < 0) {
      memset(row, 0, params.C * sizeof(T));
      return;
    }
    const int64_t target = target_at(params, position);
    const V onehot = V{} + factor, probability = V{} + factor / sum_of[position], max = V{} + max_of[position];
    const RowStore<T> to(row, params.C, schedule.output == Output::streamed);
    to.write(to.first, [&](int64_t c, int count) FASTLOSS_LAMBDA {
      V logits = count == W ? load(x + c) : load_first(x + c, count);
      return gradient_at(logits, max, probability, onehot, lane_numbers<M>() + ScalarOf<M>(c - target) == 0);
    });
  }
};

inline double softmax_ghmc(const SoftmaxParams& params, const Schedule& schedule, const CallScale& of_call,
                           const GhmcDecisions& found, int64_t begin, int64_t end) {
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    const SoftmaxScale<Compute<T>> scale(params, of_call.stored, of_call.denominator, of_call.class_weights);
    return SoftmaxGhmc<T>{params, schedule, found, scale}.run(begin, end);
  });
}

template <class S>
inline void softmax_bins_of(const SoftmaxParams& params, const GhmcDecisions& found, int64_t begin, int64_t end,
                            int64_t* counts) {
  using V = typename VectorOf<S>::V;
  using M = typename VectorOf<S>::M;
  BinCounts bin_counts(params.ghm.bins, counts);
  for (int64_t position = begin; position < end; position += W) {
    const int count = int(std::min<int64_t>(end - position, W));
    const V nll = load_first(static_cast<const S*>(found.nll) + position, count);
    const M valid = load_targets<M>(params, position, count) != -1;
    const M bin = ghm_bin(one_minus_p(nll, exp(-nll)), S(params.ghm.bins));
    bin_counts.add(bin, valid);
    store_bins(found.bin + position, bin | ~valid, count);  // -1 where ignored
  }
  bin_counts.finish();
}

inline void softmax_bins(const SoftmaxParams& params, const GhmcDecisions& found, int64_t begin, int64_t end,
                         int64_t* counts) {
  with_storage(params.dtype,
               [&](auto storage) { softmax_bins_of<Compute<decltype(storage)>>(params, found, begin, end, counts); });
}

}  // namespace FASTLOSS_NAMESPACE
