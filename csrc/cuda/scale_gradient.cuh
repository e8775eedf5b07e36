// Multiplies a gradient in place by grad_output, which the backward pass only knows on the device: a number, or one for
// each decision. A number that comes to 1, as it mostly does, is read and the gradient is not touched.
#pragma once

#include "common.cuh"

namespace fastloss {

struct ScaleParams {
  void* grad;               // [N, C] by layout (stride and class_stride; N decisions), dtype
  const void* grad_output;  // [1], or [N] contiguous if per_decision; compute type
  double factor;            // grad_output is multiplied by it
  int64_t N, C;
  Layout layout;
  DType dtype;
  bool per_decision;
};

constexpr int kScaleThreads = 256;

// All elements of a gradient without gaps, in the order of memory.
template <class T>
__global__ void __launch_bounds__(kScaleThreads) scale_dense(const __grid_constant__ ScaleParams params) {
  using S = Compute<T>;
  const S scale = S(double(*static_cast<const S*>(params.grad_output)) * params.factor);
  if (scale == 1) return;
  T* grad = static_cast<T*>(params.grad);  // [N * C]
  const Split<T, int64_t> split(grad, params.N * params.C, true);
  const int64_t first = int64_t(blockIdx.x) * kScaleThreads + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kScaleThreads;
  for (int64_t i = first; i < split.packs; i += step) {
    Pack<T> pack = load_pack(grad + split.pack(i));
#pragma unroll
    for (T& g : pack.at) g = to_storage<T>(to_compute(g) * scale);
    store_pack(grad + split.pack(i), pack);
  }
  for (int64_t i = first; i < split.scalars; i += step) {
    T& g = grad[split.scalar(i)];
    g = to_storage<T>(to_compute(g) * scale);
  }
}

// Any strides, any grad_output: an element a thread, classes of a decision or decisions next to each other in memory.
template <class T>
__global__ void __launch_bounds__(kScaleThreads) scale_strided(const __grid_constant__ ScaleParams params) {
  using S = Compute<T>;
  const S* grad_output = static_cast<const S*>(params.grad_output);
  if (!params.per_decision && S(double(*grad_output) * params.factor) == 1) return;
  const bool class_fastest = params.layout.class_stride == 1;
  const int64_t count = params.N * params.C;
  const int64_t step = int64_t(gridDim.x) * kScaleThreads;
  for (int64_t i = int64_t(blockIdx.x) * kScaleThreads + threadIdx.x; i < count; i += step) {
    int64_t decision = class_fastest ? i / params.C : i % params.N;
    int64_t c = class_fastest ? i % params.C : i / params.N;
    S scale = S(double(grad_output[params.per_decision ? decision : 0]) * params.factor);
    int64_t offset = Offsets(params.layout, decision).input + c * params.layout.class_stride;
    T& g = static_cast<T*>(params.grad)[offset];
    g = to_storage<T>(to_compute(g) * scale);
  }
}

inline cudaError_t launch_scale_gradient(const ScaleParams& params, cudaStream_t stream) {
  const int64_t count = params.N * params.C;
  if (count == 0) return cudaSuccess;
  // No gaps: as many elements as there are in memory from the first to the last.
  const bool dense = !params.per_decision && params.layout.extent == count;
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    if (dense) {
      int blocks = num_blocks(count, 4 * kScaleThreads * Pack<T>::kSize, kMaxBlocks);
      scale_dense<T><<<blocks, kScaleThreads, 0, stream>>>(params);
    } else {
      scale_strided<T><<<num_blocks(count, 4 * kScaleThreads, kMaxBlocks), kScaleThreads, 0, stream>>>(params);
    }
    return cudaGetLastError();
  });
}

}  // namespace fastloss
