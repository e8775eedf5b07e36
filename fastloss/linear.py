"""The losses of ``F.linear(input, linear_weight, linear_bias)``, without ever holding all logits: of a language model's
head those, and their gradient, are most of a training step's memory.

Rows go through in chunks. Matrix products by torch compute a chunk's logits, the fused kernels write the gradient over
them, and two more products turn it into the gradients of input and weight, which is all that is kept. The losses'
gradients are linear in what comes from above, so they are formed in the forward pass, for ``reduction="sum"``; the
backward pass multiplies these small results by ``grad_output``, over the denominator for ``"mean"``. Two things are
known too late for that, and cost the logits a second time: GHM-C's weights, and what comes from above for
``reduction="none"``, where they meet the gradient of weight or bias. A row of input's own gradient is only scaled.

Shared by all:

- ``input`` ``(..., H)``: float32, float64, bfloat16 or float16; ``linear_weight`` ``(C, H)`` and ``linear_bias``
  ``(C)`` have its dtype. Under autocast all are computed in autocast's dtype. The loss is float32 (float64 for
  float64); gradients have their tensors' dtypes and, summed over chunks, are accumulated in float32 for half types.
- ``target`` ``(...)``: class indices in ``[0, C)``, or ``ignore_index``, as int64 or int32.
- ``reduction="none"`` gives target's shape.
- Ignored rows are left out, on CPU with all their work; on CUDA their number would have to be waited for, so that they
  are computed there like the others, and then count nothing.
- ``create_graph=True`` differentiates the gradient by way of whole logits. Forward mode and torch.func take
  :mod:`fastloss.reference`.

Errors are those of :mod:`fastloss.functional`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import autograd, distributed, functional, modules, reference, torch_private

# Measured on CPU (benchmarks/linear.py): fewer rows make the products slow, more only take memory. Those of CUDA are
# a guess, never measured: about as many rows as fill the device.
_LEAST_ROWS = {"cpu": 256, "cuda": 2048}
_CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 256 << 20}
# A part of the weight that stays in the cache for a product's whole time.
_BLOCK_CLASSES = {"cpu": 2048, "cuda": 1 << 62}
_ROUND = 16  # rows: products are slower at odd sizes
_PART_BYTES = 1 << 20
_NOTHING = [False, False, False]
_GHM = ("bins", "momentum", "normalizer", "bias_correction", "running_histogram", "num_updates", "training", "power")
_PARAMETERS = {"cross_entropy": "label_smoothing", "focal_loss": "gamma"}


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
    """``cross_entropy(F.linear(input, linear_weight, linear_bias), target, weight, ...)`` in chunks of rows.

    The signature is that of :func:`torch.nn.functional.linear_cross_entropy`; the loss is
    :func:`fastloss.cross_entropy`.

    Args:
        input: ``(..., H)``.
        linear_weight: ``(C, H)``.
        target: class indices ``(...)``, int64 or int32.
        linear_bias: ``(C)``.
        weight: ``(C)``, a factor for each class.
        sample_weight, denominator, z_loss, logit_scale, softcap, return_lse, process_group: as in
            :mod:`fastloss.functional`.
        ignore_index: the target that contributes neither loss nor gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        label_smoothing: in [0, 1].

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64). With return_lse a pair of that and of
        target's shape.

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> input, linear_weight = torch.ones(2, 4), torch.zeros(3, 4)
        >>> fastloss.linear_cross_entropy(input, linear_weight, torch.tensor([0, 2]))
        tensor(1.0986)
    """
    settings = {
        "weight": weight,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    settings |= _extras(sample_weight, denominator, z_loss, logit_scale, softcap, return_lse, process_group)
    return _linear_loss("cross_entropy", input, linear_weight, target, linear_bias, settings)


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
    """``focal_loss(F.linear(input, linear_weight, linear_bias), target, weight, ...)`` in chunks of rows.

    The loss is :func:`fastloss.focal_loss`.

    Args:
        input: ``(..., H)``.
        linear_weight: ``(C, H)``.
        target: class indices ``(...)``, int64 or int32.
        linear_bias: ``(C)``.
        weight: ``(C)``, a factor for each class.
        sample_weight, denominator, z_loss, logit_scale, softcap, return_lse, process_group: as in
            :mod:`fastloss.functional`.
        gamma: in [0, 16].
        ignore_index: the target that contributes neither loss nor gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64). With return_lse a pair of that and of
        target's shape.

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> input, linear_weight = torch.ones(2, 4), torch.zeros(3, 4)
        >>> fastloss.linear_focal_loss(input, linear_weight, torch.tensor([0, 2]))
        tensor(0.4883)
    """
    settings = {"weight": weight, "gamma": gamma, "ignore_index": ignore_index, "reduction": reduction}
    settings |= _extras(sample_weight, denominator, z_loss, logit_scale, softcap, return_lse, process_group)
    return _linear_loss("focal_loss", input, linear_weight, target, linear_bias, settings)


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
    """``ghmc_loss(F.linear(input, linear_weight, linear_bias), target, ...)`` in chunks of rows.

    The loss, its histogram and its running statistics are those of :func:`fastloss.ghmc_loss`. The weights depend on
    all rows, so the logits are computed twice where linear_weight or linear_bias requires grad.

    Args:
        input: ``(..., H)``.
        linear_weight: ``(C, H)``.
        target: class indices ``(...)``, int64 or int32.
        linear_bias: ``(C)``.
        bins, momentum, normalizer, bias_correction, running_histogram, num_updates, training, power: as in
            :func:`fastloss.ghmc_loss`, and so process_group.
        ignore_index: the target that contributes neither loss nor gradient, and is not counted.
        reduction: ``"none"``, ``"mean"`` (divides by the number of decisions that count) or ``"sum"``.

    Returns:
        A scalar, or target's shape for ``"none"``; float32 (float64 for float64).

    Raises:
        IndexError: a target outside ``[0, C)`` that is not ``ignore_index``.
        ValueError: any other argument that is not as described.

    Example:
        >>> input, linear_weight = torch.ones(2, 4), torch.zeros(3, 4)
        >>> fastloss.linear_ghmc_loss(input, linear_weight, torch.tensor([0, 2]))
        tensor(1.0986)
    """
    settings = {
        "bins": bins,
        "momentum": momentum,
        "normalizer": normalizer,
        "bias_correction": bias_correction,
        "running_histogram": running_histogram,
        "num_updates": num_updates,
        "training": training,
        "power": power,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "process_group": process_group,
    }
    return _linear_loss("ghmc_loss", input, linear_weight, target, linear_bias, settings)


def _extras(
    sample_weight: Tensor | None,
    denominator: Tensor | float | None,
    z_loss: float,
    logit_scale: float,
    softcap: float | None,
    return_lse: bool,
    process_group: Any,
) -> dict[str, Any]:
    return {
        "sample_weight": sample_weight,
        "denominator": denominator,
        "z_loss": z_loss,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "return_lse": return_lse,
        "process_group": process_group,
    }


def _linear_loss(
    name: str,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    settings: dict[str, Any],
) -> Any:
    tensors = (input, linear_weight, target, linear_bias, *settings.values())
    if has_torch_function_variadic(*tensors):
        public, given = globals()["linear_" + name], (input, linear_weight, target)
        return handle_torch_function(public, tensors, *given, linear_bias=linear_bias, **settings)
    dtype = _check(input, linear_weight, target, linear_bias)
    op = autograd.OPS[name]
    # The loss of no rows: the op's own checks of the settings, before anything is computed or written.
    no_rows = {**settings, "target": target.flatten()[:0], "counts": None}
    if settings.get("sample_weight") is not None:
        autograd.check_tensor("sample_weight", settings["sample_weight"])
        settings["sample_weight"] = _of_target(settings["sample_weight"], target)
        no_rows["sample_weight"] = settings["sample_weight"].flatten()[:0]
    no_rows.setdefault("denominator", None)
    arguments = [no_rows[key] for key in op.names]
    op.check(arguments)
    no_logits = input.new_empty((0, linear_weight.shape[0]), dtype=dtype)
    op.value(no_logits, *op.encode(no_logits, arguments))
    transforms = torch_private.transforms_active
    transformed = not torch.compiler.is_compiling() and transforms is not None and transforms()
    if transformed or torch_private.has_tangent(*tensors):
        plain = getattr(reference, "linear_" + name)
        return plain(input, linear_weight, target, linear_bias=linear_bias, **settings)
    differentiates = torch.is_grad_enabled()
    wanted = [differentiates and t is not None and t.requires_grad for t in (input, linear_weight, linear_bias)]
    ghm = {key: settings.pop(key) for key in _GHM if key in settings}
    weight, sample_weight, denominator = (settings.get(key) for key in ("weight", "sample_weight", "denominator"))
    ignore_index, reduction, process_group = (settings[key] for key in ("ignore_index", "reduction", "process_group"))
    if process_group is not None and not ghm:
        row_weight = _row_weight(target, weight, sample_weight, ignore_index, torch.float64)
        reduction, denominator = distributed.over_ranks(process_group, reduction, denominator, row_weight.sum())
    if denominator is not None:
        denominator = autograd._denominator(denominator, input)
    # Once its weights are known, GHM-C is cross entropy with a factor for each row.
    loss, parameter = ("cross_entropy", 0.0) if ghm else (name, settings[_PARAMETERS[name]])
    extras = [float(settings.get("z_loss", 0)), float(settings.get("logit_scale", 1)), settings.get("softcap") or 0.0]
    return_lse = settings.get("return_lse", False)
    call = (loss, float(parameter), extras, return_lse, ignore_index, reduction, process_group, dtype, wanted)
    apply: Any = _LinearLoss.apply
    value, lse = apply(
        input, linear_weight, linear_bias, target, weight, sample_weight, denominator, call, *ghm.values()
    )
    return (value, lse) if return_lse else value


def _of_target(sample_weight: Tensor, target: Tensor) -> Tensor:
    try:
        return sample_weight.expand(target.shape)
    except RuntimeError:
        raise ValueError(
            f"sample_weight has shape {tuple(sample_weight.shape)}, but should broadcast to {tuple(target.shape)}: one "
            "number a decision."
        ) from None


def _check(input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None) -> torch.dtype:
    """Refuses what does not fit together; the dtype to compute in."""
    named = {"input": input, "linear_weight": linear_weight, "target": target}
    if linear_bias is not None:
        named["linear_bias"] = linear_bias
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            what = "None" if tensor is None else f"of type {type(tensor).__name__}"
            raise ValueError(f"{name} is {what}, but should be a tensor.")
        if tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device}, but should be on input's device {input.device}.")
    if input.dim() == 0:
        raise ValueError("input has shape (), but should be (..., H).")
    H = input.shape[-1]
    if linear_weight.dim() != 2 or linear_weight.shape[1] != H:
        raise ValueError(
            f"linear_weight has shape {tuple(linear_weight.shape)}, but should be (C, {H}): input's last dimension is "
            f"{H}."
        )
    C = linear_weight.shape[0]
    if linear_bias is not None and linear_bias.shape != (C,):
        raise ValueError(f"linear_bias has shape {tuple(linear_bias.shape)}, but should be ({C},): one number a class.")
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, but should be {tuple(input.shape[:-1])}: input's shape "
            f"{tuple(input.shape)} without its last dimension."
        )
    device = input.device.type
    del named["target"]
    if torch.is_autocast_enabled(device) and all(
        t.is_floating_point() and t.dtype != torch.float64 for t in named.values()
    ):
        return torch.get_autocast_dtype(device)
    for name, tensor in named.items():
        if tensor.dtype != input.dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}, but should have input's: {input.dtype}.")
    return input.dtype


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        denominator: Tensor | None,
        call: tuple[Any, ...],
        bins: int = 0,
        *ghm: Any,
    ) -> tuple[Tensor, Tensor]:
        loss, parameter, extras, return_lse, ignore_index, reduction, process_group, dtype, wanted = call
        rows = (*_cast(input, linear_weight, linear_bias, target, dtype), weight, _flat(sample_weight))
        settings = (loss, parameter, extras, ignore_index)
        # A factor for each row has to meet the gradient before that is summed over the rows.
        summed = wanted[1] or wanted[2]
        waits = summed and (bins > 0 or reduction == "none")
        first = _NOTHING if waits else wanted
        losses, lse, bin, counts, *grads = _linear_rows(*rows, *settings, return_lse, None, bins, first)
        beta = None
        if bins:
            if process_group is not None:
                counts, reduction, shared = distributed.histogram_over_ranks(process_group, reduction, counts)
                denominator = autograd._denominator(shared, input)
            beta = _ghm_bin_weights(counts, *ghm)
            beta = torch.where(bin < 0, 0, beta[bin.clamp(min=0)]).to(losses.dtype)
            if summed and reduction != "none":
                _, _, _, _, *grads = _linear_rows(*rows, *settings, False, beta, 0, wanted)
            losses = losses * beta
        if denominator is None:
            denominator = _denominator(target.flatten(), weight, _flat(sample_weight), ignore_index, losses)
        denominator = denominator.to(losses.dtype)
        ctx.call, ctx.summed, ctx.num_ghm = (*settings, reduction, dtype, wanted), summed, len(ghm) + (bins > 0)
        # More than the gradients is for a backward pass that computes the logits again.
        ctx.save_for_backward(
            *grads, denominator, beta, input, linear_weight, linear_bias, target, weight, sample_weight
        )
        lse = lse.view(target.shape) if return_lse else lse
        ctx.mark_non_differentiable(lse)
        if reduction == "none":
            return losses.view(target.shape), lse
        total = _ordered_sum(losses)
        return total / denominator if reduction == "mean" else total, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _lse: Tensor | None) -> tuple[Tensor | None, ...]:
        *settings, reduction, dtype, wanted = ctx.call
        nothing = (None,) * (5 + ctx.num_ghm)
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:
            return *_double_backward(ctx, grad_output), *nothing
        *grads, denominator, beta, input, linear_weight, linear_bias, target, weight, sample_weight = ctx.saved_tensors
        factor: Any = grad_output.flatten() if reduction == "none" else grad_output
        if reduction == "mean":
            factor = factor / denominator
        if beta is not None and (reduction == "none" or not ctx.summed):
            factor = factor * beta
        overwrite = not compiling and not torch_private.keeps_graph()
        if ctx.summed and reduction == "none":
            rows = (*_cast(input, linear_weight, linear_bias, target, dtype), weight, _flat(sample_weight))
            _, _, _, _, *grads = _linear_rows(*rows, *settings, False, factor, 0, wanted)
            factor = None
        results = []
        for grad, like, want in zip(grads, (input, linear_weight, linear_bias), wanted, strict=True):
            results.append(_scaled(grad, factor, like.dtype, overwrite).view(like.shape) if want else None)
        return *results, *nothing


def _scaled(grad: Tensor, factor: Tensor | None, dtype: torch.dtype, overwrite: bool) -> Tensor:
    """``grad * factor`` as dtype; factor None is 1."""
    if factor is None:
        return grad.to(dtype)
    if torch.compiler.is_compiling() or autograd._is_seen(factor):
        return autograd._scaled(grad, factor, None).to(dtype)
    if dtype != grad.dtype and grad.numel() > 0:
        scaled = torch.empty_like(grad, dtype=dtype)
        # In parts, so that what is scaled is rounded while it is in the cache.
        rows = max(_PART_BYTES // grad[0].nbytes, 1)
        parts = factor.split(rows) if factor.dim() else [factor] * -(-len(grad) // rows)
        for to, part, f in zip(scaled.split(rows), grad.split(rows), parts, strict=True):
            to.copy_(torch.ops.fastloss.scale_gradient.default(part, f, None))
        return scaled
    if overwrite:
        torch.ops.fastloss.scale_gradient.inplace(grad, factor, None)
        return grad.to(dtype)
    return torch.ops.fastloss.scale_gradient.default(grad, factor, None).to(dtype)


def _double_backward(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """The gradients by whole logits and a loss that can be differentiated twice."""
    loss, parameter, (z_loss, logit_scale, softcap), ignore_index, reduction, dtype, wanted = ctx.call
    *_, denominator, beta, input, linear_weight, linear_bias, target, weight, sample_weight = ctx.saved_tensors
    x, W, b, t = _cast(input, linear_weight, linear_bias, target, dtype)
    x = torch.where((t != ignore_index).unsqueeze(1), x, 0)  # a nan there would come through as nan * 0
    settings = {_PARAMETERS[loss]: parameter, "ignore_index": ignore_index, "reduction": "none", "z_loss": z_loss}
    settings |= {"sample_weight": _flat(sample_weight), "logit_scale": logit_scale, "softcap": softcap or None}
    losses = getattr(functional, loss)(F.linear(x, W, b), t, weight, **settings)
    if beta is not None:
        losses = losses * beta
    if reduction == "none":
        value = losses.view(target.shape)
    else:
        value = losses.sum() / denominator if reduction == "mean" else losses.sum()
    tensors = (input, linear_weight, linear_bias)
    found = iter(
        torch.autograd.grad(
            value, [t for t, want in zip(tensors, wanted, strict=True) if want], grad_output, create_graph=True
        )
    )
    return [next(found) if want else None for want in wanted]


def _cast(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Rows, and everything in the dtype to compute in."""
    bias = linear_bias if linear_bias is None else linear_bias.to(dtype)
    return input.reshape(-1, input.shape[-1]).to(dtype), linear_weight.to(dtype), bias, target.flatten()


