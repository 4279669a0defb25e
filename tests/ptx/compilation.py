"""Compiles Triton kernels ahead of time, for NVIDIA and AMD targets, and reads what came out. No driver needed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NVIDIA_TARGETS = ("cuda:80", "cuda:90", "cuda:100", "cuda:120")
TARGETS = (*NVIDIA_TARGETS, "hip:gfx942")

# Bytes of shared memory a block may use.
SHARED_MEMORY_LIMIT = {
    "cuda:80": 166_912,
    "cuda:86": 101_376,
    "cuda:89": 101_376,
    "cuda:90": 232_448,
    "cuda:100": 232_448,
    "cuda:120": 101_376,
    "hip:gfx942": 65_536,
}


class Resources(NamedTuple):
    """What one compiled kernel uses."""

    registers: int
    spilled: int  # bytes of stack on NVIDIA, spilled vector registers on AMD
    shared: int  # bytes


def compile_kernel(kernel, arguments: dict, constants: dict, target: str, *, num_warps=4, num_stages=2, **options):
    """Compiles a ``@triton.jit`` function as its launch would.

    Args:
        arguments: Triton types by name, such as ``"*fp32"`` or ``"i32"``; ``"i32:16"`` promises a multiple of 16, as
            the launch does for sizes that are. Pointers always are aligned to 16 bytes.
        constants: compile-time constants, strides of 1 among them.
    """
    names = kernel.arg_names
    missing = [name for name in names if name not in arguments and name not in constants]
    if missing:
        raise TypeError(f"{kernel.__name__} needs types or values for {missing}")
    signature = {name: "constexpr" if name in constants else arguments[name].split(":")[0] for name in names}
    aligned = [name for name in names if signature[name].startswith("*") or arguments.get(name, "").endswith(":16")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items() if name in names},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    settings = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True, **options}
    return triton.compile(source, target=_target(target), options=settings)


def _target(name: str) -> GPUTarget:
    kind, architecture = name.split(":")
    if kind == "cuda":
        return GPUTarget("cuda", int(architecture), 32)
    return GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)


def resources(compiled) -> Resources:
    """Registers, spills and shared memory of a compiled kernel."""
    if "cubin" in compiled.asm:
        report = _tool("cuobjdump", ["--dump-resource-usage"], compiled.asm["cubin"])
        registers, stack, static = (
            int(number) for number in re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", report).groups()
        )
        return Resources(registers, stack, static + compiled.metadata.shared)
    text = compiled.asm["amdgcn"]
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text).group(1))
    spilled = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text).group(1))
    return Resources(registers, spilled, compiled.metadata.shared)


def opcodes(compiled) -> Counter:
    """Machine instructions of an NVIDIA kernel by name, padding excluded; loops are counted once."""
    text = _tool("nvdisasm", ["-c"], compiled.asm["cubin"])
    found = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text, re.MULTILINE)
    count = Counter(found)
    count.pop("NOP", None)  # padding
    return count


def _tool(name: str, options: list[str], binary: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [NVIDIA_TOOLS / name, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
