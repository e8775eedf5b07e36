"""Random calls of every loss against the oracle of oracle.py: `make fuzz` runs 20,000, `make test` some hundreds.

A failure prints the case: call check(...) with it, or check_linear(...).
"""

import inspect
import math
import os
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from cases import is_sigmoid
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from oracle import (
    LONG,
    asymmetric_decisions,
    bins_of,
    ghm_weights,
    on_an_edge,
    sigmoid_decisions,
    softmax_decisions,
)
from strategies import WEIGHTS, Case, Ghm, LinearCase, linear_cases, sigmoid_cases, softmax_cases

import fastloss
from fastloss import autograd, linear

CASES = int(os.environ.get("FASTLOSS_FUZZ_CASES", "0"))


def fuzz(share):
    """Settings of a test that gets this share of the cases: the same ones in every `make test`, others in every `make
    fuzz`."""
    return settings(
        max_examples=max(10, int(share * (CASES or 400))),
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def exact(tensor):
    return tensor.detach().double().numpy().astype(LONG)


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def compare(what, got, expected, error, unknown=False):
    """Within error (inf: anything goes), nan and inf at the same places. unknown: where it may be anything, too."""
    largest = torch.finfo(got.dtype).max
    got, expected = exact(got), np.asarray(expected, LONG)
    assert got.shape == expected.shape, f"{what} has shape {got.shape}, not {expected.shape}"
    # Near the largest number a factor may come before or after what goes beyond it.
    unknown = unknown | ((np.abs(expected) >= 0.1 * largest) & np.isfinite(expected))
    with np.errstate(invalid="ignore"):
        expected = np.where(np.abs(expected) > largest, np.sign(expected) * np.inf, expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected)) | unknown
    with np.errstate(invalid="ignore"):
        wrong = ~same & ~(np.abs(got - expected) <= error) & ~np.isinf(error)
    if wrong.any():
        i = np.unravel_index(np.argmax(wrong), wrong.shape) if wrong.ndim else ()
        at = f" at {tuple(map(int, i))}" if i else ""
        allowed = np.broadcast_to(error, wrong.shape)[i]
        raise AssertionError(f"{what}{at} is {got[i]}, but should be {expected[i]} within {allowed}")


