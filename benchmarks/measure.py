"""Checks the contenders of a case against float64, then times them in turns, so that all meet the same machine."""

import gc
import time
from functools import partial

import torch
from cases import Case, Contender, contenders, make_inputs, reference_loss
from torch import Tensor

MAX_ROUNDS = 2000
FIRST_CALL = ", first call"


def measure(case: Case, max_time: float, min_rounds: int) -> dict[str, list[float]]:
    """Seconds of every call of each contender, and of a copy and an exponential of the logits.

    In a round every contender has its turn: two calls. The first finds the caches full of what the others left there,
    as in the middle of a training step; it is timed as the contender's name + FIRST_CALL. The second finds its own
    code and data there, as where a benchmark calls one function in a loop; it counts as the contender's time. The
    rounds take ``max_time`` seconds together, but are at least ``min_rounds``.
    """
    if case.device == "cpu":
        torch.set_num_threads(case.threads)
    torch._dynamo.reset()  # the code it generates is for a number of threads
    logits, target = make_inputs(case)
    shared = logits.clone().requires_grad_()
    output = torch.empty_like(logits)
    steps = {
        "copy": (lambda: output.copy_(logits), None),
        "exp": (lambda: torch.exp(logits, out=output), None),
    }
    expected = {}
    for contender in contenders(case):
        private = contender.destroys_logits or contender.dtype != case.dtype
        leaf = logits.to(contender.dtype, copy=True).requires_grad_() if private else shared
        step = forward_backward(contender, leaf, target)
        if contender.dtype not in expected:
            expected[contender.dtype] = float64_gradient(case, leaf, target)
        check(case, contender, step(), *expected[contender.dtype])
        restore = partial(leaf.detach().copy_, logits) if contender.destroys_logits else None
        steps[contender.name] = (lambda step=step: step()[1], restore)
    del expected
    return time_in_turns(steps, Clock(case.device), max_time, min_rounds)


def forward_backward(contender: Contender, leaf: Tensor, target: Tensor):
    def step():
        loss = contender.loss(leaf, target)
        return loss, torch.autograd.grad(loss, leaf)[0]

    return step


def float64_gradient(case: Case, leaf: Tensor, target: Tensor) -> tuple[float, Tensor]:
    exact = leaf.detach().double().requires_grad_()
    loss = reference_loss(case)(exact, target.double() if target.is_floating_point() else target)
    return loss.item(), torch.autograd.grad(loss, exact)[0].float()


def check(case: Case, contender: Contender, result: tuple[Tensor, Tensor], expected_loss: float, expected: Tensor):
    """Relative error of the loss and, in the Euclidean norm, of the gradient."""
    loss, grad = result
    if contender.dtype == torch.bfloat16:
        tolerance = 0.03  # PyTorch's cross entropy rounds the log-probabilities
    elif "GHM-C" in case.loss:
        tolerance = 0.01  # rounding may move a decision into the next bin
    else:
        tolerance = 1e-4
    loss_error = abs(loss.item() / contender.scale / expected_loss - 1)
    grad_error = ((grad.float() / contender.scale - expected).norm() / expected.norm()).item()
    assert grad.dtype == contender.dtype
    assert loss_error <= tolerance, f"{contender.name}: loss {loss.item()}, expected {expected_loss}"
    assert grad_error <= tolerance, f"{contender.name}: relative error {grad_error} of the gradient"


class Clock:
    """Seconds that a call takes; on CUDA between two events, with the L2 cache flushed before."""

    def __init__(self, device: str):
        self.device = device
        if device == "cuda":
            self.larger_than_cache = torch.empty(512 << 20, dtype=torch.uint8, device=device)
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self, step) -> float:
        if self.device == "cpu":
            start = time.perf_counter_ns()
            step()
            return (time.perf_counter_ns() - start) * 1e-9
        start, end = self.events
        self.larger_than_cache.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


def time_in_turns(steps: dict, clock: Clock, max_time: float, min_rounds: int) -> dict[str, list[float]]:
    def one_round():
        seconds = {}
        for name, (step, restore) in steps.items():
            for call in (name + FIRST_CALL, name):
                if restore:
                    restore()
                seconds[call] = clock(step)
        return seconds

    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            one_round()
        rounds = int(max_time / sum(one_round().values()))
        samples = [one_round() for _ in range(min(max(rounds, min_rounds), MAX_ROUNDS))]
    finally:
        gc.enable()
    return {name: [seconds[name] for seconds in samples] for name in samples[0]}
