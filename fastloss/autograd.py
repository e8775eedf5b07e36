"""One autograd.Function around the ops: they return the loss and its gradient from the same pass.

The backward pass only multiplies the gradient by ``grad_output``, and mostly that is 1. A backward pass that must
itself be differentiable (``create_graph=True``), forward-mode AD and torch.func's transforms differentiate the
reference instead. Arguments are bound by the names in the ops' schemas, which come from csrc's table of losses.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _C, reference, torch_private
from . import functional as _functional  # the public functions: torch's overrides see those

# As csrc/losses/params.h has them.
_ENUMERATIONS = {
    "reduction": {"none": 0, "mean": 1, "sum": 2},
    "normalizer": {"nonempty": 0, "bins": 1},
}
# A number to the public function or a tensor, and an argument for each to the op.
_PUBLIC_NAMES = {"class_alpha": "alpha"}
_GRADIENTS = {"none": 0, "new": 1, "inplace": 2}


class LossOp:
    """A loss's ops, and what their schema says of the arguments that follow input."""

    def __init__(self, name: str) -> None:
        packet = getattr(torch.ops.fastloss, name)
        self.name = name
        self.value, self.with_grad = packet.default, packet.with_grad
        self.inplace, self.schedule = packet.inplace, packet.schedule
        arguments = self.value._schema.arguments[1:]
        self.names = tuple(argument.name for argument in arguments)
        self.enumerations = tuple((i, n, _ENUMERATIONS[n]) for i, n in enumerate(self.names) if n in _ENUMERATIONS)
        # A sigmoid loss's sample weights are read as they broadcast.
        of_op = _CONVERSIONS if "ignore_index" in self.names else {"denominator": _denominator}
        self.conversions = tuple((i, of_op[name]) for i, name in enumerate(self.names) if name in of_op)
        # index, name, may be None
        self.tensors = tuple(
            (i, argument.name, isinstance(argument.type, torch.OptionalType))
            for i, argument in enumerate(arguments)
            if str(argument.type).removeprefix("Optional[") in ("Tensor", "Tensor]")
        )
        # What a double backward pass may read again: the first arguments. What an op writes (GHM's state) has moved on.
        saved = [i for i, *_ in self.tensors if arguments[i].alias_info is None]
        self.num_saved = len(saved)
        assert saved == list(range(self.num_saved)), f"the schema of {name} has its tensors elsewhere"
        self.ghmc = "bins" in self.names
        # Index of return_lse, None where there is no such thing.
        self.lse = self.names.index("return_lse") if "return_lse" in self.names else None

    def check(self, args: Sequence[Any]) -> None:
        """Refuses what is no tensor, and tensors that want a gradient of their own."""
        for i, name, optional in self.tensors:
            arg = args[i]
            if (arg is None and optional) or (name == "denominator" and is_number(arg)):
                continue
            check_tensor(name, arg, "a tensor or None" if optional else "a tensor")
            if arg.requires_grad:
                raise ValueError(
                    f"{_PUBLIC_NAMES.get(name, name)} requires grad, but fastloss.{self.name} differentiates only with "
                    "respect to input; call detach() on it."
                )

    def encode(self, input: Tensor, args: Sequence[Any]) -> list[Any]:
        """The arguments as the schema has them: integers for names, tensors for what is broadcast or written."""
        encoded = list(args)
        for i, name, codes in self.enumerations:
            encoded[i] = encode(name, args[i], codes)
        for i, convert in self.conversions:
            if args[i] is not None:
                encoded[i] = convert(args[i], input)
        return encoded

    def settings(self, args: Sequence[Any]) -> dict[str, Any]:
        """The arguments by the names that the public functions have for them."""
        settings = dict(zip(self.names, args, strict=True))
        for name, public in _PUBLIC_NAMES.items():
            if (tensor := settings.pop(name, None)) is not None:
                settings[public] = tensor
        return settings

    def decode(self, args: Sequence[Any]) -> dict[str, Any]:
        """The same of encoded arguments."""
        settings = self.settings(args)
        for _, name, codes in self.enumerations:
            settings[name] = next(word for word, code in codes.items() if code == settings[name])
        if "return_lse" in settings:
            settings["return_lse"] = False
        return settings


def check_tensor(name: str, value: Any, expected: str = "a tensor") -> None:
    if not isinstance(value, Tensor):
        what = "None" if value is None else f"of type {type(value).__name__}"
        raise ValueError(f"{name} is {what}, but should be {expected}.")


