"""The losses as functions. Each returns the loss and, when ``input`` requires grad, has its gradient ready.

Shared by all:

- ``input``: logits; float32, float64, bfloat16 or float16, any strides. Half-precision logits are computed in float32
  and give a float32 loss; the gradient has the logits' dtype. Autocast leaves them as they are.
- ``reduction``: ``"none"``, ``"mean"`` or ``"sum"``.
- ``inplace_backward``: write the gradient over the logits' own memory. It saves a tensor of the logits' size and, on
  CPU, its page faults: forward and backward of cross entropy at 2048 × 32000, float32, 2 cores, default malloc, took
  9 ms with it, 23 ms without and 159 ms under ``torch.compile`` (benchmarks/RESULTS.md). **The logits are
  destroyed** by the call (if they require grad). Their version counter is bumped, so autograd refuses where another
  operation had saved them; a second backward pass and ``create_graph=True`` are refused. Leave it off for logits that
  anything else still reads. Under ``torch.compile`` it changes nothing: the compiler sees whether something does.

The softmax losses have the semantics of :func:`torch.nn.functional.cross_entropy`:

- ``input`` is ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``; ``target`` has its shape without the class dimension and
  holds class indices in ``[0, C)``, or ``ignore_index``, as int64 or int32.
- ``weight`` ``(C)``: a factor for each class. ``"mean"`` divides by the sum of ``weight[target]`` over the decisions
  that are not ignored; with all ignored it is nan, and ``"sum"`` 0.
- ``sample_weight``: a factor for each decision, of target's shape or one that broadcasts to it; ``"mean"`` divides by
  the sum of ``weight[target] * sample_weight``.
- ``denominator``: what ``"mean"`` divides by instead, a number or a tensor of one, which is read on the device:
  Trainer's ``num_items_in_batch``, mmdetection's ``avg_factor``. The gradient is then written as it is to be, where
  ``"sum"`` and a division would read and write all of it a second time.
- ``logit_scale``, ``softcap``: the loss is that of the logits ``logit_scale * input``, or with a cap
  ``softcap * tanh(logit_scale * input / softcap)`` (Gemma 2, section 2).
- ``z_loss``: adds ``z_loss * logsumexp(logits)**2`` to each decision's loss (Chowdhery et al. 2022, "PaLM", section 5).
- ``return_lse``: also return ``logsumexp(logits)`` of each decision, 0 where it is ignored; without a gradient.
- ``process_group``: a ``torch.distributed`` group whose ranks share one mean and one histogram, so that DDP gives the
  gradient of one process on the whole batch. One ``all_reduce`` of a few numbers; every rank has to make the call.

Errors, each a sentence that names the argument: ``IndexError`` for a target out of range, ``ValueError`` for every
other argument, ``RuntimeError`` for what autograd cannot do, and for an argument of the wrong Python type, where the
sentence is torch's. The arguments are checked before anything is written.

Double backward (``create_graph=True``), forward-mode AD and ``torch.func``'s transforms go through
:mod:`fastloss.reference`: right, at its speed.

A decision that is ignored or masked has the gradient 0, whatever its logits and whatever gradient comes from above.
"""

from typing import Any

import torch
from torch import Tensor

from . import autograd, distributed, reference

