"""What fastloss asks of torch that has no public name. Looked up once, each with a fallback that is public and safe.

A torch that renames one of them makes fastloss a little slower or stricter, never wrong.
"""

from typing import Any

import torch
from torch.autograd import forward_ad


def _attribute(path: str) -> Any:
    """``torch.<path>``, or None where this torch has no such thing."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _always(*_args: object) -> bool:
    return True


# Whether torch.func's transforms are active. Fallback: every call goes through Function.apply, which refuses them.
transforms_active = _attribute("_C._are_functorch_transforms_active")

# How many TorchDispatchModes (fake tensors, make_fx, ...) see each operation. Fallback: take it that some do.
dispatch_modes = _attribute("_C._len_torch_dispatch_stack") or _always

# Whether is_grads_batched has put several gradients into this one. Fallback: take it that it has.
is_batched = _attribute("_C._functorch.is_legacy_batchedtensor") or _always

# Whether this backward pass keeps the graph for another one. Fallback: it may.
keeps_graph = _attribute("_C._autograd._get_current_graph_task_keep_graph") or _always

# Function.apply without its look at torch.func's transforms, 5% of a small batch's time. Fallback: with it.
_base = _attribute("_C._FunctionBase")


def quick_apply(function: type[torch.autograd.Function]) -> Any:
    """``function.apply`` for calls outside of torch.func's transforms."""
    below: Any = super(torch.autograd.Function, function)
    return below.apply if _base and transforms_active else function.apply


_unpacks_one = callable(getattr(_attribute("_C._autograd.SavedTensor"), "unpack", None))


def first_saved(ctx: Any) -> torch.Tensor:
    """``ctx.saved_tensors[0]``, whatever has become of the others. Fallback: refuses if one of them has changed."""
    try:
        return ctx.saved_tensors[0]  # quicker, and refuses if any of them has changed
    except RuntimeError:
        if not _unpacks_one:
            raise
        return ctx._raw_saved_tensors[0].unpack()


_has_level = hasattr(forward_ad, "_current_level")


def has_tangent(*tensors: object) -> bool:
    """Whether forward-mode AD differentiates with respect to one of these. Fallback: asks each tensor in every call."""
    if _has_level and forward_ad._current_level < 0:
        return False
    return any(isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
