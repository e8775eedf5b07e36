// SIMD vectors of W lanes and the maths the losses need on them. Included inside a per-ISA namespace and target region,
// after FASTLOSS_LANES (W) is defined: see isa_*.cpp. No include here, so that no library code is compiled for one ISA.
//
// Vectors are the compilers' own (vector_size): +, <, ?: and [] work on them and NEON needs no second source. Errors
// are the largest seen over every float of the range (tests/test_lanes.py); double goes to <cmath> lane by lane.

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

#define FASTLOSS_LANE_FN inline __attribute__((always_inline))
#define FASTLOSS_LAMBDA __attribute__((always_inline))

FASTLOSS_LANE_FN f32 select(i32 condition, f32 a, f32 b) { return condition ? a : b; }
FASTLOSS_LANE_FN f64 select(i64 condition, f64 a, f64 b) { return condition ? a : b; }

template <class V>
FASTLOSS_LANE_FN V max(V a, V b) {
  return a > b ? a : b;  // b where a is nan: the exponential of the nan logit carries it on
}

FASTLOSS_LANE_FN i32 bits_of(f32 x) { return (i32)x; }
FASTLOSS_LANE_FN f32 float_of(i32 x) { return (f32)x; }

FASTLOSS_LANE_FN f32 negative_abs(f32 x) { return float_of(bits_of(x) | INT32_MIN); }
FASTLOSS_LANE_FN f64 negative_abs(f64 x) { return (f64)((i64)x | INT64_MIN); }

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

// 2^n as a float, for the n that the low bits of `shifted` hold after a round-to-integer by addition of kShift.
constexpr float kShift = 0x1.8p23f + 127;  // 1.5 * 2^23 puts the integer in the low bits, 127 is the exponent's bias
FASTLOSS_LANE_FN f32 two_to_the(f32 shifted) { return float_of(bits_of(shifted) << 23); }

