// Softmax losses on the CPU: loss and gradient of a block of decisions in one pass over the logits. Included per ISA.
//
// Fused: max, exponentials and their sum, nll, f and f', and the gradient f'(nll) * (p - onehot), written while the
// logits are in cache. Two schedules stage the logits in a scratch buffer, so the gradient may overwrite them:
//   tile  W decisions are the W lanes, classes one after the other; contiguous rows are transposed in registers, a
//         strided class dimension needs no transpose. For few classes, and for any strides.
//   row   one decision at a time, its classes across the lanes. For many classes that lie side by side.
// Precondition: targets are in [0, C) or ignore_index (dispatch.cpp has checked).

// ---- where decisions lie

// Walks the decisions in order and knows where each lies.
struct Positions {
  const Layout& layout;
  int64_t input = 0, grad = 0;  // offsets of the current decision
  int64_t index[kMaxDims];

  Positions(const Layout& where, int64_t position) : layout(where) {
    for (int d = layout.ndim - 1; d >= 0; --d) {
      index[d] = position % layout.size[d];
      position /= layout.size[d];
      input += index[d] * layout.stride[d];
      grad += index[d] * layout.grad_stride[d];
    }
  }

  int inner() const { return layout.ndim - 1; }

  // How many decisions follow with one stride between them.
  int64_t run() const { return layout.size[inner()] - index[inner()]; }

  void advance(int64_t count) { move(inner(), count); }

 private:
  void move(int d, int64_t count) {
    index[d] += count;
    input += count * layout.stride[d];
    grad += count * layout.grad_stride[d];
    if (d > 0 && index[d] >= layout.size[d]) {
      int64_t carry = index[d] / layout.size[d];
      index[d] -= carry * layout.size[d];
      input -= carry * layout.size[d] * layout.stride[d];
      grad -= carry * layout.size[d] * layout.grad_stride[d];
      move(d - 1, carry);
    }
  }
};

// W decisions: where each lies in the input and in the gradient.
struct Tile {
  int count;                      // decisions in it, at most W
  bool uniform;                   // one stride between them
  int64_t input_step, grad_step;  // that stride
  int64_t input[W], grad[W];      // offsets; where uniform only the first

  // The next n decisions. Not a constructor: a tile is used where it is made, as a copy would wait for its stores.
  void take(Positions& positions, int n) {
    count = n;
    uniform = positions.run() >= n;
    input_step = positions.layout.stride[positions.inner()];
    grad_step = positions.layout.grad_stride[positions.inner()];
    input[0] = positions.input;
    grad[0] = positions.grad;
    if (uniform) return positions.advance(n);
    for (int lane = 0; lane < n; ++lane) {
      input[lane] = positions.input;
      grad[lane] = positions.grad;
      positions.advance(1);
    }
  }

  int64_t input_of(int lane) const { return uniform ? input[0] + lane * input_step : input[lane]; }
  int64_t grad_of(int lane) const { return uniform ? grad[0] + lane * grad_step : grad[lane]; }
};

// Calls with_columns(c) for columns c to c + 3 of rows of C >= 4: the last four may be among those before.
template <class WithColumns>
inline void for_each_four(int64_t C, WithColumns with_columns) {
  for (int64_t c = 0; c + 4 <= C; c += 4) with_columns(c);
  if (C % 4) with_columns(C - 4);
}

// Logits of a tile, class by class: staged[c] holds class c of the W decisions.
template <class T>
inline void load_tile(const T* input, const Layout& layout, const Tile& tile, int64_t C, Vec<T>* staged) {
  const int64_t stride = layout.class_stride;
  const T* first = input + tile.input[0];
  bool full = tile.count == W && tile.uniform;
  if (full && stride == 1 && C >= 4) {
    for_each_four(C, [&](int64_t c) {
      Vec<T> x[4];
      load_columns(first + c, tile.input_step, x);
      for (int i = 0; i < 4; ++i) staged[c + i] = x[i];
    });
  } else if (full && tile.input_step == 1) {
    for (int64_t c = 0; c < C; ++c) staged[c] = load(first + c * stride);
  } else {
    for (int64_t c = 0; c < C; ++c) {
      staged[c] = gather(input + c * stride, [&](int lane) { return tile.input_of(lane); }, tile.count);
    }
  }
}

