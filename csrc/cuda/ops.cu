// The CUDA device: scratch memory from torch's allocator, launches on torch's current stream, errors as sentences.
// Registers the ops for CUDA tensors at its foot, with one more that only this device needs.
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "../ops.h"
#include "scale_gradient.cuh"
#include "sigmoid_loss.cuh"
#include "softmax_launch.cuh"
#include "stream.h"

namespace fastloss {

namespace {

// Calls launch(workspace, stream) on input's device and its current stream. Never synchronises. Torch's allocator gives
// the workspace to nobody else before the stream is through with it.
template <class Launch>
void run_on_device_of(const Tensor& input, size_t workspace_bytes, const Launch& launch) {
  const int device = input.get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  Tensor workspace = empty_like_device(input, {int64_t(workspace_bytes + 7) / 8}, torch::headeronly::ScalarType::Long);
  cudaError_t error = cudaSetDevice(device);  // tells this library's own copy of the CUDA runtime, too
  if (error == cudaSuccess) {
    error = launch(workspace.mutable_data_ptr(), current_stream(device));
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // so that the next call does not report it
    throw std::runtime_error("fastloss could not launch a kernel on cuda:" + std::to_string(device) + ": " +
                             cudaGetErrorString(error) + ".");
  }
}

// grad times grad_output * factor, in place; grad_output is a number, or has one for each decision of grad (whose loss
// it is the gradient of). By the kernel rather than by torch: it does not touch grad where the product is 1.
void scale_gradient(const Tensor& grad, const Tensor& grad_output_, double factor) {
  ScaleParams params{};
  params.dtype = floating_dtype("grad", grad);
  Tensor grad_output = torch::stable::contiguous(torch::stable::to(grad_output_, compute_type(params.dtype)));
  params.per_decision = grad_output.dim() > 0;
  bool softmax = params.per_decision && grad_output.dim() < grad.dim();
  params.N = params.per_decision ? grad_output.numel() : grad.numel();
  params.C = softmax ? grad.size(1) : 1;
  if (params.N * params.C != grad.numel() || grad_output.get_device() != grad.get_device()) {
    throw std::invalid_argument(
        "grad_output should be on grad's device, and a number or one for each of its decisions.");
  }
  params.grad = grad.mutable_data_ptr();
  params.grad_output = grad_output.const_data_ptr();
  params.factor = factor;
  params.layout = make_layout(grad, std::nullopt, softmax ? 1 : -1);
  run_on_device_of(grad, 0,
                   [&](void* /*workspace*/, cudaStream_t stream) { return launch_scale_gradient(params, stream); });
}

}  // namespace

struct Cuda {
  static void softmax_loss(const SoftmaxParams& params, const Tensor& input) {
    run_on_device_of(input, softmax_workspace_bytes(params), [&](void* workspace, cudaStream_t stream) {
      return launch_softmax_loss(params, workspace, stream);
    });
  }

  static void softmax_histogram(const SoftmaxParams& params, const Tensor& input, int64_t* counts) {
    run_on_device_of(input, softmax_workspace_bytes(params), [&](void* workspace, cudaStream_t stream) {
      return launch_softmax_histogram(params, counts, workspace, stream);
    });
  }

  static void sigmoid_loss(const SigmoidParams& params, const Tensor& input) {
    run_on_device_of(input, sigmoid_workspace_bytes(params), [&](void* workspace, cudaStream_t stream) {
      return launch_sigmoid_loss(params, workspace, stream);
    });
  }
};

}  // namespace fastloss

STABLE_TORCH_LIBRARY_IMPL(fastloss, CUDA, m) {
  fastloss::register_losses<fastloss::Cuda>(m);
  m.impl("scale_gradient", TORCH_BOX(&fastloss::scale_gradient));
}
