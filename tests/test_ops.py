"""The ops as torch sees them: schemas, fake tensors and registrations, by torch.library.opcheck."""

import contextlib
import ctypes
import gc
import itertools

import pytest
import torch
from cases import DTYPES, make_sigmoid, make_softmax, probabilities_like

from fastloss.autograd import OPS

ops = torch.ops.fastloss


def state(device):
    return torch.zeros(10, dtype=torch.float64, device=device), torch.zeros(10, dtype=torch.int64, device=device)


class Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


# The numbers of losses/params.h: reductions, and GHM-C's normalizers.
NONE, MEAN, SUM = range(3)
NONEMPTY, BINS = range(2)


def samples(shape, dtype, device):
    """(loss, arguments that follow input and are those of its schema)."""
    x, target = make_softmax(shape, dtype, device)
    weight = torch.rand(shape[min(len(shape) - 1, 1)], device=device)
    ghm = (10, 0.9, NONEMPTY, True, True, 1.0)
    sample_weight = torch.rand(target.shape, device=device)
    denominator = torch.tensor(3.0, dtype=torch.float64, device=device)
    counts = torch.arange(7, device=device)
    plain = (0.0, 1.0, None, False)
    yield ops.cross_entropy, x, (target, weight, None, None, 0.1, *plain, -100, MEAN)
    yield ops.cross_entropy, x, (target, None, sample_weight, denominator, 0.0, *plain, -100, MEAN)
    yield ops.cross_entropy, x, (target, None, None, None, 0.0, 0.1, 0.5, 3.0, True, -100, NONE)
    yield ops.cross_entropy, x, (probabilities_like(x), weight, None, None, 0.1, *plain, -100, MEAN)
    yield ops.cross_entropy, x, (probabilities_like(x), weight, None, None, 0.1, 0.1, 0.5, 3.0, True, -100, NONE)
    yield ops.focal_loss, x, (target, weight, None, None, 2.0, *plain, -100, SUM)
    yield ops.poly_loss, x, (target, weight, None, None, 2.0, *plain, -100, MEAN)
    yield ops.ghmc_loss, x, (target, None, None, *state(device), *ghm, -100, MEAN)
    yield ops.ghmc_loss, x, (target, counts, denominator, None, None, 7, 0.0, BINS, True, True, 0.5, -100, MEAN)
    x, target = make_sigmoid(shape, dtype, device)
    mask = target > 0.5
    weight, denominator = torch.rand(shape[-1], device=device), torch.full((), 7.0, device=device).double()
    yield ops.sigmoid_focal_loss, x, (target, None, None, None, None, 0.25, 2.0, NONE)
    yield ops.sigmoid_focal_loss, x, (target.to(dtype), mask, weight, weight, denominator, -1.0, 0.7, MEAN)
    yield ops.asymmetric_loss, x, (target, None, None, None, None, -1.0, 0.0, 4.0, 0.05, SUM)
    yield ops.asymmetric_loss, x, (target, mask, None, weight, None, 0.3, 1.0, 3.0, 0.0, MEAN)
    yield ops.sigmoid_ghmc_loss, x, (target, mask, None, None, *state(device), *ghm, MEAN)
    yield ops.sigmoid_ghmc_loss, x, (target, None, counts, denominator, None, None, 7, 0.0, BINS, True, True, 0.5, MEAN)


def calls(shape, dtype, device):
    """(op, its arguments): every overload of every loss, and the ops beside them."""
    for loss, x, arguments in samples(shape, dtype, device):
        yield loss.default, (x, *arguments)
        yield loss.with_grad, (x, *arguments)
    x, target = make_softmax(shape, dtype, device)
    yield ops.gradient_norms.default, (x, target, 10, -100)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.full((1,), 4.0, device=device)
    for grad_output in (torch.tensor(3.0, device=device), torch.rand(target.shape, dtype=compute, device=device)):
        yield ops.scale_gradient.default, (x, grad_output, None)
        yield ops.scale_gradient.default, (x, grad_output, scale)
        yield ops.scale_gradient.inplace, (x, grad_output, scale)
    x, target = make_sigmoid(shape, dtype, device)
    yield ops.sigmoid_gradient_norms.default, (x, target, target > 0.5, 10)


def test_opcheck(device):
    for op, args in calls((6, 5), torch.float16, device):
        torch.library.opcheck(op, args)


def test_opcheck_in_place(device):
    """The gradient goes over the logits; shapes and dtypes are inferred the same."""
    for loss, x, arguments in samples((6, 5), torch.float32, device):
        torch.library.opcheck(loss.inplace, (x, *arguments))


def test_every_loss_is_sampled():
    sampled = {loss.__name__ for loss, *_ in samples((2, 3), torch.float32, "cpu")}
    assert sampled == set(OPS)


def test_meta_tensors():
    """Shapes, dtypes and strides without data."""
    for dtype, shape in itertools.product(DTYPES, [(6, 5), (2, 3, 4), (5,)]):
        for op, args in calls(shape, dtype, "cpu"):
            expected = op(*args)
            got = op(*[arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args])
            pairs = [out if isinstance(out, tuple) else (out,) for out in (got, expected) if out is not None]
            for fake, real in zip(*pairs, strict=True) if pairs else ():
                assert fake.is_meta and (fake.shape, fake.dtype) == (real.shape, real.dtype)
                assert fake.stride() == real.stride()


def test_enumerations_are_checked():
    """Python sends the numbers; the ops may be called with anything."""
    x, target = make_softmax((6, 5))
    for reduction in (-1, 3, 2**40):
        with pytest.raises(ValueError, match=rf"reduction is {reduction}, but should be in \[0, 2\]"):
            ops.cross_entropy(x, target, None, None, None, 0.0, 0.0, 1.0, None, False, -100, reduction)
    with pytest.raises(ValueError, match=r"normalizer is 2, but should be in \[0, 1\]"):
        ops.ghmc_loss(x, target, None, None, None, None, 10, 0.0, 2, True, True, 1.0, -100, MEAN)


def test_memory_is_given_back():
    """10,000 calls and as many refused ones leave the heap as it was."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo2
    x, target = make_softmax((6, 5))
    wrong = torch.full_like(target, 99)

    def call():
        of_loss = (None, None, None, 0.1, 0.0, 1.0, None, False, -100)
        ops.cross_entropy.with_grad(x, target, *of_loss, MEAN)
        for arguments in ((wrong, *of_loss, MEAN), (target, *of_loss, 9)):
            with contextlib.suppress(ValueError, IndexError):
                ops.cross_entropy.with_grad(x, *arguments)

    def used():
        gc.collect()
        return libc.mallinfo2().uordblks

    for _ in range(1000):
        call()
    before = used()
    for _ in range(10_000):
        call()
    assert used() - before < 8 * 10_000
