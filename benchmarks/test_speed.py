"""Forward + backward of every loss, shape, precision and thread count: one benchmark for each contender.

A case's contenders are timed in turns when its first benchmark runs. pytest-benchmark would time them one after the
other, while a shared machine changes its speed; so it is given the measured times through its clock.
"""

import os
from functools import lru_cache

import pytest
import torch
from bars import BARS, QUICK
from cases import all_cases, contenders, dtype_name
from measure import FIRST_CALL, measure

import fastloss

MALLOC = "recycled" if os.environ.get("MALLOC_MMAP_THRESHOLD_") else "default"

replayed_time = 0.0


def clock():
    return replayed_time


def parameters():
    for case in all_cases():
        key = (case.loss, case.shape)
        headline = case.dtype == torch.float32 and case.threads != 1
        marks = [pytest.mark.bar] * (headline and key in BARS) + [pytest.mark.quick] * (headline and key in QUICK)
        names = ["copy", "exp", *(contender.name for contender in contenders(case))]
        for name in [*names, *(name + FIRST_CALL for name in ("torch.compile", "fastloss"))]:
            yield pytest.param(case, name, id=f"{case}-{name.replace(' ', '_')}", marks=marks)


measure_once = lru_cache(maxsize=1)(measure)  # a case's contenders follow one another


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("case, contender", parameters())
def test_forward_backward(case, contender, benchmark, request):
    def replay():
        global replayed_time
        replayed_time += next(remaining)

    option = request.config.getoption
    samples = measure_once(case, float(option("benchmark_max_time")), option("benchmark_min_rounds"))[contender]
    remaining = iter(samples)
    benchmark.group = f"{case} {MALLOC} malloc"
    benchmark.extra_info.update(
        contender=contender,
        loss=case.loss,
        shape=case.shape,
        dtype=dtype_name(case.dtype),
        device=torch.cuda.get_device_name() if case.device == "cuda" else "cpu",
        threads=case.threads,
        malloc=MALLOC,
        cpu_capability=fastloss.build_info()["cpu_capability"],
        fastloss=fastloss.__version__,
        torch=torch.__version__,
    )
    benchmark.pedantic(replay, rounds=len(samples))
