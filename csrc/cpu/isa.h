// The generic kernels, for the instruction set that the including file has opened a target region for. That file has
// included every library header first, so that no library code is compiled for one instruction set and then linked
// into the others, and has defined FASTLOSS_LANES (floats in a vector) and FASTLOSS_NAMESPACE.
namespace FASTLOSS_NAMESPACE {
#include "lanes.h"
}
#include "../losses.h"
namespace FASTLOSS_NAMESPACE {
// clang-format off: the order matters
#include "targets.h"
#include "ghm.h"
#include "softmax_loss.h"
#include "sigmoid_loss.h"
// clang-format on
}  // namespace FASTLOSS_NAMESPACE
