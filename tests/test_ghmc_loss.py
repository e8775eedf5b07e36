"""GHM-C against tables computed by hand: counts, weights, both normalizers, bin edges, momentum."""

import math

import pytest
import torch
from cases import IGNORE, REDUCTIONS, WIDE, differentiate, make_softmax

import fastloss


def logits_of(norms, dtype=torch.float64):
    """Two-class logits whose decisions for class 0 have these gradient norms."""
    p = 1 - torch.tensor(norms, dtype=torch.float64)
    return torch.stack([(p / (1 - p)).log(), torch.zeros_like(p)], 1).to(dtype)


# Six decisions, g = .05 .05 .05 .35 .95 .95: bins 0, 3 and 9 of ten hold 3, 1 and 2.
NORMS = [0.05, 0.05, 0.05, 0.35, 0.95, 0.95]
COUNTS = [3, 0, 0, 1, 0, 0, 0, 0, 0, 2]
BETA_NONEMPTY = [6 / (3 * 3)] * 3 + [6 / (3 * 1)] + [6 / (3 * 2)] * 2  # N / (n R), n = 3
BETA_BINS = [6 / (10 * 3)] * 3 + [6 / (10 * 1)] + [6 / (10 * 2)] * 2  # n = 10


@pytest.mark.parametrize("normalizer, beta", [("nonempty", BETA_NONEMPTY), ("bins", BETA_BINS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_table(dtype, normalizer, beta, device):
    x, target = logits_of(NORMS, dtype).to(device), torch.zeros(6, dtype=torch.long, device=device)
    assert fastloss.gradient_norm_histogram(x, target).tolist() == COUNTS
    nll = [-math.log(1 - g) for g in NORMS]
    losses = [b * value for b, value in zip(beta, nll, strict=True)]
    expected = {"none": losses, "sum": sum(losses), "mean": sum(losses) / 6}
    for reduction in REDUCTIONS:
        loss, grad = differentiate(fastloss.ghmc_loss, x, target, normalizer=normalizer, reduction=reduction)
        torch.testing.assert_close(loss.cpu(), torch.tensor(expected[reduction], dtype=dtype))
        share = 6 if reduction == "mean" else 1
        slope = torch.tensor([[-b * g / share, b * g / share] for b, g in zip(beta, NORMS, strict=True)], dtype=dtype)
        torch.testing.assert_close(grad.cpu(), slope)


def test_the_article(device):
    """NER_loss_compare weights a decision by N / (10 * count) / n: ours times 0.1."""
    x, target = make_softmax((300, 5), torch.float64, device, ignored=0)
    p = x.softmax(1).gather(1, target[:, None])[:, 0]
    bins = ((1 - p) * 10).long()
    counts = torch.bincount(bins, minlength=10)
    article = (300 / (10.0 * counts[bins]) / (counts > 0).sum() * -p.log()).mean()
    torch.testing.assert_close(fastloss.ghmc_loss(x, target) * 0.1, article)


def test_edges_belong_to_the_bin_above(device):
    """With norms that are exact in float: g = b / 4 is the first of bin b, g just below 1 and 1 the last bin."""
    # Four equal classes: p = 1/4 and g = 3/4 exactly; two equal classes: g = 1/2.
    target = torch.zeros(1, dtype=torch.long, device=device)
    for dtype in (torch.float32, torch.float64):
        four, two = torch.zeros(1, 4, dtype=dtype, device=device), torch.zeros(1, 2, dtype=dtype, device=device)
        assert fastloss.gradient_norm_histogram(four, target, bins=4).tolist() == [0, 0, 0, 1]
        assert fastloss.gradient_norm_histogram(two, target, bins=4).tolist() == [0, 0, 1, 0]
        assert fastloss.gradient_norm_histogram(two, target, bins=2).tolist() == [0, 1]
        hopeless = torch.tensor([[-200.0, 0.0]], dtype=dtype, device=device)
        certain = torch.tensor([[200.0, 0.0]], dtype=dtype, device=device)
        assert fastloss.gradient_norm_histogram(hopeless, target, bins=10).tolist() == [0] * 9 + [1]
        assert fastloss.gradient_norm_histogram(certain, target, bins=10).tolist() == [1] + [0] * 9


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_bin_is_cross_entropy(reduction, device):
    x, target = make_softmax((50, 7), device=device)
    got = differentiate(fastloss.ghmc_loss, x, target, bins=1, reduction=reduction)
    torch.testing.assert_close(got, differentiate(fastloss.cross_entropy, x, target, reduction=reduction))


def test_as_many_bins_as_decisions(device):
    """Each decision alone in its bin: all weigh the same, N / (N * 1) = 1."""
    x = logits_of([(i + 0.5) / 1000 for i in range(0, 1000, 10)]).to(device)
    target = torch.zeros(100, dtype=torch.long, device=device)
    each = fastloss.ghmc_loss(x, target, bins=1000, reduction="none")
    torch.testing.assert_close(each, fastloss.cross_entropy(x, target, reduction="none"))
    assert fastloss.gradient_norm_histogram(x, target, bins=65536).sum() == 100


def test_the_mean_weight_is_one(device):
    """sum_i beta_i = sum_b R_b N / (n R_b) = N: equal losses average to themselves."""
    for classes in (3, WIDE):
        x, target = make_softmax((500, classes), torch.float64, device)
        nll = fastloss.cross_entropy(x, target, reduction="none")
        beta = (fastloss.ghmc_loss(x, target, reduction="none") / nll)[target != IGNORE]
        torch.testing.assert_close(beta.mean().item(), 1.0)


class Momentum:
    """Two bins, one decision a class: counts (3, 1), then (2, 0), then (0, 4)."""

    batches = ([0.1, 0.1, 0.2, 0.9], [0.1, 0.3], [0.8, 0.8, 0.9, 0.9])

    def __init__(self, device, **settings):
        self.state = {
            "running_histogram": torch.zeros(2, dtype=torch.float64, device=device),
            "num_updates": torch.zeros(2, dtype=torch.int64, device=device),
        }
        self.settings = {"bins": 2, **settings}
        self.device = device

    def beta(self, batch, **settings):
        x = logits_of(self.batches[batch]).to(self.device)
        target = torch.zeros(len(x), dtype=torch.long, device=self.device)
        settings = {**self.settings, **settings}
        loss, grad = differentiate(fastloss.ghmc_loss, x, target, reduction="sum", **self.state, **settings)
        beta = -grad[:, 0].cpu() / torch.tensor(self.batches[batch])
        assert math.isclose(
            loss, sum(b * -math.log(1 - g) for b, g in zip(beta, self.batches[batch], strict=True)), rel_tol=1e-6
        )
        return beta.tolist()

    def histogram(self):
        return self.state["running_histogram"].tolist()


def test_momentum_without_bias_correction(device):
    """mmdetection's numbers: S <- m S + (1 - m) R for filled bins, beta = N / (n S)."""
    run = Momentum(device, momentum=0.75, bias_correction=False)
    # S = .25 * (3, 1) = (.75, .25), N = 4, n = 2.
    assert run.beta(0) == pytest.approx([4 / (2 * 0.75)] * 3 + [4 / (2 * 0.25)])
    assert run.histogram() == [0.75, 0.25]
    # The second bin is empty and keeps S; S_0 = .75 * .75 + .25 * 2.
    assert run.beta(1) == pytest.approx([2 / (1 * 1.0625)] * 2)
    assert run.histogram() == [1.0625, 0.25]
    # S_1 = .75 * .25 + .25 * 4.
    assert run.beta(2) == pytest.approx([4 / (1 * 1.1875)] * 4)
    assert run.histogram() == [1.0625, 1.1875]
    assert run.state["num_updates"].tolist() == [2, 2]


def test_momentum_with_bias_correction(device):
    """S_b / (1 - m^t_b): the first step has the weights of no momentum at all."""
    run = Momentum(device, momentum=0.75)
    assert run.beta(0) == pytest.approx([4 / (2 * 3)] * 3 + [4 / (2 * 1)])
    corrected = 1.0625 / (1 - 0.75**2)
    assert run.beta(1) == pytest.approx([2 / (1 * corrected)] * 2)
    assert run.beta(2) == pytest.approx([4 / (1 * 1.1875 / (1 - 0.75**2))] * 4)
    assert run.histogram() == [1.0625, 1.1875]


def test_no_blow_up_at_the_first_step(device):
    """At m = 0.9 the uncorrected first weights are ten times too large; that is how users got nan."""
    x, target = make_softmax((500, 11), device=device)
    plain = fastloss.ghmc_loss(x, target)
    for bias_correction, factor in ((True, 1), (False, 10)):
        module = fastloss.GHMCLoss(momentum=0.9, bias_correction=bias_correction).to(device)
        torch.testing.assert_close(module(x, target), plain * factor)


def test_evaluation_uses_the_state_and_leaves_it(device):
    run = Momentum(device, momentum=0.75, training=False)
    # No history yet: the batch's own counts.
    assert run.beta(0) == pytest.approx([4 / (2 * 3)] * 3 + [4 / (2 * 1)])
    assert run.histogram() == [0, 0]
    run.beta(0, training=True)
    run.beta(1, training=True)
    before = [tensor.clone() for tensor in run.state.values()]
    corrected = 0.25 / (1 - 0.75)
    assert run.beta(2) == pytest.approx([4 / (1 * corrected)] * 4)
    assert all(map(torch.equal, run.state.values(), before))


def test_an_empty_batch_leaves_the_state(device):
    run = Momentum(device, momentum=0.75)
    run.beta(0)
    before = run.histogram()
    x, target = make_softmax((5, 2), torch.float64, device, ignored=1.1)
    assert fastloss.ghmc_loss(x, target, reduction="sum", **run.state, **run.settings) == 0
    assert run.histogram() == before and run.state["num_updates"].tolist() == [1, 1]


def test_state_without_gradient(device):
    """Training mode updates the state also where no gradient is wanted."""
    x, target = make_softmax((50, 5), device=device)
    module = fastloss.GHMCLoss(momentum=0.5).to(device)
    with torch.no_grad():
        module(x, target)
    counts = fastloss.gradient_norm_histogram(x, target)
    assert torch.equal(module.running_histogram, counts * 0.5)


def test_fused_and_reference_agree_over_steps(device):
    for settings in ({"bias_correction": True}, {"bias_correction": False, "normalizer": "bins"}):
        fused, plain = (Momentum(device, momentum=0.9).state for _ in range(2))
        fused, plain = ({name: state.new_zeros(10) for name, state in s.items()} for s in (fused, plain))
        for step in range(8):
            x, target = make_softmax((60, 4), torch.float64, device, scale=0.5 + step)
            settings = {**settings, "momentum": 0.9, "training": step != 5}
            got = differentiate(fastloss.ghmc_loss, x, target, **fused, **settings)
            torch.testing.assert_close(got, differentiate(fastloss.reference.ghmc_loss, x, target, **plain, **settings))
            torch.testing.assert_close(fused, plain)


def test_nan_takes_the_last_bin(device):
    x = torch.zeros(3, 2, device=device)
    x[1] = float("nan")
    target = torch.zeros(3, dtype=torch.long, device=device)
    assert fastloss.gradient_norm_histogram(x, target, bins=4).tolist() == [0, 0, 2, 1]
    loss = fastloss.ghmc_loss(x, target, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
