// The ops' schemas and the checks of their arguments.
//
// std::invalid_argument becomes Python's ValueError, std::out_of_range IndexError.
#include "ops.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace fastloss {

namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

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

bool same_device(const Tensor& a, const Tensor& b) {
  return a.device().type() == b.device().type() && a.get_device_index() == b.get_device_index();
}

void check_device(const char* name, const Tensor& tensor, const Tensor& input) {
  if (!same_device(tensor, input)) refuse(name, " is on another device than input, but should be on the same.");
}

}  // namespace

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

Layout make_layout(const Tensor& input, const OptionalTensor& grad, int64_t class_dim) {
  Layout layout{};
  layout.class_stride = class_dim < 0 ? 1 : input.stride(class_dim);
  layout.grad_class_stride = class_dim < 0 || !grad ? 1 : grad->stride(class_dim);
  layout.extent = 1;
  for (int64_t d = 0; d < input.dim(); ++d) layout.extent += (input.size(d) - 1) * input.stride(d);
  for (int64_t d = 0; d < input.dim(); ++d) {
    int64_t size = input.size(d);
    if (d == class_dim || size == 1) continue;
    int64_t stride = input.stride(d), grad_stride = grad ? grad->stride(d) : 0;
    int32_t last = layout.ndim - 1;
    if (last >= 0 && layout.stride[last] == stride * size && layout.grad_stride[last] == grad_stride * size) {
      layout.size[last] *= size;
    } else {
      if (layout.ndim == kMaxDims) {
        refuse("input has more than ", kMaxDims, " dimensions that cannot be merged; call contiguous() on it.");
      }
      last = layout.ndim++;
      layout.size[last] = size;
    }
    layout.stride[last] = stride;
    layout.grad_stride[last] = grad_stride;
  }
  if (layout.ndim == 0) layout.size[layout.ndim++] = 1;
  return layout;
}

namespace {

Reduction parse_reduction(const std::string& reduction) {
  if (reduction == "none") return Reduction::none;
  if (reduction == "mean") return Reduction::mean;
  if (reduction == "sum") return Reduction::sum;
  refuse("reduction is '", reduction, "', but should be 'none', 'mean' or 'sum'.");
}

// A gradient is written element by element: two of its elements in one place would be a race, and wrong.
void check_no_overlap(const Tensor& grad) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < grad.dim(); ++d) {
    if (grad.size(d) == 0) return;
    if (grad.size(d) > 1) dims.emplace_back(grad.stride(d), grad.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t span = 1;
  for (auto [stride, size] : dims) {
    if (stride < span) {
      refuse(
          "input has elements that share memory (an expanded tensor?), so its gradient cannot be written over it; "
          "call contiguous() on it, or set inplace_backward=False.");
    }
    span += stride * (size - 1);
  }
}

void check_grad(const Tensor& input, const Tensor& grad) {
  if (!same_sizes(grad.sizes(), input.sizes()) || grad.scalar_type() != input.scalar_type()) {
    refuse("grad has shape ", shape_of(grad), ", but should have input's shape ", shape_of(input), " and dtype.");
  }
  check_device("grad", grad, input);
  check_no_overlap(grad);
}

}  // namespace

void check_range(const char* name, double value, double low, double high) {
  if (!(value >= low && value <= high)) {  // also refuses nan
    refuse(name, " is ", value, ", but should be in [", low, ", ", high, "].");
  }
}

// By the C interface: torch::stable::new_empty goes through the dispatcher, a tenth of a small op's time.
Tensor empty_like_device(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d > 1; --d) strides[d - 2] = strides[d - 1] * std::max<int64_t>(sizes[d - 1], 1);
  const int32_t type = dtype == ScalarType::Double ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Long ? aoti_torch_dtype_int64()
                                                   : aoti_torch_dtype_float32();
  AtenTensorHandle tensor;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), type,
                                                  int32_t(like.device().type()), like.get_device_index(), &tensor));
  return Tensor(tensor);
}

