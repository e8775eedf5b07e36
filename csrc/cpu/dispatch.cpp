// The CPU device: picks the instruction set, checks the targets, cuts the decisions into blocks for torch's threads and
// adds what the blocks return, in order. Registers the ops for CPU tensors at its foot.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../losses.h"
#include "../ops.h"
#include "kernels.h"

namespace fastloss {

namespace {

struct Isa {
  const char* name;
  decltype(&baseline::softmax_block) softmax_block;
  decltype(&baseline::softmax_histogram_block) softmax_histogram_block;
  decltype(&baseline::sigmoid_block) sigmoid_block;
  decltype(&baseline::sigmoid_histogram_block) sigmoid_histogram_block;
};

#define FASTLOSS_ISA(name, isa) \
  {name, isa::softmax_block, isa::softmax_histogram_block, isa::sigmoid_block, isa::sigmoid_histogram_block}

// What was built and this machine can run, the best last.
const std::vector<Isa>& usable_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found = {FASTLOSS_ISA("default", baseline)};
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2) found.push_back(FASTLOSS_ISA("avx2", avx2));
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back(FASTLOSS_ISA("avx512", avx512));
    }
#endif
    return found;
  }();
  return isas;
}

// The best instruction set, or the one that FASTLOSS_CPU_CAPABILITY names. Read once.
const Isa& isa() {
  static const Isa& chosen = []() -> const Isa& {
    const char* forced = std::getenv("FASTLOSS_CPU_CAPABILITY");
    if (!forced || !*forced) return usable_isas().back();
    for (const Isa& candidate : usable_isas()) {
      if (std::string(forced) == candidate.name) return candidate;
    }
    std::ostringstream message;
    message << "FASTLOSS_CPU_CAPABILITY is '" << forced << "', but should be one of what this machine can run:";
    for (const Isa& candidate : usable_isas()) message << " " << candidate.name;
    throw std::invalid_argument(message.str() + ".");
  }();
  return chosen;
}

// Calls work(block, begin, end) for each block of [0, total) on torch's threads.
template <class Work>
void for_each_block(int64_t total, int64_t block_size, const Work& work) {
  int64_t blocks = (total + block_size - 1) / block_size;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      work(block, block * block_size, std::min((block + 1) * block_size, total));
    }
  });
}

double ordered_sum(const std::vector<double>& parts) {
  double sum = 0;
  for (double part : parts) sum += part;
  return sum;
}

struct TargetSum {
  double weight = 0;  // of the valid decisions; their number without weights
  int64_t out_of_range = -1;
};

template <class Index, class S>
TargetSum scan_targets(const SoftmaxParams& params, int64_t begin, int64_t end) {
  const Index* target = static_cast<const Index*>(params.target);
  const S* weight = static_cast<const S*>(params.weight);
  TargetSum sum;
  int64_t valid = 0, bad = 0;
  for (int64_t i = begin; i < end; ++i) {
    bool counts = int64_t(target[i]) != params.ignore_index;
    valid += counts;
    bad += counts & (uint64_t(int64_t(target[i])) >= uint64_t(params.C));
  }
  for (int64_t i = begin; bad && sum.out_of_range < 0; ++i) {
    int64_t y = target[i];
    if (y != params.ignore_index && (y < 0 || y >= params.C)) sum.out_of_range = i;
  }
  sum.weight = double(valid);
  if (weight && !bad) {
    sum.weight = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (int64_t(target[i]) != params.ignore_index) sum.weight += double(weight[target[i]]);
    }
  }
  return sum;
}

// The mean's denominator; raises IndexError (std::out_of_range) before anything is written.
double check_targets(const SoftmaxParams& params) {
  constexpr int64_t block_size = 32768;
  std::vector<TargetSum> sums((params.N + block_size - 1) / block_size);
  bool is_double = params.dtype == DType::float64;
  for_each_block(params.N, block_size, [&](int64_t block, int64_t begin, int64_t end) {
    auto scan = params.target_is_int64 ? (is_double ? scan_targets<int64_t, double> : scan_targets<int64_t, float>)
                                       : (is_double ? scan_targets<int32_t, double> : scan_targets<int32_t, float>);
    sums[block] = scan(params, begin, end);
  });
  double total = 0;
  for (const TargetSum& sum : sums) {
    if (sum.out_of_range >= 0) {
      int64_t at = sum.out_of_range;
      int64_t value = params.target_is_int64 ? static_cast<const int64_t*>(params.target)[at]
                                             : static_cast<const int32_t*>(params.target)[at];
      std::ostringstream message;
      message << "target has the value " << value << " (at flat index " << at << "), but should be in [0, " << params.C
              << "), the number of classes of input, or ignore_index (" << params.ignore_index << ").";
      throw std::out_of_range(message.str());
    }
    total += sum.weight;
  }
  return total;
}

