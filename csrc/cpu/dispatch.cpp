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
  decltype(&baseline::scan_targets) scan_targets;
  decltype(&baseline::softmax_block) softmax_block;
  decltype(&baseline::nll_histogram_block) nll_histogram_block;
  decltype(&baseline::reweight_block) reweight_block;
  decltype(&baseline::sigmoid_block) sigmoid_block;
  decltype(&baseline::sigmoid_histogram_block) sigmoid_histogram_block;
};

#define FASTLOSS_ISA(name, isa) \
  {name,                        \
   isa::scan_targets,           \
   isa::softmax_block,          \
   isa::nll_histogram_block,    \
   isa::reweight_block,         \
   isa::sigmoid_block,          \
   isa::sigmoid_histogram_block}

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

// Adds up sum_of(begin, end) in the order of the blocks.
template <class SumOf>
double sum_of_blocks(int64_t total, int64_t block_size, const SumOf& sum_of) {
  std::vector<double> sums((total + block_size - 1) / block_size);
  for_each_block(total, block_size,
                 [&](int64_t block, int64_t begin, int64_t end) { sums[block] = sum_of(begin, end); });
  double sum = 0;
  for (double part : sums) sum += part;
  return sum;
}

// The mean's denominator; raises IndexError (std::out_of_range) before anything is written.
double check_targets(const SoftmaxParams& params) {
  constexpr int64_t block_size = 32768;
  std::vector<TargetSum> sums((params.N + block_size - 1) / block_size);
  for_each_block(params.N, block_size, [&](int64_t block, int64_t begin, int64_t end) {
    sums[block] = isa().scan_targets(params, begin, end);
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

// counts [bins]; add(begin, end, counts) adds a block.
template <class Add>
std::vector<int64_t> histogram_of_blocks(int64_t total, int64_t block_size, int32_t bins, const Add& add) {
  // At most 64 blocks, each with a row of counts: with many bins those are much memory.
  block_size *= std::max<int64_t>((total + 64 * block_size - 1) / (64 * block_size), 1);
  int64_t blocks = (total + block_size - 1) / block_size;
  std::vector<int64_t> block_counts(blocks * bins), counts(bins);
  for_each_block(total, block_size, [&](int64_t block, int64_t begin, int64_t end) {
    add(begin, end, block_counts.data() + block * bins);
  });
  for (int64_t i = 0; i < blocks * bins; ++i) counts[i % bins] += block_counts[i];
  return counts;
}

// The nll of every decision; in grad, unless it is null, its gradient.
struct Nll {
  std::vector<double> values;  // [N] in the compute type

  Nll(SoftmaxParams params, void* grad) : values(params.dtype == DType::float64 ? params.N : (params.N + 1) / 2) {
    params.kind = Loss::cross_entropy;
    params.reduction = Reduction::none;
    params.loss = values.data();
    params.grad = grad;
    for_each_block(params.N, softmax_block_size(params),
                   [&](int64_t, int64_t begin, int64_t end) { isa().softmax_block(params, {1.0, 0}, begin, end); });
  }

  std::vector<int64_t> histogram(const SoftmaxParams& params) const {
    auto add = [&](int64_t begin, int64_t end, int64_t* counts) {
      isa().nll_histogram_block(params, values.data(), begin, end, counts);
    };
    return histogram_of_blocks(params.N, 8192, params.ghm.bins, add);
  }
};

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
    if (params.reduction != Reduction::mean) denominator = 1;
    SoftmaxScale scale{params.grad_scale / denominator, 0};
    if (params.kind == Loss::ghmc) {
      Nll nll(params, reweights(params) ? params.grad : nullptr);
      write_bin_weights(params.ghm, nll.histogram(params), params.bin_weight);
      if (!params.grad || reweights(params)) {
        double sum = sum_of_blocks(params.N, softmax_block_size(params), [&](int64_t begin, int64_t end) {
          return isa().reweight_block(params, nll.values.data(), scale.gradient, begin, end);
        });
        return write_loss(params, sum / denominator);
      }
    }
    for (int64_t c = 0; params.label_smoothing > 0 && c < params.C; ++c) {
      scale.class_weights += !params.weight                   ? 1
                             : params.dtype == DType::float64 ? static_cast<const double*>(params.weight)[c]
                                                              : static_cast<const float*>(params.weight)[c];
    }
    double sum = sum_of_blocks(params.N, softmax_block_size(params), [&](int64_t begin, int64_t end) {
      return isa().softmax_block(params, scale, begin, end);
    });
    write_loss(params, sum / denominator);
  }

  static void softmax_histogram(const SoftmaxParams& params, const Tensor& /*input*/, int64_t* counts) {
    check_targets(params);
    std::vector<int64_t> found = Nll(params, nullptr).histogram(params);
    std::copy(found.begin(), found.end(), counts);
  }

  static void sigmoid_loss(const SigmoidParams& params, const Tensor& /*input*/) {
    double denominator = double(params.N);
    if (params.kind == Loss::ghmc) {
      auto block = [&](int64_t begin, int64_t end, int64_t* counts) {
        isa().sigmoid_histogram_block(params, begin, end, counts);
      };
      std::vector<int64_t> counts = histogram_of_blocks(params.N, kSigmoidBlockSize, params.ghm.bins, block);
      // As mmdetection has it: a batch without any valid decision has the mean 0, not nan.
      denominator = double(std::max<int64_t>(write_bin_weights(params.ghm, counts, params.bin_weight), 1));
    }
    if (params.reduction != Reduction::mean) denominator = 1;
    double sum = sum_of_blocks(params.N, kSigmoidBlockSize, [&](int64_t begin, int64_t end) {
      return isa().sigmoid_block(params, params.grad_scale / denominator, begin, end);
    });
    write_loss(params, sum / denominator);
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
