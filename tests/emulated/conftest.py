"""Fixtures: the emulator, and the kernels in it, on grids of few blocks so that small batches loop.

The emulator is in tools/ptxsim. Without nvcc these tests are skipped.
"""

import shutil

import pytest
from emulator import EmulatedScale, EmulatedSigmoid, EmulatedSoftmax, import_ptxsim


@pytest.fixture(scope="session")
def ptxsim():
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc, which makes what the emulator runs, is not on PATH")
    return import_ptxsim()


def limited(emulated, limit):
    emulated.limit_blocks(limit)
    yield emulated
    emulated.limit_blocks(None)


@pytest.fixture(scope="session")
def softmax_library(ptxsim):
    return EmulatedSoftmax(ptxsim)


@pytest.fixture
def softmax(softmax_library):
    yield from limited(softmax_library, 16)


@pytest.fixture
def uncapped(softmax_library):
    """The grids that users get: blocks have a cost of their own."""
    return softmax_library


@pytest.fixture(scope="session")
def sigmoid_library(ptxsim):
    return EmulatedSigmoid(ptxsim)


@pytest.fixture
def sigmoid(sigmoid_library):
    yield from limited(sigmoid_library, 3)


@pytest.fixture(scope="session")
def scale_library(ptxsim):
    return EmulatedScale(ptxsim)


@pytest.fixture
def scale(scale_library):
    yield from limited(scale_library, 3)