class Call:
    """The tensors of a case, and what the oracle makes of them."""

    def __init__(self, case):
        self.case = case
        generator = case.generator()
        x = case.values(generator)
        self.view, self.buffer = case.strides.lay(x) if case.strides else (x, None)
        self.compute = compute_dtype(x.dtype)
        self.info = np.finfo(np.float64 if self.compute == torch.float64 else np.float32)
        self.settings = {"reduction": case.reduction, **case.settings}
        if is_sigmoid(case.name):
            self.make_sigmoid(generator)
        else:
            self.make_softmax(generator)
        self.make_upstream(generator)

    def rand(self, shape, generator):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def make_softmax(self, generator):
        case, view = self.case, self.view
        class_dim = min(view.dim() - 1, 1)
        classes = view.shape[class_dim]
        decisions = [n for d, n in enumerate(view.shape) if d != class_dim]
        target = torch.randint(classes, decisions, generator=generator)
        target = torch.where(self.rand(decisions, generator) < case.ignored, case.ignore_index, target)
        weight = None
        if case.weights != "none":
            weight = WEIGHTS[case.weights](self.rand([classes], generator)).to(self.compute)
        x = exact(view.movedim(class_dim, -1)).reshape(target.numel(), classes)
        y = target.reshape(-1).numpy().copy()
        with np.errstate(all="ignore"):
            found = softmax_decisions(
                x,
                np.where(y == case.ignore_index, 0, y),
                self.info,
                weight=None if weight is None else exact(weight),
                gamma=case.settings.get("gamma", 0.0),
                epsilon=case.settings.get("epsilon", 0.0),
                smoothing=case.settings.get("label_smoothing", 0.0),
            )
        if case.ghm:
            y[on_an_edge(found.norm, case.ghm.bins, self.info)] = case.ignore_index
        valid = y != case.ignore_index
        counted = valid.astype(LONG) if weight is None else np.where(valid, exact(weight)[np.where(valid, y, 0)], 0)
        if case.samples != "none":
            samples = self.settings["sample_weight"] = WEIGHTS[case.samples](self.rand(decisions, generator)).to(
                self.compute
            )
            each = exact(samples).reshape(-1)
            with np.errstate(all="ignore"):
                found = found.times(each, 2 * self.info.eps)
            counted = np.where(valid, counted * each, 0)
        self.target = torch.from_numpy(y).view(decisions).to(getattr(torch, case.target_dtype))
        self.extra = () if weight is None else (weight,)
        self.settings["ignore_index"] = case.ignore_index
        denominator = counted.sum()
        if case.denominator is not None:
            denominator = LONG(case.denominator)
            self.settings["denominator"] = case.denominator
        self.conclude(found, valid, denominator)
        self.derivative = lambda rows: torch.from_numpy(rows).view([*decisions, classes]).movedim(-1, class_dim)

    def make_sigmoid(self, generator):
        case, view = self.case, self.view
        target = torch.randint(2, view.shape, generator=generator).double()
        soft = self.rand(view.shape, generator)
        target = torch.where(self.rand(view.shape, generator) < case.soft, soft, target).to(self.compute)
        settings = dict(case.settings)
        broadcast = lambda kept: self.rand(  # noqa: E731
            [n if keep else 1 for n, keep in zip(view.shape, kept, strict=True)], generator
        ).to(self.compute)
        flat = lambda tensor: exact(tensor.expand(view.shape)).reshape(-1)  # noqa: E731
        if case.alphas is not None:
            self.settings["alpha"] = broadcast(case.alphas)
            settings["alpha"] = flat(self.settings["alpha"])
        decisions = asymmetric_decisions if case.name == "asymmetric_loss" else sigmoid_decisions
        with np.errstate(all="ignore"):
            found = decisions(flat(view), flat(target), self.info, **settings)
        valid = np.ones(view.numel(), bool)
        self.extra = ()
        if case.ghm:
            valid &= ~on_an_edge(found.norm, case.ghm.bins, self.info)
        if case.masked:
            valid &= self.rand(view.shape, generator).reshape(-1).numpy() < 0.7
        if case.masked or case.ghm:
            self.settings["mask"] = torch.from_numpy(valid).view(view.shape)
        counted = valid.astype(LONG)
        if case.weighted is not None:
            weight = self.settings["sample_weight"] = WEIGHTS[case.weights](broadcast(case.weighted).double()).to(
                self.compute
            )
            with np.errstate(all="ignore"):
                found = found.times(flat(weight), 0)
            counted = np.where(valid, flat(weight), 0)
        denominator = LONG(max(valid.sum(), 1)) if case.ghm else counted.sum()
        if case.denominator is not None:
            denominator = LONG(case.denominator)
            self.settings["denominator"] = case.denominator
        self.target = target
        self.conclude(found, valid, denominator)
        self.derivative = lambda rows: torch.from_numpy(rows).view(view.shape)

    def conclude(self, found, valid, denominator):
        """The loss, its gradient and their errors, from what every decision has."""
        self.valid = valid
        with np.errstate(all="ignore"):
            if self.case.ghm:
                ghm, (histogram, updates) = self.case.ghm, self.state()
                found = type(found)(*(part[valid] for part in vars(found).values()))
                self.bins = bins_of(found.norm, ghm.bins)
                weights, relative_error, *self.state_after = ghm_weights(
                    found.norm,
                    ghm.bins,
                    ghm.normalizer,
                    ghm.momentum,
                    ghm.bias_correction,
                    ghm.training,
                    histogram.numpy().astype(LONG),
                    updates.numpy(),
                )
                parts = found.times(weights**ghm.power, relative_error)
                found = type(found)(*(spread(part, valid) for part in vars(parts).values()))
            mean = self.case.reduction == "mean"
            divisor = denominator if mean else LONG(1)
            zero = ~valid
            value = np.where(zero, 0, found.value)
            largest = LONG(self.info.max)
            self.near_overflow = np.isfinite(value) & (np.abs(value) >= 0.1 * largest)
            value = np.where(np.abs(value) > largest, np.sign(value) * np.inf, value)
            error = np.where(zero, 0, found.value_error)
            if self.case.reduction == "none":
                self.loss, self.loss_error = value, error
            else:
                self.loss, self.loss_error = value.sum() / divisor, error.sum() / np.abs(divisor)
                self.near_overflow = self.near_overflow.any()
            self.loss_error = self.loss_error + self.info.eps * np.abs(self.loss) + self.info.tiny
            self.grad = np.where(zero[:, None], 0, found.derivative / divisor)
            self.grad_error = np.where(zero[:, None], 0, found.derivative_error / np.abs(divisor))
            # Nothing is defined but the loss where a mean is over weights that add up to 0.
            cancels = mean and not np.abs(divisor) > 0 and valid.any()
            self.unknown = valid[:, None] & np.array([[cancels]])

    def state(self):
        """(running_histogram, num_updates) before the call."""
        bins, history = self.case.ghm.bins, self.case.ghm.history
        seen = torch.arange(bins) % 3 if history else torch.zeros(bins, dtype=torch.int64)
        return (seen * 1.7).double(), seen

    def make_upstream(self, generator):
        case = self.case
        if case.reduction != "none":
            self.upstream = torch.tensor(case.upstream, dtype=self.compute)
            return
        upstream = (case.upstream * torch.randn(self.target.shape, generator=generator)).to(self.compute)
        # What comes from above to a decision that does not count is of no matter.
        valid = torch.from_numpy(self.valid).view(self.target.shape)
        self.upstream = torch.where(valid, upstream, math.inf)

    def keywords(self):
        """(keyword arguments, those of them that the call changes)."""
        settings, ghm, state = dict(self.settings), self.case.ghm, ()
        if ghm:
            settings |= {name: getattr(ghm, name) for name in ("bins", "normalizer", "momentum")}
            settings |= {name: getattr(ghm, name) for name in ("bias_correction", "training", "power")}
            if ghm.momentum > 0:
                state = settings["running_histogram"], settings["num_updates"] = self.state()
        return settings, state

    def run(self, view, inplace):
        """(loss, gradient or None, state after)."""
        settings, state = self.keywords()
        function = getattr(fastloss, self.case.name)
        event(autograd.schedule_of(function, view, self.target, *self.extra, **settings, inplace_backward=inplace))
        loss = function(view, self.target, *self.extra, **settings, inplace_backward=inplace)
        if view.requires_grad:
            loss.backward(self.upstream)
        return loss.detach(), view.grad, state

    def check_loss(self, loss):
        assert loss.dtype == self.compute
        compare("the loss", loss.reshape(self.loss.shape), self.loss, self.loss_error, self.near_overflow)

    def scaled_gradient(self):
        """(The gradient [N, C] with what comes from above, its error where it passes through the logits' dtype)."""
        info = torch.finfo(self.view.dtype)
        upstream = exact(self.upstream.reshape(-1, 1)) if self.upstream.dim() else exact(self.upstream)
        upstream = np.where(self.valid[:, None], upstream, 0)
        # Numbers of a sum, or those before they are divided, may be the smallest.
        smallest = 2 * LONG(info.smallest_normal) * np.maximum(np.abs(upstream).max(initial=1), 1)
        error = (self.grad_error + 4 * LONG(info.eps) * np.abs(self.grad)) * np.abs(upstream)
        return self.grad * upstream, error + smallest

    def check_gradient(self, grad):
        info = torch.finfo(grad.dtype)
        upstream = exact(self.upstream.reshape(-1, 1)) if self.upstream.dim() else exact(self.upstream)
        with np.errstate(all="ignore"):
            expected = np.where(self.grad == 0, 0, self.grad * upstream)
            # Rounded to its dtype when stored and when multiplied; to no less than its smallest number.
            rounding = LONG(info.eps) * np.abs(self.grad) + LONG(info.smallest_normal * info.eps)
            if grad.dtype == torch.bfloat16:
                rounding = rounding + LONG(info.smallest_normal)  # AVX512_BF16 has no subnormal numbers
            size = np.where(self.valid[:, None], np.abs(upstream), 0)
            error = (self.grad_error + rounding) * np.maximum(size, 1) + LONG(info.smallest_normal * info.eps)
            unknown = self.unknown | (np.abs(self.grad) > 0.99 * info.max)
        assert grad.shape == self.view.shape
        as_input = lambda rows: self.derivative(np.ascontiguousarray(rows.astype(np.float64))).numpy()  # noqa: E731
        places = self.derivative(np.array(np.broadcast_to(unknown, expected.shape))).numpy()
        compare("the gradient", grad, as_input(expected), as_input(error), places)

    def check_state(self, state):
        if state:
            for got, expected in zip(state, self.state_after, strict=True):
                np.testing.assert_allclose(got.numpy(), expected.astype(np.float64), rtol=1e-12)


