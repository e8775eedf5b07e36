"""Cross entropy, focal loss and GHM-C for PyTorch, loss and gradient in one fused pass.

>>> import torch, fastloss
>>> logits = torch.randn(6400, 11, requires_grad=True)
>>> target = torch.randint(11, (6400,))
>>> fastloss.focal_loss(logits, target, gamma=2.0).backward()
"""

from pathlib import Path
from typing import Any

import torch

try:
    torch.ops.load_library(Path(__file__).with_name("libfastloss_ops.so"))
    from . import _C  # which is linked to it
except (ImportError, OSError) as error:
    raise ImportError(
        f"fastloss's compiled library cannot be loaded ({error}); build it with 'pip install .' in the folder of the "
        "sources (or 'pip install --no-build-isolation -e .' to work on them). It needs torch >= 2.10."
    ) from error

from . import reference
from .functional import (
    asymmetric_loss,
    cross_entropy,
    focal_loss,
    ghmc_loss,
    gradient_norm_histogram,
    poly_loss,
    sigmoid_focal_loss,
    sigmoid_ghmc_loss,
)
from .linear import (
    LinearCrossEntropyLoss,
    LinearFocalLoss,
    LinearGHMCLoss,
    linear_cross_entropy,
    linear_focal_loss,
    linear_ghmc_loss,
)
from .modules import (
    AsymmetricLoss,
    CrossEntropyLoss,
    FocalLoss,
    GHMCLoss,
    PolyLoss,
    SigmoidFocalLoss,
    SigmoidGHMCLoss,
)


def build_info() -> dict[str, Any]:
    """What was built and what was chosen: version, compiler, the torch ABI, CPU instruction sets built and in use, the
    CUDA version (None: built without) and GPU architectures.

    >>> sorted(fastloss.build_info())
    ['compiler', 'cpu_capabilities', 'cpu_capability', 'cuda_architectures', 'cuda_version', 'torch_abi', 'version']
    """
    return _C.build_info()


__version__: str = build_info()["version"]

__all__ = [
    "AsymmetricLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "GHMCLoss",
    "LinearCrossEntropyLoss",
    "LinearFocalLoss",
    "LinearGHMCLoss",
    "PolyLoss",
    "SigmoidFocalLoss",
    "SigmoidGHMCLoss",
    "asymmetric_loss",
    "build_info",
    "cross_entropy",
    "focal_loss",
    "ghmc_loss",
    "gradient_norm_histogram",
    "linear_cross_entropy",
    "linear_focal_loss",
    "linear_ghmc_loss",
    "poly_loss",
    "reference",
    "sigmoid_focal_loss",
    "sigmoid_ghmc_loss",
]
