"""The mathematics on vectors (csrc/cpu/kernels, csrc/losses) keeps the errors written beside each function.

lanes_accuracy.cpp measures them. The instruction set in use is measured on every float, the others on a sample.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastloss

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX", "c++")
INFO = fastloss.build_info()
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
BF16 = ["-mavx512bf16", "-DFASTLOSS_AVX512_BF16"]
LANES_AND_FLAGS = {
    "baseline": (4, []),
    "avx2": (8, AVX2),
    "avx512": (16, AVX2 + AVX512),
    "avx512_bf16": (16, AVX2 + AVX512 + BF16),
}


def documented_errors():
    """The ULP in the comment above each function: {name: (constant, factor of gamma)}."""
    text = "".join((ROOT / "csrc" / name).read_text() for name in ("cpu/kernels/vector_math.h", "losses/math.h"))
    bound = re.compile(
        r"^//.*: ([\d.]+)(?: \+ ([\d.]+) gamma)? ULP.*\n(?:template <class V>\n)?FASTLOSS_\w+ (?:f32|V) (\w+)\(", re.M
    )
    return {name: (float(constant), float(factor or 0)) for constant, factor, name in bound.findall(text)}


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler: {COMPILER} was not found")
@pytest.mark.skipif(not (ROOT / "csrc/cpu/kernels").exists(), reason="the sources are not beside the tests")
@pytest.mark.parametrize("capability", INFO["cpu_capabilities"])
def test_errors_are_as_documented(capability, tmp_path):
    lanes, flags = LANES_AND_FLAGS[capability]
    program = tmp_path / "lanes_accuracy"
    define = [f"-DFASTLOSS_LANES={lanes}", "-DFASTLOSS_ISA=measured"]
    command = [
        COMPILER,
        "-std=c++20",
        "-O3",
        "-Wno-psabi",
        "-pthread",
        *flags,
        *define,
        "-I",
        ROOT / "csrc/cpu/kernels",
    ]
    subprocess.run([*command, ROOT / "tests/lanes_accuracy.cpp", "-o", program], check=True)
    stride = 1 if capability == INFO["cpu_capability"] else 61
    lines = subprocess.run([program, str(stride)], check=True, capture_output=True, text=True).stdout.splitlines()
    wrong = [line for line in lines if " wrong " in line]
    assert not wrong
    documented = documented_errors()
    assert set(documented) == {line.split()[0] for line in lines}, (
        "a function is measured but not documented, or not measured"
    )
    for line in lines:
        name, gamma, ulp, _ = line.split()
        constant, factor = documented[name]
        assert float(ulp) <= constant + factor * float(gamma), line
