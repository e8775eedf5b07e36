"""What autograd may ask of a loss: second and double backward, gradients of any size, inplace_backward, refusals."""

import functools
import gc
import weakref

import pytest
import torch
from cases import (
    DTYPES,
    NARROW,
    REDUCTIONS,
    SIGMOID_LOSSES,
    SOFTMAX_LOSSES,
    WIDE,
    differentiate,
    layouts,
    make_sigmoid,
    make_softmax,
)
from torch.utils._python_dispatch import TorchDispatchMode

import fastloss
from fastloss import reference
from fastloss.autograd import OPS

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
    for shape in [(4,), (1, 3, 2, 2), (3, NARROW), (3, WIDE)]:
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
    for loss in (fused, lambda x, y: reference.ghmc_loss(x, y, momentum=0.9, **plain._state())):
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
            ours = [name for name, _ in seen.calls if name.startswith("fastloss::")]
            assert ours == [f"fastloss::{LOSSES[loss][0]}"]
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
    for shape in [(20, 11), (3, 5, 4, 6), (5, NARROW), (5, WIDE), (7,)]:
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


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_inplace_backward_scales_in_place(factor, device):
    x, function = make("focal_2", device=device)
    expected = factor * differentiate(function, x)[1]
    for logits in (x.clone().requires_grad_(), x.clone().requires_grad_()):
        (factor * function(logits, inplace_backward=True)).backward()
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


def non_finite(shape, device):
    """Upstream gradients with nan and both infinities among them."""
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 0.0], device=device)
    return values[torch.arange(torch.Size(shape).numel(), device=device) % 5].view(shape)


