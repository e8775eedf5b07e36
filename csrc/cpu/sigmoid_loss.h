// Sigmoid losses on the CPU: loss and gradient of a block of yes/no decisions in one pass. Included per ISA.
//
// Fused: one exponential a logit, from which come p, q and nll of the target, f and f', and the gradient. Input,
// target, mask, loss and gradient are walked in step; each element is read before it is written, so the gradient may
// overwrite the logits.

template <class S>
struct SigmoidGhmcLoss {
  const BinWeights<S>& beta_of;
  template <class V>
  FASTLOSS_LANE_FN ValueSlope<V> operator()(const Decision<V>& d, V target, bool soft) const {
    V beta = beta_of(ghm_bin(gradient_norm(d, target), ScalarOf<V>(beta_of.bins)));
    ValueSlope<V> f = SigmoidCrossEntropy{}(d, target, soft);
    return {beta * f.value, beta * f.slope};
  }
};

// ---- schedule

// W decisions; `all`: every lane is one, and there is no mask.
template <class T, bool all>
struct SigmoidLoad {
  using S = Compute<T>;
  using V = Vec<T>;
  using M = typename VectorOf<S>::M;

  V logits, target;
  M valid = M{} - 1;
  bool soft;

  FASTLOSS_LANE_FN SigmoidLoad(const SigmoidParams& p, int64_t i, int count) {
    logits = some(static_cast<const T*>(p.input) + i, count);
    target = p.target_is_compute_type ? some(static_cast<const S*>(p.target) + i, count)
                                      : some(static_cast<const T*>(p.target) + i, count);
    if constexpr (!all) {
      for (int lane = 0; lane < W; ++lane) valid[lane] = lane < count && (!p.mask || p.mask[i + lane]) ? -1 : 0;
    }
    M fractional = (target != 0) & (target != 1);
    soft = any(fractional);
  }

  template <class U>
  FASTLOSS_LANE_FN static V some(const U* source, int count) {
    return all || count == W ? load(source) : load_first(source, count);
  }

  FASTLOSS_LANE_FN Decision<V> decision() const { return decide(logits, target, soft); }
};

template <class T, class LossOf>
struct SigmoidBlock {
  using S = Compute<T>;
  using V = Vec<T>;

  const SigmoidParams& params;
  const LossOf loss_of;
  const S scale;
  const S alpha = S(params.alpha);
  const bool balanced = params.alpha >= 0;
  T* const grad = static_cast<T*>(params.grad);
  S* const loss = params.reduction == Reduction::none ? static_cast<S*>(params.loss) : nullptr;
  // Where grad is aligned, so are all whole vectors: blocks are multiples of one.
  const bool streaming = streams(grad, params.input, params.N, params.dtype) && is_vector_aligned(grad);

  // Writes loss and gradient of count decisions from i on; returns their losses.
  template <bool all>
  FASTLOSS_LANE_FN V some(int64_t i, int count) const {
    SigmoidLoad<T, all> in(params, i, count);
    ValueSlope<V> f = loss_of(in.decision(), in.target, in.soft);
    if (balanced) {
      V balance = class_balance(in.target, alpha);
      f = {balance * f.value, balance * f.slope};
    }
    V value = f.value, slope = f.slope * scale;
    if constexpr (!all) {
      value = select(in.valid, value, V{});
      slope = select(in.valid, slope, V{});
    }
    if (count < W) {
      if (loss) store_first(loss + i, value, count);
      if (grad) store_first(grad + i, slope, count);
      return value;
    }
    if (loss) store(loss + i, value);
    if (grad && streaming) {
      store_streaming(grad + i, slope);
    } else if (grad) {
      store(grad + i, slope);
    }
    return value;
  }

  double run(int64_t begin, int64_t end) const {
    Sum sum;
    int64_t i = begin;
    // Two vectors are added before they become doubles.
    for (; !params.mask && i + 2 * W <= end; i += 2 * W) sum.add(some<true>(i, W) + some<true>(i + W, W));
    for (; i < end; i += W) sum.add(some<false>(i, int(std::min<int64_t>(end - i, W))));
    finish_streaming();
    return sum.total();
  }
};

template <class T>
inline double sigmoid_block_of(const SigmoidParams& params, double scale, int64_t begin, int64_t end) {
  using S = Compute<T>;
  if (params.kind == Loss::ghmc) {
    const BinWeights<S> beta_of(params.bin_weight, params.ghm.bins);
    return SigmoidBlock<T, SigmoidGhmcLoss<S>>{params, {beta_of}, S(scale)}.run(begin, end);
  }
  if (params.gamma == 0) return SigmoidBlock<T, SigmoidCrossEntropy>{params, {}, S(scale)}.run(begin, end);
  return SigmoidBlock<T, SigmoidFocal<S>>{params, {{S(params.gamma)}}, S(scale)}.run(begin, end);
}

// Loss and gradient of decisions [begin, end); the sum of their losses.
double sigmoid_block(const SigmoidParams& params, double scale, int64_t begin, int64_t end) {
  switch (params.dtype) {
    case DType::float32:
      return sigmoid_block_of<float>(params, scale, begin, end);
    case DType::float64:
      return sigmoid_block_of<double>(params, scale, begin, end);
    case DType::bfloat16:
      return sigmoid_block_of<bfloat16>(params, scale, begin, end);
    case DType::float16:
      return sigmoid_block_of<float16>(params, scale, begin, end);
  }
  return 0;
}

template <class T>
inline void sigmoid_histogram_of(const SigmoidParams& params, int64_t begin, int64_t end, const LaneCounts& counts) {
  for (int64_t i = begin; i < end; i += W) {
    SigmoidLoad<T, false> in(params, i, int(std::min<int64_t>(end - i, W)));
    counts.add(ghm_bin(gradient_norm(in.decision(), in.target), Compute<T>(params.ghm.bins)), in.valid);
  }
}

// Adds the gradient norms of decisions [begin, end) to counts [bins].
void sigmoid_histogram_block(const SigmoidParams& params, int64_t begin, int64_t end, int64_t* counts) {
  const LaneCounts lane_counts(params.ghm.bins);
  switch (params.dtype) {
    case DType::float32:
      sigmoid_histogram_of<float>(params, begin, end, lane_counts);
      break;
    case DType::float64:
      sigmoid_histogram_of<double>(params, begin, end, lane_counts);
      break;
    case DType::bfloat16:
      sigmoid_histogram_of<bfloat16>(params, begin, end, lane_counts);
      break;
    case DType::float16:
      sigmoid_histogram_of<float16>(params, begin, end, lane_counts);
      break;
  }
  lane_counts.add_to(counts);
}
