"""Which back end runs an operation: plain PyTorch, or Triton.

``MULTICONTRAST_BACKEND`` is read at each call:

``auto``
    Triton for CUDA tensors where Triton is installed, plain PyTorch elsewhere. The default.
``torch``
    Plain PyTorch everywhere.
``triton``
    The Triton kernels everywhere. On CPU tensors they are launched all the same, which works under
    ``TRITON_INTERPRET=1`` and with a driver that runs compiled kernels on the CPU.

Nothing here imports Triton or asks a driver anything; the kernels' own modules do, when first used.
"""

from __future__ import annotations

import functools
import importlib.util
import os

from torch import Tensor

from multicontrast._checks import check_choice

_VARIABLE = "MULTICONTRAST_BACKEND"
_CHOICES = ("auto", "torch", "triton")


@functools.cache
def has_triton() -> bool:
    """Whether the package ``triton`` is installed (not whether a device can run it)."""
    return importlib.util.find_spec("triton") is not None


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on ``tensor`` should launch the Triton kernels."""
    choice = os.environ.get(_VARIABLE, "auto")
    if choice == "auto":
        return tensor.is_cuda and has_triton()
    check_choice("multicontrast", _VARIABLE, choice, _CHOICES)
    if choice == "triton" and not has_triton():
        raise ModuleNotFoundError(
            f"{_VARIABLE}=triton needs the package `triton`; it is not installed. "
            "Install `multicontrast[triton]`, or set the variable to `auto`."
        )
    return choice == "triton"
