// The CUDA stream that torch uses on a device now.
//
// torch's stable ABI has it from 2.13 on (Stream::nativeHandle). Every torch from 2.10 on has the C function that is
// looked up here, in its CUDA library, which is loaded wherever there is a CUDA tensor. Nothing here is linked to that
// library, as a CPU build of torch has none.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>

namespace fastloss {

inline cudaStream_t current_stream(int32_t device) {
  static const auto get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<AOTITorchError (*)(int32_t, void**)>(found);
  }();
  if (!get) throw std::runtime_error("fastloss could not find torch's current CUDA stream in libtorch_cuda.so.");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fastloss
