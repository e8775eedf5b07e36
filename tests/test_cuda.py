"""What only a GPU can show: streams, graph capture, several devices, no waiting for the device."""

import subprocess
import sys

import pytest
import torch
from cases import SIGMOID_LOSSES, SOFTMAX_LOSSES, differentiate, make_sigmoid, make_softmax

import fastloss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda is not available")

LOSSES = [*SOFTMAX_LOSSES, *(f"sigmoid_{name}" for name in SIGMOID_LOSSES)]
SHAPES = [(6400, 11), (256, 1000), (8, 5, 33, 17), (4, 70000)]  # a schedule each: tile, rows, positions, large rows


def make_case(case, shape=(640, 11), dtype=torch.float32, device="cuda"):
    """``(function, logits, target)``: the loss named ``case`` with its settings, reduction mean."""
    name, settings, *_ = SIGMOID_LOSSES[case[8:]] if case.startswith("sigmoid") else SOFTMAX_LOSSES[case]
    x, target = (make_sigmoid if case.startswith("sigmoid") else make_softmax)(shape, dtype, device)

    def loss(x, target, **more):
        return getattr(fastloss, name)(x, target, **{"reduction": "mean", **settings, **more})

    return loss, x, target


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", LOSSES)
def test_equals_cpu(case, shape):
    loss, x, target = make_case(case, shape, torch.float64)
    for reduction in ("none", "mean"):
        got = differentiate(loss, x, target, reduction=reduction)
        expected = differentiate(loss, x.cpu(), target.cpu(), reduction=reduction)
        torch.testing.assert_close([g.cpu() for g in got], list(expected), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", LOSSES)
def test_never_waits_for_the_device(case):
    loss, x, target = make_case(case)
    x.requires_grad_()
    loss(x, target).backward()  # what happens once: modules are loaded, memory is allocated
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(x, target).backward()
        (2 * loss(x, target)).backward()
        loss(x, target, reduction="none").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", LOSSES)
def test_graph_capture(case):
    """A captured forward and backward pass, replayed on other logits and targets."""
    loss, x, target = make_case(case)
    x.requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            x.grad = None
            loss(x, target).backward()
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(x, target)
        value.backward()
    for _ in range(2):
        _, other, other_target = make_case(case)
        with torch.no_grad():
            x.copy_(other)
            target.copy_(other_target)
        graph.replay()
        expected = differentiate(loss, other, other_target)
        assert torch.equal(value, expected[0]) and torch.equal(x.grad, expected[1])


def test_graph_capture_updates_running_statistics():
    module = fastloss.GHMCLoss(momentum=0.5).cuda()
    x, target = make_softmax((640, 11), device="cuda")
    module(x, target)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = module(x, target)
    before = module.num_updates.clone()
    filled = fastloss.gradient_norm_histogram(x, target) > 0
    graph.replay()
    graph.replay()
    assert torch.equal(module.num_updates, before + 2 * filled) and value.isfinite()


@pytest.mark.parametrize("case", LOSSES)
def test_runs_on_the_current_stream(case):
    """Logits that a long-running kernel of the same stream has yet to write."""
    loss, x, target = make_case(case)
    expected = differentiate(loss, x, target)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = torch.full_like(x, torch.nan)
        torch.cuda._sleep(100_000_000)
        late.copy_(x)
        got = differentiate(loss, late, target)
    stream.synchronize()
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize("case", LOSSES)
def test_runs_on_the_inputs_device(case):
    loss, x, target = make_case(case)
    expected = differentiate(loss, x, target)
    with torch.cuda.device(0):
        got = differentiate(loss, x.to("cuda:1"), target.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert got[0].device == got[1].device == torch.device("cuda:1")
    assert torch.equal(got[0].to("cuda:0"), expected[0]) and torch.equal(got[1].to("cuda:0"), expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", LOSSES)
def test_same_bits_every_time(case, dtype):
    loss, x, target = make_case(case, (20000, 11), dtype)
    expected = differentiate(loss, x, target)
    for _ in range(10):
        got = differentiate(loss, x, target)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("shape", [(640, 11), (8, 5, 33)], ids=str)
@pytest.mark.parametrize("case", LOSSES)
def test_grad_output(case, shape):
    """Numbers and one for each decision, in every layout, once and again on the same graph."""
    loss, x, target = make_case(case, shape, torch.float64)
    for layout in (x, x.movedim(1, -1).contiguous().movedim(-1, 1), torch.stack([x, x], -1)[..., 0]):
        for reduction in ("mean", "none"):
            layout = layout.detach().requires_grad_()
            value = loss(layout, target, reduction=reduction)
            for grad_output in (torch.ones_like(value), torch.rand_like(value)):
                got = torch.autograd.grad(value, layout, grad_output, retain_graph=True)[0]
                again = torch.autograd.grad(value, layout, grad_output, retain_graph=True)[0]
                expected = differentiate(
                    loss, x.cpu(), target.cpu(), grad_output=grad_output.cpu(), reduction=reduction
                )[1]
                torch.testing.assert_close(got.cpu(), expected, rtol=1e-10, atol=1e-13)
                assert torch.equal(got, again)
                once = differentiate(loss, layout, target, grad_output=grad_output, reduction=reduction)[1]
                assert torch.equal(got, once)


def test_target_out_of_range_is_a_device_side_assertion(tmp_path):
    """In a process of its own: the device is lost to whoever asked."""
    script = (
        "import torch, fastloss\n"
        "fastloss.cross_entropy(torch.randn(4, 3).cuda(), torch.tensor([0, 1, 3, 0]).cuda())\n"
        "torch.cuda.synchronize()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0 and "device-side assert" in run.stderr
