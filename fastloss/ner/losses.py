"""The losses that can be compared and the specs that name them: `focal`, `lsr:0.05`, `ghmc:bins=30,momentum=0.9`.

This is the only list of losses. A class of one's own is `package.module:Class`, with options after another colon.
"""

import importlib
import inspect
import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastloss.ner.data import DataError, first_line

IGNORE = -100


@dataclass(frozen=True)
class Kind:
    """A class of fastloss, its colour in the figures, the options it is compared with, and what a bare value sets."""

    title: str
    module: str
    colour: str
    options: dict[str, Any] = field(default_factory=dict)
    bare: str | None = None


KINDS = {
    "ce": Kind("cross entropy", "CrossEntropyLoss", "#2f7fc1"),
    "lsr": Kind("cross entropy", "CrossEntropyLoss", "#e69f00", {"label_smoothing": 0.1}, "label_smoothing"),
    "focal": Kind("focal", "FocalLoss", "#009e73", {"gamma": 2.0}, "gamma"),
    "poly": Kind("poly-1", "PolyLoss", "#56b4e9", {"epsilon": 1.0}, "epsilon"),
    "ghmc": Kind("GHM-C", "GHMCLoss", "#d55e00", {"bins": 10}, "bins"),
}
# The article's four, and GHM-C with the settings that steady its weights.
DEFAULT_LOSSES = ("ce", "lsr", "focal", "ghmc", "ghmc:bins=30,momentum=0.9")


@dataclass(frozen=True)
class Loss:
    """A loss to train with: the spec that names it, a class and the options of its constructor."""

    name: str
    title: str
    path: str
    options: dict[str, Any]

    @property
    def slug(self) -> str:
        """The name as a file can have it."""
        return re.sub(r"[^\w.=-]+", "_", self.name)


def parse_loss(spec: str) -> Loss:
    """Reads a spec; raises DataError where it names no loss, or settings that the loss does not take."""
    name, *rest = spec.split(":")
    if name in KINDS:
        kind, text = KINDS[name], ":".join(rest)
        options = kind.options | parse_options(spec, text, kind.bare)
        loss = Loss(spec, describe(kind.title, options), f"fastloss:{kind.module}", options)
    elif 1 <= len(rest) <= 2 and all(part.isidentifier() for part in [*name.split("."), rest[0]]):
        options = parse_options(spec, "".join(rest[1:]), None)
        loss = Loss(spec, describe(rest[0], options), f"{name}:{rest[0]}", options)
    else:
        raise DataError(
            f'"{spec}" is no loss; it should be one of {", ".join(KINDS)}, with settings as in focal:gamma=1, '
            "or package.module:Class."
        )
    try_out(loss)
    return loss


def parse_options(spec: str, text: str, bare: str | None) -> dict[str, Any]:
    options = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals and bare:
            name, value = bare, item
        elif not (equals and name.isidentifier()):
            raise DataError(f'"{item}" in the loss "{spec}" should be a setting of the form name=value.')
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def describe(title: str, options: dict[str, Any]) -> str:
    return ", ".join([title, *(f"{name.replace('_', ' ')} {value}" for name, value in options.items())])


def try_out(loss: Loss) -> None:
    """Calls the loss once on three decisions, so that a wrong setting is found before any training."""
    try:
        value = make_criterion(loss, torch.ones(3))(torch.zeros(3, 3, requires_grad=True), torch.tensor([0, 2, IGNORE]))
    except DataError:
        raise
    except Exception as error:  # A user's class may raise anything.
        raise DataError(f'the loss "{loss.name}" cannot be used: {first_line(error)}') from None
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise DataError(f'the loss "{loss.name}" should return a scalar tensor for logits [N, C] and targets [N].')


class Criterion(nn.Module):
    """The sum of a loss over the decisions, divided by `count`: what a step holds, its accumulated batches and, as the
    Trainer multiplies by the number of ranks, its ranks together."""

    loss: Any

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.takes_denominator = "denominator" in inspect.signature(loss.forward).parameters
        self.is_mean = getattr(loss, "reduction", "mean") == "mean"
        # Whether a histogram is that of all ranks, which then have to call this equally often.
        self.across_ranks = False

    def forward(self, input: Tensor, target: Tensor, count: Tensor | float = 1.0) -> Tensor:
        if self.takes_denominator:
            return cast(Tensor, self.loss(input, target, denominator=count))
        if self.across_ranks and self.training and hasattr(self.loss, "process_group") and dist.is_initialized():
            self.loss.process_group = dist.group.WORLD
            value = self.loss(input, target)
            self.loss.process_group = None  # a group can be neither copied nor saved
            return cast(Tensor, value / (count * dist.get_world_size()))
        value = self.loss(input, target)
        return cast(Tensor, value * ((target != IGNORE).sum() if self.is_mean else 1) / count)


def make_criterion(loss: Loss, tag_counts: Tensor) -> Criterion:
    """A fresh module that maps logits [N, C] and targets [N] to the sum of their losses; it may have a state.

    `tag_counts` [C] are the training decisions of each tag, for `weight=balanced`: N / (C · count), which has mean 1
    over the training decisions. A class without a `reduction` is taken to return the mean over the decisions.
    """
    module_name, class_name = loss.path.split(":")
    try:
        make = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise DataError(f'the loss "{loss.name}" cannot be imported: {error}') from None
    options = dict(loss.options)
    if "weight" in options:
        if options["weight"] != "balanced":
            raise DataError(f'the weight of the loss "{loss.name}" should be balanced.')
        options["weight"] = (tag_counts.sum() / (len(tag_counts) * tag_counts.clamp(min=1))).float()
    parameters = inspect.signature(make).parameters
    module = make(**options)
    if "reduction" in parameters and "denominator" not in inspect.signature(module.forward).parameters:
        module = make(**options, reduction="sum")
    return Criterion(module)


def has_bins(name: str) -> bool:
    """Whether the loss of this name weighs the decisions by the histogram of the batch, as GHM-C does."""
    kind = KINDS.get(name.split(":")[0])
    return kind is not None and kind.module == "GHMCLoss"
