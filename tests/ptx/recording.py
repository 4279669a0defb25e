"""Compiles a launch for an architecture: Triton's whole just-in-time path without running the kernel.

The result is the code that a GPU would run: specialised for sizes and strides, with the
configuration of that architecture. Works with every Triton from 3.2 on.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
import triton
from triton.runtime.cache import get_cache_manager

from .compilation import SHARED_MEMORY_LIMIT, gpu_target


class Compiled(NamedTuple):
    """One kernel as compiled; what :func:`ptx.compilation.resources` and :func:`~ptx.compilation.opcodes` take."""

    name: str
    asm: dict[str, str | bytes]
    metadata: SimpleNamespace
    grid: tuple[int, int, int]
    constants: dict[str, object]  # compile-time constants by name


def compiled_by(call: Callable[[], object], target: str) -> list[Compiled]:
    """The kernels that ``call`` launches on ``target``, such as ``"cuda:90"`` or ``"hip:gfx942"``, in order.

    The results of ``call`` hold whatever was in memory. Triton's driver is put back afterwards.
    """
    found: list[Compiled] = []
    if target.startswith("hip"):
        os.environ.setdefault("TRITON_HIP_LLD_PATH", _linker())
    with driven_by(_Driver(target, found)):
        call()
    return found


def supports(target: str) -> bool:
    """Whether this Triton can compile for a target at all: its compiler and its assembler know the name."""
    try:
        compiled_by(lambda: _nothing[(1,)](torch.zeros(1)), target)
    except Exception:  # by version ptxas's, LLVM's, or Triton's own
        return False
    return True


@triton.jit
def _nothing(x_ptr):
    pass


@contextmanager
def driven_by(driver: object) -> Iterator[None]:
    """Another driver for a while. Triton's own is not asked for: it may not be there."""
    place = "_active" if hasattr(triton.runtime.driver, "_active") else "active"  # a proxy of its own until Triton 3.5
    before = getattr(triton.runtime.driver, place)
    setattr(triton.runtime.driver, place, driver)
    try:
        yield
    finally:
        setattr(triton.runtime.driver, place, before)


@functools.cache
def _linker() -> str:
    """A linker for wheels of Triton that bring none for AMD: it copies, since only the assembly is looked at."""
    import shutil

    if found := next(Path(triton.__file__).parent.rglob("ld.lld"), None) or shutil.which("ld.lld"):
        return str(found)
    path = Path(tempfile.mkdtemp()) / "ld.lld"
    path.write_text(
        '#!/bin/sh\nfor word; do\n  case $last in -o) cp "$input" "$word" ;; esac\n'
        '  case $word in -*|gnu) ;; *) [ "$last" = -o ] || input=$word ;; esac\n  last=$word\ndone\n'
    )
    path.chmod(0o755)
    return str(path)


def loaded(name: str, registers: int = 0, spilled: int = 0, threads: int = 1024) -> tuple[object, ...]:
    """What ``load_binary`` returns; Triton asks for the number of threads since 3.4."""
    handles = (name, name, registers, spilled)
    return handles if triton_version() < (3, 4) else (*handles, threads)


def triton_version() -> tuple[int, int]:
    """Such as ``(3, 8)``."""
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


class _Driver:
    """As much of a driver as a launch asks for."""

    def __init__(self, target: str, found: list[Compiled]) -> None:
        self.target, self.name = gpu_target(target), target
        self.utils = self
        self.launcher_cls = lambda source, metadata: _Launcher(source, metadata, found)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self  # compiled kernels are kept for each device, and each recording is to see its own

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED_MEMORY_LIMIT[self.name]}

    def load_binary(self, name, kernel, shared, device):
        return loaded(name)

    def unload_module(self, module):
        pass


class _Launcher:
    def __init__(self, source, metadata, found):
        group = get_cache_manager(metadata.hash).get_group(source.name[:150] + ".json")
        files = {Path(path).suffix[1:]: Path(path) for path in group.values()}
        binary = ("cubin", "hsaco")
        self.asm = {
            kind: file.read_bytes() if kind in binary else file.read_text()
            for kind, file in files.items()
            if kind in (*binary, "ptx", "amdgcn")
        }
        self.metadata, self.found = metadata, found
        names = source.fn.arg_names
        constants = getattr(source, "constants", {}).items()  # by name until Triton 3.2, by place since
        self.constants = {
            key if isinstance(key, str) else names[key[0]]: value
            for key, value in constants
            if isinstance(key, str) or len(key) == 1
        }

    def __call__(self, gx, gy, gz, *_):
        meta = self.metadata
        kept = SimpleNamespace(shared=meta.shared, num_warps=meta.num_warps, num_stages=meta.num_stages)
        self.found.append(Compiled(meta.name, self.asm, kept, (gx, gy, gz), self.constants))
