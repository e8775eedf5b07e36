#include "layout.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>

#include "ops.h"
#include "refuse.h"

namespace fastloss {

Layout make_layout(const Tensor& input, const OptionalTensor& grad, int64_t class_dim) {
  Layout layout{};
  layout.class_stride = class_dim < 0 ? 1 : input.stride(class_dim);
  layout.grad_class_stride = class_dim < 0 || !grad ? 1 : grad->stride(class_dim);
  layout.extent = 1;
  for (int64_t d = 0; d < input.dim(); ++d) layout.extent += (input.size(d) - 1) * input.stride(d);
  for (int64_t d = 0; d < input.dim(); ++d) {
    int64_t size = input.size(d);
    if (d == class_dim || size == 1) continue;
    int64_t stride = input.stride(d), grad_stride = grad ? grad->stride(d) : 0;
    int32_t last = layout.ndim - 1;
    if (last >= 0 && layout.stride[last] == stride * size && layout.grad_stride[last] == grad_stride * size) {
      layout.size[last] *= size;
    } else {
      if (layout.ndim == kMaxDims) {
        refuse("input has more than ", kMaxDims, " dimensions that cannot be merged; call contiguous() on it.");
      }
      last = layout.ndim++;
      layout.size[last] = size;
    }
    layout.stride[last] = stride;
    layout.grad_stride[last] = grad_stride;
  }
  if (layout.ndim == 0) layout.size[layout.ndim++] = 1;
  return layout;
}

void check_no_overlap(const Tensor& input) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (input.size(d) == 0) return;
    if (input.size(d) > 1) dims.emplace_back(input.stride(d), input.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t span = 1;
  for (auto [stride, size] : dims) {
    if (stride < span) {
      refuse(
          "input has elements that share memory (an expanded tensor?), so its gradient cannot be written over it; "
          "call contiguous() on it, or set inplace_backward=False.");
    }
    span += stride * (size - 1);
  }
}

namespace {

int32_t dtype_code(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    default:
      return aoti_torch_dtype_float32();
  }
}

// By the C interface: torch::stable::new_empty goes through the dispatcher, a tenth of a small op's time.
Tensor empty_strided(const Tensor& like, const int64_t* sizes, const int64_t* strides, int64_t dims, ScalarType dtype) {
  AtenTensorHandle tensor;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, dtype_code(dtype),
                                                  int32_t(like.device().type()), like.get_device_index(), &tensor));
  return Tensor(tensor);
}

}  // namespace

Tensor empty_on_device_of(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d > 1; --d) strides[d - 2] = strides[d - 1] * std::max<int64_t>(sizes[d - 1], 1);
  return empty_strided(like, sizes.data(), strides.data(), int64_t(sizes.size()), dtype);
}

Tensor empty_strided_as(const Tensor& like, ScalarType dtype) {
  return empty_strided(like, like.sizes().data(), like.strides().data(), like.dim(), dtype);
}

Tensor empty_gradient(const Tensor& tensor) {
  if (!tensor.is_contiguous()) return torch::stable::empty_like(tensor);
  return empty_on_device_of(tensor, {tensor.sizes().begin(), tensor.sizes().end()}, tensor.scalar_type());
}

Tensor empty_workspace(const Tensor& tensor, int64_t bytes) {
  return empty_on_device_of(tensor, {(bytes + 7) / 8}, ScalarType::Long);
}

}  // namespace fastloss
