// Rows to lanes: W rows of four elements, transposed in registers.
//
// Vectors are put together from, and taken apart into, blocks of four elements, each in a row of its own: inserting and
// extracting blocks costs x86 less than the shuffles that a square of W rows would take.
#pragma once

#include "storage.h"

namespace FASTLOSS_NAMESPACE {

template <class Half, int... I>
FASTLOSS_LANE_FN auto join(Half low, Half high, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(low, high, I...);
}
template <int first, class Whole, int... I>
FASTLOSS_LANE_FN auto part_of(Whole x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, (first + I)...);
}

// Blocks from source, source + step, source + 2 step, ...
template <int lanes, class T>
FASTLOSS_LANE_FN auto load_blocks(const T* source, int64_t step) {
  if constexpr (lanes == 4) {
    using Block __attribute__((vector_size(4 * sizeof(T)))) = T;
    return load_bits<Block>(source);
  } else {
    return join(load_blocks<lanes / 2>(source, step), load_blocks<lanes / 2>(source + lanes / 8 * step, step),
                std::make_integer_sequence<int, lanes>{});
  }
}
template <int lanes, class T, class Bits>
FASTLOSS_LANE_FN void store_blocks(T* target, int64_t step, Bits x) {
  if constexpr (lanes == 4) {
    __builtin_memcpy(target, &x, sizeof(x));
  } else {
    constexpr auto half = std::make_integer_sequence<int, lanes / 2>{};
    store_blocks<lanes / 2>(target, step, part_of<0>(x, half));
    store_blocks<lanes / 2>(target + lanes / 8 * step, step, part_of<lanes / 2>(x, half));
  }
}

// {a0, b0, a1, b1} and {a2, b2, a3, b3} of each block, for runs of 1; {a0, a1, b0, b1} and {a2, ...} for runs of 2.
template <int run, class V, int... I>
FASTLOSS_LANE_FN void unpack(V a, V b, V& low, V& high, std::integer_sequence<int, I...>) {
  low = __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / (2 * run) * run + I % run + (I / run % 2) * W)...);
  high = __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / (2 * run) * run + I % run + (I / run % 2) * W + 2)...);
}

// Every block of the four vectors as a square of 4 x 4.
template <class V>
FASTLOSS_LANE_FN void transpose_blocks(V (&x)[4]) {
  constexpr auto lanes = std::make_integer_sequence<int, W>{};
  V y[4];
  unpack<1>(x[0], x[1], y[0], y[1], lanes);
  unpack<1>(x[2], x[3], y[2], y[3], lanes);
  unpack<2>(y[0], y[2], x[0], x[1], lanes);
  unpack<2>(y[1], y[3], x[2], x[3], lanes);
}

// Four elements of each of W rows, step apart: x[i] is element i of all rows.
template <class T>
FASTLOSS_LANE_FN void load_columns(const T* source, int64_t step, Vec<T> (&x)[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) x[i] = widen(load_blocks<W>(bits_at(source + i * step), 4 * step), T{});
  transpose_blocks(x);
}
template <class T>
FASTLOSS_LANE_FN void store_columns(T* target, int64_t step, const Vec<T> (&columns)[4]) {
  Vec<T> x[4] = {columns[0], columns[1], columns[2], columns[3]};
  transpose_blocks(x);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) store_blocks<W>(bits_at(target + i * step), 4 * step, narrow(x[i], T{}));
}

}  // namespace FASTLOSS_NAMESPACE
