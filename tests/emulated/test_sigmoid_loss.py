"""The sigmoid losses' CUDA kernels, emulated: numbers, schedules, memory accesses and traffic."""

import pytest
import torch
from cases import DTYPES, REDUCTIONS, assert_error, at_offset, clear_of_bin_edges, differentiate, largest, make_sigmoid
from emulator import SCHEDULES, compute_type, kernels, moved_bytes

from fastloss import reference

SETTINGS = {
    "focal": ("sigmoid_focal_loss", {"alpha": 0.25, "gamma": 2.0}),
    "focal_0.7": ("sigmoid_focal_loss", {"alpha": -1.0, "gamma": 0.7}),
    "focal_0": ("sigmoid_focal_loss", {"alpha": 0.6, "gamma": 0.0}),
    "asymmetric": ("asymmetric_loss", {"gamma_positive": 0.0, "gamma_negative": 4.0, "margin": 0.05}),
    "asymmetric_any": (
        "asymmetric_loss",
        {"gamma_positive": 0.7, "gamma_negative": 3.0, "margin": 0.1, "alpha": 0.4},
    ),
    "two_gammas": ("asymmetric_loss", {"gamma_positive": 1.0, "gamma_negative": 2.5, "margin": 0.0, "alpha": 0.25}),
    "ghmc": ("sigmoid_ghmc_loss", {"bins": 10}),
    "ghmc_paper": ("sigmoid_ghmc_loss", {"bins": 3, "normalizer": "bins"}),
    "ghmc_many_bins": ("sigmoid_ghmc_loss", {"bins": 5000}),
}


def check(sigmoid, case, x, target, mask=None, *, inplace=False, alike=True, options=None, **settings):
    """The accuracy rule of tests/cases.py for one emulated call. Returns (loss, gradient, launches)."""
    name, defaults = SETTINGS[case]
    settings = {"reduction": "mean", **defaults, **settings}
    masked = {} if mask is None else {"mask": mask}
    half = x.dtype in (torch.float16, torch.bfloat16)
    eager = differentiate(getattr(reference, name), x.to(compute_type(x.dtype)), target, **masked, **settings)
    truth = differentiate(getattr(reference, name), x.double(), target.double(), **masked, **settings)

    grad = x.clone() if inplace else torch.full_like(x, torch.nan)
    if x.storage_offset() and alike:
        grad = at_offset(grad, x.storage_offset())
    stored = torch.ones(1) if x.dtype == torch.float16 else None
    given = {**settings, **(options or {}), "stored_scale": stored}
    loss, log = sigmoid.loss(name, grad if inplace else x, target, mask, grad=grad, **given)
    # A power of 4 has four times the error of its base; in float64 the truth has rounding errors too.
    unit = (24 if "asymmetric" in case else 6) * torch.finfo(loss.dtype).eps
    assert_error(loss, eager[0], truth[0], unit * largest(x, truth[0], 1), 0, f"{case} loss")
    one = 1 / max(x.numel(), 1) if settings["reduction"] == "mean" else 1.0
    rounding = torch.finfo(x.dtype).eps / 2 if half else 0
    unscaled = grad if stored is None else grad.double() / stored.item()
    assert_error(unscaled, eager[1], truth[1], unit * largest(truth[1], one), rounding, f"{case} gradient")
    return loss, grad, log


def decisions(shape, dtype=torch.float32, soft=False, bins=()):
    """Logits and targets whose bins do not depend on rounding, and a mask."""
    x, target = make_sigmoid(shape, dtype, soft=soft)
    for _ in range(20):  # a decision too near an edge is drawn again
        norm = (x.double().sigmoid() - target.double()).abs()
        clear = torch.stack([clear_of_bin_edges(norm, b) for b in bins]).all(0) if bins else norm > -1
        x = torch.where(clear, x, torch.randn(shape).mul(3).to(dtype))
    return x, torch.where(clear, target, 0).to(compute_type(dtype)), (torch.rand(shape) < 0.7) & clear


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SETTINGS)
def test_numbers(sigmoid, case, dtype):
    bins = {10, SETTINGS[case][1].get("bins", 10)} - {5000}
    for reduction in REDUCTIONS:
        for soft in (False, True):
            x, target, mask = decisions((2, 1337), dtype, soft, bins)
            if case == "ghmc_many_bins":  # any of 5000 edges is near: bins of few decisions, all hard to clear
                x = x.sign() * torch.randint(1, 5, x.shape)
            target = target.to(dtype) if reduction == "sum" else target
            check(sigmoid, case, x, target, None if reduction == "mean" and not soft else mask, reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["focal", "ghmc"])
