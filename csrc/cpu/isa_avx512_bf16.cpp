// The CPU kernels for AVX-512 with BF16, whose one instruction rounds to bfloat16: Zen 4, Sapphire Rapids and later.
#if defined(__x86_64__)
#define FASTLOSS_ISA avx512_bf16
#define FASTLOSS_LANES 16
#define FASTLOSS_AVX512_BF16
#define FASTLOSS_TARGET "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"
#include "kernels/all.h"
#endif
