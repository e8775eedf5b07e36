"""Fixtures: the emulator, and the softmax kernels in it.

``FASTLOSS_PTXSIM`` names the folder that holds ptxsim; without it these tests are skipped.
"""

import os
import shutil
import sys

import pytest
from emulator import EmulatedSoftmax


@pytest.fixture(scope="session")
def ptxsim():
    folder = os.environ.get("FASTLOSS_PTXSIM")
    if not folder:
        pytest.skip("FASTLOSS_PTXSIM is not set: it names the folder that holds ptxsim, the emulator")
    if shutil.which("nvcc") is None:
        pytest.fail("FASTLOSS_PTXSIM is set, but nvcc, which makes what the emulator runs, is not on PATH")
    sys.path.insert(0, folder)
    import ptxsim

    return ptxsim


@pytest.fixture(scope="session")
def softmax(ptxsim):
    return EmulatedSoftmax(ptxsim, defines=["FASTLOSS_MAX_BLOCKS=16"])
