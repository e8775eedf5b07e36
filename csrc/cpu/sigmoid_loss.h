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
    V beta = beta_of(gradient_norm(d, target));
    ValueSlope<V> f = SigmoidCrossEntropy{}(d, target, soft);
    return {beta * f.value, beta * f.slope};
  }
};

// ---- schedule

template <class T>
struct SigmoidLoad {
  const SigmoidParams& params;
  using S = Compute<T>;
  using V = Vec<T>;
  using M = typename VectorOf<S>::M;

  V logits, target;
  M valid = M{} - 1;
  bool soft;

  SigmoidLoad(const SigmoidParams& p, int64_t i, int count) : params(p) {
    logits = some(static_cast<const T*>(p.input) + i, count);
    target = p.target_is_compute_type ? some(static_cast<const S*>(p.target) + i, count)
                                      : some(static_cast<const T*>(p.target) + i, count);
    if (count < W || p.mask) {
      for (int lane = 0; lane < W; ++lane) valid[lane] = lane < count && (!p.mask || p.mask[i + lane]) ? -1 : 0;
    }
    M fractional = (target != 0) & (target != 1);
    soft = any(fractional);
  }

  template <class U>
  static V some(const U* source, int count) {
    return count == W ? load(source) : load_first(source, count);
  }

  Decision<V> decision() const { return decide(logits, target, soft); }
};

template <class T, class LossOf>
inline double sigmoid_run(const SigmoidParams& params, double gradient_scale, LossOf loss_of, int64_t begin,
                          int64_t end) {
  using S = Compute<T>;
  using V = Vec<T>;
  const S alpha = S(params.alpha);
  const S scale = S(gradient_scale);
  T* grad = static_cast<T*>(params.grad);
  S* loss = params.reduction == Reduction::none ? static_cast<S*>(params.loss) : nullptr;
  Sum sum;
  for (int64_t i = begin; i < end; i += W) {
    int count = int(end - i < W ? end - i : W);
    SigmoidLoad<T> in(params, i, count);
    ValueSlope<V> f = loss_of(in.decision(), in.target, in.soft);
    if (params.alpha >= 0) {
      V balance = class_balance(in.target, alpha);
      f = {balance * f.value, balance * f.slope};
    }
    V value = select(in.valid, f.value, V{});
    V slope = select(in.valid, f.slope * scale, V{});
    sum.add(value);
    if (count == W) {
      if (loss) store(loss + i, value);
      if (grad) store(grad + i, slope);
    } else {
      if (loss) store_first(loss + i, value, count);
      if (grad) store_first(grad + i, slope, count);
    }
  }
  return sum.total();
}

template <class T>
inline double sigmoid_block_of(const SigmoidParams& params, double scale, int64_t begin, int64_t end) {
  using S = Compute<T>;
  if (params.kind == Loss::ghmc) {
    const BinWeights<S> beta_of(params.bin_weight, params.ghm.bins);
    return sigmoid_run<T>(params, scale, SigmoidGhmcLoss<S>{beta_of}, begin, end);
  }
  if (params.gamma == 0) return sigmoid_run<T>(params, scale, SigmoidCrossEntropy{}, begin, end);
  return sigmoid_run<T>(params, scale, SigmoidFocal<S>{{S(params.gamma)}}, begin, end);
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
    SigmoidLoad<T> in(params, i, int(end - i < W ? end - i : W));
    counts.add(gradient_norm(in.decision(), in.target), in.valid);
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
