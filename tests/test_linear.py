"""The losses fused with the last linear layer, against plain PyTorch, in chunks so small that there are many."""

import inspect
import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import fastloss
from fastloss import linear, reference

LOSSES = {
    "cross entropy": ("linear_cross_entropy", {}),
    "label smoothing": ("linear_cross_entropy", {"label_smoothing": 0.1}),
    "focal": ("linear_focal_loss", {"gamma": 1.5}),
    "GHM-C": ("linear_ghmc_loss", {"bins": 8}),
}
REDUCTIONS = ("mean", "sum", "none")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of at most 16 rows, products over parts of 16 classes."""
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(linear._LEAST_ROWS, device, 16)
        monkeypatch.setitem(linear._CHUNK_BYTES, device, 0)
        monkeypatch.setitem(linear._BLOCK_CLASSES, device, 16)


def make(shape=(5, 13), H=12, C=37, dtype=torch.float64, device="cpu", bias=True, ignored=True):
    """``[input, linear_weight, linear_bias], target``; logits that are right for about a third of the rows."""
    x, W, b = torch.randn(*shape, H), torch.randn(C, H), torch.randn(C)
    x, W, b = (t.to(device, dtype).requires_grad_() for t in (x, W, b))
    target = F.linear(x, W, b).argmax(-1)
    target = torch.where(torch.rand(target.shape, device=device) < 0.3, target, torch.randint_like(target, C))
    if ignored:
        target[torch.rand(target.shape, device=device) < 0.3] = -100
    return [x, W, b if bias else None], target


def run(function, tensors, target, options, upstream=None):
    """The loss, and its gradients with respect to what requires grad."""
    x, W, b = tensors
    loss = function(x, W, target, linear_bias=b, **options)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return loss, torch.autograd.grad(loss, wanted, upstream if loss.dim() else None)


def assert_near(got, expected, tolerance):
    """Relative error in the Euclidean norm."""
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-300)
    assert error <= tolerance, f"relative error {error}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_reference(loss, reduction, dtype, device):
    name, options = LOSSES[loss]
    if "cross entropy" in loss or loss == "focal":
        options = {**options, "weight": torch.rand(37, device=device)}
    for shape, bias, ignored in (
        ((5, 13), True, True),
        ((50,), False, True),
        ((3, 2, 4), False, False),
        ((), True, False),
    ):
        tensors, target = make(shape, dtype=dtype, device=device, bias=bias, ignored=ignored)
        exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        upstream = torch.rand(shape, dtype=compute, device=device)
        settings = {**options, "reduction": reduction}
        if name == "linear_ghmc_loss" and dtype in (torch.bfloat16, torch.float16):
            settings["bins"] = 1  # rounding the logits moves decisions into the next bin
        expected, expected_grads = run(getattr(reference, name), exact, target, settings, upstream.double())
        got, grads = run(getattr(fastloss, name), tensors, target, settings, upstream)
        assert got.dtype == compute
        assert_near(got, expected, TOLERANCE[dtype])
        for grad, like, expected_grad in zip(grads, [t for t in tensors if t is not None], expected_grads, strict=True):
            assert grad.dtype == like.dtype
            assert_near(grad, expected_grad, TOLERANCE[dtype])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_only_some_want_a_gradient(loss, reduction, device):
    name, options = LOSSES[loss]
    tensors, target = make(device=device)
    options = {**options, "reduction": reduction}
    upstream = torch.rand_like(target, dtype=torch.float64)
    expected, all_grads = run(getattr(reference, name), tensors, target, options, upstream)
    for wanted in itertools.product([False, True], repeat=3):
        for tensor, want in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(want)
        if not any(wanted):
            got, grads = getattr(fastloss, name)(tensors[0], tensors[1], target, linear_bias=tensors[2], **options), []
            assert not got.requires_grad
        else:
            got, grads = run(getattr(fastloss, name), tensors, target, options, upstream)
        torch.testing.assert_close(got.detach(), expected.detach())
        torch.testing.assert_close(list(grads), [g for g, want in zip(all_grads, wanted, strict=True) if want])


@pytest.mark.parametrize(("loss", "products"), [("cross entropy", (1, 2, 2, 3)), ("GHM-C", (1, 2, 3, 4))])
def test_work_that_nobody_asked_for_is_left_out(loss, products, device, monkeypatch):
    """Matrix products: without a gradient, with that of input, of weight, of both."""
    name, options = LOSSES[loss]
    monkeypatch.setitem(linear._LEAST_ROWS, "cpu", 1000)
    monkeypatch.setitem(linear._BLOCK_CLASSES, "cpu", 1000)
    for (input_wants, weight_wants), expected in zip(
        itertools.product([False, True], repeat=2), (0, 2, 1, 3), strict=True
    ):
        tensors, target = make(device=device, bias=False)
        tensors[0].requires_grad_(input_wants)
        tensors[1].requires_grad_(weight_wants)
        with torch.profiler.profile() as profile:
            value = getattr(fastloss, name)(tensors[0], tensors[1], target, **options)
            if value.requires_grad:
                value.backward()
        count = sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))
        assert count == products[expected]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_second_backward(loss, reduction, device):
    name, options = LOSSES[loss]
    (x, W, b), target = make(device=device)
    value = getattr(fastloss, name)(x, W, target, linear_bias=b, **options, reduction=reduction).mul(3).sum()
    first = torch.autograd.grad(value, (x, W, b), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(value, (x, W, b), retain_graph=True)
    third = torch.autograd.grad(value, (x, W, b))
    for grads in (first, second, third):
        torch.testing.assert_close(list(grads), kept, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_differentiates_twice(loss, reduction, device):
    name, options = LOSSES[loss]
    tensors, target = make((7,), H=3, C=5, device=device)

    def function(x, W, b):
        return getattr(fastloss, name)(x, W, target, linear_bias=b, **options, reduction=reduction)

    if loss != "GHM-C":  # whose weights are constants, also where a finite difference would move a decision
        assert torch.autograd.gradcheck(function, tensors)
        assert torch.autograd.gradgradcheck(function, tensors)
    results = []
    for module in (fastloss, reference):
        value = getattr(module, name)(
            tensors[0], tensors[1], target, linear_bias=tensors[2], **options, reduction=reduction
        )
        grads = torch.autograd.grad(value.square().sum(), tensors, create_graph=True)
        results.append([*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_ignored_row_counts_nothing_whatever_it_holds(loss):
    name, options = LOSSES[loss]
    tensors, target = make()
    x = tensors[0].detach().clone()
    x[target == -100] = torch.tensor([float("nan"), float("inf")] * 6, dtype=x.dtype)
    for reduction in REDUCTIONS:
        upstream = torch.rand_like(target, dtype=torch.float64)
        expected, expected_grads = run(
            getattr(reference, name), tensors, target, {**options, "reduction": reduction}, upstream
        )
        upstream = torch.where(target == -100, float("inf"), upstream)
        leaf = x.clone().requires_grad_()
        got, grads = run(
            getattr(fastloss, name), [leaf, *tensors[1:]], target, {**options, "reduction": reduction}, upstream
        )
        torch.testing.assert_close((got, grads), (expected, expected_grads))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_decision_at_all(loss, device):
    name, options = LOSSES[loss]
    for shape in ((4,), (0,)):
        tensors, target = make(shape, device=device)
        target = torch.full_like(target, -100)
        got, grads = run(getattr(fastloss, name), tensors, target, {**options, "reduction": "sum"})
        assert got == 0 and all((grad == 0).all() for grad in grads)
        got, grads = run(getattr(fastloss, name), tensors, target, options)
        assert got.isnan() and all((grad == 0).all() for grad in grads)


def test_no_rows_under_autocast(device):
    """Gradients of another dtype than the one to compute in."""
    tensors, target = make((0,), dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        _, grads = run(fastloss.linear_cross_entropy, tensors, target, {"reduction": "sum"})
    for grad, like in zip(grads, tensors, strict=True):
        assert grad.dtype == like.dtype and grad.shape == like.shape and not grad.any()


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics(training, device):
    tensors, target = make(device=device)
    states = []
    for whole in (True, False):
        state = {
            "running_histogram": torch.full((8,), 3.0, dtype=torch.float64, device=device),
            "num_updates": torch.arange(8, device=device),
        }
        state["running_histogram"][0] = 0  # no history in the first bin
        options = {"bins": 8, "momentum": 0.7, "training": training, **state}
        if whole:
            logits = F.linear(*tensors).flatten(0, 1)
            value = fastloss.ghmc_loss(logits, target.flatten(), **options)
        else:
            value = fastloss.linear_ghmc_loss(tensors[0], tensors[1], target, linear_bias=tensors[2], **options)
        states.append([value, *torch.autograd.grad(value, tensors), *state.values()])
    torch.testing.assert_close(*states)
    assert (states[0][-1].sum() > sum(range(8))) == training


def test_float16_takes_any_size_of_upstream_gradient(device):
    """A factor for each row must not leave float16's range on its way: 1 / N is small, a loss scale large."""
    tensors, target = make((64,), dtype=torch.float16, device=device)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    for size in (1e-9, 3e4):
        upstream = torch.rand(64, device=device) * size
        _, expected = run(reference.linear_cross_entropy, exact, target, {"reduction": "none"}, upstream.double())
        x, W, b = (t.detach().requires_grad_() for t in tensors)
        # As sums are accumulated: before they are rounded to float16, which 1e-9 does not survive.
        rows = (
            *linear._cast(x.detach(), W.detach(), b.detach(), target, torch.float16),
            *(None, None, "cross_entropy", 0.0, [0.0, 1.0, 0.0], -100, False),
        )
        *_, seen_weight, seen_bias = linear._linear_rows(*rows, upstream, 0, [False, True, True])
        seen = (seen_weight, seen_bias)
        for grad, expected_grad in zip(seen, expected[1:], strict=True):
            assert grad.dtype == torch.float32
            assert_near(grad, expected_grad, 2e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_same_bits_at_any_number_of_threads(loss, monkeypatch):
    monkeypatch.undo()  # chunks as users have them
    name, options = LOSSES[loss]
    before = torch.get_num_threads()
    try:
        for dtype, reduction in ((torch.float32, "mean"), (torch.bfloat16, "sum"), (torch.float32, "none")):
            tensors, target = make((900,), H=512, C=15000, dtype=dtype)
            results = []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                upstream = torch.full(target.shape, 0.3)
                value, grads = run(
                    getattr(fastloss, name), tensors, target, {**options, "reduction": reduction}, upstream
                )
                results.append([value.detach(), *grads])
            for result in results[1:]:
                torch.testing.assert_close(result, results[0], rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


def test_ordered_sum_beyond_torchs_grain():
    values = torch.randn(100_000)
    before = torch.get_num_threads()
    try:
        sums = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.add(linear._ordered_sum(values).item())
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 1
    assert sums.pop() == pytest.approx(values.double().sum().item(), abs=1e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast(loss, device):
    name, options = LOSSES[loss]
    tensors, target = make(dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        got, grads = run(getattr(fastloss, name), tensors, target, options)
        expected, expected_grads = run(getattr(reference, name), tensors, target, options)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        assert_near(grad, expected_grad, 2e-2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_compiled(loss, reduction, device):
    name, options = LOSSES[loss]
    tensors, target = make(device=device)
    state = {}
    if loss == "GHM-C":
        state = {
            "running_histogram": torch.zeros(8, dtype=torch.float64, device=device),
            "num_updates": torch.zeros(8, dtype=torch.int64, device=device),
            "momentum": 0.5,
        }
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        torch._dynamo.reset()
        own = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
        function = wrap(getattr(fastloss, name))
        upstream = torch.linspace(0, 1, target.numel(), dtype=torch.float64, device=device).view(target.shape)
        value, grads = run(function, tensors, target, {**options, **own, "reduction": reduction}, upstream)
        results.append([value, *grads, *(v for v in own.values() if isinstance(v, torch.Tensor))])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("loss", LOSSES)
def test_transforms_take_the_reference(loss, device):
    name, options = LOSSES[loss]
    (x, W, b), target = make(device=device)
    W, b = W.detach(), b.detach()

    def function(module):
        return lambda x: getattr(module, name)(x, W, target, linear_bias=b, **options)

    x = x.detach()
    torch.testing.assert_close(torch.func.grad(function(fastloss))(x), torch.func.grad(function(reference))(x))
    tangent = torch.randn_like(x)
    torch.testing.assert_close(
        torch.func.jvp(function(fastloss), (x,), (tangent,)), torch.func.jvp(function(reference), (x,), (tangent,))
    )


def test_batched_gradients(device):
    (x, W, b), target = make((6,), H=4, C=5, device=device)
    function = lambda *t: fastloss.linear_cross_entropy(t[0], t[1], target, linear_bias=t[2])  # noqa: E731
    expected = torch.autograd.functional.jacobian(function, (x, W, b))
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, (x, W, b), vectorize=True), expected)


BAD = {
    "input is None": (lambda x, W, t: fastloss.linear_cross_entropy(None, W, t), "input is None"),
    "weight of another width": (lambda x, W, t: fastloss.linear_cross_entropy(x, W[:, :3], t), r"\(37, 3\).*\(C, 12\)"),
    "weight of one dimension": (lambda x, W, t: fastloss.linear_focal_loss(x, W[0], t), "linear_weight has shape"),
    "bias": (
        lambda x, W, t: fastloss.linear_focal_loss(x, W, t, linear_bias=W[:, 0][:5]),
        r"linear_bias has shape \(5,\)",
    ),
    "target's shape": (lambda x, W, t: fastloss.linear_ghmc_loss(x, W, t[:2]), r"target has shape \(2, 13\)"),
    "target's dtype": (lambda x, W, t: fastloss.linear_ghmc_loss(x, W, t.double()), "target has dtype"),
    "dtypes": (lambda x, W, t: fastloss.linear_cross_entropy(x, W.float(), t), "linear_weight has dtype torch.float32"),
    "input's dtype": (lambda x, W, t: fastloss.linear_cross_entropy(x.long(), W.long(), t), "input has dtype"),
    "reduction": (lambda x, W, t: fastloss.linear_cross_entropy(x, W, t, reduction="avg"), "reduction is 'avg'"),
    "gamma": (lambda x, W, t: fastloss.linear_focal_loss(x, W, t, gamma=-1), "gamma is -1"),
    "class weights": (
        lambda x, W, t: fastloss.linear_cross_entropy(x, W, t, weight=torch.ones(3)),
        r"weight has shape \(3,\)",
    ),
    "class weights that want a gradient": (
        lambda x, W, t: fastloss.linear_cross_entropy(x, W, t, weight=torch.ones(37, requires_grad=True)),
        "weight requires grad",
    ),
    "momentum without state": (lambda x, W, t: fastloss.linear_ghmc_loss(x, W, t, momentum=0.5), "running_histogram"),
    "bins": (lambda x, W, t: fastloss.linear_ghmc_loss(x, W, t, bins=0), "bins is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    (x, W, _), target = make()
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(x, W, target)


def test_target_out_of_range_leaves_the_running_statistics():
    (x, W, _), target = make()
    target[-1, -1] = 37
    histogram, updates = torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)
    with pytest.raises(IndexError, match="37"):
        fastloss.linear_ghmc_loss(x, W, target, momentum=0.5, running_histogram=histogram, num_updates=updates)
    assert not histogram.any() and not updates.any()


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch before 2.13")
def test_torchs_own_arguments():
    theirs = inspect.signature(F.linear_cross_entropy).parameters
    ours = inspect.signature(fastloss.linear_cross_entropy).parameters
    assert set(ours) >= set(theirs) - {"options"}
    (x, W, b), target = make((20,))
    settings = {"linear_bias": b, "weight": torch.rand(37, dtype=x.dtype), "label_smoothing": 0.2, "ignore_index": -100}
    torch.testing.assert_close(
        fastloss.linear_cross_entropy(x, W, target, **settings), F.linear_cross_entropy(x, W, target, **settings)
    )
    module = fastloss.LinearCrossEntropyLoss(12, 37, bias=True, dtype=x.dtype)
    own = torch.nn.LinearCrossEntropyLoss(12, 37, bias=True, dtype=x.dtype)
    module.load_state_dict(own.state_dict())
    torch.testing.assert_close(module(x, target), own(x, target))


@pytest.mark.parametrize("name", ["LinearCrossEntropyLoss", "LinearFocalLoss", "LinearGHMCLoss"])
def test_modules(name, device):
    options = {"momentum": 0.9} if name == "LinearGHMCLoss" else {"weight": torch.rand(37)}
    module = getattr(fastloss, name)(12, 37, bias=True, **options, reduction="sum").to(device)
    (x, *_), target = make(dtype=torch.float32, device=device)
    value = module(x, target)
    value.backward()
    assert {key for key, _ in module.named_parameters()} == {"linear.weight", "linear.bias"}
    assert all(p.grad is not None for p in module.parameters())
    whole = getattr(fastloss, name.removeprefix("Linear"))(**options, reduction="sum").to(device)
    expected = whole(module.linear(x).flatten(0, 1), target.flatten())
    torch.testing.assert_close(value, expected)
    for key, buffer in whole.named_buffers():
        torch.testing.assert_close(module.get_buffer(key), buffer)
    assert "in_features=12, num_classes=37, bias=True" in repr(module)


def test_memory_of_one_chunk(tmp_path):
    """Beyond its arguments and their gradients a call takes less than 64 MiB; the logits alone are 250."""
    code = """
import resource, torch, fastloss
x, W = torch.randn(2048, 64, requires_grad=True), torch.randn(32000, 64, requires_grad=True)
y = torch.randint(32000, (2048,))
fastloss.linear_cross_entropy(x[:8], W, y[:8]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fastloss.linear_cross_entropy(x, W, y).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["linear_cross_entropy", "linear_focal_loss"])
def test_settings_of_the_whole_loss(name, reduction, device):
    """Sample weights, a denominator, extras and logsumexp, as the loss of whole logits has them."""
    (x, W, b), target = make((20,), device=device)
    settings = {"sample_weight": torch.rand(target.shape, dtype=x.dtype, device=device), "reduction": reduction}
    settings |= {"z_loss": 0.1, "logit_scale": 0.7, "softcap": 5.0, "return_lse": True}
    if reduction == "mean":
        settings["denominator"] = torch.tensor(7, device=device)
    outcomes = []
    for function in (getattr(fastloss, name), getattr(reference, name)):
        leaves = [t.detach().requires_grad_() for t in (x, W, b)]
        value, lse = function(*leaves[:2], target, linear_bias=leaves[2], **settings)
        assert lse.shape == target.shape
        value.sum().backward()
        outcomes.append((value.detach(), lse.detach(), *(t.grad for t in leaves)))
    torch.testing.assert_close(*outcomes)
