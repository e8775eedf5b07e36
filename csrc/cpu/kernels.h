// What every instruction set provides (isa_*.cpp), and how dispatch.cpp cuts the work for it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../params.h"

namespace fastloss {

// Sums over the whole call that the gradient of one decision needs.
struct SoftmaxScale {
  double gradient;       // grad_scale / denominator
  double class_weights;  // sum_k w_k, for label smoothing
};

#define FASTLOSS_DECLARE_ISA(isa)                                                                  \
  namespace isa {                                                                                  \
  double softmax_block(const SoftmaxParams&, const SoftmaxScale&, int64_t begin, int64_t end);     \
  void softmax_histogram_block(const SoftmaxParams&, int64_t begin, int64_t end, int64_t* counts); \
  double sigmoid_block(const SigmoidParams&, double gradient_scale, int64_t begin, int64_t end);   \
  void sigmoid_histogram_block(const SigmoidParams&, int64_t begin, int64_t end, int64_t* counts); \
  }
FASTLOSS_DECLARE_ISA(baseline)
FASTLOSS_DECLARE_ISA(avx2)
FASTLOSS_DECLARE_ISA(avx512)
#undef FASTLOSS_DECLARE_ISA

// Many classes side by side: a decision's classes fill the lanes. Else the lanes hold decisions.
inline bool runs_rows(const SoftmaxParams& params) {
  return params.C > 256 && params.layout.class_stride == 1 && params.layout.grad_class_stride == 1;
}

// A gradient too large for the caches, and not in them for being the logits' own memory.
inline bool streams(const SoftmaxParams& params) {
  int64_t size = params.dtype == DType::float64 ? 8 : params.dtype == DType::float32 ? 4 : 2;
  return params.grad != params.input && params.N * params.C * size >= 24 << 20;
}

// Decisions in a block, the unit of work and of summation: about 8192 logits, in whole tiles of the widest vectors.
// Never a function of the threads: that is what makes the sums the same at any number of them.
inline int64_t softmax_block_size(const SoftmaxParams& params) {
  int64_t decisions = 8192 / std::max<int64_t>(params.C, 1);
  return runs_rows(params) ? std::max<int64_t>(decisions, 1) : std::max<int64_t>(decisions / 16 * 16, 16);
}
constexpr int64_t kSigmoidBlockSize = 8192;

}  // namespace fastloss
