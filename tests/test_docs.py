"""What the documentation promises: its examples run, and reference and public functions have the same signatures."""

import doctest
import inspect

import pytest
import torch

import fastloss
from fastloss import functional, linear, modules, reference


@pytest.mark.parametrize("module", [fastloss, functional, modules, linear])
def test_examples(module):
    result = doctest.testmod(module, extraglobs={"torch": torch, "fastloss": fastloss})
    assert result.attempted > 0 and result.failed == 0


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