def tensor_and_number(value: Any) -> tuple[Tensor | None, Any]:
    """What the op's two arguments are of one that may be either: of alpha, below 0 is none."""
    if type(value) is not float and isinstance(value, Tensor):  # which asks a metaclass
        return value, -1.0
    return None, value


def encode(name: str, value: Any, codes: dict[str, int]) -> int:
    code = codes.get(value) if isinstance(value, str) else None
    if code is None:
        *words, last = map(repr, codes)
        raise ValueError(f"{name} is {value!r}, but should be {', '.join(words)} or {last}.")
    return code


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def decisions_of(input: Tensor) -> torch.Size:
    """The shape of a softmax loss's decisions."""
    return input.shape[:1] * (input.dim() > 1) + input.shape[2:]


def _denominator(value: Any, input: Tensor) -> Tensor:
    """A float64 on the device, where it is read: nobody waits for it."""
    if is_number(value):
        return torch.full((), value, dtype=torch.float64, device=input.device)
    if value.numel() != 1 or value.is_complex():
        raise ValueError(
            f"denominator has shape {tuple(value.shape)} and dtype {value.dtype}, but should be a number or a tensor "
            "of one real number."
        )
    return value.detach().to(input.device, torch.float64)


def _sample_weight(value: Tensor, input: Tensor) -> Tensor:
    shape = decisions_of(input)
    if value.shape == shape:
        return value
    try:
        return value.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"sample_weight has shape {tuple(value.shape)}, but should broadcast to {tuple(shape)}: one number a "
            "decision."
        ) from None


# From what public functions take to what the ops do, where it is not None.
_CONVERSIONS: dict[str, Callable[[Any, Tensor], Any]] = {
    "denominator": _denominator,
    "sample_weight": _sample_weight,
}


# Every loss of the table: their ops are those that can be asked for a schedule.
_names = [
    name.removeprefix("fastloss::").removesuffix(".schedule")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("fastloss::") and name.endswith(".schedule")
]
OPS = {name: LossOp(name) for name in sorted(_names)}


def fused_loss(name: str, input: Tensor, inplace_backward: bool, *args: Any) -> Any:
    """Loss of op ``name`` for ``(input, *args)``, args in the order of its schema; differentiable in input.

    With return_lse, ``(loss, lse)``.
    """
    op = OPS[name]
    if has_torch_function_variadic(input, *args):
        tensors = (input, *(args[i] for i, *_ in op.tensors))
        public = getattr(_functional, name)
        settings = op.settings(args)
        return handle_torch_function(public, tensors, input, **settings, inplace_backward=inplace_backward)
    check_tensor("input", input)
    op.check(args)
    compiling = torch.compiler.is_compiling()
    transforms = torch_private.transforms_active
    if (not compiling and transforms is not None and transforms()) or torch_private.has_tangent(input, *args):
        return getattr(reference, name)(input, **op.settings(args))
    encoded = op.encode(input, args)
    if input.requires_grad and torch.is_grad_enabled():
        apply = _FusedLoss.apply if compiling else _quick_apply
        return apply(input, name, inplace_backward, *encoded)
    found = op.value(input, *encoded)
    if op.lse is not None and encoded[op.lse]:
        return found
    return found[0] if isinstance(found, tuple) else found