def spread(part, valid):
    """The parts of the valid decisions among all of them."""
    whole = np.zeros((len(valid), *part.shape[1:]), part.dtype)
    whole[valid] = part
    return whole


def bits(tensor):
    """To the bit, but for the sign and the payload of a nan: which of two nans an addition passes on is its own."""
    if tensor.is_floating_point():
        tensor = torch.where(tensor.isnan(), float("nan"), tensor)
    return tensor.detach().clone().reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def check(case: Case):
    call = Call(case)
    inplace = case.gradient == "inplace"
    before = bits(call.buffer if call.buffer is not None else call.view.reshape(-1))
    with torch.no_grad():
        loss, _, state = call.run(call.view, inplace)  # without a gradient nothing is written
    call.check_loss(loss)
    call.check_state(state)
    view = call.view.detach().requires_grad_()
    overlaps = any(n > 1 and stride == 0 for n, stride in zip(view.shape, view.stride(), strict=True))
    if inplace and overlaps and view.numel():
        with pytest.raises(ValueError, match="input"):
            call.run(view, inplace)
    else:
        loss, grad, state = call.run(view, inplace)
        call.check_loss(loss)
        call.check_gradient(grad)
        call.check_state(state)
        if inplace and call.buffer is not None:
            outside = torch.ones(len(call.buffer), dtype=torch.bool)
            case.strides.view(outside, case.shape).fill_(False)
            assert call.buffer[outside].isnan().all(), "the gradient was written beside the logits"
    if not inplace:
        after = bits(call.buffer if call.buffer is not None else call.view.reshape(-1))
        assert torch.equal(after, before), "the logits changed"


