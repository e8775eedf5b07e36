"""Every kernel path of the CPU is executed, and right. The shapes come from the schedule itself, and together they take
every path that the library names for the instruction set in use; test_capabilities.py runs this file under each of
them."""

import pytest
import torch
from cases import DTYPES, WIDE, check, ignore_bin_edges, make_sigmoid, make_softmax

import fastloss
from fastloss import _C
from fastloss.autograd import schedule_of

# name: loss and settings, one for every kind of loss that has code of its own.
SOFTMAX = {
    "cross_entropy": (fastloss.cross_entropy, {}),
    "smoothing": (fastloss.cross_entropy, {"label_smoothing": 0.1}),
    "focal": (fastloss.focal_loss, {"gamma": 2.0}),
    "extended": (fastloss.focal_loss, {"z_loss": 0.01, "softcap": 8.0}),
    "ghmc": (fastloss.ghmc_loss, {"bins": 10}),
}
SIGMOID = {
    "sigmoid_focal": (fastloss.sigmoid_focal_loss, {}),
    "asymmetric": (fastloss.asymmetric_loss, {}),
    "sigmoid_ghmc": (fastloss.sigmoid_ghmc_loss, {"bins": 10}),
}
LOSSES = SOFTMAX | SIGMOID

# name: uninitialised logits of about n decisions.
SOFTMAX_LAYOUTS = {
    "rows of a few": lambda n, dtype: torch.empty(n, 11, dtype=dtype),
    "rows of three": lambda n, dtype: torch.empty(n, 3, dtype=dtype),
    "one class": lambda n, dtype: torch.empty(n, 1, dtype=dtype),
    "wide rows": lambda n, dtype: torch.empty(n, WIDE + 7, dtype=dtype),
    "class dimension apart": lambda n, dtype: torch.empty(3, 21, n // 3 + 1, dtype=dtype),
    "wide and apart": lambda n, dtype: torch.empty(3, WIDE, n // 3 + 1, dtype=dtype),
    "every third class": lambda n, dtype: torch.empty(n, 33, dtype=dtype)[:, 1::3],
}
SIGMOID_LAYOUTS = {"any": lambda n, dtype: torch.empty(n, dtype=dtype)}

FEW = 203  # decisions: whole tiles of every width and a rest
LARGE = 64 << 20  # bytes: no threshold is higher


def path_of(loss, x, gradient):
    function, settings = LOSSES[loss]
    decisions = x.shape if loss in SIGMOID else x.shape[:1] + x.shape[2:]
    target = torch.empty(decisions, dtype=x.dtype if loss in SIGMOID else torch.int64)
    x = x.detach().requires_grad_(gradient != "none")
    return schedule_of(function, x, target, inplace_backward=gradient == "in place", **settings)


def numbers_of_decisions(loss, make, dtype):
    """A few, and one of each path that larger numbers take."""
    yield FEW
    seen, n = {path_of(loss, make(FEW, dtype), "new")}, FEW
    while make(n, dtype).nbytes <= LARGE:
        path = path_of(loss, make(n, dtype), "new")
        if path not in seen:
            seen.add(path)
            yield n
        n += n // 2


def cases():
    """(loss, layout, dtype, n, gradient) that take every path."""
    for loss in LOSSES:
        for layout, make in (SIGMOID_LAYOUTS if loss in SIGMOID else SOFTMAX_LAYOUTS).items():
            for dtype in DTYPES:
                for n in numbers_of_decisions(loss, make, dtype):
                    yield loss, layout, dtype, n, "new"
                yield loss, layout, dtype, FEW, "in place"
                yield loss, layout, dtype, FEW, "none"


CASES = list(cases())


def make_of(loss, layout):
    return (SIGMOID_LAYOUTS if loss in SIGMOID else SOFTMAX_LAYOUTS)[layout]


def fill(loss, make, n, dtype):
    """``(logits, target)``: hopeless predictions and certain ones too."""
    x = make(n, dtype)
    if loss in SIGMOID:
        values, target = make_sigmoid(tuple(x.shape), dtype, soft=False)
        return x.copy_(values), target
    values, target = make_softmax(tuple(x.shape), dtype)
    at = target.clamp(min=0).unsqueeze(1)
    shift = torch.rand(at.shape)
    values.scatter_add_(1, at, torch.where(shift < 0.1, -120.0, torch.where(shift > 0.9, 120.0, 0.0)).to(dtype))
    x.copy_(values)
    return x, ignore_bin_edges(x, target, 10) if loss == "ghmc" else target


def test_the_cases_take_every_path():
    active = fastloss.build_info()["cpu_capability"]
    isas = {"avx512", "avx512_bf16"} if active == "avx512_bf16" else {active}
    there_are = {name for name in _C.schedule_names()["cpu"] if name.split()[0] in isas}
    if active == "avx512_bf16":  # has bfloat16 alone, and avx512 the others
        assert any(name.startswith("avx512_bf16 ") for name in there_are)
    taken = {path_of(loss, make_of(loss, layout)(n, dtype), gradient) for loss, layout, dtype, n, gradient in CASES}
    assert taken == there_are


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_path(loss, dtype):
    function, settings = LOSSES[loss]
    for of_loss, layout, of_dtype, n, gradient in CASES:
        if of_loss != loss or of_dtype != dtype:
            continue
        x, target = fill(loss, make_of(loss, layout), n, dtype)
        what = (layout, n, gradient)
        if gradient == "new" and "streamed" not in path_of(loss, x, gradient):
            check(function.__name__, x, target, reduction="sum", **settings)
            continue
        # The same bits by another way: what is written over the logits is not streamed.
        wanted = x.detach().requires_grad_()
        expected = function(wanted, target, reduction="sum", **settings)
        expected.backward()
        if gradient == "none":
            assert torch.equal(function(x, target, reduction="sum", **settings), expected), what
        else:
            y = make_of(loss, layout)(n, dtype).copy_(x).requires_grad_()
            assert "streamed" not in path_of(loss, y, "in place"), what
            value = function(y, target, reduction="sum", inplace_backward=True, **settings)
            value.backward()
            assert torch.equal(value, expected) and torch.equal(y.grad, wanted.grad), what
