"""What a softmax loss takes beside its own parameter: class probabilities, sample weights, a denominator, scaled and
capped logits, the z loss and logsumexp. Values and gradients on every layout are in test_equivalence.py."""

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, IGNORE, WIDE, check, differentiate, embed, make_softmax, probabilities_like

import fastloss
from fastloss import reference
from fastloss.autograd import schedule_of

LOSSES = {
    "cross_entropy": {},
    "smoothing": {"label_smoothing": 0.1},
    "focal": {"gamma": 1.5},
    "poly": {"epsilon": 0.5},
}
NAMES = {"smoothing": "cross_entropy", "focal": "focal_loss", "poly": "poly_loss"}
EXTRAS = {"z_loss": 0.01, "logit_scale": 0.7, "softcap": 4.0}
SHAPES = [(40, 11), (7, WIDE), (3, 5, 19)]


def call(loss):
    name = NAMES.get(loss, loss)
    return name, LOSSES[loss]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_sample_weight(loss, dtype, device):
    name, settings = call(loss)
    for shape in SHAPES:
        x, target = make_softmax(shape, dtype, device)
        sample_weight = torch.rand(target.shape, device=device)
        weight = torch.rand(shape[1], device=device)
        for reduction in ("mean", "sum"):
            check(name, x, target, sample_weight=sample_weight, reduction=reduction, **settings)
            check(name, x, target, weight, sample_weight=sample_weight, reduction=reduction, **settings)
        check(name, x, target, sample_weight=sample_weight, reduction="mean", **settings, **EXTRAS)


def test_sample_weight_broadcasts(device):
    x, target = make_softmax((3, 5, 7), device=device)
    whole = torch.rand(3, 1, device=device).expand(3, 7)
    want = differentiate(fastloss.cross_entropy, x, target, sample_weight=whole.contiguous())
    for sample_weight in (whole, whole[:, :1], whole[:, :1].double()):
        got = differentiate(fastloss.cross_entropy, x, target, sample_weight=sample_weight)
        torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(4,\), but should broadcast to \(3, 7\)"):
        fastloss.cross_entropy(x, target, sample_weight=torch.ones(4, device=device))


