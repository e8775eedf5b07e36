// The CPU kernels for AVX2, FMA and F16C.
#if defined(__x86_64__)
#define FASTLOSS_ISA avx2
#define FASTLOSS_LANES 8
#define FASTLOSS_TARGET "avx2,fma,f16c,bmi,bmi2"
#include "kernels/all.h"
#endif