// exp(x). x in [-87.3, 88]: 1.01 ULP. Below: 0 (the result is subnormal). nan stays nan. Not for x > 88.
FASTLOSS_LANE_FN f32 exp(f32 x) {
#if FASTLOSS_LANES == 16
  // 2^(n / 16) by a register as a table: seven multiplications instead of ten. Entry j is the bits of 2^(j / 16) less
  // j << 19, as adding n << 19 puts n / 16 into the exponent, and the low bits of n, j, into the mantissa.
  const i32 sixteenths = {0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                          0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                          0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
  constexpr float shift = 0x1.8p23f;  // puts n into the low bits
  f32 shifted = x * 0x1.715476p4f + shift;
  f32 n = shifted - shift;
  f32 r = (x - n * 0x1.62ep-5f) - n * 0x1.0bfbe8p-19f;  // ln 2 / 16 in two parts: the first product is exact
  f32 power = float_of(bits_of(permute(float_of(sixteenths), bits_of(shifted))) + (bits_of(shifted) << 19));
  f32 p = r * (r * (r * 0.16666667f + 0.50001618f) + 1);
  return select(x < -87.3f, f32{}, p * power + power);
#else
  f32 shifted = x * 0x1.715476p0f + kShift;
  f32 n = shifted - kShift;
  f32 r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts: the first product is exact
  f32 p = 0.0013814596f * r + 0.0083687175f;
  p = p * r + 0.04166839f;
  p = p * r + 0.16666521f;
  p = p * r + 0.49999994f;
  p = p * (r * r) + r + 1;
  return select(x < -87.3f, f32{}, p * two_to_the(shifted));
#endif
}

// log of the mantissa, f = m - 1 with m in [sqrt(1/2), sqrt(2)] (the scheme of fdlibm's e_log.c).
FASTLOSS_LANE_FN f32 log_mantissa(f32 f) {
  f32 s = f / (f + 2);
  f32 z = s * s;
  f32 r = 0.11791786f * z + 0.14268619f;
  r = r * z + 0.20000169f;
  r = r * z + 0.3333333f;
  f32 half_square = 0.5f * f * f;
  return f - (half_square - s * (half_square + 2 * z * r));
}

// Splits a positive normal x into 2^k * (1 + f).
FASTLOSS_LANE_FN f32 split_exponent(f32 x, f32& f) {
  i32 offset = bits_of(x) - 0x3f3504f3;  // the bits of sqrt(1/2)
  f = float_of((offset & 0x007fffff) + 0x3f3504f3) - 1;
  return __builtin_convertvector(offset >> 23, f32);
}

// log(x). x in [2^-126, inf): 1.0 ULP. inf and nan stay. Not for zero, negative or subnormal x.
FASTLOSS_LANE_FN f32 log(f32 x) {
  f32 f;
  f32 k = split_exponent(x, f);
  f32 y = k * 0x1.62e4p-1f + (k * 0x1.7f7d1cp-20f + log_mantissa(f));
  return select(x <= 0x1.fffffep127f, y, x);
}

// q^gamma. q in [0, 1], gamma in (0, 16]: 1.5 + 0.6 gamma ULP; 0 where the result is subnormal. nan stays nan.
FASTLOSS_LANE_FN f32 pow(f32 q, float gamma) {
  f32 f;
  f32 k = split_exponent(q, f);
  // gamma * log2 q = gamma * k + gamma * log2(1 + f). The first product can be large; gamma in two parts makes it
  // exact, so that what is left after the integer n is taken off keeps its bits.
  float gamma_high = float(int32_t(gamma * 4096)) / 4096;
  f32 fraction = gamma * (log_mantissa(f) * 0x1.715476p0f);
  f32 shifted = (gamma * k + fraction) + kShift;
  f32 n = shifted - kShift;
  f32 r = ((gamma_high * k - n) + (gamma - gamma_high) * k) + fraction;
  f32 p = 0.00015475912f * r + 0.0013400296f;
  p = p * r + 0.009618006f;
  p = p * r + 0.055503275f;
  p = p * r + 0.2402265f;
  p = p * r + 0.6931472f;
  p = p * r + 1;
  // Below 2^-126 / gamma the exponent leaves the range of two_to_the, and q = 0 has no logarithm.
  f32 y = select((n < -126) | (q < 0x1p-126f), f32{}, p * two_to_the(shifted));
  return select(q == q, y, q);
}

// 1 - p for p = exp(-nll), without the cancellation at p near 1. nll >= 0, nan and inf included: 2 ULP.
FASTLOSS_LANE_FN f32 one_minus_p(f32 nll, f32 p) {
  f32 y = -0.0013641373f + 0.00016024729f * nll;
  y = y * nll + 0.008325282f;
  y = y * nll - 0.04166533f;
  y = y * nll + 0.16666657f;
  y = y * nll - 0.5f;
  return select(nll < 0.5f, nll + nll * nll * y, 1 - p);
}

#define FASTLOSS_LANE_BY_LANE(name, call)                \
  FASTLOSS_LANE_FN f64 name {                            \
    f64 y;                                               \
    for (int lane = 0; lane < W; ++lane) y[lane] = call; \
    return y;                                            \
  }
FASTLOSS_LANE_BY_LANE(sqrt(f64 x), std::sqrt(x[lane]))
FASTLOSS_LANE_BY_LANE(exp(f64 x), std::exp(x[lane]))
FASTLOSS_LANE_BY_LANE(log(f64 x), std::log(x[lane]))
FASTLOSS_LANE_BY_LANE(log1p_unit(f64 e), std::log1p(e[lane]))  // float: losses.h
FASTLOSS_LANE_BY_LANE(pow(f64 x, double gamma), std::pow(x[lane], gamma))
FASTLOSS_LANE_BY_LANE(one_minus_p(f64 nll, f64 /*p*/), -std::expm1(-nll[lane]))
#undef FASTLOSS_LANE_BY_LANE

// sqrt(x). x >= 0: 0.5 ULP.
FASTLOSS_LANE_FN f32 sqrt(f32 x) {
#if FASTLOSS_LANES == 16
  return (f32)_mm512_sqrt_ps((__m512)x);
#elif FASTLOSS_LANES == 8
  return (f32)_mm256_sqrt_ps((__m256)x);
#else
  f32 y;
  for (int lane = 0; lane < W; ++lane) y[lane] = std::sqrt(x[lane]);
  return y;
#endif
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

// ---- storage: what a tensor holds (T) against what is computed (S, V)

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
  i32 rounded = (b + (0x7fff + ((b >> 16) & 1))) >> 16;                      // to nearest, ties to even
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
  f32 unit = float_of(floor_exponent + (13 << 23));
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

// ---- rows to lanes: W rows of four elements, transposed in registers
//
// Vectors are put together from, and taken apart into, blocks of four elements, each in a row of its own: inserting and
// extracting blocks costs x86 less than the shuffles that a square of W rows would take.

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