@fuzz(0.6)
@given(softmax_cases())
def test_softmax(case):
    check(case)


@fuzz(0.4)
@given(sigmoid_cases())
def test_sigmoid(case):
    check(case)


def check_linear(case: LinearCase):
    """The loss of the exact logits, whose gradient goes on through the linear layer."""
    call = Call(case)
    settings, state = call.keywords()
    if call.extra:
        settings["weight"] = call.extra[0]
    x, W, b = (t.requires_grad_(want) for t, want in zip(case.factors(), case.wanted, strict=True))
    function = getattr(fastloss, "linear_" + case.name)
    # Small chunks, so that there are several.
    with (
        mock.patch.dict(linear._LEAST_ROWS, cpu=16),
        mock.patch.dict(linear._CHUNK_BYTES, cpu=0),
        mock.patch.dict(linear._BLOCK_CLASSES, cpu=16),
    ):
        loss = function(x, W, call.target, linear_bias=b if case.bias else None, **settings)
        call.check_loss(loss)
        call.check_state(state)
        if not loss.requires_grad:
            return
        loss.backward(call.upstream)
    if call.unknown.any():  # a mean over weights that add up to 0
        return
    grad, error = call.scaled_gradient()
    unit = 4 * LONG(torch.finfo(x.dtype).eps)

    def compare_product(what, got, product):
        """product: of numpy's arrays, that of the logits' gradient with one of the factors."""
        if got is not None:
            rounding = product(error, np.abs) + unit * product(np.abs(grad), np.abs)
            compare(f"the gradient of {what}", got, product(grad, np.asarray), rounding)

    compare_product("input", x.grad, lambda g, sign: g @ sign(exact(W)))
    compare_product("linear_weight", W.grad, lambda g, sign: g.T @ sign(exact(x)))
    compare_product("linear_bias", b.grad, lambda g, sign: g.sum(0))


