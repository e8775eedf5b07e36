"""What autograd may ask of a loss: second and double backward, gradients of any size, inplace_backward, refusals."""

import functools
import math

import pytest
import torch
from cases import (
    DTYPES,
    REDUCTIONS,
    SIGMOID_LOSSES,
    SOFTMAX_LOSSES,
    differentiate,
    layouts,
    make_sigmoid,
    make_softmax,
)
from torch.utils._python_dispatch import TorchDispatchMode

import fastloss
from fastloss import reference
from fastloss.autograd import FLOAT16_MEAN_SCALE

LOSSES = {**SOFTMAX_LOSSES, **{"sigmoid_" + name: loss for name, loss in SIGMOID_LOSSES.items()}}


def make(loss, shape=(12, 5), dtype=torch.float32, device="cpu"):
    """``(logits, function of logits and settings)``."""
    name, options, *_ = LOSSES[loss]
    x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)(shape, dtype, device)
    return x, lambda x, **settings: getattr(fastloss, name)(x, target, **{**options, **settings})


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss, reduction, device):
    """First and second derivatives against finite differences in float64."""
    x, function = make(loss, (3, 3), torch.float64, device)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, reduction=reduction), x)
    assert torch.autograd.gradgradcheck(lambda x: function(x, reduction=reduction), x)


@pytest.mark.parametrize("loss", ["smoothing", "focal_0.7", "ghmc"])
def test_gradcheck_of_other_shapes(loss, device):
    for shape in [(4,), (1, 3, 2, 2), (1, 130)]:
        x, function = make(loss, shape, torch.float64, device)
        if loss != "ghmc":
            weight = torch.rand(shape[min(len(shape) - 1, 1)], dtype=torch.float64, device=device)
            function = functools.partial(function, weight=weight)
        assert torch.autograd.gradcheck(function, x.requires_grad_(), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_double_backward_with_running_statistics(device):
    """The second derivative uses the weights of the forward pass, though the state has moved on since."""
    x, target = make_softmax((9, 3), torch.float64, device)
    fused, plain = (fastloss.GHMCLoss(momentum=0.9).to(device) for _ in range(2))
    curvature = []
    for loss in (fused, lambda x, y: reference.ghmc_loss(x, y, momentum=0.9, **plain.state())):
        x = x.detach().requires_grad_()
        first = loss(x, target)
        loss(x.detach() * 3, target)
        (grad,) = torch.autograd.grad(first, x, create_graph=True)
        curvature.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*curvature)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal_2", "ghmc", "sigmoid_focal", "sigmoid_ghmc"])
def test_double_backward_notices_a_changed_target(loss, device):
    """It computes the gradient anew, so a target that was overwritten since is refused, as torch's own losses do."""
    name, options, *_ = LOSSES[loss]
    x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)((6, 4), device=device)
    value = getattr(fastloss, name)(x.requires_grad_(), target, reduction="sum", **options)
    target.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, x, create_graph=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_second_backward(loss, dtype, device):
    """retain_graph: the same gradient again, and the first one is not changed by the second pass."""
    x, function = make(loss, dtype=dtype, device=device)
    for factor in (1.0, 3.0):
        x = x.detach().requires_grad_()
        value = function(x, reduction="mean") * factor
        (first,) = torch.autograd.grad(value, x, retain_graph=True)
        kept = first.clone()
        (second,) = torch.autograd.grad(value, x, retain_graph=True)
        (third,) = torch.autograd.grad(value, x)
        assert torch.equal(second, kept) and torch.equal(third, kept)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(value, x)


def test_the_gradient_is_the_callers(device):
    """It may be scaled or clipped in place between two backward passes over one graph."""
    x, function = make("focal_2", device=device)
    _, expected = differentiate(function, x)
    value = function(x.requires_grad_())
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    first.mul_(2)
    (second,) = torch.autograd.grad(value, x)
    assert torch.equal(second, expected)