SoftmaxCall::SoftmaxCall(Loss kind, const Tensor& input, const Tensor& target_, const OptionalTensor& weight_,
                         const OptionalTensor& grad, int64_t ignore_index, const std::string& reduction)
    : target(target_), weight(weight_) {
  params.kind = kind;
  params.dtype = floating_dtype("input", input);
  params.reduction = parse_reduction(reduction);
  params.ignore_index = ignore_index;
  if (input.dim() == 0) refuse("input has shape (), but should be (C), (N, C) or (N, C, d1, ...).");
  const int64_t class_dim = input.dim() == 1 ? 0 : 1;
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
  if (!same_sizes(target.sizes(), decisions)) {
    refuse("target has shape ", shape_of(target), ", but should be ", shape_of(decisions), ": input's shape ",
           shape_of(input), " without its class dimension.");
  }
  params.target_is_int64 = target.scalar_type() == ScalarType::Long;
  if (!params.target_is_int64 && target.scalar_type() != ScalarType::Int) {
    refuse("target has dtype ", toString(target.scalar_type()),
           ", but should have int64 or int32: class indices, not probabilities.");
  }
  check_device("target", target, input);
  if (!target.is_contiguous()) target = torch::stable::contiguous(target);
  params.target = target.const_data_ptr();
  if (weight) {
    if (weight->dim() != 1 || weight->size(0) != params.C) {
      refuse("weight has shape ", shape_of(*weight), ", but should be (", params.C, ",): one number a class.");
    }
    check_device("weight", *weight, input);
    floating_dtype("weight", *weight);
    if (weight->scalar_type() != compute_type(params.dtype)) {
      weight = torch::stable::to(*weight, compute_type(params.dtype));
    }
    if (!weight->is_contiguous()) weight = torch::stable::contiguous(*weight);
    params.weight = weight->const_data_ptr();
  }
  if (grad) {
    check_grad(input, *grad);
    params.grad = grad->mutable_data_ptr();
  }
  params.input = input.const_data_ptr();
  params.layout = make_layout(input, grad, class_dim);
  if (params.reduction != Reduction::none) decisions.clear();
  loss = empty_like_device(input, decisions, compute_type(params.dtype));
  params.loss = loss.mutable_data_ptr();
}

SigmoidCall::SigmoidCall(Loss kind, const Tensor& input_, const Tensor& target_, const OptionalTensor& mask_,
                         const OptionalTensor& grad_, const std::string& reduction)
    : input(input_), target(target_), mask(mask_), grad(grad_) {
  params.kind = kind;
  params.dtype = floating_dtype("input", input);
  params.reduction = parse_reduction(reduction);
  params.N = input.numel();
  if (!same_sizes(target.sizes(), input.sizes())) {
    refuse("target has shape ", shape_of(target), ", but should have input's shape ", shape_of(input), ".");
  }
  check_device("target", target, input);
  const ScalarType labels[] = {ScalarType::Bool,  ScalarType::Byte, ScalarType::Char,
                               ScalarType::Short, ScalarType::Int,  ScalarType::Long};
  if (std::find(std::begin(labels), std::end(labels), target.scalar_type()) == std::end(labels)) {
    floating_dtype("target", target);
  }
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
    mask = torch::stable::contiguous(*mask);
    params.mask = static_cast<const uint8_t*>(mask->const_data_ptr());
  }
  if (grad) {
    check_grad(input, *grad);
    if (!grad->is_contiguous()) {
      noncontiguous_grad = grad;
      grad = torch::stable::new_empty(input, input.sizes());
    }
    params.grad = grad->mutable_data_ptr();
  }
  input = torch::stable::contiguous(input);
  params.input = input.const_data_ptr();
  std::vector<int64_t> loss_sizes;
  if (params.reduction == Reduction::none) loss_sizes.assign(input.sizes().begin(), input.sizes().end());
  loss = empty_like_device(input, loss_sizes, compute_type(params.dtype));
  params.loss = loss.mutable_data_ptr();
}

