"""Bad arguments: the documented error type, a sentence that names the argument, and nothing written."""

import pytest
import torch
from cases import IGNORE, is_sigmoid

import fastloss

NAN = float("nan")


def softmax_arguments():
    return {"input": torch.randn(4, 3), "target": torch.tensor([0, 1, 2, IGNORE])}


def sigmoid_arguments():
    return {"input": torch.randn(4, 3), "target": torch.rand(4, 3)}


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def state(histogram=None, updates=None):
    return {
        "momentum": 0.9,
        "running_histogram": zeros(10, dtype=torch.float64) if histogram is None else histogram,
        "num_updates": zeros(10, dtype=torch.int64) if updates is None else updates,
    }


INPUTS = [  # of every loss
    ({"input": zeros(4, 3, dtype=torch.int64)}, r"input has dtype Long, but should have float32"),
    ({"input": zeros(4, 3, dtype=torch.complex64)}, r"input has dtype ComplexFloat, but should"),
    ({"input": zeros(4, 3).to(torch.float8_e4m3fn)}, r"input has dtype Float8_e4m3fn, but should"),
    ({"reduction": "batchmean"}, r"reduction is 'batchmean', but should be 'none', 'mean' or 'sum'"),
    ({"reduction": 1}, r"reduction is 1, but should be 'none', 'mean' or 'sum'"),
    ({"target": zeros(5, dtype=torch.int64)}, r"target has shape \(5,\), but should"),
    ({"target": torch.zeros(4, device="meta", dtype=torch.int64)}, r"target"),
]
SOFTMAX = [
    ({"input": zeros()}, r"input has shape \(\), but should be \(C\), \(N, C\) or"),
    ({"input": zeros(4, 0)}, r"input has shape \(4, 0\), but should have at least one class"),
    ({"input": zeros(0)}, r"input has shape \(0,\), but should have at least one class"),
    ({"input": zeros(4, 3, 2)}, r"target has shape \(4,\), but should be \(4, 2\): input's shape \(4, 3, 2\) without"),
    ({"input": zeros(3)}, r"target has shape \(4,\), but should be \(\)"),
    ({"target": zeros(4, dtype=torch.int8)}, r"target has dtype Char, but should"),
    ({"target": zeros(4, dtype=torch.bool)}, r"target has dtype Bool, but should"),
    ({"target": zeros(4, 3, dtype=torch.int64)}, r"target has shape \(4, 3\), but should be \(4,\)"),
]
OUT_OF_RANGE = [
    ({"target": torch.tensor([0, 3, 1, 2])}, r"target has the value 3 \(at flat index 1\), but should be in \[0, 3\)"),
    (
        {"target": torch.tensor([0, 1, 2, -1])},
        r"target has the value -1 \(at flat index 3\), but .* ignore_index \(-100\)",
    ),
    ({"target": torch.tensor([0, 1, 2**40, 0])}, r"target has the value 1099511627776 "),
    ({"target": torch.tensor([0, -(2**31), 2, 0], dtype=torch.int32)}, r"target has the value -2147483648 "),
    ({"ignore_index": 5}, r"target has the value -100 \(at flat index 3\), but should be .* ignore_index \(5\)"),
]
WEIGHTS = [
    ({"weight": zeros(4)}, r"weight has shape \(4,\), but should be \(3,\): one number a class"),
    ({"weight": zeros(3, 1)}, r"weight has shape \(3, 1\), but should be \(3,\)"),
    ({"weight": torch.tensor(1.0)}, r"weight has shape \(\), but should be \(3,\)"),
    ({"weight": zeros(3, dtype=torch.int64)}, r"weight has dtype Long, but should"),
    ({"weight": zeros(3).requires_grad_()}, r"weight .*requires grad"),
    ({"weight": torch.zeros(3, device="meta")}, r"weight"),
]
SIGMOID = [
    ({"target": zeros(4)}, r"target has shape \(4,\), but should have input's shape \(4, 3\)"),
    ({"target": zeros(4, 3).requires_grad_()}, r"target.* requires grad"),
    ({"target": zeros(4, 3, dtype=torch.complex64)}, r"target has dtype ComplexFloat"),
]
GAMMA = [({"gamma": value}, r"gamma is .*, but should be in \[0, 16\]") for value in (-1.0, -1e-9, 16.5, NAN)]
EPSILON = [({"epsilon": value}, r"epsilon is .*, but should be in \[-1, 10000\]") for value in (-1.1, 1e5, NAN)]
SMOOTHING = [
    ({"label_smoothing": value}, r"label_smoothing is .*, but should be in \[0, 1\]") for value in (1.5, -0.1, NAN)
]
BINS = [({"bins": value}, r"bins is -?\d+, but should be in \[1, 65536\]") for value in (0, -3, 65537, 2**40)]
MOMENTUM = [({"momentum": value}, r"momentum is .*, but should be in \[0, 1\)") for value in (1.0, -0.1, 2.0, NAN)]
GHM = [
    *BINS,
    *MOMENTUM,
    ({"normalizer": "paper"}, r"normalizer is 'paper', but should be 'nonempty' or 'bins'"),
    ({"momentum": 0.9}, r"momentum is 0.9, so running_histogram and num_updates should be tensors of shape \(10,\)"),
    ({**state(), "num_updates": None}, r"running_histogram and num_updates should be tensors"),
    (state(histogram=zeros(10)), r"running_histogram has shape \(10,\) and dtype Float, but should .*Double"),
    (state(histogram=zeros(9, dtype=torch.float64)), r"running_histogram has shape \(9,\)"),
    (state(histogram=zeros(20, dtype=torch.float64)[::2]), r"running_histogram .* should be contiguous"),
    (state(updates=zeros(10, dtype=torch.int32)), r"num_updates has shape \(10,\) and dtype Int, but should .*Long"),
]
MASKS = [
    ({"mask": zeros(4)}, r"mask has shape \(4,\), but should have input's shape \(4, 3\)"),
    ({"mask": torch.zeros(4, 3, device="meta")}, r"mask"),
]
ALPHA = [
    *[({"alpha": value}, r"alpha is .*, but should be in") for value in (1.5, NAN)],
    (
        {"alpha": torch.tensor([0.5, 1.5, 0.5])},
        r"alpha has the value 1.5 \(at flat index 1\), but should be in \[0, 1\]",
    ),
    ({"alpha": torch.full((4, 1), -0.5)}, r"alpha has the value -0.5 \(at flat index 0\)"),
    ({"alpha": zeros(4)}, r"alpha has shape \(4,\), but should broadcast to input's shape \(4, 3\)"),
    ({"alpha": zeros(1, 4, 3)}, r"alpha has shape \(1, 4, 3\), but should broadcast to input's shape \(4, 3\)"),
    ({"alpha": zeros(3, dtype=torch.int64)}, r"alpha has dtype Long, but should"),
    ({"alpha": zeros(3).requires_grad_()}, r"alpha requires grad"),
]
FACTORS = [
    (
        {"sample_weight": zeros(2, 3)},
        r"sample_weight has shape \(2, 3\), but should broadcast to input's shape \(4, 3\)",
    ),
    ({"sample_weight": zeros(4, 3, 1)}, r"sample_weight has shape \(4, 3, 1\), but should broadcast"),
    ({"sample_weight": zeros(3, dtype=torch.bool)}, r"sample_weight has dtype Bool, but should"),
    ({"sample_weight": zeros(3).requires_grad_()}, r"sample_weight requires grad"),
    ({"sample_weight": torch.zeros(4, 1, device="meta")}, r"sample_weight"),
    ({"denominator": zeros(2), "reduction": "mean"}, r"denominator has shape \(2,\) .* should be a number or a tensor"),
    ({"denominator": "batch", "reduction": "mean"}, r"denominator is of type str, but should be a tensor"),
    (
        {"denominator": 3, "reduction": "sum"},
        r"denominator is given, but should be None: it is what reduction='mean' divides by",
    ),
    ({"denominator": zeros(), "reduction": "none"}, r"denominator is given, but should be None"),
    ({"denominator": torch.tensor(1.0, requires_grad=True), "reduction": "mean"}, r"denominator requires grad"),
]
MARGIN = [({"margin": value}, r"margin is .*, but should be in \[0, 1\]") for value in (-0.1, 1.1, NAN)]
GAMMAS = [
    *[
        ({"gamma": value}, r"gamma is \(.*\), but should be a number, or two")
        for value in ((), (1.0,), (1.0, 2.0, 3.0))
    ],
    ({"gamma": (-1.0, 2.0)}, r"gamma_positive is -1, but should be in \[0, 16\]"),
    ({"gamma": (1.0, 17.0)}, r"gamma_negative is 17, but should be in \[0, 16\]"),
]
ASYMMETRIC = [
    ({name: value}, rf"{name} is .*, but should be in \[0, 16\]")
    for name in ("gamma_positive", "gamma_negative")
    for value in (-1.0, 16.5, NAN)
]

