// The checks of the ops' arguments, before anything is written.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <sstream>

#include "layout.h"
#include "ops.h"
#include "refuse.h"

namespace fastloss {

namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;

std::string shape_of(IntHeaderOnlyArrayRef sizes) {
  std::ostringstream text;
  text << "(";
  for (size_t d = 0; d < sizes.size(); ++d) text << (d ? ", " : "") << sizes[d];
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

std::string shape_of(const Tensor& tensor) { return shape_of(tensor.sizes()); }

bool same_sizes(IntHeaderOnlyArrayRef a, IntHeaderOnlyArrayRef b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

void check_device(const char* name, const Tensor& tensor, const Tensor& input) {
  if (tensor.device().type() != input.device().type() || tensor.get_device_index() != input.get_device_index()) {
    refuse(name, " is on another device than input, but should be on the same.");
  }
}

DType floating_dtype(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      refuse(name, " has dtype ", toString(tensor.scalar_type()),
             ", but should have float32, float64, bfloat16 or float16.");
  }
}

bool is_floating(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return true;
    default:
      return false;
  }
}

ScalarType compute_type(DType dtype) { return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float; }

// The shape of a softmax loss's decisions.
std::vector<int64_t> decisions_of(const Tensor& input) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (d != class_dim_of(input)) sizes.push_back(input.size(d));
  }
  return sizes;
}

// Python refuses bad names; the ops themselves may be called with anything.
int64_t check_enumerator(const char* name, int64_t value, int64_t count) {
  if (value < 0 || value >= count) refuse(name, " is ", value, ", but should be in [0, ", count - 1, "].");
  return value;
}

// What both families begin with: dtype, reduction, and where the loss is written. decisions: the loss's shape for none.
template <class Params>
void begin(Call& call, Params& params, const Tensor& input, int64_t reduction) {
  call.input = input;
  params.dtype = floating_dtype("input", input);
  params.reduction = Reduction(check_enumerator("reduction", reduction, 3));
}

template <class Params>
void allocate_loss(Call& call, Params& params, std::vector<int64_t> decisions) {
  if (params.reduction != Reduction::none) decisions.clear();
  call.loss = empty_on_device_of(call.input, decisions, compute_type(params.dtype));
  params.loss = call.loss.mutable_data_ptr();
}

template <class Params>
void allocate_gradient(Call& call, Params& params, Gradient gradient) {
  if (gradient == Gradient::none) return;
  if (gradient == Gradient::over_input) check_no_overlap(call.input);
  call.grad = gradient == Gradient::over_input ? call.input : empty_gradient(call.input);
  const bool scaled = params.dtype == DType::float16 && params.reduction == Reduction::mean;
  call.stored_scale = empty_on_device_of(call.input, {scaled ? 1 : 0}, ScalarType::Float);
  if (scaled) params.stored_scale = static_cast<float*>(call.stored_scale->mutable_data_ptr());
}

// [1], or null.
const double* check_denominator(const Call& call, Reduction reduction, const OptionalTensor& denominator) {
  if (!denominator) return nullptr;
  if (reduction != Reduction::mean) {
    refuse("denominator is given, but should be None: it is what reduction='mean' divides by.");
  }
  if (denominator->numel() != 1 || denominator->scalar_type() != ScalarType::Double) {
    refuse("denominator has shape ", shape_of(*denominator), " and dtype ", toString(denominator->scalar_type()),
           ", but should be one float64.");
  }
  check_device("denominator", *denominator, call.input);
  return static_cast<const double*>(denominator->const_data_ptr());
}

}  // namespace

void check_parameter(const LossRow& row, double value) {
  if (!(value >= row.low && value <= row.high)) {  // also refuses nan
    refuse(row.parameter, " is ", value, ", but should be in [", row.low, ", ", row.high, "].");
  }
}

void check_shift(double gamma_negative, double margin) {
  if (!(gamma_negative >= 0 && gamma_negative <= 16)) {
    refuse("gamma_negative is ", gamma_negative, ", but should be in [0, 16].");
  }
  if (!(margin >= 0 && margin <= 1)) refuse("margin is ", margin, ", but should be in [0, 1].");
}

int32_t check_bins(int64_t bins) {
  if (bins < 1 || bins > kMaxBins) refuse("bins is ", bins, ", but should be in [1, ", kMaxBins, "].");
  return int32_t(bins);
}

