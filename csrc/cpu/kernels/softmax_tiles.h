// Softmax losses, a tile of W decisions at a time: max, exponentials and their sum, nll, f and f', and the gradient
// f'(nll) * (p - onehot), while the logits are staged in the caches.
// Precondition: targets are in [0, C) or ignore_index (device.cpp has checked).
#pragma once

#include "softmax_block.h"
#include "targets.h"
#include "tiles.h"

namespace FASTLOSS_NAMESPACE {

template <class T, class Loss>
struct SoftmaxTiles : SoftmaxBlock<T, Loss> {
  using Block = SoftmaxBlock<T, Loss>;
  using Block::Block, Block::finish, Block::loss, Block::max_of, Block::params, Block::scale, Block::schedule;
  using Block::sum_of, Block::weight, Block::weight_of;
  using typename Block::M, typename Block::S, typename Block::Sums, typename Block::V;

  // What the pass over a tile's logits finds.
  struct Found {
    M target, valid;
    Sums sums;
  };

  // Writes loss and gradient of decisions [begin, end); the sum of their losses.
  double run(int64_t begin, int64_t end) const {
    Sum sum;
    Found found[kTogether];
    SoftmaxGradient<V> gradient[kTogether];
    auto compute = [&](V* staged, int tiles, int64_t position, Fetch<T> fetch) {
      to_exponentials(staged, tiles, position, end, fetch, found, gradient, sum);
    };
    auto gradient_of = [&](const V* staged, int i) {
      return [=, this, target = found[i].target, valid = found[i].valid, of_tile = gradient[i]](int64_t c)
                 FASTLOSS_LAMBDA {
                   V w = {};
                   if constexpr (Loss::smooths) w += weight_of(c);
                   V g = class_gradient<Loss>(of_tile, staged[c], target == M{} + ScalarOf<M>(c), w, scale);
                   if constexpr (Loss::smooths) g = select(valid, g, V{});  // else all its parts are 0
                   (void)valid;
                   return g;
                 };
    };
    for_each_tile<T>(params, schedule, begin, end, compute, gradient_of);
    return sum.total();
  }

 private:
  V weights_of(M target, M valid) const {
    if (!weight) return V{} + 1;  // finish() leaves out what is ignored
    S row_weight[W];
    for (int lane = 0; lane < W; ++lane) row_weight[lane] = valid[lane] ? weight[target[lane]] : S(0);
    return load(row_weight);
  }

  // staged [tiles, C]: logits in, exponentials out. Adds the losses to sum, or writes them where reduction is none.
  void to_exponentials(V* staged, int tiles, int64_t position, int64_t end, Fetch<T> fetch, Found* found,
                       SoftmaxGradient<V>* gradient, Sum& sum) const {
    const int64_t C = params.C;
    for (int i = 0; i < tiles; ++i) {
      int count = int(std::min<int64_t>(end - position - i * W, W));
      found[i] = exponentials(staged + i * C, position + i * W, count, fetch);
      fetch.next_tile();
    }
    for (int i = 0; i < tiles; ++i) {
      const auto& [target, valid, sums] = found[i];
      const int64_t at = position + i * W;
      const int count = int(std::min<int64_t>(end - at, W));
      V value = finish(sums, weights_of(target, valid), valid, gradient[i]);
      if (loss) store_first(loss + at, value, count);
      if (max_of) {
        store_first(max_of + at, sums.max, count);
        store_first(sum_of + at, sums.sum, count);
      }
      sum.add(value);
    }
  }

  // staged [C]: logits in, exponentials out, and 0 for the decisions that are ignored.
  Found exponentials(V* staged, int64_t position, int count, const Fetch<T>& fetch) const {
    const int32_t C = int32_t(params.C);
    M target = load_targets<M>(params, position, count);
    M valid = target != M{} - 1;
    if (!any(valid)) {
      for (int32_t c = 0; c < C; ++c) staged[c] = V{};
      return {target, valid, {V{}, V{} + 1, V{}, V{}}};
    }
    Sums sums = {staged[0], V{}, V{}, V{}};
    for (int32_t c = 1; c < C; ++c) sums.max = max(staged[c], sums.max);
    M c_lanes = {};  // c; counting is cheaper than bringing c into a vector
    for (int32_t c = 0; c < C; ++c, c_lanes += 1) {
      fetch.of_class(c);
      V x = staged[c];
      V shifted = x - sums.max;
      V e = exp(shifted);
      sums.sum += e;
      sums.target_logit = select(target == c_lanes, x, sums.target_logit);
      if constexpr (Loss::smooths) sums.weighted += weight_of(c) * shifted;
      staged[c] = e;
    }
    if (any(~valid)) {  // no gradient, whatever the logits: 0 * nan is not 0
      for (int32_t c = 0; c < C; ++c) staged[c] = select(valid, staged[c], V{});
    }
    return {target, valid, sums};
  }
};

}  // namespace FASTLOSS_NAMESPACE
