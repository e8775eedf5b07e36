// Softmax losses, a row at a time.
//
// Reading, computing and writing go on at the same time: while the exponentials of a row are computed and staged, the
// gradient of the row before it (Pending) is written, and the logits of the row after it are fetched. Each row's logits
// are read before its gradient is written, so the gradient may overwrite them. Where the logits are capped, their slope
// is computed from them once more: a vector of them is read just before its gradient goes there.
// Precondition: targets are in [0, C) or ignore_index (device.cpp has checked).
#pragma once

#include "positions.h"
#include "rows.h"
#include "softmax_block.h"
#include "targets.h"

namespace FASTLOSS_NAMESPACE {

template <class T, class Loss>
struct SoftmaxRows : SoftmaxBlock<T, Loss> {
  using Block = SoftmaxBlock<T, Loss>;
  using Block::Block, Block::finish, Block::grad, Block::input, Block::logit_of, Block::loss, Block::lse;
  using Block::params, Block::sample_weight, Block::scale, Block::schedule, Block::weight, Block::weight_of;
  using typename Block::M, typename Block::Mixture, typename Block::S, typename Block::Sums, typename Block::V;

  // A row that is staged, and whose gradient is yet to be written.
  struct Pending {
    RowStore<T> to;
    S* staged = nullptr;   // [C] exponentials, in whole vectors
    const T* x = nullptr;  // [C]
    int64_t target = 0;
    int64_t probabilities = 0;  // where those of a soft target begin
    SoftmaxGradient<S> gradient = {};
    S share = 0;  // of a mixture
  };
  const Probabilities<T> probabilities{params};

  // Writes loss and gradient of decisions [begin, end); the sum of their losses.
  double run(int64_t begin, int64_t end) const {
    const int64_t C = params.C, pitch = (C + W - 1) / W * W;
    // Two rows in turn. A vector that begins inside a row may end outside.
    std::unique_ptr<S[]> staged(new S[2 * pitch + W]);
    Positions positions(params.layout, begin);
    Pending before;
    double sum = 0;
    for (int64_t position = begin; position < end; ++position) {
      const T* x = input + positions.input;
      T* row_grad = grad ? grad + positions.grad : nullptr;
      const int64_t second_tensor = positions.grad;
      positions.advance(1);
      const T* next = position + 1 < end ? input + positions.input : x;
      const int64_t target = Loss::probabilities ? -1 : target_at(params, position);
      if (Loss::probabilities || target != params.ignore_index) {
        Pending row;
        if (grad) row.to = RowStore<T>(row_grad, C, schedule.output == Output::streamed);
        row.staged = staged.get() + (before.staged == staged.get() ? pitch : 0);
        row.x = x;
        row.target = target;
        row.probabilities = second_tensor;
        Mixture mixture;
        const int64_t next_probabilities = position + 1 < end ? positions.grad : second_tensor;
        const Sums sums = exponentials(row, before, next, next_probabilities, mixture);
        // One decision in the first lane: the vectors' log, exp and pow serve for scalars too.
        const S sample = sample_weight ? sample_weight[position] : S(1);
        const DecisionWeight<V> weights = {V{} + (Loss::probabilities ? S(0) : weight_of(target) * sample),
                                           V{} + sample};
        SoftmaxGradient<V> gradient;
        sum += double(finish(sums, weights, lane_numbers<M>() == 0, position, 1, gradient, mixture)[0]);
        row.gradient = {gradient.probability[0], gradient.onehot[0]};
        row.share = mixture.share[0];
        before = row;
      } else {
        if (grad) memset(row_grad, 0, C * sizeof(T));
        if (loss) loss[position] = 0;
        if (lse) lse[position] = 0;
      }
    }
    if (before.to.grad) GradientWriter(*this, before).finish();
    if (schedule.output == Output::streamed) finish_streaming();
    return sum;
  }

 private:
  // Writes the gradient of a pending row, some vectors at a time.
  struct GradientWriter {
    const SoftmaxRows& block;
    const Pending& row;
    const SoftmaxGradient<V> gradient = {V{} + row.gradient.probability, V{} + row.gradient.onehot};
    int64_t c = row.to.first;                                       // the next class
    M to_target = lane_numbers<M>() + ScalarOf<M>(c - row.target);  // its lanes' distance from the target

    FASTLOSS_LANE_FN GradientWriter(const SoftmaxRows& rows, const Pending& pending) : block(rows), row(pending) {}

    FASTLOSS_LANE_FN void write_vector() {
      row.to.vector(c, at(c, W, to_target));
      c += W;
      to_target += W;
    }
    FASTLOSS_LANE_FN void finish() const {
      row.to.write(c, [&](int64_t from, int count) FASTLOSS_LAMBDA {
        return at(from, count, lane_numbers<M>() + ScalarOf<M>(from - row.target));
      });
    }

   private:
    // The gradient of count classes. The target's part is here and not put in afterwards: a streamed line would have
    // to come back for it.
    FASTLOSS_LANE_FN V at(int64_t from, int count, M distance) const {
      V mixed = {};
      if constexpr (Loss::mixes) mixed = block.terms_at(row, from, count) * row.share;
      V g = class_gradient<Loss>(gradient, load(row.staged + from), distance == 0, mixed);
      if (block.logit_of.caps())
        g *= block.logit_of.slope(count == W ? load(row.x + from) : load_first(row.x + from, count));
      return g;
    }
  };

