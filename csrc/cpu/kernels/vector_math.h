// The mathematics of csrc/losses on vectors, included by its math.h. Errors are the largest seen over every float of
// the range (tests/test_lanes.py); double goes to <cmath> lane by lane.
#pragma once

#include "vector.h"

namespace FASTLOSS_NAMESPACE {

FASTLOSS_LANE_FN f32 negative_abs(f32 x) { return float_of(bits_of(x) | INT32_MIN); }
FASTLOSS_LANE_FN f64 negative_abs(f64 x) { return (f64)((i64)x | INT64_MIN); }

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
  f32 power = float_of(add_modulo(bits_of(permute(float_of(sixteenths), bits_of(shifted))), bits_of(shifted) << 19));
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
  i32 offset = add_modulo(bits_of(x), i32{} - 0x3f3504f3);  // the bits of sqrt(1/2)
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

// -log p. p in [2^-126, 1], q = 1 - p: 2.5 ULP. nan stays nan.
FASTLOSS_LANE_FN f32 nll_of(f32 p, f32 q) {
  f32 f;
  f32 k = split_exponent(p, f);
  f = select(k == 0, -q, f);  // p near 1 has lost digits of it
  f32 y = k * 0x1.62e4p-1f + (k * 0x1.7f7d1cp-20f + log_mantissa(f));
  return select(p == p, -y, p);
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
FASTLOSS_LANE_BY_LANE(nll_of(f64 p, f64 q), q[lane] < 0.5 ? -std::log1p(-q[lane]) : -std::log(p[lane]))
FASTLOSS_LANE_BY_LANE(log1p_unit(f64 e), std::log1p(e[lane]))  // float: csrc/losses/math.h
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
  f32 y{};
  for (int lane = 0; lane < W; ++lane) y[lane] = std::sqrt(x[lane]);
  return y;
#endif
}

}  // namespace FASTLOSS_NAMESPACE