template <class T>
inline void store_tile(T* grad, const Layout& layout, const Tile& tile, int64_t C, const Vec<T>* staged) {
  const int64_t stride = layout.grad_class_stride;
  T* first = grad + tile.grad[0];
  bool full = tile.count == W && tile.uniform;
  if (full && stride == 1 && C >= 4) {
    for_each_four(C, [&](int64_t c) {
      store_columns(first + c, tile.grad_step, {staged[c], staged[c + 1], staged[c + 2], staged[c + 3]});
    });
  } else if (full && tile.grad_step == 1) {
    for (int64_t c = 0; c < C; ++c) store(first + c * stride, staged[c]);
  } else {
    for (int64_t c = 0; c < C; ++c) {
      scatter(grad + c * stride, [&](int lane) { return tile.grad_of(lane); }, staged[c], tile.count);
    }
  }
}

// Neighbouring tiles with a strided class dimension: class by class for all of them, since a class of one tile is one
// cache line, and lines one after the other are what memory is fast at.
template <class T>
inline void load_strided(const T* input, const Layout& layout, const Tile& first, int tiles, int64_t C,
                         Vec<T>* staged) {
  for (int64_t c = 0; c < C; ++c) {
    const T* x = input + first.input[0] + c * layout.class_stride;
    for (int i = 0; i < tiles; ++i) staged[i * C + c] = load(x + i * W);
  }
}

template <class T>
inline void store_strided(T* grad, const Layout& layout, const Tile& first, int tiles, int64_t C, const Vec<T>* staged,
                          bool streaming) {
  for (int64_t c = 0; c < C; ++c) {
    T* g = grad + first.grad[0] + c * layout.grad_class_stride;
    if (streaming && is_vector_aligned(g)) {
      for (int i = 0; i < tiles; ++i) store_streaming(g + i * W, staged[i * C + c]);
    } else {
      for (int i = 0; i < tiles; ++i) store(g + i * W, staged[i * C + c]);
    }
  }
}

// GHM-C as a functor; the others are in losses.h.
template <class S>
struct GhmcLoss {
  const BinWeights<S>& beta_of;
  template <class V>
  FASTLOSS_LANE_FN ValueSlope<V> operator()(V nll, V /*p*/, V q) const {
    V beta = beta_of(q);
    return {beta * nll, beta};
  }
};

// ---- schedules

template <class M>
inline M lane_numbers() {
  M numbers;
  for (int lane = 0; lane < W; ++lane) numbers[lane] = lane;
  return numbers;
}

// T is stored, S computed; smooths adds torch's label smoothing.
template <class T, class LossOf, bool smooths>
struct SoftmaxBlock {
  using S = Compute<T>;
  using V = Vec<T>;
  using M = typename VectorOf<S>::M;

  // What the classes of one decision come to.
  struct Softmax {
    V max;
    V sum;           // sum_k exp(x_k - max)
    V target_logit;  // x_y
    V weighted;      // sum_k w_k (x_k - max), if smoothed
  };

  // f'(nll) * (p_k - onehot_k), smoothing and scales included, is e_k * probability - (k == y) * onehot - w_k * smooth.
  struct Gradient {
    V probability;
    V onehot;
  };

  const SoftmaxParams& params;
  const LossOf loss_of;
  const S scale;                                           // of the gradient: grad_scale / denominator
  const S class_weights;                                   // sum_k w_k
  const S smooth;                                          // label_smoothing / C
  const S* weight = static_cast<const S*>(params.weight);  // [C] or null
  const T* input = static_cast<const T*>(params.input);
  T* grad = static_cast<T*>(params.grad);
  const bool streaming = streams(params);

  SoftmaxBlock(const SoftmaxParams& p, const SoftmaxScale& s, LossOf loss)
      : params(p),
        loss_of(loss),
        scale(S(s.gradient)),
        class_weights(S(s.class_weights)),
        smooth(S(p.label_smoothing / double(p.C))) {}

  int64_t target_of(int64_t position) const {
    return params.target_is_int64 ? static_cast<const int64_t*>(params.target)[position]
                                  : static_cast<const int32_t*>(params.target)[position];
  }

  S weight_of(int64_t c) const { return weight ? weight[c] : S(1); }