SoftmaxCall::SoftmaxCall(Gradient gradient, const Tensor& input_, const Tensor& target_, const OptionalTensor& weight_,
                         const OptionalTensor& denominator, int64_t ignore_index, int64_t reduction,
                         bool probabilities) {
  begin(*this, params, input_, reduction);
  params.ignore_index = ignore_index;
  if (input.dim() == 0) refuse("input has shape (), but should be (C), (N, C) or (N, C, d1, ...).");
  const int64_t class_dim = class_dim_of(input);
  params.C = input.size(class_dim);
  if (params.C == 0) refuse("input has shape ", shape_of(input), ", but should have at least one class.");
  if (params.C > INT32_MAX) refuse("input has ", params.C, " classes, but should have at most 2147483647.");
  std::vector<int64_t> decisions = decisions_of(input);
  params.N = 1;
  for (int64_t size : decisions) params.N *= size;
  params.probabilities = probabilities && is_floating(target_);
  if (params.probabilities) {
    if (!same_sizes(target_.sizes(), input.sizes())) {
      refuse("target has shape ", shape_of(target_), ", but class probabilities should have input's shape ",
             shape_of(input), ".");
    }
    if (ignore_index >= 0) {
      refuse("ignore_index is ", ignore_index, ", but should be negative: class probabilities are never ignored.");
    }
  } else if (!same_sizes(target_.sizes(), decisions)) {
    refuse("target has shape ", shape_of(target_), ", but should be ", shape_of(decisions), ": input's shape ",
           shape_of(input), " without its class dimension.");
  }
  params.target_is_int64 = target_.scalar_type() == ScalarType::Long;
  if (!params.probabilities && !params.target_is_int64 && target_.scalar_type() != ScalarType::Int) {
    refuse("target has dtype ", toString(target_.scalar_type()), ", but should have int64 or int32: class indices",
           probabilities ? "; or be floating, with input's shape: class probabilities." : ", not probabilities.");
  }
  check_device("target", target_, input);
  target = params.probabilities || target_.is_contiguous() ? target_ : torch::stable::contiguous(target_);
  params.denominator = check_denominator(*this, params.reduction, denominator);
  if (weight_) {
    Tensor weight = *weight_;
    if (weight.dim() != 1 || weight.size(0) != params.C) {
      refuse("weight has shape ", shape_of(weight), ", but should be (", params.C, ",): one number a class.");
    }
    check_device("weight", weight, input);
    floating_dtype("weight", weight);
    if (weight.scalar_type() != compute_type(params.dtype)) {
      weight = torch::stable::to(weight, compute_type(params.dtype));
    }
    weight_or_mask = weight.is_contiguous() ? weight : torch::stable::contiguous(weight);
    params.weight = weight_or_mask->const_data_ptr();
  }
  allocate_gradient(*this, params, gradient);
  if (params.probabilities) lay_out_probabilities();
  if (grad) params.grad = (written_grad ? *written_grad : *grad).mutable_data_ptr();
  params.input = input.const_data_ptr();
  params.target = target.const_data_ptr();
  params.layout = make_layout(input, params.probabilities ? OptionalTensor(target) : grad, class_dim);
  params.extras.logit_scale = 1;
  allocate_loss(*this, params, std::move(decisions));
}

// Class probabilities lie as the gradient does, so that a kernel has one second layout. What lies otherwise is copied,
// or the gradient is, where it goes over logits with gaps.
void SoftmaxCall::lay_out_probabilities() {
  params.target_is_compute_type = target.scalar_type() != input.scalar_type();
  if (params.target_is_compute_type && target.scalar_type() != compute_type(params.dtype)) {
    target = torch::stable::to(target, compute_type(params.dtype));
  }
  if (!grad || same_sizes(target.strides(), grad->strides())) return;
  Tensor like = empty_gradient(input);
  if (!same_sizes(like.strides(), grad->strides())) written_grad = like;
  if (same_sizes(target.strides(), like.strides())) return;
  Tensor laid_out = empty_strided_as(like, target.scalar_type());
  target = torch::stable::copy_(laid_out, target);
}

