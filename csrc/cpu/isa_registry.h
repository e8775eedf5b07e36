// What every instruction set provides (kernels/, compiled once for each), and which one a call takes.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule.h"

namespace fastloss {

struct TargetSum {
  double weight;         // of the decisions that are not ignored; their number where there are no weights
  int64_t out_of_range;  // the first position whose target is neither a class nor ignore_index, or -1
};

// Of decisions that count: the sum of their weights, and the largest size of one.
struct WeightSum {
  double sum, largest;
};

// What the gradients of all decisions of a call have in common.
struct CallScale {
  double stored;         // what a float16 gradient is stored times, else 1
  double denominator;    // of the mean, else 1
  double class_weights;  // sum_k w_k, for label smoothing
};

// What GHM-C's first pass finds of each decision [N], for the second; the numbers in the compute type.
struct GhmcDecisions {
  void* nll;
  void* max;     // the largest logit,
  void* sum;     // and sum_k exp(x_k - max): the second pass computes the gradient from them. Null: not wanted
  int32_t* bin;  // -1: ignored
};

// Each works on decisions [begin, end). Those that return a double return the sum of the losses.
struct Isa {
  const char* name;
  bool streams;        // has stores past the caches, of up to 32 bits an element
  bool only_bfloat16;  // other dtypes: the instruction set before it
  TargetSum (*scan_targets)(const SoftmaxParams&, int64_t begin, int64_t end);
  // Loss and gradient, of GHM-C the first pass, which leaves what it finds in the decisions unless they are null.
  double (*softmax)(const SoftmaxParams&, const Schedule&, const CallScale&, const GhmcDecisions*, int64_t begin,
                    int64_t end);
  // The bins of decisions whose nll is known; adds their numbers to counts [bins].
  void (*softmax_bins)(const SoftmaxParams&, const GhmcDecisions&, int64_t begin, int64_t end, int64_t* counts);
  // GHM-C's second pass.
  double (*softmax_ghmc)(const SoftmaxParams&, const Schedule&, const CallScale&, const GhmcDecisions&, int64_t begin,
                         int64_t end);
  double (*sigmoid)(const SigmoidParams&, const Schedule&, const CallScale&, int64_t begin, int64_t end);
  WeightSum (*sigmoid_weights)(const SigmoidParams&, int64_t begin, int64_t end);
  // Adds the numbers of the gradient norms to counts [bins], and writes each decision's bin unless bin is null.
  void (*sigmoid_bins)(const SigmoidParams&, int64_t begin, int64_t end, int64_t* counts, int32_t* bin);
  void (*scale_gradient)(const ScaleParams&, const Schedule&, int64_t begin, int64_t end);
};

namespace baseline {
extern const Isa isa;
}
namespace avx2 {
extern const Isa isa;
}
namespace avx512 {
extern const Isa isa;
}
namespace avx512_bf16 {
extern const Isa isa;
}

// What was built and this machine can run, the best last.
const std::vector<const Isa*>& usable_isas();

// The best instruction set, or the one that FASTLOSS_CPU_CAPABILITY names; where that is of one dtype, for the others
// the one before it.
const Isa& isa_for(DType dtype);

}  // namespace fastloss