VALUE_ERRORS = {
    "cross_entropy": INPUTS + SOFTMAX + WEIGHTS + SMOOTHING,
    "focal_loss": INPUTS + SOFTMAX + WEIGHTS + GAMMA,
    "poly_loss": INPUTS + SOFTMAX + WEIGHTS + EPSILON,
    "ghmc_loss": INPUTS + SOFTMAX + GHM,
    "sigmoid_focal_loss": INPUTS + SIGMOID + GAMMA + GAMMAS + MARGIN + ALPHA + MASKS + FACTORS,
    "asymmetric_loss": INPUTS + SIGMOID + ASYMMETRIC + MARGIN + ALPHA + MASKS + FACTORS,
    "sigmoid_ghmc_loss": INPUTS + SIGMOID + GHM + MASKS,
}
CASES = [(name, change, ValueError, words) for name, cases in VALUE_ERRORS.items() for change, words in cases]
for name in ("cross_entropy", "focal_loss", "poly_loss", "ghmc_loss"):
    CASES += [(name, change, IndexError, words) for change, words in OUT_OF_RANGE]


@pytest.mark.parametrize("name, change, error, words", CASES, ids=[f"{case[0]}: {case[3]}" for case in CASES])
def test_refusal(name, change, error, words):
    """With and without a gradient, also where it would be written over the logits."""
    make = sigmoid_arguments if is_sigmoid(name) else softmax_arguments
    for requires_grad, inplace in ((False, False), (True, False), (True, True)):
        arguments = {**make(), **change}
        logits = arguments["input"] = arguments["input"].clone()
        if logits.is_floating_point() and logits.dtype.itemsize > 1:
            logits.requires_grad_(requires_grad)
        before = logits.detach().clone()
        tensors = [arg for arg in arguments.values() if isinstance(arg, torch.Tensor) and not arg.is_meta]
        copies = [tensor.detach().clone() for tensor in tensors]
        with pytest.raises(error, match=words):
            getattr(fastloss, name)(**arguments, inplace_backward=inplace)
        assert torch.equal(logits.detach().view(torch.uint8), before.view(torch.uint8)) if before.dim() else True
        assert all(map(torch.equal, tensors, copies)), "a refused call wrote to its arguments"


