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

from . import distributed

__all__ = [
    "asymmetric_loss",
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
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    denominator: Tensor | float | None = None,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    process_group: Any = None,
    inplace_backward: bool = False,
) -> Any:
    """``(1 - eps) * w[y] * nll + eps / C * sum_k w[k] * (logsumexp(x) - x[k])``: ``F.cross_entropy``, in float32; or
    ``sum_k w[k] * ((1 - eps) * target[k] + eps / C) * (logsumexp(x) - x[k])``."""
    x = logits_of(input, logit_scale, softcap)
    class_dim = class_dim_of(x)
    C = x.shape[class_dim]
    if target.is_floating_point():
        mixed = (1 - label_smoothing) * target.to(x.dtype) + label_smoothing / C
        loss = (mixed * _weighted_nll_of_classes(x, weight)).sum(class_dim)
        valid = torch.ones_like(loss, dtype=torch.bool)
        row_weight = torch.ones_like(loss)
    else:
        nll, valid = softmax_nll(x, target, ignore_index)
        row_weight = row_weight_of(weight, target, valid, nll)
        loss = row_weight * nll
        if label_smoothing:
            smooth = torch.where(valid, _weighted_nll_of_classes(x, weight).sum(class_dim), 0)
            loss = (1 - label_smoothing) * loss + label_smoothing / C * smooth
    return _conclude(
        x, loss, valid, row_weight, sample_weight, denominator, z_loss, return_lse, process_group, reduction
    )


def _weighted_nll_of_classes(x: Tensor, weight: Tensor | None) -> Tensor:
    """``w[k] * (logsumexp(x) - x[k])`` of every class, [N, C, ...]."""
    class_dim = class_dim_of(x)
    nll = -x.log_softmax(class_dim)
    if weight is None:
        return nll
    return weight.to(x.dtype).view([-1 if dim == class_dim else 1 for dim in range(x.dim())]) * nll


def focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    sample_weight: Tensor | None = None,
    denominator: Tensor | float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    process_group: Any = None,
    inplace_backward: bool = False,
) -> Any:
    """``w[y] * q**gamma * nll``."""
    x = logits_of(input, logit_scale, softcap)
    nll, valid = softmax_nll(x, target, ignore_index)
    row_weight = row_weight_of(weight, target, valid, nll)
    loss = row_weight * _one_minus_p(nll) ** gamma * nll
    return _conclude(
        x, loss, valid, row_weight, sample_weight, denominator, z_loss, return_lse, process_group, reduction
    )


def poly_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    epsilon: float = 1.0,
    sample_weight: Tensor | None = None,
    denominator: Tensor | float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    process_group: Any = None,
    inplace_backward: bool = False,
) -> Any:
    """``w[y] * (nll + epsilon * q)``."""
    x = logits_of(input, logit_scale, softcap)
    nll, valid = softmax_nll(x, target, ignore_index)
    row_weight = row_weight_of(weight, target, valid, nll)
    loss = row_weight * (nll + epsilon * _one_minus_p(nll))
    return _conclude(
        x, loss, valid, row_weight, sample_weight, denominator, z_loss, return_lse, process_group, reduction
    )


def _conclude(
    x: Tensor,
    loss: Tensor,
    valid: Tensor,
    row_weight: Tensor,
    sample_weight: Tensor | None,
    denominator: Tensor | float | None,
    z_loss: float,
    return_lse: bool,
    process_group: Any,
    reduction: str,
) -> Any:
    """What the softmax losses have in common once each decision's loss is known; x are the logits."""
    if z_loss or return_lse:
        lse = torch.where(valid, x.logsumexp(class_dim_of(x)), 0)
        loss = loss + z_loss * lse**2 if z_loss else loss
    if sample_weight is not None:
        factor = torch.where(valid, sample_weight.to(loss.dtype), 0)
        loss, row_weight = factor * loss, factor * row_weight
    if process_group is not None:
        reduction, denominator = distributed.over_ranks(process_group, reduction, denominator, row_weight.sum())
    value = _reduce(loss, row_weight.sum() if denominator is None else denominator, reduction)
    return (value, lse.detach()) if return_lse else value


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
    power: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    counts: Tensor | None = None,
    denominator: Tensor | float | None = None,
    process_group: Any = None,
    inplace_backward: bool = False,
) -> Tensor:
    """``beta[bin(q)]**power * nll`` with ``beta[b] = N / (n * R[b])``; beta is a constant of the backward pass.

    counts, denominator: R and what "mean" divides by, where they are not of this batch alone."""
    nll, valid = softmax_nll(input, target, ignore_index)
    bin_index = _bin_index(_one_minus_p(nll), bins)
    if counts is None:
        counts = _histogram(bin_index, valid, bins)
    if process_group is not None:
        counts, reduction, denominator = distributed.histogram_over_ranks(process_group, reduction, counts)
    state = (running_histogram, num_updates, training, power)
    beta = ghm_bin_weight(counts, momentum, normalizer, bias_correction, *state)
    return weighted_nll(nll, valid, beta[bin_index], reduction, denominator=denominator)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float | Tensor = 0.25,
    gamma: float | tuple[float, float] = 2.0,
    mask: Tensor | None = None,
    margin: float = 0.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    reduction: str = "none",
    process_group: Any = None,
    inplace_backward: bool = False,
) -> Tensor:
    """``alpha_t * q**gamma * bce(x, t)`` with ``q = p + t - 2 p t`` and ``alpha_t = alpha t + (1 - alpha)(1 - t)``;
    with two gammas or a margin :func:`asymmetric_loss`."""
    factors = (mask, sample_weight, denominator, process_group, reduction)
    if isinstance(gamma, tuple | list) or margin:
        positive, negative = gamma if isinstance(gamma, tuple | list) else (gamma, gamma)
        return _asymmetric(input, target, positive, negative, margin, alpha, *factors)
    x, t = _upcast(input), target.to(_upcast(input).dtype)
    bce, p = _bce(x, t), x.sigmoid()
    # Hard targets: q = 1 - p_target, from the nll so that it stays exact where the prediction is right.
    q = torch.where((t == 0) | (t == 1), _one_minus_p(bce), p + t - 2 * p * t)
    loss = q**gamma * bce
    if isinstance(alpha, Tensor) or alpha >= 0:
        alpha = alpha.to(t.dtype) if isinstance(alpha, Tensor) else alpha
        loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
    return _weighted(input, loss, *factors)


