// Multiplies a gradient by grad_output, which the backward pass only knows on the device: a number, or one for each
// decision. In place, a number that comes to 1, as it mostly does, is read and the gradient is not touched.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "memory.cuh"

namespace fastloss {

template <class T>
struct Scaling {
  using S = Compute<T>;
  const ScaleParams& params;
  double stored_scale;

  __device__ explicit Scaling(const ScaleParams& p) : params(p), stored_scale(p.stored_scale ? *p.stored_scale : 1) {}

  __device__ S factor(int64_t decision) const {
    double grad_output = static_cast<const S*>(params.grad_output)[params.per_decision ? decision : 0];
    return S(grad_output / stored_scale);
  }
  __device__ bool changes_nothing() const {
    return params.scaled == params.grad && !params.per_decision && factor(0) == 1;
  }
  // 0 stays 0, times inf and nan too.
  static __device__ T scaled(T g, S factor) {
    S value = to_compute(g);
    return value == 0 ? g : to_storage<T>(value * factor);
  }
  // count elements side by side; a part of them, that of thread `first` of `step`.
  template <class Index>
  static __device__ void scale_all(const T* grad, T* scaled_grad, Index count, S factor, Index first, Index step) {
    const Split<T, Index> split(grad, count, same_alignment(grad, scaled_grad));
    for (Index i = first; i < split.packs; i += step) {
      Pack<T> pack = load_pack(grad + split.pack(i));
#pragma unroll
      for (T& g : pack.at) g = scaled(g, factor);
      store_pack(scaled_grad + split.pack(i), pack);
    }
    for (Index i = first; i < split.scalars; i += step) {
      scaled_grad[split.scalar(i)] = scaled(grad[split.scalar(i)], factor);
    }
  }
};

// A number times all elements of a gradient without gaps, in the order of memory.
template <class T>
__global__ void __launch_bounds__(kScaleThreads) scale_dense(const __grid_constant__ ScaleParams params) {
  const Scaling<T> scaling(params);
  if (scaling.changes_nothing()) return;
  scaling.scale_all(static_cast<const T*>(params.grad), static_cast<T*>(params.scaled), params.N * params.C,
                    scaling.factor(0), int64_t(blockIdx.x) * kScaleThreads + threadIdx.x,
                    int64_t(gridDim.x) * kScaleThreads);
}

// Any strides, any grad_output. Some threads of a warp for each decision whose classes lie side by side, else one.
template <class T>
__global__ void __launch_bounds__(kScaleThreads)
    scale_strided(const __grid_constant__ ScaleParams params, const __grid_constant__ ScaleSchedule schedule) {
  const Scaling<T> scaling(params);
  if (scaling.changes_nothing()) return;
  const Layout& layout = params.layout;
  const int32_t threads = schedule.threads_per_decision, lane = threadIdx.x % threads;
  const int32_t C = int32_t(params.C);
  const int64_t step = int64_t(gridDim.x) * kScaleThreads / threads;
  int64_t decision = (int64_t(blockIdx.x) * kScaleThreads + threadIdx.x) / threads;
  for (; decision < params.N; decision += step) {
    const Offsets offsets(layout, decision);
    const T* grad = static_cast<const T*>(params.grad) + offsets.input;  // [C] at class_stride
    T* scaled = static_cast<T*>(params.scaled) + offsets.grad;           // [C] at grad_class_stride
    const auto factor = scaling.factor(decision);
    if (threads > 1) {
      scaling.scale_all(grad, scaled, C, factor, lane, threads);
      continue;
    }
    for (int32_t c = 0; c < C; ++c) {
      scaled[c * layout.grad_class_stride] = scaling.scaled(grad[c * layout.class_stride], factor);
    }
  }
}

inline cudaError_t launch_scale_gradient(const ScaleParams& params, cudaStream_t stream) {
  if (params.N * params.C == 0) return cudaSuccess;
  const ScaleSchedule schedule = schedule_of(params);
  return with_storage(params.dtype, [&](auto storage) {
    using T = decltype(storage);
    if (schedule.path == ScalePath::dense) {
      return launch_kernel(scale_dense<T>, schedule.blocks, kScaleThreads, 0, stream, params);
    }
    return launch_kernel(scale_strided<T>, schedule.blocks, kScaleThreads, 0, stream, params, schedule);
  });
}

}  // namespace fastloss
