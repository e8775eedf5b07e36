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
# reaches them, so they are stored times this and divided by it in the backward pass. What they reach in the most
# lopsided weighting is some hundreds, and 1024 * 64 is the end of float16's range.
FLOAT16_MEAN_SCALE = 64.0


def fused_loss(name: str, input: Tensor, inplace_backward: bool, *args) -> Tensor:
    """Loss of op ``name`` for ``(input, *args)``; differentiable with respect to input."""
    if input.requires_grad and torch.is_grad_enabled():
        # Function.apply first looks for torch.func's transforms, whose wrappers it takes off every tensor. That takes
        # 5% of a small batch's time, so it is asked only where there are such transforms, for it to refuse them.
        plain = not torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()
        apply = _apply_plain if plain else _FusedLoss.apply
        return apply(input, name, inplace_backward, *args)
    _refuse_other_gradients(name, (isinstance(arg, Tensor) and arg.requires_grad for arg in args))
    loss = getattr(ops, name)(input, None, *args, 1.0)
    return loss if isinstance(loss, Tensor) else loss[0]


def _refuse_other_gradients(name, require_grad):
    if any(require_grad):
        raise ValueError(
            f"fastloss.{name} got a target, weight or mask that requires grad, but differentiates only with "
            "respect to input; call detach() on it."
        )


class _FusedLoss(torch.autograd.Function):
    # Python is most of what a small batch takes: both methods do little before what every call needs.

    @staticmethod
    def forward(ctx, input, name, inplace_backward, *args):
        _refuse_other_gradients(name, ctx.needs_input_grad[3:])
        scale = 1.0
        if input.dtype == torch.float16 and any(type(arg) is str and arg == "mean" for arg in args):
            scale = FLOAT16_MEAN_SCALE
        grad = input.detach() if inplace_backward else torch.empty_like(input)
        loss = getattr(ops, name)(input, grad, *args, scale)
        bin_weight = None
        if type(loss) is tuple:
            loss, bin_weight = loss
        ctx.call = (name, inplace_backward, scale, args)
        if inplace_backward:
            ctx.used = False
            torch.autograd.graph.increment_version(input)
            ctx.save_for_backward(grad)
        else:
            # More than grad is only for a backward pass that is itself differentiable. GHM's state is not: it moves on.
            ctx.save_for_backward(grad, input, bin_weight, args[0], args[1] if name in _SECOND_TENSOR else None)
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        name, inplace_backward, scale, args = ctx.call
        compiling = torch.compiler.is_compiling()
        if not compiling:
            if torch.is_grad_enabled():
                return _double_backward(ctx, grad_output), *_nothing(args)
            if inplace_backward:
                if ctx.used:
                    raise RuntimeError(
                        f"fastloss.{name} was called with inplace_backward=True, so its gradient exists once, in the "
                        "memory of the logits; a second backward pass needs inplace_backward=False."
                    )
                ctx.used = True
        # The saved gradient itself may go to the caller only if nobody will ask for it again.
        overwrite = not compiling and (inplace_backward or not torch._C._autograd._get_current_graph_task_keep_graph())
        return _scaled(ctx.saved_tensors[0], grad_output, 1 / scale, overwrite, compiling), *_nothing(args)


_apply_plain = super(torch.autograd.Function, _FusedLoss).apply


def _nothing(args):
    """The gradients of the arguments that follow input."""
    return (None,) * (2 + len(args))


def _double_backward(ctx, grad_output):
    name, inplace_backward, _, args = ctx.call
    if inplace_backward:
        raise RuntimeError(
            f"fastloss.{name} was called with inplace_backward=True, which destroys the logits, so its "
            "gradient cannot be differentiated again; create_graph=True needs inplace_backward=False."
        )
    _, input, bin_weight, _, _ = ctx.saved_tensors  # raises if one of them has changed since
    loss = _REFERENCE[name](input, bin_weight, *args)
    return torch.autograd.grad(loss, input, grad_output, create_graph=True)[0]


def _scaled(grad, grad_output, factor, overwrite, compiling):
    """``grad * grad_output * factor``, rounded once. With overwrite in grad's own memory, else in new memory."""
    if grad_output.dim() == 0 and grad.is_cpu and not compiling:
        factor *= grad_output.item()
        if not overwrite:
            return grad * factor
        return grad if factor == 1 else grad.mul_(factor)
    if grad.is_cuda and not compiling:
        # Its kernel reads grad_output on the device, as .item() would wait for it, and writes nothing where it is 1.
        scaled = grad if overwrite else grad.clone()
        ops.scale_gradient(scaled, grad_output, factor)
        return scaled
    if factor != 1:
        grad_output = grad_output * factor
    if grad_output.dim() == grad.dim() - 1 and grad_output.dim() > 0:
        grad_output = grad_output.unsqueeze(1)  # one factor a decision, for all its classes
    return grad.mul_(grad_output) if overwrite else (grad * grad_output.to(_float_of(grad))).to(grad.dtype)


def _float_of(grad):
    return torch.float64 if grad.dtype == torch.float64 else torch.float32


# Ops whose argument after the target is a tensor that the loss depends on: class weights or a mask.
_SECOND_TENSOR = ("cross_entropy", "focal_loss", "sigmoid_ghmc_loss")

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


def _fake_loss(input, reduction, target, *tensors):
    """Only here a meta tensor meets one with data: the dispatcher prefers the fake. The checks are the ops' own."""
    for tensor in (target, *tensors):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(
                f"target, weight or mask is on {tensor.device}, but should be on the device of input: {input.device}."
            )
    decisions = target.shape
    return input.new_empty(decisions if reduction == "none" else (), dtype=_float_of(input))


@torch.library.register_fake("fastloss::cross_entropy")
def _(input, grad, target, weight, ignore_index, reduction, label_smoothing, grad_scale):
    return _fake_loss(input, reduction, target, weight)


@torch.library.register_fake("fastloss::focal_loss")
def _(input, grad, target, weight, ignore_index, reduction, gamma, grad_scale):
    return _fake_loss(input, reduction, target, weight)


@torch.library.register_fake("fastloss::ghmc_loss")
def _(input, grad, target, histogram, updates, bins, momentum, normalizer, correction, training, ignore, reduction, s):
    return _fake_loss(input, reduction, target), input.new_empty(bins, dtype=torch.float64)


@torch.library.register_fake("fastloss::gradient_norm_histogram")
def _(input, target, bins, ignore_index):
    return input.new_empty(bins, dtype=torch.int64)


@torch.library.register_fake("fastloss::sigmoid_focal_loss")
def _(input, grad, target, alpha, gamma, reduction, grad_scale):
    return _fake_loss(input, reduction, target)


@torch.library.register_fake("fastloss::sigmoid_ghmc_loss")
def _(input, grad, target, mask, histogram, updates, bins, momentum, normalizer, correction, training, reduction, s):
    return _fake_loss(input, reduction, target, mask), input.new_empty(bins, dtype=torch.float64)


@torch.library.register_fake("fastloss::scale_gradient")
def _(grad, grad_output, factor):
    pass