@pytest.mark.parametrize("change, error, words", [
    *[(change, ValueError, words) for change, words in SOFTMAX + BINS],
    *[(change, IndexError, words) for change, words in OUT_OF_RANGE],
])  # fmt: skip
def test_histogram_refusal(change, error, words):
    with pytest.raises(error, match=words):
        fastloss.gradient_norm_histogram(**{**softmax_arguments(), **change})


def test_the_state_stays_after_a_refusal():
    """A target out of range is found before the running statistics move."""
    settings = {**state(), **softmax_arguments(), "target": torch.tensor([0, 1, 2, 3])}
    with pytest.raises(IndexError):
        fastloss.ghmc_loss(**settings)
    assert settings["running_histogram"].eq(0).all() and settings["num_updates"].eq(0).all()


def test_target_out_of_range_far_into_a_batch():
    """The scan is parallel; the first bad target is the one that is named."""
    target = torch.zeros(200_000, dtype=torch.int64)
    target[[70_001, 150_000]] = torch.tensor([7, 8])
    with pytest.raises(IndexError, match=r"the value 7 \(at flat index 70001\)"):
        fastloss.cross_entropy(torch.zeros(200_000, 2), target)


def test_types_are_refused_by_name():
    """What no overload takes is refused by torch, which names the argument."""
    x, target = softmax_arguments().values()
    for name, value in (("label_smoothing", "much"), ("ignore_index", 1.5)):
        with pytest.raises((RuntimeError, TypeError), match=name):
            fastloss.cross_entropy(x, target, **{name: value})


