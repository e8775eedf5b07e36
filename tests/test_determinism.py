"""The same bits from run to run and at any number of CPU threads."""

import pytest
import torch
from cases import IGNORE, NARROW, SIGMOID_LOSSES, SOFTMAX_LOSSES, WIDE, differentiate, make_sigmoid, make_softmax

import fastloss

LOSSES = {**SOFTMAX_LOSSES, **{"sigmoid_" + name: loss for name, loss in SIGMOID_LOSSES.items()}}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(loss, x, target):
    name, options, *_ = LOSSES[loss]
    each = [differentiate(getattr(fastloss, name), x, target, reduction=r, **options) for r in ("mean", "sum", "none")]
    tensors = [tensor for pair in each for tensor in pair]
    return tensors if loss.startswith("sigmoid") else [*tensors, fastloss.gradient_norm_histogram(x, target)]


@pytest.mark.parametrize("loss", LOSSES)
def test_any_number_of_threads(loss, threads):
    for dtype in (torch.float32, torch.float16):
        for shape in [(5_003, 11), (3, 7, 20, 41), (60, WIDE + 500), (3, 9_001)]:
            threads(1)
            x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)(shape, dtype)
            expected = run(loss, x, target)
            for count in (2, 3):
                threads(count)
                assert all(map(torch.equal, run(loss, x, target), expected)), (shape, dtype, count)


@pytest.mark.parametrize("loss", LOSSES)
def test_run_to_run(loss, device):
    x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)((5_003, 11), device=device)
    expected = run(loss, x, target)
    for _ in range(3):
        assert all(map(torch.equal, run(loss, x, target), expected))


def test_rows_do_not_depend_on_their_neighbours():
    """A decision's loss and gradient have the same bits wherever in a batch it lies."""
    for classes in (11, NARROW, WIDE):
        x, target = make_softmax((64, classes), ignored=0)
        _, whole = differentiate(fastloss.focal_loss, x, target, reduction="sum")
        for start in range(1, 20):
            _, part = differentiate(fastloss.focal_loss, x[start:], target[start:], reduction="sum")
            assert torch.equal(part, whole[start:])


def test_ignored_neighbours_change_nothing():
    """Nor do they depend on whether the decisions around it are ignored."""
    for classes in (11, NARROW, WIDE, 1000):
        x, target = make_softmax((2000, classes), ignored=0)
        _, whole = differentiate(fastloss.cross_entropy, x, target, reduction="sum")
        some = torch.rand(2000) < 0.3
        _, part = differentiate(fastloss.cross_entropy, x, target.where(~some, IGNORE), reduction="sum")
        assert torch.equal(part[~some], whole[~some]) and not part[some].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_large_gradient(loss):
    """A large gradient goes past the caches, unless it is written over the logits: the bits are the same."""
    name, options, *_ = LOSSES[loss]
    function = getattr(fastloss, name)
    if loss.startswith("sigmoid"):
        shapes = [(6_500_003,)]
    else:
        shapes = [(600_011, 11), (6_501, 1_003), (190, 33_331), (2, 150, 211, 105)]
    for dtype, shape in [(torch.float32, shape) for shape in shapes] + [(torch.bfloat16, (13_003, 1_003))]:
        x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)(shape, dtype)
        assert x.nbytes >= 24 << 20
        value, grad = differentiate(function, x, target, reduction="sum", **options)
        value_in_place, grad_in_place = differentiate(
            function, x.clone(), target, reduction="sum", inplace_backward=True, **options
        )
        assert torch.equal(value, value_in_place) and torch.equal(grad, grad_in_place), (dtype, shape)
