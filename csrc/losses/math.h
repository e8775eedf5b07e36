// The mathematics that the losses are written in, under one name for every V: a float or double on the host or the
// GPU, or a SIMD vector of csrc/cpu/kernels. Hence select for ?:.
//
// The CPU compiles this folder once per instruction set, each in its own FASTLOSS_NAMESPACE; its vectors' functions
// have to be declared before the templates that call them, as a vector type has no namespace to look them up in.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FASTLOSS_HD __host__ __device__ __forceinline__
#else
#define FASTLOSS_HD inline __attribute__((always_inline))
#endif

#ifndef FASTLOSS_NAMESPACE
#define FASTLOSS_NAMESPACE fastloss
#endif

#ifdef FASTLOSS_LANES
#include "../cpu/kernels/vector_math.h"
#endif

namespace FASTLOSS_NAMESPACE {

using std::exp;
using std::log;
using std::pow;
using std::sqrt;

#ifdef __CUDACC__
// In float as many instructions as the accuracy needs: nvcc's own functions are longer, since they are right for every
// argument, and the losses are then bound by arithmetic rather than by memory. Errors are over the range given, where
// the hardware's instructions are as documented. In double the functions of CUDA, not inlined: they are long.

// a / b. float: |b| in [2^-126, 2^126], relative error 4e-7.
__device__ __forceinline__ float divide(float a, float b) {
  float y;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
__device__ __forceinline__ double divide(double a, double b) { return a / b; }

// e^x for x <= 0. float: relative error 4e-7 + |x| * 8e-8, the latter what rounding x would do; below e^-87 it is 0.
__device__ __forceinline__ float exp_nonpositive(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}
__device__ __noinline__ inline double exp_nonpositive(double x) { return exp(x); }

// In float it is below, for every V.
__device__ __noinline__ inline double log1p_unit(double e) { return log1p(e); }

// 1 - p for p = exp(-nll), without the cancellation at p near 1.
__device__ __forceinline__ float one_minus_p(float nll, float /*p*/) { return -expm1(-nll); }
__device__ __forceinline__ double one_minus_p(double nll, double /*p*/) { return -expm1(-nll); }
#endif

template <class V>
FASTLOSS_HD V divide(V a, V b) {
  return a / b;
}

template <class V>
FASTLOSS_HD V exp_nonpositive(V x) {
  return exp(x);
}

// log(1 + e) for e in [0, 1], in float: 2.4 ULP.
template <class V>
FASTLOSS_HD V log1p_unit(V e) {
  V y = 0.005384021f * e - 0.030110803f;
  y = y * e + 0.07921048f;
  y = y * e - 0.137466f;
  y = y * e + 0.19145106f;
  y = y * e - 0.24852943f;
  y = y * e + 0.33320343f;
  y = y * e - 0.49999553f;
  return (y * e + 1) * e;
}

// -|x|
FASTLOSS_HD float negative_abs(float x) { return -std::fabs(x); }
FASTLOSS_HD double negative_abs(double x) { return -std::fabs(x); }

// max(x, 0)
template <class V>
FASTLOSS_HD V positive_part(V x) {
  return x > V{} ? x : V{};
}

FASTLOSS_HD float select(bool condition, float a, float b) { return condition ? a : b; }
FASTLOSS_HD double select(bool condition, double a, double b) { return condition ? a : b; }

// -log p where q = 1 - p: each has digits that the other lacks.
FASTLOSS_HD float nll_of(float p, float q) { return q < 0.5f ? -std::log1p(-q) : -std::log(p); }
FASTLOSS_HD double nll_of(double p, double q) { return q < 0.5 ? -std::log1p(-q) : -std::log(p); }

FASTLOSS_HD int32_t to_index(float x) { return int32_t(x); }
FASTLOSS_HD int32_t to_index(double x) { return int32_t(x); }

// q^gamma for q in [0, 1], gamma >= 0. The branches are on a number that is the same for every decision of a call.
template <class V, class S>
FASTLOSS_HD V power(V q, S gamma) {
  if (gamma == 2) return q * q;
  if (gamma == 1) return q;
  if (gamma == S(0.5)) return sqrt(q);
  if (gamma == 0) return V{} + 1;
  if (gamma == 3) return q * q * q;
  return pow(q, gamma);
}

}  // namespace FASTLOSS_NAMESPACE
