"""What the tests share: the losses with settings worth testing, logits in every memory layout, and the accuracy rule.

The rule: the error against float64 is no larger than that of the same formula in PyTorch's float32, plus a few units
in the last place, plus the rounding of a half-precision gradient to its own dtype.
"""

import torch

import fastloss
from fastloss import reference
from fastloss.autograd import schedule_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = ["none", "mean", "sum"]
IGNORE = -100
GAMMAS = [0.0, 0.3, 0.5, 1.0, 2.0, 5.0]

# name: (function, settings, takes class weights)
SOFTMAX_LOSSES = {
    "cross_entropy": ("cross_entropy", {}, True),
    "smoothing": ("cross_entropy", {"label_smoothing": 0.1}, True),
    "focal_2": ("focal_loss", {"gamma": 2.0}, True),
    "focal_0.7": ("focal_loss", {"gamma": 0.7}, True),
    "poly": ("poly_loss", {"epsilon": 2.0}, True),
    "smoothing_extended": ("cross_entropy", {"label_smoothing": 0.1, "z_loss": 0.01, "logit_scale": 1.5}, True),
    "focal_extended": ("focal_loss", {"z_loss": 0.1, "logit_scale": 0.7, "softcap": 4.0}, True),
    "ghmc": ("ghmc_loss", {"bins": 10}, False),
    "ghmc_paper": ("ghmc_loss", {"bins": 3, "normalizer": "bins", "power": 0.5}, False),
}
SIGMOID_LOSSES = {
    "focal": ("sigmoid_focal_loss", {}),
    "focal_0.7": ("sigmoid_focal_loss", {"gamma": 0.7, "alpha": -1.0}),
    "focal_0": ("sigmoid_focal_loss", {"gamma": 0.0, "alpha": 0.6}),
    "asymmetric": ("asymmetric_loss", {}),
    "asymmetric_any": ("asymmetric_loss", {"gamma_positive": 0.7, "gamma_negative": 3.0, "margin": 0.1, "alpha": 0.4}),
    "two_gammas": ("asymmetric_loss", {"gamma_positive": 1.0, "gamma_negative": 2.5, "margin": 0.0}),
    "ghmc": ("sigmoid_ghmc_loss", {"bins": 10}),
    "ghmc_paper": ("sigmoid_ghmc_loss", {"bins": 3, "normalizer": "bins"}),
}


def is_sigmoid(name: str) -> bool:
    """Whether the decisions of the loss of this name are its logits."""
    return name.startswith(("sigmoid", "asymmetric"))


def first_wide() -> int:
    """From how many classes on the kernels walk a row of them, where the classes lie side by side; else they walk
    several decisions at a time."""

    def walks_rows(classes):
        x = torch.zeros(2, classes, requires_grad=True)
        return "rows" in schedule_of(fastloss.cross_entropy, x, torch.zeros(2, dtype=torch.int64))

    return next(classes for classes in range(1, 2**16) if walks_rows(classes))


# The widest rows that go several at a time, and wider ones that fill no whole number of vectors.
NARROW = first_wide() - 1
WIDE = NARROW + 20


def differentiate(function, input, *args, grad_output=None, **settings):
    """``(loss, gradient)`` of ``function(input, *args, **settings)``; input keeps its strides."""
    input = input.detach().requires_grad_()
    loss = function(input, *args, **settings)
    loss.backward(torch.ones_like(loss) if grad_output is None else grad_output)
    return loss.detach(), input.grad


def make_softmax(shape, dtype=torch.float32, device="cpu", ignored=0.2, target_dtype=torch.int64, scale=3.0):
    """``(logits, target)`` with some targets ignored."""
    decisions = shape[:1] * (len(shape) > 1) + shape[2:]
    classes = shape[min(len(shape) - 1, 1)]
    target = torch.randint(classes, decisions)
    target = torch.where(torch.rand(decisions) < ignored, IGNORE, target)
    return (scale * torch.randn(shape)).to(device, dtype), target.to(device, target_dtype)


def probabilities_like(x, dtype=None):
    """Class probabilities for logits x, some of them 0 and 1, laid out as x's shape is."""
    class_dim = min(x.dim() - 1, 1)
    target = (5 * torch.randn(x.shape, device=x.device, dtype=torch.float64)).softmax(class_dim)
    return torch.where(target > 0.99, 1, torch.where(target < 0.01, 0, target)).to(dtype or x.dtype)


def make_sigmoid(shape, dtype=torch.float32, device="cpu", soft=False):
    """``(logits, target)``; a soft target is a third 0, a third 1, a third between."""
    target = (torch.rand(shape) * 3 - 1).clamp(0, 1) if soft else torch.randint(2, shape).float()
    return (3 * torch.randn(shape)).to(device, dtype), target.to(device)


def clear_of_bin_edges(gradient_norm, bins):
    """True where rounding cannot move a gradient norm into the next bin."""
    scaled = gradient_norm.double() * bins
    edge = scaled.round()
    return ((scaled - edge).abs() > 1e-4) | (edge <= 0) | (edge >= bins)