void check_sample_weight(SoftmaxCall& call, const OptionalTensor& sample_weight) {
  if (!sample_weight) return;
  const std::vector<int64_t> decisions = decisions_of(call.input);
  if (!same_sizes(sample_weight->sizes(), {decisions.data(), decisions.size()})) {
    refuse("sample_weight has shape ", shape_of(*sample_weight), ", but should be ",
           shape_of({decisions.data(), decisions.size()}), ": one number a decision.");
  }
  check_device("sample_weight", *sample_weight, call.input);
  floating_dtype("sample_weight", *sample_weight);
  const ScalarType compute = compute_type(call.params.dtype);
  call.sample_weight =
      sample_weight->scalar_type() == compute ? *sample_weight : torch::stable::to(*sample_weight, compute);
  call.sample_weight = torch::stable::contiguous(*call.sample_weight);
  call.params.sample_weight = call.sample_weight->const_data_ptr();
}

void check_extras(SoftmaxCall& call, bool return_lse, double z_loss, double logit_scale,
                  std::optional<double> softcap) {
  auto check_range = [](const char* name, double value, double low, double high, const char* range) {
    if (!(value >= low && value <= high)) refuse(name, " is ", value, ", but should be ", range, ".");
  };
  check_range("z_loss", z_loss, 0, 1e4, "in [0, 10000]");
  check_range("logit_scale", logit_scale, 1e-6, 1e6, "in [1e-6, 1e6]");
  if (softcap) check_range("softcap", *softcap, 1e-6, 1e6, "in [1e-6, 1e6], or None for none");
  SoftmaxParams& params = call.params;
  params.extras = {z_loss, logit_scale, softcap.value_or(0)};
  params.extended = z_loss != 0 || logit_scale != 1 || softcap || return_lse;
  std::vector<int64_t> shape = {0};
  if (return_lse) shape = decisions_of(call.input);
  call.lse = empty_on_device_of(call.input, shape, compute_type(params.dtype));
  if (return_lse) params.lse = call.lse->mutable_data_ptr();
}

const int64_t* check_counts(const Call& call, const OptionalTensor& counts, int32_t bins) {
  if (!counts) return nullptr;
  if (counts->numel() != bins || !counts->is_contiguous() || counts->scalar_type() != ScalarType::Long) {
    refuse("counts has shape ", shape_of(*counts), " and dtype ", toString(counts->scalar_type()),
           ", but should be contiguous, of shape (", bins, ",) and dtype ", toString(ScalarType::Long), ".");
  }
  check_device("counts", *counts, call.input);
  return static_cast<const int64_t*>(counts->const_data_ptr());
}

SigmoidCall::SigmoidCall(Gradient gradient, const Tensor& input_, const Tensor& target_, const OptionalTensor& mask,
                         int64_t reduction) {
  begin(*this, params, input_, reduction);
  params.N = input.numel();
  if (!same_sizes(target_.sizes(), input.sizes())) {
    refuse("target has shape ", shape_of(target_), ", but should have input's shape ", shape_of(input), ".");
  }
  check_device("target", target_, input);
  const ScalarType labels[] = {ScalarType::Bool,  ScalarType::Byte, ScalarType::Char,
                               ScalarType::Short, ScalarType::Int,  ScalarType::Long};
  if (std::find(std::begin(labels), std::end(labels), target_.scalar_type()) == std::end(labels)) {
    floating_dtype("target", target_);
  }
  target = target_;
  params.target_is_compute_type = target.scalar_type() != input.scalar_type();
  if (params.target_is_compute_type && target.scalar_type() != compute_type(params.dtype)) {
    target = torch::stable::to(target, compute_type(params.dtype));
  }
  target = torch::stable::contiguous(target);
  params.target = target.const_data_ptr();
  if (mask) {
    if (!same_sizes(mask->sizes(), input.sizes())) {
      refuse("mask has shape ", shape_of(*mask), ", but should have input's shape ", shape_of(input), ".");
    }
    check_device("mask", *mask, input);
    if (mask->scalar_type() != ScalarType::Bool) {
      refuse("mask has dtype ", toString(mask->scalar_type()), ", but should have bool.");
    }
    weight_or_mask = torch::stable::contiguous(*mask);
    params.mask = static_cast<const uint8_t*>(weight_or_mask->const_data_ptr());
  }
  allocate_gradient(*this, params, gradient);
  if (grad) {
    if (!grad->is_contiguous()) {
      written_grad = empty_on_device_of(input, {input.sizes().begin(), input.sizes().end()}, input.scalar_type());
    }
    params.grad = (written_grad ? *written_grad : *grad).mutable_data_ptr();
  }
  std::vector<int64_t> decisions(input.sizes().begin(), input.sizes().end());
  input = torch::stable::contiguous(input);
  params.input = input.const_data_ptr();
  allocate_loss(*this, params, std::move(decisions));
}

