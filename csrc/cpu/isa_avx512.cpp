// The CPU kernels for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#define FASTLOSS_ISA avx512
#define FASTLOSS_LANES 16
#define FASTLOSS_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"
#include "kernels/all.h"
#endif
