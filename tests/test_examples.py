"""Every example runs, with settings that take seconds. What they need is the extra `examples`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "detection.py": (["--steps", "2", "--size", "16"], "objects found"),
    "distributed.py": (["--batch", "8"], "2 ranks: the gradient is one process's"),
    "language_model.py": (["--vocabulary", "500", "--batch", "2", "--length", "16", "--steps", "2"], "linear_cross"),
    "lightning_module.py": (["--epochs", "1"], "balanced accuracy"),
    "multilabel.py": (["--samples", "200", "--epochs", "1", "--plot", "curves.png"], "average precision"),
    "segmentation.py": (["--steps", "2", "--size", "32"], "are background"),
    "token_classification.py": (["--sentences", "64", "--epochs", "1"], "F1 on new sentences"),
}
NEEDS = {
    "language_model.py": ["transformers"],
    "lightning_module.py": ["lightning", "sklearn"],
    "multilabel.py": ["matplotlib", "sklearn"],
    "token_classification.py": ["accelerate", "transformers"],
}


def test_every_example_is_tested():
    assert sorted(TINY) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", TINY)
def test_runs(name, tmp_path):
    for package in NEEDS.get(name, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} needs {package}: pip install '.[examples]'")
    settings, said = TINY[name]
    start = [sys.executable]
    if name == "distributed.py":
        start += ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    result = subprocess.run(
        [*start, str(EXAMPLES / name), *settings],
        cwd=tmp_path,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
