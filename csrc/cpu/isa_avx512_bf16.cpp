// The CPU kernels for AVX-512 with BF16, whose one instruction rounds to bfloat16: Zen 4, Sapphire Rapids and later.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                                     \
    __attribute__((                                                                                               \
        target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#endif
#define FASTLOSS_LANES 16
#define FASTLOSS_AVX512_BF16
#define FASTLOSS_NAMESPACE fastloss::avx512_bf16
#include "isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
