// Rows: one decision at a time, W of its classes are the W lanes. For many classes side by side in memory.
#pragma once

#include "storage.h"

namespace FASTLOSS_NAMESPACE {

// Where a row's gradient goes: whole vectors from class `first` on, which is 0 unless they are streamed and have to be
// aligned, and what lies before and after them.
template <class T>
struct RowStore {
  T* grad = nullptr;  // [C]; null: there is nothing to write
  int64_t C = 0;
  int64_t first = 0, last = 0;  // classes [first, last) go out in whole vectors
  bool streamed = false;

  RowStore() = default;
  FASTLOSS_LANE_FN RowStore(T* row, int64_t num_classes, bool wants_streaming) : grad(row), C(num_classes) {
    if (wants_streaming) {
      while (first < W && !is_vector_aligned(row + first)) ++first;
      streamed = first < W;  // else it lies between two elements
      first %= W;
    }
    last = first + (C - first) / W * W;
  }

  FASTLOSS_LANE_FN void vector(int64_t c, Vec<T> g) const {
    if (streamed) {
      store_streaming(grad + c, g);
    } else {
      store(grad + c, g);
    }
  }

  // Writes whole vectors from class c on, and the edges. gradient_at(c, count) is that of count classes from c on.
  template <class GradientAt>
  FASTLOSS_LANE_FN void write(int64_t c, GradientAt gradient_at) const {
    for (; c < last; c += W) vector(c, gradient_at(c, W));
    if (first) store_first(grad, gradient_at(int64_t(0), int(first)), int(first));
    if (last < C) store_first(grad + last, gradient_at(last, int(C - last)), int(C - last));
  }
};

}  // namespace FASTLOSS_NAMESPACE