def asymmetric_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
    alpha: float | Tensor = -1.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    reduction: str = "sum",
    process_group: Any = None,
    inplace_backward: bool = False,
) -> Tensor:
    """``t * (1 - p)**gamma_positive * -log(p) + (1 - t) * p_m**gamma_negative * -log(1 - p_m)`` with ``p_m = max(p -
    margin, 0)``; with alpha the first term times that and the second times ``1 - alpha``."""
    factors = (mask, sample_weight, denominator, process_group, reduction)
    return _asymmetric(input, target, gamma_positive, gamma_negative, margin, alpha, *factors)


def _asymmetric(
    input: Tensor,
    target: Tensor,
    gamma_positive: float,
    gamma_negative: float,
    margin: float,
    alpha: float | Tensor,
    *factors: Any,
) -> Tensor:
    x, t = _upcast(input), target.to(_upcast(input).dtype)
    # A term that has no share has no gradient either, whatever its logit is.
    nll = -F.logsigmoid(torch.where(t == 0, 0, x))
    positive = _one_minus_p(nll) ** gamma_positive * nll
    z = torch.where(t == 1, 0, x)
    if margin:
        counts = z.sigmoid() - margin > 0
        p = torch.where(counts, z.sigmoid() - margin, 0.5)
        negative = torch.where(counts | z.isnan(), p**gamma_negative * -torch.log1p(-p), 0)
    else:
        nll = -F.logsigmoid(-z)
        negative = _one_minus_p(nll) ** gamma_negative * nll
    if isinstance(alpha, Tensor) or alpha >= 0:
        alpha = alpha.to(t.dtype) if isinstance(alpha, Tensor) else alpha
        positive, negative = alpha * positive, (1 - alpha) * negative
    loss = t * positive + (1 - t) * negative
    return _weighted(input, loss, *factors)


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
    power: float = 1.0,
    reduction: str = "mean",
    counts: Tensor | None = None,
    denominator: Tensor | float | None = None,
    process_group: Any = None,
    inplace_backward: bool = False,
) -> Tensor:
    """``beta[bin(g)] * bce(x, t)`` with ``g = |sigmoid(x) - t|`` over the decisions with ``mask > 0``."""
    nll, valid = sigmoid_nll(input, target, mask)
    bin_index = _bin_index((_upcast(input).sigmoid() - target.to(nll.dtype)).abs(), bins)
    if counts is None:
        counts = _histogram(bin_index, valid, bins)
    if process_group is not None:
        counts, reduction, denominator = distributed.histogram_over_ranks(process_group, reduction, counts, fewest=1)
    state = (running_histogram, num_updates, training, power)
    beta = ghm_bin_weight(counts, momentum, normalizer, bias_correction, *state)
    # As mmdetection has it: a batch without any valid decision has the mean 0, not nan.
    return weighted_nll(nll, valid, beta[bin_index], reduction, fewest=1, denominator=denominator)


def gradient_norm_histogram(
    input: Tensor, target: Tensor, *, bins: int = 10, ignore_index: int = -100, process_group: Any = None
) -> Tensor:
    """``counts[b]`` = number of decisions with ``min(floor(q * bins), bins - 1) == b``; int64 [bins]."""
    nll, valid = softmax_nll(input, target, ignore_index)
    counts = _histogram(_bin_index(_one_minus_p(nll), bins), valid, bins)
    return counts if process_group is None else distributed.sum_over_ranks(process_group, counts)


