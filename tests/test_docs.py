"""What the documentation promises: its examples run, its pages name everything public, its tables are the data's, and
reference and public functions have the same signatures. Examples in docs/ are run by `make docs`."""

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastloss
from fastloss import functional, linear, modules, reference


@pytest.mark.parametrize("module", [fastloss, functional, modules, linear])
def test_examples(module):
    result = doctest.testmod(module, extraglobs={"torch": torch, "fastloss": fastloss})
    assert result.attempted > 0 and result.failed == 0


ROOT = Path(__file__).parents[1]
FUNCTIONS = sorted(name for name in fastloss.__all__ if inspect.isfunction(getattr(fastloss, name)))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "build_info"])
def test_reference_has_the_public_signature(name):
    public, plain = (inspect.signature(getattr(module, name)).parameters for module in (fastloss, reference))
    assert [(p.name, p.kind, p.default) for p in public.values()] == [
        (p.name, p.kind, p.default) for p in plain.values()
    ]


def test_reference_has_every_loss():
    assert sorted(reference.__all__) == [name for name in FUNCTIONS if name != "build_info"]


@pytest.mark.parametrize("name", fastloss.__all__)
def test_everything_public_is_documented(name):
    thing = getattr(fastloss, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing) and name != "build_info":
        for parameter in inspect.signature(thing).parameters:
            assert parameter in inspect.getdoc(thing), f"{name} says nothing about {parameter}"


def test_the_api_reference_names_everything_public():
    pages = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    named = re.findall(r"auto(?:function|class|module):: fastloss\.(\w+)", pages)
    assert sorted(set(named) & set(fastloss.__all__)) == sorted(fastloss.__all__)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
def test_the_examples_of_the_readme_run(block):
    exec(block, {})


def test_the_table_of_the_readme_is_the_data():
    pytest.importorskip("matplotlib")
    # In a process of its own: benchmarks/ has modules of the names of those in tests/.
    code = """
import report
runs = report.kept_runs()
readme = open("../README.md").read()
assert report.with_table(readme, report.readme_table(report.medians(runs), report.title_of(runs))) == readme
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
