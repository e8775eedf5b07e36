"""Half precision: float32 losses, gradients as good as their dtype, no overflow and no underflow, autocast."""

import pytest
import torch
from cases import (
    REDUCTIONS,
    SIGMOID_LOSSES,
    SOFTMAX_LOSSES,
    WIDE,
    differentiate,
    is_sigmoid,
    make_sigmoid,
    make_softmax,
)

import fastloss

HALVES = [torch.float16, torch.bfloat16]
ALL = [(name, options) for name, options, *_ in [*SOFTMAX_LOSSES.values(), *SIGMOID_LOSSES.values()]]


@pytest.mark.parametrize("dtype", HALVES)
def test_is_computed_in_float32(dtype, device):
    """The same loss as the logits converted to float32, bit for bit; the gradient is that one, rounded once."""
    for shape in [(40, 11), (9, WIDE), (3, 5, 4)]:
        for name, options in ALL:
            make = make_sigmoid if is_sigmoid(name) else make_softmax
            x, target = make(shape, dtype, device)
            for reduction in REDUCTIONS:
                loss, grad = differentiate(getattr(fastloss, name), x, target, reduction=reduction, **options)
                single = differentiate(getattr(fastloss, name), x.float(), target, reduction=reduction, **options)
                assert loss.dtype == torch.float32 and torch.equal(loss, single[0])
                assert grad.dtype == dtype
                # One rounding apart; a second one where float16's is subnormal once it is unscaled.
                spacing = torch.finfo(dtype).eps * single[1].abs() / 2 + torch.finfo(dtype).smallest_normal * 1e-3
                assert ((grad.float() - single[1]).abs() <= spacing).all(), (name, reduction)


@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss", "ghmc_loss"])
def test_float16_mean_over_a_million_does_not_underflow(name, device):
    """Gradients near 1e-6 are below float16's normal numbers, until a GradScaler's factor of 2^16 has reached them."""
    decisions = 2**20
    x, target = make_softmax((decisions, 3), torch.float16, device)
    function = getattr(fastloss, name)
    _, grad = differentiate(lambda x: function(x, target) * 65536.0, x)
    _, expected = differentiate(lambda x: function(x, target) * 65536.0, x.float())
    # Stored at the upper end of float16, scaled to 65536 / 2^20: two roundings.
    torch.testing.assert_close(grad.float(), expected, rtol=2**-9, atol=2**-24)


@pytest.mark.parametrize("loss", ["smoothing", "ghmc"])
def test_float16_mean_of_heavy_decisions_does_not_overflow(loss, device):
    """A mean's gradient above 16, yet well within float16: light weights in the denominator, uncorrected momentum."""
    x, target = torch.zeros(1, 2, dtype=torch.float16, device=device), torch.zeros(1, dtype=torch.long, device=device)
    if loss == "smoothing":
        weight = torch.tensor([1e-3, 1.0], device=device)
        function = lambda x: fastloss.cross_entropy(x, target, weight, label_smoothing=0.5)  # noqa: E731
    else:
        module = fastloss.GHMCLoss(momentum=0.99, bias_correction=False).to(device)
        function = lambda x: module(x, target)  # noqa: E731
    _, grad = differentiate(function, x)
    for buffer in () if loss == "smoothing" else module.buffers():
        buffer.zero_()
    _, expected = differentiate(function, x.float())
    assert 16 < expected.abs().max() < 1000
    torch.testing.assert_close(grad.float(), expected, rtol=2**-10, atol=0)


def test_float16_mean_of_light_decisions_keeps_its_digits(device):
    """Weights of 1 / 65536 and unlikely classes, under a loss scale that brings them back."""
    x = torch.tensor([[0.0, -11.5]] * 4, dtype=torch.float16, device=device)
    target = torch.zeros(4, dtype=torch.long, device=device)
    settings = {"bins": 65536, "normalizer": "bins", "grad_output": torch.tensor(2.0**32, device=device)}
    _, grad = differentiate(fastloss.ghmc_loss, x, target, **settings)
    _, expected = differentiate(fastloss.ghmc_loss, x.float(), target, **settings)
    assert 0.1 < expected.abs().max() < 1
    torch.testing.assert_close(grad.float(), expected, rtol=2**-9, atol=0)


@pytest.mark.parametrize("loss", ["weights", "ghmc"])
def test_float16_mean_of_a_tiny_denominator(loss, device):
    """Weights that nearly cancel, and uncorrected momentum near 1: gradients of some thousands still fit."""
    x = torch.randn(2, 3, dtype=torch.float16, device=device)
    target = torch.tensor([0, 1], device=device)
    if loss == "weights":
        functions = [fastloss.CrossEntropyLoss(torch.tensor([1.0, -0.9995, 0.0], device=device))] * 2
    else:  # a state for each
        functions = [fastloss.GHMCLoss(momentum=0.9998, bias_correction=False).to(device) for _ in range(2)]
    _, grad = differentiate(functions[0], x, target)
    _, expected = differentiate(functions[1], x.float(), target)
    assert 1000 < expected.abs().max() < 60000
    torch.testing.assert_close(grad.float(), expected, rtol=2**-9, atol=1e-3)


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_beyond_float16(dtype, device):
    """GHM-C's N / (n R) of a rare bin is 131072, more than float16 holds: loss and mean gradient are finite."""
    x = torch.zeros(2**18, 2, dtype=dtype, device=device)
    x[1:, 0] = 8.0
    x[0, 1] = 8.0
    target = torch.zeros(2**18, dtype=torch.long, device=device)
    for reduction in REDUCTIONS:
        loss, grad = differentiate(fastloss.ghmc_loss, x, target, reduction=reduction)
        assert loss.isfinite().all()
        assert reduction != "mean" or grad.isfinite().all()
    each = fastloss.ghmc_loss(x, target, reduction="none")
    torch.testing.assert_close(each[0].item(), 2**17 * 8.000335, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_last_bin_of_half_logits(dtype, device):
    """g rounds to 1 in half precision, and an edge of 1 + 1e-6 too: the decision still has a bin."""
    x = torch.tensor([[0.0, 12.0], [0.0, 0.0]], dtype=dtype, device=device)
    target = torch.zeros(2, dtype=torch.long, device=device)
    assert fastloss.gradient_norm_histogram(x, target).tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert fastloss.ghmc_loss(x, target, reduction="none").gt(0).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_extremes(dtype, device):
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, -largest, 0.0], [-largest, largest, 0.0]], dtype=dtype, device=device)
    target = torch.tensor([0, 0], device=device)
    for name in ("cross_entropy", "focal_loss"):
        loss, grad = differentiate(getattr(fastloss, name), x / 2, target, reduction="none")
        assert loss.tolist() == [0.0, largest]
        assert grad.tolist() == [[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_leaves_logits_as_they_are(dtype, device):
    for logits_dtype in (dtype, torch.float32):
        for name, options in ALL:
            make = make_sigmoid if is_sigmoid(name) else make_softmax
            x, target = make((20, 7), logits_dtype, device)
            expected = differentiate(getattr(fastloss, name), x, target, **options)
            with torch.autocast(device, dtype=dtype):
                got = differentiate(getattr(fastloss, name), x, target, **options)
            assert got[1].dtype == logits_dtype and all(map(torch.equal, got, expected))