class _FusedLoss(torch.autograd.Function):
    # Python is most of what a small batch takes: both methods do little before what every call needs.

    @staticmethod
    def forward(ctx: Any, input: Tensor, name: str, inplace_backward: bool, *args: Any) -> Any:
        op = OPS[name]
        if torch.compiler.is_compiling():
            # The compiler leaves the copy out where nothing else reads the logits: the gradient is written over them.
            grad = input.clone()
            loss, stored_scale, *more = op.inplace(grad, *args)
            ctx.save_for_backward(grad)
        elif inplace_backward:
            loss, stored_scale, *more = op.inplace(input, *args)
            ctx.used = False
            increment_version(input)
            ctx.save_for_backward(input.detach())
        else:
            loss, grad, stored_scale, *more = op.with_grad(input, *args)
            # More than grad is only for a backward pass that is itself differentiable.
            ctx.save_for_backward(grad, input, *args[: op.num_saved], *(more if op.ghmc else ()))
        # Not those that are saved: a finished loss keeps none of them alive.
        ctx.call = (op, inplace_backward, args[op.num_saved :])
        ctx.stored_scale = stored_scale if input.dtype == torch.float16 else None
        if op.lse is None or not args[op.lse]:
            return loss
        ctx.mark_non_differentiable(more[0])
        return loss, more[0]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_lse: Tensor) -> tuple[Tensor | None, ...]:
        op, inplace_backward, _ = ctx.call
        nothing = (None,) * (2 + len(op.names))
        if torch.compiler.is_compiling():
            return _scaled(ctx.saved_tensors[0], grad_output, ctx.stored_scale), *nothing
        if torch.is_grad_enabled():
            return _double_backward(ctx, grad_output), *nothing
        if inplace_backward:
            if ctx.used:
                raise RuntimeError(
                    f"fastloss.{op.name} was called with inplace_backward=True, so its gradient exists once, in the "
                    "memory of the logits; a second backward pass needs inplace_backward=False."
                )
            ctx.used = True
        grad = torch_private.first_saved(ctx)
        if _is_seen(grad_output):
            return _scaled(grad, grad_output, ctx.stored_scale), *nothing
        # The saved gradient itself may go to the caller only if nobody will ask for it again.
        overwrite = inplace_backward or not torch_private.keeps_graph()
        if (
            overwrite
            and ctx.stored_scale is None
            and grad.is_cpu
            and grad_output.dim() == 0
            and grad_output.item() == 1
        ):
            return grad, *nothing  # quicker than asking the kernel, which would find the same
        if not overwrite:
            return torch.ops.fastloss.scale_gradient.default(grad, grad_output, ctx.stored_scale), *nothing
        torch.ops.fastloss.scale_gradient.inplace(grad, grad_output, ctx.stored_scale)
        return grad, *nothing


_quick_apply = torch_private.quick_apply(_FusedLoss)


def _is_seen(grad_output: Tensor) -> bool:
    """Whether something follows the backward pass's operations: then they have to be torch's own."""
    transforms = torch_private.transforms_active
    return (
        type(grad_output) is not Tensor
        or torch_private.dispatch_modes() > 0
        or torch_private.is_batched(grad_output)
        or (transforms is not None and transforms())
    )


def _scaled(grad: Tensor, grad_output: Tensor, stored_scale: Tensor | None) -> Tensor:
    """``grad * grad_output / stored_scale``, rounded once; 0 where grad is 0: an ignored decision has no gradient,
    whatever comes from above. The same as the op scale_gradient, in operations that compilers and transforms know."""
    factor = grad_output.to(torch.float64 if grad.dtype == torch.float64 else torch.float32)
    if stored_scale is not None and stored_scale.numel() > 0:
        factor = factor / stored_scale.squeeze(0)
    if factor.dim() == grad.dim() - 1 and factor.dim() > 0:
        factor = factor.unsqueeze(1)  # one factor a decision, for all its classes
    return torch.where(grad == 0, grad, (grad * factor).to(grad.dtype))


def _double_backward(ctx: Any, grad_output: Tensor) -> Tensor:
    """The gradient by the reference, so that it can be differentiated again."""
    op, inplace_backward, settings = ctx.call
    if inplace_backward:
        raise RuntimeError(
            f"fastloss.{op.name} was called with inplace_backward=True, which destroys the logits, so its gradient "
            "cannot be differentiated again; create_graph=True needs inplace_backward=False."
        )
    _, input, *saved = ctx.saved_tensors  # raises if one of them has changed since
    bin_weight: Any = saved.pop() if op.ghmc else None
    settings = op.decode((*saved, *settings))
    logits, grad_output = _without_ignored(input, grad_output, settings)
    if op.ghmc:
        loss = _weighted_by_bins(logits, bin_weight, settings, input)
    else:
        loss = getattr(reference, op.name)(logits, **settings)
    return torch.autograd.grad(loss, input, grad_output, create_graph=True)[0]