  V finish(const Softmax& softmax, V row_weight, M valid, Gradient& gradient) const {
    V inverse_sum = 1 / softmax.sum;
    V log_sum = log(softmax.sum);
    V nll = log_sum - (softmax.target_logit - softmax.max);
    nll = select(nll < 0, V{}, nll);  // a rounding error at p = 1; nan stays
    V p = exp(-nll);
    ValueSlope<V> f = loss_of(nll, p, one_minus_p(nll, p));
    V value = row_weight * f.value;
    V slope = row_weight * f.slope;
    V mass = slope;  // what the probabilities are multiplied by: the slope, and all the smoothed targets
    if constexpr (smooths) {
      S hard = S(1 - params.label_smoothing);
      value = hard * value + smooth * (class_weights * log_sum - softmax.weighted);
      slope *= hard;
      mass = slope + smooth * class_weights;
    }
    gradient.onehot = select(valid, slope * scale, V{});
    gradient.probability = select(valid, mass * scale * inverse_sum, V{});
    return select(valid, value, V{});
  }

  // Returns the sum of the losses of decisions [begin, end), or writes them where reduction is none.
  double run(int64_t begin, int64_t end) const { return runs_rows(params) ? rows(begin, end) : tiles(begin, end); }

  // ---- tile: W decisions at a time

  V weights_of(M target, M valid) const {
    if (!weight) return V{} + 1;  // finish() leaves out what is ignored
    S row_weight[W];
    for (int lane = 0; lane < W; ++lane) row_weight[lane] = valid[lane] ? weight[target[lane]] : S(0);
    return load(row_weight);
  }

  double tiles(int64_t begin, int64_t end) const {
    const int64_t C = params.C;
    const int most_strided = strided_tiles(), together = tiles_together();
    std::unique_ptr<V[]> staged(new V[C * std::max(most_strided, together)]);  // [tiles, C] of W decisions
    Positions positions(params.layout, begin);
    Sum sum;
    for (int64_t position = begin; position < end;) {
      int64_t run = std::min(positions.run(), end - position) / W;
      if (most_strided > 1 && run > 0) {
        int tiles = int(std::min<int64_t>(run, most_strided));
        Tile first;
        first.take(positions, W);
        positions.advance((tiles - 1) * W);
        load_strided(input, params.layout, first, tiles, C, staged.get());
        for (int i = 0; i < tiles; i += together) {
          Next next = {input + first.input[0] + (tiles + i) * W, W, params.layout.class_stride};
          fuse(staged.get() + i * C, std::min(together, tiles - i), position + i * W, end, next, sum);
        }
        if (grad) store_strided(grad, params.layout, first, tiles, C, staged.get(), streaming);
        position += tiles * W;
      } else {
        int tiles = int(std::min<int64_t>((end - position + W - 1) / W, together));
        Tile where[kTogether];
        for (int i = 0; i < tiles; ++i) {
          where[i].take(positions, int(std::min<int64_t>(end - position - i * W, W)));
          load_tile(input, params.layout, where[i], C, staged.get() + i * C);
        }
        Next next = {input + where[0].input[0] + tiles * W * where[0].input_step, W * where[0].input_step, W};
        fuse(staged.get(), tiles, position, end, next, sum);
        for (int i = 0; grad && i < tiles; ++i) store_tile(grad, params.layout, where[i], C, staged.get() + i * C);
        position += tiles * W;
      }
    }
    finish_streaming();
    return sum.total();
  }

  // How many tiles with a strided class dimension are staged together, in half of an L2 cache; 1: it is not strided.
  int strided_tiles() const {
    const Layout& layout = params.layout;
    int inner = layout.ndim - 1;
    bool strided = layout.stride[inner] == 1 && (!grad || layout.grad_stride[inner] == 1);
    return strided ? int(std::clamp<int64_t>(262144 / (params.C * int64_t(sizeof(V))), 1, 16)) : 1;
  }

  // How many tiles are finished together: while one waits for its logarithms and divisions, the others compute theirs.
  // They stay in a part of the L1 cache.
  static constexpr int kTogether = 4;
  int tiles_together() const { return int(std::clamp<int64_t>(8192 / (params.C * int64_t(sizeof(V))), 1, kTogether)); }

  // What the pass over a tile's logits finds.
  struct TileSoftmax {
    M target, valid;
    bool any_valid;
    Softmax softmax;
  };

  // The logits that follow, fetched while these are computed: a cache line a class. Where they lie otherwise, or past
  // the end, a prefetch does nothing.
  struct Next {
    const T* x;
    int64_t tile_step, class_step;
  };

