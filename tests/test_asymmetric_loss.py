"""Asymmetric loss against its authors' code, against the paper's gradient and at its limits; the factors that all
sigmoid losses but GHM-C take."""

import itertools
import math

import pytest
import torch
from cases import DTYPES, REDUCTIONS, check, differentiate, layouts, make_sigmoid

import fastloss
from fastloss import reference


def authors(x, y, gamma_neg=4, gamma_pos=1, clip=0.05, eps=1e-8):
    """What Alibaba-MIIL/ASL computes, written from its description: clamps, eps and the interpolated exponent."""
    positive, negative = x.sigmoid(), (1 - x.sigmoid() + clip).clamp(max=1)
    likelihood = y * positive.clamp(min=eps).log() + (1 - y) * negative.clamp(min=eps).log()
    p_target = positive * y + negative * (1 - y)
    return -((1 - p_target) ** (gamma_pos * y + gamma_neg * (1 - y)) * likelihood).sum()


@pytest.mark.parametrize("clip", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("gammas", [(4, 1), (4, 0), (0, 0), (2, 2), (3, 0.5)])
def test_equals_the_authors(gammas, clip, device):
    x, target = make_sigmoid((60, 20), torch.float64, device)
    x = x.clamp(-18, 18)
    settings = {"gamma_negative": gammas[0], "gamma_positive": gammas[1], "margin": clip}
    got = differentiate(fastloss.asymmetric_loss, x, target, **settings)
    expected = differentiate(authors, x, target.double(), gamma_neg=gammas[0], gamma_pos=gammas[1], clip=clip)
    torch.testing.assert_close(got, expected)


def test_beyond_the_authors_clamps(device):
    """A hopeless positive: their logarithm stops at 1e-8, and its gradient is 0; ours go on."""
    x = torch.tensor([-30.0, -100.0, -1e4], dtype=torch.float64, device=device)
    loss, grad = differentiate(fastloss.asymmetric_loss, x, torch.ones_like(x), reduction="none")
    torch.testing.assert_close(loss, -x)
    torch.testing.assert_close(grad, -torch.ones_like(x))
    clamped, none = differentiate(authors, x, torch.ones_like(x), gamma_pos=0)
    torch.testing.assert_close(clamped, torch.tensor(-3 * math.log(1e-8), dtype=torch.float64, device=device))
    assert none.eq(0).all()


def test_the_papers_gradient(device):
    """Section 3.3: dL-/dx = p_m^gamma (1 / (1 - p_m) - gamma log(1 - p_m) / p_m) p (1 - p), 0 below the margin."""
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, device=device)
    for gamma, margin in itertools.product([1, 2, 4], [0.05, 0.2]):
        _, grad = differentiate(fastloss.asymmetric_loss, x, torch.zeros_like(x), gamma_negative=gamma, margin=margin)
        p = x.sigmoid()
        shifted = p - margin
        slope = shifted**gamma * (1 / (1 - shifted) - gamma * torch.log1p(-shifted) / shifted) * p * (1 - p)
        torch.testing.assert_close(grad, torch.where(shifted > 0, slope, 0))


def test_table(device):
    """By hand: p = 1/2 of a positive and of a negative, and a negative below the margin."""
    x = torch.tensor([0.0, 0.0, -4.0], dtype=torch.float64, device=device)
    target = torch.tensor([1, 0, 0], device=device)
    each = fastloss.asymmetric_loss(x, target, reduction="none")
    assert each.tolist() == pytest.approx([math.log(2), -(0.45**4) * math.log(0.55), 0.0], rel=1e-12)


@pytest.mark.parametrize("gammas", [(0.0, 0.0), (2.0, 2.0), (0.7, 0.7)])
def test_without_asymmetry_it_is_focal_loss(gammas, device):
    x, target = make_sigmoid((50, 7), torch.float64, device)
    got = differentiate(fastloss.sigmoid_focal_loss, x, target, gamma=gammas)
    torch.testing.assert_close(got, differentiate(fastloss.sigmoid_focal_loss, x, target, gamma=gammas[0]))


