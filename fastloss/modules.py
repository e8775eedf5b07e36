"""The losses as modules: settings in the constructor, class weights and GHM's running statistics as buffers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import functional


class _Loss(nn.Module):
    """Its settings are its attributes, under the names of the function's keywords; they may be assigned anew. Those
    that are tensors are buffers."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._names = tuple(settings)
        for name, value in settings.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._settings().items())


class _SoftmaxLoss(_Loss):
    """Class weights, and what the softmax losses have beside their own parameter."""

    weight: Tensor | None
    ignore_index: int
    reduction: str
    z_loss: float
    logit_scale: float
    softcap: float | None
    return_lse: bool
    process_group: Any
    inplace_backward: bool

    def __init__(self, weight: Tensor | None, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_buffer("weight", weight)


class CrossEntropyLoss(_SoftmaxLoss):
    """:func:`fastloss.cross_entropy` as a module; a drop-in for :class:`torch.nn.CrossEntropyLoss`.

    Example:
        >>> loss = fastloss.CrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(1.0986)
    """

    label_smoothing: float

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        return_lse: bool = False,
        process_group: Any = None,
        inplace_backward: bool = False,
    ) -> None:
        if size_average is not None or reduce is not None:
            raise ValueError("size_average and reduce are deprecated in torch and should be None here; use reduction.")
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            logit_scale=logit_scale,
            softcap=softcap,
            return_lse=return_lse,
            process_group=process_group,
            inplace_backward=inplace_backward,
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        denominator: Tensor | float | None = None,
    ) -> Any:
        of_call: dict[str, Any] = {"sample_weight": sample_weight, "denominator": denominator}
        return functional.cross_entropy(input, target, self.weight, **of_call, **self._settings())


class FocalLoss(_SoftmaxLoss):
    """:func:`fastloss.focal_loss` as a module.

    Example:
        >>> fastloss.FocalLoss(gamma=2.0)(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(0.4883)
    """

    gamma: float

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        return_lse: bool = False,
        process_group: Any = None,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            weight,
            gamma=gamma,
            ignore_index=ignore_index,
            reduction=reduction,
            z_loss=z_loss,
            logit_scale=logit_scale,
            softcap=softcap,
            return_lse=return_lse,
            process_group=process_group,
            inplace_backward=inplace_backward,
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        denominator: Tensor | float | None = None,
    ) -> Any:
        of_call: dict[str, Any] = {"sample_weight": sample_weight, "denominator": denominator}
        return functional.focal_loss(input, target, self.weight, **of_call, **self._settings())


class PolyLoss(_SoftmaxLoss):
    """:func:`fastloss.poly_loss` as a module.

    Example:
        >>> fastloss.PolyLoss(epsilon=1.0)(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(1.7653)
    """

    epsilon: float

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        epsilon: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        return_lse: bool = False,
        process_group: Any = None,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            weight,
            epsilon=epsilon,
            ignore_index=ignore_index,
            reduction=reduction,
            z_loss=z_loss,
            logit_scale=logit_scale,
            softcap=softcap,
            return_lse=return_lse,
            process_group=process_group,
            inplace_backward=inplace_backward,
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        denominator: Tensor | float | None = None,
    ) -> Any:
        of_call: dict[str, Any] = {"sample_weight": sample_weight, "denominator": denominator}
        return functional.poly_loss(input, target, self.weight, **of_call, **self._settings())


class SigmoidFocalLoss(_Loss):
    """:func:`fastloss.sigmoid_focal_loss` as a module.

    Example:
        >>> fastloss.SigmoidFocalLoss(reduction="mean")(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor(0.0866)
    """

    alpha: float | Tensor
    gamma: float | tuple[float, float]
    margin: float
    reduction: str
    process_group: Any
    inplace_backward: bool

    def __init__(
        self,
        *,
        alpha: float | Tensor = 0.25,
        gamma: float | tuple[float, float] = 2.0,
        margin: float = 0.0,
        reduction: str = "none",
        process_group: Any = None,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha,
            gamma=gamma,
            margin=margin,
            reduction=reduction,
            process_group=process_group,
            inplace_backward=inplace_backward,
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        factors: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "denominator": denominator}
        return functional.sigmoid_focal_loss(input, target, **factors, **self._settings())


class AsymmetricLoss(_Loss):
    """:func:`fastloss.asymmetric_loss` as a module.

    Example:
        >>> fastloss.AsymmetricLoss()(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor(0.7177)
    """

    gamma_positive: float
    gamma_negative: float
    margin: float
    alpha: float | Tensor
    reduction: str
    process_group: Any
    inplace_backward: bool

    def __init__(
        self,
        *,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        alpha: float | Tensor = -1.0,
        reduction: str = "sum",
        process_group: Any = None,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            gamma_positive=gamma_positive,
            gamma_negative=gamma_negative,
            margin=margin,
            alpha=alpha,
            reduction=reduction,
            process_group=process_group,
            inplace_backward=inplace_backward,
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        factors: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "denominator": denominator}
        return functional.asymmetric_loss(input, target, **factors, **self._settings())


class _GHMLoss(_Loss):
    """Owns the running statistics; they exist only with momentum and move only in training mode.

    They move in every call of a training step: under activation checkpointing, which calls a module twice, compute the
    loss outside of the checkpointed part.
    """

    running_histogram: Tensor | None
    num_updates: Tensor | None
    bins: int
    momentum: float
    normalizer: str
    bias_correction: bool
    power: float
    reduction: str
    process_group: Any
    inplace_backward: bool

    def __init__(self, *, bins: int, momentum: float, **settings: Any) -> None:
        super().__init__(bins=bins, momentum=momentum, **settings)
        has_state = momentum > 0
        self.register_buffer("running_histogram", torch.zeros(bins, dtype=torch.float64) if has_state else None)
        self.register_buffer("num_updates", torch.zeros(bins, dtype=torch.int64) if has_state else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_GHMLoss":
        # half(), type() and to(dtype) are for the network; the running counts keep their types wherever they are moved.
        before = {name: self._buffers[name] for name in ("running_histogram", "num_updates")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _state(self) -> dict[str, Any]:
        return {
            "running_histogram": self.running_histogram,
            "num_updates": self.num_updates,
            "training": self.training,
        }


class GHMCLoss(_GHMLoss):
    """:func:`fastloss.ghmc_loss` as a module that owns the running statistics.

    Example:
        >>> fastloss.GHMCLoss(bins=10, momentum=0.9)(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(1.0986)
    """

    ignore_index: int

    def __init__(
        self,
        *,
        bins: int = 10,
        momentum: float = 0.0,
        normalizer: str = "nonempty",
        bias_correction: bool = True,
        power: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        process_group: Any = None,
        inplace_backward: bool = False,
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
            inplace_backward=inplace_backward,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.ghmc_loss(input, target, **self._settings(), **self._state())


class SigmoidGHMCLoss(_GHMLoss):
    """:func:`fastloss.sigmoid_ghmc_loss` as a module that owns the running statistics.

    Example:
        >>> fastloss.SigmoidGHMCLoss()(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor(0.6931)
    """

    def __init__(
        self,
        *,
        bins: int = 10,
        momentum: float = 0.0,
        normalizer: str = "nonempty",
        bias_correction: bool = True,
        power: float = 1.0,
        reduction: str = "mean",
        process_group: Any = None,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            bins=bins,
            momentum=momentum,
            normalizer=normalizer,
            bias_correction=bias_correction,
            power=power,
            reduction=reduction,
            process_group=process_group,
            inplace_backward=inplace_backward,
        )

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.sigmoid_ghmc_loss(input, target, mask, **self._settings(), **self._state())