void SigmoidCall::finish() {
  if (noncontiguous_grad) torch::stable::copy_(*noncontiguous_grad, *grad);
}

GhmState check_ghm(const Tensor& input, int64_t bins, double momentum, const std::string& normalizer,
                   bool bias_correction, bool training, const OptionalTensor& running_histogram,
                   const OptionalTensor& num_updates) {
  if (bins < 1 || bins > 65536) refuse("bins is ", bins, ", but should be in [1, 65536].");
  if (!(momentum >= 0 && momentum < 1)) refuse("momentum is ", momentum, ", but should be in [0, 1).");
  if (normalizer != "nonempty" && normalizer != "bins") {
    refuse("normalizer is '", normalizer, "', but should be 'nonempty' or 'bins'.");
  }
  GhmState state{};
  state.bins = int32_t(bins);
  state.momentum = momentum;
  state.nonempty = normalizer == "nonempty";
  state.bias_correction = bias_correction;
  state.training = training;
  if (momentum == 0) return state;
  if (!running_histogram || !num_updates) {
    refuse("momentum is ", momentum, ", so running_histogram and num_updates should be tensors of shape (", bins,
           ",).");
  }
  auto check_state = [&](const char* name, const Tensor& tensor, ScalarType dtype) {
    if (tensor.dim() != 1 || tensor.size(0) != bins || tensor.scalar_type() != dtype || !tensor.is_contiguous()) {
      refuse(name, " has shape ", shape_of(tensor), " and dtype ", toString(tensor.scalar_type()),
             ", but should be contiguous, of shape (", bins, ",) and dtype ", toString(dtype), ".");
    }
    check_device(name, tensor, input);
  };
  check_state("running_histogram", *running_histogram, ScalarType::Double);
  check_state("num_updates", *num_updates, ScalarType::Long);
  state.running_histogram = static_cast<double*>(running_histogram->mutable_data_ptr());
  state.num_updates = static_cast<int64_t*>(num_updates->mutable_data_ptr());
  return state;
}

}  // namespace fastloss

// grad is where the gradient of the summed or averaged loss (of each decision's loss, for reduction 'none') is written,
// times grad_scale: a new tensor, or the input itself. Without it none is computed.
STABLE_TORCH_LIBRARY(fastloss, m) {
  m.def(
      "cross_entropy(Tensor input, Tensor(a!)? grad, Tensor target, Tensor? weight, int ignore_index, str reduction, "
      "float label_smoothing, float grad_scale) -> Tensor");
  m.def(
      "focal_loss(Tensor input, Tensor(a!)? grad, Tensor target, Tensor? weight, int ignore_index, str reduction, "
      "float gamma, float grad_scale) -> Tensor");
  m.def(
      "ghmc_loss(Tensor input, Tensor(a!)? grad, Tensor target, Tensor(b!)? running_histogram, "
      "Tensor(c!)? num_updates, int bins, float momentum, str normalizer, bool bias_correction, bool training, "
      "int ignore_index, str reduction, float grad_scale) -> (Tensor loss, Tensor bin_weight)");
  m.def("gradient_norm_histogram(Tensor input, Tensor target, int bins, int ignore_index) -> Tensor");
  m.def(
      "sigmoid_focal_loss(Tensor input, Tensor(a!)? grad, Tensor target, float alpha, float gamma, str reduction, "
      "float grad_scale) -> Tensor");
  m.def(
      "sigmoid_ghmc_loss(Tensor input, Tensor(a!)? grad, Tensor target, Tensor? mask, Tensor(b!)? running_histogram, "
      "Tensor(c!)? num_updates, int bins, float momentum, str normalizer, bool bias_correction, bool training, "
      "str reduction, float grad_scale) -> (Tensor loss, Tensor bin_weight)");
  m.def("scale_gradient(Tensor(a!) grad, Tensor grad_output, float factor) -> ()");
}