def _flat(sample_weight: Tensor | None) -> Tensor | None:
    return None if sample_weight is None else sample_weight.flatten()


def _denominator(
    target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, ignore_index: int, losses: Tensor
) -> Tensor:
    if weight is None and sample_weight is None:
        return (target != ignore_index).sum()
    return _ordered_sum(_row_weight(target, weight, sample_weight, ignore_index, losses.dtype))


def _row_weight(
    target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    valid = target != ignore_index
    row_weight = reference.row_weight_of(weight, target, valid, torch.empty(0, dtype=dtype, device=target.device))
    return row_weight if sample_weight is None else torch.where(valid, row_weight * sample_weight.to(dtype), 0)


def _ordered_sum(values: Tensor) -> Tensor:
    """The same bits at any number of threads: torch adds up more than 32768 numbers in an order that depends on it."""
    return torch.stack([part.sum() for part in values.split(16384)]).cumsum(0)[-1]


@torch.library.custom_op("fastloss::linear_rows", mutates_args=())
def _linear_rows(
    input: Tensor,  # [N, H]
    linear_weight: Tensor,  # [C, H]
    linear_bias: Tensor | None,  # [C]
    target: Tensor,  # [N]
    weight: Tensor | None,  # [C]
    sample_weight: Tensor | None,  # [N]
    loss: str,
    parameter: float,
    extras: list[float],  # z_loss, logit_scale, softcap (0: none)
    ignore_index: int,
    wants_lse: bool,
    factor: Tensor | None,  # [N] for each row's gradient
    bins: int,  # of GHM-C's histogram; 0: not asked for
    wanted: list[bool],  # gradients of input, linear_weight, linear_bias
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(losses [N], lse [N], bin [N], counts [bins], gradients of the losses' sum times factor)``, empty where not
    asked for.

    One operation, so that compilers see no loop. Gradients of sums over rows are in the type of the loss.
    """
    op = autograd.OPS[loss]
    N, C = len(input), len(linear_weight)
    losses, lse, bin, counts, *grads = results = _results(input, linear_weight, target, wants_lse, bins, wanted)
    grad_input, grad_weight, grad_bias = grads
    counts.zero_()
    grad_bias.zero_()
    half = input.dtype != losses.dtype
    peak = None
    if factor is not None and N > 0 and input.dtype == torch.float16:
        peak = _power_of_two(factor)
        factor = factor / peak
    index = None
    # On CUDA the number of valid rows would have to be waited for.
    if input.is_cpu and (target == ignore_index).any():
        index = (target != ignore_index).nonzero().squeeze(1)
        N = len(index)
        bin.fill_(-1)
        losses.zero_()
        lse.zero_()
        grad_input.zero_()
    if N == 0:
        grad_weight.zero_()
    kind = "cpu" if input.is_cpu else "cuda"
    most = max(_LEAST_ROWS[kind], _CHUNK_BYTES[kind] // (C * input.element_size()) // _ROUND * _ROUND)
    chunks = max(-(-N // most), 1)
    step = max(-(-N // (chunks * _ROUND)), 1) * _ROUND  # about equal ones
    block = _BLOCK_CLASSES[kind]
    blocks = [slice(c, min(c + block, C)) for c in range(0, C, block)]
    # Memory that is taken anew in each chunk would be handed back to the system and fetched again, page by page.
    buffer = input.new_empty((min(step, N), C))
    product: Any = linear_weight.new_empty((min(block, C), linear_weight.shape[1])) if wanted[1] and half else None
    for start in range(0, N, step):
        chunk = slice(start, min(start + step, N))
        rows = chunk if index is None else index[chunk]
        x, y = input[rows], target[rows]
        logits = buffer[: len(x)]
        for part in blocks:
            if linear_bias is None:
                torch.mm(x, linear_weight[part].t(), out=logits[:, part])
            else:
                torch.addmm(linear_bias[part], x, linear_weight[part].t(), out=logits[:, part])
        if bins:
            chunk_counts, bin[rows] = torch.ops.fastloss.gradient_norms(logits, y, bins, ignore_index)
            counts += chunk_counts
        of_rows = None if sample_weight is None else sample_weight[rows]
        none = autograd._ENUMERATIONS["reduction"]["none"]
        z_loss, logit_scale, softcap = extras
        extended = (z_loss, logit_scale, softcap or None, wants_lse)
        settings = (y, weight, of_rows, None, parameter, *extended, ignore_index, none)
        if any(wanted):
            losses[rows], _, chunk_lse = op.inplace(logits, *settings)
        else:
            losses[rows], chunk_lse = op.value(logits, *settings)
        if wants_lse:
            lse[rows] = chunk_lse
        if not any(wanted):
            continue
        if factor is not None:
            torch.ops.fastloss.scale_gradient.inplace(logits, factor[rows], None)
        if wanted[0]:
            grad_input[rows] = torch.mm(logits, linear_weight)
        if wanted[1]:
            # The first chunk writes what the others add to.
            for part in blocks:
                total, g = grad_weight[part], logits[:, part].t()
                if half:
                    added = torch.mm(g, x, out=product[: len(g)])
                    total.add_(added) if start else total.copy_(added)
                else:
                    torch.addmm(total, g, x, beta=int(start > 0), out=total)
        if wanted[2]:
            grad_bias += logits.sum(0, dtype=grad_bias.dtype)
    if peak is not None:
        for grad in grads:
            grad *= peak
    return results


def _power_of_two(factor: Tensor) -> Tensor:
    """That brings factor into float16's range: factors are as small as 1 / N, and as large as a loss scale."""
    largest = torch.where(factor.isfinite(), factor.abs(), 0).amax()
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), largest.frexp().exponent), 1)