  // The largest of C logits, in every lane; tail: those after the last whole vector.
  FASTLOSS_LANE_FN V highest(const T* x, V tail) const {
    const V lowest = V{} - S(INFINITY);
    const int64_t whole = params.C / W * W;
    V high[4] = {tail, lowest, lowest, lowest};
    int64_t c = 0;
    for (; c + 4 * W <= whole; c += 4 * W) {
      for (int i = 0; i < 4; ++i) high[i] = max(load(x + c + i * W), high[i]);
    }
    for (; c < whole; c += W) high[0] = max(load(x + c), high[0]);
    return V{} + max_lane(max(max(high[0], high[1]), max(high[2], high[3])));
  }

  // Stages the exponentials of a row and writes the gradient of the row before it.
  Sums exponentials(const Pending& row, const Pending& before, const T* next, int64_t next_probabilities,
                    Mixture& mixture) const {
    const T* x = row.x;
    const int64_t whole = params.C / W * W;
    const int rest = int(params.C - whole);
    const M in_rest = lane_numbers<M>() < rest;
    const V lowest = V{} - S(INFINITY);
    const V tail = rest ? select(in_rest, load_first(x + whole, rest), lowest) : lowest;
    const V max = logit_of(highest(x, tail));  // logits rise with what they are made of

    // A stretch of classes at a time, and the stretches in float64: one long sum's rounding errors would grow with C.
    constexpr int64_t stretch = 64 * W;
    V sum[2] = {}, weighted = {}, terms = {};
    Sum sum_of_stretches, weighted_of_stretches, terms_of_stretches;
    auto end_stretch = [&]() FASTLOSS_LAMBDA {
      sum_of_stretches.add(sum[0] + sum[1]);
      if constexpr (Loss::mixes) weighted_of_stretches.add(weighted);
      if constexpr (Loss::probabilities) terms_of_stretches.add(terms);
      sum[0] = sum[1] = weighted = terms = V{};
    };
    // count of the logits exist, the others are -inf.
    auto stage = [&](V logits, int64_t c, int count, V& into) FASTLOSS_LAMBDA {
      V shifted = logits - max;
      V e = exp(shifted);
      into += e;
      if (row.to.grad) store(row.staged + c, e);
      if constexpr (Loss::mixes) {
        V term = terms_at(row, c, count);
        if constexpr (Loss::probabilities) terms += count == W ? term : select(in_rest, term, V{});
        weighted += count == W ? term * shifted : select(in_rest, term * shifted, V{});
      }
    };
    // Written soon, and a miss would hold up the stores behind it.
    const T* written = row.to.grad && !row.to.streamed ? row.to.grad : x;
    auto two_vectors = [&](int64_t c) FASTLOSS_LAMBDA {
      if constexpr (Loss::probabilities) {
        probabilities.fetch(next_probabilities + c);
        probabilities.fetch(next_probabilities + c + W);
      }
      __builtin_prefetch(next + c, 0, 2);
      __builtin_prefetch(next + c + W, 0, 2);
      __builtin_prefetch(written + c, 1, 2);
      __builtin_prefetch(written + c + W, 1, 2);
      stage(logit_of(load(x + c)), c, W, sum[0]);
      stage(logit_of(load(x + c + W)), c + W, W, sum[1]);
      if ((c + 2 * W) % stretch == 0) end_stretch();
    };
    int64_t c = 0;
    if (before.to.grad) {
      GradientWriter writer(*this, before);
      for (; writer.c + 2 * W <= before.to.last; c += 2 * W) {
        two_vectors(c);
        writer.write_vector();
        writer.write_vector();
      }
      writer.finish();
    }
    for (; c + 2 * W <= whole; c += 2 * W) two_vectors(c);
    for (; c < whole; c += W) stage(logit_of(load(x + c)), c, W, sum[0]);
    if (rest) stage(select(in_rest, logit_of(tail), lowest), whole, rest, sum[1]);
    end_stretch();
    const V target_logit = Loss::probabilities ? max : logit_of(V{} + load_one(x + row.target));
    if constexpr (Loss::probabilities) mixture.terms += S(terms_of_stretches.total());
    return {max, V{} + S(sum_of_stretches.total()), target_logit, V{} + S(weighted_of_stretches.total())};
  }

  // The terms of count classes from class c on, where the target mixes classes.
  FASTLOSS_LANE_FN V terms_at(const Pending& row, int64_t c, int count) const {
    const V probability = Loss::probabilities ? probabilities.at(row.probabilities + c, count) : V{};
    return class_term<Loss>(weights_at(c, count), probability, scale);
  }

  // The weights of count classes from class c on.
  FASTLOSS_LANE_FN V weights_at(int64_t c, int count) const {
    return !weight ? V{} + 1 : count == W ? load(weight + c) : load_first(weight + c, count);
  }
};

}  // namespace FASTLOSS_NAMESPACE
