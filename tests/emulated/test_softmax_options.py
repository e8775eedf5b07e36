"""What a softmax loss takes beside its own parameter, on every path: class probabilities, sample weights, denominator,
scaled and capped logits, the z loss, logsumexp, and GHM-C's counts of all ranks. In the emulator."""

import pytest
import torch
from emulator import SCHEDULES, kernels, moved_bytes
from test_softmax_loss import DTYPES, LOOPING, LOSS_TOLERANCE, ONE_PASS, SMALL, batch, check, expected, layouts, run

from fastloss import reference

EXTRAS = {"z_loss": 0.01, "logit_scale": 0.7, "softcap": 4.0}


def probabilities(shape, dtype=torch.float32):
    return torch.rand(shape).softmax(1).to(dtype)


def sample_weights(target_shape):
    return torch.rand(target_shape) + 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_probabilities(softmax, shape, dtype):
    input, target = batch(shape, dtype)
    weight = torch.rand(shape[1]) + 0.5
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for soft in {dtype, compute}:
        check(softmax, "cross_entropy", input, probabilities(shape, soft))
        check(softmax, "smoothing", input, probabilities(shape, soft), weight, reduction="sum")
        check(
            softmax, "smoothing", input, probabilities(shape, soft), weight, sample_weight=sample_weights(target.shape)
        )


@pytest.mark.parametrize("shape", [*SMALL, *LOOPING], ids=str)
def test_probabilities_in_place_and_on_any_schedule(softmax, shape):
    input, _ = batch(shape)
    target, grad = probabilities(shape), torch.empty_like(input)
    first, _ = check(softmax, "smoothing", input, target, grad=grad)
    for options in SCHEDULES[:3]:
        other = input.clone()
        loss, _ = run(softmax, "smoothing", other, target, grad=other, **options)
        assert torch.equal(loss, first)
        assert torch.equal(other, grad)


@pytest.mark.parametrize("shape", ONE_PASS.values(), ids=str)
def test_probabilities_without_gradient(softmax, shape):
    input, _ = batch(shape)
    target = probabilities(shape)
    for reduction in ("none", "mean", "sum"):
        loss, _ = run(softmax, "cross_entropy", input, target, reduction=reduction)
        torch.testing.assert_close(
            loss.double(), expected("cross_entropy", input, target, reduction=reduction)[0], rtol=2e-6, atol=2e-6
        )


@pytest.mark.parametrize("layout", layouts())
def test_probabilities_lie_as_the_gradient(softmax, layout):
    input = layouts()[layout]().normal_()
    like = layouts()[layout]()
    target = like.copy_(torch.rand(input.shape).softmax(0 if input.dim() == 1 else 1))
    check(softmax, "smoothing", input, target, grad=layouts()[layout]().fill_(torch.nan))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_extras(softmax, shape, dtype):
    input, target = batch(shape, dtype)
    weight, sample_weight = torch.rand(shape[1]) + 0.5, sample_weights(target.shape)
    check(softmax, "cross_entropy", input, target, **EXTRAS)
    check(softmax, "smoothing", input, target, weight, sample_weight=sample_weight, reduction="sum", **EXTRAS)
    check(softmax, "focal", input, target, weight, logit_scale=1.5)
    check(softmax, "focal", input, target, softcap=5.0)
    check(softmax, "poly", input, target, sample_weight=sample_weight, z_loss=0.1)
    check(softmax, "smoothing", input, probabilities(shape, dtype), weight, **EXTRAS)


@pytest.mark.parametrize("shape", [*SMALL, *LOOPING], ids=str)
def test_extras_in_place_and_on_any_schedule(softmax, shape):
    input, target = batch(shape)
    grad = torch.empty_like(input)
    first, _ = check(softmax, "focal", input, target, grad=grad, **EXTRAS)
    for options in SCHEDULES[:3]:
        other = input.clone()
        loss, _ = run(softmax, "focal", other, target, grad=other, **EXTRAS, **options)
        assert torch.equal(loss, first)
        assert torch.equal(other, grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_lse(softmax, shape, dtype):
    input, target = batch(shape, dtype)
    for extras in ({}, EXTRAS):
        lse = torch.full(target.shape, torch.nan, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        run(softmax, "focal", input, target, grad=torch.empty_like(input), lse=lse, **extras)
        _, want = reference.focal_loss(input.double(), target, return_lse=True, **extras)
        tolerance = LOSS_TOLERANCE[dtype]
        torch.testing.assert_close(lse.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["cross_entropy", "smoothing", "focal", "poly"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_sample_weight_and_denominator(softmax, shape, name):
    input, target = batch(shape)
    weight, sample_weight = torch.rand(shape[1]) + 0.5, sample_weights(target.shape)
    for reduction in ("none", "mean", "sum"):
        check(softmax, name, input, target, weight, sample_weight=sample_weight, reduction=reduction)
    check(softmax, name, input, target, sample_weight=sample_weight, denominator=7.5)
    _, log = check(softmax, name, input, target, denominator=7.5)
    assert kernels(log)[0] == "count_targets" and log[0][1][0] == 1  # one block, which counts nothing


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("denominator", [None, 3.0])
def test_float16_scale_with_sample_weights(softmax, shape, denominator):
    input, target = batch(shape, torch.float16)
    factor = 1000 * torch.rand(target.shape)
    for soft in (target, probabilities(shape, torch.float16)):
        settings = {"sample_weight": factor, "denominator": denominator}
        check(softmax, "cross_entropy", input, soft, **settings)
        grad, scale = torch.empty_like(input), torch.full((1,), torch.nan)
        run(softmax, "cross_entropy", input, soft, grad=grad, stored_scale=scale, **settings)
        assert grad.isfinite().all() and scale.frexp().mantissa == 0.5


def test_ghmc_counts_of_all_ranks(softmax):
    """Weights come from the counts that are given, and nothing is counted."""
    input, target = batch((50, 11))
    counts = 2 * reference.gradient_norm_histogram(input, target) + torch.arange(10)
    _, log = check(softmax, "ghmc", input, target, counts=counts, denominator=40.0)
    assert kernels(log) == ["weigh_bins", "softmax_tile"]
    check(softmax, "ghmc", input, target, counts=counts, denominator=40.0, power=0.5)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_masked_classes(softmax, shape):
    """Logits of -inf, without smoothing: a finite loss."""
    input, target = batch(shape)
    input[:, -1] = -torch.inf
    target = torch.where(target < 0, target, target % max(shape[1] - 1, 1))
    for settings in ({"z_loss": 0.1}, {"logit_scale": 2.0}):
        loss, _ = check(softmax, "cross_entropy", input, target, **settings)
        assert loss.isfinite()


def test_ghmc_power(softmax):
    for shape in ((50, 11), (5, 300)):
        check(softmax, "ghmc", *batch(shape), power=0.5)
        check(softmax, "ghmc", *batch(shape), power=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_traffic_of_probabilities(uncapped, dtype):
    """Logits once; probabilities twice, the second time from a cache that is not counted here; the gradient once."""
    input, _ = batch((4096, 1000), dtype, ignored=0)
    target = probabilities(input.shape, dtype)
    _, log = run(uncapped, "cross_entropy", input, target, grad=torch.empty_like(input))
    assert moved_bytes(log) <= 1.1 * 4 * input.nbytes
