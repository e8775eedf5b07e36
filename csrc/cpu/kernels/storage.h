// What a tensor holds (T) against what is computed (S, and a vector of it V): conversions, loads and stores.
#pragma once

#include "vector.h"

namespace FASTLOSS_NAMESPACE {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
struct ComputeOf {
  using S = T;
};
template <>
struct ComputeOf<bfloat16> {
  using S = float;
};
template <>
struct ComputeOf<float16> {
  using S = float;
};
template <class T>
using Compute = typename ComputeOf<T>::S;
template <class T>
using Vec = typename VectorOf<Compute<T>>::V;

template <class V, class T>
FASTLOSS_LANE_FN V load_bits(const T* source) {
  V x;
  __builtin_memcpy(&x, source, sizeof(V));
  return x;
}

// What is stored as what is computed, and back.
FASTLOSS_LANE_FN f32 widen(f32 x, float) { return x; }
FASTLOSS_LANE_FN f64 widen(f64 x, double) { return x; }
FASTLOSS_LANE_FN f32 narrow(f32 x, float) { return x; }
FASTLOSS_LANE_FN f64 narrow(f64 x, double) { return x; }

#if FASTLOSS_LANES == 16
// A bfloat16 is the high half of a float: a permutation of 16-bit lanes puts it there or takes it out.
using u16x2 = uint16_t __attribute__((vector_size(W * 4)));
template <int... I>
FASTLOSS_LANE_FN f32 to_high_halves(u16 x, std::integer_sequence<int, I...>) {
  const u16x2 source = {(I / 2)...};
  return (f32)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, (__m512i)source, _mm512_castsi256_si512((__m256i)x));
}
template <int... I>
FASTLOSS_LANE_FN u16 high_halves(u16x2 x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, (2 * I + 1)...);
}
FASTLOSS_LANE_FN f32 widen(u16 x, bfloat16) { return to_high_halves(x, std::make_integer_sequence<int, 2 * W>{}); }
#if defined(FASTLOSS_AVX512_BF16)
// Subnormal numbers become zero.
FASTLOSS_LANE_FN u16 narrow(f32 x, bfloat16) { return (u16)_mm512_cvtneps_pbh((__m512)x); }
#else
FASTLOSS_LANE_FN u16 narrow(f32 x, bfloat16) {  // as below, with masks
  const __m512i b = (__m512i)x;
  const __mmask16 odd = _mm512_test_epi32_mask(b, _mm512_set1_epi32(0x10000));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  __m512i rounded = _mm512_add_epi32(b, _mm512_set1_epi32(0x7fff));
  rounded = _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
  rounded = _mm512_mask_or_epi32(rounded, nan, b, _mm512_set1_epi32(0x400000));
  return high_halves((u16x2)rounded, std::make_integer_sequence<int, W>{});
}
#endif
#else
FASTLOSS_LANE_FN f32 widen(u16 x, bfloat16) { return float_of(__builtin_convertvector(x, i32) << 16); }
FASTLOSS_LANE_FN u16 narrow(f32 x, bfloat16) {
  i32 b = bits_of(x);
  i32 rounded = add_modulo(b, 0x7fff + ((b >> 16) & 1)) >> 16;               // to nearest, ties to even
  return __builtin_convertvector(x == x ? rounded : (b >> 16) | 0x40, u16);  // a nan stays a nan
}
#endif

