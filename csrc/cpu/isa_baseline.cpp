// The CPU kernels for what every machine of the architecture has: SSE2 on x86-64, NEON on AArch64.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "kernels.h"

#define FASTLOSS_LANES 4
#define FASTLOSS_NAMESPACE fastloss::baseline
#include "isa.h"
