"""Cross entropy against torch.nn.functional.cross_entropy: values, extreme logits, smoothing, ignored decisions."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import IGNORE, REDUCTIONS, WIDE, differentiate, make_softmax

import fastloss

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_torch(reduction, smoothing, weighted, device):
    for shape, dtype in itertools.product([(40, 11), (9, WIDE), (5,), (3, 7, 4, 5)], [torch.float32, torch.float64]):
        x, target = make_softmax(shape, dtype, device)
        weight = torch.rand(shape[min(len(shape) - 1, 1)], device=device, dtype=dtype) if weighted else None
        settings = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
        got = differentiate(fastloss.cross_entropy, x, target, **settings)
        torch.testing.assert_close(got, differentiate(F.cross_entropy, x, target, **settings), equal_nan=True)


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 3, 10, 255])
def test_ignore_index(ignore_index, device):
    """Any class, or any number outside, can be the one that is ignored."""
    x, target = make_softmax((50, 11), device=device, ignored=0)
    target[::7] = ignore_index
    for smoothing in (0.0, 0.2):
        settings = {"ignore_index": ignore_index, "label_smoothing": smoothing}
        got = differentiate(fastloss.cross_entropy, x, target, **settings)
        torch.testing.assert_close(got, differentiate(F.cross_entropy, x, target, **settings))
        assert got[1][::7].eq(0).all()
    if ignore_index > 10:  # an int32 target means the same
        settings["ignore_index"] = ignore_index
        assert fastloss.cross_entropy(x, target.int(), **settings) == fastloss.cross_entropy(x, target, **settings)


@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss", "ghmc_loss"])
def test_nothing_to_average(name, device):
    """All ignored, or an empty batch: mean nan, sum 0, none zeros, and the gradient 0."""
    loss = getattr(fastloss, name)
    for decisions in (0, 5):
        x = torch.randn(decisions, 4, device=device)
        target = torch.full((decisions,), IGNORE, device=device)
        assert loss(x, target, reduction="mean").isnan()
        assert loss(x, target, reduction="sum") == 0
        assert torch.equal(loss(x, target, reduction="none"), torch.zeros(decisions, device=device))
        for reduction in REDUCTIONS:
            assert torch.equal(differentiate(loss, x, target, reduction=reduction)[1], torch.zeros_like(x))


def test_zero_weights_are_nan_as_in_torch(device):
    x, target = make_softmax((6, 3), device=device, ignored=0)
    assert fastloss.cross_entropy(x, target, torch.zeros(3, device=device)).isnan()
    assert F.cross_entropy(x, target, torch.zeros(3, device=device)).isnan()


EXTREME_ROWS = [
    ([1e4, -1e4, 0, 0], 0),
    ([1e4, -1e4, 0, 0], 1),
    ([-1e4, -1e4, -1e4, -1e4], 2),
    ([3e38, -3e38, 0, 0], 1),
    ([-INF, 0, 1, 2], 1),  # a class ruled out
    ([-INF, 0, 1, 2], 0),  # the target ruled out: loss inf, gradient finite
    ([-INF, -INF, -INF, 2], 3),
    ([-INF, -INF, -INF, -INF], 0),
    ([INF, 0, 0, 0], 0),
    ([INF, 0, 0, 0], 1),
    ([INF, INF, 0, 0], 1),
    ([INF, -INF, 0, 0], 1),
    ([NAN, 0, 0, 0], 0),
    ([NAN, 0, 0, 0], 1),
    ([0, 0, 0, NAN], 1),
    ([NAN, -INF, INF, 0], 1),
    ([88.7, -88.7, 103.9, 0], 1),
]


@pytest.mark.parametrize("classes", [4, WIDE])
def test_extreme_logits(classes, device):
    """As torch, in every lane and schedule: the rows are surrounded by ordinary ones."""
    rows = torch.tensor([row for row, _ in EXTREME_ROWS])
    rows = torch.cat([rows, torch.full((len(rows), classes - 4), -5.0)], 1)
    for copies, dtype in itertools.product((1, 3), (torch.float32, torch.float64)):
        x, target = make_softmax((len(rows) * copies, classes), dtype, device)
        x[::copies] = rows.to(x)
        target[::copies] = torch.tensor([y for _, y in EXTREME_ROWS]).to(target)
        got = differentiate(fastloss.cross_entropy, x, target, reduction="none")
        expected = differentiate(F.cross_entropy, x, target, reduction="none")
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss", "ghmc_loss"])
@pytest.mark.parametrize("classes", [3, WIDE])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_ignored_decisions_with_bad_logits(bad, classes, name, device):
    """An ignored decision contributes nothing, whatever its logits: 0 * nan is not 0."""
    x, target = make_softmax((37, classes), device=device)
    x[target == IGNORE] = bad
    clean = torch.where((target == IGNORE).unsqueeze(1), 0, x)
    for reduction in REDUCTIONS:
        got = differentiate(getattr(fastloss, name), x, target, reduction=reduction)
        expected = differentiate(getattr(fastloss, name), clean, target, reduction=reduction)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1][target != IGNORE], expected[1][target != IGNORE])
        assert got[1][target == IGNORE].eq(0).all()


def test_smoothing_leaves_ignored_decisions_alone(device):
    """Only the decisions that count are smoothed and averaged: dropping the ignored ones changes nothing."""
    x, target = make_softmax((64, 5), device=device, ignored=0.5)
    counts = target != IGNORE
    whole, grad = differentiate(fastloss.cross_entropy, x, target, label_smoothing=0.1)
    kept, kept_grad = differentiate(fastloss.cross_entropy, x[counts], target[counts], label_smoothing=0.1)
    torch.testing.assert_close(whole, kept)
    torch.testing.assert_close(grad[counts], kept_grad)
    assert grad[~counts].eq(0).all()


@pytest.mark.parametrize(
    "name, settings", [("focal_loss", {"gamma": 0.7}), ("focal_loss", {"gamma": 2}), ("ghmc_loss", {})]
)
@pytest.mark.parametrize("classes", [4, WIDE])
def test_a_nan_logit_spoils_its_own_decision_only(classes, name, settings, device):
    """Never silently a number: its loss and its whole gradient are nan."""
    x, target = make_softmax((37, classes), device=device, ignored=0)
    x[5, 1] = x[20, 0] = NAN
    loss, grad = differentiate(getattr(fastloss, name), x, target, reduction="none", **settings)
    spoilt = x.isnan().any(1)
    assert torch.equal(loss.isnan(), spoilt) and torch.equal(grad.isnan(), spoilt[:, None].expand_as(grad))
