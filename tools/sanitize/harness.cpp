// The CPU kernels without torch, on random calls: shapes, strides, dtypes, losses, targets, what csrc/ops would make of
// them. Every buffer has exactly the size that a call may touch: with FASTLOSS_GUARD between two pages that cannot be
// touched, against the first or the second in turn; else from malloc, for a sanitizer to watch.
//
//   harness CALLS SEED      FASTLOSS_CPU_CAPABILITY names the instruction set
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "../../csrc/cpu/device.cpp"

#if defined(FASTLOSS_GUARD)
#include <unistd.h>
#endif

namespace fastloss {

std::mt19937_64 generator;

int64_t below(int64_t n) { return int64_t(generator() % uint64_t(n)); }
template <class T, size_t n>
T one_of(const T (&values)[n]) {
  return values[below(n)];
}

struct Buffer {
  char* data;
  size_t size;

  explicit Buffer(size_t bytes) : size(bytes) {
#if defined(FASTLOSS_GUARD)
    const size_t page = sysconf(_SC_PAGESIZE), inner = (size + page - 1) / page * page;
    mapped = inner + 2 * page;
    whole = static_cast<char*>(mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(whole + page, inner, PROT_READ | PROT_WRITE);
    data = whole + page + (below(2) ? inner - size : 0);
#else
    data = static_cast<char*>(std::malloc(size));
#endif
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
#if defined(FASTLOSS_GUARD)
    munmap(whole, mapped);
#else
    std::free(data);
#endif
  }

 private:
  char* whole = nullptr;
  size_t mapped = 0;
};

// As the dtype stores it.
void put(char* at, DType dtype, double value) {
  if (dtype == DType::float64) {
    std::memcpy(at, &value, 8);
    return;
  }
  const float single = float(value);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  if (dtype == DType::float32) std::memcpy(at, &bits, 4);
  if (dtype == DType::bfloat16) std::memcpy(at, reinterpret_cast<char*>(&bits) + 2, 2);
  if (dtype == DType::float16) {
    const _Float16 half = _Float16(single);
    std::memcpy(at, &half, 2);
  }
}

// The first thousand, again and again: random numbers would take longer than the kernels.
template <class Value>
void fill(Buffer& buffer, DType dtype, const Value& value) {
  const size_t each = size_of(dtype), first = 997 * each;
  for (size_t at = 0; at + each <= std::min(first, buffer.size); at += each) put(buffer.data + at, dtype, value());
  for (size_t at = first; at + each <= buffer.size; at += each) {
    std::memcpy(buffer.data + at, buffer.data + at - first, each);
  }
}

// Random numbers, and ones where formulas break.
void fill(Buffer& buffer, DType dtype) {
  const double special[] = {0, -0.0, 1e-40, -1e-40, 3e38, -3e38, INFINITY, -INFINITY, NAN, 88.7, -104};
  fill(buffer, dtype, [&] { return below(20) ? std::normal_distribution<double>(0, 3)(generator) : one_of(special); });
}

// Of a sigmoid loss: 0 or 1; where soft, a half of them between the two.
void fill_targets(Buffer& buffer, DType dtype, bool soft) {
  const double special[] = {0, 1, -0.0, 1e-40, 0.5, 1 - 1e-7};
  fill(buffer, dtype, [&] {
    if (!soft || below(2)) return double(below(2));
    return below(4) ? std::uniform_real_distribution<double>()(generator) : one_of(special);
  });
}

DType compute(DType dtype) { return dtype == DType::float64 ? dtype : DType::float32; }

// Logits [N, C] or [N, C, inner] in one of the layouts that make_layout finds. Returns the elements from the first to
// one past the last. N: rows, of which so many are left that there are about most logits; then decisions.
int64_t lay_out(Layout& layout, int64_t& N, int64_t C, int64_t most) {
  const int64_t inner[] = {1, 1, 1, 5, 16, 33, 70};
  const int64_t positions = one_of(inner), gap = below(4) ? 0 : 1 + below(3), step = below(6) ? 1 : 3;
  const int64_t rows = N = std::min(N, std::max<int64_t>(most / (C * positions), 1));
  layout.ndim = 1;
  if (positions > 1) {  // classes far apart
    layout.class_stride = positions * step + gap;
    const int64_t apart = layout.class_stride * C;
    layout.ndim = 2;
    layout.size[0] = rows, layout.stride[0] = apart;
    layout.size[1] = positions, layout.stride[1] = step;
    N = rows * positions;
    layout.extent = rows ? (rows - 1) * apart + (C - 1) * layout.class_stride + (positions - 1) * step + 1 : 0;
  } else {
    layout.class_stride = step;
    layout.size[0] = rows, layout.stride[0] = C * step + gap;
    layout.extent = rows ? (rows - 1) * layout.stride[0] + (C - 1) * step + 1 : 0;
  }
  std::copy(layout.stride, layout.stride + kMaxDims, layout.grad_stride);
  layout.grad_class_stride = layout.class_stride;
  return layout.extent;
}

struct GhmBuffers {
  Buffer bin_weight, histogram, updates;

