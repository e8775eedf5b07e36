"""Sigmoid focal loss against the paper's formula as torchvision has it; soft targets; extreme logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import GAMMAS, REDUCTIONS, differentiate, make_sigmoid

import fastloss
from fastloss import reference


def papers(x, t, alpha=0.25, gamma=2.0, reduction="none"):
    """alpha_t (1 - p_t)^gamma BCE(x, t), p_t = p t + (1 - p)(1 - t), alpha_t = alpha t + (1 - alpha)(1 - t)."""
    p = x.sigmoid()
    loss = (1 - (p * t + (1 - p) * (1 - t))) ** gamma * F.binary_cross_entropy_with_logits(x, t, reduction="none")
    if alpha >= 0:
        loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("gamma", [*GAMMAS, 1.5])
@pytest.mark.parametrize("alpha", [0.25, 0.0, 1.0, -1.0])
def test_equals_the_paper(alpha, gamma, soft, device):
    x, target = make_sigmoid((40, 9), torch.float64, device, soft)
    for reduction in REDUCTIONS:
        settings = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
        got = differentiate(fastloss.sigmoid_focal_loss, x, target.double(), **settings)
        torch.testing.assert_close(got, differentiate(papers, x, target.double(), **settings))


def test_defaults_are_torchvisions(device):
    x, target = make_sigmoid((40,), device=device)
    torch.testing.assert_close(fastloss.sigmoid_focal_loss(x, target), papers(x, target))


@pytest.mark.parametrize("target_dtype", [torch.bool, torch.uint8, torch.int64, torch.float64, torch.float16])
def test_targets_of_any_dtype(target_dtype, device):
    x, target = make_sigmoid((40,), device=device)
    expected = differentiate(fastloss.sigmoid_focal_loss, x, target)
    got = differentiate(fastloss.sigmoid_focal_loss, x, target.to(target_dtype))
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_extreme_logits(gamma, dtype, device):
    """Right: exactly 0 in the limit. Wrong: the loss is |x|, the gradient -1 or 1. Only an infinite logit is inf."""
    sizes = torch.tensor([0.0, 17.0, 40.0, 88.0, 104.0, 1e4, 3e38], dtype=dtype, device=device)
    for sign in (1, -1):
        label = torch.full_like(sizes, max(sign, 0))
        right = differentiate(fastloss.sigmoid_focal_loss, sign * sizes, label, gamma=gamma, alpha=-1)
        wrong = differentiate(fastloss.sigmoid_focal_loss, -sign * sizes, label, gamma=gamma, alpha=-1)
        assert all(tensor.isfinite().all() for tensor in (*right, *wrong))
        assert right[0][-2:].eq(0).all() and right[1][-2:].eq(0).all()
        torch.testing.assert_close(wrong[0][2:], sizes[2:])
        torch.testing.assert_close(wrong[1][4:], torch.full_like(sizes[4:], -sign))
        infinite = torch.tensor([math.inf], dtype=dtype, device=device)
        lost = differentiate(fastloss.sigmoid_focal_loss, -sign * infinite, label[:1], gamma=gamma, alpha=-1)
        assert lost[0] == math.inf and lost[1] == -sign
        won = differentiate(fastloss.sigmoid_focal_loss, sign * infinite, label[:1], gamma=gamma, alpha=-1)
        assert won[0] == 0 and won[1] == 0


def test_nan_stays_where_it_is(device):
    for soft in (0.0, 0.5, 1.0):
        x = torch.zeros(40, device=device)
        x[5] = float("nan")
        loss, grad = differentiate(fastloss.sigmoid_focal_loss, x, torch.full_like(x, soft))
        assert loss.isnan().nonzero().tolist() == [[5]] == grad.isnan().nonzero().tolist()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_soft_targets_at_saturation(gamma, device):
    """q = p + t - 2 p t is at least min(t, 1 - t): nothing to divide by zero, however large the logit."""
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=torch.float64, device=device)
    for soft in (1e-3, 0.5, 0.9):
        target = torch.full_like(x, soft)
        got = differentiate(fastloss.sigmoid_focal_loss, x, target, gamma=gamma)
        assert all(tensor.isfinite().all() for tensor in got)
        torch.testing.assert_close(got, differentiate(papers, x, target, gamma=gamma))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_small_losses_keep_their_precision(gamma, device):
    """1 - p without cancellation: float32 at 1 - p = 1e-5 has its full relative precision."""
    x = torch.linspace(5.0, 12.0, 50, device=device)
    got = differentiate(fastloss.sigmoid_focal_loss, x, torch.ones_like(x), gamma=gamma)
    expected = differentiate(fastloss.sigmoid_focal_loss, x.double(), torch.ones_like(x), gamma=gamma)
    for single, double in zip(got, expected, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "sigmoid_ghmc_loss"])
def test_one_soft_target_among_hard_ones(name, device):
    """Wherever it lies, hard targets keep their values: they are computed in groups, and without it in another way."""
    x, target = make_sigmoid((1000,), device=device)
    settings = {"reduction": "none"} | ({"bins": 1} if "ghmc" in name else {})
    loss_of = getattr(fastloss, name)
    loss, grad = differentiate(loss_of, x, target, **settings)
    for at in (0, 127, 128, 500, 999):
        mixed = target.clone()
        mixed[at] = 0.25
        got = differentiate(loss_of, x, mixed, **settings)
        truth = differentiate(getattr(reference, name), x.double(), mixed.double(), **settings)
        others = torch.arange(1000, device=device) != at
        torch.testing.assert_close(got[0][others], loss[others], rtol=3e-7, atol=0)
        torch.testing.assert_close(got[1][others], grad[others], rtol=3e-7, atol=0)
        torch.testing.assert_close([part[at].double() for part in got], [part[at] for part in truth], rtol=1e-5, atol=0)