  // staged [tiles, C]: logits in, gradient out. Adds the losses to sum, or writes them where reduction is none.
  void fuse(V* staged, int tiles, int64_t position, int64_t end, Next next, Sum& sum) const {
    const int64_t C = params.C;
    TileSoftmax found[kTogether];
    Gradient gradient[kTogether];
    for (int i = 0; i < tiles; ++i) {
      int count = int(std::min<int64_t>(end - position - i * W, W));
      found[i] = exponentials(staged + i * C, position + i * W, count, next);
      next.x += next.tile_step;
    }
    for (int i = 0; i < tiles; ++i) {
      const TileSoftmax& tile = found[i];
      V value = finish(tile.softmax, weights_of(tile.target, tile.valid), tile.valid, gradient[i]);
      if (params.reduction == Reduction::none) {
        int64_t at = position + i * W;
        store_first(static_cast<S*>(params.loss) + at, value, int(std::min<int64_t>(end - at, W)));
      }
      sum.add(value);
    }
    for (int i = 0; grad && i < tiles; ++i) {
      if (found[i].any_valid) gradients(staged + i * C, found[i], gradient[i]);
    }
  }

  // staged [C]: logits in, exponentials out, and 0 where all decisions are ignored.
  TileSoftmax exponentials(V* staged, int64_t position, int count, const Next& next) const {
    const int32_t C = int32_t(params.C);
    M target = load_targets<M>(params, position, count);
    M valid = target != M{} - 1;
    if (!any(valid)) {
      for (int32_t c = 0; c < C; ++c) staged[c] = V{};
      return {target, valid, false, {V{}, V{} + 1, V{}, V{}}};
    }
    Softmax softmax = {staged[0], V{}, V{}, V{}};
    for (int32_t c = 1; c < C; ++c) softmax.max = max(staged[c], softmax.max);
    M c_lanes = {};  // c; counting is cheaper than bringing c into a vector
    for (int32_t c = 0; c < C; ++c, c_lanes += 1) {
      __builtin_prefetch(next.x + c * next.class_step, 0, 2);
      V x = staged[c];
      V shifted = x - softmax.max;
      V e = exp(shifted);
      softmax.sum += e;
      softmax.target_logit = select(target == c_lanes, x, softmax.target_logit);
      if constexpr (smooths) softmax.weighted += weight_of(c) * shifted;
      staged[c] = e;
    }
    return {target, valid, true, softmax};
  }

  // staged [C]: exponentials in, gradient out.
  void gradients(V* staged, const TileSoftmax& tile, const Gradient& gradient) const {
    const int32_t C = int32_t(params.C);
    M c_lanes = {};
    for (int32_t c = 0; c < C; ++c, c_lanes += 1) {
      V g = staged[c] * gradient.probability - select(tile.target == c_lanes, gradient.onehot, V{});
      if constexpr (smooths) g -= weight_of(c) * (smooth * scale);
      staged[c] = g;
    }
    if (any(~tile.valid)) {  // an ignored decision has no gradient, whatever its logits: 0 * nan is not 0
      for (int32_t c = 0; c < C; ++c) staged[c] = select(tile.valid, staged[c], V{});
    }
  }

  // ---- row: one decision at a time

  double rows(int64_t begin, int64_t end) const {
    const int64_t C = params.C;
    std::unique_ptr<S[]> staged(new S[C + W]);  // [C] exponentials, in whole vectors
    Positions positions(params.layout, begin);
    double sum = 0;
    for (int64_t position = begin; position < end; ++position) {
      const T* x = input + positions.input;
      T* g = grad ? grad + positions.grad : nullptr;
      positions.advance(1);
      const T* next = position + 1 < end ? input + positions.input : x;
      int64_t y = target_of(position);
      S value = 0;
      if (y != params.ignore_index) {
        value = one_row(x, g, staged.get(), y, next);
      } else if (g) {
        memset(g, 0, C * sizeof(T));
      }
      if (params.reduction == Reduction::none) static_cast<S*>(params.loss)[position] = value;
      sum += double(value);
    }
    finish_streaming();
    return sum;
  }