def test_gradients_accumulate(device):
    x, function = make("focal_2", device=device)
    _, once = differentiate(function, x)
    x.requires_grad_()
    for _ in range(3):
        function(x).backward()
    torch.testing.assert_close(x.grad, 3 * once)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_grad_output(loss, dtype, device):
    """A scalar, a factor for each decision, expanded and strided ones, zero: the chain rule, rounded to the dtype."""
    x, function = make(loss, (6, 5, 4), dtype, device)
    wide = x if dtype == torch.float64 else x.float()
    tolerance = {"rtol": max(2 * torch.finfo(dtype).eps, 1e-6), "atol": 1e-6}
    for reduction in ("mean", "sum"):
        _, grad = differentiate(function, wide, reduction=reduction)
        for factor in (1.0, 0.0, -2.5, 1024.0):
            got = differentiate(lambda x, f=factor, r=reduction: function(x, reduction=r) * f, x)[1]
            # Stored before the factor reaches it: in float16, to steps of 2^-24.
            tolerance["atol"] = abs(factor) * 2**-24 + 1e-7
            torch.testing.assert_close(got, (grad * factor).to(dtype), **tolerance)
    each, grad = differentiate(function, wide, reduction="none")
    factors = torch.rand(each.shape, device=device, dtype=each.dtype) + 0.5
    for factor in (factors, factors.mT.contiguous().mT, factors[:1].expand(factors.shape)):
        expected = (grad * (factor if factor.dim() == x.dim() else factor.unsqueeze(1))).to(dtype)
        got = differentiate(function, x, reduction="none", grad_output=factor)[1]
        torch.testing.assert_close(got, expected, **tolerance)
        got = differentiate(lambda x, f=factor: (function(x, reduction="none") * f).sum(), x)[1]
        torch.testing.assert_close(got, expected, **tolerance)


@pytest.mark.parametrize("shape", [(5,), ()])
def test_grad_output_of_a_single_decision(shape, device):
    """Logits (C), or a sigmoid's (): the loss of reduction none is a scalar too."""
    x, target = make_softmax(shape, device=device, ignored=0) if shape else make_sigmoid(shape, device=device)
    name = "focal_loss" if shape else "sigmoid_focal_loss"
    function = lambda x: getattr(fastloss, name)(x, target, reduction="none")  # noqa: E731
    _, grad = differentiate(function, x)
    torch.testing.assert_close(differentiate(lambda x: 3 * function(x), x)[1], 3 * grad)


