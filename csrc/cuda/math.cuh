// The mathematics of losses.h for scalars on the GPU, as csrc/cpu/lanes.h has it for vectors. Included by losses.h.
//
// In float as many instructions as the accuracy needs: nvcc's own functions are longer, since they are right for every
// argument, and the losses are then bound by arithmetic rather than by memory. Errors are over the range given, where
// the hardware's instructions are as documented. In double the functions of CUDA.
#pragma once

namespace fastloss {

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

// In float it is in losses.h.
__device__ __noinline__ inline double log1p_unit(double e) { return log1p(e); }

}  // namespace fastloss
