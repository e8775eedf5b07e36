"""Hypothesis strategies for calls of the losses: shapes, strides, dtypes, targets, weights, values, settings.

A case is a few numbers and words, and prints as the code that makes it again; its tensors come from its seed.
"""

import math
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
REDUCTIONS = ["none", "mean", "sum"]
CLASSES = [1, 2, 3, 4, 5, 7, 8, 11, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 129, 131, 257]
SIZES = [0, 1, 1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 33]


def special_values(dtype):
    """Where formulas break: zeros, subnormal numbers, the largest ones, infinities, nan, the ends of exp's range."""
    info = torch.finfo(dtype)
    numbers = [0.0, info.smallest_normal, info.smallest_normal * info.eps, info.max, math.inf, 88.7, 104.0, 745.0, 1e4]
    return torch.tensor([sign * number for number in numbers for sign in (1, -1)] + [math.nan], dtype=torch.float64)


@dataclass(frozen=True)
class Strides:
    """How a tensor lies in memory: the order of its dimensions there, a step and a gap for each, where it begins; and
    which dimensions are the same memory (stride 0)."""

    order: tuple[int, ...]
    steps: tuple[int, ...]
    gaps: tuple[int, ...]
    offset: int = 0
    expanded: tuple[int, ...] = ()

    def memory(self, shape):
        """The sizes of the buffer's dimensions."""
        sizes = [min(n, 1) if d in self.expanded else n for d, n in enumerate(shape)]
        return [sizes[d] * self.steps[d] + self.gaps[d] for d in self.order]

    def view(self, buffer, shape):
        view = buffer[self.offset :].view(self.memory(shape)).permute([self.order.index(d) for d in range(len(shape))])
        for d, (n, step, gap) in enumerate(zip(shape, self.steps, self.gaps, strict=True)):
            n = min(n, 1) if d in self.expanded else n
            view = view.movedim(d, 0)[gap : gap + n * step : step].movedim(0, d)
        return view.expand(shape)

    def lay(self, x):
        """(view with x's values in this layout, the buffer that it is a part of). The rest of the buffer is nan."""
        buffer = torch.full([math.prod(self.memory(x.shape)) + self.offset], math.nan, dtype=x.dtype)
        view = once = self.view(buffer, x.shape)
        for d in self.expanded:
            x, once = x.narrow(d, 0, min(1, x.shape[d])), once.narrow(d, 0, min(1, x.shape[d]))
        once.copy_(x)
        return view, buffer


@dataclass(frozen=True)
class Ghm:
    bins: int = 10
    normalizer: str = "nonempty"
    momentum: float = 0.0
    bias_correction: bool = True
    power: float = 1.0
    training: bool = True
    history: bool = False  # of a state that has seen other batches


