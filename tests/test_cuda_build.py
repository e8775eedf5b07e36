"""What nvcc makes of the CUDA kernels: no register spills, 16-byte accesses; what a build without CUDA does instead."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_ops import calls

import fastloss

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "tools" / "cuda_report.py"


# Ampere's and Hopper's: ptxas decides differently for each. `python tools/cuda_report.py` does them all.
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.skipif(not REPORT.exists(), reason="the sources are not beside the tests")
@pytest.mark.parametrize("architecture", ["8.0", "9.0"])
def test_no_spills_and_16_byte_accesses(architecture):
    run = subprocess.run([sys.executable, REPORT, architecture], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for kernel in ("softmax_tile", "softmax_rows", "softmax_positions", "sigmoid_loss", "scale_dense"):
        assert f" {kernel}<float" in run.stdout


def test_loads_before_torch(tmp_path):
    subprocess.run([sys.executable, "-c", "import fastloss"], cwd=tmp_path, check=True)


def test_build_info():
    info = fastloss.build_info()
    if info["cuda_version"] is None:
        assert info["cuda_architectures"] == []
    else:
        assert float(info["cuda_version"]) >= 12 and info["cuda_architectures"]


@pytest.mark.parametrize(
    "name", ["cross_entropy", "focal_loss", "ghmc_loss", "sigmoid_focal_loss", "sigmoid_ghmc_loss"]
)
def test_cuda_ops_are_registered(name):
    """Where there is no GPU, too: by ops.cu, or by the file that says what is missing."""
    registered = re.search(
        r"^CUDA: registered at \S*/(\S+):", torch._C._dispatch_dump(f"fastloss::{name}"), re.M
    ).group(1)
    assert registered == ("missing.cpp" if fastloss.build_info()["cuda_version"] is None else "ops.cu")


@pytest.mark.skipif(fastloss.build_info()["cuda_version"] is not None, reason="built with CUDA")
def test_a_build_without_cuda_says_what_to_do():
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)  # what a CUDA tensor would choose
    for op, args in calls((4, 3), torch.float32, "cpu"):
        with pytest.raises(RuntimeError, match=r"built without CUDA; build it where nvcc is, with 'FASTLOSS_CUDA=1"):
            op.redispatch(cuda, *args)
