"""Softmax focal loss against the paper's formula, and finite at every probability for every gamma."""

import math

import pytest
import torch
from cases import GAMMAS, REDUCTIONS, WIDE, differentiate, make_softmax

import fastloss


@pytest.mark.parametrize("gamma", [*GAMMAS, 1.5, 16.0])
def test_equals_the_paper(gamma, device):
    """FL(p) = -alpha (1 - p)^gamma log p, section 3.2."""
    x, target = make_softmax((200, 6), torch.float64, device, ignored=0)
    alpha = torch.rand(6, dtype=torch.float64, device=device)

    def focal(x, target):
        p = x.softmax(1)[torch.arange(len(target), device=device), target]
        return (-alpha[target] * (1 - p) ** gamma * p.log()).sum()

    got = differentiate(fastloss.focal_loss, x, target, alpha, gamma=gamma, reduction="sum")
    torch.testing.assert_close(got, differentiate(focal, x, target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gamma_zero_is_cross_entropy(reduction, device):
    x, target = make_softmax((50, 7), device=device)
    weight = torch.rand(7, device=device)
    got = differentiate(fastloss.focal_loss, x, target, weight, gamma=0.0, reduction=reduction)
    assert all(map(torch.equal, got, differentiate(fastloss.cross_entropy, x, target, weight, reduction=reduction)))


def test_mean_divides_by_the_weights_not_by_the_classes(device):
    x, target = make_softmax((50, 7), device=device)
    weight = torch.rand(7, device=device)
    each = fastloss.focal_loss(x, target, weight, reduction="none")
    expected = each.sum() / weight[target[target >= 0]].sum()
    torch.testing.assert_close(fastloss.focal_loss(x, target, weight), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_finite_at_every_probability(gamma, dtype, device):
    """p = 1 exactly, p just below 1, p = 0 by underflow and exactly: value and gradient are what the limits say."""
    for classes in (2, WIDE):
        for margin in (0.0, 10.0, 17.0, 30.0, 80.0, 95.0, 1e4):
            x = torch.full((17, classes), -margin, dtype=dtype, device=device)
            x[:, 0] = 0.0
            right = differentiate(fastloss.focal_loss, x, torch.zeros(17, dtype=torch.long, device=device), gamma=gamma)
            wrong = differentiate(fastloss.focal_loss, x, torch.ones(17, dtype=torch.long, device=device), gamma=gamma)
            assert all(tensor.isfinite().all() for tensor in (*right, *wrong)), f"margin {margin}"
            assert right[1].abs().max() <= wrong[1].abs().max() + 1e-3
            if margin >= 1e4:
                assert right[0] == 0 and right[1].eq(0).all()
                torch.testing.assert_close(wrong[0], -x[0, 1].to(wrong[0].dtype))
                expected = torch.tensor([1 / 17, -1 / 17], dtype=dtype, device=device).expand(17, 2)
                torch.testing.assert_close(wrong[1][:, :2], expected)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_target_ruled_out(gamma, device):
    """A logit of -inf at the target: the loss is inf, the gradient that of p = 0."""
    x = torch.tensor([[0.0, -math.inf, 1.0]], device=device)
    loss, grad = differentiate(fastloss.focal_loss, x, torch.tensor([1], device=device), gamma=gamma)
    assert loss == math.inf
    expected = x.softmax(1) - torch.tensor([[0.0, 1.0, 0.0]], device=device)
    torch.testing.assert_close(grad, expected)
