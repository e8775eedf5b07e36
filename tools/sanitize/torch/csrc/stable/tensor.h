// In place of torch's header, so that csrc/cpu/device.cpp builds without torch: nothing here is ever called.
#pragma once

namespace torch::stable {

struct Tensor {
  void* mutable_data_ptr() const { return nullptr; }
};

}  // namespace torch::stable