  // next: the row that follows, fetched while this one is computed.
  S one_row(const T* x, T* g, S* staged, int64_t y, const T* next) const {
    const int64_t C = params.C;
    const int64_t whole = C / W * W;
    const int rest = int(C - whole);
    const M lanes = lane_numbers<M>();
    const M in_rest = lanes < rest;
    const V lowest = V{} - S(INFINITY);
    V tail = rest ? select(in_rest, load_first(x + whole, rest), lowest) : lowest;

    V high[4] = {tail, lowest, lowest, lowest};
    int64_t c = 0;
    for (; c + 4 * W <= whole; c += 4 * W) {
      for (int i = 0; i < 4; ++i) high[i] = max(load(x + c + i * W), high[i]);
    }
    for (; c < whole; c += W) high[0] = max(load(x + c), high[0]);
    const S highest = max_lane(max(max(high[0], high[1]), max(high[2], high[3])));

    Softmax softmax = {V{} + highest, V{}, V{} + load_one(x + y), V{}};
    V sum[2] = {};
    V weighted = {};
    auto exponential = [&](V logits, int64_t at, V& into) {
      V shifted = logits - softmax.max;
      V e = exp(shifted);
      into += e;
      store(staged + at, e);
      return shifted;
    };
    c = 0;
    for (; c + 2 * W <= whole; c += 2 * W) {
      __builtin_prefetch(next + c, 0, 2);
      __builtin_prefetch(next + c + W, 0, 2);
      V a = exponential(load(x + c), c, sum[0]);
      V b = exponential(load(x + c + W), c + W, sum[1]);
      if constexpr (smooths) weighted += weights_at(c) * a + weights_at(c + W) * b;
    }
    for (; c < whole; c += W) {
      V a = exponential(load(x + c), c, sum[0]);
      if constexpr (smooths) weighted += weights_at(c) * a;
    }
    if (rest) {
      V a = exponential(tail, whole, sum[1]);
      if constexpr (smooths) {
        V w = weight ? load_first(weight + whole, rest) : V{} + 1;
        weighted += select(in_rest, w * a, V{});
      }
    }
    softmax.sum += S(sum_lanes(sum[0] + sum[1]));
    if constexpr (smooths) softmax.weighted += S(sum_lanes(weighted));

    // One decision in the first lane: the vectors' log, exp and pow serve for scalars too.
    M valid = lanes == 0;
    Gradient gradient;
    V value = finish(softmax, V{} + weight_of(y), valid, gradient);
    if (!g) return value[0];

    const S probability = gradient.probability[0];
    const S smooth_scale = smooth * scale;
    auto part = [&](int64_t at, int count) {
      V out = load(staged + at) * probability;
      // Here and not afterwards: a streamed line would have to come back for it.
      out -= select(lanes == M{} + ScalarOf<M>(y - at), gradient.onehot[0] + V{}, V{});
      if constexpr (smooths) {
        out -= (!weight ? V{} + 1 : count == W ? load(weight + at) : load_first(weight + at, count)) * smooth_scale;
      }
      return out;
    };
    c = 0;
    if (streaming) {
      while (c < W && !is_vector_aligned(g + c)) ++c;
      store_first(g, part(0, int(c)), int(c));
      for (; c + W <= C; c += W) store_streaming(g + c, part(c, W));
    }
    for (; c + W <= C; c += W) store(g + c, part(c, W));
    if (c < C) store_first(g + c, part(c, int(C - c)), int(C - c));
    return value[0];
  }

  V weights_at(int64_t c) const { return weight ? load(weight + c) : V{} + 1; }
};

template <class T>
inline double softmax_block_of(const SoftmaxParams& params, const SoftmaxScale& scale, int64_t begin, int64_t end) {
  using S = Compute<T>;
  switch (params.kind) {
    case Loss::cross_entropy:
      if (params.label_smoothing > 0) {
        return SoftmaxBlock<T, CrossEntropy, true>(params, scale, {}).run(begin, end);
      }
      return SoftmaxBlock<T, CrossEntropy, false>(params, scale, {}).run(begin, end);
    case Loss::focal:
      return SoftmaxBlock<T, Focal<S>, false>(params, scale, {S(params.gamma)}).run(begin, end);
    case Loss::ghmc: {
      const BinWeights<S> beta_of(params.bin_weight, params.ghm.bins);
      return SoftmaxBlock<T, GhmcLoss<S>, false>(params, scale, {beta_of}).run(begin, end);
    }
  }
  return 0;
}