template <class Params>
void write_loss(const Params& params, double loss) {
  if (params.reduction == Reduction::none) return;
  if (params.dtype == DType::float64) {
    *static_cast<double*>(params.loss) = loss;
  } else {
    *static_cast<float*>(params.loss) = float(loss);
  }
}

// counts[b]: decisions whose gradient norm falls into bin b. histogram_block(params, begin, end, counts) adds a block.
template <class Params, class HistogramBlock>
std::vector<int64_t> histogram(Params params, int64_t block_size, HistogramBlock histogram_block) {
  params.grad = nullptr;
  params.loss = nullptr;
  int32_t bins = params.ghm.bins;
  // Of a block of its own size: one row of counts a block would be much memory with many bins.
  block_size *= 8;
  int64_t blocks = (params.N + block_size - 1) / block_size;
  std::vector<int64_t> block_counts(blocks * bins), counts(bins);
  for_each_block(params.N, block_size, [&](int64_t block, int64_t begin, int64_t end) {
    histogram_block(params, begin, end, block_counts.data() + block * bins);
  });
  for (int64_t i = 0; i < blocks * bins; ++i) counts[i % bins] += block_counts[i];
  return counts;
}

// Writes beta [bins] and updates the running statistics; returns the number of valid decisions.
int64_t write_bin_weights(const GhmState& state, const std::vector<int64_t>& counts, double* bin_weight) {
  int64_t total = 0;
  int32_t nonempty = 0;
  for (int64_t count : counts) {
    total += count;
    nonempty += count > 0;
  }
  for (int32_t b = 0; b < state.bins; ++b) bin_weight[b] = ghm_bin_weight(state, b, counts[b], total, nonempty);
  return total;
}

}  // namespace

struct Cpu {
  static void softmax_loss(const SoftmaxParams& params, const Tensor& /*input*/) {
    double denominator = check_targets(params);
    const int64_t block_size = softmax_block_size(params);
    if (params.kind == Loss::ghmc) {
      std::vector<int64_t> counts = histogram(params, block_size, isa().softmax_histogram_block);
      write_bin_weights(params.ghm, counts, params.bin_weight);
    }
    SoftmaxScale scale{params.grad_scale / (params.reduction == Reduction::mean ? denominator : 1.0), 0};
    for (int64_t c = 0; params.label_smoothing > 0 && c < params.C; ++c) {
      scale.class_weights += !params.weight                   ? 1
                             : params.dtype == DType::float64 ? static_cast<const double*>(params.weight)[c]
                                                              : static_cast<const float*>(params.weight)[c];
    }
    std::vector<double> sums((params.N + block_size - 1) / block_size);
    for_each_block(params.N, block_size, [&](int64_t block, int64_t begin, int64_t end) {
      sums[block] = isa().softmax_block(params, scale, begin, end);
    });
    write_loss(params, ordered_sum(sums) / (params.reduction == Reduction::mean ? denominator : 1.0));
  }

  static void softmax_histogram(const SoftmaxParams& params, const Tensor& /*input*/, int64_t* counts) {
    check_targets(params);
    std::vector<int64_t> found = histogram(params, softmax_block_size(params), isa().softmax_histogram_block);
    std::copy(found.begin(), found.end(), counts);
  }

  static void sigmoid_loss(const SigmoidParams& params, const Tensor& /*input*/) {
    double denominator = double(params.N);
    if (params.kind == Loss::ghmc) {
      std::vector<int64_t> counts = histogram(params, kSigmoidBlockSize, isa().sigmoid_histogram_block);
      // As mmdetection has it: a batch without any valid decision has the mean 0, not nan.
      denominator = double(std::max<int64_t>(write_bin_weights(params.ghm, counts, params.bin_weight), 1));
    }
    if (params.reduction != Reduction::mean) denominator = 1;
    std::vector<double> sums((params.N + kSigmoidBlockSize - 1) / kSigmoidBlockSize);
    for_each_block(params.N, kSigmoidBlockSize, [&](int64_t block, int64_t begin, int64_t end) {
      sums[block] = isa().sigmoid_block(params, params.grad_scale / denominator, begin, end);
    });
    write_loss(params, ordered_sum(sums) / denominator);
  }
};

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const Isa& isa : usable_isas()) names.push_back(isa.name);
  return names;
}

std::string cpu_capability() { return isa().name; }

}  // namespace fastloss

STABLE_TORCH_LIBRARY_IMPL(fastloss, CPU, m) { fastloss::register_losses<fastloss::Cpu>(m); }
