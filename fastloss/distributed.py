"""Sums over the ranks of a process group, before a loss's weights and denominator are formed.

``DistributedDataParallel`` averages the gradients of k ranks. So that this average is the gradient of one process on
the concatenated batch, a rank's loss is k times its sum over the denominator of all ranks; and GHM-C's histogram is
that of all ranks, so that its weights and its running statistics are the same everywhere. It takes one ``all_reduce``
of a few numbers a call, on the device of the logits; every rank of the group has to make the call. ``"none"`` is left
as it is: what becomes of each decision's loss is then the caller's.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def over_ranks(
    process_group: Any, reduction: str, denominator: Tensor | float | None, total: Tensor
) -> tuple[str, Tensor | float | None]:
    """``(reduction, denominator)`` of this rank's loss; total: what its mean would divide by."""
    size = size_of(process_group)
    if reduction == "sum":
        return "mean", 1 / size
    if reduction != "mean":
        return reduction, denominator
    if denominator is not None:
        raise ValueError(
            "denominator and process_group are both given, but one should be None: process_group sums the "
            "denominators of the ranks."
        )
    return "mean", sum_over_ranks(process_group, total.detach().double()) / size


def histogram_over_ranks(
    process_group: Any, reduction: str, counts: Tensor, fewest: int = 0
) -> tuple[Tensor, str, Tensor | float | None]:
    """``(counts, reduction, denominator)`` of this rank's GHM-C. fewest: what a mean divides by at least."""
    size = size_of(process_group)
    counts = sum_over_ranks(process_group, counts)
    if reduction == "sum":
        return counts, "mean", 1 / size
    return counts, reduction, counts.sum().clamp(min=fewest).double() / size if reduction == "mean" else None


def sum_over_ranks(process_group: Any, value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total, group=process_group)
    return total


def size_of(process_group: Any) -> int:
    """Refuses what is no group that this process is in."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "process_group is given under torch.compile, which has no graph for it; compile without fullgraph=True, or "
            "sum the denominator over the ranks yourself and pass it as denominator."
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise ValueError(
            f"process_group is of type {type(process_group).__name__}, but should be a torch.distributed.ProcessGroup, "
            "for example torch.distributed.group.WORLD, or None."
        )
    size = dist.get_world_size(process_group)
    if size < 1:
        raise ValueError("process_group is a group that this process does not belong to.")
    return size
