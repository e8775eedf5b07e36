"""The softmax kernels and their launchers against fastloss.reference in float64, in the emulator."""

import numpy as np
import pytest
import torch
from cases import ignore_bin_edges
from emulator import SCHEDULES, kernels, moved_bytes

from fastloss import reference

LOSSES = {
    "cross_entropy": (reference.cross_entropy, {}),
    "smoothing": (reference.cross_entropy, {"label_smoothing": 0.1}),
    "focal": (reference.focal_loss, {"gamma": 2.0}),
    "poly": (reference.poly_loss, {"epsilon": 1.0}),
    "ghmc": (reference.ghmc_loss, {"bins": 10}),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# What one rounding to the dtype may be off after a computation in float32 (float64), relative to the largest gradient.
GRADIENT_TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 5e-4}
LOSS_TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2e-6, torch.float16: 2e-6}


def batch(shape, dtype=torch.float32, ignored=0.1):
    """Logits (N, C, ...) and targets, some of them ignored."""
    input = (torch.randn(shape) * 3).to(dtype)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    target[torch.rand(target.shape) < ignored] = -100
    return input, target


def expected(name, input, target, weight=None, **settings):
    """(loss, gradient) of the reference in float64."""
    function, defaults = LOSSES[name]
    input = input.detach().double().clone().requires_grad_()
    if target.is_floating_point():
        target = target.double()
    if weight is not None:
        settings["weight"] = weight.double()
    loss = function(input, target, **{**defaults, **settings})
    loss.sum().backward()
    return loss.detach(), input.grad


def run(softmax, name, input, target, weight=None, **settings):
    """(loss, launches) of a name of LOSSES."""
    function, defaults = LOSSES[name]
    return softmax.loss(function.__name__, input, target, weight, **{**defaults, **settings})


def check(softmax, name, input, target, weight=None, *, grad=None, options=None, **settings):
    """Loss and gradient are the reference's. grad: where the gradient goes, the input itself for in place."""
    loss, gradient = expected(name, input, target, weight, **settings)
    grad = torch.empty_like(input) if grad is None else grad
    dtype = input.dtype
    stored = torch.ones(1) if dtype == torch.float16 else None
    got, log = run(softmax, name, input, target, weight, grad=grad, stored_scale=stored, **settings, **(options or {}))
    torch.testing.assert_close(
        got.double(), loss, rtol=LOSS_TOLERANCE[dtype], atol=LOSS_TOLERANCE[dtype], equal_nan=True
    )
    largest = gradient.abs().max().item() if gradient.numel() else 0.0
    if input.dim() > 1 and input.shape[1] == 1:  # the gradient is 0: a difference of numbers up to 1
        largest = 1.0
    unscaled = grad.double() if stored is None else grad.double() / stored.item()
    torch.testing.assert_close(unscaled, gradient, rtol=0, atol=GRADIENT_TOLERANCE[dtype] * largest + 1e-12)
    return got, log


# Shapes of every path, float32. Those after the first make the blocks of a grid of 16 loop.
PATHS = {
    "tile of 4 classes": [(37, 3), (3000, 3)],
    "tile of 8 classes": [(37, 8)],
    "tile of 12 classes": [(37, 11), (2100, 11)],
    "tile of 16 classes": [(37, 15)],
    "tile of 24 classes": [(37, 20)],
    "tile of 32 classes": [(37, 31)],
    "part of a warp a row, staged": [(37, 100), (600, 40)],
    "block a row, staged": [(5, 4097), (19, 2100)],
    "block a row, partly staged": [(2, 70001)],
    "positions, staged": [(3, 5, 21), (5, 6, 2051), (3, 40, 37)],
    "positions, partly staged": [(2, 1000, 9)],
    "wide positions, staged": [(3, 5, 20), (5, 6, 4100), (3, 40, 36)],
    "wide positions, partly staged": [(2, 230, 12)],
}
ONE_PASS = {
    "part of a warp a row": (37, 100),
    "block a row": (5, 4097),
    "positions": (3, 5, 21),
    "wide positions": (3, 5, 20),
}
SMALL = [shapes[0] for shapes in PATHS.values()]
LOOPING = [(3000, 3), (2100, 11), (600, 40), (19, 2100), (5, 6, 2051), (5, 6, 4100)]
SHORT = [shape for shape in SMALL if max(shape) < 4000]