def _without_ignored(input: Tensor, grad_output: Tensor, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits and grad_output with 0 where a decision does not count: there a nan would come through as nan * 0."""
    if "ignore_index" in settings and settings["target"].is_floating_point():
        return input, grad_output  # class probabilities: none is ignored
    if "ignore_index" in settings:
        valid = settings["target"] != settings["ignore_index"]
        every_class = valid.unsqueeze(reference.class_dim_of(input))
    else:
        valid = every_class = settings.get("mask")
    if valid is None:
        return input, grad_output
    if settings["reduction"] == "none":
        grad_output = torch.where(valid, grad_output, 0)
    return torch.where(every_class, input, 0), grad_output


def _weighted_by_bins(logits: Tensor, bin_weight: Tensor, settings: dict[str, Any], input: Tensor) -> Tensor:
    """GHM-C with the weights of the forward pass, decision by decision: a decision on a bin's edge stays in the bin
    that the kernel put it in."""
    target, bins, reduction = settings["target"], settings["bins"], settings["reduction"]
    if "mask" in settings:
        mask = settings["mask"]
        _, bin = torch.ops.fastloss.sigmoid_gradient_norms(input.detach(), target, mask, bins)
        nll, valid = reference.sigmoid_nll(logits, target, mask)
        fewest = 1
    else:
        ignore_index = settings["ignore_index"]
        _, bin = torch.ops.fastloss.gradient_norms(input.detach(), target, bins, ignore_index)
        nll, valid = reference.softmax_nll(logits, target, ignore_index)
        fewest = 0
    beta = torch.where(bin < 0, 0, bin_weight[bin.clamp(min=0)])
    return reference.weighted_nll(nll, valid, beta, reduction, fewest, settings.get("denominator"))


def schedule_of(function: Callable[..., Tensor], input: Tensor, *args: Any, **settings: Any) -> str:
    """Which kernels ``function(input, *args, **settings)`` would take, for example ``"avx512 softmax rows streamed"``:
    device, instruction set and path. For tests and reports; the words are not part of the public interface.

    The gradient counts as wanted where input requires grad.
    """
    op = OPS[function.__name__]
    call = inspect.signature(function).bind(input, *args, **settings)
    call.apply_defaults()
    gradient = "inplace" if call.arguments["inplace_backward"] else "new"
    given = dict(call.arguments)
    for name, public in _PUBLIC_NAMES.items():
        if public in given:
            given[name], given[public] = tensor_and_number(given[public])
    arguments = op.encode(input, [given.get(name) for name in op.names])
    code = op.schedule(input.detach(), *arguments, _GRADIENTS[gradient if input.requires_grad else "none"])
    return _C.schedule_names()[input.device.type][code]


# ---- what torch.compile and meta tensors see: shapes and dtypes


def _check_devices(names: Sequence[str], args: Sequence[Any]) -> None:
    """Only here a meta tensor meets one with data: the dispatcher prefers the fake. Other checks are the ops' own."""
    devices = {name: arg.device for name, arg in zip(names, args, strict=True) if isinstance(arg, Tensor)}
    first, *others = devices
    for name in others:
        if devices[name] != devices[first]:
            raise ValueError(f"{name} is on {devices[name]}, but should be on the device of {first}: {devices[first]}.")


def _register_fake(op: torch._ops.OpOverload, results_of: Callable[..., Any]) -> None:
    names = [argument.name for argument in op._schema.arguments]

    def fake(*args: Any) -> Any:
        _check_devices(names, args)
        return results_of(**dict(zip(names, args, strict=True)))

    torch.library.register_fake(op.name(), fake)


def _register_loss_fake(op: torch._ops.OpOverload) -> None:
    returned = [result.name or "loss" for result in op._schema.returns]

    softmax = any(argument.name == "ignore_index" for argument in op._schema.arguments)

    def results_of(
        input: Tensor, target: Tensor, reduction: int, bins: Any = None, return_lse: bool = False, **_settings: Any
    ) -> Any:
        compute = torch.float64 if input.dtype == torch.float64 else torch.float32
        decisions = decisions_of(input) if softmax else input.shape
        mean = reduction == _ENUMERATIONS["reduction"]["mean"]
        of_name = {
            "loss": lambda: input.new_empty(decisions if reduction == 0 else (), dtype=compute),
            "grad": lambda: torch.empty_like(input),
            "stored_scale": lambda: input.new_empty(int(mean and input.dtype == torch.float16), dtype=torch.float32),
            "bin_weight": lambda: input.new_empty(bins, dtype=torch.float64),
            "lse": lambda: input.new_empty(decisions if return_lse else 0, dtype=compute),
        }
        results = tuple(of_name[name]() for name in returned)
        return results if len(results) > 1 else results[0]

    _register_fake(op, results_of)


for _op in OPS.values():
    for _overload in (_op.value, _op.with_grad, _op.inplace):
        _register_loss_fake(_overload)
for _name in ("gradient_norms", "sigmoid_gradient_norms"):
    _register_fake(
        getattr(torch.ops.fastloss, _name).default,
        lambda input, target, bins, **_: (
            input.new_empty(bins, dtype=torch.int64),
            input.new_empty(target.shape, dtype=torch.int32),
        ),
    )
_register_fake(torch.ops.fastloss.scale_gradient.default, lambda grad, **_: torch.empty_like(grad))
_register_fake(torch.ops.fastloss.scale_gradient.inplace, lambda **_: None)
