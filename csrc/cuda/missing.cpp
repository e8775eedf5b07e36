// Stands in for ops.cu in a build without CUDA: every op refuses CUDA tensors in a sentence that says what to do.
#include <stdexcept>

#include "../ops.h"

namespace fastloss {

namespace {

struct MissingCuda {
  static void refuse() {
    throw std::runtime_error(
        "input is a CUDA tensor, but fastloss was built without CUDA; build it where nvcc is, with 'FASTLOSS_CUDA=1 "
        "pip "
        "install .' in the folder of the sources, or move input to the CPU.");
  }
  static void softmax_loss(const SoftmaxParams&, const Tensor&) { refuse(); }
  static void softmax_histogram(const SoftmaxParams&, const Tensor&, int64_t*) { refuse(); }
  static void sigmoid_loss(const SigmoidParams&, const Tensor&) { refuse(); }
};

}  // namespace

}  // namespace fastloss

STABLE_TORCH_LIBRARY_IMPL(fastloss, CUDA, m) { fastloss::register_losses<fastloss::MissingCuda>(m); }
