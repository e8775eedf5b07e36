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

// Which of W decisions from i on are among the first count and count.
template <class M>
FASTLOSS_LANE_FN M valid_lanes(const uint8_t* mask, int64_t i, int count) {
  u8 counts = u8{} + 1;
  if (mask) __builtin_memcpy(&counts, mask + i, count == W ? W : count);
  return (__builtin_convertvector(counts, M) != 0) & (lane_numbers<M>() < count);
}

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
      valid = valid_lanes<M>(in.mask, i, count);
    }
  }

  template <class U>
  FASTLOSS_LANE_FN static V some(const U* source, int count) {
    return all || count == W ? load(source) : load_first(source, count);
  }
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

// The numbers of decisions i to i + count - 1, and zeros to the end of the vector.
template <class S>
FASTLOSS_LANE_FN void read_broadcast(const Broadcast& from, int64_t i, int count, S* into) {
  for (int k = count; k % W; ++k) into[k] = 0;
  const S* values = static_cast<const S*>(from.values);
  int64_t at = i / from.inner % from.size, used = i % from.inner;
  while (count > 0) {
    int n;
    if (from.inner == 1) {
      n = int(std::min<int64_t>(count, from.size - at));
      for (int k = 0; k < n; ++k) into[k] = values[at + k];
      at += n;
    } else {
      n = int(std::min<int64_t>(count, from.inner - used));
      for (int k = 0; k < n; ++k) into[k] = values[at];
      used += n;
      at += used == from.inner;
      used = used == from.inner ? 0 : used;
    }
    at = at == from.size ? 0 : at;
    into += n;
    count -= n;
  }
}

// The class balance of each of some decisions, weight included.
template <class S>
struct SigmoidFactors {
  using V = typename VectorOf<S>::V;

  const Broadcast class_alpha, sample_weight;
  const ClassBalance<S> balance;
  S alpha[kStaged * W], weight[kStaged * W];

  FASTLOSS_LANE_FN SigmoidFactors(const Broadcast& of_alpha, const Broadcast& of_weight, const ClassBalance<S>& common)
      : class_alpha(of_alpha), sample_weight(of_weight), balance(common) {}

  FASTLOSS_LANE_FN void read(int64_t i, int count) {
    if (class_alpha.values) read_broadcast(class_alpha, i, count, alpha);
    if (sample_weight.values) read_broadcast(sample_weight, i, count, weight);
  }

  // Of the k-th vector from there.
  FASTLOSS_LANE_FN ClassBalance<S, V> at(int k) const {
    V zero = V{} + balance.zero, one = V{} + balance.one;
    if (class_alpha.values) {
      one = load(alpha + k * W);
      zero = 1 - one;
    }
    if (sample_weight.values) {
      const V w = load(weight + k * W);
      zero *= w;
      one *= w;
    }
    return {zero, one, balance.scale};
  }
};

// weighted: decisions have factors of their own.
template <class T, class LossOf, bool weighted>
struct SigmoidBlock {
  using S = Compute<T>;
  using V = Vec<T>;

  const SigmoidInput<T> in;
  const LossOf loss_of;
  const ClassBalance<S> balance;
  const Broadcast class_alpha, sample_weight;
  T* const grad;
  S* const loss;  // where reduction is none
  const bool streamed;

  // Where grad is aligned, so are all whole vectors: blocks are multiples of one.
  FASTLOSS_LANE_FN SigmoidBlock(const SigmoidParams& params, const Schedule& schedule, double gradient_scale,
                                LossOf loss)
      : in(params),
        loss_of(loss),
        balance(params.alpha, gradient_scale),
        class_alpha(params.class_alpha),
        sample_weight(params.sample_weight),
        grad(static_cast<T*>(params.grad)),
        loss(params.reduction == Reduction::none ? static_cast<S*>(params.loss) : nullptr),
        streamed(schedule.output == Output::streamed && is_vector_aligned(grad)) {}

