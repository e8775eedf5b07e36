// The CPU device: picks the instruction set, checks the targets, cuts the decisions into blocks for torch's threads and
// adds what the blocks return, in order. Registers the ops for CPU tensors at its foot.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
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
  decltype(&baseline::ghmc_histogram_block) ghmc_histogram_block;
  decltype(&baseline::ghmc_block) ghmc_block;
  decltype(&baseline::sigmoid_block) sigmoid_block;
  decltype(&baseline::sigmoid_histogram_block) sigmoid_histogram_block;
  bool only_bfloat16 = false;  // the others: the instruction set before it
};

#define FASTLOSS_ISA(name, isa) \
  {name,                        \
   isa::scan_targets,           \
   isa::softmax_block,          \
   isa::ghmc_histogram_block,   \
   isa::ghmc_block,             \
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
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) found.push_back(FASTLOSS_ISA("avx512", avx512));
    if (avx512 && __builtin_cpu_supports("avx512bf16")) {
      found.push_back(FASTLOSS_ISA("avx512_bf16", avx512_bf16));
      found.back().only_bfloat16 = true;
    }
#endif
    return found;
  }();
  return isas;
}

// The best instruction set, or the one that FASTLOSS_CPU_CAPABILITY names. Read once.
const Isa& chosen_isa() {
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

// The chosen kernels for a dtype.
const Isa& isa(DType dtype) {
  const Isa* chosen = &chosen_isa();
  return chosen->only_bfloat16 && dtype != DType::bfloat16 ? *(chosen - 1) : *chosen;
}

// A large new tensor is mapped page by page as it is written, which takes several times longer than computing what is
// written. In pages of 2 MiB it takes a fraction of that. This is advice: where the system does not do so, nothing
// happens.
void prefer_huge_pages(void* data, int64_t size) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  uintptr_t begin = (uintptr_t(data) + page - 1) / page * page, end = (uintptr_t(data) + size) / page * page;
  if (data && size >= 8 << 20) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Calls work(first_block, last_block) for ranges of the blocks of [0, total), a range a thread.
template <class Work>
void for_each_range(int64_t total, int64_t block_size, const Work& work) {
  const int64_t blocks = (total + block_size - 1) / block_size;
  if (blocks == 1) return work(int64_t(0), blocks);
  torch::stable::parallel_for(0, blocks, 1, work);
}

// Calls work(block, begin, end) for each block of [0, total) on torch's threads.
template <class Work>
void for_each_block(int64_t total, int64_t block_size, const Work& work) {
  for_each_range(total, block_size, [&](int64_t first, int64_t last) {
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
    sums[block] = isa(params.dtype).scan_targets(params, begin, end);
  });
  double total = 0;
  for (const TargetSum& sum : sums) {
    if (sum.out_of_range >= 0) {
      int64_t at = sum.out_of_range, value = target_at(params, at);
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

// Counts [bins] that threads add to, in any order: they are integers.
struct SharedCounts {
  std::vector<int64_t> counts;
  std::mutex mutex;

  explicit SharedCounts(int32_t bins) : counts(bins) {}

  // count(own) adds to a thread's own counts [bins].
  template <class Count>
  void add(const Count& count) {
    std::vector<int64_t> own(counts.size());
    count(own.data());
    std::lock_guard<std::mutex> lock(mutex);
    for (size_t b = 0; b < counts.size(); ++b) counts[b] += own[b];
  }
};

// GHM-C's first pass: what it finds of every decision, and the bins' counts. In grad, where the second pass only has to
// multiply it, cross entropy's gradient.
struct FirstPass {
  std::unique_ptr<double[]> values;  // [3, N] in the compute type
  std::unique_ptr<int32_t[]> bins;   // [N]
  GhmcDecisions found;
  SharedCounts histogram;

  explicit FirstPass(SoftmaxParams params)
      : values(new double[params.dtype == DType::float64 ? 3 * params.N : (3 * params.N + 1) / 2]),
        bins(new int32_t[params.N]),
        histogram(params.ghm.bins) {
    const bool computes_anew = params.grad && !multiplies_gradient(params);
    auto row = [&](int64_t i) {
      return reinterpret_cast<char*>(values.get()) + i * params.N * (params.dtype == DType::float64 ? 8 : 4);
    };
    found = {row(0), computes_anew ? row(1) : nullptr, computes_anew ? row(2) : nullptr, bins.get()};
    params.kind = Loss::cross_entropy;
    params.reduction = Reduction::none;
    params.loss = found.nll;
    if (computes_anew) params.grad = nullptr;
    const int64_t block_size = softmax_block_size(params);
    for_each_range(params.N, block_size, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        int64_t begin = block * block_size;
        isa(params.dtype).softmax_block(params, {1.0, 0}, &found, begin, std::min(begin + block_size, params.N));
      }
      histogram.add([&](int64_t* counts) {
        int64_t begin = first * block_size, end = std::min(last * block_size, params.N);
        isa(params.dtype).ghmc_histogram_block(params, found, begin, end, counts);
      });
    });
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
    if (params.grad != params.input) prefer_huge_pages(params.grad, params.N * params.C * size_of(params.dtype));
    SoftmaxScale scale{params.grad_scale / denominator, 0};
    if (params.kind == Loss::ghmc) {
      const FirstPass first(params);
      write_bin_weights(params.ghm, first.histogram.counts, params.bin_weight);
      double sum = sum_of_blocks(params.N, softmax_block_size(params), [&](int64_t begin, int64_t end) {
        return isa(params.dtype).ghmc_block(params, first.found, scale.gradient, begin, end);
      });
      return write_loss(params, sum / denominator);
    }
    for (int64_t c = 0; params.label_smoothing > 0 && c < params.C; ++c) {
      scale.class_weights += params.weight ? weight_at(params, c) : 1;
    }
    double sum = sum_of_blocks(params.N, softmax_block_size(params), [&](int64_t begin, int64_t end) {
      return isa(params.dtype).softmax_block(params, scale, nullptr, begin, end);
    });
    write_loss(params, sum / denominator);
  }

  static void softmax_histogram(const SoftmaxParams& params, const Tensor& /*input*/, int64_t* counts) {
    check_targets(params);
    const FirstPass first(params);
    std::copy(first.histogram.counts.begin(), first.histogram.counts.end(), counts);
  }

  static void sigmoid_loss(const SigmoidParams& params, const Tensor& /*input*/) {
    double denominator = double(params.N);
    if (params.grad != params.input) prefer_huge_pages(params.grad, params.N * size_of(params.dtype));
    if (params.reduction == Reduction::none)
      prefer_huge_pages(params.loss, params.N * (params.dtype == DType::float64 ? 8 : 4));
    if (params.kind == Loss::ghmc) {
      SharedCounts histogram(params.ghm.bins);
      for_each_range(params.N, kSigmoidBlockSize, [&](int64_t first, int64_t last) {
        histogram.add([&](int64_t* counts) {
          int64_t begin = first * kSigmoidBlockSize, end = std::min(last * kSigmoidBlockSize, params.N);
          isa(params.dtype).sigmoid_histogram_block(params, begin, end, counts);
        });
      });
      // As mmdetection has it: a batch without any valid decision has the mean 0, not nan.
      denominator = double(std::max<int64_t>(write_bin_weights(params.ghm, histogram.counts, params.bin_weight), 1));
    }
    if (params.reduction != Reduction::mean) denominator = 1;
    double sum = sum_of_blocks(params.N, kSigmoidBlockSize, [&](int64_t begin, int64_t end) {
      return isa(params.dtype).sigmoid_block(params, params.grad_scale / denominator, begin, end);
    });
    write_loss(params, sum / denominator);
  }
};

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const Isa& isa : usable_isas()) names.push_back(isa.name);
  return names;
}

std::string cpu_capability() { return chosen_isa().name; }

}  // namespace fastloss

STABLE_TORCH_LIBRARY_IMPL(fastloss, CPU, m) { fastloss::register_losses<fastloss::Cpu>(m); }
