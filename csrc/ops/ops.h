// The ops, for any device: arguments become the plain parameters of losses/params.h, a device's kernels do the rest.
//
// A device is a struct with the functions that are called here. They take the parameters, and the input for where it
// lies. Its file ends in STABLE_TORCH_LIBRARY_IMPL(fastloss, <key>, m) { register_losses<Device>(m); }.
//
// A loss has four ops, whose schemas are in schemas.cpp: `name` returns the loss, `name.with_grad` the gradient too,
// `name.inplace` writes the gradient over the input, and `name.schedule` says which kernels a call would take.
//
// Only torch's stable ABI: what is built here loads with every torch from 2.10 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../losses/table.h"

namespace fastloss {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Where a gradient goes.
enum class Gradient : int64_t { none, new_tensor, over_input };

// The parameters of a call, and the tensors that keep what they point to alive. A constructor checks the arguments that
// its losses share and raises ValueError (std::invalid_argument) in a sentence, before anything is written.
struct Call {
  Tensor loss, input, target;
  OptionalTensor grad;          // the gradient of input
  OptionalTensor written_grad;  // what the kernels write, if they cannot write grad: copied at the end
  OptionalTensor stored_scale;  // [1] where a float16 gradient is stored times something, else [0]
  OptionalTensor weight_or_mask;
  OptionalTensor bin_weight;  // [bins] of GHM-C
};

struct SoftmaxCall : Call {
  SoftmaxParams params{};
  SoftmaxCall(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
              int64_t ignore_index, int64_t reduction);
};

struct SigmoidCall : Call {
  SigmoidParams params{};
  SigmoidCall(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& mask,
              int64_t reduction);
};

struct ScaleCall {
  ScaleParams params{};
  Tensor grad_output;
  ScaleCall(const Tensor& grad, const Tensor& scaled, const Tensor& grad_output, const OptionalTensor& stored_scale);
};

struct GradientNormsCall {
  GradientNorms norms{};
  Tensor counts, bin;
  GradientNormsCall(const Tensor& input, const Tensor& target, int64_t bins);
};

void check_parameter(const LossRow& row, double value);
void check_alpha(double alpha);
int32_t check_bins(int64_t bins);
// Into either call, with a new bin_weight.
struct GhmArguments {
  const OptionalTensor &running_histogram, &num_updates;
  int64_t bins;
  double momentum;
  int64_t normalizer;
  bool bias_correction, training;
};
GhmState check_ghm(Call& call, const GhmArguments& arguments);
// Uninitialised, with tensor's shape, dtype and, if it has no gaps, strides.
Tensor empty_gradient(const Tensor& tensor);
// Uninitialised bytes on tensor's device, for its kernels to work in.
Tensor empty_workspace(const Tensor& tensor, int64_t bytes);

// ---- from a loss's arguments to its call

template <int32_t row>
SoftmaxCall softmax_call(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         double parameter, int64_t ignore_index, int64_t reduction) {
  check_parameter(SoftmaxLosses::rows[row], parameter);
  SoftmaxCall call(gradient, input, target, weight, ignore_index, reduction);
  call.params.loss_row = row;
  call.params.parameter = parameter;
  return call;
}

template <int32_t row>
SigmoidCall sigmoid_call(Gradient gradient, const Tensor& input, const Tensor& target, double alpha, double parameter,
                         int64_t reduction) {
  check_alpha(alpha);
  check_parameter(SigmoidLosses::rows[row], parameter);
  SigmoidCall call(gradient, input, target, std::nullopt, reduction);
  call.params.loss_row = row;
  call.params.alpha = alpha;
  call.params.parameter = parameter;
  return call;
}

inline SoftmaxCall ghmc_call(Gradient gradient, const Tensor& input, const Tensor& target,
                             const OptionalTensor& running_histogram, const OptionalTensor& num_updates, int64_t bins,
                             double momentum, int64_t normalizer, bool bias_correction, bool training,
                             int64_t ignore_index, int64_t reduction) {
  SoftmaxCall call(gradient, input, target, std::nullopt, ignore_index, reduction);
  call.params.ghmc = true;
  call.params.ghm =
      check_ghm(call, {running_histogram, num_updates, bins, momentum, normalizer, bias_correction, training});
  call.params.bin_weight = static_cast<double*>(call.bin_weight->mutable_data_ptr());
  return call;
}

inline SigmoidCall sigmoid_ghmc_call(Gradient gradient, const Tensor& input, const Tensor& target,
                                     const OptionalTensor& mask, const OptionalTensor& running_histogram,
                                     const OptionalTensor& num_updates, int64_t bins, double momentum,
                                     int64_t normalizer, bool bias_correction, bool training, int64_t reduction) {
  SigmoidCall call(gradient, input, target, mask, reduction);
  call.params.alpha = -1;
  call.params.ghmc = true;
  call.params.ghm =
      check_ghm(call, {running_histogram, num_updates, bins, momentum, normalizer, bias_correction, training});
  call.params.bin_weight = static_cast<double*>(call.bin_weight->mutable_data_ptr());
  return call;
}

// ---- from a call to its ops

template <class Device>
void run(const SoftmaxCall& call) {
  Device::softmax_loss(call.params, call.input);
}
template <class Device>
void run(const SigmoidCall& call) {
  Device::sigmoid_loss(call.params, call.input);
}
// Where the kernels could not write grad itself.
void copy_written_grad(const Call& call);

// The four ops of the loss whose calls `build` makes. GHM-C's return bin_weight too, last.
template <class Device, bool ghmc, auto build>
struct LossOps;
template <class Device, bool ghmc, class SomeCall, class... Arguments, SomeCall (*build)(Gradient, Arguments...)>
struct LossOps<Device, ghmc, build> {
  static auto value(Arguments... arguments) {
    SomeCall call = build(Gradient::none, arguments...);
    run<Device>(call);
    if constexpr (ghmc) {
      return std::make_tuple(call.loss, *call.bin_weight);
    } else {
      return call.loss;
    }
  }
  static auto with_grad(Arguments... arguments) {
    SomeCall call = run_with_grad(Gradient::new_tensor, arguments...);
    return results(call, std::make_tuple(call.loss, *call.grad, *call.stored_scale));
  }
  static auto inplace(Arguments... arguments) {
    SomeCall call = run_with_grad(Gradient::over_input, arguments...);
    return results(call, std::make_tuple(call.loss, *call.stored_scale));
  }
  static int64_t schedule(Arguments... arguments, int64_t gradient) {
    return Device::schedule_code(build(Gradient(gradient), arguments...).params);
  }