def test_what_is_no_tensor_is_refused_by_name():
    x, target = softmax_arguments().values()
    for name in ("cross_entropy", "focal_loss", "poly_loss", "ghmc_loss", "sigmoid_focal_loss", "sigmoid_ghmc_loss"):
        function = getattr(fastloss, name)
        with pytest.raises(ValueError, match=r"input is of type list, but should be a tensor"):
            function([[1.0, 2.0]], target)
        with pytest.raises(ValueError, match=r"input is None, but should be a tensor"):
            function(None, target)
        with pytest.raises(ValueError, match=r"target is None, but should be a tensor"):
            function(x, None)
    with pytest.raises(ValueError, match=r"weight is of type list, but should be a tensor or None"):
        fastloss.cross_entropy(x, target, [1.0, 2.0, 3.0])
    for mask, words in (
        (3, "mask is of type int"),
        (torch.ones(4, 3, dtype=torch.complex64), "mask has dtype torch.comp"),
    ):
        with pytest.raises(ValueError, match=words):
            fastloss.sigmoid_ghmc_loss(x, torch.zeros(4, 3), mask)


@pytest.mark.parametrize("name", ["ghmc_loss", "sigmoid_ghmc_loss"])
def test_state_that_no_training_step_leaves_is_refused(name):
    make = sigmoid_arguments if is_sigmoid(name) else softmax_arguments
    one = torch.ones(10, dtype=torch.int64)
    cases = [
        (state(updates=-one), r"num_updates has the value -1 at bin 0, but should not be negative"),
        (
            state(updates=one),
            r"running_histogram has the value 0 at bin 0 after 1 updates, but should be finite, and pos",
        ),
        (
            state(histogram=torch.full((10,), NAN, dtype=torch.float64)),
            r"running_histogram has the value -?nan at bin 0",
        ),
        (state(histogram=torch.full((10,), -1.0, dtype=torch.float64)), r"running_histogram has the value -1 at bin 0"),
        (state(histogram=torch.ones(10, dtype=torch.float64, requires_grad=True)), r"running_histogram requires grad"),
        (state(histogram=torch.zeros(10, dtype=torch.float64, device="meta")), r"running_histogram is on"),
        (state(updates=one.to("meta")), r"num_updates is on"),
    ]
    for settings, words in cases:
        with pytest.raises(ValueError, match=words):
            getattr(fastloss, name)(**make(), **settings)


def test_histogram_of_a_target_elsewhere():
    x, target = softmax_arguments().values()
    with pytest.raises(ValueError, match=r"target is on (meta|another device)"):
        fastloss.gradient_norm_histogram(x, target.to("meta"))


def test_more_dimensions_than_a_kernel_walks():
    x = torch.randn([2] * 11).permute(*reversed(range(11)))
    with pytest.raises(ValueError, match=r"input has more than 8 dimensions that cannot be merged; call contiguous"):
        fastloss.cross_entropy(x, torch.zeros([2] * 10, dtype=torch.int64))
    fastloss.cross_entropy(x.contiguous(), torch.zeros([2] * 10, dtype=torch.int64))


def test_device_mismatch(device):
    if device == "cpu":
        pytest.skip("needs a second device; the meta device above stands in for it")
    x, target = softmax_arguments().values()
    with pytest.raises((ValueError, RuntimeError), match="target is on another device"):
        fastloss.cross_entropy(x.to(device), target)