@_linear_rows.register_fake
def _(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    loss: str,
    parameter: float,
    extras: list[float],
    ignore_index: int,
    wants_lse: bool,
    factor: Tensor | None,
    bins: int,
    wanted: list[bool],
) -> Any:
    return _results(input, linear_weight, target, wants_lse, bins, wanted)


def _results(
    input: Tensor, linear_weight: Tensor, target: Tensor, wants_lse: bool, bins: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What _linear_rows returns, uninitialised."""
    accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32
    C, H = linear_weight.shape
    return (
        input.new_empty(target.shape, dtype=accumulate),
        input.new_empty(target.shape if wants_lse else 0, dtype=accumulate),
        input.new_empty(target.shape if bins else 0, dtype=torch.int32),
        input.new_empty(bins, dtype=torch.int64),
        input.new_empty(input.shape if wanted[0] else 0),
        input.new_empty((C, H) if wanted[1] else 0, dtype=accumulate),
        input.new_empty(C if wanted[2] else 0, dtype=accumulate),
    )


@torch.library.custom_op("fastloss::ghm_bin_weights", mutates_args=("running_histogram", "num_updates"))
def _ghm_bin_weights(
    counts: Tensor,
    momentum: float,
    normalizer: str,
    bias_correction: bool,
    running_histogram: Tensor | None,
    num_updates: Tensor | None,
    training: bool,
    power: float,
) -> Tensor:
    return reference.ghm_bin_weight(
        counts, momentum, normalizer, bias_correction, running_histogram, num_updates, training, power
    )


@_ghm_bin_weights.register_fake
def _(
    counts: Tensor,
    momentum: float,
    normalizer: str,
    bias_correction: bool,
    running_histogram: Tensor | None,
    num_updates: Tensor | None,
    training: bool,
    power: float,
) -> Any:
    return counts.new_empty(counts.shape, dtype=torch.float64)


class _Linear(modules._Loss):
    """What the three modules share: a linear layer, whose weight and bias are the parameters."""

    linear: nn.Linear

    def extra_repr(self) -> str:
        linear = self.linear
        shape = f"in_features={linear.in_features}, num_classes={linear.out_features}, bias={linear.bias is not None}"
        return f"{shape}, {super().extra_repr()}"

    def _call(self, function: Callable[..., Any], input: Tensor, target: Tensor, **settings: Any) -> Any:
        linear = self.linear
        return function(input, linear.weight, target, linear_bias=linear.bias, **self._settings(), **settings)


class LinearCrossEntropyLoss(_Linear):
    """:func:`fastloss.linear_cross_entropy` as a module with the linear layer in it, after
    :class:`torch.nn.LinearCrossEntropyLoss`.

    Example:
        >>> loss = fastloss.LinearCrossEntropyLoss(4, 3)
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 2]))
        tensor(1.0986, grad_fn=<_LinearLossBackward>)
    """

    weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        return_lse: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            logit_scale=logit_scale,
            softcap=softcap,
            return_lse=return_lse,
            process_group=process_group,
        )
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        denominator: Tensor | float | None = None,
    ) -> Any:
        of_call: dict[str, Any] = {"sample_weight": sample_weight, "denominator": denominator}
        return self._call(linear_cross_entropy, input, target, weight=self.weight, **of_call)


class LinearFocalLoss(_Linear):
    """:func:`fastloss.linear_focal_loss` as a module with the linear layer in it.

    Example:
        >>> loss = fastloss.LinearFocalLoss(4, 3)
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 2]))
        tensor(0.4883, grad_fn=<_LinearLossBackward>)
    """

    weight: Tensor | None
    gamma: float
    ignore_index: int
    reduction: str

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        return_lse: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            gamma=gamma,
            ignore_index=ignore_index,
            reduction=reduction,
            z_loss=z_loss,
            logit_scale=logit_scale,
            softcap=softcap,
            return_lse=return_lse,
            process_group=process_group,
        )
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        denominator: Tensor | float | None = None,
    ) -> Any:
        of_call: dict[str, Any] = {"sample_weight": sample_weight, "denominator": denominator}
        return self._call(linear_focal_loss, input, target, weight=self.weight, **of_call)


class LinearGHMCLoss(_Linear, modules._GHMLoss):
    """:func:`fastloss.linear_ghmc_loss` as a module with the linear layer in it, that owns the running statistics.

    Example:
        >>> loss = fastloss.LinearGHMCLoss(4, 3)
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 2]))
        tensor(1.0986, grad_fn=<_LinearLossBackward>)
    """

    ignore_index: int

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bins: int = 10,
        momentum: float = 0.0,
        normalizer: str = "nonempty",
        bias_correction: bool = True,
        power: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        process_group: Any = None,
    ) -> None:
        super().__init__(
            bins=bins,
            momentum=momentum,
            normalizer=normalizer,
            bias_correction=bias_correction,
            power=power,
            process_group=process_group,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self._call(linear_ghmc_loss, input, target, **self._state())
