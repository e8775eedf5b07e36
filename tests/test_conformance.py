"""Every bug and complaint that others' cross entropy, focal and GHM losses are known for, each with its public source.

`losses` is fastloss on every device, and the reference. tests/emulated runs the first part on the CUDA kernels, in the
emulator.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import IGNORE, differentiate
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import fastloss
from fastloss import reference

SOFTMAX = ["cross_entropy", "focal_loss", "ghmc_loss"]
every_softmax_loss = pytest.mark.parametrize("name", SOFTMAX)
every_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


@pytest.fixture(params=["fastloss", "reference"])
def losses(request):
    return {"fastloss": fastloss, "reference": reference}[request.param]


# ---- numbers: also run in the emulator


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 0.999, 1.0, 2.0])
def test_softmax_focal_at_certainty(losses, gamma, device):
    """A nan gradient at p = 1 where gamma < 1: kornia#918, google-deepmind/optax#1267, clcarwin/focal_loss_pytorch#13;
    mmcv's softmax_focal_loss has pow(1 - p, gamma - 1)."""
    x = torch.tensor([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0], [1.0, 0.0, 0.0]], device=device)
    target = torch.zeros(3, dtype=torch.long, device=device)
    loss, grad = differentiate(losses.focal_loss, x, target, gamma=gamma, reduction="sum")
    assert loss.isfinite() and grad.isfinite().all()
    assert not grad[0].any()  # certain and right
    torch.testing.assert_close(grad[1].cpu(), torch.tensor([-1.0, 0.5, 0.5]))  # certain and wrong: all of the slope
    wide = differentiate(losses.focal_loss, x.double(), target, gamma=gamma, reduction="sum")
    torch.testing.assert_close(grad, wide[1].float())


@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 2, 4), (5,)])
def test_softmax_focal_mean_is_over_decisions(losses, shape, device):
    """ "mean" over N * C makes the loss C times too small: kornia.losses.focal_loss, MONAI's FocalLoss(use_softmax)."""
    x = torch.linspace(-2, 2, torch.Size(shape).numel(), device=device).view(shape)
    target = torch.full(shape[:1] * (len(shape) > 1) + shape[2:], 3, device=device)
    torch.testing.assert_close(losses.focal_loss(x, target, gamma=0.0), F.cross_entropy(x, target))
    each = losses.focal_loss(x, target, gamma=2.0, reduction="none")
    torch.testing.assert_close(losses.focal_loss(x, target, gamma=2.0), each.mean())


@every_reduction
@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_leaves_ignored_rows_alone(losses, reduction, weighted, device):
    """Label smoothing that also smooths ignored rows: pytorch#73205, the LabelSmoothingCrossEntropy of
    lonePatient/BERT-NER-Pytorch."""
    x = torch.linspace(-3, 3, 60, device=device).view(12, 5)
    target = torch.arange(12, device=device) % 5
    target[1::3] = IGNORE
    weight = torch.tensor([1.0, 0.2, 3.0, 0.5, 2.0], device=device) if weighted else None
    settings = {"label_smoothing": 0.3, "reduction": reduction}
    loss, grad = differentiate(losses.cross_entropy, x, target, weight, **settings)
    valid = target != IGNORE
    expected = differentiate(F.cross_entropy, x[valid], target[valid], weight, **settings)
    torch.testing.assert_close(loss[valid] if reduction == "none" else loss, expected[0])
    torch.testing.assert_close(grad[valid], expected[1])
    assert not grad[~valid].any()
    assert reduction != "none" or not loss[~valid].any()


@every_softmax_loss
@pytest.mark.parametrize("ignore_index", [-100, -1, 5, 255, 2, -(2**60), 2**60])
def test_any_ignore_index(losses, name, ignore_index, device):
    """mmcv reads the weight at the label before it looks whether to ignore it; F.one_hot, with which many focal losses
    begin, fails on -100. A class may be ignored too."""
    x = torch.linspace(-3, 3, 40, device=device).view(8, 5)
    target = torch.tensor([0, 1, 2, 3, 4, 2, 1, 0], device=device)
    ignored = target == 2
    target[ignored] = ignore_index
    loss, grad = differentiate(getattr(losses, name), x, target, ignore_index=ignore_index)
    expected = differentiate(getattr(losses, name), x[~ignored], target[~ignored])
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(grad[~ignored], expected[1])
    assert not grad[ignored].any()


