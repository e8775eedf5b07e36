"""The kernel that applies grad_output, in the emulator."""

import pytest
import torch
from emulator import SCHEDULES, span

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = {
    "rows": lambda: torch.randn(37, 11),
    "images": lambda: torch.randn(3, 5, 6, 7),
    "channels last": lambda: torch.randn(3, 6, 7, 5).permute(0, 3, 1, 2),
    "sliced rows": lambda: torch.randn(37, 20)[:, 3:14],
    "every other class": lambda: torch.randn(37, 22)[:, ::2],
    "empty": lambda: torch.randn(0, 11),
}


def gaps(tensor):
    """All of a tensor's memory from its first to its last element."""
    return tensor.as_strided((span(tensor),), (1,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_scales(softmax, shape, dtype):
    for factor, per_decision in ((1.0, False), (1 / 4096, False), (1.0, True), (1 / 4096, True)):
        grad = SHAPES[shape]().to(dtype)
        decisions = grad.shape[:1] + grad.shape[2:]
        grad_output = torch.randn(decisions if per_decision else ())
        scale = grad_output.double() * factor
        want = (grad.double() * (scale.unsqueeze(1) if per_decision else scale)).to(dtype)
        softmax.scale_gradient(grad, grad_output, factor, **SCHEDULES[0])
        torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("shape", ["sliced rows", "every other class"])
def test_gaps_are_not_written(softmax, shape):
    for grad_output in (torch.tensor(3.0), torch.full((37,), 3.0)):
        grad = SHAPES[shape]()
        want = gaps(grad).clone()
        grad_before = grad.clone()
        softmax.scale_gradient(grad, grad_output)
        torch.testing.assert_close(grad, 3 * grad_before)
        grad.copy_(grad_before)
        assert torch.equal(gaps(grad), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(softmax, dtype):
    for offset in (1, 3):
        grad = torch.randn(37 * 11 + 3).to(dtype)[offset:][: 37 * 11].view(37, 11)
        want = grad * 2
        softmax.scale_gradient(grad, torch.tensor(2.0))
        assert torch.equal(grad, want)


@pytest.mark.parametrize("shape", ["rows", "sliced rows"])
def test_one_touches_nothing(softmax, shape):
    """The product with the factor counts: float16's mean is stored times 4096."""
    for grad_output, factor in ((1.0, 1.0), (4096.0, 1 / 4096)):
        log = softmax.scale_gradient(SHAPES[shape](), torch.tensor(grad_output), factor)
        for *_, stats in log:
            assert stats.gst_bytes == 0 and stats.gld_bytes == 4 * stats.threads  # grad_output, and nothing else


def test_traffic(softmax):
    grad = torch.randn(640, 64)
    ((*_, stats),) = softmax.scale_gradient(grad, torch.tensor(0.5))
    assert 32 * (stats.gld_sectors + stats.gst_sectors) < 1.05 * 2 * grad.nbytes
    assert stats.load_efficiency > 0.95 and stats.store_efficiency > 0.95