def ignore_bin_edges(x, target, bins):
    """The target with decisions ignored whose bin depends on rounding."""
    class_dim = min(x.dim() - 1, 1)
    index = target.clamp(min=0).long().unsqueeze(class_dim)
    p = x.double().softmax(class_dim).gather(class_dim, index).squeeze(class_dim)
    return torch.where(clear_of_bin_edges(1 - p, bins), target, IGNORE).to(target.dtype)


def embed(x, shape, index):
    """x's values as ``buffer[index]`` of a buffer of that shape, whose other elements are nan, never to be read."""
    view = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device)[index]
    return view.copy_(x)


def layouts(x):
    """x's values in every kind of memory layout: (name, view)."""
    shape, last = list(x.shape), x.dim() - 1
    class_dim = min(last, 1)
    yield "contiguous", x.contiguous()
    yield "transposed", x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    yield "classes last", x.movedim(class_dim, -1).contiguous().movedim(-1, class_dim)
    yield "every second row", embed(x, [2 * shape[0], *shape[1:]], slice(None, None, 2))
    some = [slice(None)] * x.dim()
    some[class_dim] = slice(2, 2 + shape[class_dim])
    yield "some classes", embed(x, [n + 5 * (d == class_dim) for d, n in enumerate(shape)], tuple(some))
    some[class_dim] = slice(1, None, 3)
    yield "every third class", embed(x, [3 * n if d == class_dim else n for d, n in enumerate(shape)], tuple(some))
    yield "no two dimensions merge", embed(x, [n + 1 + d for d, n in enumerate(shape)], tuple(slice(n) for n in shape))
    yield "rows far apart", embed(x, [*shape[:-1], shape[-1] + 7], (..., slice(shape[-1])))


def at_offset(x, offset):
    """x's values, contiguous, ``offset`` elements into an allocation."""
    return embed(x.flatten(), [x.numel() + offset], slice(offset, None)).view(x.shape)


def check(name, x, target, *args, grad_output=None, **settings):
    """The accuracy rule for one call: loss and gradient against the reference in float64."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    compute = torch.float32 if half else x.dtype
    wide = [arg.double() if torch.is_tensor(arg) and arg.is_floating_point() else arg for arg in (target, *args)]
    up = None if grad_output is None else grad_output.double()

    loss, grad = differentiate(getattr(fastloss, name), x, target, *args, grad_output=grad_output, **settings)
    eager = differentiate(getattr(reference, name), x.to(compute), target, *args, grad_output=grad_output, **settings)
    truth = differentiate(getattr(reference, name), x.double(), *wide, grad_output=up, **settings)

    what = f"{name} {tuple(x.shape)} stride {x.stride()} {x.dtype} {settings}"
    assert loss.dtype == compute and grad.dtype == x.dtype, what
    assert loss.shape == truth[0].shape and grad.shape == x.shape, what
    if x.numel() == 0:
        torch.testing.assert_close(loss.double(), truth[0], equal_nan=True, msg=what)
        return
    # In float64 the truth has rounding errors too.
    unit = (16 if compute == torch.float64 else 6) * torch.finfo(compute).eps
    # Scaled logits are rounded once more; of a soft target as many terms are subtracted as there are classes.
    if "logit_scale" in settings or (target.is_floating_point() and not is_sigmoid(name)):
        unit *= 2
    if name == "asymmetric_loss":
        unit *= 1 + settings.get("gamma_negative", 4.0) / 4  # a power has gamma times the error of its base
    decisions = x.numel() if is_sigmoid(name) else target.numel()
    # A decision's nll has the rounding of its logits, its gradient that of a number in [-1, 1].
    assert_error(loss, eager[0], truth[0], unit * largest(x, truth[0], 1), 0, what + " loss")
    one = 1 / max(decisions, 1) if settings.get("reduction", "mean") == "mean" else 1.0
    if one < 1 and settings.get("sample_weight") is not None:  # a decision's share of the mean
        one = (settings["sample_weight"].max() / settings["sample_weight"].sum()).item()
    dtype_rounding = torch.finfo(x.dtype).eps / 2 if half else 0
    if half and grad_output is not None:
        dtype_rounding *= 2  # rounded once when stored, once when multiplied
    assert_error(grad, eager[1], truth[1], unit * largest(truth[1], one), dtype_rounding, what + " gradient")


def largest(*values):
    return max(torch.as_tensor(value).double().abs().nan_to_num(nan=0.0).max().item() for value in values)


def assert_error(got, eager, truth, absolute, relative, what):
    """No worse than eager's largest error, plus ``absolute``, plus ``relative`` of each element."""
    torch.testing.assert_close(got.isnan(), truth.isnan(), msg=f"{what}: nan in other places than the reference")
    error = (got.double() - truth).abs().nan_to_num(nan=0.0)
    smallest = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    allowed = (eager.double() - truth).abs().nan_to_num(nan=0.0).max() + absolute + relative * truth.abs() + smallest
    worst = (error - allowed.nan_to_num(nan=0.0)).max()
    assert worst <= 0, f"{what}: error {error.max():.3g}, {worst:.3g} more than allowed"
