// What a kernel is told: pointers, sizes, strides, settings. Plain data, no torch, the same for CPU and CUDA.
#pragma once

#include <cstdint>

namespace fastloss {

// In the ops' schemas these are integers; fastloss/autograd.py has the same numbers.
enum class Reduction : int32_t { none, mean, sum };
enum class Normalizer : int32_t { nonempty, bins };

enum class DType : int32_t { float32, float64, bfloat16, float16 };

// Where the decisions lie: their dimensions in logical order, merged where memory allows, the class dimension apart.
// Contiguous [N, C] and channels-last [N, C, H, W] have one dimension of stride C; contiguous [N, C, H, W] has two,
// N of stride C*H*W and H*W of stride 1.
constexpr int kMaxDims = 8;
struct Layout {
  int32_t ndim;  // >= 1
  int64_t size[kMaxDims];
  int64_t stride[kMaxDims];       // of the input, in elements
  int64_t grad_stride[kMaxDims];  // of the gradient, and of class probabilities
  int64_t class_stride;
  int64_t grad_class_stride;
  int64_t extent;  // elements from the input's first to one past its last
};

// GHM-C's settings and running statistics. The two pointers are null without momentum.
struct GhmState {
  double* running_histogram;  // [bins]
  int64_t* num_updates;       // [bins]
  double momentum;
  double power;  // of beta
  int32_t bins;
  Normalizer normalizer;  // n counts the non-empty bins, or all of them
  bool bias_correction;
  bool training;
};

// What language models' losses add: logits are logit_scale * x, or softcap * tanh(logit_scale * x / softcap) where that
// is not 0, and a decision's loss has z_loss * logsumexp(logits)^2 more (Chowdhery et al. 2022, "PaLM", section 5).
struct SoftmaxExtras {
  double z_loss, logit_scale, softcap;
};

// A call's loss is row `loss` of its table (losses/table.h), with one parameter. GHM-C's is cross entropy, weighted.
struct SoftmaxParams {
  const void* input;          // [N, C] logits by layout, dtype
  void* grad;                 // the same shape by layout, dtype; may be the input itself; null: no gradient wanted
  const void* target;         // [N] contiguous class indices; or class probabilities, which lie as the gradient does
  const void* weight;         // [C] in the compute type (double for float64, else float), or null
  const void* sample_weight;  // [N] contiguous, compute type, or null
  const double* denominator;  // [1] what a mean divides by; null: the sum of the decisions' weights
  void* lse;                  // [N] written, logsumexp of each decision's logits, compute type; or null
  void* loss;                 // [N] for reduction none, else [1]; compute type
  double* bin_weight;         // [bins] GHM-C's beta, written and then read
  const int64_t* counts;      // [bins] GHM-C's histogram, where it is not of this batch alone; or null
  int64_t N, C;
  Layout layout;
  int64_t ignore_index;
  double parameter;
  double label_smoothing;  // the parameter, where it is that; else 0
  float* stored_scale;     // [1] float16: written, the power of two that the gradient is stored times; else null
  GhmState ghm;
  SoftmaxExtras extras;
  int32_t loss_row;
  bool ghmc;
  bool extended;  // something of extras or lse is asked for
  bool probabilities;
  DType dtype;
  bool target_is_int64;         // indices: else int32
  bool target_is_compute_type;  // probabilities: else the input's dtype
  Reduction reduction;
};

// Whether anything lies by the layout's grad_stride.
inline bool has_second_tensor(const SoftmaxParams& params) { return params.grad || params.probabilities; }

// Numbers that neighbouring decisions share: decision i has values[i / inner % size]. Of one a class [C] inner is 1, of
// one a row [N, 1] it is C.
struct Broadcast {
  const void* values;  // [size], compute type; null: there are none
  int64_t inner, size;
};

struct SigmoidParams {
  const void* input;      // [N] logits, dtype
  void* grad;             // [N] dtype; may be the input itself; null: no gradient wanted
  const void* target;     // [N] in [0, 1]; the input's dtype, or the compute type
  const uint8_t* mask;    // [N] 1 where the decision counts, or null: all count
  void* loss;             // [N] for reduction none, else [1]; compute type
  double* bin_weight;     // [bins] GHM-C's beta, written and then read
  const int64_t* counts;  // [bins] GHM-C's histogram, where it is not of this batch alone; or null
  int64_t N;
  Broadcast class_alpha;      // alpha of each decision, instead of alpha
  Broadcast sample_weight;    // a factor of each decision's loss
  const double* denominator;  // [1] what a mean divides by; null: the sum of the weights of the decisions that count
  double alpha;               // < 0: no class balance
  double parameter;
  double gamma_negative, margin;  // of a row that is asymmetric
  float* stored_scale;            // [1] float16: written, the power of two that the gradient is stored times; else null
  GhmState ghm;
  int32_t loss_row;
  bool ghmc;
  DType dtype;
  bool target_is_compute_type;
  Reduction reduction;
};

// Whether decisions have factors of their own.
constexpr bool is_weighted(const SigmoidParams& params) {
  return params.class_alpha.values || params.sample_weight.values;
}

// Whether the kernels need the sum of the weights of the decisions that count before they start, or, for a float16
// gradient, the largest of them.
constexpr bool needs_weights(const SigmoidParams& params) {
  if (params.ghmc) return false;
  if (params.stored_scale && params.sample_weight.values) return true;
  return params.reduction == Reduction::mean && !params.denominator && (params.mask || params.sample_weight.values);
}

// GHM-C's bins without a loss: what the histogram counts, and a backward pass that is itself differentiated looks beta
// up by.
struct GradientNorms {
  int64_t* counts;  // [bins]
  int32_t* bin;     // [N] of each decision, -1 where it is ignored; or null
};

// scaled = grad * grad_output / stored_scale, but 0 wherever grad is 0: an ignored decision has no gradient, whatever
// comes from above. Nothing is written where that changes nothing.
struct ScaleParams {
  const void* grad;           // [N, C] by layout (stride, class_stride), dtype
  void* scaled;               // the same by layout (grad_stride, grad_class_stride); may be grad itself
  const void* grad_output;    // [1], or [N] contiguous if per_decision; compute type
  const float* stored_scale;  // [1], or null: 1
  int64_t N, C;
  Layout layout;
  DType dtype;
  bool per_decision;
};

}  // namespace fastloss