namespace {

// A factor of each of input's elements, in the compute type; kept is what its numbers are in.
Broadcast check_broadcast(const char* name, const OptionalTensor& factors, const Call& call, DType dtype,
                          OptionalTensor& kept) {
  if (!factors) return {};
  const Tensor& input = call.input;
  auto sizes = factors->sizes();
  const int64_t lead = input.dim() - factors->dim();  // dimensions that factors lacks, the first ones
  auto size_at = [&](int64_t d) { return d < lead ? 1 : sizes[d - lead]; };
  bool fits = lead >= 0;
  for (int64_t d = 0; fits && d < input.dim(); ++d) fits = size_at(d) == 1 || size_at(d) == input.size(d);
  if (!fits) {
    refuse(name, " has shape ", shape_of(*factors), ", but should broadcast to input's shape ", shape_of(input), ".");
  }
  check_device(name, *factors, input);
  floating_dtype(name, *factors);
  kept = *factors;
  if (kept->scalar_type() != compute_type(dtype)) kept = torch::stable::to(*kept, compute_type(dtype));
  // From the first to the last dimension that it has; one that it lacks between them is written out.
  int64_t first = 0, last = input.dim() - 1;
  while (first <= last && size_at(first) == 1) ++first;
  while (last >= first && size_at(last) == 1) --last;
  std::vector<int64_t> written(input.dim(), 1);
  for (int64_t d = first; d <= last; ++d) written[d] = input.size(d);
  int64_t size = 1, inner = 1;
  for (int64_t n : written) size *= n;
  for (int64_t d = last + 1; d < input.dim(); ++d) inner *= std::max<int64_t>(input.size(d), 1);
  if (size != kept->numel()) {
    Tensor whole = empty_on_device_of(input, written, compute_type(dtype));
    kept = torch::stable::copy_(whole, *kept);
  } else {
    kept = torch::stable::contiguous(*kept);
  }
  return {kept->const_data_ptr(), inner, std::max<int64_t>(size, 1)};
}

// Values on a GPU are not looked at: that would wait for the device.
void check_alpha_values(const Tensor& alpha) {
  auto check = [&](const auto* values) {
    for (int64_t i = 0; i < alpha.numel(); ++i) {
      if (!(values[i] >= 0 && values[i] <= 1)) {
        refuse("alpha has the value ", values[i], " (at flat index ", i, "), but should be in [0, 1].");
      }
    }
  };
  if (alpha.scalar_type() == ScalarType::Double) {
    check(static_cast<const double*>(alpha.const_data_ptr()));
  } else {
    check(static_cast<const float*>(alpha.const_data_ptr()));
  }
}

}  // namespace

void SigmoidCall::check_factors(const OptionalTensor& class_alpha_, const OptionalTensor& sample_weight_,
                                const OptionalTensor& denominator_, double alpha) {
  if (!(alpha <= 1)) refuse("alpha is ", alpha, ", but should be in [0, 1], or negative for no class balance.");
  params.alpha = alpha;
  params.class_alpha = check_broadcast("alpha", class_alpha_, *this, params.dtype, class_alpha);
  if (class_alpha && class_alpha->is_cpu()) check_alpha_values(*class_alpha);
  params.sample_weight = check_broadcast("sample_weight", sample_weight_, *this, params.dtype, sample_weight);
  params.denominator = check_denominator(*this, params.reduction, denominator_);
}

void copy_written_grad(const Call& call) {
  if (!call.written_grad) return;
  Tensor grad = *call.grad;
  torch::stable::copy_(grad, *call.written_grad);
}

