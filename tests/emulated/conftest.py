"""Fixtures: the emulator (tools/ptxsim), and the softmax kernels in it. Without nvcc these tests are skipped."""

import shutil

import pytest
from emulator import EmulatedSoftmax, import_ptxsim


@pytest.fixture(scope="session")
def ptxsim():
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc, which makes what the emulator runs, is not on PATH")
    return import_ptxsim()


@pytest.fixture(scope="session")
def softmax(ptxsim):
    return EmulatedSoftmax(ptxsim, defines=["FASTLOSS_MAX_BLOCKS=16"])