  static void add_to(torch::stable::detail::StableLibrary& m, const std::string& name) {
    m.impl(name.c_str(), TORCH_BOX(&value));
    m.impl((name + ".with_grad").c_str(), TORCH_BOX(&with_grad));
    m.impl((name + ".inplace").c_str(), TORCH_BOX(&inplace));
    m.impl((name + ".schedule").c_str(), TORCH_BOX(&schedule));
  }

 private:
  static SomeCall run_with_grad(Gradient gradient, Arguments... arguments) {
    SomeCall call = build(gradient, arguments...);
    run<Device>(call);
    copy_written_grad(call);
    return call;
  }
  template <class Results>
  static auto results(const Call& call, const Results& results) {
    if constexpr (ghmc) {
      return std::tuple_cat(results, std::make_tuple(*call.bin_weight));
    } else {
      return results;
    }
  }
};

template <class Device>
std::tuple<Tensor, Tensor> gradient_norms(const Tensor& input, const Tensor& target, int64_t bins,
                                          int64_t ignore_index) {
  SoftmaxCall call(Gradient::none, input, target, std::nullopt, ignore_index, int64_t(Reduction::sum));
  call.params.ghmc = true;
  call.params.ghm.bins = check_bins(bins);
  GradientNormsCall norms(input, target, bins);
  Device::softmax_gradient_norms(call.params, norms.norms, input);
  return {norms.counts, norms.bin};
}

template <class Device>
std::tuple<Tensor, Tensor> sigmoid_gradient_norms(const Tensor& input, const Tensor& target, const OptionalTensor& mask,
                                                  int64_t bins) {
  SigmoidCall call(Gradient::none, input, target, mask, int64_t(Reduction::sum));
  call.params.ghmc = true;
  call.params.ghm.bins = check_bins(bins);
  GradientNormsCall norms(input, target, bins);
  Device::sigmoid_gradient_norms(call.params, norms.norms, call.input);
  return {norms.counts, norms.bin};
}

template <class Device>
Tensor scale_gradient(const Tensor& grad, const Tensor& grad_output, const OptionalTensor& stored_scale) {
  Tensor scaled = empty_gradient(grad);
  Device::scale_gradient(ScaleCall(grad, scaled, grad_output, stored_scale).params, grad);
  return scaled;
}

template <class Device>
void scale_gradient_inplace(const Tensor& grad, const Tensor& grad_output, const OptionalTensor& stored_scale) {
  Device::scale_gradient(ScaleCall(grad, grad, grad_output, stored_scale).params, grad);
}

template <class Device>
void register_losses(torch::stable::detail::StableLibrary& m) {
  [&]<int32_t... row>(std::integer_sequence<int32_t, row...>) {
    (LossOps<Device, false, &softmax_call<row>>::add_to(m, SoftmaxLosses::rows[row].name), ...);
  }(std::make_integer_sequence<int32_t, SoftmaxLosses::size>{});
  [&]<int32_t... row>(std::integer_sequence<int32_t, row...>) {
    (LossOps<Device, false, &sigmoid_call<row>>::add_to(m, SigmoidLosses::rows[row].name), ...);
  }(std::make_integer_sequence<int32_t, SigmoidLosses::size>{});
  LossOps<Device, true, &ghmc_call>::add_to(m, "ghmc_loss");
  LossOps<Device, true, &sigmoid_ghmc_call>::add_to(m, "sigmoid_ghmc_loss");
  m.impl("gradient_norms", TORCH_BOX(&gradient_norms<Device>));
  m.impl("sigmoid_gradient_norms", TORCH_BOX(&sigmoid_gradient_norms<Device>));
  m.impl("scale_gradient", TORCH_BOX(&scale_gradient<Device>));
  m.impl("scale_gradient.inplace", TORCH_BOX(&scale_gradient_inplace<Device>));
}

}  // namespace fastloss
