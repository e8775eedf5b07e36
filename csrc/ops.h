// The ops, for any device: arguments become the plain parameters of params.h, a device's kernels do the rest.
//
// A device is a struct with softmax_loss, softmax_histogram and sigmoid_loss. They take the parameters, and the input
// for where it lies. Its file ends in STABLE_TORCH_LIBRARY_IMPL(fastloss, <key>, m) { register_losses<Device>(m); }.
//
// Only torch's stable ABI: what is built here loads with every torch from 2.10 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "params.h"

namespace fastloss {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Parameters, and the tensors that keep what they point to alive.
struct SoftmaxCall {
  SoftmaxParams params{};
  Tensor loss, target;
  OptionalTensor weight;

  // Checks every argument that the softmax losses share. Raises ValueError in a sentence.
  SoftmaxCall(Loss kind, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
              const OptionalTensor& grad, int64_t ignore_index, const std::string& reduction);
};

struct SigmoidCall {
  SigmoidParams params{};
  Tensor loss, input, target;
  OptionalTensor mask, grad;          // grad is contiguous
  OptionalTensor noncontiguous_grad;  // where it has to be copied to in the end

  SigmoidCall(Loss kind, const Tensor& input, const Tensor& target, const OptionalTensor& mask,
              const OptionalTensor& grad, const std::string& reduction);
  void finish();
};

GhmState check_ghm(const Tensor& input, int64_t bins, double momentum, const std::string& normalizer,
                   bool bias_correction, bool training, const OptionalTensor& running_histogram,
                   const OptionalTensor& num_updates);
void check_range(const char* name, double value, double low, double high);
// Merges the dimensions other than class_dim (-1: none) where memory allows it in the input and in the gradient.
Layout make_layout(const Tensor& input, const OptionalTensor& grad, int64_t class_dim);
DType floating_dtype(const char* name, const Tensor& tensor);
torch::headeronly::ScalarType compute_type(DType dtype);
// float32, float64 or int64.
Tensor empty_like_device(const Tensor& like, const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype);

template <class Device>
Tensor cross_entropy(const Tensor& input, const OptionalTensor& grad, const Tensor& target,
                     const OptionalTensor& weight, int64_t ignore_index, const std::string& reduction,
                     double label_smoothing, double grad_scale) {
  SoftmaxCall call(Loss::cross_entropy, input, target, weight, grad, ignore_index, reduction);
  check_range("label_smoothing", label_smoothing, 0, 1);
  call.params.label_smoothing = label_smoothing;
  call.params.grad_scale = grad_scale;
  Device::softmax_loss(call.params, input);
  return call.loss;
}

template <class Device>
Tensor focal_loss(const Tensor& input, const OptionalTensor& grad, const Tensor& target, const OptionalTensor& weight,
                  int64_t ignore_index, const std::string& reduction, double gamma, double grad_scale) {
  SoftmaxCall call(Loss::focal, input, target, weight, grad, ignore_index, reduction);
  check_range("gamma", gamma, 0, 16);
  call.params.gamma = gamma;
  call.params.grad_scale = grad_scale;
  Device::softmax_loss(call.params, input);
  return call.loss;
}

template <class Device>
std::tuple<Tensor, Tensor> ghmc_loss(const Tensor& input, const OptionalTensor& grad, const Tensor& target,
                                     const OptionalTensor& running_histogram, const OptionalTensor& num_updates,
                                     int64_t bins, double momentum, const std::string& normalizer, bool bias_correction,
                                     bool training, int64_t ignore_index, const std::string& reduction,
                                     double grad_scale) {
  SoftmaxCall call(Loss::ghmc, input, target, std::nullopt, grad, ignore_index, reduction);
  call.params.ghm =
      check_ghm(input, bins, momentum, normalizer, bias_correction, training, running_histogram, num_updates);
  Tensor bin_weight = empty_like_device(input, {bins}, torch::headeronly::ScalarType::Double);
  call.params.bin_weight = static_cast<double*>(bin_weight.mutable_data_ptr());
  call.params.grad_scale = grad_scale;
  Device::softmax_loss(call.params, input);
  return {call.loss, bin_weight};
}

template <class Device>
Tensor gradient_norm_histogram(const Tensor& input, const Tensor& target, int64_t bins, int64_t ignore_index) {
  SoftmaxCall call(Loss::ghmc, input, target, std::nullopt, std::nullopt, ignore_index, "sum");
  call.params.ghm = check_ghm(input, bins, 0, "nonempty", false, false, std::nullopt, std::nullopt);
  Tensor counts = empty_like_device(input, {bins}, torch::headeronly::ScalarType::Long);
  Device::softmax_histogram(call.params, input, static_cast<int64_t*>(counts.mutable_data_ptr()));
  return counts;
}

template <class Device>
Tensor sigmoid_focal_loss(const Tensor& input, const OptionalTensor& grad, const Tensor& target, double alpha,
                          double gamma, const std::string& reduction, double grad_scale) {
  SigmoidCall call(Loss::focal, input, target, std::nullopt, grad, reduction);
  check_range("alpha", alpha, -INFINITY, 1);
  check_range("gamma", gamma, 0, 16);
  call.params.alpha = alpha;
  call.params.gamma = gamma;
  call.params.grad_scale = grad_scale;
  Device::sigmoid_loss(call.params, input);
  call.finish();
  return call.loss;
}

template <class Device>
std::tuple<Tensor, Tensor> sigmoid_ghmc_loss(const Tensor& input, const OptionalTensor& grad, const Tensor& target,
                                             const OptionalTensor& mask, const OptionalTensor& running_histogram,
                                             const OptionalTensor& num_updates, int64_t bins, double momentum,
                                             const std::string& normalizer, bool bias_correction, bool training,
                                             const std::string& reduction, double grad_scale) {
  SigmoidCall call(Loss::ghmc, input, target, mask, grad, reduction);
  call.params.ghm =
      check_ghm(input, bins, momentum, normalizer, bias_correction, training, running_histogram, num_updates);
  Tensor bin_weight = empty_like_device(input, {bins}, torch::headeronly::ScalarType::Double);
  call.params.bin_weight = static_cast<double*>(bin_weight.mutable_data_ptr());
  call.params.alpha = -1;
  call.params.grad_scale = grad_scale;
  Device::sigmoid_loss(call.params, input);
  call.finish();
  return {call.loss, bin_weight};
}

template <class Device>
void register_losses(torch::stable::detail::StableLibrary& m) {
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy<Device>));
  m.impl("focal_loss", TORCH_BOX(&focal_loss<Device>));
  m.impl("ghmc_loss", TORCH_BOX(&ghmc_loss<Device>));
  m.impl("gradient_norm_histogram", TORCH_BOX(&gradient_norm_histogram<Device>));
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss<Device>));
  m.impl("sigmoid_ghmc_loss", TORCH_BOX(&sigmoid_ghmc_loss<Device>));
}

}  // namespace fastloss