def test_any_schedule_gives_the_same_bits(sigmoid, case, dtype):
    x, target, mask = decisions((9001,), dtype, soft=True, bins=[10])
    args = (mask,) if case == "ghmc" else ()
    for reduction in ("none", "mean"):
        expected = check(sigmoid, case, x, target, *args, reduction=reduction)
        for options in SCHEDULES:
            got = check(sigmoid, case, x, target, *args, reduction=reduction, options=options)
            assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_any_alignment(sigmoid, dtype, offset):
    for size in (517, 20, 9, 3, 1):
        x, target, mask = decisions((size,), dtype, bins=[10])
        moved, moved_mask = at_offset(x, offset), at_offset(mask, offset)
        for case in ("focal", "ghmc"):
            # Logits, gradient and target alike; the gradient apart from them; the target alone; in place.
            check(sigmoid, case, moved, at_offset(target.to(dtype), offset), moved_mask, reduction="none")
            check(sigmoid, case, moved, at_offset(target.to(dtype), 1), moved_mask, reduction="sum", alike=False)
            check(sigmoid, case, moved, target, mask, alike=False)
            check(sigmoid, case, x, at_offset(target, offset), mask)
            check(sigmoid, case, moved, at_offset(target, offset), mask, inplace=True, options=SCHEDULES[0])


def make_factors(shape):
    """alpha and weights: a number a class, a row, a decision."""
    yield {"alpha": torch.rand(shape[1:])}
    yield {"sample_weight": torch.rand(shape[0], 1)}
    yield {"alpha": torch.rand(shape), "sample_weight": torch.rand(shape[1:])}
    yield {"alpha": torch.rand(shape[0], 1), "sample_weight": torch.rand(shape)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["focal", "focal_0.7", "focal_0", "asymmetric", "asymmetric_any"])
def test_factors(sigmoid, case, dtype):
    for shape in ((37, 11), (3, 400)):
        x, target, mask = decisions(shape, dtype, soft=True)
        for factors in make_factors(shape):
            for reduction in REDUCTIONS:
                check(sigmoid, case, x, target, mask, reduction=reduction, **factors)
            check(sigmoid, case, x, target, reduction="mean", **factors)
            check(sigmoid, case, x, target, mask, reduction="mean", denominator=7.0, **factors)


@pytest.mark.parametrize("offset", [0, 1])
def test_the_sum_of_the_weights(sigmoid, offset):
    """In any schedule, with the mask in runs and without."""
    x, target, mask = decisions((97, 80), bins=[10])
    mask = at_offset(mask, offset)
    for options in SCHEDULES:
        _, _, log = check(sigmoid, "focal", x, target, mask, sample_weight=torch.rand(97, 1), options=options)
        assert kernels(log) == ["sigmoid_weigh", "sigmoid_loss"]
    _, _, log = check(sigmoid, "focal", x, target, mask, denominator=5.0, sample_weight=torch.rand(97, 1))
    assert kernels(log) == ["sigmoid_loss"]


@pytest.mark.parametrize("case", ["focal", "focal_0.7", "ghmc"])
def test_within_the_error_of_approximate_instructions(sigmoid, case):
    x, target, _ = decisions((1000,), soft=True, bins=[10])
    check(sigmoid, case, x, target, options={"approx_noise": True})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["focal", "ghmc"])
def test_in_place(sigmoid, case, dtype):
    x, target, _ = decisions((777,), dtype, bins=[10])
    separate = check(sigmoid, case, x, target)
    assert torch.equal(check(sigmoid, case, x, target, inplace=True, options=SCHEDULES[0])[1], separate[1])


