"""Compiles Triton kernels ahead of time, for NVIDIA and AMD targets, and reads the result. Needs no driver."""

from __future__ import annotations

import functools
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
EVERY_TARGET = (
    "cuda:75", "cuda:80", "cuda:86", "cuda:89", "cuda:90", "cuda:100", "cuda:120",
    "hip:gfx90a", "hip:gfx942", "hip:gfx1100",
)  # fmt: skip

# Bytes of shared memory a block may use.
SHARED_MEMORY_LIMIT = {
    "cuda:75": 65_536,
    "cuda:80": 166_912,
    "cuda:86": 101_376,
    "cuda:89": 101_376,
    "cuda:90": 232_448,
    "cuda:100": 232_448,
    "cuda:103": 232_448,
    "cuda:120": 101_376,
    "cuda:121": 101_376,
    "hip:gfx90a": 65_536,
    "hip:gfx942": 65_536,
    "hip:gfx950": 163_840,
    "hip:gfx1100": 65_536,
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
    return triton.compile(source, target=gpu_target(target), options=settings)


def gpu_target(name: str) -> GPUTarget:
    """Triton's description of ``"cuda:80"``, ``"hip:gfx942"``, ..."""
    kind, architecture = name.split(":")
    if kind == "cuda":
        return GPUTarget("cuda", int(architecture), 32)
    return GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)


def resources(compiled) -> Resources:
    """Registers, spills and shared memory of a compiled kernel."""
    if "cubin" in compiled.asm:
        report = _tool("cuobjdump", "--dump-resource-usage", compiled.asm["cubin"])
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
    return Counter(name for name, _ in _instructions(compiled))


def loops(compiled) -> list[Counter]:
    """The same for one pass through each innermost loop, in the order of the code."""
    instructions = _instructions(compiled)
    found = []
    for end, (name, target) in enumerate(instructions):
        if name.startswith("BRA") and target is not None and target <= end and end - target > 1:
            found.append((target, end))
    innermost = [(s, e) for s, e in found if not any(s <= t and f <= e and (s, e) != (t, f) for t, f in found)]
    return [Counter(name for name, _ in instructions[start : end + 1]) for start, end in sorted(set(innermost))]


def _instructions(compiled) -> list[tuple[str, int | None]]:
    """Name of each instruction, and of a branch the number of the one it leads to."""
    text = _tool("nvdisasm", "-c", compiled.asm["cubin"])
    labels: dict[str, int] = {}
    found: list[tuple[str, str | None]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label.group(1)] = len(found)
        elif code := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
            name, operands = code.groups()
            if name != "NOP":  # padding
                target = re.search(r"\((\.L_x_\d+)\)", operands)
                found.append((name, target.group(1) if target else None))
    return [(name, None if label is None else labels.get(label)) for name, label in found]


@functools.lru_cache(maxsize=16)  # resources, opcodes and loops of one kernel are often asked for together
def _tool(name: str, option: str, binary: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [NVIDIA_TOOLS / name, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
