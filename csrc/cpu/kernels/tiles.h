// Tiles: W decisions are the W lanes, classes one after the other. For few classes, and for any strides.
//
// A tile's logits are staged, class by class: staged[c] holds class c of the W decisions. They become its exponentials
// there and then its gradient, so the gradient may overwrite the logits. Several tiles are worked on together: while
// one waits for its logarithms and divisions, the others compute theirs.
#pragma once

#include "positions.h"
#include "transpose.h"

namespace FASTLOSS_NAMESPACE {

constexpr int kTogether = 4;

// Calls with_columns(c) for columns c to c + 3 of rows of C >= 4: the last four may be among those before.
template <class WithColumns>
inline void for_each_four(int64_t C, WithColumns with_columns) {
  for (int64_t c = 0; c < C; c += 4) with_columns(std::min(c, C - 4));
}

// One tile: transposed where the path says so and its rows have one distance, else gathered.
template <class T>
inline void load_tile(const T* input, const Layout& layout, Path path, const Tile& tile, int64_t C, Vec<T>* staged) {
  if (path == Path::transposed && tile.count == W && tile.uniform) {
    const T* first = input + tile.input[0];
    for_each_four(C, [&](int64_t c) {
      Vec<T> x[4];
      load_columns(first + c, tile.input_step, x);
      for (int i = 0; i < 4; ++i) staged[c + i] = x[i];
    });
    return;
  }
  for (int64_t c = 0; c < C; ++c) {
    staged[c] = gather(input + c * layout.class_stride, [&](int lane) { return tile.input_of(lane); }, tile.count);
  }
}

// gradient_at(c): of class c of the W decisions.
template <class T, class GradientAt>
inline void store_tile(T* grad, const Layout& layout, Path path, const Tile& tile, int64_t C, GradientAt gradient_at) {
  if (path == Path::transposed && tile.count == W && tile.uniform) {
    T* first = grad + tile.grad[0];
    for_each_four(C, [&](int64_t c) {
      store_columns(first + c, tile.grad_step,
                    {gradient_at(c), gradient_at(c + 1), gradient_at(c + 2), gradient_at(c + 3)});
    });
    return;
  }
  for (int64_t c = 0; c < C; ++c) {
    T* g = grad + c * layout.grad_class_stride;
    scatter(g, [&](int lane) { return tile.grad_of(lane); }, gradient_at(c), tile.count);
  }
}

// Tiles side by side in memory, the first of them given: class by class for all of them, since a class of one tile is a
// cache line, and lines one after the other are what memory is fast at.
template <class T>
inline void load_positions(const T* input, const Layout& layout, const Tile& first, int tiles, int64_t C,
                           Vec<T>* staged) {
  for (int64_t c = 0; c < C; ++c) {
    const T* x = input + first.input[0] + c * layout.class_stride;
    for (int i = 0; i < tiles; ++i) staged[i * C + c] = load(x + i * W);
  }
}

template <class T>
inline void store_positions(T* grad, const Layout& layout, const Tile& first, int tiles, int64_t C,
                            const Vec<T>* staged, bool streamed) {
  for (int64_t c = 0; c < C; ++c) {
    T* g = grad + first.grad[0] + c * layout.grad_class_stride;
    if (streamed && is_vector_aligned(g)) {
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
  int64_t class_step, tile_step;
  const T* grad;
  int64_t grad_class_step, grad_tile_step;

  FASTLOSS_LANE_FN void of_class(int64_t c) const {
    __builtin_prefetch(logits + c * class_step, 0, 2);
    __builtin_prefetch(grad + c * grad_class_step, 1, 2);
  }
  void next_tile() {
    logits += tile_step;
    grad += grad_tile_step;
  }
};

// Walks decisions in tiles. compute(staged, tiles, position, fetch) makes of the logits in staged [tiles, C], W
// decisions each, what gradient_of(staged + i * C, i), for the i-th of them, takes the gradient from: a function of the
// class.
template <class T, class Compute, class GradientOf>
struct TileWalk {
  using V = Vec<T>;

  const SoftmaxParams& params;
  const Schedule& schedule;
  const Compute compute;
  const GradientOf gradient_of;
  const Layout& layout = params.layout;
  const int64_t C = params.C;
  const T* input = static_cast<const T*>(params.input);
  T* grad = static_cast<T*>(params.grad);
  const bool fetches_grad = grad && grad != input && schedule.output != Output::streamed;
  // Tiles side by side are staged in half of an L2 cache, others in a part of the L1 cache.
  const int64_t tile_size = C * int64_t(sizeof(V));
  const int side_by_side = int(std::clamp<int64_t>(262144 / tile_size, 1, 16));
  const int together = int(std::clamp<int64_t>(8192 / tile_size, 1, kTogether));
  const std::unique_ptr<V[]> staged{new V[C * std::max(schedule.path == Path::positions ? side_by_side : 1, together)]};
  const T* in_cache = reinterpret_cast<const T*>(staged.get());  // to fetch where there is nothing to fetch

  void walk(int64_t begin, int64_t end) const {
    Positions positions(layout, begin);
    for (int64_t position = begin; position < end;) {
      const int64_t run = schedule.path == Path::positions ? std::min(positions.run(), end - position) / W : 0;
      const int tiles = run > 0 ? int(std::min<int64_t>(run, side_by_side))
                                : int(std::min<int64_t>((end - position + W - 1) / W, together));
      if (run > 0) {
        of_run(positions, position, tiles);
      } else {
        of_any(positions, position, end, tiles);
      }
      position += tiles * W;
    }
    if (schedule.output == Output::streamed) finish_streaming();
  }

 private:
  // Tiles side by side: all are loaded, some at a time computed, all stored.
  void of_run(Positions& positions, int64_t position, int tiles) const {
    Tile first;
    first.take(positions, W);
    positions.advance((tiles - 1) * W);
    load_positions(input, layout, first, tiles, C, staged.get());
    for (int i = 0; i < tiles; i += together) {
      Fetch<T> fetch = {input + first.input[0] + (tiles + i) * W, layout.class_stride, W, in_cache, W, 0};
      if (fetches_grad) {
        fetch.grad = grad + first.grad[0] + i * W;
        fetch.grad_class_step = layout.grad_class_stride;
        fetch.grad_tile_step = W;
      }
      const int group = std::min(together, tiles - i);
      compute(staged.get() + i * C, group, position + i * W, fetch);
      for (int k = 0; grad && k < group; ++k) to_gradient(staged.get() + (i + k) * C, k);
    }
    if (grad) store_positions(grad, layout, first, tiles, C, staged.get(), schedule.output == Output::streamed);
  }

  // Tiles whose decisions lie anywhere, the last of them perhaps not full.
  void of_any(Positions& positions, int64_t position, int64_t end, int tiles) const {
    Tile where[kTogether];
    for (int i = 0; i < tiles; ++i) {
      where[i].take(positions, int(std::min<int64_t>(end - position - i * W, W)));
      load_tile(input, layout, schedule.path, where[i], C, staged.get() + i * C);
    }
    const int64_t step = W * where[0].input_step;
    Fetch<T> fetch = {input + where[0].input[0] + tiles * step, W, step, in_cache, W, 0};
    if (fetches_grad) {
      fetch.grad = grad + where[0].grad[0];
      fetch.grad_tile_step = W * where[0].grad_step;
    }
    compute(staged.get(), tiles, position, fetch);
    for (int i = 0; grad && i < tiles; ++i) {
      V* tile = staged.get() + i * C;
      if constexpr (W == 16) {  // twice the registers: the transpose fits beside the gradient
        store_tile(grad, layout, schedule.path, where[i], C, gradient_of(tile, i));
      } else {
        to_gradient(tile, i);
        store_tile(grad, layout, schedule.path, where[i], C, [=](int64_t c) { return tile[c]; });
      }
    }
  }

  void to_gradient(V* tile, int i) const {
    auto gradient_at = gradient_of(tile, i);
    for (int64_t c = 0; c < C; ++c) tile[c] = gradient_at(c);
  }
};

template <class T, class Compute, class GradientOf>
inline void for_each_tile(const SoftmaxParams& params, const Schedule& schedule, int64_t begin, int64_t end,
                          Compute compute, GradientOf gradient_of) {
  TileWalk<T, Compute, GradientOf>{params, schedule, compute, gradient_of}.walk(begin, end);
}

}  // namespace FASTLOSS_NAMESPACE
