// The schemas of the ops, from the table of losses. Python binds, fakes and differentiates by the names in them.
//
// Enumerations are integers, those of losses/params.h: the boxing of a string leaks it.
#include <string>

#include "ops.h"

namespace fastloss {

namespace {

using torch::stable::detail::StableLibrary;

const std::string kGhm =
    "Tensor(b!)? running_histogram, Tensor(c!)? num_updates, int bins, float momentum, int normalizer, "
    "bool bias_correction, bool training, float power, ";

// The four ops of a loss, see ops.h. arguments follow input; results follow what is returned anyway.
void define(StableLibrary& m, const std::string& name, const std::string& arguments, const std::string& results) {
  auto op = [&](const std::string& overload, const std::string& input, const std::string& last,
                const std::string& returned) {
    m.def((name + overload + "(" + input + " input, " + arguments + last + ") -> " + returned).c_str());
  };
  op("", "Tensor", "", results.empty() ? "Tensor" : "(Tensor loss" + results + ")");
  op(".with_grad", "Tensor", "", "(Tensor loss, Tensor grad, Tensor stored_scale" + results + ")");
  op(".inplace", "Tensor(a!)", "", "(Tensor loss, Tensor stored_scale" + results + ")");
  op(".schedule", "Tensor", ", int gradient", "int");
}

std::string number(const LossRow& row) { return std::string("float ") + row.parameter + ", "; }

}  // namespace

}  // namespace fastloss

STABLE_TORCH_LIBRARY(fastloss, m) {
  using namespace fastloss;
  for (const LossRow& row : SoftmaxLosses::rows) {
    define(m, row.name,
           "Tensor target, Tensor? weight, Tensor? sample_weight, Tensor? denominator, " + number(row) +
               "float z_loss, float logit_scale, float? softcap, bool return_lse, int ignore_index, int reduction",
           ", Tensor lse");
  }
  for (const LossRow& row : SigmoidLosses::rows) {
    const std::string shift = row.asymmetric ? "float gamma_negative, float margin, " : "";
    define(
        m, row.name,
        "Tensor target, Tensor? mask, Tensor? class_alpha, Tensor? sample_weight, Tensor? denominator, float alpha, " +
            number(row) + shift + "int reduction",
        "");
  }
  define(m, "ghmc_loss",
         "Tensor target, Tensor? counts, Tensor? denominator, " + kGhm + "int ignore_index, int reduction",
         ", Tensor bin_weight");
  define(m, "sigmoid_ghmc_loss",
         "Tensor target, Tensor? mask, Tensor? counts, Tensor? denominator, " + kGhm + "int reduction",
         ", Tensor bin_weight");
  m.def("gradient_norms(Tensor input, Tensor target, int bins, int ignore_index) -> (Tensor counts, Tensor bin)");
  m.def("sigmoid_gradient_norms(Tensor input, Tensor target, Tensor? mask, int bins) -> (Tensor counts, Tensor bin)");
  m.def("scale_gradient(Tensor grad, Tensor grad_output, Tensor? stored_scale) -> Tensor");
  m.def("scale_gradient.inplace(Tensor(a!) grad, Tensor grad_output, Tensor? stored_scale) -> ()");
}