  explicit GhmBuffers(int32_t bins) : bin_weight(bins * 8), histogram(bins * 8), updates(bins * 8) {
    for (int32_t b = 0; b < bins; ++b) {
      const int64_t seen = below(3);
      const double count = double(seen) * 1.5;
      std::memcpy(histogram.data + b * 8, &count, 8);
      std::memcpy(updates.data + b * 8, &seen, 8);
    }
  }
};

GhmState ghm_state(int32_t bins, GhmBuffers& buffers) {
  const double momenta[] = {0, 0.9};
  GhmState state{};
  state.momentum = one_of(momenta);
  if (state.momentum > 0) {
    state.running_histogram = reinterpret_cast<double*>(buffers.histogram.data);
    state.num_updates = reinterpret_cast<int64_t*>(buffers.updates.data);
  }
  const double powers[] = {1, 1, 0.5, 0};
  state.power = one_of(powers);
  state.bins = bins;
  state.normalizer = below(2) ? Normalizer::nonempty : Normalizer::bins;
  state.bias_correction = below(2);
  state.training = below(2);
  return state;
}

int32_t some_bins(bool large) {
  const int32_t bins[] = {1, 2, 10, 31, 32, 33, 100, large ? 65536 : 1000};
  return one_of(bins);
}

// The gradient times what comes from above, as the backward pass does.
void scale(const Layout& layout, Buffer& grad, int64_t N, int64_t C, DType dtype, const float* stored_scale) {
  ScaleParams params{};
  params.per_decision = below(2);
  Buffer grad_output((params.per_decision ? N : 1) * size_of(compute(dtype)));
  fill(grad_output, compute(dtype));
  params.grad = params.scaled = grad.data;
  params.grad_output = grad_output.data;
  params.stored_scale = stored_scale;
  params.N = N, params.C = C;
  params.layout = layout;
  params.dtype = dtype;
  Cpu::scale_gradient(params, {});
}

void softmax_call(DType dtype, bool large) {
  const int64_t classes[] = {1, 2, 3, 5, 7, 8, 11, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 1000};
  const int64_t decisions[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 100};
  SoftmaxParams params{};
  params.C = one_of(classes);
  const int64_t most = large ? 1 << 20 : 1 << 14;
  params.N = large ? most : one_of(decisions);
  params.dtype = dtype;
  const size_t bytes = size_t(lay_out(params.layout, params.N, params.C, most)) * size_of(dtype);
  params.target_is_int64 = below(2);
  params.ignore_index = below(2) ? -100 : below(params.C);
  params.ghmc = below(3) == 0;
  params.loss_row = params.ghmc ? 0 : int32_t(below(SoftmaxLosses::size));
  const double parameters[] = {0, 0.1, 0.5, 0.7, 1};
  params.parameter = params.ghmc ? 0 : one_of(parameters);
  const bool mixes = !params.ghmc && SoftmaxLosses::rows[params.loss_row].mixes;
  params.label_smoothing = mixes ? params.parameter : 0;
  params.reduction = Reduction(below(3));
  params.probabilities = mixes && below(3) == 0;
  params.target_is_compute_type = below(2);
  params.extras.logit_scale = 1;
  if (!params.ghmc && below(3) == 0) {
    const double scales[] = {1, 0.5, 3}, caps[] = {0, 5, 30}, z_losses[] = {0, 0.1};
    params.extras = {one_of(z_losses), one_of(scales), one_of(caps)};
    params.extended = true;
  }

  const DType of_target = params.target_is_compute_type ? compute(dtype) : dtype;
  Buffer input(bytes), grad(bytes), soft_target(bytes / size_of(dtype) * size_of(of_target));
  Buffer target(params.N * (params.target_is_int64 ? 8 : 4));
  Buffer weight(params.C * size_of(compute(dtype))), sample_weight(params.N * size_of(compute(dtype)));
  Buffer lse(params.N * size_of(compute(dtype)));
  Buffer loss((params.reduction == Reduction::none ? params.N : 1) * size_of(compute(dtype))), stored_scale(4);
  fill(input, dtype);
  fill(weight, compute(dtype));
  fill(sample_weight, compute(dtype));
  fill_targets(soft_target, of_target, true);
  for (int64_t i = 0; i < params.N; ++i) {
    const int64_t y = below(4) ? below(params.C) : params.ignore_index;
    const int32_t narrow = int32_t(y);
    std::memcpy(target.data + i * (params.target_is_int64 ? 8 : 4), params.target_is_int64 ? (void*)&y : (void*)&narrow,
                params.target_is_int64 ? 8 : 4);
  }
  const int64_t where = below(3);  // the gradient: nowhere, over the logits, in memory of its own
  params.input = input.data;
  params.grad = where == 0 ? nullptr : where == 1 ? input.data : grad.data;
  params.target = params.probabilities ? soft_target.data : target.data;
  params.sample_weight = params.ghmc || below(2) ? nullptr : sample_weight.data;
  params.lse = params.extended && below(2) ? lse.data : nullptr;
  params.weight = params.ghmc || below(2) ? nullptr : weight.data;
  params.loss = loss.data;
  if (dtype == DType::float16 && params.reduction == Reduction::mean && params.grad) {
    params.stored_scale = reinterpret_cast<float*>(stored_scale.data);
  }
  const int32_t bins = some_bins(large);
  GhmBuffers buffers(bins);
  params.bin_weight = reinterpret_cast<double*>(buffers.bin_weight.data);
  params.ghm = ghm_state(bins, buffers);
  Cpu::softmax_loss(params, {});
  if (params.grad) {
    scale(params.layout, params.grad == grad.data ? grad : input, params.N, params.C, dtype, params.stored_scale);
  }
  if (where != 1) {
    Buffer counts(bins * 8), bin(params.N * 4);
    // As the op asks: the bins are those of cross entropy without weights, whose loss is never negative.
    params.grad = nullptr;
    params.weight = nullptr;
    params.target = target.data;
    params.sample_weight = nullptr;
    params.lse = nullptr;
    params.loss_row = 0;
    params.parameter = params.label_smoothing = 0;
    params.probabilities = params.extended = false;
    params.ghmc = true;
    Cpu::softmax_gradient_norms(params, {reinterpret_cast<int64_t*>(counts.data), reinterpret_cast<int32_t*>(bin.data)},
                                {});
  }
}

void sigmoid_call(DType dtype, bool large) {
  const int64_t sizes[] = {0, 1, 3, 7, 8, 15, 16, 17, 100, 8191, 8192, 8193};
  SigmoidParams params{};
  params.N = large ? 1 << 20 : one_of(sizes);
  params.dtype = dtype;
  params.target_is_compute_type = below(2);
  const DType target_dtype = params.target_is_compute_type ? compute(dtype) : dtype;
  params.reduction = Reduction(below(3));
  params.ghmc = below(2);
  params.alpha = below(2) ? 0.25 : -1;
  const double parameters[] = {0, 0.5, 0.7, 1, 2, 4, 5}, margins[] = {0, 0.05, 0.3, 1};
  params.parameter = one_of(parameters);
  params.loss_row = int32_t(below(SigmoidLosses::size));
  params.gamma_negative = one_of(parameters);
  params.margin = one_of(margins);
  Buffer input(params.N * size_of(dtype)), grad(params.N * size_of(dtype)), mask(params.N);
  Buffer target(params.N * size_of(target_dtype)), stored_scale(4);
  Buffer loss((params.reduction == Reduction::none ? params.N : 1) * size_of(compute(dtype)));
  fill(input, dtype);
  fill_targets(target, target_dtype, below(2));
  for (int64_t i = 0; i < params.N; ++i) mask.data[i] = char(below(2));
  const int64_t where = below(3);
  params.input = input.data;
  params.grad = where == 0 ? nullptr : where == 1 ? input.data : grad.data;
  params.target = target.data;
  params.mask = below(2) ? reinterpret_cast<uint8_t*>(mask.data) : nullptr;
  params.loss = loss.data;
  if (dtype == DType::float16 && params.reduction == Reduction::mean && params.grad) {
    params.stored_scale = reinterpret_cast<float*>(stored_scale.data);
  }
  // A number a decision, a class of seven, a row of seven, or one for all.
  const int64_t inner[] = {1, 1, 7, 1}, counts_of[] = {std::max<int64_t>(params.N, 1), 7, params.N / 7 + 1, 1};
  const int64_t kind[] = {below(4), below(4)};
  Buffer alpha(counts_of[kind[0]] * size_of(compute(dtype))), weight(counts_of[kind[1]] * size_of(compute(dtype)));
  fill(alpha, compute(dtype));
  fill(weight, compute(dtype));
  if (!params.ghmc && below(2)) params.class_alpha = {alpha.data, inner[kind[0]], counts_of[kind[0]]};
  if (!params.ghmc && below(2)) params.sample_weight = {weight.data, inner[kind[1]], counts_of[kind[1]]};
  Buffer denominator(sizeof(double));
  fill(denominator, DType::float64);
  if (params.reduction == Reduction::mean && below(2)) {
    params.denominator = reinterpret_cast<const double*>(denominator.data);
  }
  const int32_t bins = some_bins(large);
  GhmBuffers buffers(bins);
  params.bin_weight = reinterpret_cast<double*>(buffers.bin_weight.data);
  params.ghm = ghm_state(bins, buffers);
  Cpu::sigmoid_loss(params, {});
  Buffer counts(bins * 8), bin(params.N * 4);
  Cpu::sigmoid_gradient_norms(params, {reinterpret_cast<int64_t*>(counts.data), reinterpret_cast<int32_t*>(bin.data)},
                              {});
}

}  // namespace fastloss

int main(int argc, char** argv) {
  using namespace fastloss;
  const int64_t calls = argc > 1 ? std::atoll(argv[1]) : 1000;
  generator.seed(argc > 2 ? std::atoll(argv[2]) : 0);
  for (int64_t call = 0; call < calls; ++call) {
    const DType dtype = DType(below(4));
    const bool large = below(200) == 0;  // several blocks, for several threads
    if (below(3)) {
      softmax_call(dtype, large);
    } else {
      sigmoid_call(dtype, large);
    }
  }
  std::printf("%lld calls, %s\n", (long long)calls, isa_for(DType::bfloat16).name);
}
