"""The ops as torch sees them: schemas, fake tensors and registrations, by torch.library.opcheck."""

import itertools

import torch
from cases import DTYPES, make_sigmoid, make_softmax

ops = torch.ops.fastloss


def state(device):
    return torch.zeros(10, dtype=torch.float64, device=device), torch.zeros(10, dtype=torch.int64, device=device)


def samples(shape, dtype, device):
    """(op, its arguments); the gradient is None or a tensor of the logits' shape and strides."""
    x, target = make_softmax(shape, dtype, device)
    weight = torch.rand(shape[min(len(shape) - 1, 1)], device=device)
    ghm = (10, 0.9, "nonempty", True, True, -100)
    for grad in (None, torch.empty_like(x)):
        yield ops.cross_entropy, (x, grad, target, weight, -100, "mean", 0.1, 1.0)
        yield ops.cross_entropy, (x, grad, target, None, -100, "none", 0.0, 1.0)
        yield ops.focal_loss, (x, grad, target, weight, -100, "sum", 2.0, 4096.0)
        yield ops.ghmc_loss, (x, grad, target, *state(device), *ghm, "mean", 1.0)
        yield ops.ghmc_loss, (x, grad, target, None, None, 7, 0.0, "bins", True, True, -100, "none", 1.0)
    yield ops.gradient_norm_histogram, (x, target, 10, -100)
    x, target = make_sigmoid(shape, dtype, device)
    for grad in (None, torch.empty_like(x)):
        yield ops.sigmoid_focal_loss, (x, grad, target, 0.25, 2.0, "none", 1.0)
        yield ops.sigmoid_focal_loss, (x, grad, target.to(dtype), -1.0, 0.7, "mean", 1.0)
        mask, settings = target > 0.5, (10, 0.9, "nonempty", True, True, "mean", 1.0)
        yield ops.sigmoid_ghmc_loss, (x, grad, target, mask, *state(device), *settings)
        yield ops.sigmoid_ghmc_loss, (x, grad, target, None, None, None, 7, 0.0, "bins", True, True, "none", 1.0)


def test_opcheck(device):
    for op, args in samples((6, 5), torch.float16, device):
        torch.library.opcheck(op.default, args)


def test_opcheck_in_place(device):
    """The gradient may be the logits themselves; shapes and dtypes are inferred the same."""
    x, target = make_softmax((6, 5), device=device)
    utils = ("test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.cross_entropy.default, (x, x, target, None, -100, "mean", 0.0, 1.0), test_utils=utils)
    x, target = make_sigmoid((6, 5), device=device)
    torch.library.opcheck(ops.sigmoid_focal_loss.default, (x, x, target, 0.25, 2.0, "sum", 1.0), test_utils=utils)


def test_meta_tensors():
    """Shapes and dtypes without data."""
    for dtype, shape in itertools.product(DTYPES, [(6, 5), (2, 3, 4), (5,)]):
        for op, args in samples(shape, dtype, "cpu"):
            expected = op(*args)
            got = op(*[arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args])
            for fake, real in zip(*[out if isinstance(out, tuple) else (out,) for out in (got, expected)], strict=True):
                assert fake.is_meta and (fake.shape, fake.dtype) == (real.shape, real.dtype)