  // Writes loss and gradient of count decisions from i on; returns their losses. soft: a target may be neither 0 nor 1.
  template <bool all, class Balance>
  FASTLOSS_LANE_FN V write(const SigmoidLoad<T, all>& decisions, const Balance& balance_of, V e, int64_t i, int count,
                           bool soft) const {
    auto [value, slope] = conclude(loss_of, balance_of, decisions.logits, e, decisions.target, soft);
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
    const V e = decision_exp(decisions.logits);
    if constexpr (weighted) {
      auto factors = block.factors();
      factors.read(i, count);
      return block.write(decisions, factors.at(0), e, i, count, true);
    }
    return block.write(decisions, block.balance, e, i, count, true);
  }

  FASTLOSS_LANE_FN SigmoidFactors<S> factors() const { return {class_alpha, sample_weight, balance}; }

  FASTLOSS_LANE_FN double run(int64_t begin, int64_t end) const {
    Sum sum;
    auto hard = [&](const V* e, int64_t i, auto all) FASTLOSS_LAMBDA {
      V staged = {};  // added up before they become doubles
      if constexpr (weighted) {
        auto of_stage = factors();
        of_stage.read(i, kStaged * W);
        for (int k = 0; k < kStaged; ++k, i += W) {
          staged += write(SigmoidLoad<T, all>(in, i, W), of_stage.at(k), e[k], i, W, false);
        }
      } else {
        for (int k = 0; k < kStaged; ++k, i += W) {
          staged += write(SigmoidLoad<T, all>(in, i, W), balance, e[k], i, W, false);
        }
      }
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
    auto run = [&](auto loss_of, auto weighted) {
      return SigmoidBlock<T, decltype(loss_of), weighted>(params, schedule, scale, loss_of).run(begin, end);
    };
    if (params.ghmc) {
      const BinWeights<S> beta_of(params.bin_weight, params.ghm.bins);
      return run(Ghmc<BetaOfNorm<S>>{{beta_of}}, std::false_type{});
    }
    return with_loss<S>(params, [&](auto loss_of) {
      return is_weighted(params) ? run(loss_of, std::true_type{}) : run(loss_of, std::false_type{});
    });
  });
}

template <class T>
inline WeightSum sigmoid_weights_of(const SigmoidParams& params, int64_t begin, int64_t end) {
  using V = Vec<T>;
  using M = typename VectorOf<Compute<T>>::M;
  SigmoidFactors<Compute<T>> factors(Broadcast{}, params.sample_weight, ClassBalance<Compute<T>>(-1, 1));
  Sum sum;
  V largest = {};
  for (int64_t i = begin; i < end; i += kStaged * W) {
    const int count = int(std::min<int64_t>(end - i, kStaged * W));
    factors.read(i, count);
    for (int k = 0; k * W < count; ++k) {
      const M valid = valid_lanes<M>(params.mask, i + k * W, std::min(count - k * W, W));
      const V weight = select(valid, factors.at(k).one, V{});
      sum.add(weight);
      largest = max(-negative_abs(weight), largest);
    }
  }
  return {sum.total(), max_lane(largest)};
}

// The weights of the decisions that count.
inline WeightSum sigmoid_weights(const SigmoidParams& params, int64_t begin, int64_t end) {
  return with_storage(params.dtype,
                      [&](auto storage) { return sigmoid_weights_of<decltype(storage)>(params, begin, end); });
}

template <class T>
inline void sigmoid_bins_of(const SigmoidParams& params, int64_t begin, int64_t end, int64_t* counts, int32_t* bins) {
  const SigmoidInput<T> in(params);
  BinCounts bin_counts(params.ghm.bins, counts);
  auto add = [&](const auto& decisions, auto e, int64_t i, int count, bool soft) FASTLOSS_LAMBDA {
    const auto target = decisions.target;
    auto norm = gradient_norm(decide(decisions.logits, e, target, soft), target, soft);
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