_PAIR = (tuple, list)  # a union written in place is built anew in every call


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
    """Cross entropy with label smoothing: :func:`torch.nn.functional.cross_entropy`, loss and gradient in one pass.

    With ``nll = logsumexp(x) - x[y]``, ``w`` the class weights and ``eps`` the smoothing, a decision's loss is
    ``(1 - eps) * w[y] * nll + eps / C * sum_k w[k] * (logsumexp(x) - x[k])``
    (label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7). Where the target is
    class probabilities t, it is ``sum_k w[k] * ((1 - eps) * t[k] + eps / C) * (logsumexp(x) - x[k])``.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32; or class probabilities of input's
            shape, of a floating dtype, which get no gradient. They are read as they lie if that is as input lies, else
            they are copied first.
        weight: ``(C)``, a factor for each class.
        size_average, reduce: in torch's place, for positional calls; they should be None.
        ignore_index: the target that contributes neither loss nor gradient; should be negative for probabilities.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. With probabilities ``"mean"`` divides by the number of
            decisions, or the sum of sample_weight.
        label_smoothing: in [0, 1].
        sample_weight: a factor for each decision; broadcasts to target's shape.
        denominator: what ``"mean"`` divides by instead of the sum of weights; a number or a tensor of one.
        z_loss: in [0, 10000], the factor of ``logsumexp(logits)**2``.
        logit_scale: in [1e-6, 1e6], what input is multiplied by.
        softcap: in [1e-6, 1e6], the bound of the logits; None for none.
        return_lse: also return logsumexp of the logits.
        process_group: the ranks that share one mean; None for this process alone.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or target's shape (that of a class less for probabilities) for ``"none"``; float32 (float64 for
        float64 logits). With return_lse a pair of that and of as many logsumexp as decisions.

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> fastloss.cross_entropy(logits, torch.tensor([0, 2]), label_smoothing=0.1)
        tensor(0.7357)
        >>> fastloss.cross_entropy(logits, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
        tensor(1.1691)
        >>> fastloss.cross_entropy(logits, torch.tensor([0, 2]), denominator=4)
        tensor(0.3345)
    """
    if size_average is not None or reduce is not None:
        raise ValueError("size_average and reduce are deprecated in torch and should be None here; use reduction.")
    reduction, denominator = _over_ranks(
        process_group, reduction, denominator, input, target, weight, sample_weight, ignore_index
    )
    tensors = (target, weight, sample_weight, denominator)
    settings = (label_smoothing, z_loss, logit_scale, softcap, return_lse, ignore_index, reduction)
    return autograd.fused_loss("cross_entropy", input, inplace_backward, *tensors, *settings)


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
    """Softmax focal loss: ``w[y] * (1 - p)**gamma * nll`` with ``p = exp(-nll)`` the probability of the target.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.2, for any number of classes. Value and
    gradient are finite for every ``gamma >= 0``, also at p = 1; ``gamma=0`` is cross entropy.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32.
        weight: ``(C)``, a factor for each class (the paper's alpha).
        gamma: in [0, 16]; how much less a decision counts as it gets right.
        sample_weight: a factor for each decision; broadcasts to target's shape.
        denominator: what ``"mean"`` divides by instead of the sum of weights; a number or a tensor of one.
        ignore_index: the target that contributes neither loss nor gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. ``"mean"`` divides by the sum of ``weight[target]``, as cross
            entropy does, never by ``N * C``.
        z_loss: in [0, 10000], the factor of ``logsumexp(logits)**2``.
        logit_scale: in [1e-6, 1e6], what input is multiplied by.
        softcap: in [1e-6, 1e6], the bound of the logits; None for none.
        return_lse: also return logsumexp of the logits.
        process_group: the ranks that share one mean; None for this process alone.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64 logits). With return_lse a pair of
        that and of target's shape.

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> fastloss.focal_loss(logits, torch.tensor([0, 2]))
        tensor(0.2496)
    """
    reduction, denominator = _over_ranks(
        process_group, reduction, denominator, input, target, weight, sample_weight, ignore_index
    )
    tensors = (target, weight, sample_weight, denominator)
    settings = (gamma, z_loss, logit_scale, softcap, return_lse, ignore_index, reduction)
    return autograd.fused_loss("focal_loss", input, inplace_backward, *tensors, *settings)


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
    """GHM-C, the gradient harmonising mechanism: ``beta[bin(g)] * nll`` with the gradient norm ``g = 1 - p``.

    Li et al. 2019, "Gradient Harmonized Single-stage Detector", section 3.2, for softmax. ``bin = min(floor(g * bins),
    bins - 1)``; with R[b] decisions in bin b, N in all and n bins that are not empty, ``beta[b] = N / (n * R[b])``:
    every filled bin weighs the same, and the mean of beta over the batch is 1. beta is a constant of the backward pass.

    With ``momentum`` m > 0, R is a running count for each bin: ``S[b] = m * S[b] + (1 - m) * R[b]`` for the bins that
    this batch fills, divided by ``1 - m**t[b]`` (t: updates of that bin) unless ``bias_correction`` is off. In
    training mode the two state tensors are updated in place; else they weight the loss and stay. A bin without
    history is weighted by this batch's count.

    The upper bins of a batch hold few decisions, a handful of 800 in tagging, so that their weights jump from batch to
    batch (0.1 to 142 was seen) and the gradient is mostly noise. More bins with momentum (30 and 0.9) smooth that in
    time; ``power=0.5``, the square root of beta, damps it at once. docs/study.md has what they come to.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32.
        bins: in [1, 65536].
        momentum: in [0, 1).
        normalizer: ``"nonempty"`` (n = non-empty bins of this batch, as the authors' code has it) or ``"bins"``
            (n = bins, the paper's equation).
        bias_correction: correct the running counts for their start at zero. False gives mmdetection's numbers.
        running_histogram: S, float64 ``(bins)``; needed with momentum.
        num_updates: t, int64 ``(bins)``; needed with momentum.
        training: update the state.
        power: in [0, 1], of beta: 1 is GHM-C, 0 cross entropy.
        ignore_index: the target that contributes neither loss nor gradient, and is not counted.
        reduction: ``"none"``, ``"mean"`` (divides by N) or ``"sum"``.
        counts: R, int64 ``(bins)``, where it is not of this call's decisions alone but of a larger batch that they are
            a part of; from :func:`gradient_norm_histogram`.
        denominator: what ``"mean"`` divides by instead of the number of decisions; a number or a tensor of one.
        process_group: the ranks that share one histogram, one mean and so the same running statistics; None for this
            process alone.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> fastloss.ghmc_loss(logits, torch.tensor([0, 0, 2]), reduction="none")
        tensor([0.1797, 0.1797, 1.6479])
    """
    if process_group is not None:
        if counts is not None or denominator is not None:
            raise ValueError(
                "counts or denominator is given beside process_group, which sums them over the ranks itself."
            )
        counts = gradient_norm_histogram(input, target, bins=bins, ignore_index=ignore_index)
        counts, reduction, denominator = distributed.histogram_over_ranks(process_group, reduction, counts)
    state = (running_histogram, num_updates, bins, momentum, normalizer, bias_correction, training, power)
    return autograd.fused_loss(
        "ghmc_loss", input, inplace_backward, target, counts, denominator, *state, ignore_index, reduction
    )


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
    """Sigmoid focal loss: ``alpha_t * (1 - p_t)**gamma * bce(x, t)``, the values of torchvision's.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3: with ``p = sigmoid(x)``,
    ``p_t = p t + (1 - p)(1 - t)`` and ``alpha_t = alpha t + (1 - alpha)(1 - t)``. Targets may be soft.

    With two gammas, or a margin, it is :func:`asymmetric_loss` with this ``alpha``: for targets of 0 and 1 the same
    formula, for a soft target another, ``t`` of the positive term and ``1 - t`` of the negative one.

    Args:
        input: logits of any shape; each element is a decision of its own.
        target: the same shape, in [0, 1], any dtype.
        alpha: in [0, 1], the weight of the positive class; negative for none. Or a tensor that broadcasts over input's
            shape, such as ``(C)`` for a number a class, the last dimension.
        gamma: in [0, 16]; or two, of the positive and of the negative class.
        mask: input's shape; an element counts where it is > 0. None: all count.
        margin: in [0, 1]; by how much the probability of negatives is lowered.
        sample_weight: a factor of each element's loss, a tensor that broadcasts over input's shape: ``(N, 1)`` has one
            a row, ``(C)`` one a class.
        denominator: what ``"mean"`` divides by, a number or a tensor of one on input's device, such as the number of
            positives (mmdetection's ``avg_factor``). It costs no second pass over the gradient, as dividing a sum does.
        reduction: ``"none"`` (torchvision's default), ``"mean"`` or ``"sum"``. ``"mean"`` divides by the number of
            elements that count, or by the sum of their ``sample_weight``.
        process_group: the ranks that share one mean; None for this process alone.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or input's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        ValueError: an argument that is not as described.

    Example:
        >>> fastloss.sigmoid_focal_loss(torch.tensor([2.0, -2.0]), torch.tensor([1.0, 1.0]))
        tensor([0.0005, 0.4125])
    """
    paired = isinstance(gamma, _PAIR)
    if paired or margin != 0:
        if paired and len(gamma) != 2:  # type: ignore[arg-type]
            raise ValueError(f"gamma is {gamma!r}, but should be a number, or two: of positives and of negatives.")
        pair: Any = gamma if paired else (gamma, gamma)
        return asymmetric_loss(
            input,
            target,
            gamma_positive=pair[0],
            gamma_negative=pair[1],
            margin=margin,
            alpha=alpha,
            mask=mask,
            sample_weight=sample_weight,
            denominator=denominator,
            reduction=reduction,
            process_group=process_group,
            inplace_backward=inplace_backward,
        )
    reduction, denominator = _sigmoid_over_ranks(process_group, reduction, denominator, input, mask, sample_weight)
    class_alpha, alpha = autograd.tensor_and_number(alpha)
    tensors = (_as_bool(mask), class_alpha, sample_weight, denominator)
    return autograd.fused_loss("sigmoid_focal_loss", input, inplace_backward, target, *tensors, alpha, gamma, reduction)


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
    """Asymmetric loss (ASL): focal loss with a gamma for each class, whose negatives' probability is shifted.

    Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification", section 3.2: with ``p = sigmoid(x)`` and
    ``p_m = max(p - margin, 0)`` a positive's loss is ``(1 - p)**gamma_positive * -log(p)`` and a negative's
    ``p_m**gamma_negative * -log(1 - p_m)``: negatives below the margin are discarded, and so are hopeless ones, which
    may be labelled wrongly. A soft target ``t`` has ``t`` of the first and ``1 - t`` of the second.

    The defaults are the paper's. For targets of 0 and 1 the value is that of the authors' code, which takes
    ``gamma_pos=1`` by default, wherever the logits are between -18 and 18; beyond, their logarithms stop at 1e-8, so a
    hopeless positive has no gradient there, and has it here. The gradient is the paper's (section 3.3), that of the
    loss itself, as theirs with ``disable_torch_grad_focal_loss=False`` (by default their code takes the factor for a
    constant).

    Args:
        input: logits of any shape; each element is a decision of its own.
        target: the same shape, in [0, 1], any dtype.
        gamma_positive: in [0, 16].
        gamma_negative: in [0, 16].
        margin: in [0, 1].
        alpha, mask, sample_weight, denominator: as in :func:`sigmoid_focal_loss`; without ``alpha`` by default.
        reduction: ``"none"``, ``"mean"``, as in :func:`sigmoid_focal_loss`, or ``"sum"``, as the authors have it.
        process_group: the ranks that share one mean; None for this process alone.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or input's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        ValueError: an argument that is not as described.

    Example:
        >>> logits, target = torch.tensor([2.0, 2.0, -3.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> fastloss.asymmetric_loss(logits, target, reduction="none")
        tensor([0.1269, 0.8464, 0.0000])
    """
    reduction, denominator = _sigmoid_over_ranks(process_group, reduction, denominator, input, mask, sample_weight)
    class_alpha, alpha = autograd.tensor_and_number(alpha)
    tensors = (_as_bool(mask), class_alpha, sample_weight, denominator)
    shape = (gamma_positive, gamma_negative, margin)
    return autograd.fused_loss("asymmetric_loss", input, inplace_backward, target, *tensors, alpha, *shape, reduction)


