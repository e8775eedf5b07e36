// Softmax losses, a tile of W decisions at a time: max, exponentials and their sum, nll, f and f', and the gradient
// f'(nll) * (p - onehot), while the logits are staged in the caches. Beside them are staged the terms of soft targets,
// and the slopes of capped logits.
// Precondition: targets are in [0, C) or ignore_index (device.cpp has checked).
#pragma once

#include "softmax_block.h"
#include "targets.h"
#include "tiles.h"

namespace FASTLOSS_NAMESPACE {

template <class T, class Loss>
struct SoftmaxTiles : SoftmaxBlock<T, Loss> {
  using Block = SoftmaxBlock<T, Loss>;
  using Block::Block, Block::finish, Block::grad, Block::logit_of, Block::params, Block::sample_weight, Block::scale;
  using Block::schedule, Block::weight, Block::weight_of;
  using typename Block::M, typename Block::Mixture, typename Block::S, typename Block::Sums, typename Block::V;

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
    Mixture mixture[kTogether];
    const int64_t C = params.C, beside = kTogether * C;
    const std::unique_ptr<V[]> terms(Loss::probabilities ? new V[beside] : nullptr);       // [tiles, C]
    const std::unique_ptr<V[]> slopes(grad && logit_of.caps() ? new V[beside] : nullptr);  // [tiles, C]
    std::optional<SoftTargets> soft_targets;
    if constexpr (Loss::probabilities) soft_targets.emplace(params, schedule.path, begin);
    // staged [tiles, C]: logits in, exponentials out. Adds the losses to sum, or writes them where reduction is none.
    auto compute = [&](V* staged, int tiles, int64_t position, Fetch<T> fetch) {
      for (int i = 0; i < tiles; ++i) {
        const int count = int(std::min<int64_t>(end - position - i * W, W));
        V* of_tile = Loss::probabilities ? terms.get() + i * C : nullptr;
        if constexpr (Loss::probabilities) {
          soft_targets->take(count, of_tile);
          for (int64_t c = 0; c < C; ++c) of_tile[c] = class_term<Loss>(V{} + weight_of(c), of_tile[c], scale);
        }
        V* slopes_of_tile = slopes ? slopes.get() + i * C : nullptr;
        found[i] = exponentials(staged + i * C, of_tile, slopes_of_tile, position + i * W, count, fetch, mixture[i]);
        fetch.next_tile();
      }
      for (int i = 0; i < tiles; ++i) {
        const auto& [target, valid, sums] = found[i];
        const int64_t at = position + i * W;
        const int count = int(std::min<int64_t>(end - at, W));
        sum.add(finish(sums, weights_of(target, valid, at, count), valid, at, count, gradient[i], mixture[i]));
      }
    };
    auto gradient_of = [&](const V* staged, int i) {
      const V* terms_of_tile = terms.get() + i * C;
      const V* slopes_of_tile = slopes ? slopes.get() + i * C : nullptr;
      const V share = Loss::mixes ? mixture[i].share : V{};
      return [=, this, target = found[i].target, valid = found[i].valid, of_tile = gradient[i]](int64_t c)
                 FASTLOSS_LAMBDA {
                   V mixed = {};
                   if constexpr (Loss::mixes) {
                     mixed = share * (Loss::probabilities ? terms_of_tile[c] : V{} + weight_of(c));
                   }
                   V g = class_gradient<Loss>(of_tile, staged[c], target == M{} + ScalarOf<M>(c), mixed);
                   if (Loss::extended && slopes_of_tile) g *= slopes_of_tile[c];
                   if constexpr (Loss::mixes) g = select(valid, g, V{});  // else all its parts are 0
                   (void)valid, (void)slopes_of_tile, (void)terms_of_tile, (void)share;
                   return g;
                 };
    };
    for_each_tile<T>(params, schedule, begin, end, compute, gradient_of);
    return sum.total();
  }

 private:
  // Walks the class probabilities of decisions in the tiles' order.
  struct SoftTargets {
    const Probabilities<T> probabilities;
    const Path path;
    const int64_t C;
    const Layout layout;
    Positions positions;