class OpArguments(TorchDispatchMode):
    """Every call of an op: (name, arguments)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func.name(), args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_is_computed_for_nobody(loss, device):
    """Without requires_grad, or under no_grad and inference_mode, the one op gets no place to write a gradient."""
    x, function = make(loss, device=device)
    wanted = x.clone().requires_grad_()
    before = x.clone()
    for settings in ({}, {"inplace_backward": True}):
        for logits, mode in ((x, torch.enable_grad), (wanted, torch.no_grad), (wanted, torch.inference_mode)):
            with mode(), OpArguments() as seen:
                value = function(logits, **settings)
            assert not value.requires_grad and torch.equal(logits, before)
            ours = [args for name, args in seen.calls if name.startswith("fastloss::")]
            assert len(ours) == 1 and ours[0][1] is None
            assert not any("empty" in name for name, _ in seen.calls)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_callers_logits_stay(loss, device):
    x, function = make(loss, (6, 5, 4), device=device)
    for _, view in layouts(x):
        before, version = view.clone(), view._version
        function(view.requires_grad_(), reduction="sum").backward()
        assert torch.equal(view, before) and view._version == version


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_inplace_backward(loss, dtype, device):
    """The same bits, in the logits' own memory, at the logits' own strides; memory between them is left alone."""
    for shape in [(20, 11), (3, 5, 4, 6), (5, 140), (7,)]:
        x, function = make(loss, shape, dtype, device)
        for reduction in REDUCTIONS:
            for layout, view in layouts(x):
                expected = differentiate(function, view, reduction=reduction)
                storage = torch.tensor([], dtype=dtype, device=device).set_(view.untyped_storage())
                outside = storage.isnan()
                got = differentiate(function, view, reduction=reduction, inplace_backward=True)
                assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1]), (shape, layout)
                assert torch.equal(storage.isnan(), outside), f"{layout}: wrote outside of the logits"
                if reduction != "mean" or dtype != torch.float16:
                    assert torch.equal(view, expected[1])


def test_inplace_backward_costs_no_tensor(device):
    x, function = make("focal_2", (64, 11), device=device)
    logits = x.requires_grad_()
    function(logits, inplace_backward=True).backward()
    assert logits.grad.data_ptr() == logits.data_ptr()


def test_inplace_backward_scales_in_place(device):
    x, function = make("focal_2", device=device)
    expected = 5 * differentiate(function, x)[1]
    for logits in (x.clone().requires_grad_(), x.clone().requires_grad_()):
        (5 * function(logits, inplace_backward=True)).backward()
        torch.testing.assert_close(logits.grad, expected)
        assert logits.grad.data_ptr() == logits.data_ptr()


def test_inplace_backward_of_computed_logits(device):
    """The usual case: logits from a linear layer, whose backward does not need its output."""
    x, target = make_softmax((16, 5), device=device)
    layer = torch.nn.Linear(5, 5).to(device)
    grads = []
    for inplace in (False, True):
        layer.zero_grad()
        fastloss.cross_entropy(layer(x), target, inplace_backward=inplace).backward()
        grads.append(layer.weight.grad)
    assert torch.equal(*grads)


def test_inplace_backward_refuses_saved_logits(device):
    """Where another operation has saved the logits, autograd notices: exp needs its own output."""
    x, function = make("focal_2", device=device)
    logits = x.requires_grad_().exp()
    value = function(logits, inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("loss", LOSSES)
def test_inplace_backward_refusals(loss, device):
    x, function = make(loss, device=device)
    value = function(x.clone().requires_grad_(), inplace_backward=True, reduction="sum")
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass needs inplace_backward=False"):
        value.backward()
    logits = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph=True needs inplace_backward=False"):
        torch.autograd.grad(function(logits, inplace_backward=True, reduction="sum"), logits, create_graph=True)
    shared = x[:1].clone().expand(x.shape)
    before = shared.clone()
    with pytest.raises(ValueError, match=r"input has elements that share memory.*inplace_backward=False"):
        function(shared.detach().requires_grad_(), inplace_backward=True)
    assert torch.equal(shared, before)


def test_functional_transforms_are_refused(device):
    x, function = make("focal_2", device=device)
    for transform in (torch.func.grad, torch.func.hessian, lambda f: torch.func.vmap(torch.func.grad(f))):
        with pytest.raises(RuntimeError, match=r"autograd\.Function"):
            transform(function)(x)


def test_forward_mode_is_refused(device):
    x, function = make("focal_2", device=device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.requires_grad_(), torch.ones_like(x))
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            function(dual)


def test_hooks_and_checkpointing(device):
    """What trainers do: gradient hooks see the gradient, and activation checkpointing computes the loss twice."""
    x, function = make("focal_2", device=device)
    _, expected = differentiate(function, x)
    seen = []
    x.requires_grad_()
    logits = x * 1
    logits.register_hook(seen.append)
    torch.utils.checkpoint.checkpoint(function, logits, use_reentrant=False).backward()
    assert torch.equal(x.grad, expected) and torch.equal(seen[0], expected)


def test_float16_mean_scale_is_undone_exactly():
    """A power of two: storing the gradient times it loses nothing."""
    assert math.frexp(FLOAT16_MEAN_SCALE)[0] == 0.5