@every_softmax_loss
def test_underflow_of_softmax(losses, name, device):
    """log(softmax(x)) instead of log_softmax(x) is log(0) here: the GHMC of the NER comparison that ours is after."""
    x = torch.tensor([[0.0, 200.0], [-2000.0, 2000.0], [1.0, 0.0]], device=device)
    target = torch.tensor([0, 0, 1], device=device)
    loss, grad = differentiate(getattr(losses, name), x, target, reduction="none")
    assert loss.isfinite().all() and grad.isfinite().all()
    # The bin [0.9, 1] of GHM-C has the first two, another the third: 3 / (2 * 2) and 3 / (2 * 1).
    factor = [0.75, 0.75] if name == "ghmc_loss" else [1.0, 1.0]
    torch.testing.assert_close(loss[:2].cpu(), torch.tensor([200.0, 4000.0]) * torch.tensor(factor))


@every_softmax_loss
@every_reduction
def test_empty_batch(losses, name, reduction, device):
    """mmcv's and Liger's losses raise."""
    for shape in ((0, 5), (0, 5, 2), (2, 5, 0)):
        x = torch.zeros(shape, device=device)
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long, device=device)
        loss, grad = differentiate(getattr(losses, name), x, target, reduction=reduction)
        assert grad.shape == shape
        if reduction == "none":
            assert loss.shape == target.shape
        else:
            assert loss.isnan() if reduction == "mean" else loss == 0  # as F.cross_entropy


@every_softmax_loss
@every_reduction
def test_nothing_but_ignored(losses, name, reduction, device):
    """0 / 0 is nan, as F.cross_entropy has it; no gradient, whatever the logits: trainers meet micro-batches of
    padding, as in huggingface/transformers#34242."""
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]], device=device)
    target = torch.full((2,), IGNORE, device=device)
    loss, grad = differentiate(getattr(losses, name), x, target, reduction=reduction)
    assert loss.isnan() if reduction == "mean" else not loss.any()
    assert losses is reference or not grad.any()  # the reference has nan * 0


@every_softmax_loss
def test_one_class(losses, name, device):
    """Its probability is 1; an ignored target stands for no class of many."""
    x = torch.tensor([[3.0], [4.0]], device=device)
    loss, grad = differentiate(getattr(losses, name), x, torch.tensor([0, IGNORE], device=device))
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_softmax_loss
def test_half_logits_are_computed_in_float32(losses, name, dtype, device):
    """Everything computed in half: mmcv, kornia; the loss rounded to half: F.cross_entropy itself."""
    x = torch.linspace(-8, 8, 300, device=device).view(60, 5).to(dtype)
    target = torch.arange(60, device=device) % 5
    loss, grad = differentiate(getattr(losses, name), x, target)
    expected = differentiate(getattr(losses, name), x.double(), target)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), expected[1], rtol=torch.finfo(dtype).eps, atol=1e-7)


# ---- what sigmoid focal loss is known for


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 0.999, 1.0, 2.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_sigmoid_focal_at_certainty(losses, gamma, target, device):
    """The same nan as in the softmax form: google-deepmind/optax#1267."""
    x = torch.tensor([200.0, -200.0, 0.5], device=device)
    t = torch.full((3,), target, device=device)
    loss, grad = differentiate(losses.sigmoid_focal_loss, x, t, gamma=gamma, alpha=-1.0, reduction="sum")
    assert loss.isfinite() and grad.isfinite().all()
    right, wrong = (0, 1) if target else (1, 0)
    assert grad[right] == 0
    torch.testing.assert_close(grad[wrong].item(), 1 - 2 * target)