    SoftTargets(const SoftmaxParams& params, Path how, int64_t begin)
        : probabilities(params),
          path(how),
          C(params.C),
          layout(of_second_tensor(params.layout)),
          positions(layout, begin) {}

    // Those of the next count decisions: into [C].
    void take(int count, V* into) {
      Tile tile;
      tile.take(positions, count);
      if (path == Path::positions && tile.uniform && tile.input_step == 1) {
        for (int64_t c = 0; c < C; ++c) into[c] = probabilities.at(tile.input[0] + c * layout.class_stride, count);
      } else if (probabilities.is_compute_type) {
        load_tile(static_cast<const S*>(probabilities.target), layout, path, tile, C, into);
      } else {
        load_tile(static_cast<const T*>(probabilities.target), layout, path, tile, C, into);
      }
    }

   private:
    static Layout of_second_tensor(Layout layout) {
      std::copy(layout.grad_stride, layout.grad_stride + kMaxDims, layout.stride);
      layout.class_stride = layout.grad_class_stride;
      return layout;
    }
  };

  FASTLOSS_LANE_FN DecisionWeight<V> weights_of(M target, M valid, int64_t position, int count) const {
    V row = V{} + 1;  // finish() leaves out what is ignored
    if (!Loss::probabilities && weight) {
      S row_weight[W];
      for (int lane = 0; lane < W; ++lane) row_weight[lane] = valid[lane] ? weight[target[lane]] : S(0);
      row = load(row_weight);
    }
    if (!sample_weight) return {row, V{} + 1};
    const V sample = load_first(sample_weight + position, count);
    return {row * sample, sample};
  }

  // staged [C]: logits in, exponentials out, and 0 for the decisions that are ignored. terms [C]: of a soft target, or
  // null; slopes [C]: written, those of the logits, or null.
  Found exponentials(V* staged, const V* terms, V* slopes, int64_t position, int count, const Fetch<T>& fetch,
                     Mixture& mixture) const {
    const int32_t C = int32_t(params.C);
    const M target = Loss::probabilities ? M{} - 1 : load_targets<M>(params, position, count);
    const M valid = Loss::probabilities ? lane_numbers<M>() < count : target != M{} - 1;
    if (!any(valid)) {
      for (int32_t c = 0; c < C; ++c) staged[c] = V{};
      if (slopes) std::fill(slopes, slopes + C, V{});
      return {target, valid, {V{}, V{} + 1, V{}, V{}}};
    }
    Sums sums = {staged[0], V{}, V{}, V{}};
    if constexpr (Loss::probabilities) mixture.terms = V{};
    (void)mixture;
    for (int32_t c = 1; c < C; ++c) sums.max = max(staged[c], sums.max);
    sums.max = logit_of(sums.max);  // logits rise with what they are made of
    if constexpr (Loss::probabilities) sums.target_logit = sums.max;
    V some_terms = {};
    M c_lanes = {};  // c; counting is cheaper than bringing c into a vector
    for (int32_t c = 0; c < C; ++c, c_lanes += 1) {
      fetch.of_class(c);
      if (Loss::extended && slopes) slopes[c] = logit_of.slope(staged[c]);
      V x = logit_of(staged[c]);
      V shifted = x - sums.max;
      V e = exp(shifted);
      sums.sum += e;
      if constexpr (!Loss::probabilities) sums.target_logit = select(target == c_lanes, x, sums.target_logit);
      if constexpr (Loss::mixes) sums.weighted += (Loss::probabilities ? terms[c] : V{} + weight_of(c)) * shifted;
      if constexpr (Loss::probabilities) {  // some at a time: one long sum's rounding errors would grow with C
        some_terms += terms[c];
        if (c % 16 == 15) mixture.terms += some_terms, some_terms = V{};
      }
      staged[c] = e;
    }
    if constexpr (Loss::probabilities) mixture.terms += some_terms;
    (void)some_terms;
    if (any(~valid)) {  // no gradient, whatever the logits: 0 * nan is not 0
      for (int32_t c = 0; c < C; ++c) staged[c] = select(valid, staged[c], V{});
    }
    return {target, valid, sums};
  }
};

}  // namespace FASTLOSS_NAMESPACE
