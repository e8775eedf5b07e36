// All kernels, for the instruction set that the including file has chosen.
#pragma once

#include "isa.h"
// After everything that is not of one instruction set.
FASTLOSS_BEGIN_KERNELS
#include "scale_gradient.h"
#include "sigmoid.h"
#include "softmax.h"
#include "softmax_ghmc.h"

namespace FASTLOSS_NAMESPACE {

#if defined(FASTLOSS_AVX512_BF16)
constexpr bool kOnlyBfloat16 = true;
#else
constexpr bool kOnlyBfloat16 = false;
#endif

#define FASTLOSS_NAME_OF(isa) #isa
#define FASTLOSS_NAME(isa) FASTLOSS_NAME_OF(isa)
extern constexpr Isa isa = {FASTLOSS_NAME(FASTLOSS_ISA),
                            kStreams,
                            kOnlyBfloat16,
                            scan_targets,
                            softmax,
                            softmax_bins,
                            softmax_ghmc,
                            sigmoid,
                            sigmoid_weights,
                            sigmoid_bins,
                            scale_gradient};

}  // namespace FASTLOSS_NAMESPACE
FASTLOSS_END_KERNELS