def test_a_sample_weight_of_an_ignored_decision_counts_nothing(device):
    x, target = make_softmax((40, 11), device=device)
    sample_weight = torch.where(target == IGNORE, float("nan"), 1.0)
    for loss in LOSSES:
        name, settings = call(loss)
        got = differentiate(getattr(fastloss, name), x, target, sample_weight=sample_weight, **settings)
        assert torch.equal(got[0], differentiate(getattr(fastloss, name), x, target, **settings)[0])
        assert (got[1][target == IGNORE] == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_denominator(loss, device):
    """Instead of the mean's own, to the bit where it is equal; a number or a tensor of any dtype."""
    name, settings = call(loss)
    x, target = make_softmax((40, 11), device=device)
    valid = int((target != IGNORE).sum())
    function = getattr(fastloss, name)
    want = differentiate(function, x, target, **settings)
    numbers = [valid, float(valid)] + [torch.tensor(valid, dtype=d, device=device) for d in (torch.int64, *DTYPES)]
    for denominator in (*numbers, torch.tensor([valid], device=device)):
        got = differentiate(function, x, target, denominator=denominator, **settings)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    check(name, x, target, torch.rand(11, device=device), denominator=7.5, **settings)


def test_denominator_is_refused(device):
    x, target = make_softmax((4, 3), device=device)
    for bad, message in (
        (
            {"denominator": 3, "reduction": "sum"},
            "denominator is given, but should be None: it is what reduction='mean'",
        ),
        (
            {"denominator": torch.ones(2)},
            r"denominator has shape \(2,\) and dtype torch.float32, but should be a number",
        ),
        ({"denominator": "3"}, "denominator is of type str, but should be"),
        ({"denominator": torch.ones((), requires_grad=True)}, "denominator requires grad"),
        ({"sample_weight": [1.0] * 4}, "sample_weight is of type list, but should be a tensor or None"),
        ({"sample_weight": torch.ones(4, requires_grad=True)}, "sample_weight requires grad"),
        ({"sample_weight": torch.ones(4, dtype=torch.int64)}, "sample_weight has dtype Long, but should have float32"),
        ({"z_loss": -1.0}, "z_loss is -1, but should be in"),
        ({"z_loss": float("nan")}, "z_loss is -?nan, but should be in"),
        ({"logit_scale": 0.0}, "logit_scale is 0, but should be in"),
        ({"softcap": 0.0}, "softcap is 0, but should be in"),
        ({"softcap": -3.0}, "softcap is -3, but should be in"),
    ):
        with pytest.raises(ValueError, match=message):
            fastloss.focal_loss(x.requires_grad_(), target, **bad)


def test_probabilities_are_refused(device):
    x, _ = make_softmax((4, 3), device=device)
    soft = probabilities_like(x)
    for target, settings, message in (
        (soft[:3], {}, r"target has shape \(3, 3\), but class probabilities should have input's shape \(4, 3\)"),
        (soft, {"ignore_index": 2}, "ignore_index is 2, but should be negative: class probabilities are never ignored"),
        (soft.detach().requires_grad_(), {}, "target requires grad"),
    ):
        with pytest.raises(ValueError, match=message):
            fastloss.cross_entropy(x, target, **settings)
    for name in ("focal_loss", "poly_loss", "ghmc_loss"):
        with pytest.raises(ValueError, match=r"target has shape \(4, 3\), but should be \(4,\)"):
            getattr(fastloss, name)(x, soft)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_hot_probabilities_are_class_indices(dtype, device):
    for shape in SHAPES:
        x, target = make_softmax(shape, dtype, device, ignored=0)
        onehot = F.one_hot(target, shape[1]).movedim(-1, 1).to(dtype)
        got = differentiate(fastloss.cross_entropy, x, onehot, label_smoothing=0.1)
        want = differentiate(fastloss.cross_entropy, x, target, label_smoothing=0.1)
        torch.testing.assert_close(got, want)


def test_probabilities_of_any_layout(device):
    """They need not lie as the logits do, nor as a gradient that goes over logits with gaps."""
    for shape in SHAPES:
        x = make_softmax(shape, device=device)[0]
        target = probabilities_like(x)
        want = differentiate(fastloss.cross_entropy, x, target)
        gaps = embed(x, [n + 3 for n in shape], tuple(slice(n) for n in shape))
        others = [
            target.transpose(0, -1).contiguous().transpose(0, -1),
            embed(target, [2 * shape[0], *shape[1:]], slice(None, None, 2)),
            target.double(),
            target[:1].expand(shape),
        ]
        for other in others:
            wanted = want if other.dtype == torch.float64 or other.stride(0) else None
            wanted = wanted or differentiate(fastloss.cross_entropy, x, other.contiguous())
            torch.testing.assert_close(differentiate(fastloss.cross_entropy, x, other), wanted)
            for logits in (
                x.clone(),
                gaps.detach().clone(),
                embed(x, [n + 3 for n in shape], tuple(map(slice, shape))),
            ):
                got = differentiate(fastloss.cross_entropy, logits, other, inplace_backward=True)
                torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("loss", ["extended", "probabilities"])
def test_streamed_gradient(loss):
    """The same bits as over the logits, which are not streamed."""
    for shape in ((9000, WIDE + 500), (20, 200, 2100)):
        x = torch.randn(shape)
        target = probabilities_like(x) if loss == "probabilities" else torch.randint(shape[1], shape[:1] + shape[2:])
        settings = EXTRAS if loss == "extended" else {}
        want = differentiate(fastloss.cross_entropy, x, target, **settings)
        if "baseline" not in fastloss.build_info()["cpu_capability"]:
            path = schedule_of(fastloss.cross_entropy, x.detach().requires_grad_(), target, **settings)
            assert "streamed" in path, path
        got = differentiate(fastloss.cross_entropy, x, target, inplace_backward=True, **settings)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("loss", LOSSES)
def test_lse(loss, device):
    name, settings = call(loss)
    for shape in SHAPES:
        for extras in ({}, EXTRAS):
            x, target = make_softmax(shape, device=device)
            want = getattr(reference, name)(x.double(), target, return_lse=True, **settings, **extras)[1]
            for logits in (x, x.detach().requires_grad_()):
                value, lse = getattr(fastloss, name)(logits, target, return_lse=True, **settings, **extras)
                torch.testing.assert_close(lse, want.float(), rtol=2e-6, atol=2e-6)
                assert not lse.requires_grad
                assert torch.equal(value, getattr(fastloss, name)(logits, target, **settings, **extras))
            value.sum().backward()
    assert (lse[target == IGNORE] == 0).all()
    module = fastloss.CrossEntropyLoss(return_lse=True)
    torch.testing.assert_close(module(x, target)[1], x.logsumexp(1).where(target != IGNORE, 0))


def test_z_loss_of_infinite_logits(device):
    """Masked classes are -inf; without a z loss a logsumexp that is infinite does not come in."""
    x = torch.tensor([[1.0, -torch.inf, 2.0]], device=device)
    target = torch.tensor([0], device=device)
    for settings in ({"logit_scale": 2.0}, {"z_loss": 0.1}):
        loss, grad = differentiate(fastloss.cross_entropy, x, target, **settings)
        assert loss.isfinite() and grad.isfinite().all() and grad[0, 1] == 0


@pytest.mark.parametrize("upstream", [0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("loss", LOSSES)
def test_upstream_of_each_decision(loss, upstream, device):
    """Non-uniform, and zero or not finite in places: those decisions alone have that gradient."""
    name, settings = call(loss)
    for shape in SHAPES:
        x, target = make_softmax(shape, device=device)
        grad_output = torch.rand(target.shape, device=device) + 0.5
        check(name, x, target, grad_output=grad_output, reduction="none", **settings)
        hit = torch.rand(target.shape, device=device) < 0.3
        function = getattr(fastloss, name)
        _, plain = differentiate(function, x, target, grad_output=grad_output, reduction="none", **settings)
        strange = torch.where(hit, upstream, grad_output)
        _, grad = differentiate(function, x, target, grad_output=strange, reduction="none", **settings)
        rows, plain_rows = grad.movedim(1, -1), plain.movedim(1, -1)
        assert torch.equal(rows[~hit], plain_rows[~hit])
        assert (rows[target == IGNORE] == 0).all()
        if upstream == 0:
            assert (rows[hit] == 0).all()
        else:
            assert not rows[hit & (target != IGNORE)].isfinite().any()


@pytest.mark.parametrize("loss", [*LOSSES, "probabilities"])
def test_second_derivatives(loss):
    name, settings = call(loss) if loss in LOSSES else ("cross_entropy", {})
    x, target = make_softmax((6, 5), torch.float64)
    target = probabilities_like(x) if loss == "probabilities" else target
    sample_weight = torch.rand(6, dtype=torch.float64)
    for reduction in ("mean", "none"):
        options = {"sample_weight": sample_weight, "reduction": reduction, **settings, **EXTRAS}
        if reduction == "mean":
            options["denominator"] = 2.5

        def function(x, options=options):
            return getattr(fastloss, name)(x, target, **options)

        assert torch.autograd.gradcheck(function, x.requires_grad_())
        assert torch.autograd.gradgradcheck(function, x.requires_grad_())


def test_compiled(device):
    x, target = make_softmax((20, 7), device=device)
    soft = probabilities_like(x)
    sample_weight, denominator = torch.rand(20, device=device), torch.tensor(9, device=device)

    def function(x):
        loss, lse = fastloss.focal_loss(x * 2, target, denominator=denominator, return_lse=True, **EXTRAS)
        smooth = fastloss.cross_entropy(x * 3, soft, sample_weight=sample_weight, denominator=4)
        return loss + lse.sum() + smooth

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(differentiate(compiled, x), differentiate(function, x))


def test_modules(device):
    x, target = make_softmax((20, 7), device=device)
    sample_weight = torch.rand(20, device=device)
    for module, function in (
        (fastloss.CrossEntropyLoss, fastloss.cross_entropy),
        (fastloss.FocalLoss, fastloss.focal_loss),
        (fastloss.PolyLoss, fastloss.poly_loss),
    ):
        got = module(**EXTRAS)(x, target, sample_weight=sample_weight, denominator=3)
        assert torch.equal(got, function(x, target, sample_weight=sample_weight, denominator=3, **EXTRAS))
