// Stands in for ops.cu in a build without CUDA: every op refuses CUDA tensors in a sentence that says what to do.
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "../ops/ops.h"
#include "schedule.h"

namespace fastloss {

namespace {

struct MissingCuda {
  template <class... Arguments>
  static void refuse(const Arguments&...) {
    throw std::runtime_error(
        "input is a CUDA tensor, but fastloss was built without CUDA; build it where nvcc is, with 'FASTLOSS_CUDA=1 "
        "pip install .' in the folder of the sources, or move input to the CPU.");
  }
  static void softmax_loss(const SoftmaxParams&, const Tensor&) { refuse(); }
  static void softmax_gradient_norms(const SoftmaxParams&, const GradientNorms&, const Tensor&) { refuse(); }
  static void sigmoid_loss(const SigmoidParams&, const Tensor&) { refuse(); }
  static void sigmoid_gradient_norms(const SigmoidParams&, const GradientNorms&, const Tensor&) { refuse(); }
  static void scale_gradient(const ScaleParams&, const Tensor&) { refuse(); }
  static int64_t schedule_code(const SoftmaxParams&) { return refused(); }
  static int64_t schedule_code(const SigmoidParams&) { return refused(); }

 private:
  static int64_t refused() {
    refuse();
    return 0;
  }
};

}  // namespace

std::vector<std::string> cuda_schedule_names() {
  return {std::begin(kCudaScheduleNames), std::end(kCudaScheduleNames)};
}

}  // namespace fastloss

STABLE_TORCH_LIBRARY_IMPL(fastloss, CUDA, m) { fastloss::register_losses<fastloss::MissingCuda>(m); }
