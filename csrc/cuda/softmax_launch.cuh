// Chooses the schedule, grid and shared memory of the softmax losses and launches them: a kernel that counts the
// targets and one for loss and gradient; for GHM-C a memset, a kernel for histogram and weights, and one for loss and
// gradient.
#pragma once

#include "softmax_loss.cuh"

namespace fastloss {

// Of device memory, aligned to 32 bytes; its contents do not matter.
inline size_t softmax_workspace_bytes(const SoftmaxParams& params) { return scratch_bytes(params.ghm.bins); }

template <class LaunchArg, class LossOf>
cudaError_t launch_kernel(void (*kernel)(LaunchArg, LossOf), const SoftmaxLaunch& launch, const LossOf& loss_of,
                          int blocks, int threads, int shared_bytes, cudaStream_t stream) {
  if (shared_bytes > kDefaultSharedBytes) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(launch, loss_of);
  return cudaGetLastError();
}

// What a block may have beside its static shared memory, which is less than 1 KB where rows are staged.
inline cudaError_t max_staged_bytes(int* bytes) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *bytes -= 1024;
  return error;
}

template <class T, class LossOf, bool smooths>
cudaError_t launch_schedule(SoftmaxLaunch launch, const LossOf& loss_of, cudaStream_t stream) {
  const SoftmaxParams& params = launch.params;
  const Layout& layout = params.layout;
  const int64_t C = params.C;
  const bool counts = std::is_same_v<LossOf, CountNorms>;
  const bool writes = params.grad && !counts;
  const bool stages = writes || smooths;  // else logits are read once, and only once
  const bool class_contiguous = C == 1 || (layout.class_stride == 1 && (!writes || layout.grad_class_stride == 1));
  const bool row_contiguous =
      layout.ndim == 1 && (params.N == 1 || (layout.stride[0] == C && (!writes || layout.grad_stride[0] == C)));

  if (C <= kMaxTileClasses && class_contiguous && row_contiguous) {
    // Of many rows, several for each thread: a block has more bytes in flight, and begins and ends less often.
    int64_t rows = params.N < (1 << 17) ? 1 : std::clamp<int64_t>(12288 / (kTileThreads * C * sizeof(T)), 1, 8);
    launch.tile_rows = kTileThreads * int(rows);
    int bytes = int(launch.tile_rows * C * sizeof(T)) + 16;
    int blocks = num_blocks(params.N, launch.tile_rows, kMaxTileBlocks);
    return launch_kernel(softmax_tile<T, LossOf, smooths>, launch, loss_of, blocks, kTileThreads, bytes, stream);
  }

  if (class_contiguous) {
    // About 16 packs for each thread at most, up to a block of kMaxRowThreads.
    int64_t packs = (C + Pack<T>::kSize - 1) / Pack<T>::kSize;
    int threads = 1;
    while (threads < 32 && threads * 4 < packs) threads *= 2;
    if (packs > 32 * 16) {
      threads = 128;
      while (threads < kMaxRowThreads && threads * 8 < packs) threads *= 2;
    }
    launch.threads_per_row = threads;
    int block_threads = std::max(threads, 128);
    int rows = block_threads / threads;
    int64_t row_bytes = (C * sizeof(T) + 31) / 16 * 16;  // whole packs, wherever the first one starts
    if (stages) {
      int limit = kDefaultSharedBytes;
      if (rows * row_bytes > limit) {
        cudaError_t error = max_staged_bytes(&limit);
        if (error != cudaSuccess) return error;
      }
      if (rows * row_bytes <= limit) launch.staged_bytes = int(row_bytes);
    }
    int blocks = num_blocks(params.N, rows, kMaxBlocks);
    return launch_kernel(softmax_rows<T, LossOf, smooths>, launch, loss_of, blocks, block_threads,
                         rows * launch.staged_bytes, stream);
  }

  int64_t bytes = C * kPositionThreads * sizeof(T);
  if (stages && bytes <= kDefaultSharedBytes) launch.staged_bytes = int(bytes);
  int blocks = num_blocks(params.N, kPositionThreads, kMaxBlocks);
  return launch_kernel(softmax_positions<T, LossOf, smooths>, launch, loss_of, blocks, kPositionThreads,
                       launch.staged_bytes, stream);
}

// Writes to scratch what the later launches read.
template <class T>
cudaError_t prepare(SoftmaxLaunch& launch, cudaStream_t stream) {
  const SoftmaxParams& params = launch.params;
  if (params.kind == Loss::ghmc) {
    launch.denominator_parts = 1;
    return reset_scratch(launch.scratch, params.ghm.bins, stream);
  }
  // Without a sum over decisions there is no ticket and no denominator.
  if (params.reduction == Reduction::none && !(params.label_smoothing > 0 && params.weight)) return cudaSuccess;
  launch.denominator_parts = num_blocks(params.N, 16 * kCountThreads, kMaxCountBlocks);
  count_targets<Compute<T>><<<launch.denominator_parts, kCountThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_loss(SoftmaxLaunch launch, cudaStream_t stream) {
  using S = Compute<T>;
  const SoftmaxParams& params = launch.params;
  cudaError_t error = prepare<T>(launch, stream);
  if (error != cudaSuccess) return error;
  switch (params.kind) {
    case Loss::cross_entropy:
      if (params.label_smoothing > 0) return launch_schedule<T, CrossEntropy, true>(launch, {}, stream);
      return launch_schedule<T, CrossEntropy, false>(launch, {}, stream);
    case Loss::focal:
      return launch_schedule<T, Focal<S>, false>(launch, {S(params.gamma)}, stream);
    case Loss::ghmc:
      error = launch_schedule<T, CountNorms, false>(launch, {}, stream);
      if (error != cudaSuccess) return error;
      return launch_schedule<T, GhmcLoss<S>, false>(launch, {{params.bin_weight, params.ghm.bins}}, stream);
  }
  return cudaErrorInvalidValue;
}

// Writes loss, grad (if any) and, for GHM-C, bin_weight and the running statistics.
inline cudaError_t launch_softmax_loss(const SoftmaxParams& params, void* workspace, cudaStream_t stream) {
  SoftmaxLaunch launch{};
  launch.params = params;
  launch.scratch = static_cast<Scratch*>(workspace);
  return with_storage(params.dtype, [&](auto storage) { return launch_loss<decltype(storage)>(launch, stream); });
}

// Writes counts [bins] of the gradient norms. params are GHM-C's.
inline cudaError_t launch_softmax_histogram(const SoftmaxParams& params, int64_t* counts, void* workspace,
                                            cudaStream_t stream) {
  SoftmaxLaunch launch{};
  launch.params = params;
  launch.scratch = static_cast<Scratch*>(workspace);
  launch.counts = counts;
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    cudaError_t error = prepare<T>(launch, stream);
    if (error != cudaSuccess) return error;
    return launch_schedule<T, CountNorms, false>(launch, {}, stream);
  });
}

}  // namespace fastloss
