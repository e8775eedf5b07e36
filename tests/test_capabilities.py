"""Every CPU instruction set that this machine can run passes the numeric tests; a forced one is the one in use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastloss

INFO = fastloss.build_info()
NUMERIC = [
    "test_asymmetric_loss.py",
    "test_cross_entropy.py",
    "test_determinism.py::test_rows_do_not_depend_on_their_neighbours",
    "test_equivalence.py",
    "test_focal_loss.py",
    "test_ghmc_loss.py",
    "test_gradient_norm_histogram.py",
    "test_half.py",
    "test_schedules.py",
    "test_sigmoid_focal_loss.py",
    "test_sigmoid_ghmc_loss.py",
]


def run_python(capability, *arguments):
    """On the CPU only, and on one thread: the blocks are the same, and nothing waits for a busy machine."""
    environment = {
        **os.environ,
        "FASTLOSS_CPU_CAPABILITY": capability,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True)


@pytest.mark.parametrize("capability", INFO["cpu_capabilities"])
def test_forced(capability):
    code = "import fastloss; print(fastloss.build_info()['cpu_capability'])"
    assert run_python(capability, "-c", code).stdout.strip() == capability


@pytest.mark.parametrize("capability", [name for name in INFO["cpu_capabilities"] if name != INFO["cpu_capability"]])
def test_numeric_tests(capability):
    result = run_python(capability, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *NUMERIC)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_unknown():
    result = run_python("avx1024", "-c", "import fastloss")
    assert result.returncode != 0
    assert (
        "ValueError: FASTLOSS_CPU_CAPABILITY is 'avx1024', but should be one of what this machine can run:"
        in result.stderr
    )


def test_the_best_is_chosen():
    assert "baseline" in INFO["cpu_capabilities"]
    if "FASTLOSS_CPU_CAPABILITY" not in os.environ:
        assert INFO["cpu_capability"] == INFO["cpu_capabilities"][-1]