@fuzz(0.2)
@given(linear_cases())
def test_linear(case):
    check_linear(case)


@fuzz(0.03)
@given(softmax_cases() | sigmoid_cases())
def test_large(case):
    """A batch of many times the same decisions: as large as it takes for stores past the caches, and several blocks."""
    assume(is_sigmoid(case.name) or len(case.shape) > 1)
    assume(case.shape and math.prod(case.shape))
    ghm = case.ghm and replace(case.ghm, momentum=0.0)
    call = Call(replace(case, reduction="sum", strides=None, ghm=ghm, upstream=1.0, denominator=None))
    each = case.shape[0]
    with np.errstate(all="ignore"):
        assume(not np.abs(call.loss) > 1e-9 * call.info.max)  # the sum of all would be infinite
    times = (25 << 20) // (call.view.numel() * call.view.element_size()) + 1
    call.target = call.target.repeat(times, *[1] * (call.target.dim() - 1))
    if is_sigmoid(case.name):
        for name, kept in (("mask", (True,)), ("alpha", case.alphas), ("sample_weight", case.weighted)):
            if name in call.settings and kept and kept[0]:
                extra = call.settings[name]
                call.settings[name] = extra.repeat(times, *[1] * (extra.dim() - 1))
    elif "sample_weight" in call.settings:
        weight = call.settings["sample_weight"]
        call.settings["sample_weight"] = weight.repeat(times, *[1] * (weight.dim() - 1))
    view = call.view.repeat(times, *[1] * (call.view.dim() - 1)).requires_grad_()
    loss, grad, _ = call.run(view, case.gradient == "inplace")
    call.loss_error = call.loss_error + 1e-12 * np.abs(call.loss)  # of adding up millions of losses in float64
    call.check_loss(loss / times)
    for first in (0, times // 2 * each, (times - 1) * each):
        call.check_gradient(grad[first : first + each])
    if case.name == "asymmetric_loss":  # a vector whose labels are alike is computed another way
        return
    assert torch.equal(bits(grad), bits(grad[:each].contiguous().repeat(times, *[1] * (grad.dim() - 1))))


@fuzz(0.1)
@given(softmax_cases())
def test_histogram(case):
    call = Call(replace(case, name="ghmc_loss", ghm=case.ghm or Ghm(), settings={}, weights="none", samples="none"))
    got = fastloss.gradient_norm_histogram(
        call.view, call.target, bins=call.case.ghm.bins, ignore_index=case.ignore_index
    )
    assert torch.equal(got, torch.from_numpy(np.bincount(call.bins, minlength=call.case.ghm.bins)))


def odd_values():
    """What a caller might pass by mistake, made anew each time."""
    tensors = {
        "torch.zeros(())": lambda: torch.zeros(()),
        "torch.zeros(0)": lambda: torch.zeros(0),
        "torch.zeros(3)": lambda: torch.zeros(3),
        "torch.zeros(2, 3)": lambda: torch.zeros(2, 3),
        "torch.zeros(2, 3).half()": lambda: torch.zeros(2, 3).half(),
        "torch.zeros(2, 3, 4)": lambda: torch.zeros(2, 3, 4),
        "torch.zeros(2, 3, dtype=torch.complex64)": lambda: torch.zeros(2, 3, dtype=torch.complex64),
        "torch.zeros(2, 3, dtype=torch.float8_e5m2)": lambda: torch.zeros(2, 3, dtype=torch.float8_e5m2),
        "torch.zeros(2, 3, device='meta')": lambda: torch.zeros(2, 3, device="meta"),
        "torch.zeros(2, 3).to_sparse()": lambda: torch.zeros(2, 3).to_sparse(),
        "torch.full((2, 3), math.nan)": lambda: torch.full((2, 3), math.nan),
        "torch.ones(2, 3, requires_grad=True)": lambda: torch.ones(2, 3, requires_grad=True),
        "torch.zeros(2, dtype=torch.int64)": lambda: torch.zeros(2, dtype=torch.int64),
        "torch.zeros(2, dtype=torch.int32)": lambda: torch.zeros(2, dtype=torch.int32),
        "torch.tensor([5, -7])": lambda: torch.tensor([5, -7]),
        "torch.tensor([2**63 - 1, -(2**63)])": lambda: torch.tensor([2**63 - 1, -(2**63)]),
        "torch.zeros(2, 3, dtype=torch.bool)": lambda: torch.zeros(2, 3, dtype=torch.bool),
        "torch.zeros(10, dtype=torch.float64)": lambda: torch.zeros(10, dtype=torch.float64),
        "torch.zeros(10, dtype=torch.int64)": lambda: torch.zeros(10, dtype=torch.int64),
    }
    plain = [None, True, 0, 1, -1, 10, 2**31, 2**63 - 1, -(2**63), 0.5, -0.5, math.nan, math.inf, 1e308]
    plain += ["mean", "none", "", "mean\0", "bins", [], {}, object]
    return {**tensors, **{repr(value): lambda value=value: value for value in plain}}


ODD = odd_values()
FUNCTIONS = ["cross_entropy", "focal_loss", "poly_loss", "ghmc_loss", "sigmoid_focal_loss", "sigmoid_ghmc_loss"]
LINEAR = ["linear_cross_entropy", "linear_focal_loss", "linear_ghmc_loss"]
FUNCTIONS += ["asymmetric_loss"]


@st.composite
def odd_calls(draw):
    """(function's name, {argument: key of ODD})."""
    name = draw(st.sampled_from([*FUNCTIONS, *LINEAR, "gradient_norm_histogram"]))
    tensors = ["input", "linear_weight", "target"] if name in LINEAR else ["input", "target"]
    parameters = [p for p in inspect.signature(getattr(fastloss, name)).parameters if p not in tensors]
    given = {tensor: draw(st.sampled_from(list(ODD))) for tensor in tensors}
    if draw(st.booleans()):  # else nearly every call is refused for these
        if "linear_weight" in given:
            given["linear_weight"] = draw(
                st.sampled_from(["torch.zeros(2, 3)", "torch.ones(2, 3, requires_grad=True)"])
            )
        given["input"] = "torch.ones(2, 3, requires_grad=True)" if draw(st.booleans()) else "torch.zeros(2, 3)"
        given["target"] = "torch.zeros(2, 3)" if is_sigmoid(name) else "torch.zeros(2, dtype=torch.int64)"
    for parameter in draw(st.lists(st.sampled_from(parameters), unique=True, max_size=4)):
        given[parameter] = draw(st.sampled_from(list(ODD)))
    return name, given


@fuzz(0.5)
@given(odd_calls())
def test_odd_arguments(call):
    """Refused with a sentence, or computed; never a crash, and nothing of the caller's is written."""
    name, words = call
    arguments = {parameter: ODD[word]() for parameter, word in words.items()}
    own = {p: a for p, a in arguments.items() if isinstance(a, torch.Tensor) and not a.is_meta and not a.is_sparse}
    own = {p: a for p, a in own.items() if p not in ("running_histogram", "num_updates")}
    if "inplace_backward" in arguments:
        own.pop("input", None)
    before = {parameter: bits(a) for parameter, a in own.items()}
    try:
        result = getattr(fastloss, name)(**arguments)
    except (ValueError, IndexError) as error:
        assert str(error).rstrip()[-1] in ".)", f"not a sentence: {error}"
        event("refused")
    except (RuntimeError, TypeError, NotImplementedError) as error:
        assert str(error)
        event(f"refused by torch: {type(error).__name__}")
    else:
        assert isinstance(result, tuple if arguments.get("return_lse") else torch.Tensor)
        event("computed")
    for parameter, a in own.items():
        assert torch.equal(bits(a), before[parameter]), f"{parameter} was written"
