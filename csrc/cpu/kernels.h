// What every instruction set provides (isa_*.cpp), and how dispatch.cpp cuts the work for it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../params.h"

namespace fastloss {

inline int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// Sums over the whole call that the gradient of one decision needs.
struct SoftmaxScale {
  double gradient;       // grad_scale / denominator
  double class_weights;  // sum_k w_k, for label smoothing
};

struct TargetSum {
  double weight;         // of the decisions that are not ignored; their number where there are no weights
  int64_t out_of_range;  // the first position whose target is neither a class nor ignore_index, or -1
};

#define FASTLOSS_DECLARE_ISA(isa)                                                                              \
  namespace isa {                                                                                              \
  TargetSum scan_targets(const SoftmaxParams&, int64_t begin, int64_t end);                                    \
  double softmax_block(const SoftmaxParams&, const SoftmaxScale&, int64_t begin, int64_t end);                 \
  void nll_histogram_block(const SoftmaxParams&, const void* nll, int64_t begin, int64_t end, int32_t* bin_of, \
                           int64_t* counts);                                                                   \
  double reweight_block(const SoftmaxParams&, const void* nll, const int32_t* bin_of, double gradient_scale,   \
                        int64_t begin, int64_t end);                                                           \
  double sigmoid_block(const SigmoidParams&, double gradient_scale, int64_t begin, int64_t end);               \
  void sigmoid_histogram_block(const SigmoidParams&, int64_t begin, int64_t end, int64_t* counts);             \
  }
FASTLOSS_DECLARE_ISA(baseline)
FASTLOSS_DECLARE_ISA(avx2)
FASTLOSS_DECLARE_ISA(avx512)
#undef FASTLOSS_DECLARE_ISA

// Many classes side by side: a decision's classes fill the lanes. Else the lanes hold decisions.
inline bool runs_rows(const SoftmaxParams& params) {
  return params.C > 200 && params.layout.class_stride == 1 && params.layout.grad_class_stride == 1;
}

// A gradient too large for the caches, and not in them for being the logits' own memory.
inline bool streams(const void* grad, const void* input, int64_t logits, DType dtype) {
  return grad != input && logits * size_of(dtype) >= 24 << 20;
}

// GHM-C's gradient is cross entropy's, written first and multiplied by beta while it is in cache. Larger ones come from
// a second pass over the logits, which moves less, and half-precision ones too, which would be rounded twice.
inline bool reweights(const SoftmaxParams& params) {
  return params.grad && (params.dtype == DType::float32 || params.dtype == DType::float64) &&
         params.N * params.C <= int64_t(1) << 21;
}

// Decisions in a block, the unit of work and of summation: 4096 to 65536 logits, in whole tiles of the widest vectors.
// Small enough for many threads to share, large enough that starting one costs nothing. Never a function of the
// threads: that is what makes the sums the same at any number of them.
inline int64_t softmax_block_size(const SoftmaxParams& params) {
  int64_t logits = std::clamp<int64_t>(params.N * params.C / 256, 4096, 65536);
  int64_t decisions = logits / std::max<int64_t>(params.C, 1);
  return runs_rows(params) ? std::max<int64_t>(decisions, 1) : std::max<int64_t>(decisions / 16 * 16, 16);
}
constexpr int64_t kSigmoidBlockSize = 8192;

}  // namespace fastloss
