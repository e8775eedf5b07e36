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
  OptionalTensor weight_or_mask, class_alpha, sample_weight;
  OptionalTensor bin_weight;  // [bins] of GHM-C
  OptionalTensor lse;         // of a softmax loss: one a decision where it is asked for, else [0]
};

struct SoftmaxCall : Call {
  SoftmaxParams params{};
  // probabilities: a target of the input's shape may hold class probabilities.
  SoftmaxCall(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
              const OptionalTensor& denominator, int64_t ignore_index, int64_t reduction, bool probabilities = false);

 private:
  void lay_out_probabilities();
};

struct SigmoidCall : Call {
  SigmoidParams params{};
  SigmoidCall(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& mask,
              int64_t reduction);
  void check_factors(const OptionalTensor& class_alpha, const OptionalTensor& sample_weight,
                     const OptionalTensor& denominator, double alpha);
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
void check_sample_weight(SoftmaxCall& call, const OptionalTensor& sample_weight);
// With a new lse.
void check_extras(SoftmaxCall& call, bool return_lse, double z_loss, double logit_scale, std::optional<double> softcap);
// Of a sigmoid loss that is asymmetric.
void check_shift(double gamma_negative, double margin);
int32_t check_bins(int64_t bins);
// Into either call, with a new bin_weight.
struct GhmArguments {
  const OptionalTensor &running_histogram, &num_updates;
  int64_t bins;
  double momentum;
  int64_t normalizer;
  bool bias_correction, training;
  double power;
};
GhmState check_ghm(Call& call, const GhmArguments& arguments);
// [bins], or null.
const int64_t* check_counts(const Call& call, const OptionalTensor& counts, int32_t bins);
// Uninitialised, with tensor's shape, dtype and, if it has no gaps, strides.
Tensor empty_gradient(const Tensor& tensor);
// Uninitialised bytes on tensor's device, for its kernels to work in.
Tensor empty_workspace(const Tensor& tensor, int64_t bytes);

// ---- from a loss's arguments to its call

template <int32_t row>
SoftmaxCall softmax_call(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& sample_weight, const OptionalTensor& denominator, double parameter,
                         double z_loss, double logit_scale, std::optional<double> softcap, bool return_lse,
                         int64_t ignore_index, int64_t reduction) {
  constexpr LossRow of_row = SoftmaxLosses::rows[row];
  check_parameter(of_row, parameter);
  SoftmaxCall call(gradient, input, target, weight, denominator, ignore_index, reduction, of_row.mixes);
  check_sample_weight(call, sample_weight);
  check_extras(call, return_lse, z_loss, logit_scale, softcap);
  call.params.loss_row = row;
  call.params.parameter = parameter;
  call.params.label_smoothing = of_row.mixes ? parameter : 0;
  return call;
}

template <int32_t row>
SigmoidCall sigmoid_call(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& mask,
                         const OptionalTensor& class_alpha, const OptionalTensor& sample_weight,
                         const OptionalTensor& denominator, double alpha, double parameter, int64_t reduction) {
  check_parameter(SigmoidLosses::rows[row], parameter);
  SigmoidCall call(gradient, input, target, mask, reduction);
  call.check_factors(class_alpha, sample_weight, denominator, alpha);
  call.params.loss_row = row;
  call.params.parameter = parameter;
  return call;
}

template <int32_t row>
SigmoidCall asymmetric_call(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& mask,
                            const OptionalTensor& class_alpha, const OptionalTensor& sample_weight,
                            const OptionalTensor& denominator, double alpha, double parameter, double gamma_negative,
                            double margin, int64_t reduction) {
  check_shift(gamma_negative, margin);
  SigmoidCall call = sigmoid_call<row>(gradient, input, target, mask, class_alpha, sample_weight, denominator, alpha,
                                       parameter, reduction);
  call.params.gamma_negative = gamma_negative;
  call.params.margin = margin;
  return call;
}
template <int32_t row>
constexpr auto build_of_sigmoid() {
  if constexpr (SigmoidLosses::rows[row].asymmetric) {
    return &asymmetric_call<row>;
  } else {
    return &sigmoid_call<row>;
  }
}

inline SoftmaxCall ghmc_call(Gradient gradient, const Tensor& input, const Tensor& target, const OptionalTensor& counts,
                             const OptionalTensor& denominator, const OptionalTensor& running_histogram,
                             const OptionalTensor& num_updates, int64_t bins, double momentum, int64_t normalizer,
                             bool bias_correction, bool training, double power, int64_t ignore_index,
                             int64_t reduction) {
  SoftmaxCall call(gradient, input, target, std::nullopt, denominator, ignore_index, reduction);
  call.params.ghmc = true;
  call.params.ghm =
      check_ghm(call, {running_histogram, num_updates, bins, momentum, normalizer, bias_correction, training, power});
  call.params.counts = check_counts(call, counts, call.params.ghm.bins);
  call.params.bin_weight = static_cast<double*>(call.bin_weight->mutable_data_ptr());
  return call;
}

inline SigmoidCall sigmoid_ghmc_call(Gradient gradient, const Tensor& input, const Tensor& target,
                                     const OptionalTensor& mask, const OptionalTensor& counts,
                                     const OptionalTensor& denominator, const OptionalTensor& running_histogram,
                                     const OptionalTensor& num_updates, int64_t bins, double momentum,
                                     int64_t normalizer, bool bias_correction, bool training, double power,
                                     int64_t reduction) {
  SigmoidCall call(gradient, input, target, mask, reduction);
  call.check_factors(std::nullopt, std::nullopt, denominator, -1);
  call.params.ghmc = true;
  call.params.ghm =
      check_ghm(call, {running_histogram, num_updates, bins, momentum, normalizer, bias_correction, training, power});
  call.params.counts = check_counts(call, counts, call.params.ghm.bins);
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

// The four ops of the loss whose calls `build` makes. Those of the first three return one tensor more, last, if `extra`
// says which.
enum class Extra { none, lse, bin_weight };
template <class Device, Extra extra, auto build>
struct LossOps;
template <class Device, Extra extra, class SomeCall, class... Arguments, SomeCall (*build)(Gradient, Arguments...)>
struct LossOps<Device, extra, build> {
  static auto value(Arguments... arguments) {
    SomeCall call = build(Gradient::none, arguments...);
    run<Device>(call);
    if constexpr (extra != Extra::none) {
      return std::make_tuple(call.loss, extra_of(call));
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
  static Tensor extra_of(const Call& call) { return extra == Extra::lse ? *call.lse : *call.bin_weight; }
  static SomeCall run_with_grad(Gradient gradient, Arguments... arguments) {
    SomeCall call = build(gradient, arguments...);
    run<Device>(call);
    copy_written_grad(call);
    return call;
  }
  template <class Results>
  static auto results(const SomeCall& call, const Results& results) {
    if constexpr (extra != Extra::none) {
      return std::tuple_cat(results, std::make_tuple(extra_of(call)));
    } else {
      return results;
    }
  }
};

template <class Device>
std::tuple<Tensor, Tensor> gradient_norms(const Tensor& input, const Tensor& target, int64_t bins,
                                          int64_t ignore_index) {
  SoftmaxCall call(Gradient::none, input, target, std::nullopt, std::nullopt, ignore_index, int64_t(Reduction::sum));
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
    (LossOps<Device, Extra::lse, &softmax_call<row>>::add_to(m, SoftmaxLosses::rows[row].name), ...);
  }(std::make_integer_sequence<int32_t, SoftmaxLosses::size>{});
  [&]<int32_t... row>(std::integer_sequence<int32_t, row...>) {
    (LossOps<Device, Extra::none, build_of_sigmoid<row>()>::add_to(m, SigmoidLosses::rows[row].name), ...);
  }(std::make_integer_sequence<int32_t, SigmoidLosses::size>{});
  LossOps<Device, Extra::bin_weight, &ghmc_call>::add_to(m, "ghmc_loss");
  LossOps<Device, Extra::bin_weight, &sigmoid_ghmc_call>::add_to(m, "sigmoid_ghmc_loss");
  m.impl("gradient_norms", TORCH_BOX(&gradient_norms<Device>));
  m.impl("sigmoid_gradient_norms", TORCH_BOX(&sigmoid_gradient_norms<Device>));
  m.impl("scale_gradient", TORCH_BOX(&scale_gradient<Device>));
  m.impl("scale_gradient.inplace", TORCH_BOX(&scale_gradient_inplace<Device>));
}

}  // namespace fastloss
