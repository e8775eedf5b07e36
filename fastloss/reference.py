"""The specification: every loss in a few lines of plain PyTorch, with the signature of its fused counterpart.

It is the oracle of the tests and a baseline of the benchmarks, never a silent fallback. Shapes, errors and the meaning
of the arguments are documented in :mod:`fastloss.functional`; this file says what the numbers are. Everything is a
function of one number per decision, ``nll = -log p_target``, and of ``q = 1 - p_target``.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "cross_entropy",
    "focal_loss",
    "ghmc_loss",
    "gradient_norm_histogram",
    "linear_cross_entropy",
    "linear_focal_loss",
    "linear_ghmc_loss",
    "poly_loss",
    "sigmoid_focal_loss",
    "sigmoid_ghmc_loss",
]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    inplace_backward: bool = False,
) -> Tensor:
    """``(1 - eps) * w[y] * nll + eps / C * sum_k w[k] * (logsumexp(x) - x[k])``: ``F.cross_entropy``, in float32."""
    nll, valid = softmax_nll(input, target, ignore_index)
    row_weight = row_weight_of(weight, target, valid, nll)
    loss = row_weight * nll
    if label_smoothing:
        class_dim = class_dim_of(input)
        weighted_nll = -_upcast(input).log_softmax(class_dim)  # [N, C, ...]
        if weight is not None:
            shape = [-1 if dim == class_dim else 1 for dim in range(input.dim())]
            weighted_nll = weighted_nll * weight.to(nll.dtype).view(shape)
        smooth = torch.where(valid, weighted_nll.sum(class_dim), 0)
        loss = (1 - label_smoothing) * loss + label_smoothing / input.shape[class_dim] * smooth
    return _reduce(loss, row_weight.sum(), reduction)


def focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """``w[y] * q**gamma * nll``."""
    nll, valid = softmax_nll(input, target, ignore_index)
    row_weight = row_weight_of(weight, target, valid, nll)
    return _reduce(row_weight * _one_minus_p(nll) ** gamma * nll, row_weight.sum(), reduction)


def poly_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    epsilon: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """``w[y] * (nll + epsilon * q)``."""
    nll, valid = softmax_nll(input, target, ignore_index)
    row_weight = row_weight_of(weight, target, valid, nll)
    return _reduce(row_weight * (nll + epsilon * _one_minus_p(nll)), row_weight.sum(), reduction)


def ghmc_loss(
    input: Tensor,
    target: Tensor,
    *,
    bins: int = 10,
    momentum: float = 0.0,
    normalizer: str = "nonempty",
    bias_correction: bool = True,
    running_histogram: Tensor | None = None,
    num_updates: Tensor | None = None,
    training: bool = True,
    ignore_index: int = -100,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """``beta[bin(q)] * nll`` with ``beta[b] = N / (n * R[b])``; beta is a constant of the backward pass."""
    nll, valid = softmax_nll(input, target, ignore_index)
    bin_index = _bin_index(_one_minus_p(nll), bins)
    counts = _histogram(bin_index, valid, bins)
    beta = ghm_bin_weight(counts, momentum, normalizer, bias_correction, running_histogram, num_updates, training)
    return weighted_nll(nll, valid, beta[bin_index], reduction)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    inplace_backward: bool = False,
) -> Tensor:
    """``alpha_t * q**gamma * bce(x, t)`` with ``q = p + t - 2 p t`` and ``alpha_t = alpha t + (1 - alpha)(1 - t)``."""
    x, t = _upcast(input), target.to(_upcast(input).dtype)
    bce, p = _bce(x, t), x.sigmoid()
    # Hard targets: q = 1 - p_target, from the nll so that it stays exact where the prediction is right.
    q = torch.where((t == 0) | (t == 1), _one_minus_p(bce), p + t - 2 * p * t)
    loss = q**gamma * bce
    if alpha >= 0:
        loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
    return _reduce(loss, loss.numel(), reduction)


def sigmoid_ghmc_loss(
    input: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    bins: int = 10,
    momentum: float = 0.0,
    normalizer: str = "nonempty",
    bias_correction: bool = True,
    running_histogram: Tensor | None = None,
    num_updates: Tensor | None = None,
    training: bool = True,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """``beta[bin(g)] * bce(x, t)`` with ``g = |sigmoid(x) - t|`` over the decisions with ``mask > 0``."""
    nll, valid = sigmoid_nll(input, target, mask)
    bin_index = _bin_index((_upcast(input).sigmoid() - target.to(nll.dtype)).abs(), bins)
    counts = _histogram(bin_index, valid, bins)
    beta = ghm_bin_weight(counts, momentum, normalizer, bias_correction, running_histogram, num_updates, training)
    # As mmdetection has it: a batch without any valid decision has the mean 0, not nan.
    return weighted_nll(nll, valid, beta[bin_index], reduction, fewest=1)


def gradient_norm_histogram(input: Tensor, target: Tensor, *, bins: int = 10, ignore_index: int = -100) -> Tensor:
    """``counts[b]`` = number of decisions with ``min(floor(q * bins), bins - 1) == b``; int64 [bins]."""
    nll, valid = softmax_nll(input, target, ignore_index)
    return _histogram(_bin_index(_one_minus_p(nll), bins), valid, bins)


def class_dim_of(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _upcast(input: Tensor) -> Tensor:
    """Half-precision logits are computed in float32."""
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def softmax_nll(input: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """``(nll, valid)``, both of target's shape; an ignored row has nll 0 and no gradient."""
    class_dim = class_dim_of(input)
    valid = target != ignore_index
    index = torch.where(valid, target, 0).long().unsqueeze(class_dim)
    nll = -_upcast(input).log_softmax(class_dim).gather(class_dim, index).squeeze(class_dim)
    return torch.where(valid, nll, 0), valid