def test_shapes_take_every_path(softmax):
    """That is what the tests below run; each is the reference's there, and with one pass, without a gradient."""
    for path, shapes in PATHS.items():
        for shape in shapes:
            input = torch.empty(shape)
            assert softmax.path(input, input) == f"cuda softmax {path}", shape
    for path, shape in ONE_PASS.items():
        input, target = batch(shape)
        assert softmax.path(input) == f"cuda softmax {path}", shape
        for name in ("cross_entropy", "focal", "ghmc"):
            loss, _ = run(softmax, name, input, target)
            torch.testing.assert_close(loss.double(), expected(name, input, target)[0], rtol=2e-6, atol=0)
    assert softmax.schedule_names("softmax") == {f"cuda softmax {path}" for path in (*PATHS, *ONE_PASS)}


def test_emulator_runs_every_instruction(softmax):
    assert len(softmax.lib.module.kernels) > 60
    assert softmax.unsupported() == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("C", [1, 2, 3, 7, 11, 16, 31, 32, 33, 100, 1000, 4097, 70001])
def test_matches_reference(softmax, C, dtype):
    input, target = batch((37 if C < 1000 else 5 if C < 10000 else 2, C), dtype)
    target[0] = C - 1
    weight = torch.rand(C) + 0.5
    check(softmax, "cross_entropy", input, target)
    check(softmax, "smoothing", input, target, weight, reduction="sum")
    check(softmax, "focal", input, target, weight)
    check(softmax, "poly", input, target)
    check(softmax, "ghmc", input, target)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("C", [11, 100])
def test_reductions_weights_and_int32_targets(softmax, name, C):
    input, target = batch((29, C))
    for reduction in ("none", "mean", "sum"):
        for weight in (None,) if name == "ghmc" else (None, torch.rand(C)):
            check(softmax, name, input, target.int(), weight, reduction=reduction)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.7])
def test_focal_gamma(softmax, gamma):
    input, target = batch((33, 7))
    input[3] = torch.tensor([100.0, 0, 0, 0, 0, 0, 0])  # p = 1: q^(gamma - 1) would be infinite
    target[3] = 0
    check(softmax, "focal", input, target, gamma=gamma)


@pytest.mark.parametrize("shape", [(0, 11), (0, 100), (1, 11), (1, 100), (0, 3, 4), (1, 3, 1)])
@pytest.mark.parametrize("name", LOSSES)
def test_empty_and_single(softmax, name, shape):
    input, target = batch(shape, ignored=0)
    for reduction in ("none", "mean", "sum"):
        check(softmax, name, input, target, reduction=reduction)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", LOOPING, ids=str)
def test_any_schedule_gives_the_same_bits(softmax, name, shape):
    """On a grid that is too small for the batch, so that its blocks loop."""
    input, target = batch(shape)
    grad = torch.empty_like(input)
    first, log = check(softmax, name, input, target, grad=grad)
    assert log[-1][1][0] == 16
    for options in SCHEDULES:
        other = torch.empty_like(input)
        loss, _ = run(softmax, name, input, target, grad=other, **options)
        assert torch.equal(loss, first)
        assert torch.equal(other, grad)


@pytest.mark.parametrize("shape", SHORT, ids=str)
def test_errors_of_the_hardware_functions(softmax, shape):
    """ex2, lg2, rcp and the like as inexact as the hardware may be."""
    for name in LOSSES:
        check(softmax, name, *batch(shape), options={"approx_noise": True})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_hopeless_and_certain(softmax, shape, dtype):
    """p = 0 and p = 1 in the compute type, where a target's onehot is all or nothing of the gradient."""
    input, target = batch(shape, dtype)
    hits = torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2)) == target.unsqueeze(1)
    sign = torch.where(torch.rand(target.shape) < 0.5, -120.0, 120.0).unsqueeze(1)
    input = torch.where(hits, sign.to(dtype), input)
    for name in ("cross_entropy", "smoothing", "focal"):
        check(softmax, name, input, target, reduction="sum")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(37, 11), (600, 3), (13, 33), (5, 1001), (3, 4, 12)], ids=str)
