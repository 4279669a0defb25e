"""The accumulating classes on both of their bases: torchmetrics' ``Metric``, and our own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

from multicontrast import metrics

_FILES = ("_accumulate", "classes")
_NAMES = [f"multicontrast.metrics.{file}" for file in _FILES]
CLASSES = (
    "MPJPE", "PAMPJPE", "NMPJPE", "EPE", "MPJVE", "AccelError", "MinMPJPE",
    "PCK", "PCKh", "PCK3D", "AUC3D", "CPS", "OKS",
)  # fmt: skip


def modules(base: str) -> dict[str, ModuleType]:
    """The files of the classes, imported with torchmetrics or as if it were not installed."""
    names = [*_NAMES, "torchmetrics"] if base == "standalone" else _NAMES
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        if base == "standalone":
            sys.modules["torchmetrics"] = None  # type: ignore[assignment]
        return {name: importlib.import_module(name) for name in _NAMES}
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


_KEPT: dict[str, dict[str, ModuleType]] = {}


def on(base: str) -> SimpleNamespace:
    """Every class of `multicontrast.metrics` on that base, and the files they come from."""
    if base not in _KEPT:
        _KEPT[base] = modules(base)
    files = _KEPT[base]
    accumulate, classes = files.values()
    found = {name: getattr(classes, name) for name in CLASSES}
    return SimpleNamespace(
        **found,
        PoseMetric=classes.PoseMetric,
        RetrievalRecall=classes.RetrievalRecall,
        ModalityAlignment=classes.ModalityAlignment,
        accumulate=accumulate,
        files=files,
        function=lambda name: getattr(metrics, name),
    )


def available() -> list[str]:
    """torchmetrics, where it is installed, and none."""
    return ["standalone", *(["torchmetrics"] if importlib.util.find_spec("torchmetrics") else [])]
