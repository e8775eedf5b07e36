// The CUDA device: scratch memory from torch's allocator, launches on torch's current stream, errors as sentences.
// Registers the ops for CUDA tensors at its foot.
#include <torch/csrc/stable/accelerator.h>

#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "../ops/ops.h"
#include "scale_gradient.cuh"
#include "sigmoid.cuh"
#include "softmax_launch.cuh"
#include "stream.h"

namespace fastloss {

namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it
  throw std::runtime_error(std::string("fastloss could not launch a CUDA kernel: ") + cudaGetErrorString(error) + ".");
}

struct RelaxedCapture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  RelaxedCapture() { check(cudaThreadExchangeStreamCaptureMode(&mode)); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode); }  // what it was
};

// Calls launch(workspace, stream) on input's device and its current stream. Never synchronises. Torch's allocator gives
// the workspace to nobody else before the stream is through with it.
template <class Launch>
void run_on_device_of(const Tensor& input, size_t workspace_bytes, const Launch& launch) {
  const int device = input.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  Tensor workspace = empty_workspace(input, int64_t(workspace_bytes));
  check(cudaSetDevice(device));  // tells this library's own copy of the CUDA runtime, too
  // A kernel is loaded when it is first launched; while its stream is captured, that is allowed only in this mode.
  const RelaxedCapture relaxed;
  check(launch(workspace.mutable_data_ptr(), current_stream(device)));
}

}  // namespace

struct Cuda {
  static void softmax_loss(const SoftmaxParams& params, const Tensor& input) {
    run_on_device_of(input, workspace_bytes(params.ghm.bins), [&](void* workspace, cudaStream_t stream) {
      return launch_softmax_loss(params, workspace, stream);
    });
  }

  static void softmax_gradient_norms(const SoftmaxParams& params, const GradientNorms& norms, const Tensor& input) {
    run_on_device_of(input, workspace_bytes(params.ghm.bins), [&](void* workspace, cudaStream_t stream) {
      return launch_softmax_gradient_norms(params, norms, workspace, stream);
    });
  }

  static void sigmoid_loss(const SigmoidParams& params, const Tensor& input) {
    run_on_device_of(input, workspace_bytes(params.ghm.bins), [&](void* workspace, cudaStream_t stream) {
      return launch_sigmoid_loss(params, workspace, stream);
    });
  }

  static void sigmoid_gradient_norms(const SigmoidParams& params, const GradientNorms& norms, const Tensor& input) {
    run_on_device_of(input, workspace_bytes(params.ghm.bins), [&](void* workspace, cudaStream_t stream) {
      return launch_sigmoid_gradient_norms(params, norms, workspace, stream);
    });
  }

  static void scale_gradient(const ScaleParams& params, const Tensor& grad) {
    run_on_device_of(grad, 0,
                     [&](void* /*workspace*/, cudaStream_t stream) { return launch_scale_gradient(params, stream); });
  }

  static int64_t schedule_code(const SoftmaxParams& params) {
    DeviceLimits limits;
    check(limits_of_device(&limits));
    return schedule_of(params, Pass::loss, limits).code();
  }

  static int64_t schedule_code(const SigmoidParams& params) { return schedule_of(params).code(); }
};

std::vector<std::string> cuda_schedule_names() {
  return {std::begin(kCudaScheduleNames), std::end(kCudaScheduleNames)};
}

}  // namespace fastloss

STABLE_TORCH_LIBRARY_IMPL(fastloss, CUDA, m) { fastloss::register_losses<fastloss::Cuda>(m); }
