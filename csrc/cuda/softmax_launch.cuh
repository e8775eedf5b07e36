// The launches of a softmax loss: a kernel that counts the targets and one for loss and gradient; for GHM-C a memset, a
// kernel for histogram and weights, and one for loss and gradient.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "softmax_positions.cuh"
#include "softmax_rows.cuh"
#include "softmax_tile.cuh"

namespace fastloss {

template <class T, class LossOf>
cudaError_t launch_softmax_pass(SoftmaxLaunch launch, const LossOf& loss_of, cudaStream_t stream) {
  DeviceLimits limits;
  cudaError_t error = limits_of_device(&limits);
  if (error != cudaSuccess) return error;
  const Pass pass = std::is_same_v<LossOf, CountNorms> ? Pass::gradient_norms : Pass::loss;
  const SoftmaxSchedule& schedule = launch.schedule = schedule_of(launch.params, pass, limits);
  auto start = [&](auto kernel) {
    return launch_kernel(kernel, schedule.blocks, schedule.threads, schedule.shared_bytes, stream, launch, loss_of);
  };
  constexpr bool few = sizeof(T) == 8;
  switch (schedule.path) {
    case SoftmaxPath::tile_4:
      if constexpr (!few && !LossOf::extended) return start(softmax_tile<T, LossOf, 4, 1>);
      break;
    case SoftmaxPath::tile_8:
      if constexpr (!LossOf::extended) return start(softmax_tile < T, LossOf, 8, few ? 1 : 5 >);
      break;
    case SoftmaxPath::tile_12:
      if constexpr (!few && !LossOf::extended) return start(softmax_tile<T, LossOf, 12, 9>);
      break;
    case SoftmaxPath::tile_16:
      if constexpr (!LossOf::extended) return start(softmax_tile < T, LossOf, 16, few ? 9 : 13 >);
      break;
    case SoftmaxPath::tile_24:
      if constexpr (!few && !LossOf::extended) return start(softmax_tile<T, LossOf, 24, 17>);
      break;
    case SoftmaxPath::tile_32:
      return start(softmax_tile < T, LossOf, 32, few ? 17 : 25 >);
    case SoftmaxPath::part_rows:
    case SoftmaxPath::part_rows_staged:
    case SoftmaxPath::block_rows:
    case SoftmaxPath::block_rows_staged:
    case SoftmaxPath::block_rows_partly:
      return start(softmax_rows<T, LossOf>);
    case SoftmaxPath::positions:
    case SoftmaxPath::positions_staged:
    case SoftmaxPath::positions_partly:
      return start(softmax_positions<T, LossOf, 1>);
    case SoftmaxPath::wide_positions:
    case SoftmaxPath::wide_positions_staged:
    case SoftmaxPath::wide_positions_partly:
      return start(softmax_positions<T, LossOf, kPackBytes / sizeof(T)>);
    case SoftmaxPath::count:
      break;
  }
  return cudaErrorInvalidValue;
}

// Writes to scratch what the loss's launch reads.
template <class T>
cudaError_t launch_softmax_before(SoftmaxLaunch& launch, cudaStream_t stream) {
  const SoftmaxParams& params = launch.params;
  if (params.ghmc) {
    cudaError_t error = reset_scratch(launch.scratch, params.ghm.bins, stream);
    launch.denominator_parts = 1;
    if (error != cudaSuccess) return error;
    if (!params.counts) return launch_softmax_pass<T>(launch, CountNorms{}, stream);
    return launch_kernel(weigh_bins, 1, kCountThreads, 0, stream, params.ghm, params.counts, launch.scratch,
                         params.bin_weight);
  }
  // Without a sum over decisions there is no ticket and no denominator.
  if (params.reduction == Reduction::none && !params.weight) return cudaSuccess;
  // With a denominator there is nothing to count, unless a float16 gradient's scale has to know the sample weights.
  const bool counts = !params.denominator || (params.sample_weight && params.stored_scale);
  launch.denominator_parts = counts ? num_blocks(params.N, 4 * kCountThreads, kMaxCountBlocks) : 1;
  return launch_kernel(count_targets<Compute<T>>, launch.denominator_parts, kCountThreads, 0, stream, params,
                       launch.scratch);
}

// Writes loss, grad (if any) and, for GHM-C, bin_weight and the running statistics.
inline cudaError_t launch_softmax_loss(const SoftmaxParams& params, void* workspace, cudaStream_t stream) {
  SoftmaxLaunch launch{params, {}, static_cast<Scratch*>(workspace), {}, 0};
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    cudaError_t error = launch_softmax_before<T>(launch, stream);
    if (error != cudaSuccess) return error;
    return with_loss_of_call<Compute<T>>(params,
                                         [&](auto loss_of) { return launch_softmax_pass<T>(launch, loss_of, stream); });
  });
}

// Writes norms. params are GHM-C's.
inline cudaError_t launch_softmax_gradient_norms(const SoftmaxParams& params, const GradientNorms& norms,
                                                 void* workspace, cudaStream_t stream) {
  SoftmaxLaunch launch{params, {}, static_cast<Scratch*>(workspace), norms, 0};
  return with_storage(params.dtype,
                      [&](auto storage) { return launch_softmax_before<decltype(storage)>(launch, stream); });
}

}  // namespace fastloss
