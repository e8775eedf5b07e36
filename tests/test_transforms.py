"""What follows the losses from above: forward mode, torch.func, batched gradients, fake tensors, make_fx, export."""

import pytest
import torch
from cases import SIGMOID_LOSSES, SOFTMAX_LOSSES, differentiate, make_sigmoid, make_softmax
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import fastloss
from fastloss import autograd, reference, torch_private

LOSSES = {**SOFTMAX_LOSSES, **{"sigmoid_" + name: loss for name, loss in SIGMOID_LOSSES.items()}}


def make(loss, shape=(6, 5), dtype=torch.float64, device="cpu"):
    """``(logits, fused function, the reference's)``; sum, so that every decision has a gradient of its own size."""
    name, options, *_ = LOSSES[loss]
    x, target = (make_sigmoid if loss.startswith("sigmoid") else make_softmax)(shape, dtype, device)
    fused, plain = (
        lambda x, module=module, **settings: getattr(module, name)(
            x, target, **{"reduction": "sum", **options, **settings}
        )
        for module in (fastloss, reference)
    )
    return x, fused, plain


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_mode(loss, device):
    """A derivative, never a silent zero: with torch.func, by dual numbers, and whether or not input requires grad."""
    x, fused, plain = make(loss, device=device)
    tangent = torch.randn_like(x)
    expected = torch.func.jvp(plain, (x,), (tangent,))
    assert expected[1] != 0
    torch.testing.assert_close(torch.func.jvp(fused, (x,), (tangent,)), expected)
    torch.testing.assert_close(torch.func.linearize(fused, x)[1](tangent), expected[1])
    torch.testing.assert_close(torch.func.jacfwd(fused)(x), torch.func.jacfwd(plain)(x))
    for leaf in (x, x.clone().requires_grad_()):
        with forward_ad.dual_level():
            value = fused(forward_ad.make_dual(leaf, tangent))
            torch.testing.assert_close(forward_ad.unpack_dual(value).tangent.detach(), expected[1])


def test_forward_mode_of_a_model(device):
    """functional_call, with the parameters as dual numbers."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh()).double().to(device)
    _, target = make_softmax((6, 4), torch.float64, device)
    features = torch.randn(6, 5, dtype=torch.float64, device=device)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}

    def loss_of(module):
        return lambda p: module.focal_loss(torch.func.functional_call(model, p, features), target)

    got, expected = (torch.func.jvp(loss_of(m), (parameters,), (tangents,))[1] for m in (fastloss, reference))
    assert got != 0
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_torch_func(loss, device):
    x, fused, plain = make(loss, device=device)
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacrev, torch.func.grad_and_value):
        torch.testing.assert_close(transform(fused)(x), transform(plain)(x))
    if "ghmc" not in loss:  # one sample has a histogram of its own
        each = torch.func.vmap(torch.func.grad(fused), randomness="error")
        batch = torch.stack([x, x * 2])
        torch.testing.assert_close(each(batch), torch.stack([torch.func.grad(plain)(b) for b in batch]))


@pytest.mark.parametrize("loss", LOSSES)
def test_batched_gradients(loss, device):
    x, fused, _ = make(loss, device=device)
    function = lambda x: fused(x, reduction="none")  # noqa: E731
    expected = torch.autograd.functional.jacobian(function, x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, x, vectorize=True), expected)
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    basis = torch.eye(value.numel(), dtype=value.dtype, device=device).view(-1, *value.shape)
    (batched,) = torch.autograd.grad(value, leaf, basis, is_grads_batched=True)
    torch.testing.assert_close(batched, expected.reshape(-1, *x.shape))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal_2", "sigmoid_focal"])
def test_gradcheck_of_batched_and_forward_gradients(loss, device):
    x, fused, _ = make(loss, (3, 3), device=device)
    leaf = x.requires_grad_()
    assert torch.autograd.gradcheck(fused, leaf, check_batched_grad=True, check_forward_ad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_fake_tensors(loss, dtype, device):
    """Forward and backward of shapes alone."""
    x, fused, _ = make(loss, dtype=dtype, device=device)
    for settings in ({}, {"reduction": "none"}, {"reduction": "mean"}, {"inplace_backward": True}):
        _, expected = differentiate(lambda x, s=settings: fused(x, **s).sum(), x.clone())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            leaf = mode.from_tensor(x).requires_grad_()
            fused(leaf, **settings).sum().backward()
        assert (leaf.grad.shape, leaf.grad.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("loss", LOSSES)
def test_make_fx(loss, tracing_mode, device):
    x, fused, _ = make(loss, dtype=torch.float32, device=device)

    def step(x):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(fused(leaf) * 3, leaf)[0]

    traced = make_fx(step, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(x)
    torch.testing.assert_close(traced(x * 2), step(x * 2))


def test_export(device):
    """What AOTInductor compiles: a program with the loss in it."""

    class Model(torch.nn.Module):
        def forward(self, x, target):
            return fastloss.focal_loss(x * 2, target)

    x, target = make_softmax((6, 5), device=device)
    with torch.no_grad():
        exported = torch.export.export(Model(), (x, target))
    torch.testing.assert_close(exported.module()(x, target), fastloss.focal_loss(x * 2, target))


FALLBACKS = {
    "transforms_active": None,
    "dispatch_modes": torch_private._always,
    "is_batched": torch_private._always,
    "keeps_graph": torch_private._always,
    "_unpacks_one": False,
    "_has_level": False,
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_without_a_private_interface(name, monkeypatch, device):
    """A torch that has renamed one of torch's private names: the same numbers."""
    x, fused, _ = make("focal_2", device=device)
    expected = differentiate(fused, x)
    twice = torch.autograd.functional.hessian(fused, x)
    monkeypatch.setattr(torch_private, name, FALLBACKS[name])
    monkeypatch.setattr(autograd, "_quick_apply", torch_private.quick_apply(autograd._FusedLoss))
    got = differentiate(fused, x)
    assert all(map(torch.equal, got, expected))
    torch.testing.assert_close(torch.autograd.functional.hessian(fused, x), twice)
    leaf = x.clone().requires_grad_()
    value = 2 * fused(leaf)
    for _ in range(2):  # which must not scale what is saved
        (grad,) = torch.autograd.grad(value, leaf, retain_graph=True)
        assert torch.equal(grad, 2 * expected[1])
    with forward_ad.dual_level():
        dual = fused(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(dual).tangent is not None
    if name == "transforms_active":
        with pytest.raises(RuntimeError, match=r"autograd\.Function"):
            torch.func.grad(fused)(x)
