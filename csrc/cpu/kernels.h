// What every instruction set provides (isa_*.cpp), and how dispatch.cpp cuts the work for it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../params.h"

namespace fastloss {

inline int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

inline int64_t target_at(const SoftmaxParams& params, int64_t position) {
  return params.target_is_int64 ? static_cast<const int64_t*>(params.target)[position]
                                : static_cast<const int32_t*>(params.target)[position];
}

inline double weight_at(const SoftmaxParams& params, int64_t c) {
  return params.dtype == DType::float64 ? static_cast<const double*>(params.weight)[c]
                                        : static_cast<const float*>(params.weight)[c];
}

// Sums over the whole call that the gradient of one decision needs.
struct SoftmaxScale {
  double gradient;       // grad_scale / denominator
  double class_weights;  // sum_k w_k, for label smoothing
};

// What GHM-C's first pass finds of each decision [N], for the second; the numbers in the compute type.
struct GhmcDecisions {
  void* nll;
  void* max;     // the largest logit,
  void* sum;     // and sum_k exp(x_k - max): the second pass computes the gradient from them. Null: it is there already
  int32_t* bin;  // -1: ignored
};

struct TargetSum {
  double weight;         // of the decisions that are not ignored; their number where there are no weights
  int64_t out_of_range;  // the first position whose target is neither a class nor ignore_index, or -1
};

#define FASTLOSS_DECLARE_ISA(isa)                                                                                     \
  namespace isa {                                                                                                     \
  TargetSum scan_targets(const SoftmaxParams&, int64_t begin, int64_t end);                                           \
  double softmax_block(const SoftmaxParams&, const SoftmaxScale&, const GhmcDecisions*, int64_t begin, int64_t end);  \
  void ghmc_histogram_block(const SoftmaxParams&, const GhmcDecisions&, int64_t begin, int64_t end, int64_t* counts); \
  double ghmc_block(const SoftmaxParams&, const GhmcDecisions&, double gradient_scale, int64_t begin, int64_t end);   \
  double sigmoid_block(const SigmoidParams&, double gradient_scale, int64_t begin, int64_t end);                      \
  void sigmoid_histogram_block(const SigmoidParams&, int64_t begin, int64_t end, int64_t* counts);                    \
  }
FASTLOSS_DECLARE_ISA(baseline)
FASTLOSS_DECLARE_ISA(avx2)
FASTLOSS_DECLARE_ISA(avx512)
FASTLOSS_DECLARE_ISA(avx512_bf16)
#undef FASTLOSS_DECLARE_ISA

// Many classes side by side: a decision's classes fill the lanes. Else the lanes hold decisions.
inline bool runs_rows(const SoftmaxParams& params) {
  return params.C > 200 && params.layout.class_stride == 1 && params.layout.grad_class_stride == 1;
}

// A gradient too large for the caches, and not in them for being the logits' own memory.
inline bool streams(const void* grad, const void* input, int64_t logits, DType dtype, int64_t large = 24 << 20) {
  return grad != input && logits * size_of(dtype) >= large;
}

// Where the class dimension is strided, every line that is not streamed is read from far away first: it pays earlier.
inline bool streams(const SoftmaxParams& params) {
  return streams(params.grad, params.input, params.N * params.C, params.dtype, (runs_rows(params) ? 24 : 8) << 20);
}

// Short rows of GHM-C's gradient are cross entropy's, written first and multiplied by beta while they are in cache.
// Others are computed anew from the logits: large ones, as that moves less; in half precision, as they would be rounded
// twice; long rows and a strided class dimension, where it is as fast.
inline bool multiplies_gradient(const SoftmaxParams& params) {
  return (params.dtype == DType::float32 || params.dtype == DType::float64) && params.layout.class_stride == 1 &&
         params.layout.grad_class_stride == 1 && !runs_rows(params) && params.N * params.C <= int64_t(1) << 21;
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
