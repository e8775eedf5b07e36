// Sigmoid losses on the CPU: loss and gradient of a block of independent yes/no decisions in one pass. Included per ISA.
//
// Fused: one exponential a logit, from which come p, q and nll of the target, f and f', and the gradient. Input, target,
// mask, loss and gradient are walked in step; each element is read before it is written, so the gradient may overwrite
// the logits.

// What the loss of one decision needs to know: label 1 or 0 gives z = x or -x.
template <class V>
struct Decision {
  V nll;       // softplus(-z); for a soft target the binary cross entropy
  V p, q;      // sigmoid(z), sigmoid(-z)
  V positive;  // sigmoid(x)
};

template <class V>
FASTLOSS_LANE_FN Decision<V> decide(V x, V target) {
  V z = select(target == 1, x, -x);
  V e = exp(select(z > 0, -z, z));  // of -|z|, in (0, 1]
  V inverse = 1 / (1 + e);
  V small = e * inverse;
  V p = select(z > 0, inverse, small);
  V q = select(z > 0, small, inverse);
  V nll = select(z > 0, V{}, -z) + log1p(e);
  return {nll, p, q, select(target == 1, p, q)};
}

// ---- losses of W decisions: value, and slope with respect to x

template <class S>
struct SigmoidCrossEntropyLoss {
  template <class V>
  ValueSlope<V> operator()(const Decision<V>& d, V target, bool /*soft*/) const {
    return {d.nll, d.positive - target};
  }
};

template <class S>
struct SigmoidFocalLoss {
  Focal<S> focal;
  template <class V>
  ValueSlope<V> operator()(const Decision<V>& d, V target, bool soft) const {
    ValueSlope<V> f = focal(d.nll, d.p, d.q);
    f.slope = select(target == 1, -d.q, d.q) * f.slope;
    if (soft) {
      ValueSlope<V> s = focal.soft(d.nll, d.positive, target);
      auto hard = (target == 1) | (target == 0);
      f = {select(hard, f.value, s.value), select(hard, f.slope, s.slope)};
    }
    return f;
  }
};

template <class V>
FASTLOSS_LANE_FN V gradient_norm(const Decision<V>& d, V target) {
  V difference = d.positive - target;
  V norm = select(difference < 0, -difference, difference);
  return select((target == 1) | (target == 0), d.q, norm);
}

template <class S>
struct SigmoidGhmcLoss {
  const double* bin_weight;  // [bins]
  int32_t bins;
  template <class V>
  ValueSlope<V> operator()(const Decision<V>& d, V target, bool /*soft*/) const {
    V norm = gradient_norm(d, target);
    V beta;
    for (int lane = 0; lane < W; ++lane) beta[lane] = S(bin_weight[ghm_bin(norm[lane], bins)]);
    return {beta * d.nll, beta * (d.positive - target)};
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
  bool soft = false;

  SigmoidLoad(const SigmoidParams& p, int64_t i, int count) : params(p) {
    logits = some(static_cast<const T*>(p.input) + i, count);
    target = p.target_is_compute_type ? some(static_cast<const S*>(p.target) + i, count)
                                      : some(static_cast<const T*>(p.target) + i, count);
    if (count < W || p.mask) {
      for (int lane = 0; lane < W; ++lane) valid[lane] = lane < count && (!p.mask || p.mask[i + lane]) ? -1 : 0;
    }
    M fractional = (target != 0) & (target != 1);
    for (int lane = 0; lane < W; ++lane) soft |= fractional[lane] != 0;
  }

  template <class U>
  static V some(const U* source, int count) {
    return count == W ? load(source) : load_first(source, count);
  }

  Decision<V> decision() const {
    Decision<V> d = decide(logits, target);
    if (soft) {
      // bce = softplus(x) - x t; decide took a soft target for 0, so nll is softplus(x).
      d.nll = select((target == 0) | (target == 1), d.nll, d.nll - logits * target);
    }
    return d;
  }
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
  f64 sum = {};
  for (int64_t i = begin; i < end; i += W) {
    int count = int(end - i < W ? end - i : W);
    SigmoidLoad<T> in(params, i, count);
    ValueSlope<V> f = loss_of(in.decision(), in.target, in.soft);
    if (params.alpha >= 0) {
      V balance = alpha * in.target + (1 - alpha) * (1 - in.target);
      f = {balance * f.value, balance * f.slope};
    }
    V value = select(in.valid, f.value, V{});
    V slope = select(in.valid, f.slope * scale, V{});
    sum += __builtin_convertvector(value, f64);
    if (count == W) {
      if (loss) store(loss + i, value);
      if (grad) store(grad + i, slope);
    } else {
      if (loss) store_first(loss + i, value, count);
      if (grad) store_first(grad + i, slope, count);
    }
  }
  return sum_lanes(sum);
}

template <class T>
inline double sigmoid_block_of(const SigmoidParams& params, double scale, int64_t begin, int64_t end) {
  using S = Compute<T>;
  if (params.kind == Loss::ghmc) {
    return sigmoid_run<T>(params, scale, SigmoidGhmcLoss<S>{params.bin_weight, params.ghm.bins}, begin, end);
  }
  if (params.gamma == 0) return sigmoid_run<T>(params, scale, SigmoidCrossEntropyLoss<S>{}, begin, end);
  return sigmoid_run<T>(params, scale, SigmoidFocalLoss<S>{{S(params.gamma)}}, begin, end);
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
inline void sigmoid_histogram_of(const SigmoidParams& params, int64_t begin, int64_t end, int64_t* counts) {
  for (int64_t i = begin; i < end; i += W) {
    SigmoidLoad<T> in(params, i, int(end - i < W ? end - i : W));
    Vec<T> norm = gradient_norm(in.decision(), in.target);
    for (int lane = 0; lane < W; ++lane) {
      if (in.valid[lane]) counts[ghm_bin(norm[lane], params.ghm.bins)] += 1;
    }
  }
}

// Adds the gradient norms of decisions [begin, end) to counts [bins].
void sigmoid_histogram_block(const SigmoidParams& params, int64_t begin, int64_t end, int64_t* counts) {
  switch (params.dtype) {
    case DType::float32:
      return sigmoid_histogram_of<float>(params, begin, end, counts);
    case DType::float64:
      return sigmoid_histogram_of<double>(params, begin, end, counts);
    case DType::bfloat16:
      return sigmoid_histogram_of<bfloat16>(params, begin, end, counts);
    case DType::float16:
      return sigmoid_histogram_of<float16>(params, begin, end, counts);
  }
}
