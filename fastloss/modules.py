"""The losses as modules: settings in the constructor, class weights and GHM's running statistics as buffers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import functional


class _Loss(nn.Module):
    """Its settings are its attributes, under the names of the function's keywords; they may be assigned anew."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._names = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._settings().items())


class CrossEntropyLoss(_Loss):
    """:func:`fastloss.cross_entropy` as a module; a drop-in for :class:`torch.nn.CrossEntropyLoss`.

    Example:
        >>> loss = fastloss.CrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(1.0986)
    """

    weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float
    inplace_backward: bool

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            inplace_backward=inplace_backward,
        )
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(input, target, self.weight, **self._settings())


class FocalLoss(_Loss):
    """:func:`fastloss.focal_loss` as a module.

    Example:
        >>> fastloss.FocalLoss(gamma=2.0)(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(0.4883)
    """

    weight: Tensor | None
    gamma: float
    ignore_index: int
    reduction: str
    inplace_backward: bool

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(gamma=gamma, ignore_index=ignore_index, reduction=reduction, inplace_backward=inplace_backward)
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.focal_loss(input, target, self.weight, **self._settings())


class PolyLoss(_Loss):
    """:func:`fastloss.poly_loss` as a module.

    Example:
        >>> fastloss.PolyLoss(epsilon=1.0)(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(1.7653)
    """

    weight: Tensor | None
    epsilon: float
    ignore_index: int
    reduction: str
    inplace_backward: bool

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        epsilon: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            epsilon=epsilon, ignore_index=ignore_index, reduction=reduction, inplace_backward=inplace_backward
        )
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.poly_loss(input, target, self.weight, **self._settings())


class SigmoidFocalLoss(_Loss):
    """:func:`fastloss.sigmoid_focal_loss` as a module.

    Example:
        >>> fastloss.SigmoidFocalLoss(reduction="mean")(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor(0.0866)
    """

    alpha: float
    gamma: float
    reduction: str
    inplace_backward: bool

    def __init__(
        self, *, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none", inplace_backward: bool = False
    ) -> None:
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction, inplace_backward=inplace_backward)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.sigmoid_focal_loss(input, target, **self._settings())


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
    reduction: str
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
        ignore_index: int = -100,
        reduction: str = "mean",
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            bins=bins,
            momentum=momentum,
            normalizer=normalizer,
            bias_correction=bias_correction,
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
        reduction: str = "mean",
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            bins=bins,
            momentum=momentum,
            normalizer=normalizer,
            bias_correction=bias_correction,
            reduction=reduction,
            inplace_backward=inplace_backward,
        )

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.sigmoid_ghmc_loss(input, target, mask, **self._settings(), **self._state())
