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

ScalarType compute_type(DType dtype) { return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float; }

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

}  // namespace

void check_parameter(const LossRow& row, double value) {
  if (!(value >= row.low && value <= row.high)) {  // also refuses nan
    refuse(row.parameter, " is ", value, ", but should be in [", row.low, ", ", row.high, "].");
  }
}

void check_alpha(double alpha) {
  if (!(alpha <= 1)) refuse("alpha is ", alpha, ", but should be in [0, 1], or negative for no class balance.");
}

int32_t check_bins(int64_t bins) {
  if (bins < 1 || bins > kMaxBins) refuse("bins is ", bins, ", but should be in [1, ", kMaxBins, "].");
  return int32_t(bins);
}

SoftmaxCall::SoftmaxCall(Gradient gradient, const Tensor& input_, const Tensor& target_, const OptionalTensor& weight_,
                         int64_t ignore_index, int64_t reduction) {
  begin(*this, params, input_, reduction);
  params.ignore_index = ignore_index;
  if (input.dim() == 0) refuse("input has shape (), but should be (C), (N, C) or (N, C, d1, ...).");
  const int64_t class_dim = class_dim_of(input);
  params.C = input.size(class_dim);
  if (params.C == 0) refuse("input has shape ", shape_of(input), ", but should have at least one class.");
  if (params.C > INT32_MAX) refuse("input has ", params.C, " classes, but should have at most 2147483647.");
  std::vector<int64_t> decisions;
  params.N = 1;
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (d == class_dim) continue;
    decisions.push_back(input.size(d));
    params.N *= input.size(d);
  }
  if (!same_sizes(target_.sizes(), decisions)) {
    refuse("target has shape ", shape_of(target_), ", but should be ", shape_of(decisions), ": input's shape ",
           shape_of(input), " without its class dimension.");
  }
  params.target_is_int64 = target_.scalar_type() == ScalarType::Long;
  if (!params.target_is_int64 && target_.scalar_type() != ScalarType::Int) {
    refuse("target has dtype ", toString(target_.scalar_type()),
           ", but should have int64 or int32: class indices, not probabilities.");
  }
  check_device("target", target_, input);
  target = target_.is_contiguous() ? target_ : torch::stable::contiguous(target_);
  params.target = target.const_data_ptr();
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
  if (grad) params.grad = grad->mutable_data_ptr();
  params.input = input.const_data_ptr();
  params.layout = make_layout(input, grad, class_dim);
  allocate_loss(*this, params, std::move(decisions));
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
