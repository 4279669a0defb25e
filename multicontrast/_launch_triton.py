"""How every Triton kernel of the library is launched: the device, the configuration, the options of the compiler.

Each kernel has a static table of configurations, one entry per architecture where that matters; nothing is measured at
run time unless asked for with ``MULTICONTRAST_AUTOTUNE=1``, when Triton's autotuner picks among the candidates at the
first launch of each kind. Importing this asks no driver anything; a launch does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

_AUTOTUNE = "MULTICONTRAST_AUTOTUNE"

# Contraction of a * b + c to one rounding is what the kernels' error bounds and counts of instructions assume; Triton
# announced that it will stop being the default.
_COMPILER_OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Tuning:
    """The configurations of one kernel.

    Args:
        default: for every architecture that has no entry of its own.
        by_architecture: ``"cuda:90"`` or ``"hip"`` to configuration.
        candidates: what the autotuner may choose from, when it is asked to.
    """

    default: triton.Config
    by_architecture: Mapping[str, triton.Config] = field(default_factory=dict)
    candidates: Sequence[triton.Config] = ()

    def __getitem__(self, architecture: str) -> triton.Config:
        family = architecture.split(":")[0]
        return self.by_architecture.get(architecture, self.by_architecture.get(family, self.default))


def config(num_warps: int, num_stages: int = 2, **blocks: Any) -> triton.Config:
    """Compile-time constants of a kernel, with the number of warps and of pipeline stages."""
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


def interpreted() -> bool:
    """Whether kernels run under ``TRITON_INTERPRET=1``."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def architecture() -> str:
    """``"cuda:90"``, ``"hip:gfx942"``, ...: where the next kernel will run. ``"interpreter"`` without a driver."""
    if interpreted():
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    return f"{target.backend}:{target.arch}"


def launch(
    kernel: Any,
    grid: Callable[[dict[str, Any]], tuple[int, ...]],
    tuning: Tuning,
    *arguments: Any,
    key: Sequence[str] = (),
    zeroed: Sequence[str] = (),
    **constants: Any,
) -> None:
    """Launches ``kernel`` on the device of its first argument.

    Args:
        grid: from the compile-time constants to the numbers of programs; the large axis first, the others stay small.
        tuning: the kernel's configurations.
        arguments: in the kernel's order, tensors and numbers.
        key: names of arguments whose values the autotuner should tell apart.
        zeroed: names of arguments the kernel adds to, which the autotuner must clear between its trials.
        constants: compile-time constants that are not the configuration's.
    """
    device = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(device):
        if os.environ.get(_AUTOTUNE, "0") == "1" and tuning.candidates and not interpreted():
            tuned = _autotuned(kernel, tuple(tuning.candidates), tuple(key), tuple(zeroed))
            tuned[grid](*arguments, **constants, **_COMPILER_OPTIONS)
            return
        chosen = tuning[architecture()]
        kernel[grid](
            *arguments,
            **constants,
            **chosen.kwargs,
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            **_COMPILER_OPTIONS,
        )


@functools.cache
def _autotuned(
    kernel: Any, candidates: tuple[triton.Config, ...], key: tuple[str, ...], zeroed: tuple[str, ...]
) -> Any:
    return triton.autotune(configs=list(candidates), key=list(key), reset_to_zero=list(zeroed))(kernel)
