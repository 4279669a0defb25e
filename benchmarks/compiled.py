"""Registers, spills and instructions of every compiled Triton kernel by architecture, and a lower bound on its time.

    python -m benchmarks.compiled            # minutes, and no GPU; rewrites docs/benchmarks/compiled-kernels.md
    python -m benchmarks.compiled --only gram3
    python -m benchmarks.compiled --check cuda:75 cuda:90 hip:gfx942    # exit code 1 if a case does not compile
    PYTHONPATH=folder/of/triton-3.2 python -m benchmarks.compiled --check cuda:80 --record    # with another Triton

Each kernel goes through its own launcher and Triton's specialisation, with the configuration for the architecture, up
to the point where a driver would run it. The assembler reports registers, spills and shared memory. Instructions are
counted in the machine code. The time is a lower bound: the time of the slowest of issuing, float32 or float64
arithmetic, special functions, loads and stores, and device memory, as if all overlapped at the highest clock.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import cli, driver, records
from benchmarks.environment import describe_environment
from benchmarks.table import markdown
from tests.ptx import compilation, recording

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "compiled-kernels.md"
ROWS = driver.RESULTS / "compiled" / "kernels.csv"
VERSIONS = driver.RESULTS / "compiled" / "versions.csv"


@dataclass(frozen=True)
class Gpu:
    """A GPU's throughput: operations per clock of each multiprocessor, and bytes and tensor operations per second."""

    target: str
    multiprocessors: int
    clock: float  # Hz, the highest
    float32: int
    float64: int
    integer: int
    special: int  # reciprocal roots, exponentials, conversions
    memory_lanes: int  # loads and stores
    issued: int  # instructions of 32 lanes
    bandwidth: float  # bytes a second
    tensor: float  # bfloat16 operations a second