def test_misaligned_tensors(softmax, shape, dtype):
    """Slices start at any element; input and gradient may differ in alignment."""
    input, target = batch(shape, dtype)
    size = input.numel()
    for offset, grad_offset in ((1, 1), (1, 0), (0, 3), (2, 5)):
        moved = torch.zeros(size + 8, dtype=dtype)[offset:][:size].view(shape).copy_(input)
        grad = torch.zeros(size + 8, dtype=dtype)[grad_offset:][:size].view(shape)
        check(softmax, "cross_entropy", moved, target, grad=grad, options=SCHEDULES[3])


def layouts(dtype=torch.float32):
    """Logits and gradient in every arrangement of memory; each a function that gives uninitialised tensors."""
    empty = lambda *shape: torch.empty(shape, dtype=dtype)  # noqa: E731
    return {
        "images": lambda: empty(3, 5, 6, 7),
        "many classes": lambda: empty(2, 130, 9),
        "channels last": lambda: empty(3, 6, 7, 5).permute(0, 3, 1, 2),
        "class dimension first": lambda: empty(9, 37).t(),
        "sliced rows": lambda: empty(37, 20)[:, 3:14],
        "sliced wide rows": lambda: empty(7, 80)[:, 5:65],
        "every other row": lambda: empty(74, 11)[::2],
        "every other class": lambda: empty(37, 22)[:, ::2],
        "three dimensions that do not merge": lambda: empty(3, 4, 11, 5).permute(1, 2, 3, 0),
        "one class dimension only": lambda: empty(11),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", ["smoothing", "ghmc"])
def test_strides(softmax, layout, name):
    input = layouts()[layout]().normal_()
    C = input.shape[0 if input.dim() == 1 else 1]
    target = torch.randint(0, C, (() if input.dim() == 1 else (input.shape[0], *input.shape[2:])))
    check(softmax, name, input, target)  # empty_like drops gaps
    check(softmax, name, input, target, grad=layouts()[layout]().fill_(torch.nan))
    check(softmax, name, input, target, grad=torch.empty(input.shape))


def test_gaps_are_not_written(softmax):
    for shape, columns in (((37, 20), slice(3, 14)), ((7, 80), slice(5, 65)), ((37, 22), slice(None, None, 2))):
        input = torch.randn(shape)[:, columns]
        whole = torch.full(shape, 7.0)
        check(softmax, "focal", input, torch.randint(0, input.shape[1], shape[:1]), grad=whole[:, columns])
        whole[:, columns] = 7.0
        assert (whole == 7).all()


def test_expanded_input(softmax):
    input = torch.randn(1, 6).expand(20, 6)
    check(softmax, "focal", input, torch.randint(0, 6, (20,)), grad=torch.empty(20, 6))


@pytest.mark.parametrize("shape", [*SMALL, *LOOPING], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_place(softmax, shape, dtype):
    for name in LOSSES if max(shape) < 10000 else ("smoothing",):
        input, target = batch(shape, dtype)
        check(softmax, name, input, target, grad=input, options=SCHEDULES[0])


@pytest.mark.parametrize("shape", SHORT, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_rows(softmax, name, shape):
    """They count for nothing, whatever their logits: gradient 0, also where 0 * nan would be nan."""
    input, target = batch(shape, ignored=0.3)
    check(softmax, name, input, target.where(target >= 0, 3), ignore_index=3)
    clean, grad = expected(name, input, target)[0], torch.empty_like(input)
    rows = input.movedim(1, -1)
    rows[target == -100] = torch.nan
    loss, _ = run(softmax, name, input, target, grad=grad)
    torch.testing.assert_close(loss.double(), clean, rtol=2e-6, atol=0)
    assert (grad.movedim(1, -1)[target == -100] == 0).all() and grad.isfinite().all()
    target.fill_(-100)
    for reduction, value in (("mean", np.nan), ("sum", 0.0)):
        loss, _ = run(softmax, name, input, target, grad=grad, reduction=reduction)
        np.testing.assert_equal(loss.item(), value)
        assert (grad == 0).all()


@pytest.mark.parametrize("C", [11, 100])
def test_extreme_logits(softmax, C):
    input, target = batch((8, C), ignored=0)
    input[0] = 1e4 * torch.randn(C)
    input[1] = -3e38
    input[2, 1:] = -torch.inf  # masked classes
    target[2] = 0
    input[3] = 0
    input[3, 5], target[3] = 200, 5  # p = 1
    input[4] = 0
    input[4, 5], target[4] = 200, 6  # p = 0
    input[5, C - 1] = 88.0
    for name in ("cross_entropy", "focal", "ghmc"):
        check(softmax, name, input, target, reduction="none")
    input[6, 2] = torch.nan
    input[7] = torch.inf
    for name in ("cross_entropy", "focal"):
        loss, _ = run(softmax, name, input, target, grad=torch.empty_like(input), reduction="none")
        assert loss[:6].isfinite().all() and loss[6:].isnan().all()


@pytest.mark.parametrize("shape", SHORT, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_target_out_of_range_ends_the_kernel(softmax, ptxsim, shape, reduction):
    for bad in (shape[1], -1, 2**40):
        input, target = batch(shape)
        target.view(-1)[3] = bad
        with pytest.raises(ptxsim.SimError, match="target should be in"):
            run(softmax, "cross_entropy", input, target, torch.rand(shape[1]), reduction=reduction)


def test_loss_without_gradient_reads_once(softmax):
    input, target = batch((64, 1000), torch.float32)
    for name in ("cross_entropy", "focal"):
        loss, log = run(softmax, name, input, target)
        torch.testing.assert_close(loss.double(), expected(name, input, target)[0], rtol=2e-6, atol=0)
        assert log[-1][-1].gld_sectors * 32 < 1.05 * input.nbytes


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHORT, ids=str)
def test_float16_scale(softmax, name, reduction, shape):
    """A power of two that brings the largest gradient to float16's upper end, whatever the denominator."""
    input, target = batch(shape, torch.float16)
    weights = [None] if name == "ghmc" else [None, torch.tensor([1.0, -0.9995] + [1e-4] * (shape[1] - 2))]
    for weight in weights:
        if weight is not None:
            target = torch.where(target < 0, target, target % 2)
        grad, scale = torch.empty_like(input), torch.full((1,), torch.nan)
        run(softmax, name, input, target, weight, grad=grad, stored_scale=scale, reduction=reduction)
        assert scale.frexp().mantissa == 0.5  # a power of two
        truth = expected(name, input, target, weight, reduction=reduction)[1]
        assert grad.isfinite().all()
        largest = truth.abs().max().item()
        torch.testing.assert_close(grad.double() / scale.item(), truth, rtol=1e-3, atol=largest / 2**15)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_ghmc_momentum(softmax, training, bias_correction):
    """Two steps; the running statistics are the reference's, to the bit in the counts."""
    states = [(torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)) for _ in range(2)]
    settings = {"momentum": 0.9, "bias_correction": bias_correction, "normalizer": "bins"}
    for train in (True, training):
        input, target = batch((50, 11))
        grad = torch.empty_like(input)
        outcomes = []
        for function, (histogram, updates) in zip((expected, run), states, strict=True):
            state = {"running_histogram": histogram, "num_updates": updates, "training": train, **settings}
            if function is expected:
                outcomes.append(function("ghmc", input, target, **state))
            else:
                outcomes.append((function(softmax, "ghmc", input, target, grad=grad, **state)[0], grad))
        for want, got in zip(*outcomes, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=1e-8)
        torch.testing.assert_close(states[1][0], states[0][0], rtol=1e-14, atol=0)
        assert torch.equal(states[1][1], states[0][1])


@pytest.mark.parametrize("bins", [1, 10, 100, 300, 65536])
@pytest.mark.parametrize("shape", SHORT, ids=str)
def test_gradient_norms(softmax, shape, bins):
    """65536 bins are counted in global memory, fewer in one to 32 copies in shared memory."""
    input, target = batch(shape, torch.float64)  # float64: no decision on another side of a bin's edge
    want = reference.gradient_norm_histogram(input, target, bins=bins)
    for options in ({}, SCHEDULES[2]):
        counts, bin = softmax.gradient_norms(input, target, bins=bins, **options)
        assert torch.equal(counts, want)
        assert torch.equal(bin == -1, target == -100)
        assert torch.equal(bin[bin >= 0].long().bincount(minlength=bins), want)


# More than 32 bins are looked up in global memory.
@pytest.mark.parametrize("bins", [1, 32, 33, 1000])
@pytest.mark.parametrize("shape", SHORT, ids=str)
def test_ghmc_bins(softmax, shape, bins):
    for dtype in (torch.float64, torch.float32):
        input, target = batch(shape, torch.float64)
        if dtype == torch.float32:  # no decision where rounding takes it to another bin
            input = input.to(dtype)
            target = ignore_bin_edges(input, target, bins)
        check(softmax, "ghmc", input, target, bins=bins, options=SCHEDULES[4])


@pytest.mark.parametrize("shape", SHORT, ids=str)
def test_ghmc_looks_up_the_bin_that_it_counted(softmax, shape):
    """However many bins: a decision's beta is never that of another bin, 0 where nothing was counted."""
    input, target = batch(shape, ignored=0)
    loss, _ = run(softmax, "ghmc", input, target, grad=torch.empty_like(input), bins=65536, reduction="none")
    counts, bin = softmax.gradient_norms(input, target, bins=65536)
    beta = target.numel() / ((counts > 0).sum() * counts[bin.long()])
    nll = reference.cross_entropy(input.double(), target, reduction="none")
    torch.testing.assert_close(loss.double(), beta * nll, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6400, 11), (4096, 1000), (64, 32768)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_traffic_and_launches(uncapped, shape, dtype, reduction):
    """6% over one read (GHM-C: two) of the logits and one write of the gradient, each kernel's targets, the losses."""
    input, target = batch(shape, dtype, ignored=0)  # logits of ignored rows are not read
    counted = 1 if reduction == "mean" else 0  # the targets, for the mean's denominator
    for name, passes, launches in (("cross_entropy", 2, 1 + counted), ("focal", 2, 1 + counted), ("ghmc", 3, 2)):
        loss, log = run(uncapped, name, input, target, grad=torch.empty_like(input), reduction=reduction)
        assert kernels(log)[-1] == ("softmax_tile" if shape[1] <= 32 else "softmax_rows")
        assert len(log) == launches
        assert moved_bytes(log) <= 1.06 * passes * input.nbytes + launches * target.nbytes + loss.nbytes
        *_, last = log[-1]
        assert last.load_efficiency >= 0.94 and last.store_efficiency >= 0.94


def test_row_longer_than_shared_memory(uncapped):
    """What fits of 227 KB is kept: 131072 classes are read 1.6 times and written once."""
    input, target = batch((2, 131072), ignored=0)
    _, log = run(uncapped, "cross_entropy", input, target, grad=torch.empty_like(input))
    assert moved_bytes(log) <= 2.6 * input.nbytes


def test_conflict_free_shared_memory(softmax):
    """A warp's rows are in 32 banks for every number of classes; two halves of an odd row share a bank."""
    for C in range(1, 33):
        _, log = run(softmax, "cross_entropy", *batch((256, C), ignored=0), grad=torch.empty(256, C))
        assert log[-1][-1].shared_conflict < 1.25, C
