// Where a tensor's elements lie, and new tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../losses/params.h"

namespace fastloss {

using torch::headeronly::ScalarType;

// Merges the dimensions other than class_dim (-1: none) where memory allows it in the input and in the gradient.
Layout make_layout(const torch::stable::Tensor& input, const std::optional<torch::stable::Tensor>& grad,
                   int64_t class_dim);

// Of a shape (C), (N, C) or (N, C, d1, ...).
inline int64_t class_dim_of(const torch::stable::Tensor& input) { return input.dim() == 1 ? 0 : 1; }

// A gradient is written element by element: two of its elements in one place would be a race, and wrong.
void check_no_overlap(const torch::stable::Tensor& input);

// Uninitialised, contiguous, on like's device.
torch::stable::Tensor empty_on_device_of(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes,
                                         ScalarType dtype);

// Uninitialised, with like's shape, strides and device.
torch::stable::Tensor empty_strided_as(const torch::stable::Tensor& like, ScalarType dtype);

}  // namespace fastloss
