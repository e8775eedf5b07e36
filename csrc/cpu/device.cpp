// The CPU device: checks the targets, asks which path a call takes and runs it in blocks on torch's threads. Registers
// the ops for CPU tensors at its foot.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cmath>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../losses/table.h"
#include "../ops/ops.h"
#include "blocks.h"
#include "isa_registry.h"
#include "schedule.h"

namespace fastloss {

namespace {

template <class Params>
Schedule schedule_for(const Params& params) {
  return schedule_of(params, isa_for(params.dtype).streams && params.dtype != DType::float64);
}

// Calls with(isa, named) for every path there is, in the order of the codes.
template <class With>
void for_each_schedule(const With& with) {
  for (const Isa* isa : usable_isas()) {
    for (const NamedSchedule& named : kSchedules) {
      if (named.output == Output::streamed && !isa->streams) continue;
      if (named.output == Output::multiplied && isa->only_bfloat16) continue;  // never half precision
      with(*isa, named);
    }
  }
}

template <class Params>
int64_t code_of(const Params& params, bool sigmoid) {
  const Schedule schedule = schedule_for(params);
  int64_t code = 0, found = -1;
  for_each_schedule([&](const Isa& isa, const NamedSchedule& named) {
    const bool same_loss = named.sigmoid == sigmoid && named.ghmc == params.ghmc;
    const bool same_path = named.path == schedule.path && named.output == schedule.output;
    if (&isa == &isa_for(params.dtype) && same_loss && same_path) found = code;
    ++code;
  });
  return found;
}

int64_t compute_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// Of a tensor [size] in the compute type.
double value_at(const void* values, DType dtype, int64_t at) {
  return dtype == DType::float64 ? static_cast<const double*>(values)[at] : static_cast<const float*>(values)[at];
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

// The mean's denominator; raises IndexError (std::out_of_range) before anything is written.
double check_targets(const SoftmaxParams& params) {
  constexpr int64_t block_size = 32768;
  std::vector<TargetSum> sums((params.N + block_size - 1) / block_size);
  for_each_block(params.N, block_size, [&](int64_t block, int64_t begin, int64_t end) {
    sums[block] = isa_for(params.dtype).scan_targets(params, begin, end);
  });
  double total = 0;
  for (const TargetSum& sum : sums) {
    if (sum.out_of_range >= 0) {
      const int64_t at = sum.out_of_range;
      const int64_t value = params.target_is_int64 ? static_cast<const int64_t*>(params.target)[at]
                                                   : static_cast<const int32_t*>(params.target)[at];
      std::ostringstream message;
      message << "target has the value " << value << " (at flat index " << at << "), but should be in [0, " << params.C
              << "), the number of classes of input, or ignore_index (" << params.ignore_index << ").";
      throw std::out_of_range(message.str());
    }
    total += sum.weight;
  }
  return params.denominator ? *params.denominator : total;
}

// What a gradient is stored times, for the parameters to say too; largest: no decision's weight is larger.
template <class Params>
double write_stored_scale(const Params& params, double largest, double denominator) {
  if (!params.stored_scale) return 1;
  const double scale = float16_scale(steepest(params) * largest / std::fabs(denominator));
  *params.stored_scale = float(scale);
  return scale;
}

double largest_of(const double* values, int64_t size) {
  double largest = 0;
  for (int64_t i = 0; i < size; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

// Only asked for where a gradient is stored times something: that bounds it.
double largest_sample_weight(const SoftmaxParams& params) {
  if (!params.sample_weight || !params.stored_scale) return 1;
  double largest = 0;
  for (int64_t i = 0; i < params.N; ++i) {
    largest = std::max(largest, std::fabs(value_at(params.sample_weight, params.dtype, i)));
  }
  return largest;
}

// The number of classes, or the sum of their weights; and the largest weight.
struct ClassWeights {
  double sum, largest;

  explicit ClassWeights(const SoftmaxParams& params) : sum(double(params.C)), largest(1) {
    if (!params.weight) return;
    sum = largest = 0;
    for (int64_t c = 0; c < params.C; ++c) {
      const double weight = value_at(params.weight, params.dtype, c);
      sum += weight;
      largest = std::max(largest, std::fabs(weight));
    }
  }
};

template <class Params>
void write_loss(const Params& params, double loss) {
  if (params.reduction == Reduction::none) return;
  if (params.dtype == DType::float64) {
    *static_cast<double*>(params.loss) = loss;
  } else {
    *static_cast<float*>(params.loss) = float(loss);
  }
}

// GHM-C's first pass: what it finds of every decision, and the bins' counts. In grad, where the second pass only has to
// multiply it, cross entropy's gradient.
struct FirstPass {
  std::unique_ptr<char[]> values;       // [3, N] in the compute type
  std::unique_ptr<int32_t[]> own_bins;  // [N], unless the caller wants them
  GhmcDecisions found;
  SharedCounts histogram;

  FirstPass(SoftmaxParams params, const Schedule& of_call, int32_t* bins)
      : values(new char[3 * params.N * compute_size(params.dtype)]),
        own_bins(bins ? nullptr : new int32_t[params.N]),
        histogram(params.ghm.bins) {
    const Isa& isa = isa_for(params.dtype);
    const Schedule schedule = first_pass_of(of_call);
    const bool computes_anew = of_call.output == Output::stored || of_call.output == Output::streamed;
    char* max = values.get() + params.N * compute_size(params.dtype);
    char* sum = max + params.N * compute_size(params.dtype);
    found = {values.get(), computes_anew ? max : nullptr, computes_anew ? sum : nullptr, bins ? bins : own_bins.get()};
    if (schedule.output == Output::loss_only) params.grad = nullptr;
    params.reduction = Reduction::none;
    params.loss = found.nll;
    const int64_t block_size = schedule.block_size;
    for_each_range(params.N, block_size, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * block_size, end = std::min(begin + block_size, params.N);
        isa.softmax(params, schedule, {1, 1, 0}, &found, begin, end);
      }
      histogram.add([&](int64_t* counts) {
        const int64_t begin = first * block_size, end = std::min(last * block_size, params.N);
        isa.softmax_bins(params, found, begin, end, counts);
      });
    });
  }
};

void count_sigmoid_bins(const SigmoidParams& params, int64_t block_size, SharedCounts& histogram, int32_t* bin) {
  for_each_range(params.N, block_size, [&](int64_t first, int64_t last) {
    histogram.add([&](int64_t* counts) {
      const int64_t begin = first * block_size, end = std::min(last * block_size, params.N);
      isa_for(params.dtype).sigmoid_bins(params, begin, end, counts, bin);
    });
  });
}

// Of all decisions.
WeightSum weigh(const SigmoidParams& params) {
  constexpr int64_t block_size = 65536;
  std::vector<WeightSum> parts((params.N + block_size - 1) / block_size);
  for_each_block(params.N, block_size, [&](int64_t block, int64_t begin, int64_t end) {
    parts[block] = isa_for(params.dtype).sigmoid_weights(params, begin, end);
  });
  WeightSum all{};
  for (const WeightSum& part : parts) all = {all.sum + part.sum, std::max(all.largest, part.largest)};
  return all;
}

// Writes beta [bins] and updates the running statistics; returns the number of valid decisions. counts: of this batch,
// unless the caller has others.
template <class Params>
int64_t write_bin_weights(const Params& params, std::vector<int64_t>& counts) {
  const GhmState& state = params.ghm;
  if (params.counts) counts.assign(params.counts, params.counts + state.bins);
  int64_t total = 0;
  int32_t nonempty = 0;
  for (int64_t count : counts) {
    total += count;
    nonempty += count > 0;
  }
  for (int32_t b = 0; b < state.bins; ++b) {
    params.bin_weight[b] = ghm_bin_weight(state, b, counts[b], total, nonempty);
  }
  return total;
}

}  // namespace

struct Cpu {
  static void softmax_loss(const SoftmaxParams& params, const Tensor& /*input*/) {
    const Isa& isa = isa_for(params.dtype);
    const Schedule schedule = schedule_for(params);
    CallScale scale{1, check_targets(params), 0};
    if (params.reduction != Reduction::mean) scale.denominator = 1;
    if (params.grad != params.input) prefer_huge_pages(params.grad, params.N * params.C * size_of(params.dtype));
    double sum;
    if (params.ghmc) {
      FirstPass first(params, schedule, nullptr);
      write_bin_weights(params, first.histogram.counts);
      scale.stored = write_stored_scale(params, largest_of(params.bin_weight, params.ghm.bins), scale.denominator);
      sum = sum_of_blocks(params.N, schedule.block_size, [&](int64_t begin, int64_t end) {
        return isa.softmax_ghmc(params, schedule, scale, first.found, begin, end);
      });
    } else {
      const ClassWeights weights(params);
      scale.class_weights = weights.sum;
      scale.stored = write_stored_scale(params, weights.largest * largest_sample_weight(params), scale.denominator);
      sum = sum_of_blocks(params.N, schedule.block_size, [&](int64_t begin, int64_t end) {
        return isa.softmax(params, schedule, scale, nullptr, begin, end);
      });
    }
    write_loss(params, sum / scale.denominator);
  }

