// Sigmoid losses: loss and gradient of a block of yes/no decisions in one pass.
//
// Fused: one exponential a logit, from which come p, q and nll of the target, f and f', and the gradient. Input,
// target, mask, loss and gradient are walked in step; each element is read before it is written, so the gradient may
// overwrite the logits.
#pragma once

#include "ghm.h"
#include "losses.h"

namespace FASTLOSS_NAMESPACE {

// Where the decisions are read. A value, like SigmoidBlock: what a loop holds in registers must not have an address.
template <class T>
struct SigmoidInput {
  const T* logits;
  const void* target;
  const uint8_t* mask;
  bool target_is_compute_type;

  explicit SigmoidInput(const SigmoidParams& params)
      : logits(static_cast<const T*>(params.input)),
        target(params.target),
        mask(params.mask),
        target_is_compute_type(params.target_is_compute_type) {}

  // Which of n W targets from i on may be neither 0 nor 1; compared as they are stored, -0 counts as such.
  FASTLOSS_LANE_FN bool any_soft(int64_t i, int n) const {
    return target_is_compute_type ? any_soft_of(static_cast<const Compute<T>*>(target) + i, n)
                                  : any_soft_of(static_cast<const T*>(target) + i, n);
  }

 private:
  template <class U>
  FASTLOSS_LANE_FN static bool any_soft_of(const U* source, int n) {
    using Integers = decltype(BitsVec<U>{} == BitsVec<U>{});
    const Integers one = (Integers)narrow(Vec<U>{} + 1, U{});
    Integers soft = {};
    for (int k = 0; k < n; ++k) {
      const Integers t = load_bits<Integers>(source + k * W);
      soft |= t & (t != one);
    }
    return any(soft != 0);
  }
};

// W decisions; `all`: every lane is one, and there is no mask.
template <class T, bool all>
struct SigmoidLoad {
  using S = Compute<T>;
  using V = Vec<T>;
  using M = typename VectorOf<S>::M;

  V logits, target;
  M valid = M{} - 1;

  FASTLOSS_LANE_FN SigmoidLoad(const SigmoidInput<T>& in, int64_t i, int count) {
    logits = some(in.logits + i, count);
    target = in.target_is_compute_type ? some(static_cast<const S*>(in.target) + i, count)
                                       : some(static_cast<const T*>(in.target) + i, count);
    if constexpr (!all) {
      u8 mask = u8{} + 1;
      if (in.mask) __builtin_memcpy(&mask, in.mask + i, count == W ? W : count);
      valid = (__builtin_convertvector(mask, M) != 0) & (lane_numbers<M>() < count);
    }
  }

  template <class U>
  FASTLOSS_LANE_FN static V some(const U* source, int count) {
    return all || count == W ? load(source) : load_first(source, count);
  }

  FASTLOSS_LANE_FN Decision<V> decision(V e, bool soft) const { return decide(logits, e, target, soft); }
};

// How many vectors go through the exponential before the first of them goes through the rest: all at once, a vector is
// so long a chain of operations that the processor sees the end of it, and no other vector, and waits.
constexpr int kStaged = 8;

// Calls hard(e, i, all), e the exponentials of kStaged vectors from i on whose targets are all 0 or 1, and soft(i)
// where not all are; returns the first decision that is in neither. all is true as a type where there is no mask.
template <class T, class Hard, class Soft>
FASTLOSS_LANE_FN int64_t for_each_stage(const SigmoidInput<T>& in, int64_t begin, int64_t end, Hard hard, Soft soft) {
  auto stages = [&](auto all) FASTLOSS_LAMBDA {
    int64_t i = begin;
    for (; i + kStaged * W <= end; i += kStaged * W) {
      if (in.any_soft(i, kStaged)) {
        soft(i);
        continue;
      }
      Vec<T> e[kStaged];
      for (int k = 0; k < kStaged; ++k) e[k] = decision_exp(load(in.logits + i + k * W));
      hard(e, i, all);
    }
    return i;
  };
  return in.mask ? stages(std::false_type{}) : stages(std::true_type{});
}

template <class T, class LossOf>
struct SigmoidBlock {
  using S = Compute<T>;
  using V = Vec<T>;

  const SigmoidInput<T> in;
  const LossOf loss_of;
  const ClassBalance<S> balance;
  T* const grad;
  S* const loss;  // where reduction is none
  const bool streamed;

  // Where grad is aligned, so are all whole vectors: blocks are multiples of one.
  FASTLOSS_LANE_FN SigmoidBlock(const SigmoidParams& params, const Schedule& schedule, double gradient_scale,
                                LossOf loss)
      : in(params),
        loss_of(loss),
        balance(params.alpha, gradient_scale),
        grad(static_cast<T*>(params.grad)),
        loss(params.reduction == Reduction::none ? static_cast<S*>(params.loss) : nullptr),
        streamed(schedule.output == Output::streamed && is_vector_aligned(grad)) {}

