// The first header of every kernel: which instruction set it is compiled for. isa_*.cpp have chosen one; where nothing
// is chosen, as in an editor or a check of one header, it is the baseline.
//
// A file of isa_*.cpp compiles the kernels inside a target region, in a namespace of their own. Everything that is not
// of one instruction set is included here, before that region: compiled inside, it could be linked into another's.
#pragma once

#if defined(__x86_64__)
// g++'s own registers without a value, which it then warns of (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "../isa_registry.h"

#ifndef FASTLOSS_LANES
#define FASTLOSS_LANES 4  // floats in a vector
#endif
#ifndef FASTLOSS_ISA
#define FASTLOSS_ISA baseline
#endif
#define FASTLOSS_NAMESPACE fastloss::FASTLOSS_ISA

// Around all kernels of an instruction set beyond the baseline, whose FASTLOSS_TARGET the compiler is told.
#define FASTLOSS_PRAGMA_OF(text) _Pragma(#text)
#define FASTLOSS_PRAGMA(...) FASTLOSS_PRAGMA_OF(__VA_ARGS__)
#if !defined(FASTLOSS_TARGET)
#define FASTLOSS_BEGIN_KERNELS
#define FASTLOSS_END_KERNELS
#elif defined(__clang__)
#define FASTLOSS_BEGIN_KERNELS \
  FASTLOSS_PRAGMA(clang attribute push(__attribute__((target(FASTLOSS_TARGET))), apply_to = function))
#define FASTLOSS_END_KERNELS FASTLOSS_PRAGMA(clang attribute pop)
#else
#if FASTLOSS_LANES == 16
#define FASTLOSS_GCC_TARGET FASTLOSS_TARGET, "prefer-vector-width=512"  // which is no target for clang
#else
#define FASTLOSS_GCC_TARGET FASTLOSS_TARGET
#endif
#define FASTLOSS_BEGIN_KERNELS      \
  FASTLOSS_PRAGMA(GCC push_options) \
  FASTLOSS_PRAGMA(GCC target(FASTLOSS_GCC_TARGET))
#define FASTLOSS_END_KERNELS FASTLOSS_PRAGMA(GCC pop_options)
#endif

// Vectors stay in registers only where a function is inlined.
#define FASTLOSS_LANE_FN inline __attribute__((always_inline))
#define FASTLOSS_LAMBDA __attribute__((always_inline))