def _as_bool(mask: Tensor | None) -> Tensor | None:
    """The mask that the ops take: where it is > 0."""
    if mask is not None and isinstance(mask, Tensor) and mask.dtype != torch.bool:
        if mask.is_complex():
            raise ValueError(
                f"mask has dtype {mask.dtype}, but should be bool, or numbers that count where they are > 0."
            )
        return mask > 0
    return mask


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
    """Sigmoid GHM-C: ``beta[bin(g)] * bce(x, t)`` with ``g = |sigmoid(x) - t|``, the values of mmdetection's.

    Li et al. 2019, "Gradient Harmonized Single-stage Detector", section 3.2. :func:`ghmc_loss` says what beta, the
    bins and the running statistics are; here the decisions are the elements with ``mask > 0``.

    Args:
        input: logits of any shape; each element is a decision of its own.
        target: the same shape, in [0, 1], any dtype.
        mask: the same shape; an element counts where it is > 0 (mmdetection's label weight). None: all count.
        bins, momentum, normalizer, bias_correction, running_histogram, num_updates, training, power: as in
            :func:`ghmc_loss`. ``momentum > 0, bias_correction=False`` gives mmdetection's running statistics.
        reduction: ``"none"``, ``"mean"`` (divides by the number of decisions that count, at least 1) or ``"sum"``.
        counts, denominator, process_group: as in :func:`ghmc_loss`.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or input's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        ValueError: an argument that is not as described.

    Example:
        >>> fastloss.sigmoid_ghmc_loss(torch.tensor([2.0, 2.0, -2.0]), torch.tensor([1.0, 1.0, 1.0]))
        tensor(1.1269)
    """
    mask = _as_bool(mask)
    if process_group is not None:
        if counts is not None or denominator is not None:
            raise ValueError(
                "counts or denominator is given beside process_group, which sums them over the ranks itself."
            )
        autograd.check_tensor("input", input)
        counts, _ = torch.ops.fastloss.sigmoid_gradient_norms(input.detach(), target, mask, bins)
        counts, reduction, denominator = distributed.histogram_over_ranks(process_group, reduction, counts, fewest=1)
    state = (running_histogram, num_updates, bins, momentum, normalizer, bias_correction, training, power)
    tensors = (target, mask, counts, denominator)
    return autograd.fused_loss("sigmoid_ghmc_loss", input, inplace_backward, *tensors, *state, reduction)


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
    """Poly-1 loss: ``w[y] * (nll + epsilon * (1 - p))`` with ``p = exp(-nll)`` the probability of the target.

    Leng et al. 2022, "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", section 4.1:
    cross entropy with the first term of its series in ``1 - p`` weighted by ``1 + epsilon``.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32.
        weight: ``(C)``, a factor for each class.
        epsilon: in [-1, 10000]; > 0 raises the gradient of decisions that are right already, < 0 lowers it.
        sample_weight: a factor for each decision; broadcasts to target's shape.
        denominator: what ``"mean"`` divides by instead of the sum of weights; a number or a tensor of one.
        ignore_index: the target that contributes neither loss nor gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        z_loss: in [0, 10000], the factor of ``logsumexp(logits)**2``.
        logit_scale: in [1e-6, 1e6], what input is multiplied by.
        softcap: in [1e-6, 1e6], the bound of the logits; None for none.
        return_lse: also return logsumexp of the logits.
        process_group: the ranks that share one mean; None for this process alone.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64 logits). With return_lse a pair of
        that and of target's shape.

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> fastloss.poly_loss(logits, torch.tensor([0, 2]), reduction="none")
        tensor([0.4526, 1.7653])
    """
    reduction, denominator = _over_ranks(
        process_group, reduction, denominator, input, target, weight, sample_weight, ignore_index
    )
    tensors = (target, weight, sample_weight, denominator)
    settings = (epsilon, z_loss, logit_scale, softcap, return_lse, ignore_index, reduction)
    return autograd.fused_loss("poly_loss", input, inplace_backward, *tensors, *settings)