@dataclass(frozen=True)
class Case:
    """A call. The loss's name, and what it is called with."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    seed: int
    scale: float = 3.0
    special: float = 0.0  # share of the values that are special
    strides: Strides | None = None
    reduction: str = "mean"
    gradient: str = "new"  # or "inplace"
    upstream: float = 1.0  # grad_output; for reduction none: of random numbers of this size
    settings: dict = field(default_factory=dict)  # gamma, label_smoothing, alpha
    ghm: Ghm | None = None
    # softmax
    ignored: float = 0.0
    ignore_index: int = -100
    target_dtype: str = "int64"
    weights: str = "none"  # or ones of WEIGHTS
    samples: str = "none"  # sample weights, likewise
    # sigmoid
    soft: float = 0.0
    masked: bool = False
    alphas: tuple[bool, ...] | None = None  # alpha is a tensor, of these dimensions
    weighted: tuple[bool, ...] | None = None  # sample weights, of these dimensions; weights says which
    denominator: float | None = None

    def generator(self):
        return torch.Generator().manual_seed(self.seed)

    def values(self, generator):
        dtype = DTYPES[self.dtype]
        x = self.scale * torch.randn(self.shape, generator=generator, dtype=torch.float64)
        x = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        if self.special:
            specials = special_values(dtype)
            if self.soft:
                specials = specials[~specials.isinf()]
            chosen = specials[torch.randint(len(specials), self.shape, generator=generator)]
            x = torch.where(torch.rand(self.shape, generator=generator) < self.special, chosen, x)
        return x.to(dtype)


@dataclass(frozen=True)
class LinearCase(Case):
    """A call of a linear loss; name is that of the loss of the logits, shape theirs, [N, C]."""

    features: int = 1
    bias: bool = False
    wanted: tuple[bool, bool, bool] = (True, True, True)  # gradients of input, linear_weight, linear_bias

    def factors(self):
        """(input, linear_weight, linear_bias) whose logits every dtype holds exactly, sums on the way too."""
        generator, (N, C) = self.generator(), self.shape
        x = torch.randint(-1, 2, (N, self.features), generator=generator)
        W = torch.randint(-2, 3, (C, self.features), generator=generator) / 2 * self.scale
        b = torch.randint(-4, 5, (C,), generator=generator) / 2 * self.scale
        return [t.to(DTYPES[self.dtype]) for t in (x, W, b if self.bias else 0 * b)]

    def values(self, generator):
        x, W, b = (factor.double() for factor in self.factors())
        return (x @ W.t() + b).to(DTYPES[self.dtype])


# Each from random numbers in [0, 1).
WEIGHTS = {
    "positive": lambda u: u + 0.5,
    "zeros": lambda u: (u > 0.5) * (u + 0.5),
    "all zero": lambda u: 0 * u,
    "negative": lambda u: 2 * u - 1.2,
    "huge": lambda u: 1e25 * (u + 0.5),
    "tiny": lambda u: 1e-25 * (u + 0.5),
    "nan": lambda u: torch.where(u > 0.8, math.nan, u + 0.5),
}


@st.composite
def strides_of(draw, shape):
    dims = len(shape)
    return Strides(
        order=tuple(draw(st.permutations(range(dims)))),
        steps=tuple(draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))),
        gaps=tuple(draw(st.lists(st.integers(0, 2), min_size=dims, max_size=dims))),
        offset=draw(st.integers(0, 17)),
        expanded=tuple(d for d in range(dims) if draw(st.integers(0, 15)) == 15),
    )


def ghms():
    return st.builds(
        Ghm,
        bins=st.sampled_from([10, 1, 2, 3, 30, 100, 1000]),
        normalizer=st.sampled_from(["nonempty", "bins"]),
        momentum=st.sampled_from([0.0, 0.0, 0.5, 0.9, 0.999]),
        bias_correction=st.booleans(),
        power=st.sampled_from([1.0, 1.0, 0.5, 0.0, 0.3]),
        training=st.booleans(),
        history=st.booleans(),
    )


def gammas():
    return st.one_of(st.sampled_from([2.0, 0.0, 0.5, 1.0, 1e-3, 0.999, 16.0]), st.floats(0, 16, width=16))


@st.composite
def shapes(draw, classes):
    """At most some thousands of logits in up to 8 dimensions; dimensions of 0 and 1 among them."""
    budget = 8192 // max(classes or 1, 1)
    shape = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 0, 2, 3, 4, 7]))):
        size = draw(st.sampled_from([n for n in SIZES if n <= budget]))
        budget //= max(size, 1)
        shape.append(size)
    if classes is not None:
        shape.insert(1 if shape else 0, classes)
    return tuple(shape)


@st.composite
def calls(draw, name):
    """What the losses have in common, as keywords of Case."""
    sigmoid = name.startswith("sigmoid")
    shape = draw(shapes(None if sigmoid else draw(st.sampled_from(CLASSES))))
    reduction = draw(st.sampled_from(REDUCTIONS))
    return {
        "name": name,
        "shape": shape,
        "dtype": draw(st.sampled_from(list(DTYPES))),
        "seed": draw(st.integers(0, 2**31)),
        "scale": draw(st.sampled_from([3.0, 0.0, 0.1, 30.0, 1000.0])),
        "special": draw(st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0])),
        "strides": draw(st.none() | strides_of(shape)),
        "reduction": reduction,
        "gradient": draw(st.sampled_from(["new", "inplace"])),
        "upstream": draw(st.sampled_from([1.0, 1.0, -2.5, 0.0, 64.0])),
        "ghm": draw(ghms()) if "ghmc" in name else None,
    }


def loss_settings(draw, name):
    """The parameter of a softmax loss."""
    settings = {}
    if name == "cross_entropy":
        settings["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1, width=16))
    elif name == "focal_loss":
        settings["gamma"] = draw(gammas())
    elif name == "poly_loss":
        settings["epsilon"] = draw(st.sampled_from([1.0, -1.0, 0.0, 1000.0]) | st.floats(-1, 8, width=16))
    return settings


@st.composite
def softmax_cases(draw):
    name = draw(st.sampled_from(["cross_entropy", "focal_loss", "poly_loss", "ghmc_loss"]))
    settings = loss_settings(draw, name)
    call = draw(calls(name))
    classes = call["shape"][min(len(call["shape"]) - 1, 1)]
    target_dtype = draw(st.sampled_from(["int64", "int32"]))
    factors = {}
    if name != "ghmc_loss":
        factors["weights"] = draw(st.sampled_from(["none", "none", *WEIGHTS]))
        factors["samples"] = draw(st.sampled_from(["none", "none", "positive", "zeros", "all zero", "negative", "nan"]))
    # As for the sigmoid losses.
    if call["reduction"] == "mean" and factors.get("weights") not in ("huge", "tiny"):
        factors["denominator"] = draw(st.sampled_from([None, None, 7.0, 0.25, -3.0]))
    far = (2**60, -(2**60)) if target_dtype == "int64" else (2**31 - 1, -(2**31))
    return Case(
        **call,
        settings=settings,
        ignored=draw(st.sampled_from([0.0, 0.2, 0.9, 1.0])),
        ignore_index=draw(st.sampled_from([-100, -1, 0, classes - 1, classes, *far])),
        target_dtype=target_dtype,
        **factors,
    )


@st.composite
def linear_cases(draw):
    name = draw(st.sampled_from(["cross_entropy", "focal_loss", "ghmc_loss"]))
    return LinearCase(
        name=name,
        shape=(draw(st.sampled_from([*SIZES, 48, 100])), draw(st.sampled_from(CLASSES))),
        dtype=draw(st.sampled_from(list(DTYPES))),
        seed=draw(st.integers(0, 2**31)),
        scale=draw(st.sampled_from([1.0, 0.0, 1 / 16, 4.0])),
        reduction=draw(st.sampled_from(REDUCTIONS)),
        upstream=draw(st.sampled_from([1.0, -2.5, 0.0, 64.0])),
        settings=loss_settings(draw, name),
        ghm=draw(ghms()) if name == "ghmc_loss" else None,
        ignored=draw(st.sampled_from([0.0, 0.2, 0.9, 1.0])),
        ignore_index=draw(st.sampled_from([-100, 0, 2**60])),
        weights="none" if name == "ghmc_loss" else draw(st.sampled_from(["none", "positive", "zeros", "negative"])),
        features=draw(st.integers(1, 16)),
        bias=draw(st.booleans()),
        wanted=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
    )


@st.composite
def sigmoid_cases(draw):
    name = draw(st.sampled_from(["sigmoid_focal_loss", "asymmetric_loss", "sigmoid_ghmc_loss"]))
    alpha = draw(st.sampled_from([0.25, -1.0, 0.0, 1.0]) | st.floats(0, 1, width=16))
    settings = {}
    if name == "sigmoid_focal_loss":
        settings = {"alpha": alpha, "gamma": draw(gammas())}
    elif name == "asymmetric_loss":
        settings = {"alpha": alpha, "gamma_positive": draw(gammas()), "gamma_negative": draw(gammas())}
        settings["margin"] = draw(st.sampled_from([0.05, 0.0, 0.3, 1.0]) | st.floats(2**-10, 1, width=16))
    call = draw(calls(name))
    factors = {}
    if name != "sigmoid_ghmc_loss":
        some = st.tuples(*[st.booleans() for _ in call["shape"]])
        factors = {"alphas": draw(st.none() | some), "weighted": draw(st.none() | some)}
        factors["weights"] = draw(st.sampled_from([*WEIGHTS])) if factors["weighted"] is not None else "none"
        # Weights of 1e25 over 7 are beyond float16, whose gradients are stored times what the largest needs.
        if call["reduction"] == "mean" and factors["weights"] not in ("huge", "tiny"):
            factors["denominator"] = draw(st.sampled_from([None, None, 7.0, 0.25, -3.0]))
    return Case(
        **call,
        **factors,
        settings=settings,
        soft=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        masked=draw(st.booleans()),
    )