#if FASTLOSS_LANES == 16
FASTLOSS_LANE_FN f32 widen(u16 x, float16) { return (f32)_mm512_cvtph_ps((__m256i)x); }
FASTLOSS_LANE_FN u16 narrow(f32 x, float16) { return (u16)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
#elif FASTLOSS_LANES == 8
FASTLOSS_LANE_FN f32 widen(u16 x, float16) { return (f32)_mm256_cvtph_ps((__m128i)x); }
FASTLOSS_LANE_FN u16 narrow(f32 x, float16) { return (u16)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#else
FASTLOSS_LANE_FN f32 widen(u16 x, float16) {
  i32 h = __builtin_convertvector(x, i32);
  i32 magnitude = (h & 0x7fff) << 13;
  // Exponents are rebiased by a multiplication, which also makes the subnormals right; 31 means inf or nan.
  f32 y = float_of(magnitude) * 0x1p112f;
  y = (h & 0x7c00) == 0x7c00 ? float_of(magnitude | 0x7f800000) : y;
  return float_of(bits_of(y) | ((h & 0x8000) << 16));
}
FASTLOSS_LANE_FN u16 narrow(f32 x, float16) {
  i32 sign = (bits_of(x) >> 16) & 0x8000;
  i32 magnitude = bits_of(x) & 0x7fffffff;
  f32 y = float_of(magnitude);
  // Adding a power of two that is 2^13 units larger rounds to 10 mantissa bits; below 2^-14 to units of 2^-24.
  i32 exponent = magnitude & 0x7f800000;
  i32 floor_exponent = exponent > 0x38800000 ? exponent : (i32{} + 0x38800000);
  f32 unit = float_of(add_modulo(floor_exponent, i32{} + (13 << 23)));
  f32 rounded = (y + unit) - unit;
  i32 h = bits_of(rounded * 0x1p-112f) >> 13;
  h = y >= 65520.0f ? (i32{} + 0x7c00) : h;
  h = x == x ? h : (i32{} + 0x7e00);
  return __builtin_convertvector(h | sign, u16);
}
#endif

// T as a type that vectors are made of.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, T>;
template <class T>
FASTLOSS_LANE_FN auto bits_at(T* pointer) {
  return reinterpret_cast<std::conditional_t<std::is_const_v<T>, const Bits<std::remove_const_t<T>>, Bits<T>>*>(
      pointer);
}
template <class T>
using BitsVec = decltype(narrow(Vec<T>{}, T{}));

template <class T>
FASTLOSS_LANE_FN Vec<T> load(const T* source) {
  return widen(load_bits<BitsVec<T>>(source), T{});
}
template <class T>
FASTLOSS_LANE_FN void store(T* target, Vec<T> x) {
  BitsVec<T> y = narrow(x, T{});
  __builtin_memcpy(target, &y, sizeof(y));
}

// Past the caches, for a large result that nothing reads soon: it saves reading what is overwritten. target is aligned
// to the vector's storage.
template <class T>
FASTLOSS_LANE_FN void store_streaming(T* target, Vec<T> x) {
#if FASTLOSS_LANES == 16
  if constexpr (sizeof(T) == 4) return _mm512_stream_ps(target, (__m512)x);
  if constexpr (sizeof(T) == 2) return _mm256_stream_si256((__m256i*)target, (__m256i)narrow(x, T{}));
#elif FASTLOSS_LANES == 8
  if constexpr (sizeof(T) == 4) return _mm256_stream_ps(target, (__m256)x);
  if constexpr (sizeof(T) == 2) return _mm_stream_si128((__m128i*)target, (__m128i)narrow(x, T{}));
#endif
  store(target, x);
}
constexpr bool kStreams = FASTLOSS_LANES >= 8;
FASTLOSS_LANE_FN void finish_streaming() {
#if FASTLOSS_LANES >= 8
  _mm_sfence();  // streaming stores are not ordered with what tells the other threads that this one is done
#endif
}
template <class T>
FASTLOSS_LANE_FN bool is_vector_aligned(const T* target) {
  return uintptr_t(target) % (W * sizeof(T)) == 0;
}

// The first n lanes, 0 <= n <= W; the others read as zero and are not written.
template <class T>
FASTLOSS_LANE_FN Vec<T> load_first(const T* source, int n) {
#if FASTLOSS_LANES == 16
  if constexpr (sizeof(T) == 4) return (f32)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), source);
  if constexpr (sizeof(T) == 2) return widen((u16)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), source), T{});
#endif
  T buffer[W] = {};
  __builtin_memcpy(buffer, source, n * sizeof(T));
  return load(buffer);
}
template <class T>
FASTLOSS_LANE_FN void store_first(T* target, Vec<T> x, int n) {
#if FASTLOSS_LANES == 16
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(target, __mmask16((1u << n) - 1), (__m512)x);
  if constexpr (sizeof(T) == 2) {
    return _mm256_mask_storeu_epi16(target, __mmask16((1u << n) - 1), (__m256i)narrow(x, T{}));
  }
#endif
  T buffer[W];
  store(buffer, x);
  __builtin_memcpy(target, buffer, n * sizeof(T));
}

// One element, through the vector conversions: they exist once.
template <class T>
FASTLOSS_LANE_FN Compute<T> load_one(const T* source) {
  BitsVec<T> x = {};
  x[0] = *bits_at(source);
  return widen(x, T{})[0];
}

// The lanes lie anywhere: lane i at base + offset_of(i). The first n of them; the others read as zero.
template <class T, class OffsetOf>
FASTLOSS_LANE_FN Vec<T> gather(const T* base, OffsetOf offset_of, int n) {
  Bits<T> buffer[W] = {};
  for (int lane = 0; lane < n; ++lane) buffer[lane] = *bits_at(base + offset_of(lane));
  return load(reinterpret_cast<const T*>(buffer));
}
template <class T, class OffsetOf>
FASTLOSS_LANE_FN void scatter(T* base, OffsetOf offset_of, Vec<T> x, int n) {
  BitsVec<T> y = narrow(x, T{});
  for (int lane = 0; lane < n; ++lane) *bits_at(base + offset_of(lane)) = y[lane];
}

// Calls with(T{}), T what dtype is stored as. With BF16 that is bfloat16 alone: avx512 has the others.
template <class With>
inline auto with_storage([[maybe_unused]] DType dtype, const With& with) {
#if !defined(FASTLOSS_AVX512_BF16)
  if (dtype == DType::float32) return with(float{});
  if (dtype == DType::float64) return with(double{});
  if (dtype == DType::float16) return with(float16{});
#endif
  return with(bfloat16{});
}

}  // namespace FASTLOSS_NAMESPACE
