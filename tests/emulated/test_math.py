"""csrc/losses/math.h keeps to the errors that it states, with the GPU's instructions as wrong as they may be."""

import numpy as np
import pytest
from emulator import CSRC

SOURCE = """
#include "losses/math.h"
#define EACH(name, call)                                                          \\
  __global__ void name(const float* x, float* y, int n) {                         \\
    int i = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x; \\
    for (; i < n; i += step) y[i] = fastloss::call;                               \\
  }
EACH(log1p_unit, log1p_unit(x[i]))
EACH(exp_nonpositive, exp_nonpositive(x[i]))
EACH(divide, divide(3.0f, x[i]))
"""


def floats(low, high, count=100_000):
    """Floats spread evenly over all there are between two positive ones."""
    bits = np.linspace(np.float32(low).view(np.uint32), np.float32(high).view(np.uint32), count).astype(np.uint32)
    return bits.view(np.float32)


# name: (arguments, the truth in double, its relative error allowed: a constant, and for each unit of the argument)
FUNCTIONS = {
    "log1p_unit": (np.append(floats(1e-30, 1), np.float32(0)), np.log1p, 2.1 * 2**-23, 0),
    "exp_nonpositive": (np.append(-floats(1e-30, 87), np.float32(0)), np.exp, 4e-7, 8e-8),
    "divide": (floats(2**-124, 2**124), lambda x: 3 / x, 4e-7, 0),
}


@pytest.fixture(scope="module")
def module(ptxsim):
    return ptxsim.compile(SOURCE, includes=[str(CSRC)], flags=["--expt-relaxed-constexpr"], std="c++20")


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error(ptxsim, module, name, noise):
    x, truth, constant, slope = FUNCTIONS[name]
    y = np.empty_like(x)
    module[name].launch(grid=4, block=256, args=[x, ptxsim.Out(y), len(x)], approx_noise=noise)
    exact = truth(x.astype(np.float64))
    error = np.abs(y - exact)
    allowed = (constant + slope * np.abs(x)) * np.abs(exact) + 2.0**-126  # below that a result is 0
    assert (error <= allowed).all(), (x[np.argmax(error / allowed)], (error / allowed).max())


def test_nan(ptxsim, module):
    for name in FUNCTIONS:
        x = np.full(32, np.nan, np.float32)
        y = np.zeros_like(x)
        module[name].launch(grid=1, block=32, args=[x, ptxsim.Out(y), 32])
        assert np.isnan(y).all(), name