namespace {

// Python code reads and writes the state; a number that no training step leaves would only show as a nan much later.
// On a GPU a look at it would wait for the device.
void check_state_values(const GhmState& state) {
  for (int32_t bin = 0; bin < state.bins; ++bin) {
    const double histogram = state.running_histogram[bin];
    const int64_t updates = state.num_updates[bin];
    if (updates < 0) refuse("num_updates has the value ", updates, " at bin ", bin, ", but should not be negative.");
    if (!(histogram >= 0 && std::isfinite(histogram)) || (updates > 0 && histogram == 0)) {
      refuse("running_histogram has the value ", histogram, " at bin ", bin, " after ", updates,
             " updates, but should be finite, and positive where there were updates.");
    }
  }
}

}  // namespace

GhmState check_ghm(Call& call, const GhmArguments& arguments) {
  GhmState state{};
  state.bins = check_bins(arguments.bins);
  const double momentum = arguments.momentum;
  if (!(momentum >= 0 && momentum < 1)) refuse("momentum is ", momentum, ", but should be in [0, 1).");
  state.momentum = momentum;
  state.normalizer = Normalizer(check_enumerator("normalizer", arguments.normalizer, 2));
  state.bias_correction = arguments.bias_correction;
  state.training = arguments.training;
  state.power = arguments.power;
  if (!(state.power >= 0 && state.power <= 1)) refuse("power is ", state.power, ", but should be in [0, 1].");
  if (momentum > 0) {
    const OptionalTensor &histogram = arguments.running_histogram, &updates = arguments.num_updates;
    if (!histogram || !updates) {
      refuse("momentum is ", momentum, ", so running_histogram and num_updates should be tensors of shape (",
             state.bins, ",).");
    }
    auto check_state = [&](const char* name, const Tensor& tensor, ScalarType dtype) {
      if (tensor.dim() != 1 || tensor.size(0) != state.bins || tensor.scalar_type() != dtype ||
          !tensor.is_contiguous()) {
        refuse(name, " has shape ", shape_of(tensor), " and dtype ", toString(tensor.scalar_type()),
               ", but should be contiguous, of shape (", state.bins, ",) and dtype ", toString(dtype), ".");
      }
      check_device(name, tensor, call.input);
    };
    check_state("running_histogram", *histogram, ScalarType::Double);
    check_state("num_updates", *updates, ScalarType::Long);
    state.running_histogram = static_cast<double*>(histogram->mutable_data_ptr());
    state.num_updates = static_cast<int64_t*>(updates->mutable_data_ptr());
    if (call.input.is_cpu()) check_state_values(state);
  }
  call.bin_weight = empty_on_device_of(call.input, {state.bins}, ScalarType::Double);
  return state;
}

GradientNormsCall::GradientNormsCall(const Tensor& input, const Tensor& target, int64_t bins)
    : counts(empty_on_device_of(input, {bins}, ScalarType::Long)),
      bin(empty_on_device_of(input, {target.sizes().begin(), target.sizes().end()}, ScalarType::Int)) {
  norms = {static_cast<int64_t*>(counts.mutable_data_ptr()), static_cast<int32_t*>(bin.mutable_data_ptr())};
}

ScaleCall::ScaleCall(const Tensor& grad, const Tensor& scaled, const Tensor& grad_output_,
                     const OptionalTensor& stored_scale)
    : grad_output(grad_output_) {
  params.dtype = floating_dtype("grad", grad);
  check_device("grad_output", grad_output, grad);
  if (grad_output.scalar_type() != compute_type(params.dtype)) {
    grad_output = torch::stable::to(grad_output, compute_type(params.dtype));
  }
  grad_output = torch::stable::contiguous(grad_output);
  params.per_decision = grad_output.dim() > 0;
  const bool softmax = params.per_decision && grad_output.dim() < grad.dim();
  params.N = params.per_decision ? grad_output.numel() : grad.numel();
  params.C = softmax ? grad.size(1) : 1;
  if (params.N * params.C != grad.numel()) {
    refuse("grad_output has shape ", shape_of(grad_output),
           ", but should be a number, or have one for each decision of ", "grad, whose shape is ", shape_of(grad), ".");
  }
  if (stored_scale && stored_scale->numel() == 1) {
    params.stored_scale = static_cast<const float*>(stored_scale->const_data_ptr());
  }
  params.grad = grad.const_data_ptr();
  params.scaled = scaled.mutable_data_ptr();
  params.grad_output = grad_output.const_data_ptr();
  params.layout = make_layout(grad, scaled, softmax ? 1 : -1);
}

}  // namespace fastloss