@pytest.mark.parametrize("case", ["focal", "ghmc"])
def test_no_decisions(sigmoid, case):
    name, settings = SETTINGS[case]
    loss, _ = sigmoid.loss(name, torch.empty(0), torch.empty(0), reduction="sum", **settings)
    assert loss == 0
    loss, _ = sigmoid.loss(name, torch.empty(0), torch.empty(0), **settings)
    assert loss == 0 if case == "ghmc" else loss.isnan()


def test_all_masked(sigmoid):
    grad = torch.full((100,), torch.nan)
    loss, _ = sigmoid.loss(
        "sigmoid_ghmc_loss", torch.full((100,), torch.nan), torch.ones(100), torch.zeros(100, dtype=bool), grad=grad
    )
    assert loss == 0 and grad.eq(0).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_running_statistics(sigmoid, bias_correction, training):
    state = {"running_histogram": torch.zeros(10, dtype=torch.float64), "num_updates": torch.zeros(10, dtype=int)}
    expected = {name: tensor.clone() for name, tensor in state.items()}
    for step in range(3):
        x, target, mask = decisions((300,), bins=[10])
        settings = {"momentum": 0.9, "bias_correction": bias_correction, "training": training or step == 0}
        loss, _ = sigmoid.loss("sigmoid_ghmc_loss", x, target, mask, **settings, **state)
        truth = reference.sigmoid_ghmc_loss(x.double(), target, mask, **settings, **expected)
        torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
        assert torch.equal(state["num_updates"], expected["num_updates"])
        torch.testing.assert_close(state["running_histogram"], expected["running_histogram"], rtol=1e-15, atol=0)


def test_large_logits_and_nan(sigmoid):
    x = torch.tensor([0.0, 90.0, -90.0, 200.0, -200.0, 1e30, torch.inf, -torch.inf, torch.nan]).repeat(2)
    target = torch.tensor([0.0, 1.0]).repeat_interleave(9)
    for case in ("focal", "focal_0.7", "focal_0"):
        name, settings = SETTINGS[case]
        grad = torch.empty_like(x)
        loss, _ = sigmoid.loss(name, x, target, grad=grad, reduction="none", **settings)
        expected = differentiate(getattr(reference, name), x.double(), target, reduction="none", **settings)
        finite = expected[1].isfinite()
        torch.testing.assert_close(loss[:8].double(), expected[0][:8], rtol=1e-5, atol=1e-30)
        torch.testing.assert_close(grad[finite].double(), expected[1][finite], rtol=1e-5, atol=1e-30)
        assert grad[[8, 17]].isnan().all() and loss[[8, 17]].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_byte_is_accessed_once(sigmoid, dtype):
    """Read the logits and targets, write the gradient: nothing twice, and 32-byte sectors are fully used."""
    n = 1 << 14
    x, target = make_sigmoid((n,), dtype)
    target, grad = target.to(dtype), torch.empty_like(x)
    _, log = sigmoid.loss("sigmoid_focal_loss", x, target, grad=grad)
    (_, _, _, _, stats), *others = log
    assert not others
    extra = 1 << 14  # partial sums and tickets
    size = n * x.element_size()
    assert 2 * size <= stats.gld_bytes <= 2 * size + extra and size <= stats.gst_bytes <= size + extra
    assert stats.gld_req <= 2 * size / 512 + extra / 8  # 16 bytes a lane
    _, log = sigmoid.loss("sigmoid_ghmc_loss", x, target, grad=grad)
    assert kernels(log) == ["sigmoid_count", "sigmoid_loss"]
    assert moved_bytes(log) <= 1.05 * 3 * x.nbytes + 2 * target.nbytes  # both kernels read logits and targets


