"""What others expect of these losses: torch's own samples for its operators and modules, and published numbers.

The samples are those that torch tests its own cross entropy and binary cross entropy on (OpInfo, ModuleInfo); the
numbers are from the tests of other projects, each with its source.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, differentiate

import fastloss

common = pytest.importorskip("torch.testing._internal.common_methods_invocations", exc_type=ImportError)
modules = pytest.importorskip("torch.testing._internal.common_modules", exc_type=ImportError)

EAGER = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def up(value):
    """Tensors of floats in float64; everything else as it is."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().double()
    if isinstance(value, tuple | list):
        return type(value)(map(up, value))
    return {key: up(item) for key, item in value.items()} if isinstance(value, dict) else value


def assert_as_torch(got, expected, dtype):
    """(loss, gradient) against torch's in float64, which has rounded nothing."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    assert got[0].dtype == compute and got[1].dtype == dtype
    torch.testing.assert_close(got[0], expected[0].to(compute), equal_nan=True)
    torch.testing.assert_close(got[1], expected[1].to(dtype), equal_nan=True)


def op_samples(name, dtype):
    (op,) = [op for op in common.op_db if op.name == name]
    torch.manual_seed(0)
    return [(sample.input, *sample.args, sample.kwargs) for sample in op.sample_inputs("cpu", dtype)]


def cross_entropy_samples(dtype):
    """(logits, class indices or probabilities, settings): all that torch has."""
    samples = op_samples("nn.functional.cross_entropy", dtype)
    soft = [target.is_floating_point() for _, target, _ in samples]
    assert sum(soft) >= 8 and len(soft) - sum(soft) >= 10
    return [(x, target.detach(), settings) for x, target, settings in samples]


def class_indices(samples):
    return [sample for sample in samples if not sample[1].is_floating_point()]


@EAGER
def test_cross_entropy_samples(dtype, device):
    for x, target, settings in cross_entropy_samples(dtype):
        x, target = x.to(device), target.to(device)
        expected = differentiate(F.cross_entropy, up(x), up(target), **up(settings))
        assert_as_torch(differentiate(fastloss.cross_entropy, x, target, **settings), expected, dtype)


@EAGER
def test_focal_loss_without_focus(dtype):
    """gamma = 0 is cross entropy: the same samples, without smoothing."""
    for x, target, settings in class_indices(cross_entropy_samples(dtype)):
        if settings.get("label_smoothing", 0) == 0:
            settings = {key: value for key, value in settings.items() if key != "label_smoothing"}
            expected = differentiate(F.cross_entropy, up(x), target, **up(settings))
            assert_as_torch(differentiate(fastloss.focal_loss, x, target, gamma=0.0, **settings), expected, dtype)


@EAGER
def test_binary_cross_entropy_samples(dtype):
    """gamma = 0 without class balance is binary cross entropy, soft targets too."""
    checked = 0
    for x, target, settings in op_samples("nn.functional.binary_cross_entropy_with_logits", dtype):
        if settings.keys() <= {"reduction"} and x.shape == target.shape:
            checked += 1
            reduction = settings.get("reduction", "mean")
            expected = differentiate(F.binary_cross_entropy_with_logits, up(x), up(target), reduction=reduction)
            got = differentiate(
                fastloss.sigmoid_focal_loss, x, target.detach(), alpha=-1.0, gamma=0.0, reduction=reduction
            )
            assert_as_torch(got, expected, dtype)
    assert checked >= 3


@EAGER
def test_forward_mode_of_samples(dtype):
    for x, target, settings in cross_entropy_samples(dtype):
        tangent = torch.randn_like(x)
        _, got = torch.func.jvp(
            lambda x, target=target, settings=settings: fastloss.cross_entropy(x, target, **settings), (x,), (tangent,)
        )
        _, expected = torch.func.jvp(
            lambda x, target=target, settings=settings: F.cross_entropy(x, up(target), **up(settings)),
            (up(x),),
            (up(tangent),),
        )
        torch.testing.assert_close(got, expected.to(got.dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inductor_of_samples(dtype):
    torch.compiler.reset()
    for x, target, settings in cross_entropy_samples(dtype)[::3]:  # a second each
        compiled = torch.compile(fastloss.cross_entropy, fullgraph=True, dynamic=False)
        expected = differentiate(fastloss.cross_entropy, x, target, **settings)
        assert_as_torch(differentiate(compiled, x, target, **settings), up(expected), dtype)
        torch.compiler.reset()


def module_samples(module, dtype):
    (info,) = [info for info in modules.module_db if info.module_cls is module]
    torch.manual_seed(0)
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
    for sample in inputs:
        constructor, forward = sample.constructor_input, sample.forward_input
        yield constructor.args, constructor.kwargs, *forward.args


@EAGER
def test_module_samples(dtype):
    soft = []
    for args, settings, x, target in module_samples(torch.nn.CrossEntropyLoss, dtype):
        module = fastloss.CrossEntropyLoss(*args, **settings)
        soft.append(target.is_floating_point())
        expected = differentiate(torch.nn.CrossEntropyLoss(*up(args), **up(settings)), up(x), up(target))
        assert_as_torch(differentiate(module, x, target.detach()), expected, dtype)
    assert sum(soft) >= 30 and len(soft) - sum(soft) >= 60


def test_module_takes_what_torchs_takes():
    """Every setting of torch's, under its name, in its place and with its default."""
    for theirs, ours in (
        (torch.nn.CrossEntropyLoss, fastloss.CrossEntropyLoss),
        (F.cross_entropy, fastloss.cross_entropy),
    ):
        torchs, own = (inspect.signature(f).parameters for f in (theirs, ours))
        assert list(own)[: len(torchs)] == list(torchs)
        for name, parameter in torchs.items():
            assert own[name].default == parameter.default and own[name].kind == parameter.kind


