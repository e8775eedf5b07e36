// A gradient times a factor for each decision, or one for all. 0 stays 0 whatever the factor: an ignored decision has
// no gradient. Half precision is rounded once. The result may overwrite the gradient.
#pragma once

#include "positions.h"
#include "storage.h"

namespace FASTLOSS_NAMESPACE {

template <class V>
FASTLOSS_LANE_FN V scaled(V g, V factor) {
  return select(g == 0, g, g * factor);
}

// Rows of C classes side by side.
template <class T>
struct RowScale {
  using V = Vec<T>;
  using M = typename VectorOf<Compute<T>>::M;
  static constexpr int kShort = 64;

  const T* from;
  T* to;
  const int64_t C;
  const bool is_short;  // rows without a gap, few classes: in whole vectors
  M row_of[kShort];     // which decision the elements of a vector belong to

  RowScale(const void* source, void* target, int64_t num_classes, const Layout& layout)
      : from(static_cast<const T*>(source)),
        to(static_cast<T*>(target)),
        C(num_classes),
        is_short(C <= kShort && layout.stride[layout.ndim - 1] == C && layout.grad_stride[layout.ndim - 1] == C) {
    if (!is_short) return;
    // Element e belongs to row e / C: with a half more, a rounding of the quotient makes no difference.
    V element = __builtin_convertvector(lane_numbers<M>(), V) + Compute<T>(0.5);
    for (int64_t i = 0; i < C; ++i, element += W) row_of[i] = to_index(element / Compute<T>(C));
  }

  FASTLOSS_LANE_FN void operator()(const Tile& tile, V factor) const {
    if (is_short && tile.count == W && tile.uniform) {
      const T* g = from + tile.input[0];
      T* out = to + tile.grad[0];
      for (int64_t i = 0; i < C; ++i) store(out + i * W, scaled(load(g + i * W), permute(factor, row_of[i])));
      return;
    }
    for (int lane = 0; lane < tile.count; ++lane) {
      const T* g = from + tile.input_of(lane);
      T* out = to + tile.grad_of(lane);
      const V of_row = V{} + factor[lane];
      int64_t c = 0;
      for (; c + W <= C; c += W) store(out + c, scaled(load(g + c), of_row));
      if (c < C) store_first(out + c, scaled(load_first(g + c, int(C - c)), of_row), int(C - c));
    }
  }
};

template <class T>
struct ScaleBlock {
  using S = Compute<T>;
  using V = Vec<T>;

  const ScaleParams& params;
  const Layout& layout = params.layout;
  const T* from = static_cast<const T*>(params.grad);
  T* to = static_cast<T*>(params.scaled);
  const S* grad_output = static_cast<const S*>(params.grad_output);
  const double stored = params.stored_scale ? *params.stored_scale : 1;
  const V of_call = V{} + S(double(*grad_output) / stored);

  V factor_of(int64_t position, int count) const {
    return params.per_decision ? load_first(grad_output + position, count) / S(stored) : of_call;
  }

  void rows(int64_t begin, int64_t end) const {
    const RowScale<T> scale_rows(from, to, params.C, layout);
    Positions positions(layout, begin);
    for (int64_t position = begin; position < end; position += W) {
      const int count = int(std::min<int64_t>(end - position, W));
      Tile tile;
      tile.take(positions, count);
      scale_rows(tile, factor_of(position, count));
    }
  }

  // Class by class for many decisions side by side, whose factors stay in the cache.
  void by_position(int64_t begin, int64_t end) const {
    constexpr int64_t kMany = 1024;
    V factor[kMany / W];
    Positions positions(layout, begin);
    for (int64_t position = begin, n; position < end; position += n) {
      n = std::min({positions.run(), end - position, kMany});
      for (int64_t i = 0; i < n; i += W) factor[i / W] = factor_of(position + i, int(std::min<int64_t>(n - i, W)));
      for (int64_t c = 0; c < params.C; ++c) {
        const T* g = from + positions.input + c * layout.class_stride;
        T* out = to + positions.grad + c * layout.grad_class_stride;
        int64_t i = 0;
        for (; i + W <= n; i += W) store(out + i, scaled(load(g + i), factor[i / W]));
        if (i < n) store_first(out + i, scaled(load_first(g + i, int(n - i)), factor[i / W]), int(n - i));
      }
      positions.advance(n);
    }
  }

  void gathered(int64_t begin, int64_t end) const {
    Positions positions(layout, begin);
    for (int64_t position = begin; position < end; position += W) {
      const int count = int(std::min<int64_t>(end - position, W));
      const V factor = factor_of(position, count);
      Tile tile;
      tile.take(positions, count);
      for (int64_t c = 0; c < params.C; ++c) {
        V g = gather(from + c * layout.class_stride, [&](int lane) { return tile.input_of(lane); }, count);
        T* out = to + c * layout.grad_class_stride;
        scatter(out, [&](int lane) { return tile.grad_of(lane); }, scaled(g, factor), count);
      }
    }
  }
};

inline void scale_gradient(const ScaleParams& params, const Schedule& schedule, int64_t begin, int64_t end) {
  with_storage(params.dtype, [&](auto storage) {
    const ScaleBlock<decltype(storage)> block{params};
    if (schedule.path == Path::rows) return block.rows(begin, end);
    if (schedule.path == Path::positions) return block.by_position(begin, end);
    block.gathered(begin, end);
  });
}

}  // namespace FASTLOSS_NAMESPACE