# The vendor's data sheets (A100 80 GB SXM, H100 SXM) and the throughput table of the CUDA programming guide.
GPUS = {
    "A100": Gpu("cuda:80", 108, 1.41e9, 64, 32, 64, 16, 32, 4, 2.039e12, 312e12),
    "H100": Gpu("cuda:90", 132, 1.83e9, 128, 64, 64, 16, 32, 4, 3.35e12, 989e12),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One launch, and how to count its instructions for one element.

    Args:
        call: launches the kernel with the sizes and types of the case.
        element: a matrix, a tuple or a logit.
        traffic: bytes of device memory for each element, or None if the caches hold the inputs.
        marker: the number of ``MUFU.RSQ`` for one element, if the compiler may unroll the kernel's loop.
        passes: iterations of the loop for one element; None without a loop, or if only the loop matters.
        tile: the compile-time constants whose product is the number of elements of one iteration of the largest loop.
        depth: of the tensor-core products that make an element, a logit.
        products: the number of those products; a float32 product takes six in bfloat16.
    """

    name: str
    dtype: str
    call: Callable[[], object]
    element: str = ""
    traffic: float | None = None
    marker: int | None = None
    passes: int | None = None
    tile: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # targets that never launch it
    depth: int = 0
    products: int = 0


def cases() -> Iterator[Case]:
    """Every kernel in every form that a launch can take."""
    from multicontrast.linalg import _gram3_triton, _jacobi_triton, _rotation_triton, _symmetric3_triton
    from multicontrast.losses.triton import exact_triton, pairs_triton, sampled_triton
    from multicontrast.losses.triton import fused_triton as fused

    count, batch, dim = 4096, 1024, 1024
    tau = torch.tensor(0.1)
    rows = torch.zeros(batch)
    for dtype in (torch.float32, torch.float64):
        name, size = str(dtype).removeprefix("torch."), dtype.itemsize
        cosines = torch.zeros(3, count, dtype=dtype).unbind()
        excess, both = _gram3_triton.eigmax_excess, _gram3_triton.eigmax_with_gradient
        yield Case(name="gram3 value", dtype=name, call=_call(excess, *cosines), element="matrix", traffic=4 * size)
        yield Case(
            name="gram3 value and gradient",
            dtype=name, call=_call(both, *cosines), element="matrix", traffic=7 * size,
        )  # fmt: skip
        if dtype == torch.float32:
            yield Case(
                name="gram3 value and gradient, correctly rounded",
                dtype=name, call=_call(both, *cosines, correctly_rounded=True), element="matrix", traffic=7 * size,
            )  # fmt: skip
        matrices = torch.zeros(count, 3, 3, dtype=dtype)
        yield Case(
            name="symmetric 3x3 eigenvalues",
            dtype=name, call=_call(_symmetric3_triton.eigvalsh3, matrices), element="matrix", traffic=12 * size,
        )  # fmt: skip
        yield Case(
            name="symmetric 3x3 eigenpairs",
            dtype=name, call=_call(_symmetric3_triton.eigh3, matrices), element="matrix", traffic=21 * size,
        )  # fmt: skip
        for n in range(2, 9):
            lanes = 2 if dtype == torch.float64 and n > 6 else 1
            yield Case(
                name=f"Jacobi {n}x{n}",
                dtype=name, call=_call(_jacobi_triton.jacobi, torch.zeros(count, n, n, dtype=dtype)),
                element="matrix", traffic=(2 * n * n + n) * size,
                passes=lanes * _jacobi_triton.rounds(n, dtype),
            )  # fmt: skip
        matrices = torch.zeros(3, 3, count, dtype=dtype)
        yield Case(
            name="nearest rotation", dtype=name, call=_call(_rotation_triton.rotation3, matrices),
            element="matrix", traffic=18 * size,
        )  # fmt: skip
        yield Case(
            name="nearest rotation, backward", dtype=name,
            call=_call(_rotation_triton.rotation3_backward, matrices, matrices),
            element="matrix", traffic=27 * size,
        )  # fmt: skip
        block, loss = torch.zeros(batch, batch, dtype=dtype), rows.to(dtype)
        whole, short = torch.zeros(batch, batch, 3, dtype=torch.int64), torch.zeros(batch, 2, dtype=torch.int64)
        for scheme, words in (("index", ""), ("list", " of a shared list"), ("shifts", " by shifts")):
            triplets = (block, block, block, whole if scheme == "index" else short, tau.to(dtype))
            traffic = 24 if scheme == "index" else None  # of row numbers
            yield Case(
                name=f"sampled triplets{words}, forward",
                dtype=name, call=_call(sampled_triton.sampled_forward, *triplets, scheme),
                element="tuple", traffic=traffic, marker=3 if size == 4 else None,
            )  # fmt: skip
            for deterministic in (False, True):
                way = "backward, deterministic" if deterministic else "backward"
                yield Case(
                    name=f"sampled triplets{words}, {way}",
                    dtype=name,
                    call=_call(sampled_triton.sampled_backward, *triplets, loss, loss, deterministic, scheme),
                    element="tuple", traffic=traffic, marker=4 if size == 4 else None,
                )  # fmt: skip
    block = torch.zeros(batch, batch)
    yield Case(
        name="all triplets, forward", dtype="float32", element="tuple", marker=3,
        call=_call(exact_triton.exact_forward, block, block, block, tau),
    )  # fmt: skip
    yield Case(
        name="all triplets, backward", dtype="float32", element="tuple", marker=4,
        call=_call(exact_triton.exact_backward, block, block, block, tau, rows, rows, rows),
    )  # fmt: skip
    pairs = ((0, 1), (0, 2), (1, 2))
    masks = fused.Samples(torch.zeros(batch, 3, dtype=torch.bool), torch.zeros(batch, dtype=torch.int64), rows)
    for dtype in (torch.float32, torch.bfloat16):
        xs, name = [torch.zeros(batch, dim, dtype=dtype)] * 3, str(dtype).removeprefix("torch.")
        terms = fused.Terms(pairs, (0.5,) * 3, (0.5,) * 3, 1.0, "shifts")
        skipped = ("cuda:75",) if dtype == torch.bfloat16 else ()  # it lacks bfloat16, so rows are converted before
        width = 9 * dtype.itemsize  # three rows in, two copies of each out
        yield Case(
            name="rows made ready", dtype=name, call=_call(fused.prepare, xs, None, terms, True),
            element="entry", traffic=width / 3, tile=("BLOCK",), skipped=skipped,
        )  # fmt: skip
        factors, wide, each = torch.zeros(6, batch, dim, dtype=dtype), torch.zeros(3, batch, dim), torch.zeros(3, batch)
        yield Case(
            name="gradient by the rows", dtype=name,
            call=_call(fused.embedding_gradient, wide, wide, factors, each, each, terms, True),
            element="entry", traffic=8 + 2 * dtype.itemsize, tile=("BLOCK",), skipped=skipped,
        )  # fmt: skip
    grams, scale, sums = torch.zeros(3, batch, batch), torch.zeros(3, batch), torch.zeros(fused.Sums.length(3, batch))
    views, one, nothing = (
        fused.Sums.of(sums[: fused.Sums.length(1, batch)], 1, batch),
        torch.zeros(()),
        fused.Samples(None, None, None),
    )
    for dtype in (torch.float32, torch.bfloat16):
        x, terms = torch.zeros(3, batch, dim, dtype=dtype), fused.Terms(pairs[:1], (0.5,), (0.5,), 0, "", tiled=True)
        for words, samples in (("", nothing), (", masked", masks)):
            given: Any = (x, scale, tau, terms, samples, views)
            common: Any = {"dtype": str(dtype).removeprefix("torch."), "element": "logit", "depth": dim}
            common["skipped"] = ("cuda:75",) if dtype == torch.bfloat16 else ()
            yield Case(
                name=f"pairs in tiles{words}, forward",
                products=1,
                call=_call(pairs_triton.pair_losses, *given),
                **common,
            )
            backward = _call(pairs_triton.gradient_in_tiles, *given, one, None)
            yield Case(name=f"pairs in tiles{words}, backward", products=3, call=backward, **common)
        backward = _deterministic(
            _call(pairs_triton.gradient_in_tiles, x, scale, tau, terms, nothing, views, one, None)
        )
        common["element"] = "logit and side"
        yield Case(name="pairs in tiles, backward, deterministic", products=2, call=backward, **common)
    for scheme, index in (("shifts", short), ("index", whole)):
        for words, samples in (("", fused.Samples(None, None, None)), (", masked", masks)):
            terms = fused.Terms(pairs, (0.5,) * 3, (0.5,) * 3, 1.0, scheme)
            given = (grams, scale, tau, terms, samples, index)
            name = f"held blocks, {scheme}{words}"
            yield Case(
                name=f"{name}, forward", dtype="float32", element="logit and triplet",
                call=_call(fused.forward, *given, "mean"), traffic=8 / 3, tile=("STRIP", "BLOCK_COLUMNS"),
            )  # fmt: skip
            yield Case(
                name=f"{name}, backward", dtype="float32", element="logit and triplet",
                call=_call(fused.gram_gradient, *given, sums, torch.zeros(())), traffic=24 / 3,
                tile=("STRIP", "BLOCK_COLUMNS"),
            )  # fmt: skip


def _call(function: Callable[..., object], *arguments: object, **options: object) -> Callable[[], object]:
    return lambda: function(*arguments, **options)


def _deterministic(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        torch.use_deterministic_algorithms(True)
        try:
            return call()
        finally:
            torch.use_deterministic_algorithms(False)

    return run


# Counting -------------------------------------------------------------------------------------------------------------

_UNITS = {
    "float32": ("FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2"),
    "float64": ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"),
    "special": ("MUFU", "F2I", "I2F", "F2F", "FRND", "FLO", "POPC"),
    "loads and stores": (
        "LDG", "STG", "LDS", "STS", "LDL", "STL", "RED", "REDG", "ATOM", "ATOMG", "LDGSTS", "LDSM", "STSM", "SHFL",
    ),
    "control": ("BRA", "EXIT", "BAR", "BSSY", "BSYNC", "WARPSYNC", "RET", "CALL", "NOP", "HFMA2", "HMMA", "HGMMA"),
}  # fmt: skip
_UNIT = {name: unit for unit, names in _UNITS.items() for name in names}


def per_element(case: Case, compiled: recording.Compiled) -> Counter[str]:
    """Machine instructions by name for one element and thread."""
    whole, loops = compilation.opcodes(compiled), compilation.loops(compiled)
    lanes = 32 * compiled.metadata.num_warps
    if case.depth:  # each loop is over the depth of a tile's products
        steps, tile = case.depth / compiled.constants["BLOCK_DEPTH"], _tile(compiled)
        total: Counter[str] = Counter()
        for loop in _of_products(loops):
            total.update({name: number * steps * lanes / tile for name, number in loop.items()})  # type: ignore[misc]
        return total
    if case.marker is not None:  # only the loop, because many elements share the code before and after it
        largest = max(loops, key=lambda loop: loop.total())
        elements = largest["MUFU.RSQ"] / case.marker
        return Counter({name: number / elements for name, number in largest.items()})  # type: ignore[misc]
    if case.tile:  # only the loop; repeated loops over some tiles are ignored
        largest = max(loops or [whole], key=lambda loop: loop.total())
        width = math.prod(compiled.constants.get(constant, 1) for constant in case.tile)
        elements = max(1, max(width, compiled.constants.get("BLOCK", 1)) // lanes)
        return Counter({name: number / elements for name, number in largest.items()})  # type: ignore[misc]
    if case.passes is not None and loops:
        largest = max(loops, key=lambda loop: loop.total())
        return Counter({name: number + (case.passes - 1) * largest[name] for name, number in whole.items()})
    elements = max(1, compiled.constants["BLOCK"] // lanes)
    return Counter({name: number / elements for name, number in whole.items()})  # type: ignore[misc]


def _tile(compiled: recording.Compiled) -> int:
    return compiled.constants["BLOCK_ROWS"] * compiled.constants["BLOCK_COLUMNS"]


def _of_products(loops: Sequence[Counter[str]]) -> list[Counter[str]]:
    return [loop for loop in loops if any("MMA" in name for name in loop)]


def best_time(case: Case, compiled: recording.Compiled, gpu: Gpu) -> tuple[float, str]:
    """``(seconds for each element, the slowest unit)``, as if all units overlapped."""
    halves = 1 if case.dtype == "bfloat16" else 6
    seconds = {"tensor cores": halves * 2.0 * case.depth * case.products / gpu.tensor}
    if case.traffic is not None:
        seconds["memory"] = case.traffic / gpu.bandwidth
    counted = per_element(case, compiled)
    units: Counter[str] = Counter()
    for name, number in counted.items():
        kind = name.split(".")[0]
        unit = _UNIT.get(kind, "integer")
        units[unit] += 2 * number if kind.endswith("2") and unit == "float32" else number  # packed: two operations
    lanes = {
        "float32": gpu.float32, "float64": gpu.float64, "integer": gpu.integer, "special": gpu.special,
        "loads and stores": gpu.memory_lanes,
    }  # fmt: skip
    second = gpu.multiprocessors * gpu.clock
    seconds |= {unit: units[unit] / width / second for unit, width in lanes.items()}
    seconds["issue"] = counted.total() / (32 * gpu.issued) / second
    longest = max(seconds, key=lambda name: seconds[name])
    return seconds[longest], longest


# Rows -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel for one architecture; one line of the CSV."""

    kernel: str
    dtype: str
    target: str
    registers: int
    spilled: int
    shared: int
    shared_limit: int
    warps: int
    element: str
    instructions: float | None  # for each element, where they are counted
    estimate_us: float | None  # for a million elements
    bound: str
    triton: str
    commit: str
    date: str


def measure(only: str = "", report: Callable[[str], object] = str) -> list[Row]:
    """One run: every case, every target."""
    environment = describe_environment(torch.device("cpu"), "")
    rows = []
    for case in cases():
        if only not in case.name:
            continue
        for target in compilation.TARGETS:
            compiled = recording.compiled_by(case.call, target)
            resources = [compilation.resources(kernel) for kernel in compiled]
            gpu = next((gpu for gpu in GPUS.values() if gpu.target == target), None)
            counted = [kernel for kernel in compiled if not case.depth or "BLOCK_DEPTH" in kernel.constants]
            counts = [per_element(case, kernel) for kernel in counted] if gpu else []
            times = [best_time(case, kernel, gpu) for kernel in counted] if gpu else []
            instructions = [count.total() for count in counts]
            report(f"{case.name}, {case.dtype}, {target}: {max(r.registers for r in resources)} registers")
            rows.append(
                Row(
                    kernel=case.name, dtype=case.dtype, target=target,
                    registers=max(r.registers for r in resources), spilled=max(r.spilled for r in resources),
                    shared=max(r.shared for r in resources), shared_limit=compilation.SHARED_MEMORY_LIMIT[target],
                    warps=compiled[0].metadata.num_warps, element=case.element,
                    instructions=round(sum(instructions) / len(instructions), 1) if instructions else None,
                    estimate_us=_three_digits(1e12 * sum(time for time, _ in times) / len(times)) if times else None,
                    bound=times[0][1] if times else "", triton=environment.triton, commit=environment.commit,
                    date=environment.date,
                )
            )  # fmt: skip
    return rows


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def read(path: Path = ROWS) -> list[Row]:
    """The latest row of each kernel, type and target."""
    numbers = {"registers": int, "spilled": int, "shared": int, "shared_limit": int, "warps": int}
    optional = {"instructions", "estimate_us"}
    return [
        Row(
            **{
                name: (float(text) if text else None) if name in optional else numbers.get(name, str)(text)
                for name, text in record.items()
            }
        )
        for record in {(one["kernel"], one["dtype"], one["target"]): one for one in records.every(path)}.values()
    ]


# Other versions of Triton ---------------------------------------------------------------------------------------------

UNSUPPORTED = "not supported by this Triton"
LARGEST_SPILL = 64  # bytes that a thread may spill: a few values, once, outside its loop


@dataclass(frozen=True, kw_only=True)
class Check:
    """Every case for one architecture with one Triton; one line of ``versions.csv``."""

    triton: str
    target: str
    status: str  # "ok", "failed" or UNSUPPORTED
    cases: int = 0
    failures: int = 0
    registers: int = 0  # the largest
    spilled: int = 0  # the largest, bytes of a lane
    shared: int = 0
    date: str = ""


def check(targets: Sequence[str], only: str = "", report: Callable[[str], object] = str) -> list[Check]:
    """Compile every case for each target with the imported Triton, and report failures."""
    environment = describe_environment(torch.device("cpu"), "")
    found = []
    for target in targets:
        where = {"triton": triton.__version__, "target": target, "date": environment.date}
        if not recording.supports(target):
            report(f"{target}: {UNSUPPORTED}")
            found.append(Check(status=UNSUPPORTED, **where))
            continue
        largest, failures, number = compilation.Resources(0, 0, 0), 0, 0
        for case in cases():
            if only not in case.name or target in case.skipped:
                continue
            number += 1
            try:
                resources = [compilation.resources(kernel) for kernel in recording.compiled_by(case.call, target)]
            except Exception as error:
                failures += 1
                report(f"{target}: {case.name}, {case.dtype}: {' '.join(str(error).split())[:300]}")
                continue
            worst = compilation.Resources(*(max(column) for column in zip(*resources)))
            if worst.spilled > LARGEST_SPILL or worst.shared > compilation.SHARED_MEMORY_LIMIT[target]:
                failures += 1
                report(f"{target}: {case.name}, {case.dtype}: spills {worst.spilled}, shared memory {worst.shared}")
            largest = compilation.Resources(*map(max, largest, worst))
        status = "failed" if failures else "ok"
        report(f"{target}: {number - failures} of {number} cases compile with Triton {triton.__version__}")
        found.append(Check(status=status, cases=number, failures=failures, **largest._asdict(), **where))
    return found


def read_checks(path: Path = VERSIONS) -> list[Check]:
    """The newest check of each Triton and target on file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("cases", "failures", "registers", "spilled", "shared")
    newest = {(row["triton"], row["target"]): row for row in rows}
    return [
        Check(**{name: int(text) if name in numbers else text for name, text in row.items()}) for row in newest.values()
    ]


def versions_table(checks: Sequence[Check]) -> str:
    """A table with a column for each Triton."""
    versions = sorted({row.triton for row in checks}, key=lambda text: [int(part) for part in text.split(".")])
    targets = [target for target in compilation.EVERY_TARGET if any(row.target == target for row in checks)]
    found = {(row.triton, row.target): row for row in checks}

    def cell(row: Check | None) -> str:
        if row is None or row.status == UNSUPPORTED:
            return UNSUPPORTED if row else "not tried"
        counted = f"{row.cases - row.failures} of {row.cases}"
        return f"{counted}, {row.registers} registers" + (f", {row.spilled} B spilled" if row.spilled else "")

    lines = [
        [target.replace("cuda:", "sm_").removeprefix("hip:"), *(cell(found.get((one, target))) for one in versions)]
        for target in targets
    ]
    return markdown(["GPU", *(f"Triton {one}" for one in versions)], lines, text_columns=1 + len(versions))


# The page -------------------------------------------------------------------------------------------------------------

PAGE_TEXT = """\
# The kernels, compiled

<!-- Written by `python -m benchmarks.compiled`: change that, not this page. -->

We have not measured these kernels on a GPU. We compile each as a launch would, for five architectures,
and read the figures from its machine code. `tests/triton` executes the compiled code on a CPU and compares its results
with float64 definitions. Triton {triton}, {date}.

## Resources

*Registers* are per thread, *shared* memory per block; a case that launches several kernels shows the largest. Registers
spill to memory only where a cell says so. GPUs have far more shared memory: {limits}.

{resources}
## Versions

torch 2.6 comes with Triton 3.2, and 2.14 with 3.8. Each cell has the number of cases above that this Triton compiles
for this GPU, the most *registers* per thread, and the most bytes that a thread spills. AMD counts vector registers;
gfx90a and gfx942 have 512, gfx1100 has 256.

{versions}
## Estimates

*Instructions* are those of a thread for one element, counted in the machine code for an A100 (sm_80) and an H100
(sm_90). The *time* for a million elements is an **estimate** and a lower bound: it assumes that the unit named beside
it works without pause at the highest clock, and that everything else overlaps. The memory traffic of `gram3 value`,
three cosines in and one value out, takes {gram3_memory} us on an A100.

{estimates}
"""


def page(rows: Sequence[Row]) -> str:
    """The documentation page of one run."""
    kernels = list(dict.fromkeys((row.kernel, row.dtype) for row in rows))
    targets = list(dict.fromkeys(row.target for row in rows))
    found = {((row.kernel, row.dtype), row.target): row for row in rows}
    names = {target: target.replace("cuda:", "sm_").removeprefix("hip:") for target in targets}
    limits = ", ".join(f"{compilation.SHARED_MEMORY_LIMIT[target] // 1024} KB on {names[target]}" for target in targets)
    header = ["kernel", "type", *(f"{names[target]}: registers, shared" for target in targets)]
    lines = []
    for kernel in kernels:
        cells = []
        for target in targets:
            row = found[kernel, target]
            shared = f"{row.shared / 1024:.1f} KB" if row.shared else "0"
            spilled = f", **{row.spilled} spilled**" if row.spilled else ""
            cells.append(f"{row.registers}, {shared}{spilled}")
        lines.append([*kernel, *cells])
    resources = markdown(header, lines, text_columns=2)
    header = ["kernel", "type", "element"]
    for name in GPUS:
        header += [f"{name}: instructions", f"{name}: us", f"{name}: bound by"]
    lines = []
    for kernel in kernels:
        line = [*kernel, found[kernel, "cuda:80"].element]
        for gpu in GPUS.values():
            row = found[kernel, gpu.target]
            assert row.estimate_us is not None
            count = "" if row.instructions is None else f"{row.instructions:.1f}"
            line += [count, f"{row.estimate_us:.3g}", row.bound]
        lines.append(line)
    return PAGE_TEXT.format(
        triton=rows[0].triton, date=max(row.date for row in rows)[:10], limits=limits, resources=resources,
        gram3_memory=f"{1e12 * 16 / GPUS['A100'].bandwidth:.1f}",
        versions=versions_table(read_checks()), estimates=markdown(header, lines, text_columns=3),
    ).rstrip("\n") + "\n"  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Compile, count, record the rows, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", help="kernels whose name contains this; recorded only with --record")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--check", nargs="+", metavar="TARGET", help="compile every case for these, with any Triton")
    cli.add_record(parser)
    options = parser.parse_args(arguments)
    if options.check:
        unknown = [target for target in options.check if target not in compilation.SHARED_MEMORY_LIMIT]
        if unknown:
            parser.error(f"--check needs targets among {', '.join(compilation.SHARED_MEMORY_LIMIT)}; got {unknown[0]}.")
        found = check(options.check, options.only, lambda text: print(text, flush=True))
        records.append(cli.place(VERSIONS, options.record), found)
        return 1 if any(row.status == "failed" for row in found) else 0
    csv_path, page_path = (
        options.csv or cli.place(ROWS, options.record),
        options.page or cli.place(PAGE, options.record),
    )
    rows = measure(options.only, lambda text: print(text, file=sys.stderr))
    if options.only and not options.record:
        for row in rows:
            print(row)
        return 0
    records.append(csv_path, rows)
    page_path.parent.mkdir(parents=True, exist_ok=True)
    page_path.write_text(page(read(csv_path)))
    print(f"{len(rows)} rows added to {csv_path}; page written to {page_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
