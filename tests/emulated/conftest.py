"""Fixtures: the emulator, and the softmax kernels in it.

``FASTLOSS_PTXSIM`` names the folder that holds ptxsim; without it these tests are skipped.
"""

import shutil

import pytest
from emulator import EmulatedSoftmax, import_ptxsim


@pytest.fixture(scope="session")
def ptxsim():
    module = import_ptxsim()
    if module is None:
        pytest.skip("FASTLOSS_PTXSIM is not set: it names the folder that holds ptxsim, the emulator")
    if shutil.which("nvcc") is None:
        pytest.fail("FASTLOSS_PTXSIM is set, but nvcc, which makes what the emulator runs, is not on PATH")
    return module


@pytest.fixture(scope="session")
def softmax(ptxsim):
    return EmulatedSoftmax(ptxsim, defines=["FASTLOSS_MAX_BLOCKS=16"])
