"""Shared by the tests of the metrics."""

import metric_bases
import pytest


@pytest.fixture(params=["standalone", "torchmetrics"])
def classes(request, monkeypatch):
    """The accumulating classes, in turn without torchmetrics and as its own."""
    if request.param not in metric_bases.available():
        pytest.skip("torchmetrics is not installed")
    found = metric_bases.on(request.param)
    for name, module in found.files.items():  # pickles name a class by its module
        monkeypatch.setitem(__import__("sys").modules, name, module)
    return found
