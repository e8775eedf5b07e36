"""Sigmoid GHM-C against mmdetection's formula: equal masses per bin, masked elements, running statistics."""

import pytest
import torch
import torch.nn.functional as F
from cases import clear_of_bin_edges, differentiate, make_sigmoid

import fastloss


def mmdetections(x, t, mask, bins=10, momentum=0.0, accumulated=None):
    """g = |sigmoid(x) - t|; a bin's elements weigh tot / its count (or running count) / non-empty bins; BCE / tot."""
    g = (x.detach().sigmoid() - t).abs()
    total = max(mask.sum().item(), 1)
    weight, nonempty = torch.zeros_like(x), 0
    for b in range(bins):
        inside = mask & (g >= b / bins) & ((g < (b + 1) / bins) | (b == bins - 1))
        count = inside.sum().item()
        if count:
            nonempty += 1
            if momentum > 0:
                accumulated[b] = momentum * accumulated[b] + (1 - momentum) * count
                count = accumulated[b]
            weight[inside] = total / count
    weight /= max(nonempty, 1)
    return (weight * F.binary_cross_entropy_with_logits(x, t, reduction="none")).sum() / total


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_equals_mmdetection_over_steps(momentum, soft, device):
    module = fastloss.SigmoidGHMCLoss(momentum=momentum, bias_correction=False).to(device)
    accumulated = [0.0] * 10
    for _ in range(5):
        x, target = make_sigmoid((50, 7), torch.float64, device, soft)
        target = target.double()
        mask = clear_of_bin_edges((x.sigmoid() - target).abs(), 10) & (torch.rand(50, 7, device=device) < 0.7)
        got = differentiate(module, x, target, mask)
        torch.testing.assert_close(got, differentiate(mmdetections, x, target, mask, 10, momentum, accumulated))
    if momentum:
        torch.testing.assert_close(module.running_histogram.tolist(), accumulated)


def test_mask_dtypes(device):
    """An element counts where its mask is above 0: bool, integer weights, float weights, negative ones."""
    x, target = make_sigmoid((60,), device=device)
    mask = torch.rand(60, device=device) < 0.5
    expected = differentiate(fastloss.sigmoid_ghmc_loss, x, target, mask)
    for other in (mask.int(), mask.long() * 3 - 1, mask.float() * 0.25, mask.half(), mask.to(torch.uint8) * 255):
        assert all(map(torch.equal, differentiate(fastloss.sigmoid_ghmc_loss, x, target, other), expected))
    assert expected[1][~mask].eq(0).all()
    strided = torch.stack([mask, ~mask], 1)[:, 0]
    assert all(map(torch.equal, differentiate(fastloss.sigmoid_ghmc_loss, x, target, strided), expected))


def test_masked_elements_do_not_count(device):
    """Whatever their logits: leaving them out gives the same."""
    x, target = make_sigmoid((60,), device=device)
    mask = torch.rand(60, device=device) < 0.5
    x[~mask] = float("nan")
    loss, grad = differentiate(fastloss.sigmoid_ghmc_loss, x, target, mask)
    kept, kept_grad = differentiate(fastloss.sigmoid_ghmc_loss, x[mask], target[mask])
    torch.testing.assert_close(loss, kept)
    torch.testing.assert_close(grad[mask], kept_grad)
    assert grad[~mask].eq(0).all()


@pytest.mark.parametrize("reduction, expected", [("mean", 0.0), ("sum", 0.0), ("none", [0.0] * 4)])
def test_nothing_counts(reduction, expected, device):
    """As mmdetection has it, the mean over no element is 0, not nan."""
    x, target = make_sigmoid((4,), device=device)
    mask = torch.zeros(4, device=device)
    loss, grad = differentiate(fastloss.sigmoid_ghmc_loss, x, target, mask, reduction=reduction)
    assert loss.tolist() == expected and grad.eq(0).all()


def test_table(device):
    """Logits 2, 2, -2 for label 1: g = .119, .119, .881, two bins filled, beta = 3 / (2 * 2) and 3 / (2 * 1)."""
    x = torch.tensor([2.0, 2.0, -2.0], dtype=torch.float64, device=device)
    each = fastloss.sigmoid_ghmc_loss(x, torch.ones_like(x), reduction="none")
    nll = torch.nn.functional.softplus(-x)
    torch.testing.assert_close(each, torch.tensor([0.75, 0.75, 1.5], dtype=torch.float64, device=device) * nll)
    paper = fastloss.sigmoid_ghmc_loss(x, torch.ones_like(x), reduction="none", normalizer="bins")
    torch.testing.assert_close(paper, each * 2 / 10)


@pytest.mark.parametrize("bins", [1, 10, 17, 32, 33, 300])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_many_decisions(spread, bins, device):
    """More than a lane's 8-bit counters hold, in one bin and in many; few bins are counted unlike many."""
    x, target = make_sigmoid((40000,), torch.float64, device)
    x = (x - x.mean()) / x.std() * spread
    clear = clear_of_bin_edges((x.sigmoid() - target).abs(), bins)
    x, target = x[clear].float(), target[clear].float()
    got = differentiate(fastloss.sigmoid_ghmc_loss, x, target, bins=bins)
    everything = torch.ones_like(x, dtype=torch.bool)
    expected = differentiate(mmdetections, x.double(), target.double(), everything, bins)
    torch.testing.assert_close([part.double() for part in got], list(expected), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("soft", [False, True])
def test_many_masked(soft, device):
    """A mask over many elements: those that count get what they get alone, the others nothing, whatever they hold."""
    x, target = make_sigmoid((5003,), device=device, soft=soft)
    mask = torch.rand(5003, device=device) < 0.5
    kept = differentiate(fastloss.sigmoid_ghmc_loss, x[mask], target[mask], reduction="sum")
    x[~mask] = float("nan")
    for hidden in (0.5, 1.0):
        target[~mask] = hidden
        loss, grad = differentiate(fastloss.sigmoid_ghmc_loss, x, target, mask, reduction="sum")
        torch.testing.assert_close((loss, grad[mask]), kept)
        assert grad[~mask].eq(0).all()