// Loss and gradient of decisions [begin, end); the sum of their losses.
double softmax_block(const SoftmaxParams& params, const SoftmaxScale& scale, int64_t begin, int64_t end) {
  switch (params.dtype) {
    case DType::float32:
      return softmax_block_of<float>(params, scale, begin, end);
    case DType::float64:
      return softmax_block_of<double>(params, scale, begin, end);
    case DType::bfloat16:
      return softmax_block_of<bfloat16>(params, scale, begin, end);
    case DType::float16:
      return softmax_block_of<float16>(params, scale, begin, end);
  }
  return 0;
}

// ---- GHM-C after cross entropy: its loss is beta * nll and its gradient beta times cross entropy's, so what is left
// of a second pass are one factor a decision and a multiplication of the gradient while it is in cache.

// Multiplies the gradients of a tile, each decision's by its own factor.
template <class T>
inline void scale_tile(T* grad, const Layout& layout, const Tile& tile, int64_t C, Vec<T> factor) {
  if (layout.grad_class_stride == 1) {
    for (int lane = 0; lane < tile.count; ++lane) {
      T* row = grad + tile.grad_of(lane);
      int64_t c = 0;
      for (; c + W <= C; c += W) store(row + c, load(row + c) * factor[lane]);
      if (c < C) store_first(row + c, load_first(row + c, int(C - c)) * factor[lane], int(C - c));
    }
  } else if (tile.count == W && tile.uniform && tile.grad_step == 1) {
    for (int64_t c = 0; c < C; ++c) {
      T* row = grad + tile.grad[0] + c * layout.grad_class_stride;
      store(row, load(row) * factor);
    }
  } else {
    for (int64_t c = 0; c < C; ++c) {
      for (int lane = 0; lane < tile.count; ++lane) {
        grad[tile.grad_of(lane) + c * layout.grad_class_stride] *= factor[lane];
      }
    }
  }
}

// Calls with_tile(position, count, nll, valid, gradient norm) for each tile of nll [N], cross entropy's losses.
template <class T, class WithTile>
inline void for_each_nll(const SoftmaxParams& params, const void* nll, int64_t begin, int64_t end, WithTile with_tile) {
  using V = Vec<T>;
  for (int64_t position = begin; position < end; position += W) {
    int count = int(std::min<int64_t>(end - position, W));
    V x = load_first(static_cast<const Compute<T>*>(nll) + position, count);
    auto valid = load_targets<typename VectorOf<Compute<T>>::M>(params, position, count) != -1;
    with_tile(position, count, x, valid, one_minus_p(x, exp(-x)));
  }
}

template <class T>
inline double reweight_block_of(const SoftmaxParams& params, const void* nll, double gradient_scale, int64_t begin,
                                int64_t end) {
  using S = Compute<T>;
  using V = Vec<T>;
  const BinWeights<S> beta_of(params.bin_weight, params.ghm.bins);
  Positions positions(params.layout, begin);
  Sum sum;
  for_each_nll<T>(params, nll, begin, end, [&](int64_t position, int count, V x, auto valid, V gradient_norm) {
    V beta = beta_of(gradient_norm);
    V value = select(valid, beta * x, V{});
    if (params.reduction == Reduction::none) store_first(static_cast<S*>(params.loss) + position, value, count);
    sum.add(value);
    if (!params.grad) return;
    Tile tile;
    tile.take(positions, count);
    V factor = select(valid, beta * S(gradient_scale), V{});
    scale_tile(static_cast<T*>(params.grad), params.layout, tile, params.C, factor);
  });
  return sum.total();
}

// GHM-C's loss and, unless grad is null, gradient of decisions [begin, end); the gradients there are cross entropy's.
// Returns the sum of the losses.
double reweight_block(const SoftmaxParams& params, const void* nll, double gradient_scale, int64_t begin, int64_t end) {
  return params.dtype == DType::float64 ? reweight_block_of<double>(params, nll, gradient_scale, begin, end)
                                        : reweight_block_of<float>(params, nll, gradient_scale, begin, end);
}

// Adds the gradient norms of decisions [begin, end) to counts [bins].
void nll_histogram_block(const SoftmaxParams& params, const void* nll, int64_t begin, int64_t end, int64_t* counts) {
  const LaneCounts lane_counts(params.ghm.bins);
  auto add = [&](int64_t, int, auto, auto valid, auto gradient_norm) { lane_counts.add(gradient_norm, valid); };
  if (params.dtype == DType::float64) {
    for_each_nll<double>(params, nll, begin, end, add);
  } else {
    for_each_nll<float>(params, nll, begin, end, add);
  }
  lane_counts.add_to(counts);
}
