// SIMD vectors of W lanes: comparisons, permutations, sums over lanes.
//
// Vectors are the compilers' own (vector_size): +, <, ?: and [] work on them and NEON needs no second source.
#pragma once

#include "isa.h"

namespace FASTLOSS_NAMESPACE {

constexpr int W = FASTLOSS_LANES;

using f32 = float __attribute__((vector_size(W * 4)));
using i32 = int32_t __attribute__((vector_size(W * 4)));
using u32 = uint32_t __attribute__((vector_size(W * 4)));
using u8 = uint8_t __attribute__((vector_size(W)));
using u16 = uint16_t __attribute__((vector_size(W * 2)));
using f64 = double __attribute__((vector_size(W * 8)));
using i64 = int64_t __attribute__((vector_size(W * 8)));

// One register of 64-bit lanes, half as many: wider vectors work, but compilers take them apart into scalars.
using half_i32 = int32_t __attribute__((vector_size(W * 2)));
using half_f32 = float __attribute__((vector_size(W * 2)));
using half_i64 = int64_t __attribute__((vector_size(W * 4)));
using half_f64 = double __attribute__((vector_size(W * 4)));

// The type a scalar computes in (S), its vector (V), and the vector of a comparison (M).
template <class S>
struct VectorOf;
template <>
struct VectorOf<float> {
  using V = f32;
  using M = i32;
};
template <>
struct VectorOf<double> {
  using V = f64;
  using M = i64;
};

template <class V>
using ScalarOf = std::remove_cvref_t<decltype(V{}[0])>;

FASTLOSS_LANE_FN f32 select(i32 condition, f32 a, f32 b) { return condition ? a : b; }
FASTLOSS_LANE_FN f64 select(i64 condition, f64 a, f64 b) { return condition ? a : b; }

template <class V>
FASTLOSS_LANE_FN V max(V a, V b) {
  return a > b ? a : b;  // b where a is nan: the exponential of the nan logit carries it on
}

FASTLOSS_LANE_FN i32 bits_of(f32 x) { return (i32)x; }
FASTLOSS_LANE_FN f32 float_of(i32 x) { return (f32)x; }

// a + b modulo 2^32: the lanes whose result is not taken may overflow, which signed numbers must not.
FASTLOSS_LANE_FN i32 add_modulo(i32 a, i32 b) { return (i32)((u32)a + (u32)b); }

// Lane i of the result is lane index[i] of x.
FASTLOSS_LANE_FN f32 permute(f32 x, i32 index) {
#if FASTLOSS_LANES == 16
  return (f32)_mm512_permutexvar_ps((__m512i)index, (__m512)x);
#elif FASTLOSS_LANES == 8
  return (f32)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index);
#else
  f32 y;
  for (int lane = 0; lane < W; ++lane) y[lane] = x[index[lane]];
  return y;
#endif
}
FASTLOSS_LANE_FN f64 permute(f64 x, i64 index) {
  f64 y;
  for (int lane = 0; lane < W; ++lane) y[lane] = x[index[lane]];
  return y;
}

FASTLOSS_LANE_FN i32 to_index(f32 x) { return __builtin_convertvector(x, i32); }
FASTLOSS_LANE_FN i64 to_index(f64 x) { return __builtin_convertvector(x, i64); }

template <class M>
FASTLOSS_LANE_FN M lane_numbers() {
  M numbers;
  for (int lane = 0; lane < W; ++lane) numbers[lane] = lane;
  return numbers;
}

// Whether any lane of a comparison holds.
FASTLOSS_LANE_FN bool any(i32 condition) {
#if FASTLOSS_LANES == 16
  return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#elif FASTLOSS_LANES == 8
  return _mm256_movemask_ps((__m256)condition) != 0;
#else
  int32_t found = 0;
  for (int lane = 0; lane < W; ++lane) found |= condition[lane];
  return found != 0;
#endif
}
template <class M>
FASTLOSS_LANE_FN bool any(M condition) {
  uint64_t words[sizeof(M) / 8], found = 0;
  __builtin_memcpy(words, &condition, sizeof(M));
  for (uint64_t word : words) found |= word;
  return found != 0;
}

template <int... I>
FASTLOSS_LANE_FN i32 narrow_halves(half_i64 low, half_i64 high, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(__builtin_convertvector(low, half_i32), __builtin_convertvector(high, half_i32), I...);
}

// Combines all lanes of x, by halves: in an order of its own and in few steps.
template <int half, class V, class Combine, int... I>
FASTLOSS_LANE_FN V combine_lanes(V x, Combine combine, std::integer_sequence<int, I...> lanes) {
  if constexpr (half == 0) {
    return x;
  } else {
    return combine_lanes<half / 2>(combine(x, __builtin_shufflevector(x, x, (I ^ half)...)), combine, lanes);
  }
}

template <class V>
FASTLOSS_LANE_FN ScalarOf<V> max_lane(V x) {
  auto larger = [](V a, V b) FASTLOSS_LAMBDA { return max(a, b); };
  return combine_lanes<W / 2>(x, larger, std::make_integer_sequence<int, W>{})[0];
}

FASTLOSS_LANE_FN half_f64 to_double(half_f32 x) {
#if FASTLOSS_LANES == 16
  return (half_f64)_mm512_cvtps_pd((__m256)x);  // g++ 12 makes two of it and puts them together
#else
  return __builtin_convertvector(x, half_f64);
#endif
}

// A sum over many vectors, in double and in an order of its own: the same for the same vectors.
struct Sum {
  half_f64 low = {}, high = {};

  FASTLOSS_LANE_FN void add(f32 x) { add_halves(x, std::make_integer_sequence<int, W / 2>{}); }
  FASTLOSS_LANE_FN void add(f64 x) {
    for (int lane = 0; lane < W / 2; ++lane) {
      low[lane] += x[lane];
      high[lane] += x[lane + W / 2];
    }
  }
  FASTLOSS_LANE_FN double total() const {
    auto add = [](half_f64 a, half_f64 b) FASTLOSS_LAMBDA { return a + b; };
    return combine_lanes<W / 4>(low + high, add, std::make_integer_sequence<int, W / 2>{})[0];
  }

 private:
  template <int... I>
  FASTLOSS_LANE_FN void add_halves(f32 x, std::integer_sequence<int, I...>) {
    half_f32 first = __builtin_shufflevector(x, x, I...), second = __builtin_shufflevector(x, x, (I + W / 2)...);
    low += to_double(first);
    high += to_double(second);
  }
};

template <class V>
FASTLOSS_LANE_FN double sum_lanes(V x) {
  Sum sum;
  sum.add(x);
  return sum.total();
}

}  // namespace FASTLOSS_NAMESPACE