def test_emulator_runs_every_instruction(sigmoid):
    assert sigmoid.unsupported() == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_aligned_is_moved_16_bytes_at_a_time_too(sigmoid, dtype):
    """However logits, targets, mask and gradient lie to each other: loads of a run and of the 16 bytes beside it."""
    n = 1 << 14
    x, target = make_sigmoid((n,), dtype)
    target, packs = target.to(dtype), n * x.element_size() / 512  # of a warp
    few = 64  # for what is left at both ends
    for x_offset, target_offset, grad_offset in ((1, 1, 1), (1, 1, 0), (0, 1, 0), (3, 2, 1)):
        moved, moved_target = at_offset(x, x_offset), at_offset(target, target_offset)
        grad = at_offset(torch.empty_like(x), grad_offset)
        _, log = sigmoid.loss("sigmoid_focal_loss", moved, moved_target, grad=grad)
        stats = log[0][4]
        shifted = (x_offset != grad_offset) + (target_offset != grad_offset)
        assert stats.gld_req <= (2 + shifted) * packs + few and stats.gst_req <= packs + few
        # 16 bytes in a warp's turn are read by two lanes.
        assert stats.gst_sectors <= 1.1 * 16 * packs + few


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_histogram_reads_and_writes_16_bytes_at_a_time(sigmoid, dtype):
    n = 1 << 14
    x, target, _ = decisions((n,), dtype)
    target = target.to(dtype)
    packs = n * x.element_size() / 512
    for offset in (0, 1):
        moved = at_offset(x, offset), at_offset(target, offset)
        _, log = sigmoid.loss("sigmoid_ghmc_loss", *moved, grad=torch.empty_like(x))
        count = log[0][4]
        assert kernels(log)[0] == "sigmoid_count" and count.gld_req <= (2 + 2 * offset) * packs + 64
        params = sigmoid.params(moved[0], None, moved[1])
        counts, bin, log = sigmoid.run_gradient_norms(params, *moved, [], 10, with_log=True)
        assert log[0][4].gst_req <= n * 4 / (512 if dtype != torch.float64 else 128) + 64
        assert torch.equal(bin.bincount(minlength=10), counts)


def test_alignments_take_every_path(sigmoid):
    """test_any_alignment runs them."""
    x = torch.empty(517)
    moved = at_offset(x, 1)
    none = sigmoid.params(moved, moved, x)  # the losses lie otherwise than the gradient, and both are written
    none.reduction, none.loss = 0, x.data_ptr()
    names = {sigmoid.schedule(params) for params in (sigmoid.params(moved, x, moved), none)}
    assert names == sigmoid.schedule_names("sigmoid")


@pytest.mark.parametrize("bins", [1, 10, 5000])
def test_gradient_norms(sigmoid, bins):
    x, target, mask = decisions((9001,), torch.float64, soft=True)
    for given in (None, mask):
        counts, bin = sigmoid.gradient_norms(x, target, given, bins=bins, **SCHEDULES[0])
        norm = (x.sigmoid() - target).abs()
        want = (norm * bins).floor().clamp(max=bins - 1).int()
        valid = torch.ones_like(mask) if given is None else mask
        near = (norm * bins - (norm * bins).round()).abs() < 1e-9  # where rounding decides
        assert torch.equal(bin[~near], torch.where(valid, want, -1)[~near])
        assert torch.equal(bin[bin >= 0].long().bincount(minlength=bins), counts)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", ["focal", "ghmc"])
def test_float16_scale(sigmoid, case, reduction):
    """A power of two that brings the largest gradient to float16's upper end, whatever the denominator."""
    x, target, _ = decisions((3001,), torch.float16, bins=[10])
    name, settings = SETTINGS[case]
    grad, scale = torch.empty_like(x), torch.full((1,), torch.nan)
    settings = {**settings, "reduction": reduction}
    sigmoid.loss(name, x, target, grad=grad, stored_scale=scale, **settings)
    assert scale.frexp().mantissa == 0.5  # a power of two
    truth = differentiate(getattr(reference, name), x.double(), target.double(), **settings)[1]
    assert grad.isfinite().all()
    torch.testing.assert_close(grad.double() / scale.item(), truth, rtol=1e-3, atol=truth.abs().max().item() / 2**15)
