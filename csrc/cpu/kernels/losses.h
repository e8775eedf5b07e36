// The losses of csrc/losses on vectors: their math.h finds vector_math.h once isa.h has said how many lanes there are.
#pragma once

// clang-format off
#include "isa.h"
#include "../../losses/softmax.h"
#include "../../losses/table.h"
// clang-format on