def test_margin_and_two_gammas_of_focal_loss_are_asymmetric_loss(device):
    x, target = make_sigmoid((50, 7), device=device, soft=True)
    shape = {"gamma_positive": 1.0, "gamma_negative": 3.0, "margin": 0.1}
    for reduction in REDUCTIONS:
        expected = differentiate(fastloss.asymmetric_loss, x, target, **shape, alpha=0.25, reduction=reduction)
        for gamma in ((1.0, 3.0), [1.0, 3.0]):
            settings = {"gamma": gamma, "margin": 0.1, "reduction": reduction}
            assert all(map(torch.equal, differentiate(fastloss.sigmoid_focal_loss, x, target, **settings), expected))
    one = differentiate(fastloss.sigmoid_focal_loss, x, target, gamma=2.0, margin=0.1)
    two = differentiate(fastloss.sigmoid_focal_loss, x, target, gamma=(2.0, 2.0), margin=0.1)
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_a_soft_target_has_a_share_of_both(margin, device):
    x, _ = make_sigmoid((300,), torch.float64, device)
    settings = {"gamma_positive": 1.0, "gamma_negative": 3.0, "margin": margin, "reduction": "none"}
    one = differentiate(fastloss.asymmetric_loss, x, torch.ones_like(x), **settings)
    zero = differentiate(fastloss.asymmetric_loss, x, torch.zeros_like(x), **settings)
    for share in (0.0, 1e-3, 0.4, 1.0):
        mixed = differentiate(fastloss.asymmetric_loss, x, torch.full_like(x, share), **settings)
        torch.testing.assert_close(mixed, tuple(share * a + (1 - share) * b for a, b in zip(one, zero, strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
def test_extreme_logits(gamma, margin, dtype, device):
    """Finite for every finite logit; a hopeless negative has no gradient where there is a margin."""
    x = torch.tensor([-3e38, -1e4, -104.0, -88.0, 0.0, 88.0, 104.0, 1e4, 3e38], dtype=dtype, device=device)
    settings = {"gamma_positive": gamma, "gamma_negative": gamma, "margin": margin, "reduction": "none"}
    for target in (0.0, 1.0, 0.3):
        got = differentiate(fastloss.asymmetric_loss, x, torch.full_like(x, target), **settings)
        assert all(part.isfinite().all() for part in got)
    infinite = torch.tensor([math.inf, -math.inf], dtype=dtype, device=device)
    loss, grad = differentiate(fastloss.asymmetric_loss, infinite, torch.zeros_like(infinite), **settings)
    assert loss[1] == 0 and grad[1] == 0
    if margin:
        assert loss[0].isfinite() and grad[0] == 0
    loss, grad = differentiate(fastloss.asymmetric_loss, infinite, torch.ones_like(infinite), **settings)
    assert loss.tolist() == [0, math.inf] and grad.tolist() == [0, -1]


def test_nan_stays_where_it_is(device):
    for target, margin in itertools.product((0.0, 0.5, 1.0), (0.0, 0.05)):
        x = torch.zeros(40, device=device)
        x[5] = math.nan
        settings = {"margin": margin, "reduction": "none"}
        got = differentiate(fastloss.asymmetric_loss, x, torch.full_like(x, target), **settings)
        for part in got:
            assert part.isnan().nonzero().tolist() == [[5]], (target, margin)


# ---- factors of each decision


def broadcasts(shape, dtype, device):
    """Tensors that broadcast over shape: of every set of its dimensions, and some with fewer dimensions."""
    for kept in itertools.product([True, False], repeat=len(shape)):
        yield torch.rand([n if keep else 1 for n, keep in zip(shape, kept, strict=True)], device=device).to(dtype)
    for d in range(1, len(shape)):
        yield torch.rand(shape[d:], device=device).to(dtype)
    yield torch.tensor(0.7, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "asymmetric_loss"])
def test_alpha_and_weights_broadcast(loss, dtype, device):
    turn = itertools.count()
    for shape in [(5,), (29, 3), (7, 80), (3, 5, 1, 7), (2, 1, 300), (0, 4), ()]:
        for soft in (False, True):
            x, target = make_sigmoid(shape, dtype, device, soft)
            mask = torch.rand(shape, device=device) < 0.7
            for alpha, weight in zip(
                broadcasts(shape, torch.float32, device), reversed(list(broadcasts(shape, dtype, device))), strict=True
            ):
                i = next(turn)
                settings = {"reduction": REDUCTIONS[i % 3]}
                if i % 4:
                    settings["alpha"] = alpha
                if i % 5:
                    settings["sample_weight"] = weight
                if i % 2:
                    settings["mask"] = mask
                if not i % 7 and settings["reduction"] == "mean":
                    settings["denominator"] = 3.0
                check(loss, x, target, **settings)


@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "asymmetric_loss"])
def test_weights_of_any_layout(loss, device):
    x, target = make_sigmoid((5, 11, 6), device=device)
    weight = torch.rand(5, 11, 6, device=device)
    expected = differentiate(getattr(fastloss, loss), x, target, sample_weight=weight, reduction="mean")
    for _, view in layouts(weight):
        got = differentiate(getattr(fastloss, loss), x, target, sample_weight=view, reduction="mean")
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "asymmetric_loss"])
@pytest.mark.parametrize("soft", [False, True])
def test_many_weighted(loss, soft, device):
    """Several blocks, whose sums of weights are added up."""
    x, target = make_sigmoid((2003, 81), device=device, soft=soft)
    for shape in ((81,), (2003, 1), (2003, 81)):
        mask = torch.rand(2003, 81, device=device) < 0.5
        weight, alpha = torch.rand(shape, device=device), torch.rand(81, device=device)
        check(loss, x, target, sample_weight=weight, alpha=alpha, mask=mask, reduction="mean")


