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
  for (int64_t c = 0; c < C; c += 4) with_columns(std::min(c, C - 4));
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

// gradient_at(c): of class c of the W decisions.
template <class T, class GradientAt>
inline void store_tile(T* grad, const Layout& layout, const Tile& tile, int64_t C, GradientAt gradient_at) {
  const int64_t stride = layout.grad_class_stride;
  T* first = grad + tile.grad[0];
  bool full = tile.count == W && tile.uniform;
  if (full && stride == 1 && C >= 4) {
    for_each_four(C, [&](int64_t c) {
      store_columns(first + c, tile.grad_step,
                    {gradient_at(c), gradient_at(c + 1), gradient_at(c + 2), gradient_at(c + 3)});
    });
  } else if (full && tile.grad_step == 1) {
    for (int64_t c = 0; c < C; ++c) store(first + c * stride, gradient_at(c));
  } else {
    for (int64_t c = 0; c < C; ++c) {
      scatter(grad + c * stride, [&](int lane) { return tile.grad_of(lane); }, gradient_at(c), tile.count);
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

// What is fetched while a tile's exponentials are computed, a cache line a class: the logits that follow, and where the
// tile's gradient will be written, since a store that misses the caches holds up those behind it. Where things lie
// otherwise, or past the end, a prefetch does nothing.
template <class T>
struct Fetch {
  const T* logits;
  int64_t class_step;
  const T* grad;
  int64_t grad_class_step;
  int64_t tile_step, grad_tile_step;

  FASTLOSS_LANE_FN void of_class(int64_t c) const {
    __builtin_prefetch(logits + c * class_step, 0, 2);
    __builtin_prefetch(grad + c * grad_class_step, 1, 2);
  }
  void next_tile() {
    logits += tile_step;
    grad += grad_tile_step;
  }
};

// How many tiles are finished together: while one waits for its logarithms and divisions, the others compute theirs.
constexpr int kTogether = 4;

// Walks decisions [begin, end) some tiles at a time. fuse(staged, tiles, position, fetch) finds their logits in
// staged [tiles, C], of W decisions each. What it leaves there becomes their gradients: gradient_of(staged + i * C, i),
// for the i-th of them, is a function of the class.
template <class T, class Fuse, class GradientOf>
inline void for_each_tiles(const SoftmaxParams& params, bool streaming, int64_t begin, int64_t end, Fuse fuse,
                           GradientOf gradient_of) {
  using V = Vec<T>;
  const int64_t C = params.C;
  const T* input = static_cast<const T*>(params.input);
  T* grad = static_cast<T*>(params.grad);
  const Layout& layout = params.layout;
  const int inner = layout.ndim - 1;
  const int64_t tile_size = C * int64_t(sizeof(V));
  // Those with a strided class dimension are staged in half of an L2 cache, others in a part of the L1 cache.
  const bool strided = layout.stride[inner] == 1 && (!grad || layout.grad_stride[inner] == 1);
  const int most_strided = strided ? int(std::clamp<int64_t>(262144 / tile_size, 1, 16)) : 1;
  const int together = int(std::clamp<int64_t>(8192 / tile_size, 1, kTogether));
  std::unique_ptr<V[]> staged(new V[C * std::max(most_strided, together)]);
  const bool fetches_grad = grad && grad != input;
  const T* in_cache = reinterpret_cast<const T*>(staged.get());  // to fetch where there is nothing to fetch
  auto to_gradient = [&](V* tile, int i) {
    auto gradient_at = gradient_of(tile, i);
    for (int64_t c = 0; c < C; ++c) tile[c] = gradient_at(c);
  };
  Positions positions(layout, begin);
  for (int64_t position = begin; position < end;) {
    int64_t run = std::min(positions.run(), end - position) / W;
    if (most_strided > 1 && run > 0) {
      int tiles = int(std::min<int64_t>(run, most_strided));
      Tile first;
      first.take(positions, W);
      positions.advance((tiles - 1) * W);
      load_strided(input, layout, first, tiles, C, staged.get());
      for (int i = 0; i < tiles; i += together) {
        Fetch<T> fetch = {input + first.input[0] + (tiles + i) * W, layout.class_stride, in_cache, W, W, 0};
        if (fetches_grad && !streaming) {
          fetch.grad = grad + first.grad[0] + i * W;
          fetch.grad_class_step = layout.grad_class_stride;
          fetch.grad_tile_step = W;
        }
        const int group = std::min(together, tiles - i);
        fuse(staged.get() + i * C, group, position + i * W, fetch);
        for (int k = 0; grad && k < group; ++k) to_gradient(staged.get() + (i + k) * C, k);
      }
      if (grad) store_strided(grad, layout, first, tiles, C, staged.get(), streaming);
      position += tiles * W;
    } else {
      int tiles = int(std::min<int64_t>((end - position + W - 1) / W, together));
      Tile where[kTogether];
      for (int i = 0; i < tiles; ++i) {
        where[i].take(positions, int(std::min<int64_t>(end - position - i * W, W)));
        load_tile(input, layout, where[i], C, staged.get() + i * C);
      }
      const int64_t step = W * where[0].input_step;
      Fetch<T> fetch = {input + where[0].input[0] + tiles * step, W, in_cache, W, step, 0};
      if (fetches_grad) {
        fetch.grad = grad + where[0].grad[0];
        fetch.grad_tile_step = W * where[0].grad_step;
      }
      fuse(staged.get(), tiles, position, fetch);
      for (int i = 0; grad && i < tiles; ++i) {
        V* tile = staged.get() + i * C;
        if constexpr (W == 16) {  // twice the registers: the transpose fits beside them
          store_tile(grad, layout, where[i], C, gradient_of(tile, i));
        } else {
          to_gradient(tile, i);
          store_tile(grad, layout, where[i], C, [=](int64_t c) { return tile[c]; });
        }
      }
      position += tiles * W;
    }
  }
  finish_streaming();
}

// A row's gradient from class `from` on, in whole vectors, and what lies before and after them. A streamed row has its
// whole vectors from `first` on, where it is aligned; gradient_at(c, count) is that of count classes from c on.
template <class T, class GradientAt>
FASTLOSS_LANE_FN void write_row(T* grad, int64_t C, bool streams, int64_t first, int64_t from, GradientAt gradient_at) {
  const int64_t end = first + (C - first) / W * W;
  for (int64_t c = from; c < end; c += W) {
    Vec<T> g = gradient_at(c, W);  // once: compiled twice, its roundings could differ
    if (streams) {
      store_streaming(grad + c, g);
    } else {
      store(grad + c, g);
    }
  }
  if (first) store_first(grad, gradient_at(int64_t(0), int(first)), int(first));
  if (end < C) store_first(grad + end, gradient_at(end, int(C - end)), int(C - end));
}

// The first class from which on a row can be streamed in whole vectors; W: none, for lying between two elements.
template <class T>
FASTLOSS_LANE_FN int64_t first_aligned(const T* grad) {
  int64_t first = 0;
  while (first < W && !is_vector_aligned(grad + first)) ++first;
  return first;
}

// ---- schedules

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
  S* max_of = nullptr;  // [N] where GHM-C's second pass wants them
  S* sum_of = nullptr;  // [N]
  const bool streaming;

  SoftmaxBlock(const SoftmaxParams& p, const SoftmaxScale& s, LossOf loss)
      : params(p),
        loss_of(loss),
        scale(S(s.gradient)),
        class_weights(S(s.class_weights)),
        smooth(S(p.label_smoothing / double(p.C))),
        streaming(streams(p)) {}

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
    Sum sum;
    TileSoftmax found[kTogether];
    Gradient gradient[kTogether];
    auto fused = [&](V* staged, int tiles, int64_t position, Fetch<T> fetch) {
      fuse(staged, tiles, position, end, fetch, found, gradient, sum);
    };
    auto gradient_of = [&](const V* staged, int i) {
      return [=, this, target = found[i].target, valid = found[i].valid, of_tile = gradient[i]](int64_t c)
                 FASTLOSS_LAMBDA {
                   V g = staged[c] * of_tile.probability - select(target == M{} + ScalarOf<M>(c), of_tile.onehot, V{});
                   if constexpr (smooths) g -= select(valid, V{} + weight_of(c) * (smooth * scale), V{});
                   return g;
                 };
    };
    for_each_tiles<T>(params, streaming, begin, end, fused, gradient_of);
    return sum.total();
  }

  // What the pass over a tile's logits finds.
  struct TileSoftmax {
    M target, valid;
    Softmax softmax;
  };

  // staged [tiles, C]: logits in, exponentials out. Adds the losses to sum, or writes them where reduction is none.
  void fuse(V* staged, int tiles, int64_t position, int64_t end, Fetch<T> fetch, TileSoftmax* found, Gradient* gradient,
            Sum& sum) const {
    const int64_t C = params.C;
    for (int i = 0; i < tiles; ++i) {
      int count = int(std::min<int64_t>(end - position - i * W, W));
      found[i] = exponentials(staged + i * C, position + i * W, count, fetch);
      fetch.next_tile();
    }
    for (int i = 0; i < tiles; ++i) {
      const TileSoftmax& tile = found[i];
      const int64_t at = position + i * W;
      const int count = int(std::min<int64_t>(end - at, W));
      V value = finish(tile.softmax, weights_of(tile.target, tile.valid), tile.valid, gradient[i]);
      if (params.reduction == Reduction::none) store_first(static_cast<S*>(params.loss) + at, value, count);
      if (max_of) {
        store_first(max_of + at, tile.softmax.max, count);
        store_first(sum_of + at, tile.softmax.sum, count);
      }
      sum.add(value);
    }
  }

  // staged [C]: logits in, exponentials out, and 0 for the decisions that are ignored.
  TileSoftmax exponentials(V* staged, int64_t position, int count, const Fetch<T>& fetch) const {
    const int32_t C = int32_t(params.C);
    M target = load_targets<M>(params, position, count);
    M valid = target != M{} - 1;
    if (!any(valid)) {
      for (int32_t c = 0; c < C; ++c) staged[c] = V{};
      return {target, valid, {V{}, V{} + 1, V{}, V{}}};
    }
    Softmax softmax = {staged[0], V{}, V{}, V{}};
    for (int32_t c = 1; c < C; ++c) softmax.max = max(staged[c], softmax.max);
    M c_lanes = {};  // c; counting is cheaper than bringing c into a vector
    for (int32_t c = 0; c < C; ++c, c_lanes += 1) {
      fetch.of_class(c);
      V x = staged[c];
      V shifted = x - softmax.max;
      V e = exp(shifted);
      softmax.sum += e;
      softmax.target_logit = select(target == c_lanes, x, softmax.target_logit);
      if constexpr (smooths) softmax.weighted += weight_of(c) * shifted;
      staged[c] = e;
    }
    if (any(~valid)) {  // no gradient, whatever the logits: 0 * nan is not 0
      for (int32_t c = 0; c < C; ++c) staged[c] = select(valid, staged[c], V{});
    }
    return {target, valid, softmax};
  }

  // ---- row: one decision at a time
  //
  // The gradient of a row is written while the exponentials of the row that follows are computed, and the logits of the
  // one after that are fetched: reading, computing and writing go on at the same time.

  struct Row {
    const T* x;  // [C]
    T* grad;     // [C]
    S* staged;   // [C] exponentials, in whole vectors
    int64_t target;
    bool streams;
    int64_t first;      // streaming stores are aligned from this class on
    Gradient gradient;  // in the first lane

    // Classes [first, vectors_end) of the gradient are written in whole vectors.
    int64_t vectors_end(int64_t C) const { return first + (C - first) / W * W; }
  };

  double rows(int64_t begin, int64_t end) const {
    const int64_t C = params.C, pitch = (C + W - 1) / W * W;
    // Of the row before and of this one. A vector that begins inside a row may end outside.
    std::unique_ptr<S[]> staged(new S[2 * pitch + W]);
    Positions positions(params.layout, begin);
    Row previous = {};  // without a grad: there is nothing left to write
    double sum = 0;
    for (int64_t position = begin; position < end; ++position) {
      Row row = {input + positions.input, grad ? grad + positions.grad : nullptr};
      positions.advance(1);
      const T* next = position + 1 < end ? input + positions.input : row.x;
      row.target = target_at(params, position);
      row.staged = staged.get() + (previous.staged == staged.get() ? pitch : 0);
      S value = 0;
      if (row.target != params.ignore_index) {
        row.first = streaming ? first_aligned(row.grad) % W : 0;
        row.streams = streaming && is_vector_aligned(row.grad + row.first);
        Softmax softmax = row_softmax(row, previous, next);
        // One decision in the first lane: the vectors' log, exp and pow serve for scalars too.
        value = finish(softmax, V{} + weight_of(row.target), lane_numbers<M>() == 0, row.gradient)[0];
        if (max_of) {
          max_of[position] = softmax.max[0];
          sum_of[position] = softmax.sum[0];
        }
        previous = row;
      } else if (row.grad) {
        memset(row.grad, 0, C * sizeof(T));
      }
      if (params.reduction == Reduction::none) static_cast<S*>(params.loss)[position] = value;
      sum += double(value);
    }
    if (previous.grad) write_gradient(previous, previous.first);
    finish_streaming();
    return sum;
  }

  // Stages the exponentials of row, writes the gradient of the row before it, fetches the row that follows.
  Softmax row_softmax(const Row& row, const Row& previous, const T* next) const {
    const int64_t C = params.C;
    const int64_t whole = C / W * W;
    const int rest = int(C - whole);
    const T* x = row.x;
    const M in_rest = lane_numbers<M>() < rest;
    const V lowest = V{} - S(INFINITY);
    V tail = rest ? select(in_rest, load_first(x + whole, rest), lowest) : lowest;

    V high[4] = {tail, lowest, lowest, lowest};
    int64_t c = 0;
    for (; c + 4 * W <= whole; c += 4 * W) {
      for (int i = 0; i < 4; ++i) high[i] = max(load(x + c + i * W), high[i]);
    }
    for (; c < whole; c += W) high[0] = max(load(x + c), high[0]);
    const V highest = V{} + max_lane(max(max(high[0], high[1]), max(high[2], high[3])));

    const T* written = row.grad && !row.streams ? row.grad : x;  // soon, and a miss would hold up the stores behind it
    V sum[2] = {};
    V weighted = {};
    auto exponential = [&](V logits, int64_t at, V& into) {
      V shifted = logits - highest;
      V e = exp(shifted);
      into += e;
      if (row.grad) store(row.staged + at, e);
      return shifted;
    };
    auto two_vectors = [&](int64_t at) {
      __builtin_prefetch(next + at, 0, 2);
      __builtin_prefetch(next + at + W, 0, 2);
      __builtin_prefetch(written + at, 1, 2);
      __builtin_prefetch(written + at + W, 1, 2);
      V a = exponential(load(x + at), at, sum[0]);
      V b = exponential(load(x + at + W), at + W, sum[1]);
      if constexpr (smooths) weighted += weights_at(at) * a + weights_at(at + W) * b;
    };
    c = 0;
    if (previous.grad) {
      const V probability = V{} + previous.gradient.probability[0], onehot = V{} + previous.gradient.onehot[0];
      const int64_t shift = previous.first, last = previous.vectors_end(C) - shift;
      M to_target = lane_numbers<M>() + ScalarOf<M>(shift - previous.target);  // 0 at the target
      for (; c + 2 * W <= last; c += 2 * W) {
        two_vectors(c);
        for (int i = 0; i < 2; ++i, to_target += W) {
          int64_t at = shift + c + i * W;
          write_vector(previous, at, gradient_at(previous, at, W, to_target, probability, onehot));
        }
      }
      write_gradient(previous, shift + c);
    }
    for (; c + 2 * W <= whole; c += 2 * W) two_vectors(c);
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
    return {highest, V{} + S(sum_lanes(sum[0] + sum[1])), V{} + load_one(x + row.target), V{} + S(sum_lanes(weighted))};
  }

  // The gradient of count classes from class at on; to_target is their distance from the target.
  V gradient_at(const Row& row, int64_t at, int count, M to_target, V probability, V onehot) const {
    // The target's part here and not afterwards: a streamed line would have to come back for it.
    V g = load(row.staged + at) * probability - select(to_target == 0, onehot, V{});
    if constexpr (smooths) {
      V w = !weight ? V{} + 1 : count == W ? load(weight + at) : load_first(weight + at, count);
      g -= w * (smooth * scale);
    }
    return g;
  }

  void write_vector(const Row& row, int64_t at, V g) const {
    if (row.streams) {
      store_streaming(row.grad + at, g);
    } else {
      store(row.grad + at, g);
    }
  }

  void write_gradient(const Row& row, int64_t from) const {
    auto gradient = [&](int64_t at, int count) FASTLOSS_LAMBDA {
      M to_target = lane_numbers<M>() + ScalarOf<M>(at - row.target);
      return gradient_at(row, at, count, to_target, V{} + row.gradient.probability[0], V{} + row.gradient.onehot[0]);
    };
    write_row(row.grad, params.C, row.streams, row.first, from, gradient);
  }

  V weights_at(int64_t c) const { return weight ? load(weight + c) : V{} + 1; }
};

template <class T>
inline double softmax_block_of(const SoftmaxParams& params, const SoftmaxScale& scale, const GhmcDecisions* found,
                               int64_t begin, int64_t end) {
  using S = Compute<T>;
  if (params.kind == Loss::focal) {
    if (params.gamma == 2) return SoftmaxBlock<T, Focal<S, 2>, false>(params, scale, {}).run(begin, end);
    return SoftmaxBlock<T, Focal<S>, false>(params, scale, {S(params.gamma)}).run(begin, end);
  }
  if (params.label_smoothing > 0) return SoftmaxBlock<T, CrossEntropy, true>(params, scale, {}).run(begin, end);
  SoftmaxBlock<T, CrossEntropy, false> block(params, scale, {});
  if (found) {
    block.max_of = static_cast<S*>(found->max);
    block.sum_of = static_cast<S*>(found->sum);
  }
  return block.run(begin, end);
}

// Loss and gradient of decisions [begin, end); the sum of their losses. Not GHM-C, whose first pass is cross entropy
// and leaves in found, unless it is null, what the second pass needs.
double softmax_block(const SoftmaxParams& params, const SoftmaxScale& scale, const GhmcDecisions* found, int64_t begin,
                     int64_t end) {
  return with_storage(params.dtype, [&](auto storage) {
    return softmax_block_of<decltype(storage)>(params, scale, found, begin, end);
  });
}

// ---- GHM-C after cross entropy: its loss is beta * nll and its gradient beta times cross entropy's, so what is left
// of a second pass are one factor a decision and a multiplication of the gradient while it is in cache, or where that
// is not done, one exponential a logit.

// Multiplies rows of a gradient, each by its own factor.
template <class T>
struct RowScale {
  using V = Vec<T>;
  using M = typename VectorOf<Compute<T>>::M;

  T* grad;
  const int64_t C;
  M row_of[W];  // of short rows without a gap, in whole vectors: which decision an element belongs to

  RowScale(const SoftmaxParams& params) : grad(static_cast<T*>(params.grad)), C(params.C) {
    for (int64_t i = 0; C < W && i < C * W; ++i) row_of[i / W][i % W] = ScalarOf<M>(i / C);
  }

  void operator()(const Tile& tile, V factor) const {
    if (tile.count == W && tile.uniform && C < W && tile.grad_step == C) {
      T* first = grad + tile.grad[0];
      for (int64_t i = 0; i < C; ++i) store(first + i * W, load(first + i * W) * permute(factor, row_of[i]));
      return;
    }
    for (int lane = 0; lane < tile.count; ++lane) {
      T* row = grad + tile.grad_of(lane);
      int64_t c = 0;
      for (; c + W <= C; c += W) store(row + c, load(row + c) * factor[lane]);
      for (; c < C; ++c) row[c] *= factor[lane];
    }
  }
};

template <class T>
struct GhmcBlock {
  using S = Compute<T>;
  using V = Vec<T>;
  using M = typename VectorOf<S>::M;

  const SoftmaxParams& params;
  const GhmcDecisions& found;
  const S scale;  // of the gradient
  const BinWeights<S> beta_of{params.bin_weight, params.ghm.bins};
  const S* nll = static_cast<const S*>(found.nll);
  const S* max_of = static_cast<const S*>(found.max);
  const S* sum_of = static_cast<const S*>(found.sum);
  const T* input = static_cast<const T*>(params.input);
  T* grad = static_cast<T*>(params.grad);
  const bool streaming = streams(params);

  double run(int64_t begin, int64_t end) const {
    Sum sum;
    if (!grad) {
      for (int64_t position = begin; position < end; position += W) weigh(position, end, sum);
    } else if (!max_of) {
      multiply(begin, end, sum);
    } else if (runs_rows(params)) {
      rows(begin, end, sum);
    } else {
      tiles(begin, end, sum);
    }
    return sum.total();
  }

  // Adds the losses of W decisions to sum, or writes them where reduction is none. Returns what cross entropy's
  // gradient is to be multiplied by: beta and the scale, 0 where a decision is ignored.
  V weigh(int64_t position, int64_t end, Sum& sum) const {
    const int count = int(std::min<int64_t>(end - position, W));
    M bin = load_bins<M>(found.bin + position, count);
    M valid = bin >= 0;
    V beta = beta_of(bin & valid);
    V value = select(valid, beta * load_first(nll + position, count), V{});
    if (params.reduction == Reduction::none) store_first(static_cast<S*>(params.loss) + position, value, count);
    sum.add(value);
    return select(valid, beta * scale, V{});
  }

  void multiply(int64_t begin, int64_t end, Sum& sum) const {
    if constexpr (std::is_same_v<T, S>) {  // half-precision gradients are not multiplied
      const RowScale<T> scale_rows(params);
      Positions positions(params.layout, begin);
      for (int64_t position = begin; position < end; position += W) {
        Tile tile;
        tile.take(positions, int(std::min<int64_t>(end - position, W)));
        scale_rows(tile, weigh(position, end, sum));
      }
    }
  }

  void tiles(int64_t begin, int64_t end, Sum& sum) const {
    auto gradients = [&](V* staged, int tiles, int64_t position, Fetch<T> fetch) {
      for (int i = 0; i < tiles; ++i, fetch.next_tile()) {
        tile_gradient(staged + i * params.C, position + i * W, end, fetch, sum);
      }
    };
    auto gradient_of = [](const V* staged, int) { return [staged](int64_t c) FASTLOSS_LAMBDA { return staged[c]; }; };
    for_each_tiles<T>(params, streaming, begin, end, gradients, gradient_of);
  }

  // staged [C]: logits in, gradient out.
  void tile_gradient(V* staged, int64_t position, int64_t end, const Fetch<T>& fetch, Sum& sum) const {
    const int32_t C = int32_t(params.C);
    const int count = int(std::min<int64_t>(end - position, W));
    const M target = load_targets<M>(params, position, count);
    const M valid = target != M{} - 1;
    const V onehot = weigh(position, end, sum);
    const V largest = load_first(max_of + position, count);
    const V probability = select(valid, onehot / load_first(sum_of + position, count), V{});
    const bool ignores = any(~valid);
    M c_lanes = {};
    for (int32_t c = 0; c < C; ++c, c_lanes += 1) {
      fetch.of_class(c);
      V g = exp(staged[c] - largest) * probability - select(target == c_lanes, onehot, V{});
      staged[c] = ignores ? select(valid, g, V{}) : g;  // whatever the logits: 0 * nan is not 0
    }
  }

  void rows(int64_t begin, int64_t end, Sum& sum) const {
    Positions positions(params.layout, begin);
    V factor = {};
    for (int64_t position = begin; position < end; ++position, positions.advance(1)) {
      const int lane = int((position - begin) % W);
      if (lane == 0) factor = weigh(position, end, sum);
      row_gradient(input + positions.input, grad + positions.grad, position, factor[lane]);
    }
    finish_streaming();
  }

  void row_gradient(const T* x, T* row, int64_t position, S factor) const {
    if (found.bin[position] < 0) {
      memset(row, 0, params.C * sizeof(T));
      return;
    }
    const int64_t target = target_at(params, position);
    const V onehot = V{} + factor, probability = V{} + factor / sum_of[position], largest = V{} + max_of[position];
    auto gradient = [&](int64_t c, int count) FASTLOSS_LAMBDA {
      V logits = count == W ? load(x + c) : load_first(x + c, count);
      M to_target = lane_numbers<M>() + ScalarOf<M>(c - target);
      return exp(logits - largest) * probability - select(to_target == 0, onehot, V{});
    };
    const int64_t first = streaming ? first_aligned(row) % W : 0;
    write_row(row, params.C, streaming && is_vector_aligned(row + first), first, first, gradient);
  }
};

// GHM-C's loss and, unless grad is null, gradient of decisions [begin, end); the sum of the losses.
double ghmc_block(const SoftmaxParams& params, const GhmcDecisions& found, double gradient_scale, int64_t begin,
                  int64_t end) {
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    return GhmcBlock<T>{params, found, Compute<T>(gradient_scale)}.run(begin, end);
  });
}

template <class S>
inline void ghmc_histogram_block_of(const SoftmaxParams& params, const GhmcDecisions& found, int64_t begin, int64_t end,
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

// The bins of decisions [begin, end), given their nll; adds their numbers to counts [bins].
void ghmc_histogram_block(const SoftmaxParams& params, const GhmcDecisions& found, int64_t begin, int64_t end,
                          int64_t* counts) {
  with_storage(params.dtype, [&](auto storage) {
    ghmc_histogram_block_of<Compute<decltype(storage)>>(params, found, begin, end, counts);
  });
}
