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

Errors, each a sentence that names the argument: ``IndexError`` for a target out of range, ``ValueError`` for every
other argument, ``RuntimeError`` for what autograd cannot do, and for an argument of the wrong Python type, where the
sentence is torch's. The arguments are checked before anything is written.

Double backward (``create_graph=True``), forward-mode AD and ``torch.func``'s transforms go through
:mod:`fastloss.reference`: right, at its speed.

A decision that is ignored or masked has the gradient 0, whatever its logits and whatever gradient comes from above.
"""

import torch
from torch import Tensor

from . import autograd


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
    """Cross entropy with label smoothing: :func:`torch.nn.functional.cross_entropy`, loss and gradient in one pass.

    With ``nll = logsumexp(x) - x[y]``, ``w`` the class weights and ``eps`` the smoothing, a decision's loss is
    ``(1 - eps) * w[y] * nll + eps / C * sum_k w[k] * (logsumexp(x) - x[k])``
    (label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7).

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32.
        weight: ``(C)``, a factor for each class.
        ignore_index: the target that contributes neither loss nor gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        label_smoothing: in [0, 1].
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> fastloss.cross_entropy(logits, torch.tensor([0, 2]), label_smoothing=0.1)
        tensor(0.7357)
    """
    return autograd.fused_loss(
        "cross_entropy", input, inplace_backward, target, weight, label_smoothing, ignore_index, reduction
    )


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
    """Softmax focal loss: ``w[y] * (1 - p)**gamma * nll`` with ``p = exp(-nll)`` the probability of the target.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.2, for any number of classes. Value and
    gradient are finite for every ``gamma >= 0``, also at p = 1; ``gamma=0`` is cross entropy.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32.
        weight: ``(C)``, a factor for each class (the paper's alpha).
        gamma: in [0, 16]; how much less a decision counts as it gets right.
        ignore_index: the target that contributes neither loss nor gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. ``"mean"`` divides by the sum of ``weight[target]``, as cross
            entropy does, never by ``N * C``.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> fastloss.focal_loss(logits, torch.tensor([0, 2]))
        tensor(0.2496)
    """
    return autograd.fused_loss("focal_loss", input, inplace_backward, target, weight, gamma, ignore_index, reduction)


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
    """GHM-C, the gradient harmonising mechanism: ``beta[bin(g)] * nll`` with the gradient norm ``g = 1 - p``.

    Li et al. 2019, "Gradient Harmonized Single-stage Detector", section 3.2, for softmax. ``bin = min(floor(g * bins),
    bins - 1)``; with R[b] decisions in bin b, N in all and n bins that are not empty, ``beta[b] = N / (n * R[b])``:
    every filled bin weighs the same, and the mean of beta over the batch is 1. beta is a constant of the backward pass.

    With ``momentum`` m > 0, R is a running count for each bin: ``S[b] = m * S[b] + (1 - m) * R[b]`` for the bins that
    this batch fills, divided by ``1 - m**t[b]`` (t: updates of that bin) unless ``bias_correction`` is off. In
    training mode the two state tensors are updated in place; else they weight the loss and stay. A bin without
    history is weighted by this batch's count.

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
        ignore_index: the target that contributes neither loss nor gradient, and is not counted.
        reduction: ``"none"``, ``"mean"`` (divides by N) or ``"sum"``.
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
    state = (running_histogram, num_updates, bins, momentum, normalizer, bias_correction, training)
    return autograd.fused_loss("ghmc_loss", input, inplace_backward, target, *state, ignore_index, reduction)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    inplace_backward: bool = False,
) -> Tensor:
    """Sigmoid focal loss: ``alpha_t * (1 - p_t)**gamma * bce(x, t)``, the values of torchvision's.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3: with ``p = sigmoid(x)``,
    ``p_t = p t + (1 - p)(1 - t)`` and ``alpha_t = alpha t + (1 - alpha)(1 - t)``. Targets may be soft.

    Args:
        input: logits of any shape; each element is a decision of its own.
        target: the same shape, in [0, 1], any dtype.
        alpha: in [0, 1], the weight of the positive class; negative for none.
        gamma: in [0, 16].
        reduction: ``"none"`` (torchvision's default), ``"mean"`` over all elements or ``"sum"``.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or input's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        ValueError: an argument that is not as described.

    Example:
        >>> fastloss.sigmoid_focal_loss(torch.tensor([2.0, -2.0]), torch.tensor([1.0, 1.0]))
        tensor([0.0005, 0.4125])
    """
    return autograd.fused_loss("sigmoid_focal_loss", input, inplace_backward, target, alpha, gamma, reduction)


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
    """Sigmoid GHM-C: ``beta[bin(g)] * bce(x, t)`` with ``g = |sigmoid(x) - t|``, the values of mmdetection's.

    Li et al. 2019, "Gradient Harmonized Single-stage Detector", section 3.2. :func:`ghmc_loss` says what beta, the
    bins and the running statistics are; here the decisions are the elements with ``mask > 0``.

    Args:
        input: logits of any shape; each element is a decision of its own.
        target: the same shape, in [0, 1], any dtype.
        mask: the same shape; an element counts where it is > 0 (mmdetection's label weight). None: all count.
        bins, momentum, normalizer, bias_correction, running_histogram, num_updates, training: as in
            :func:`ghmc_loss`. ``momentum > 0, bias_correction=False`` gives mmdetection's running statistics.
        reduction: ``"none"``, ``"mean"`` (divides by the number of decisions that count, at least 1) or ``"sum"``.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or input's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        ValueError: an argument that is not as described.

    Example:
        >>> fastloss.sigmoid_ghmc_loss(torch.tensor([2.0, 2.0, -2.0]), torch.tensor([1.0, 1.0, 1.0]))
        tensor(1.1269)
    """
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        if mask.is_complex():
            raise ValueError(
                f"mask has dtype {mask.dtype}, but should be bool, or numbers that count where they are > 0."
            )
        mask = mask > 0
    state = (running_histogram, num_updates, bins, momentum, normalizer, bias_correction, training)
    return autograd.fused_loss("sigmoid_ghmc_loss", input, inplace_backward, target, mask, *state, reduction)


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
    """Poly-1 loss: ``w[y] * (nll + epsilon * (1 - p))`` with ``p = exp(-nll)`` the probability of the target.

    Leng et al. 2022, "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", section 4.1:
    cross entropy with the first term of its series in ``1 - p`` weighted by ``1 + epsilon``.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32.
        weight: ``(C)``, a factor for each class.
        epsilon: in [-1, 10000]; > 0 raises the gradient of decisions that are right already, < 0 lowers it.
        ignore_index: the target that contributes neither loss nor gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        inplace_backward: write the gradient over the logits; see the module's documentation.

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64 logits).

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> fastloss.poly_loss(logits, torch.tensor([0, 2]), reduction="none")
        tensor([0.4526, 1.7653])
    """
    return autograd.fused_loss("poly_loss", input, inplace_backward, target, weight, epsilon, ignore_index, reduction)


def gradient_norm_histogram(input: Tensor, target: Tensor, *, bins: int = 10, ignore_index: int = -100) -> Tensor:
    """How many decisions have which gradient norm ``g = 1 - p``: R of :func:`ghmc_loss`, without a gradient.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices ``()``, ``(N)`` or ``(N, d1, ...)``, int64 or int32.
        bins: in [1, 65536], of equal width over [0, 1].
        ignore_index: the target that is not counted.

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
    return counts