  // Writes loss and gradient of count decisions from i on; returns their losses. soft: a target may be neither 0 nor 1.
  template <bool all>
  FASTLOSS_LANE_FN V write(const SigmoidLoad<T, all>& decisions, V e, int64_t i, int count, bool soft) const {
    const V target = decisions.target;
    auto [value, slope] = balance(loss_of(decisions.decision(e, soft), target, soft), target, soft);
    if constexpr (!all) {
      value = select(decisions.valid, value, V{});
      slope = select(decisions.valid, slope, V{});
    }
    if (count < W) {
      if (loss) store_first(loss + i, value, count);
      if (grad) store_first(grad + i, slope, count);
      return value;
    }
    if (loss) store(loss + i, value);
    if (grad && streamed) {
      store_streaming(grad + i, slope);
    } else if (grad) {
      store(grad + i, slope);
    }
    return value;
  }

  // Any decisions. Apart from the loop over hard targets, which needs the registers.
  __attribute__((noinline)) static V write_any(SigmoidBlock block, int64_t i, int count) {
    const SigmoidLoad<T, false> decisions(block.in, i, count);
    return block.write(decisions, decision_exp(decisions.logits), i, count, true);
  }

  FASTLOSS_LANE_FN double run(int64_t begin, int64_t end) const {
    Sum sum;
    auto hard = [&](const V* e, int64_t i, auto all) FASTLOSS_LAMBDA {
      V staged = {};  // added up before they become doubles
      for (int k = 0; k < kStaged; ++k, i += W) staged += write(SigmoidLoad<T, all>(in, i, W), e[k], i, W, false);
      sum.add(staged);
    };
    auto soft = [&](int64_t i) FASTLOSS_LAMBDA {
      V staged = {};
      for (int k = 0; k < kStaged; ++k, i += W) staged += write_any(*this, i, W);
      sum.add(staged);
    };
    for (int64_t i = for_each_stage(in, begin, end, hard, soft); i < end; i += W) {
      sum.add(write_any(*this, i, int(std::min<int64_t>(end - i, W))));
    }
    if (streamed) finish_streaming();
    return sum.total();
  }
};

inline double sigmoid(const SigmoidParams& params, const Schedule& schedule, const CallScale& of_call, int64_t begin,
                      int64_t end) {
  const double scale = of_call.stored / of_call.denominator;
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    using S = Compute<T>;
    auto run = [&](auto loss_of) {
      return SigmoidBlock<T, decltype(loss_of)>(params, schedule, scale, loss_of).run(begin, end);
    };
    if (!params.ghmc) return with_loss<S>(params, run);
    const BinWeights<S> beta_of(params.bin_weight, params.ghm.bins);
    return run(Ghmc<BetaOfNorm<S>>{{beta_of}});
  });
}

template <class T>
inline void sigmoid_bins_of(const SigmoidParams& params, int64_t begin, int64_t end, int64_t* counts, int32_t* bins) {
  const SigmoidInput<T> in(params);
  BinCounts bin_counts(params.ghm.bins, counts);
  auto add = [&](const auto& decisions, auto e, int64_t i, int count, bool soft) FASTLOSS_LAMBDA {
    auto norm = gradient_norm(decisions.decision(e, soft), decisions.target, soft);
    auto bin = ghm_bin(norm, Compute<T>(params.ghm.bins));
    bin_counts.add(bin, decisions.valid);
    if (bins) store_bins(bins + i, bin | ~decisions.valid, count);  // -1 where masked
  };
  auto hard = [&](const Vec<T>* e, int64_t i, auto all) FASTLOSS_LAMBDA {
    for (int k = 0; k < kStaged; ++k, i += W) add(SigmoidLoad<T, all>(in, i, W), e[k], i, W, false);
  };
  auto any = [&](int64_t i, int count) FASTLOSS_LAMBDA {
    const SigmoidLoad<T, false> decisions(in, i, count);
    add(decisions, decision_exp(decisions.logits), i, count, true);
  };
  auto soft = [&](int64_t i) FASTLOSS_LAMBDA {
    for (int k = 0; k < kStaged; ++k) any(i + k * W, W);
  };
  for (int64_t i = for_each_stage(in, begin, end, hard, soft); i < end; i += W) {
    any(i, int(std::min<int64_t>(end - i, W)));
  }
  bin_counts.finish();
}

inline void sigmoid_bins(const SigmoidParams& params, int64_t begin, int64_t end, int64_t* counts, int32_t* bin) {
  with_storage(params.dtype,
               [&](auto storage) { sigmoid_bins_of<decltype(storage)>(params, begin, end, counts, bin); });
}

}  // namespace FASTLOSS_NAMESPACE
