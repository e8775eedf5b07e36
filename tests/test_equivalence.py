"""Every loss equals fastloss.reference: shapes, dtypes, reductions, weights, memory layouts, alignments."""

import itertools

import pytest
import torch
from cases import (
    DTYPES,
    IGNORE,
    NARROW,
    REDUCTIONS,
    SIGMOID_LOSSES,
    SOFTMAX_LOSSES,
    WIDE,
    at_offset,
    check,
    clear_of_bin_edges,
    differentiate,
    ignore_bin_edges,
    layouts,
    make_sigmoid,
    make_softmax,
    probabilities_like,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastloss

# Around the vector widths 4, 8, 16, where rows go one at a time, and whole blocks.
CLASSES = [1, 2, 3, 7, 11, 16, 17, 31, 33, 64, 100, NARROW, NARROW + 1, WIDE, 1000, 5003]
DECISIONS = [0, 1, 3, 15, 16, 17, 100]
ND_SHAPES = [
    (5,),
    (1,),
    (300,),
    (2, 3, 5),
    (3, 11, 4, 5),
    (2, 7, 1, 3, 2),
    (4, WIDE, 3),
    (2, 4, 17, 33),
    (0, 3, 4),
    (2, 3, 0),
]


PROBABILITIES = {"label_smoothing": 0.1}
CHECKED = [*SOFTMAX_LOSSES, "probabilities"]


def softmax_check(loss, x, target, reduction, weighted):
    name, options, takes_weight = SOFTMAX_LOSSES.get(loss, ("cross_entropy", PROBABILITIES, True))
    args = []
    if "bins" in options:
        target = ignore_bin_edges(x, target, options["bins"])
    if takes_weight and weighted:
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        args = [torch.rand(x.shape[min(x.dim() - 1, 1)], dtype=compute, device=x.device) + 0.5]
    grad_output = torch.rand(target.shape, device=x.device) + 0.5 if reduction == "none" else None
    if grad_output is not None and x.dtype == torch.float64:
        grad_output = grad_output.double()
    if loss == "probabilities":
        options = options | {"sample_weight": torch.rand(target.shape, device=x.device)}
        target = probabilities_like(x, x.dtype if weighted else torch.float32)
    check(name, x, target, *args, grad_output=grad_output, reduction=reduction, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", CHECKED)
def test_softmax_shapes(loss, dtype, device):
    turn = itertools.count()
    for classes in CLASSES:
        for decisions in DECISIONS if classes < 1000 else [1, 17]:
            i = next(turn)
            target_dtype = [torch.int64, torch.int32][i % 2]
            x, target = make_softmax((decisions, classes), dtype, device, target_dtype=target_dtype)
            softmax_check(loss, x, target, REDUCTIONS[i % 3], weighted=i % 4 < 2)
    for shape in ND_SHAPES:
        x, target = make_softmax(shape, dtype, device)
        for reduction in REDUCTIONS:
            softmax_check(loss, x, target, reduction, weighted=next(turn) % 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", CHECKED)
def test_softmax_layouts(loss, dtype, device):
    turn = itertools.count()
    for shape in [(35, 11), (18, NARROW), (18, WIDE), (3, 11, 5, 7), (2, WIDE, 3, 6), (3, 5, 2, 3, 4), (40, 1)]:
        x, target = make_softmax(shape, dtype, device)
        for _, view in layouts(x):
            softmax_check(loss, view, target, REDUCTIONS[next(turn) % 3], weighted=True)
    for shape in [(20, 11), (7, WIDE)]:  # one row, or one class, for all
        x, target = make_softmax(shape, dtype, device)
        for view in (x[:1].expand(shape), x[:, :1].expand(shape), x[:1, :1].expand(shape)):
            softmax_check(loss, view, target, REDUCTIONS[next(turn) % 3], weighted=True)


@pytest.mark.parametrize("loss", CHECKED)
def test_softmax_alignments(loss, device):
    for dtype, shape, offset in itertools.product(DTYPES, [(37, 11), (19, 16), (5, WIDE)], range(17)):
        x, target = make_softmax(shape, dtype, device)
        softmax_check(loss, at_offset(x, offset), target, REDUCTIONS[offset % 3], weighted=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_hopeless_and_certain_predictions(loss, dtype, device):
    """Targets whose probability is far below the smallest float, and others that are as good as 1: the gradient of such
    a target's class is -1, and 0, in every layout."""
    turn = itertools.count()
    for shape in [(37, 11), (19, WIDE), (2, 11, 5, 7), (2, WIDE, 3, 6)]:
        x, target = make_softmax(shape, dtype, device, scale=1.0)
        at = target.clamp(min=0).unsqueeze(1)
        hopeless = torch.rand(at.shape, device=device) < 0.5
        x.scatter_(1, at, torch.where(hopeless, -150.0, 150.0).to(dtype))
        for _, view in layouts(x):
            softmax_check(loss, view, target, REDUCTIONS[next(turn) % 3], weighted=True)
        _, grad = differentiate(fastloss.cross_entropy, x, target, reduction="sum")
        picked = grad.gather(1, at)[(target != IGNORE).unsqueeze(1)].double()
        expected = -hopeless[(target != IGNORE).unsqueeze(1)].double()
        torch.testing.assert_close(picked, expected, rtol=0, atol=1e-6)


def test_strided_targets_and_weights(device):
    x, target = make_softmax((30, 7), device=device)
    spaced = torch.stack([target, target + 1000], 1)[:, 0]
    weight = torch.rand(14, device=device)[::2]
    softmax = [(name, options) for name, options, takes_weight in SOFTMAX_LOSSES.values() if takes_weight]
    for name, options in softmax:
        check(name, x, spaced, weight, **options)
        check(name, x, spaced.expand(30), weight[:1].expand(7), **options)


def test_weights_of_another_dtype(device):
    """The weights are used in the compute type, whatever they are stored in."""
    for dtype, weight_dtype in itertools.product(DTYPES, DTYPES):
        x, target = make_softmax((20, 7), dtype, device)
        check("cross_entropy", x, target, (torch.arange(7, device=device) / 4 + 0.5).to(weight_dtype))


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_many_decisions(loss, device):
    x, target = make_softmax((2**17 + 3, 11), device=device)
    softmax_check(loss, x, target, "mean", weighted=True)


def sigmoid_check(loss, x, target, reduction, masked):
    name, options = SIGMOID_LOSSES[loss]
    args = []
    if "bins" in options:
        mask = clear_of_bin_edges((x.double().sigmoid() - target.double()).abs(), options["bins"])
        args = [mask & (torch.rand(x.shape, device=x.device) < 0.7) if masked else mask]
    grad_output = torch.rand(x.shape, device=x.device) + 0.5 if reduction == "none" else None
    if grad_output is not None and x.dtype == torch.float64:
        grad_output = grad_output.double()
    check(name, x, target, *args, grad_output=grad_output, reduction=reduction, **options)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", SIGMOID_LOSSES)
def test_sigmoid(loss, dtype, soft, device):
    turn = itertools.count()
    for shape in [(), (1,), (0,), (3,), (15,), (16,), (17,), (33, 3), (2, 3, 5), (8191,), (8193,), (0, 4)]:
        x, target = make_sigmoid(shape, dtype, device, soft)
        for target_dtype in {torch.float32, dtype, torch.float64 if dtype == torch.float64 else torch.float32}:
            sigmoid_check(loss, x, target.to(target_dtype), REDUCTIONS[next(turn) % 3], masked=next(turn) % 2)
    x, target = make_sigmoid((5, 11, 6), dtype, device, soft)
    for (_, view), (_, target_view) in zip(layouts(x), reversed(list(layouts(target))), strict=True):
        sigmoid_check(loss, view, target_view, REDUCTIONS[next(turn) % 3], masked=True)
    for offset in range(17):
        x, target = make_sigmoid((53,), dtype, device, soft)
        sigmoid_check(loss, at_offset(x, offset), at_offset(target, 16 - offset), REDUCTIONS[offset % 3], masked=True)


@st.composite
def random_views(draw):
    """Logits of random shape, dimension order in memory, steps, gaps and alignment, with their target."""
    sizes = [draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 5, 11, 16, 19, NARROW, WIDE]))]
    sizes += draw(st.lists(st.integers(1, 5), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x, target = make_softmax(tuple(sizes), dtype, target_dtype=draw(st.sampled_from([torch.int64, torch.int32])))
    order = draw(st.permutations(range(len(sizes))))
    steps = [draw(st.integers(1, 3)) for _ in sizes]
    gaps = [draw(st.integers(0, 2)) for _ in sizes]
    memory = [sizes[d] * steps[d] + gaps[d] for d in order]
    offset = draw(st.integers(0, 7))
    count = torch.Size(memory).numel()
    buffer = torch.full([count + offset], float("nan"), dtype=dtype)[offset:].view(memory)
    buffer = buffer.permute([order.index(d) for d in range(len(sizes))])
    view = buffer[tuple(slice(gap, gap + n * step, step) for n, step, gap in zip(sizes, steps, gaps, strict=True))]
    return view.copy_(x), target


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(random_views(), st.sampled_from(CHECKED), st.sampled_from(REDUCTIONS), st.booleans())
def test_any_view(view_and_target, loss, reduction, weighted):
    softmax_check(loss, *view_and_target, reduction, weighted)
