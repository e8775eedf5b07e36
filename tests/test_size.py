"""Very large calls, the memory that a call takes, and none that stays taken.

Marked `size`: minutes and up to 10 GB, `make test-size`. What is not marked is the same on less, for `make test`.
"""

import ctypes
import gc
import sys

import pytest
import torch
import torch.nn.functional as F
from cases import is_sigmoid

import fastloss

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
LOSSES = ["cross_entropy", "focal_loss", "ghmc_loss"]


def tile(rows, classes, dtype):
    """Random logits and targets, one of them ignored."""
    x, target = torch.randn(rows, classes).to(dtype), torch.randint(classes, (rows,))
    target[1] = -100
    return x, target


def check_repeated(name, rows, classes, times, dtype, inplace):
    """A batch of `times` the same rows: the loss is that of the rows, a decision's gradient its share."""
    x, target = tile(rows, classes, dtype)
    once = x.clone().requires_grad_()
    function = getattr(fastloss, name)
    expected = function(once, target, reduction="sum")
    expected.backward()
    large = torch.empty(times, rows, classes, dtype=dtype)
    for part in large:
        part.copy_(x)
    large = large.view(times * rows, classes).requires_grad_()
    loss = function(large, target.repeat(times), reduction="sum", inplace_backward=inplace)
    torch.testing.assert_close(loss.double() / times, expected.double(), rtol=1e-6, atol=0)
    loss.backward()
    grads = large.grad.view(times, rows, classes)
    assert all(torch.equal(part, once.grad) for part in grads)


@pytest.mark.size
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_more_than_2_31_logits(name, inplace):
    """4.3 GB of bfloat16, and as much again where the gradient has its own memory; rows, and tiles."""
    for rows, classes in ((1024, 1000), (99991, 11)):
        times = 2**31 // (rows * classes) + 2
        check_repeated(name, rows, classes, times, torch.bfloat16, inplace)


@pytest.mark.parametrize("name", LOSSES)
def test_many_logits(name):
    for rows, classes in ((64, 1000), (9991, 11)):
        check_repeated(name, rows, classes, 2**22 // (rows * classes), torch.bfloat16, inplace=True)


def check_one_row(classes):
    x = 3 * torch.randn(1, classes)
    target = torch.tensor([classes - 1])
    x.requires_grad_()
    loss = fastloss.cross_entropy(x, target)
    loss.backward()
    wide = x.detach().double().requires_grad_()
    truth = F.cross_entropy(wide, target)
    truth.backward()
    torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=0)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=2e-5, atol=1e-12)


@pytest.mark.size
def test_2_26_classes():
    check_one_row(2**26)


def test_2_20_classes():
    check_one_row(2**20)


def check_two_classes(decisions):
    x = torch.linspace(-8, 8, 2 * decisions).view(2, decisions).t().contiguous().requires_grad_()
    target = torch.arange(decisions) % 2
    loss = fastloss.focal_loss(x, target, gamma=2.0)
    loss.backward()
    # A sample of them, and both ends.
    for part in (slice(0, 1000), slice(decisions // 2, decisions // 2 + 1000), slice(decisions - 1000, None)):
        some = x.detach()[part].double().requires_grad_()
        fastloss.reference.focal_loss(some, target[part], gamma=2.0, reduction="sum").backward()
        torch.testing.assert_close(x.grad[part].double() * decisions, some.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.size
def test_2_26_decisions_of_two_classes():
    check_two_classes(2**26)


def test_2_20_decisions_of_two_classes():
    check_two_classes(2**20)


# ---- memory


def status(name):
    """A line of /proc/self/status in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def peak_of(function):
    """How many bytes more than before are resident while function runs, at most."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def check_peak(name, megabytes):
    """Without a gradient nothing of the logits' size, in place nothing, else one gradient; and O(N)."""
    classes = 1000
    rows = (megabytes << 20) // (4 * classes)
    x, target = torch.randn(rows, classes), torch.randint(classes, (rows,))
    function = getattr(fastloss, name)
    leaf = x.requires_grad_()
    few, few_targets = x.detach()[:4].clone().requires_grad_(), target[:4]
    function(few, few_targets).backward()  # what is loaded at the first call
    slack = 64 * rows + (3 << 20)  # what the decisions take, and the allocator's and threads' own

    def without():
        with torch.no_grad():
            function(leaf, target)

    def inplace():
        function(leaf, target, inplace_backward=True).backward()
        leaf.grad = None

    assert peak_of(without) < slack
    assert peak_of(lambda: function(leaf, target).backward()) < x.nbytes + slack
    leaf.grad = None
    assert peak_of(inplace) < slack


@linux
@pytest.mark.parametrize("name", LOSSES)
def test_peak_memory(name):
    check_peak(name, 48)


@linux
@pytest.mark.size
@pytest.mark.parametrize("name", LOSSES)
def test_peak_memory_of_gigabytes(name):
    check_peak(name, 2048)


class MallInfo(ctypes.Structure):
    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple(zip(names, [ctypes.c_size_t] * 10, strict=True))


def allocated():
    """Bytes that malloc has given out, and not got back."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("mallinfo2 is glibc's, from 2.33 on")
    libc.mallinfo2.restype = MallInfo
    gc.collect()
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


def check_leaks(call, calls):
    for _ in range(200):  # caches fill
        call()
    before = allocated()
    for _ in range(calls):
        call()
    grown = allocated() - before
    assert grown < 8 * calls, f"{grown / calls:.1f} bytes a call stay"


def training_step(name):
    sigmoid = is_sigmoid(name)
    x = torch.randn(4, 3, requires_grad=True)
    target = torch.rand(4, 3) if sigmoid else torch.tensor([0, 1, 2, -100])
    function = getattr(fastloss, name)

    def step():
        function(x, target, reduction="sum").backward()
        x.grad = None

    return step


def refused(name):
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 7])
    function = getattr(fastloss, name)

    def call():
        for arguments in ((x, target), (x, target[:2]), (x.int(), target)):
            try:
                function(*arguments)
            except (ValueError, IndexError):
                continue
            raise AssertionError("not refused")

    return call


@linux
@pytest.mark.parametrize("name", [*LOSSES, "sigmoid_focal_loss", "asymmetric_loss", "sigmoid_ghmc_loss"])
def test_no_leak(name):
    check_leaks(training_step(name), 3000)
    if not is_sigmoid(name):
        check_leaks(refused(name), 1000)


@linux
@pytest.mark.size
@pytest.mark.parametrize("name", [*LOSSES, "sigmoid_focal_loss", "asymmetric_loss", "sigmoid_ghmc_loss"])
def test_no_leak_in_100000_calls(name):
    check_leaks(training_step(name), 100_000)
    if not is_sigmoid(name):
        check_leaks(refused(name), 33_334)  # three calls each