def test_rare_bins_weigh_more_than_half_precision_holds(losses, device):
    """GHM's N / (n R) above 65504 is inf in half: mmdetection's GHMC under AMP. An edge of 1 + 1e-6 is 1 there."""
    x = torch.zeros(2**18, 2, dtype=torch.float16, device=device)
    x[1:, 0] = 8.0
    x[0, 1] = 12.0
    target = torch.zeros(2**18, dtype=torch.long, device=device)
    loss, grad = differentiate(losses.ghmc_loss, x, target)
    assert loss.isfinite() and grad.isfinite().all() and grad[0, 0] < 0
    assert losses.gradient_norm_histogram(x, target).tolist() == [2**18 - 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("momentum", [0.75, 0.9, 0.99])
def test_first_step_with_momentum(losses, momentum, device):
    """A running count that starts at zero makes the first weights 1 / (1 - m) too large, and nan at m = 0.9:
    libuyu/GHM_Detection#6. Corrected, the first step is that without momentum."""
    x, target = torch.linspace(-3, 3, 30, device=device).view(10, 3), torch.arange(10, device=device) % 3
    state = {
        "running_histogram": torch.zeros(10, dtype=torch.float64, device=device),
        "num_updates": torch.zeros(10, dtype=torch.long, device=device),
    }
    plain = differentiate(losses.ghmc_loss, x, target)
    first = differentiate(losses.ghmc_loss, x, target, momentum=momentum, **state)
    torch.testing.assert_close(first, plain)
    for _ in range(20):
        later = differentiate(losses.ghmc_loss, x, target, momentum=momentum, **state)
    torch.testing.assert_close(later, plain)  # the same batch again and again: the same counts


def test_a_bin_without_history(losses, device):
    """A bin that running statistics do not know divides by 0: mmdetection#1485 (nan)."""
    x, target = torch.linspace(-3, 3, 30, device=device).view(10, 3), torch.arange(10, device=device) % 3
    state = {
        "running_histogram": torch.zeros(10, dtype=torch.float64, device=device),
        "num_updates": torch.zeros(10, dtype=torch.long, device=device),
    }
    evaluated = differentiate(losses.ghmc_loss, x, target, momentum=0.9, training=False, **state)
    torch.testing.assert_close(evaluated, differentiate(losses.ghmc_loss, x, target))
    assert not state["running_histogram"].any() and not state["num_updates"].any()


@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss"])
def test_accumulated_batches(losses, name, device):
    """The mean of micro-batches' means is not the batch's mean: huggingface/transformers#34242, pytorch/torchtune#1875,
    pytorch/torchtitan#2206. Sums over what all of them count are."""
    function = getattr(losses, name)
    x, target = torch.linspace(-3, 3, 40, device=device).view(8, 5), torch.arange(8, device=device) % 5
    target[:3] = IGNORE
    whole = differentiate(function, x, target)
    count = (target != IGNORE).sum()
    parts = [
        differentiate(lambda x, t: function(x, t, reduction="sum") / count, x[i : i + 4], target[i : i + 4])
        for i in (0, 4)
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]), whole[1])


# ---- autograd


@every_softmax_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_second_backward(losses, name, dtype, device):
    """A saved gradient that is scaled in place is scaled twice: apex.contrib.focal_loss, Liger."""
    x = torch.linspace(-3, 3, 40, device=device, dtype=dtype).view(8, 5).requires_grad_()
    loss = getattr(losses, name)(x, torch.arange(8, device=device) % 5)
    first, second = (torch.autograd.grad(loss * 3, x, retain_graph=True)[0].clone() for _ in range(2))
    assert first.any() and torch.equal(first, second)


@every_softmax_loss
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_callers_logits_stay(losses, name, requires_grad, device):
    """Liger overwrites the logits with their gradient, also where none is wanted: Liger-Kernel#272, #343, #1251."""
    x = torch.linspace(-3, 3, 40, device=device).view(8, 5).requires_grad_(requires_grad)
    before = x.detach().clone()
    target = torch.arange(8, device=device) % 5
    loss = getattr(losses, name)(x, target)
    if requires_grad:
        (loss * 2).backward()
    with torch.no_grad():
        getattr(losses, name)(x, target)
    assert torch.equal(x.detach(), before)


@every_softmax_loss
def test_reduction_none_under_any_upstream_gradient(losses, name, device):
    """Liger-Kernel#872, #968 and ROCm/TransformerEngine#336: only ones came out right."""
    x = torch.linspace(-3, 3, 40, device=device, dtype=torch.float64).view(8, 5)
    target = torch.arange(8, device=device) % 5
    target[2] = IGNORE
    upstream = torch.tensor([0.0, -2.0, 5.0, 1e-3, 1.0, 7.0, -0.5, 100.0], dtype=torch.float64, device=device)
    _, grad = differentiate(getattr(losses, name), x, target, grad_output=upstream, reduction="none")
    _, ones = differentiate(getattr(losses, name), x, target, reduction="none")
    torch.testing.assert_close(grad, upstream[:, None] * ones)


# ---- fastloss alone


@every_softmax_loss
@pytest.mark.parametrize("bad", [5, 6, -1, -101, 2**31, -(2**40)])
def test_a_label_out_of_range(name, bad):
    """mmcv takes label == C, and reads the next row. (On a GPU it is a device-side assertion: test_cuda.py.)"""
    target = torch.tensor([0, 1, bad])
    with pytest.raises(IndexError, match=f"target has the value {bad} "):
        getattr(fastloss, name)(torch.zeros(3, 5), target)


