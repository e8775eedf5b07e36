// Where decisions lie in memory, in logical order: one after the other, and W at a time.
#pragma once

#include "vector.h"

namespace FASTLOSS_NAMESPACE {

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

}  // namespace FASTLOSS_NAMESPACE