@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "asymmetric_loss"])
def test_mean_divides_by_the_weights_that_count(loss, device):
    x, target = make_sigmoid((40, 6), torch.float64, device)
    mask, weight = torch.rand(40, 6, device=device) < 0.5, torch.rand(40, 1, dtype=torch.float64, device=device)
    function = getattr(fastloss, loss)
    each = function(x, target, reduction="none")
    torch.testing.assert_close(function(x, target, reduction="mean"), each.mean())
    torch.testing.assert_close(function(x, target, mask=mask, reduction="mean"), each[mask].mean())
    weights = weight.expand(40, 6)
    weighted = function(x, target, sample_weight=weight, reduction="mean")
    torch.testing.assert_close(weighted, (weights * each).sum() / weights.sum())
    both = function(x, target, mask=mask, sample_weight=weight, reduction="mean")
    torch.testing.assert_close(both, (weights * each)[mask].sum() / weights[mask].sum())
    assert function(x, target, mask=torch.zeros_like(mask), reduction="mean").isnan()
    for other in (mask.int(), mask.double() * 0.25, mask.to(torch.uint8) * 255):
        assert torch.equal(
            function(x, target, mask=other, reduction="mean"), function(x, target, mask=mask, reduction="mean")
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "asymmetric_loss"])
def test_denominator(loss, dtype, device):
    """The sum divided by it, whether it is a number or a tensor; nothing but reduction mean takes one."""
    x, target = make_sigmoid((40, 6), dtype, device)
    function, weight = getattr(fastloss, loss), torch.rand(6, device=device)
    for sample_weight in (None, weight):
        loss_sum, grad = differentiate(function, x.double(), target, sample_weight=sample_weight, reduction="sum")
        for denominator in (7, 7.0, torch.tensor(7, device=device), torch.full((1,), 7.0, device=device).to(dtype)):
            settings = {"denominator": denominator, "sample_weight": sample_weight, "reduction": "mean"}
            got = differentiate(function, x, target, **settings)
            torch.testing.assert_close(got[0].double(), loss_sum / 7, rtol=1e-5, atol=0)
            torch.testing.assert_close(got[1].double(), grad / 7, rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-6)
            plain = differentiate(getattr(reference, loss), x, target, **settings)
            torch.testing.assert_close(got[0], plain[0], rtol=1e-5, atol=0)


def test_float16_gradients_of_large_weights_are_finite(device):
    """What they are stored times follows from the largest weight and the denominator."""
    x, target = make_sigmoid((1000,), torch.float16, device)
    weight = torch.rand(1000, device=device) * 1e6
    for settings in ({}, {"denominator": 1e5}, {"mask": weight > 10}):
        _, grad = differentiate(
            fastloss.sigmoid_focal_loss, x, target, sample_weight=weight, reduction="mean", **settings
        )
        _, expected = differentiate(
            reference.sigmoid_focal_loss, x.double(), target, sample_weight=weight, reduction="mean", **settings
        )
        torch.testing.assert_close(grad.double(), expected, rtol=2e-3, atol=1e-7)


def test_negative_weights_and_zeros(device):
    x, target = make_sigmoid((60,), device=device)
    weight = torch.linspace(-1, 1, 61, device=device)[:-1]
    weight[::7] = 0
    check("sigmoid_focal_loss", x, target, sample_weight=weight, reduction="sum")
    _, grad = differentiate(fastloss.sigmoid_focal_loss, x, target, sample_weight=weight, reduction="sum")
    assert grad[::7].eq(0).all()


def test_multilabel_training(device):
    """Of 20 labels of which 2.5% hold, a model finds all of them, and few others."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 16, generator=generator).to(device)
    target = (inputs @ torch.randn(16, 20, generator=generator).to(device) > 8).float()
    layer = torch.nn.Linear(16, 20).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        loss = fastloss.asymmetric_loss(layer(inputs), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, holds = layer(inputs) > 0, target > 0
    assert losses[-1] < 0.2 * losses[0]
    assert found[holds].float().mean() > 0.99 and (found == holds).float().mean() > 0.95