  static void softmax_gradient_norms(const SoftmaxParams& params, const GradientNorms& norms, const Tensor& /*input*/) {
    check_targets(params);
    const FirstPass first(params, schedule_for(params), norms.bin);
    std::copy(first.histogram.counts.begin(), first.histogram.counts.end(), norms.counts);
  }

  static void sigmoid_loss(const SigmoidParams& params, const Tensor& /*input*/) {
    const Isa& isa = isa_for(params.dtype);
    const Schedule schedule = schedule_for(params);
    CallScale scale{1, double(params.N), 0};
    if (params.grad != params.input) prefer_huge_pages(params.grad, params.N * size_of(params.dtype));
    if (params.reduction == Reduction::none) prefer_huge_pages(params.loss, params.N * compute_size(params.dtype));
    double largest = params.alpha >= 0 && !params.class_alpha.values ? std::max(params.alpha, 1 - params.alpha) : 1;
    if (params.ghmc) {
      SharedCounts histogram(params.ghm.bins);
      count_sigmoid_bins(params, schedule.block_size, histogram, nullptr);
      // As mmdetection has it: a batch without any valid decision has the mean 0, not nan.
      const int64_t valid = write_bin_weights(params, histogram.counts);
      scale.denominator = double(std::max<int64_t>(valid, 1));
      largest *= largest_of(params.bin_weight, params.ghm.bins);
    }
    if (needs_weights(params)) {
      const WeightSum weights = weigh(params);
      scale.denominator = weights.sum;
      largest *= weights.largest;
    }
    if (params.denominator) scale.denominator = *params.denominator;
    if (params.reduction != Reduction::mean) scale.denominator = 1;
    scale.stored = write_stored_scale(params, largest, scale.denominator);
    const double sum = sum_of_blocks(params.N, schedule.block_size, [&](int64_t begin, int64_t end) {
      return isa.sigmoid(params, schedule, scale, begin, end);
    });
    write_loss(params, sum / scale.denominator);
  }

