"""tools/gpu_check.py, which is for GPUs: what it would run there is rehearsed on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "gpu_check.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="the sources are not beside the tests")
def test_rehearsal(tmp_path):
    command = [sys.executable, SCRIPT, "--out", tmp_path, "--steps", "environment", "memcheck"]
    run = subprocess.run(command, capture_output=True, text=True)
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert run.returncode == 0, run.stdout + run.stderr + logs
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["environment"]["fastloss"]["version"] and results["memcheck"]["how"] == "passed"
    assert "| memcheck | passed |" in (tmp_path / "results.md").read_text()
