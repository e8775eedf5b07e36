// How kernels are launched: the types of a call become template arguments, errors are returned.
//
// Launchers are host functions of (params, workspace, stream) that return a cudaError_t and never synchronise. No torch
// here, so that all of it also runs in an emulator.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "schedule.h"

namespace fastloss {

// Calls f with a value of the storage type.
template <class F>
cudaError_t with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::float64:
      return f(double{});
    case DType::bfloat16:
      return f(__nv_bfloat16{});
    case DType::float16:
      return f(__half{});
  }
  return cudaErrorInvalidValue;
}

inline cudaError_t limits_of_device(DeviceLimits* limits) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&limits->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  limits->shared_bytes -= kStaticSharedBytes;
  return error;
}

template <class... Parameters>
cudaError_t launch_kernel(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes, cudaStream_t stream,
                          const std::type_identity_t<Parameters>&... arguments) {
  if (shared_bytes > kDefaultSharedBytes) {
    // Always the same, so that two threads which launch the kernel with different sizes do not undo each other's.
    DeviceLimits limits;
    cudaError_t error = limits_of_device(&limits);
    if (error != cudaSuccess) return error;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_bytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace fastloss
