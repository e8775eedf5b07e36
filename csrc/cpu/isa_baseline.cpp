// The CPU kernels for what every machine of the architecture has: SSE2 on x86-64, NEON on AArch64.
#define FASTLOSS_ISA baseline
#define FASTLOSS_LANES 4
#include "kernels/all.h"