@every_softmax_loss
def test_rows_beyond_int32(name):
    """32-bit offsets: pytorch#85786, #111484 (silently wrong), #190139. Rows, or classes, about 2^30 elements apart, in
    memory of which only the pages in use exist. test_size.py has batches of that many logits."""
    apart = 2**30 + 3
    classes, rows = 5, 3
    small = torch.linspace(-3, 3, rows * classes, dtype=torch.bfloat16).view(rows, classes)
    target = torch.tensor([4, 0, 2])
    expected = differentiate(getattr(fastloss, name), small, target)
    memory = torch.empty((rows - 1) * apart + classes * 3, dtype=torch.bfloat16)
    for shape, strides in (((rows, classes), (apart, 1)), ((rows, classes), (1, apart // 2))):
        x = memory.as_strided(shape, strides).copy_(small)
        leaf = x.detach().requires_grad_()
        loss = getattr(fastloss, name)(leaf, target, inplace_backward=True)
        assert torch.equal(loss.detach(), expected[0])
        assert torch.equal(x, expected[1]), "the gradient is over the logits"


@pytest.mark.parametrize("name", [*SOFTMAX, "sigmoid_focal_loss", "sigmoid_ghmc_loss"])
def test_no_look_at_the_data(name, device):
    """A host synchronisation a bin: mmdetection's GHMC; 3 to 5 a call: Liger; one for mean with weights and smoothing:
    F.cross_entropy. Tensors without data have none to look at."""
    with FakeTensorMode():
        x = torch.empty(8, 5, device=device, requires_grad=True)
        target = torch.empty(8, 5, device=device) if "sigmoid" in name else torch.empty(8, dtype=torch.long).to(device)
        settings = {"weight": torch.empty(5, device=device)} if name in ("cross_entropy", "focal_loss") else {}
        loss = getattr(fastloss, name)(x, target, reduction="mean", **settings)
        (grad,) = torch.autograd.grad(loss * 3, x)
    assert loss.shape == () and grad.shape == x.shape


def test_an_option_recompiles_no_more_than_torchs(device):
    """Liger compiles its kernels for every value of a float option. Ours never do; torch.compile specialises on a float
    of any operator, ours as F.cross_entropy's."""
    x, target = torch.randn(8, 5, device=device), torch.arange(8, device=device) % 5
    compilations = []
    for function in (fastloss.cross_entropy, F.cross_entropy):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(lambda x, eps, f=function: f(x, target, label_smoothing=eps), backend=counter)
        for eps in (0.1, 0.2, 0.3, 0.4):
            torch.testing.assert_close(compiled(x, eps), function(x, target, label_smoothing=eps))
        compilations.append(counter.frame_count)
    ours, torchs = compilations
    assert ours <= torchs


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_compiled_is_not_wrong(reduction, device):
    """Liger's cross entropy under torch.compile gives other numbers: Liger-Kernel#1338."""
    torch.compiler.reset()
    x, target = torch.randn(8, 5, device=device), torch.arange(8, device=device) % 5
    function = lambda x: fastloss.cross_entropy(2 * x, target, reduction=reduction) * 3  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(differentiate(compiled, x), differentiate(function, x))


# ---- installation


def test_the_library_needs_no_torch_of_its_own():
    """A wheel for each version of torch: flash-attention#246, #1421, #1920, onedl-mmdetection#18. Ours asks torch for
    its stable C interface alone: no symbol of at:: or c10:: that would bind it to one version."""
    library = Path(fastloss.__file__).parent / "libfastloss_ops.so"
    if shutil.which("nm") is None:
        pytest.skip("nm is not on PATH")
    output = subprocess.run(
        ["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True
    ).stdout
    symbols = [line.split()[-1] for line in output.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    assert not [symbol for symbol in symbols if symbol.startswith(("_ZN2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch"))]


def test_a_missing_library_is_said(tmp_path):
    """Never a silent fallback: mmdetection#11738 has builds without the ops that fail at their first call."""
    package = tmp_path / "fastloss"
    shutil.copytree(
        Path(fastloss.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "ner")
    )
    result = subprocess.run([sys.executable, "-c", "import fastloss"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    assert "pip install" in result.stderr.splitlines()[-1] or "make" in result.stderr.splitlines()[-1]


def test_what_was_built_is_said():
    """A CPU-only build that nobody asked for is found at once: `fastloss info`, build_info(); apex#550, #1748."""
    info = fastloss.build_info()
    assert {"version", "torch_abi", "cuda_version", "cpu_capabilities"} <= info.keys()


def test_there_is_a_softmax_focal_loss():
    """Asked for in pytorch/vision#3250 since 2021."""
    assert fastloss.FocalLoss(gamma=2.0)(torch.zeros(2, 3), torch.tensor([0, 2])).isfinite()
