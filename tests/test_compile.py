"""torch.compile(fullgraph=True): the losses stay one graph, forward and backward, and give the same numbers."""

import pytest
import torch
from cases import SIGMOID_LOSSES, SOFTMAX_LOSSES, differentiate, make_sigmoid, make_softmax
from torch._dynamo.testing import CompileCounterWithBackend

import fastloss

LOSSES = {**SOFTMAX_LOSSES, **{"sigmoid_" + name: loss for name, loss in SIGMOID_LOSSES.items()}}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def make(loss, dtype, device, shape=(20, 7)):
    """``(logits, function of logits)``: around the loss, operations of a model."""
    name, options, *_ = LOSSES[loss]
    x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)(shape, dtype, device)
    return x, lambda x, **settings: getattr(fastloss, name)(x * 2, target, **{**options, **settings}).sum() * 3


def assert_same(got, expected):
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=2 * torch.finfo(got[1].dtype).eps, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss, device):
    for dtype in (torch.float32, torch.float16):
        torch.compiler.reset()
        x, function = make(loss, dtype, device)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for settings in ({}, {"reduction": "none"}):
            assert_same(differentiate(compiled, x, **settings), differentiate(function, x, **settings))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), function(x))


MODULES = {
    "AsymmetricLoss": {},
    "CrossEntropyLoss": {"label_smoothing": 0.1},
    "FocalLoss": {},
    "GHMCLoss": {"momentum": 0.9},
    "SigmoidFocalLoss": {"reduction": "mean"},
    "SigmoidGHMCLoss": {"momentum": 0.9},
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_inductor(name, inplace, device):
    """A module's training steps, and the validation between them, which wants no gradient."""
    eager, traced = (getattr(fastloss, name)(**MODULES[name], inplace_backward=inplace).to(device) for _ in range(2))
    compiled = torch.compile(lambda x, target: traced(x * 2, target), fullgraph=True)
    x, target = (make_sigmoid if name.startswith(("Sigmoid", "Asymmetric")) else make_softmax)((20, 7), device=device)
    for training in (True, False, True):
        eager.train(training), traced.train(training)
        if training:
            assert_same(*(differentiate(f, x, target) for f in (compiled, lambda x, t: eager(x * 2, t))))
        else:
            with torch.no_grad():
                torch.testing.assert_close(compiled(x, target), eager(x * 2, target))
        for got, expected in zip(traced.buffers(), eager.buffers(), strict=True):
            assert torch.equal(got, expected)


def test_inductor_without_a_gradient(device):
    """The functions themselves, under no_grad and with logits that want none."""
    for loss in LOSSES:
        name, options, *_ = LOSSES[loss]
        x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)((20, 7), device=device)
        function = getattr(fastloss, name)
        with torch.no_grad():
            got = torch.compile(function, fullgraph=True)(x.requires_grad_(), target, **options)
        torch.testing.assert_close(got, function(x.detach(), target, **options))


def test_an_ignored_decision_has_no_gradient(device):
    """Also where the compiler multiplies by what comes from above."""
    x, target = make_softmax((20, 7), device=device, ignored=0.5)

    def function(x):
        return torch.where(target >= 0, fastloss.cross_entropy(x, target, reduction="none").sqrt(), 0)

    _, grad = differentiate(torch.compile(function, fullgraph=True, backend="aot_eager"), x)
    assert grad[target < 0].eq(0).all() and grad.isfinite().all()


def test_dynamic_shapes(device):
    """One graph for every batch size."""

    def function(x, target):
        return fastloss.focal_loss(x * 2, target)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    for rows in (5, 8, 13):
        x, target = make_softmax((rows, 7), device=device)
        assert_same(differentiate(compiled, x, target), differentiate(function, x, target))
        if rows == 5:
            graphs = counter.frame_count
    assert counter.frame_count == graphs


@pytest.mark.parametrize("cls", ["GHMCLoss", "SigmoidGHMCLoss"])
def test_running_statistics(cls, device):
    """The module's state is updated inside the graph, once a call."""
    eager, traced = (getattr(fastloss, cls)(momentum=0.9).to(device) for _ in range(2))
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x, target = (make_sigmoid if cls.startswith("Sigmoid") else make_softmax)((40, 6), device=device)
        assert_same(differentiate(compiled, x, target), differentiate(eager, x, target))
        for got, expected in zip(traced.buffers(), eager.buffers(), strict=True):
            assert torch.equal(got, expected)


def test_modules_with_weights(device):
    weight = torch.rand(6, device=device)
    x, target = make_softmax((40, 6), device=device)
    for module in (fastloss.CrossEntropyLoss(weight, label_smoothing=0.1), fastloss.FocalLoss(weight, gamma=0.7)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_same(differentiate(compiled, x, target), differentiate(module, x, target))


def test_inplace_backward(device):
    """Under a compiler the flag is at least harmless: the same numbers."""
    x, target = make_softmax((40, 6), device=device)

    def function(x):
        return fastloss.cross_entropy(x * 2, target, inplace_backward=True)

    expected = differentiate(function, x)
    assert_same(differentiate(torch.compile(function, fullgraph=True, backend="aot_eager"), x), expected)


def test_histogram(device):
    x, target = make_softmax((40, 6), device=device)
    compiled = torch.compile(fastloss.gradient_norm_histogram, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, target), fastloss.gradient_norm_histogram(x, target))
