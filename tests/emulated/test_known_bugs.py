"""The field's known bugs on the CUDA kernels, in the emulator: those tests of ../test_conformance.py that are about
numbers of the softmax losses."""

import pytest
import torch
from test_conformance import (  # noqa: F401
    test_accumulated_batches,
    test_any_ignore_index,
    test_half_logits_are_computed_in_float32,
    test_nothing_but_ignored,
    test_smoothing_leaves_ignored_rows_alone,
    test_softmax_focal_at_certainty,
    test_softmax_focal_mean_is_over_decisions,
    test_underflow_of_softmax,
)


class EmulatedFunctions:
    """The emulated kernels with the package's signatures, as far as these tests use them."""

    def __init__(self, softmax):
        class Loss(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, name, target, weight, settings):
                ctx.grad = torch.empty_like(x)
                half_mean = x.dtype == torch.float16 and settings.get("reduction", "mean") == "mean"
                ctx.scale = torch.ones(1) if half_mean else None
                loss, _ = softmax.loss(name, x, target, weight, grad=ctx.grad, stored_scale=ctx.scale, **settings)
                return loss

            @staticmethod
            def backward(ctx, grad_output):
                factor = grad_output if ctx.scale is None else grad_output / ctx.scale
                if factor.dim():
                    factor = factor.unsqueeze(min(ctx.grad.dim() - 1, 1))
                return (ctx.grad * factor).to(ctx.grad.dtype), None, None, None, None

        self.apply = Loss.apply

    def cross_entropy(self, x, target, weight=None, **settings):
        return self.apply(x, "cross_entropy", target, weight, settings)

    def focal_loss(self, x, target, weight=None, *, gamma=2.0, **settings):
        return self.apply(x, "focal_loss", target, weight, {"gamma": gamma, **settings})

    def ghmc_loss(self, x, target, **settings):
        return self.apply(x, "ghmc_loss", target, None, settings)


@pytest.fixture
def losses(softmax):
    return EmulatedFunctions(softmax)


@pytest.fixture
def device():
    return "cpu"