def test_inplace_backward_refuses_rows_that_overlap(device):
    x = torch.zeros(12, device=device).as_strided((4, 5), (2, 1)).requires_grad_()
    with pytest.raises(ValueError, match=r"share memory"):
        fastloss.cross_entropy(x, torch.zeros(4, dtype=torch.long, device=device), inplace_backward=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_an_ignored_decision_has_no_gradient(loss, dtype, device):
    """Whatever its logits are and whatever comes from above: in the first and in a differentiable backward pass."""
    name, options, *_ = LOSSES[loss]
    sigmoid = loss.startswith("sigmoid")
    for shape in [(40, 5), (3, WIDE), (2, 5, 4, 6)]:
        x, target = (make_sigmoid if sigmoid else make_softmax)(shape, dtype, device)
        if sigmoid:
            valid = torch.rand(shape, device=device) < 0.5
            args, wide = {"target": target, "mask": valid}, valid
        else:
            target.view(-1)[::3] = -100
            valid = target != -100
            args, wide = {"target": target}, valid.unsqueeze(1).expand(shape)
        x = torch.where(wide, x, float("nan"))
        function = lambda x, r, a=args: getattr(fastloss, name)(x, **a, **{**options, "reduction": r})  # noqa: E731
        for up in (non_finite(target.shape, device), torch.tensor(float("inf"), device=device)):
            reduction = "none" if up.dim() else "sum"
            up = up.to(torch.float64 if dtype == torch.float64 else torch.float32)
            for create_graph in (False, True):
                leaf = x.clone().requires_grad_()
                (grad,) = torch.autograd.grad(function(leaf, reduction), leaf, up, create_graph=create_graph)
                assert (grad[~wide] == 0).all(), (shape, reduction, create_graph)
                finite = wide & (up.isfinite().unsqueeze(1) if up.dim() and not sigmoid else up.isfinite())
                assert grad[finite].isfinite().all()
        # The formula of the report: a square root has an infinite slope at an ignored decision's loss of 0.
        leaf = x.clone().requires_grad_()
        each = function(leaf, "none")
        torch.where(valid, each.sqrt(), 0).sum().backward()
        assert leaf.grad[~wide].eq(0).all()


@pytest.mark.parametrize("name", ["ghmc_loss", "sigmoid_ghmc_loss"])
def test_double_backward_on_a_bins_edge(name, device):
    """A decision on an edge keeps the bin, and so the weight, that the forward pass gave it."""
    bins = 10
    for dtype in (torch.float32, torch.float64):
        # Gradient norms as near to the edges as floats come, on both sides of each.
        edges = torch.arange(1, bins, dtype=torch.float64) / bins
        z = torch.log((1 - edges) / edges).to(dtype)
        steps = [z]
        for _ in range(3):
            steps += [torch.nextafter(steps[-1], torch.tensor(9.0, dtype=dtype))]
        for _ in range(3):
            steps += [torch.nextafter(steps[-1], torch.tensor(-9.0, dtype=dtype))]
        z = torch.cat(steps).to(device)
        if name == "ghmc_loss":
            x, target = torch.stack([z, torch.zeros_like(z)], 1), torch.zeros(len(z), dtype=torch.long, device=device)
        else:
            x, target = z, torch.ones_like(z)
        function = lambda x, t=target: getattr(fastloss, name)(x, t, bins=bins, reduction="sum")  # noqa: E731
        x = x.requires_grad_()
        (once,) = torch.autograd.grad(function(x), x)
        (twice,) = torch.autograd.grad(function(x), x, create_graph=True)
        torch.testing.assert_close(twice.detach(), once, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(
    not hasattr(torch._C._autograd.SavedTensor, "unpack"),
    reason="this torch gives all saved tensors or none: the loss refuses sooner (torch_private.first_saved)",
)
@pytest.mark.parametrize("loss", LOSSES)
def test_logits_may_change_after_the_loss(loss, device):
    """As with torch's losses only a backward pass that needs them refuses: the gradient is computed already."""
    x, function = make(loss, device=device)
    _, expected = differentiate(function, x, reduction="sum")
    logits = x.clone().requires_grad_() * 1
    logits.retain_grad()
    value = function(logits, reduction="sum")
    with torch.no_grad():
        logits.add_(1)
    value.backward()
    torch.testing.assert_close(logits.grad, expected)
    logits = x.clone().requires_grad_() * 1
    value = function(logits, reduction="sum")
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, logits, create_graph=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_finished_loss_keeps_nothing_alive(loss, device):
    name, options, takes_weight = (*LOSSES[loss], False)[:3]
    x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)((12, 5), device=device)
    tensors = {"target": target}
    if takes_weight:
        tensors["weight"] = torch.rand(5, device=device)
    if loss.startswith("sigmoid"):
        tensors["mask"] = torch.rand(12, 5, device=device) < 0.5
    leaf = x.requires_grad_()
    value = getattr(fastloss, name)(leaf * 1, **tensors, reduction="sum", **options)
    value.backward()
    alive = [weakref.ref(tensor) for tensor in tensors.values()]
    del target, tensors
    gc.collect()
    assert value.grad_fn is not None and not [ref for ref in alive if ref() is not None]


@pytest.mark.parametrize("loss", LOSSES)
def test_double_backward_notices_every_changed_tensor(loss, device):
    """Weights and masks as well as targets: each that the op does not write."""
    name, options, takes_weight = (*LOSSES[loss], False)[:3]
    op = OPS[name]
    for changed in op.names[: op.num_saved]:
        x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)((12, 5), device=device)
        tensors = {"target": target}
        if takes_weight:
            tensors["weight"] = torch.rand(5, device=device)
        if loss.startswith("sigmoid"):
            tensors["mask"] = torch.rand(12, 5, device=device) < 0.5
        if "sample_weight" in op.names:
            shape = (12, 1) if loss.startswith("sigmoid") else (12,)
            tensors["sample_weight"] = torch.rand(shape, device=device)
        if changed not in tensors:
            continue
        leaf = x.requires_grad_()
        value = getattr(fastloss, name)(leaf, **tensors, reduction="sum", **options)
        tensors[changed].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(value, leaf, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scaling_half_gradients_takes_no_float32_copy(dtype, device):
    """reduction none, in place: the only memory that the backward pass may take is of the order of the decisions."""
    x, target = make_softmax((64, 4096), dtype, device, ignored=0)
    leaf = x.requires_grad_()
    each = fastloss.cross_entropy(leaf * 1, target, reduction="none", inplace_backward=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        each.backward(torch.rand_like(each))
    scaling = [e for e in profile.events() if e.name == "fastloss::scale_gradient"]
    assert scaling, "the backward pass did not take the kernel"
    assert max(event.cpu_memory_usage for event in scaling) < x.numel()


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