  static void sigmoid_gradient_norms(const SigmoidParams& params, const GradientNorms& norms, const Tensor& /*input*/) {
    SharedCounts histogram(params.ghm.bins);
    count_sigmoid_bins(params, schedule_for(params).block_size, histogram, norms.bin);
    std::copy(histogram.counts.begin(), histogram.counts.end(), norms.counts);
  }

  static void scale_gradient(const ScaleParams& params, const Tensor& /*grad*/) {
    if (params.N * params.C == 0) return;
    ScaleParams flat = params;
    if (!params.per_decision) {
      const double stored = params.stored_scale ? *params.stored_scale : 1;
      if (params.scaled == params.grad && value_at(params.grad_output, params.dtype, 0) / stored == 1) return;
      if (is_dense(params)) flat = as_one_class(params);
    }
    const Schedule schedule = schedule_of(flat);
    for_each_block(flat.N, schedule.block_size, [&](int64_t, int64_t begin, int64_t end) {
      isa_for(flat.dtype).scale_gradient(flat, schedule, begin, end);
    });
  }

  static int64_t schedule_code(const SoftmaxParams& params) { return code_of(params, false); }
  static int64_t schedule_code(const SigmoidParams& params) { return code_of(params, true); }

 private:
  // Without a gap, and the result lies as the gradient does: all elements in the order of memory.
  static bool is_dense(const ScaleParams& params) {
    const Layout& layout = params.layout;
    return layout.extent == params.N * params.C && layout.class_stride == layout.grad_class_stride &&
           std::equal(layout.stride, layout.stride + layout.ndim, layout.grad_stride);
  }

  static ScaleParams as_one_class(ScaleParams params) {
    params.N *= params.C;
    params.C = 1;
    params.layout = {.ndim = 1,
                     .size = {params.N},
                     .stride = {1},
                     .grad_stride = {1},
                     .class_stride = 1,
                     .grad_class_stride = 1,
                     .extent = params.N};
    return params;
  }
};

std::vector<std::string> cpu_schedule_names() {
  std::vector<std::string> names;
  for_each_schedule(
      [&](const Isa& isa, const NamedSchedule& named) { names.push_back(std::string(isa.name) + " " + named.name); });
  return names;
}

}  // namespace fastloss

STABLE_TORCH_LIBRARY_IMPL(fastloss, CPU, m) { fastloss::register_losses<fastloss::Cpu>(m); }
