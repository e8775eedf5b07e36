"""One autograd.Function around the ops: they return the loss and write the gradient in the same pass.

The op is told where the gradient goes: a new tensor, or the logits themselves (``inplace_backward``). The backward pass
only multiplies it by ``grad_output``, and mostly that is 1. A backward pass that must itself be differentiable
(``create_graph=True``) differentiates the reference instead.
"""

import torch
from torch import Tensor

from . import reference

ops = torch.ops.fastloss

# Half-precision gradients of a mean over many decisions would underflow in float16 before a gradient scaler's factor
# reaches them, so they are stored times this and divided by it in the backward pass. Every gradient of a mean is below
# 16, and 16 * 4096 is the end of float16's range.
FLOAT16_MEAN_SCALE = 4096.0


def fused_loss(name: str, input: Tensor, inplace_backward: bool, *args) -> Tensor:
    """Loss of op ``name`` for ``(input, *args)``; differentiable with respect to input."""
    for arg in args:
        if isinstance(arg, Tensor) and arg.requires_grad:
            raise ValueError(
                f"fastloss.{name} got a target, weight or mask that requires grad, but differentiates only with "
                "respect to input; call detach() on it."
            )
    if input.requires_grad and torch.is_grad_enabled():
        return _FusedLoss.apply(input, name, inplace_backward, *args)
    loss = getattr(ops, name)(input, None, *args, 1.0)
    return loss if isinstance(loss, Tensor) else loss[0]


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, name, inplace_backward, *args):
        scale = FLOAT16_MEAN_SCALE if input.dtype == torch.float16 and "mean" in args else 1.0
        grad = input.detach() if inplace_backward else torch.empty_like(input)
        loss = getattr(ops, name)(input, grad, *args, scale)
        loss, bin_weight = (loss, None) if isinstance(loss, Tensor) else loss
        if inplace_backward:
            torch.autograd.graph.increment_version(input)
            ctx.save_for_backward(grad)
        else:
            # Only a differentiable backward pass reads more than the gradient.
            tensors = [arg if isinstance(arg, Tensor) else None for arg in args]
            ctx.save_for_backward(grad, input, bin_weight, *tensors)
        ctx.args = [None if isinstance(arg, Tensor) else arg for arg in args]
        ctx.name, ctx.inplace_backward, ctx.scale, ctx.used = name, inplace_backward, scale, False
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:
            return (_differentiable_gradient(ctx, grad_output), *[None] * (2 + len(ctx.args)))
        if ctx.inplace_backward and not compiling:
            if ctx.used:
                raise RuntimeError(
                    f"fastloss.{ctx.name} was called with inplace_backward=True, so its gradient exists once, in the "
                    "memory of the logits; a second backward pass needs inplace_backward=False."
                )
            ctx.used = True
        grad = ctx.saved_tensors[0]
        # The saved gradient may be changed only if nobody will ask for it again.
        overwrite = not compiling and (
            ctx.inplace_backward or not torch._C._autograd._get_current_graph_task_keep_graph()
        )
        return (_scaled(grad, grad_output, 1 / ctx.scale, overwrite, compiling), *[None] * (2 + len(ctx.args)))


def _scaled(grad, grad_output, factor, overwrite, compiling):
    """``grad * grad_output * factor``, rounded once; grad itself where that is the same."""
    if grad_output.dim() == 0 and grad.device.type == "cpu" and not compiling:
        factor *= grad_output.item()
        if factor == 1:
            return grad
        return grad.mul_(factor) if overwrite else grad * factor
    if factor != 1:
        grad_output = grad_output * factor
    if grad_output.dim() == grad.dim() - 1 and grad_output.dim() > 0:
        grad_output = grad_output.unsqueeze(1)  # one factor a decision, for all its classes
    return grad.mul_(grad_output) if overwrite else (grad * grad_output.to(_float_of(grad))).to(grad.dtype)


def _float_of(grad):
    return torch.float64 if grad.dtype == torch.float64 else torch.float32


def _differentiable_gradient(ctx, grad_output):
    if ctx.inplace_backward:
        raise RuntimeError(
            f"fastloss.{ctx.name} was called with inplace_backward=True, which destroys the logits, so its gradient "
            "cannot be differentiated again; create_graph=True needs inplace_backward=False."
        )
    _, input, bin_weight, *tensors = ctx.saved_tensors
    args = [arg if tensor is None else tensor for arg, tensor in zip(ctx.args, tensors, strict=True)]
    loss = _REFERENCE[ctx.name](input, bin_weight, *args)
    return torch.autograd.grad(loss, input, grad_output, create_graph=True)[0]


# The reference with an op's arguments. GHM-C's weights are constants of the backward pass: those of the forward pass.
_REFERENCE = {
    "cross_entropy": lambda x, _, target, weight, ignore_index, reduction, label_smoothing: reference.cross_entropy(
        x, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    ),
    "focal_loss": lambda x, _, target, weight, ignore_index, reduction, gamma: reference.focal_loss(
        x, target, weight, ignore_index=ignore_index, reduction=reduction, gamma=gamma
    ),
    "ghmc_loss": lambda x, beta, target, _hist, _updates, bins, _m, _n, _b, _t, ignore_index, reduction: (
        reference._softmax_ghmc(x, target, lambda counts: beta, bins, ignore_index, reduction)
    ),
    "sigmoid_focal_loss": lambda x, _, target, alpha, gamma, reduction: reference.sigmoid_focal_loss(
        x, target, alpha=alpha, gamma=gamma, reduction=reduction
    ),
    "sigmoid_ghmc_loss": lambda x, beta, target, mask, _hist, _updates, bins, _m, _n, _b, _t, reduction: (
        reference._sigmoid_ghmc(x, target, mask, lambda counts: beta, bins, reduction)
    ),
}


# ---- what torch.compile and meta tensors see: shapes and dtypes


def _fake_loss(input, decisions, reduction):
    return input.new_empty(decisions if reduction == "none" else (), dtype=_float_of(input))


@torch.library.register_fake("fastloss::cross_entropy")
def _(input, grad, target, weight, ignore_index, reduction, label_smoothing, grad_scale):
    return _fake_loss(input, target.shape, reduction)


@torch.library.register_fake("fastloss::focal_loss")
def _(input, grad, target, weight, ignore_index, reduction, gamma, grad_scale):
    return _fake_loss(input, target.shape, reduction)


@torch.library.register_fake("fastloss::ghmc_loss")
def _(input, grad, target, histogram, updates, bins, momentum, normalizer, correction, training, ignore, reduction, s):
    return _fake_loss(input, target.shape, reduction), input.new_empty(bins, dtype=torch.float64)


@torch.library.register_fake("fastloss::gradient_norm_histogram")
def _(input, target, bins, ignore_index):
    return input.new_empty(bins, dtype=torch.int64)


@torch.library.register_fake("fastloss::sigmoid_focal_loss")
def _(input, grad, target, alpha, gamma, reduction, grad_scale):
    return _fake_loss(input, input.shape, reduction)


@torch.library.register_fake("fastloss::sigmoid_ghmc_loss")
def _(input, grad, target, mask, histogram, updates, bins, momentum, normalizer, correction, training, reduction, s):
    return _fake_loss(input, input.shape, reduction), input.new_empty(bins, dtype=torch.float64)
