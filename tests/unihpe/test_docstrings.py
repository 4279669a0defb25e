"""Examples in the docstrings of the reference are true."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import unihpe_ref

ROOT = Path(unihpe_ref.__file__).parent
MODULES = sorted(
    ".".join(("unihpe_ref", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    torch.manual_seed(0)
    outcome = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch, "nn": nn})
    assert outcome.attempted
    assert outcome.failed == 0
