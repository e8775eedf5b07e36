// The generic kernels, for the instruction set that the including file has opened a target region for. That file has
// included every library header first, so that no library code is compiled for one instruction set and then linked
// into the others, and has defined FASTLOSS_LANES (floats in a vector), FASTLOSS_NAMESPACE and, where there is that
// instruction, FASTLOSS_AVX512_BF16.
namespace FASTLOSS_NAMESPACE {
#include "lanes.h"
}
#include "../losses.h"
namespace FASTLOSS_NAMESPACE {

// Calls with(T{}), T what dtype is stored as. With BF16 that is bfloat16 alone: avx512 has the others (dispatch.cpp).
template <class With>
inline auto with_storage(DType dtype, With with) {
#if !defined(FASTLOSS_AVX512_BF16)
  if (dtype == DType::float32) return with(float{});
  if (dtype == DType::float64) return with(double{});
  if (dtype == DType::float16) return with(float16{});
#endif
  return with(bfloat16{});
}

// clang-format off: the order matters
#include "targets.h"
#include "ghm.h"
#include "softmax_loss.h"
#include "sigmoid_loss.h"
// clang-format on
}  // namespace FASTLOSS_NAMESPACE