# ---- published numbers


def logit(p):
    p = torch.tensor(p, dtype=torch.float64)
    return (p / (1 - p)).log()


def close(got, expected, digits):
    """Both are equal to so many digits after the point, as the sources have it, but for float32's rounding."""
    torch.testing.assert_close(
        torch.as_tensor(got).double(), torch.tensor(expected).double(), rtol=1e-6, atol=10**-digits
    )


# open-mmlab/mmcv, tests/test_ops/test_focal_loss.py: logits, classes, (loss, gradient) of softmax and of sigmoid; alpha
# 0.25, gamma 2, the sum over the rows divided by their number. It asks for 1%; what is written has 7 digits.
MMCV = [
    (
        [[1.0, 0], [0, 1.0]],
        [0, 1],
        (0.00566451, [[-0.00657264, 0.00657264], [0.00657264, -0.00657264]]),
        (0.13562961, [[-0.00657264, 0.11185755], [0.11185755, -0.00657264]]),
    ),
    (
        [[1.0, 0, -1.0], [0, 1.0, 2.0]],
        [2, 1],
        (0.34956908, [[0.10165970, 0.03739851, -0.13905823], [0.01227554, -0.10298023, 0.09070466]]),
        (1.10251057, [[0.28808805, 0.11185755, -0.09602935], [0.11185755, -0.00657264, 0.40376765]]),
    ),
    (
        [[1e-6, 2e-6, 3e-6], [4e-6, 5e-5, 6e-4], [7e-3, 8e-2, 9e-1]],
        [1, 2, 0],
        (
            0.15754992,
            [
                [0.02590877, -0.05181759, 0.02590882],
                [0.02589641, 0.02589760, -0.05179400],
                [-0.07307514, 0.02234372, 0.05073142],
            ],
        ),
        (
            0.42287254,
            [
                [0.07457182, -0.02485716, 0.07457201],
                [0.07457211, 0.07457669, -0.02483728],
                [-0.02462499, 0.08277918, 0.18050370],
            ],
        ),
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("logits, classes, softmax, sigmoid", MMCV)
def test_mmcv(logits, classes, softmax, sigmoid, dtype, device):
    x, y = torch.tensor(logits, dtype=dtype, device=device), torch.tensor(classes, device=device)
    quarter = torch.full((x.shape[1],), 0.25, dtype=dtype, device=device)
    loss, grad = differentiate(fastloss.focal_loss, x, y, quarter, reduction="sum")
    close(loss.cpu() / len(y), softmax[0], 7)
    close(grad.cpu() / len(y), softmax[1], 7)
    onehot = F.one_hot(y, x.shape[1]).to(dtype)
    loss, grad = differentiate(fastloss.sigmoid_focal_loss, x, onehot, reduction="sum")
    close(loss.cpu() / len(y), sigmoid[0], 7)
    close(grad.cpu() / len(y), sigmoid[1], 7)


def test_keras_binary_focal_crossentropy():
    """keras-team/keras, keras/src/losses/losses_test.py, BinaryFocalCrossentropyTest."""
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    x = logit([[0.9, 0.8], [0.7, 0.2]])
    settings = {"alpha": -1.0, "gamma": 2.0}
    close(fastloss.sigmoid_focal_loss(x, y, reduction="mean", **settings), 0.268, 3)
    close(fastloss.sigmoid_focal_loss(x, y, **settings).mean(1), [0.515547, 0.020513], 6)
    x = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]])
    y = torch.tensor([[1, 1, 0], [0, 1, 0]])
    close(fastloss.sigmoid_focal_loss(x, y, alpha=-1.0, gamma=3.0, reduction="mean"), 0.799, 3)
    x, y = 200 * torch.eye(3) - 100, torch.eye(3)
    assert fastloss.sigmoid_focal_loss(x, y, reduction="sum") == 0