def class_dim_of(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _upcast(input: Tensor) -> Tensor:
    """Half-precision logits are computed in float32."""
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def logits_of(input: Tensor, logit_scale: float, softcap: float | None) -> Tensor:
    """``logit_scale * input``, capped: ``softcap * tanh(... / softcap)``."""
    x = _upcast(input) * logit_scale
    return x if softcap is None else softcap * (x / softcap).tanh()


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


def weighted_nll(
    nll: Tensor, valid: Tensor, beta: Tensor, reduction: str, fewest: int = 0, denominator: Tensor | float | None = None
) -> Tensor:
    """GHM-C once the weight of each decision is known. "mean" divides by the number of them, but at least fewest; or by
    denominator."""
    return _reduce(
        beta.to(nll.dtype) * nll, valid.sum().clamp(min=fewest) if denominator is None else denominator, reduction
    )


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


def total_weight(input: Tensor, mask: Tensor | None, sample_weight: Tensor | None) -> Tensor:
    """What the mean of a sigmoid loss divides by, float64."""
    weight = (
        torch.ones((), dtype=torch.float64, device=input.device) if sample_weight is None else sample_weight.double()
    )
    weight = weight.expand(input.shape)
    return weight.sum() if mask is None else torch.where(mask > 0, weight, 0).sum()


def _weighted(
    input: Tensor,
    loss: Tensor,
    mask: Tensor | None,
    sample_weight: Tensor | None,
    denominator: float | Tensor | None,
    process_group: Any,
    reduction: str,
) -> Tensor:
    """A sigmoid loss once it is known of each decision."""
    if denominator is not None and reduction != "mean":
        raise ValueError("denominator is given, but should be None: it is what reduction='mean' divides by.")
    if sample_weight is not None:
        loss = sample_weight.to(loss.dtype) * loss
    if mask is not None:
        loss = torch.where(mask > 0, loss, 0)
    if process_group is not None:
        total = total_weight(input, mask, sample_weight)
        reduction, denominator = distributed.over_ranks(process_group, reduction, denominator, total)
    if reduction != "mean":
        return _reduce(loss, 1, reduction)
    if denominator is None:
        denominator = total_weight(input, mask, sample_weight)
    return _reduce(loss, denominator.squeeze() if isinstance(denominator, Tensor) else denominator, reduction)


def _reduce(loss: Tensor, denominator: Tensor | float, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        # A denominator of float64 does not make the loss one.
        return loss.sum() / (denominator.to(loss.dtype) if isinstance(denominator, Tensor) else denominator)
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
    power: float = 1.0,
) -> Tensor:
    """beta**power [bins], float64. With momentum and training, updates the running statistics in place."""
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
    return torch.where(nonempty, (counts.sum() / (n * histogram)) ** power, 0)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    denominator: Tensor | float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    process_group: Any = None,
) -> Any:
    """Cross entropy of ``input @ linear_weight.T + linear_bias``."""
    settings: dict[str, Any] = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    settings |= {"weight": weight, "denominator": denominator, "z_loss": z_loss, "logit_scale": logit_scale}
    settings |= {"softcap": softcap, "return_lse": return_lse, "process_group": process_group}
    return _of_rows(cross_entropy, input, linear_weight, linear_bias, target, sample_weight, **settings)


def linear_focal_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    denominator: Tensor | float | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    process_group: Any = None,
) -> Any:
    """Focal loss of ``input @ linear_weight.T + linear_bias``."""
    settings: dict[str, Any] = {"gamma": gamma, "ignore_index": ignore_index, "reduction": reduction}
    settings |= {"weight": weight, "denominator": denominator, "z_loss": z_loss, "logit_scale": logit_scale}
    settings |= {"softcap": softcap, "return_lse": return_lse, "process_group": process_group}
    return _of_rows(focal_loss, input, linear_weight, linear_bias, target, sample_weight, **settings)


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
    power: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    process_group: Any = None,
) -> Tensor:
    """GHM-C of ``input @ linear_weight.T + linear_bias``."""
    settings: dict[str, Any] = {
        "bins": bins,
        "momentum": momentum,
        "normalizer": normalizer,
        "bias_correction": bias_correction,
    }
    state = {"running_histogram": running_histogram, "num_updates": num_updates, "training": training, "power": power}
    settings |= {"ignore_index": ignore_index, "reduction": reduction, "process_group": process_group, **state}
    return _of_rows(ghmc_loss, input, linear_weight, linear_bias, target, **settings)


def _of_rows(
    function: Callable[..., Any],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    sample_weight: Tensor | None = None,
    **settings: Any,
) -> Any:
    """Classes last, as a linear layer has them."""
    logits = F.linear(input, linear_weight, linear_bias)
    if sample_weight is not None:
        settings["sample_weight"] = sample_weight.expand(target.shape).flatten()
    loss = function(logits.reshape(-1, logits.shape[-1]), target.flatten(), **settings)
    shape = target.shape if settings["reduction"] == "none" else ()
    return (loss[0].view(shape), loss[1].view(target.shape)) if isinstance(loss, tuple) else loss.view(shape)