def sigmoid_nll(input: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(nll, valid)``, both of input's shape; where mask is not > 0 nll is 0 and without gradient."""
    x = _upcast(input)
    valid = torch.ones_like(x, dtype=torch.bool) if mask is None else mask > 0
    return torch.where(valid, _bce(x, target.to(x.dtype)), 0), valid


def weighted_nll(nll: Tensor, valid: Tensor, beta: Tensor, reduction: str, fewest: int = 0) -> Tensor:
    """GHM-C once the weight of each decision is known. fewest: what "mean" divides by at least."""
    return _reduce(beta.to(nll.dtype) * nll, valid.sum().clamp(min=fewest), reduction)


def _bce(x: Tensor, t: Tensor) -> Tensor:
    """Binary cross entropy; for a hard target it is ``nll = softplus(-z)``, z = x if the label is 1 else -x."""
    hard = (t == 0) | (t == 1)
    return -torch.where(hard, F.logsigmoid(torch.where(t == 1, x, -x)), F.logsigmoid(-x) + torch.where(hard, 0, x * t))


def _one_minus_p(nll: Tensor) -> Tensor:
    # The clamp keeps the slope finite: 0 * inf at nll = 0 with gamma < 1, inf * 0 at nll = inf.
    return -torch.expm1(-nll.clamp(torch.finfo(nll.dtype).tiny, 100))


def row_weight_of(weight: Tensor | None, target: Tensor, valid: Tensor, nll: Tensor) -> Tensor:
    if weight is None:
        return valid.to(nll.dtype)
    return torch.where(valid, weight.to(nll.dtype)[torch.where(valid, target, 0).long()], 0)


def _reduce(loss: Tensor, denominator: Tensor | int, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / denominator
    raise ValueError(f"reduction is {reduction!r}, but should be 'none', 'mean' or 'sum'.")


@torch.no_grad()
def _bin_index(gradient_norm: Tensor, bins: int) -> Tensor:
    return (gradient_norm.nan_to_num(nan=1.0) * bins).floor().long().clamp(max=bins - 1)


def _histogram(bin_index: Tensor, valid: Tensor, bins: int) -> Tensor:
    counts = torch.zeros(bins, dtype=torch.int64, device=bin_index.device)
    return counts.scatter_add(0, bin_index.flatten(), valid.flatten().long())


@torch.no_grad()
def ghm_bin_weight(
    counts: Tensor,
    momentum: float,
    normalizer: str,
    bias_correction: bool,
    running_histogram: Tensor | None,
    num_updates: Tensor | None,
    training: bool,
) -> Tensor:
    """beta [bins], float64. With momentum and training, updates the running statistics in place."""
    nonempty = counts > 0
    histogram = counts.double()  # S_b: what divides N
    if momentum > 0:
        assert running_histogram is not None and num_updates is not None
        if training:
            updated = momentum * running_histogram + (1 - momentum) * histogram
            running_histogram.copy_(torch.where(nonempty, updated, running_histogram))
            num_updates.add_(nonempty)
        correction = 1 - momentum ** num_updates.double() if bias_correction else 1.0
        # A bin that no training step has filled has no history: it is weighted by this batch's own count.
        histogram = torch.where(num_updates > 0, running_histogram / correction, histogram)
    n = nonempty.sum() if normalizer == "nonempty" else counts.numel()
    return torch.where(nonempty, counts.sum() / (n * histogram), 0)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of ``input @ linear_weight.T + linear_bias``."""
    settings = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    return _of_rows(cross_entropy, input, linear_weight, linear_bias, target, weight=weight, **settings)


def linear_focal_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss of ``input @ linear_weight.T + linear_bias``."""
    settings = {"gamma": gamma, "ignore_index": ignore_index, "reduction": reduction}
    return _of_rows(focal_loss, input, linear_weight, linear_bias, target, weight=weight, **settings)


def linear_ghmc_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    bins: int = 10,
    momentum: float = 0.0,
    normalizer: str = "nonempty",
    bias_correction: bool = True,
    running_histogram: Tensor | None = None,
    num_updates: Tensor | None = None,
    training: bool = True,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """GHM-C of ``input @ linear_weight.T + linear_bias``."""
    settings = {"bins": bins, "momentum": momentum, "normalizer": normalizer, "bias_correction": bias_correction}
    state = {"running_histogram": running_histogram, "num_updates": num_updates, "training": training}
    settings |= {"ignore_index": ignore_index, "reduction": reduction}
    return _of_rows(ghmc_loss, input, linear_weight, linear_bias, target, **settings, **state)


def _of_rows(
    function: Callable[..., Tensor],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    **settings: Any,
) -> Tensor:
    """Classes last, as a linear layer has them."""
    logits = F.linear(input, linear_weight, linear_bias)
    return function(logits.reshape(-1, logits.shape[-1]), target.flatten(), **settings).reshape(
        target.shape if settings["reduction"] == "none" else ()
    )
