"""What the ops library wants of others: torch's stable ABI, the C and C++ libraries, and nothing of Python."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastloss

LIBRARY = Path(fastloss.__file__).with_name("libfastloss_ops.so")
AUDIT = shutil.which("torch-abi-audit", path=sysconfig.get_path("scripts"))


def symbols(*options):
    """Names with versions, such as exp@GLIBC_2.2.5; without those that may be missing."""
    lines = subprocess.run(["nm", "-D", *options, LIBRARY], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in lines.splitlines() if not re.search(r" w \S+$", line)]


@pytest.mark.skipif(AUDIT is None, reason="torch-abi-audit is not installed")
def test_torch_symbols_are_of_the_oldest_stable_abi():
    run = subprocess.run([sys.executable, AUDIT, "--check", "torch", LIBRARY], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert f"Min torch:   {fastloss.build_info()['torch_abi']}." in run.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not on PATH")
def test_no_other_symbols():
    """A symbol without a version, and not of torch's C interface, would come from whatever library happens to have it:
    Python, or the C++ standard library's templates that libtorch exports."""
    unversioned = [name for name in symbols("--undefined-only") if "@" not in name]
    assert len(unversioned) > 10
    assert [name for name in unversioned if not re.match("aoti_torch_|torch_", name)] == []


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not on PATH")
def test_exports_nothing_but_its_own():
    exported = symbols("--defined-only", "--extern-only")
    assert any("build_info" in name for name in exported)
    assert [name for name in exported if not name.startswith("_ZN8fastloss")] == []
