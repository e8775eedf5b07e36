"""The kernel that applies grad_output, in the emulator."""

import pytest
import torch
from emulator import SCHEDULES, compute_type, span

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Made of a function of sizes; the path for a number, and for a number of each decision.
SHAPES = {
    "rows": (lambda randn: randn(37, 11), "dense", "rows"),
    "long rows": (lambda randn: randn(5, 1001), "dense", "rows"),
    "images": (lambda randn: randn(3, 5, 6, 7), "dense", "positions"),
    "channels last": (lambda randn: randn(3, 6, 7, 5).permute(0, 3, 1, 2), "dense", "rows"),
    "sliced rows": (lambda randn: randn(37, 20)[:, 3:14], "positions", "rows"),
    "every other class": (lambda randn: randn(37, 22)[:, ::2], "positions", "positions"),
    "one class": (lambda randn: randn(700, 1), "dense", "positions"),
}


def scaled_by(grad, grad_output, stored_scale=1.0):
    """What it should be: in float64, rounded once."""
    factor = (grad_output.double() / float(stored_scale)).to(compute_type(grad.dtype))
    factor = factor.unsqueeze(1) if grad_output.dim() and grad_output.dim() < grad.dim() else factor
    product = grad.double() * factor
    return torch.where(grad == 0, grad, product.to(compute_type(grad.dtype)).to(grad.dtype))


def memory_of(tensor):
    return tensor.as_strided((span(tensor),), (1,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_scales(scale, shape, dtype):
    """In place and into another tensor, by a number and by one for each decision; gaps are not written."""
    make, *paths = SHAPES[shape]
    for stored in (None, torch.tensor([4096.0])):
        for per_decision in (False, True):
            grad = make(lambda *sizes: torch.randn(sizes).to(dtype))
            memory_of(grad)[::5] = 0
            decisions = grad.shape[:1] + grad.shape[2:]
            grad_output = torch.randn(decisions if per_decision else (), dtype=compute_type(dtype))
            want = scaled_by(grad, grad_output, 1.0 if stored is None else stored)
            other = torch.empty_like(grad)
            scale.scale(grad, other, grad_output, stored, **SCHEDULES[0])
            torch.testing.assert_close(other, want, rtol=0, atol=0)
            before = memory_of(grad).clone()
            path, _ = scale.scale(grad, grad, grad_output, stored, **SCHEDULES[1])
            assert path == f"cuda scale {paths[per_decision]}"
            torch.testing.assert_close(grad, want, rtol=0, atol=0)
            grad.copy_(before.as_strided(grad.shape, grad.stride()))
            assert torch.equal(memory_of(grad), before)


def test_shapes_take_every_path(scale):
    assert {f"cuda scale {path}" for _, *paths in SHAPES.values() for path in paths} == scale.schedule_names("scale")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(scale, dtype):
    for offset, other_offset in ((1, 1), (3, 0)):
        grad = torch.randn(37 * 11 + 3).to(dtype)[offset:][: 37 * 11].view(37, 11)
        other = torch.empty(37 * 11 + 3, dtype=dtype)[other_offset:][: 37 * 11].view(37, 11)
        for grad_output in (torch.tensor(2.0), torch.full((37,), 2.0)):
            scale.scale(grad, other, grad_output.to(compute_type(dtype)))
            assert torch.equal(other, grad * 2)


@pytest.mark.parametrize("grad_output", [torch.inf, torch.nan, 0.0])
def test_zero_stays_zero(scale, grad_output):
    grad = torch.randn(37, 11)
    grad[::3] = 0
    for outputs in (torch.tensor(grad_output), torch.full((37,), grad_output)):
        other = torch.empty_like(grad)
        scale.scale(grad, other, outputs)
        torch.testing.assert_close(other, torch.where(grad == 0, 0, grad * grad_output), equal_nan=True)


@pytest.mark.parametrize("shape", ["rows", "sliced rows"])
def test_one_touches_nothing(scale, shape):
    """The product with the stored scale counts: float16's mean is stored times a power of two."""
    for grad_output, stored in ((1.0, None), (4096.0, torch.tensor([4096.0]))):
        grad = SHAPES[shape][0](torch.randn)
        _, log = scale.scale(grad, grad, torch.tensor(grad_output), stored)
        for *_, stats in log:
            assert stats.gst_bytes == 0
            assert stats.gld_bytes == (4 if stored is None else 8) * stats.threads  # the two numbers, nothing else
        other = torch.empty_like(grad)
        scale.scale(grad, other, torch.tensor(grad_output), stored)
        assert torch.equal(other, grad)


def test_traffic(scale):
    for rows in (640, 641):
        grad = torch.randn(rows, 64)
        for grad_output in (torch.tensor(0.5), torch.full((rows,), 0.5)):
            _, ((*_, stats),) = scale.scale(grad, torch.empty_like(grad), grad_output)
            assert 32 * (stats.gld_sectors + stats.gst_sectors) < 1.1 * 2 * grad.nbytes
            assert stats.store_efficiency > 0.95


def test_empty(scale):
    grad = torch.empty(0, 11)
    assert scale.scale(grad, grad, torch.tensor(2.0))[1] == []