def gradient_norm_histogram(
    input: Tensor,
    target: Tensor,
    *,
    bins: int = 10,
    ignore_index: int = -100,
    process_group: Any = None,
) -> Tensor:
    """How many decisions have which gradient norm ``g = 1 - p``: R of :func:`ghmc_loss`, without a gradient.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32.
        bins: in [1, 65536], of equal width over [0, 1].
        ignore_index: the target that is not counted.
        process_group: the ranks whose decisions are counted; None for this process alone.

    Returns:
        int64 ``(bins)``.

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> fastloss.gradient_norm_histogram(logits, torch.tensor([0, 0, 2]), bins=5)
        tensor([0, 2, 0, 1, 0])
    """
    autograd.check_tensor("input", input)
    counts, _ = torch.ops.fastloss.gradient_norms(input.detach(), target, bins, ignore_index)
    if process_group is not None:
        distributed.size_of(process_group)
        counts = distributed.sum_over_ranks(process_group, counts)
    return counts


def _over_ranks(
    process_group: Any,
    reduction: str,
    denominator: Tensor | float | None,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
) -> tuple[str, Tensor | float | None]:
    """``(reduction, denominator)`` of this rank's softmax loss."""
    if process_group is None:
        return reduction, denominator
    distributed.size_of(process_group)
    autograd.check_tensor("input", input)
    autograd.check_tensor("target", target)
    if target.is_floating_point():
        row_weight = input.new_ones(autograd.decisions_of(input), dtype=torch.float64)
    else:
        row_weight = reference.row_weight_of(weight, target, target != ignore_index, input.new_empty(0).double())
    if sample_weight is not None:
        row_weight = torch.where(row_weight == 0, 0, row_weight * sample_weight.double())
    return distributed.over_ranks(process_group, reduction, denominator, row_weight.sum())


def _sigmoid_over_ranks(
    process_group: Any,
    reduction: str,
    denominator: Tensor | float | None,
    input: Tensor,
    mask: Tensor | None,
    sample_weight: Tensor | None,
) -> tuple[str, Tensor | float | None]:
    """``(reduction, denominator)`` of this rank's sigmoid loss."""
    if process_group is None:
        return reduction, denominator
    distributed.size_of(process_group)
    autograd.check_tensor("input", input)
    return distributed.over_ranks(
        process_group, reduction, denominator, reference.total_weight(input, mask, sample_weight)
    )