def test_keras_categorical_focal_crossentropy():
    """keras-team/keras, keras/src/losses/losses_test.py, CategoricalFocalCrossentropyTest; alpha 0.25, gamma 2."""
    x = torch.tensor([[8.0, 1.0, 1.0], [0.0, 9.0, 1.0], [2.0, 3.0, 5.0]], dtype=torch.float64)
    loss = 0.25 * fastloss.focal_loss(x, torch.arange(3), reduction="none")
    torch.testing.assert_close(
        loss, torch.tensor([1.5096224e-09, 2.4136547e-11, 1.0360638e-03]).double(), rtol=5e-4, atol=0
    )  # keras has 1 - p in float32
    close(loss.mean(), 0.000345, 6)
    close((torch.tensor([1.2, 3.4, 5.6]) * loss).mean(), 0.001933, 6)
    close(2.3 * loss.mean(), 0.000794, 6)


def test_monai_foreground():
    """Project-MONAI/MONAI, tests/test_focal_loss.py, test_foreground: gamma 2, no alpha, mean over all elements."""
    background, foreground = torch.ones(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    x = torch.cat((background, foreground), dim=1)
    target = x.clone()
    target[:, 0, 2, 2], target[:, 1, 2, 2] = 0, 1
    settings = {"alpha": -1.0, "reduction": "mean"}
    close(fastloss.sigmoid_focal_loss(x, target, **settings), 0.1116, 4)
    close(fastloss.sigmoid_focal_loss(x[:, 1:], target[:, 1:], **settings), 0.1733, 4)


@pytest.mark.parametrize("classes, scale", [(2, 100), (2, 1000), (6, 1000)])
def test_monai_very_good_predictions(classes, scale):
    """Project-MONAI/MONAI, tests/test_focal_loss.py, the segmentations: a loss of 0 and not nan."""
    target = torch.tensor([[[0, 0, 0, 0], [0, 1, classes // 2, 0], [0, classes // 2, classes - 1, 0], [0, 0, 0, 0]]])
    x = scale * F.one_hot(target, classes).movedim(-1, 1).float() - scale / 2
    for loss, grad in (
        differentiate(fastloss.focal_loss, x, target),
        differentiate(fastloss.sigmoid_focal_loss, x, F.one_hot(target, classes).movedim(-1, 1), reduction="mean"),
    ):
        assert loss == 0 and not grad.any()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("alpha, gamma", [(-1.0, 0.0), (-1.0, 2.0), (0.0, 2.0), (0.58, 0.0), (0.58, 2.0), (1.0, 5.0)])
def test_torchvision_ratio(alpha, gamma, reduction):
    """pytorch/vision, test/test_ops.py, TestFocalLoss: binary cross entropy times alpha_t (1 - p_t)^gamma."""
    x, target = torch.linspace(-3, 3, 10).view(5, 2), (torch.arange(10) % 3 == 0).float().view(5, 2)
    p_t = torch.where(target == 1, x.sigmoid(), 1 - x.sigmoid())
    alpha_t = torch.where(target == 1, alpha, 1 - alpha) if alpha >= 0 else torch.ones(5, 2)
    bce = F.binary_cross_entropy_with_logits(x, target, reduction="none")
    expected = alpha_t * (1 - p_t) ** gamma * bce
    expected = {"none": expected, "mean": expected.mean(), "sum": expected.sum()}[reduction]
    got = fastloss.sigmoid_focal_loss(x, target, alpha=alpha, gamma=gamma, reduction=reduction)
    torch.testing.assert_close(got, expected)
