"""All tests and timings that need a GPU, in one run of limited time.

    python -m benchmarks.on_a_gpu [--minutes 9] [--out DIR]

In order of importance: the tests that need a GPU; the paper's table; the losses against CLIP losses and against
their own matrix products from B = 180 to 65,536, in float32, TF32 and bfloat16; the kernels against LAPACK's. Each
part is a process with a share of the remaining time, so a part that hangs or fails costs only its share. Needs torch,
triton, numpy and pytest; the encoder of the paper's table is left out if timm is not installed.

DIR (`gpu-results` by default) holds `rows.csv`, each row written when measured, the log of each part,
`environment.txt`, and `summary.md`, which is rewritten after each part. Without a GPU the same parts run on the CPU at
small sizes, as a rehearsal, and the summary says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import multicontrast as mc
from benchmarks import cases, driver, traced
from benchmarks.environment import ROOT, describe_environment

SIZES = (180, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
PRECISIONS = ("float32", "tf32", "bfloat16")
DIM = 1024


@dataclass(frozen=True)
class Part:
    """One process: its name, its command after the interpreter, its share of the remaining time."""

    name: str
    command: tuple[str, ...]
    share: float


def parts(out: Path, on_gpu: bool) -> list[Part]:
    """The parts, in their order."""
    files = ("--csv", str(out / "rows.csv"), "--json")
    device = ("--device", "cuda" if on_gpu else "cpu")
    tests = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/triton")
    chosen = ("-m", "gpu") if on_gpu else ("-k", "test_a_table_has_an_entry")
    encoder = () if on_gpu and importlib.util.find_spec("timm") else ("--loss-only",)
    timing = ("-m", "benchmarks.timing", *device, *encoder, *files, str(out / "timing.json"))
    kernels = ("-m", "benchmarks.kernels", *device, *files, str(out / "kernels.json"))
    own = ("-m", "benchmarks.on_a_gpu", "--losses", "--out", str(out))
    if not on_gpu:
        timing += ("--batch", "12", "--dim", "16", "--rounds", "1")
        kernels += ("--count", "1000", "--batch", "16", "--dim", "16", "--rounds", "1")
    return [
        Part("tests", (*tests, *chosen), 0.35),
        Part("paper", timing, 0.4),
        Part("losses", own, 0.7),
        Part("kernels", kernels, 1.0),
    ]


def run(part: Part, out: Path, seconds: float) -> tuple[str, float]:
    """Runs a part; returns ``(result, seconds)``."""
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with (out / f"{part.name}.log").open("w") as log:
        command = [sys.executable, *part.command]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=hasattr(os, "killpg")
        )
        try:
            code = process.wait(timeout=seconds)
            status = "ok" if code == 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"out of time after {seconds:.0f} s"
            if hasattr(os, "killpg"):  # also ends its child processes
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
    return status, time.monotonic() - begin


# The losses against CLIP losses and their own products ----------------------------------------------------------------

Step = Callable[[], object]


def contenders(batch: int, dim: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Step]]:
    """Forward and backward of each loss, and their matrix products alone."""
    xs = [torch.randn(batch, dim, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    tau = torch.tensor(cases.TAU, device=device, requires_grad=True)
    leaves = (*xs, tau)
    block = torch.empty(batch, batch, device=device, dtype=dtype) if batch <= 16_384 else None

    def products() -> None:
        with torch.no_grad():
            for m, n in cases.PAIRS:
                torch.mm(xs[m], xs[n].mT, out=block)
                block @ xs[n], block.mT @ xs[m]

    if block is not None:
        yield "matrix products alone", products
        yield "clip x3", cases.step_of(lambda: traced.three_clip_losses(xs, tau), leaves)
        compiled = torch.compile(traced.three_clip_losses)
        if device.type == "cuda":
            yield "clip x3, compiled", cases.step_of(lambda: compiled(xs, tau), leaves)
        yield "trimodal", cases.step_of(lambda: mc.trimodal_infonce(*xs, tau), leaves)
    yield "pairs", cases.step_of(lambda: mc.trimodal_infonce(*xs, tau, alpha=0.0), leaves)


def time_losses(out: Path, on_gpu: bool) -> None:
    """Times all sizes and precisions; each row is written when it is measured."""
    device = torch.device("cuda" if on_gpu else "cpu")
    for batch in SIZES if on_gpu else (12,):
        for precision in PRECISIONS:
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            environment = describe_environment(device, driver.clock_name(device))
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            for name, step in contenders(batch, DIM if on_gpu else 16, dtype, device):
                samples = driver.measure({name: step}, device, rounds=5 if on_gpu else 1, min_seconds=0.02)[name]
                row = driver.make_row(
                    samples, environment, benchmark="on_a_gpu", case="losses", implementation=name,
                    shape=f"B={batch} D={DIM if on_gpu else 16}", dtype=precision,
                )  # fmt: skip
                driver.append_csv(out / "rows.csv", [row])
                print(row, flush=True)
    torch.set_float32_matmul_precision("highest")


# The report -----------------------------------------------------------------------------------------------------------


def summary(out: Path, done: Sequence[tuple[Part, str, float]], on_gpu: bool) -> str:
    """One page of Markdown with the results so far."""
    lines = ["# On a GPU" if on_gpu else "# A rehearsal on a CPU: no figure here is a GPU's", ""]
    lines += ["```", (out / "environment.txt").read_text().rstrip(), "```", ""]
    lines += ["| part | result | seconds |", "| --- | --- | ---: |"]
    lines += [f"| {part.name} | {status} | {seconds:.0f} |" for part, status, seconds in done]
    if (out / "rows.csv").exists():
        lines += [
            "",
            "| benchmark | case | shape | type | implementation | ms | peak MB |",
            "| --- " * 5 + "| ---: | ---: |",
        ]
        for row in driver.read_rows(out / "rows.csv"):
            time_ms = row.status if row.p50_ms is None else f"{row.p50_ms:.3f} ({row.rounds} rounds)"
            peak = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
            cells = (row.benchmark, row.case, row.shape, row.dtype, row.implementation, time_ms, peak)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and report them; 1 if one failed, but not if the time ran out."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.on_a_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="limit on the whole run, whatever happens")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--losses", action="store_true", help="run only the part `losses`, in this process")
    options = parser.parse_args(arguments)
    begin, on_gpu = time.monotonic(), torch.cuda.is_available()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.losses:
        time_losses(out, on_gpu)
        return 0
    device = torch.device("cuda" if on_gpu else "cpu")
    (out / "environment.txt").write_text(describe_environment(device, driver.clock_name(device)).header() + "\n")
    end = begin + 60 * options.minutes - 10  # leaves 10 s to write the results
    done: list[tuple[Part, str, float]] = []
    for part in parts(out, on_gpu):
        left = end - time.monotonic()
        status, seconds = run(part, out, part.share * left) if left > 0 else ("no time left", 0.0)
        done.append((part, status, seconds))
        print(f"{part.name}: {status}, {seconds:.0f} s", flush=True)
        (out / "summary.md").write_text(summary(out, done, on_gpu))
    print(f"rows, logs and summary.md are in {out}")
    return 1 if any(status.startswith("exit") for _, status, _ in done) else 0


if __name__ == "__main__":
    sys.exit(main())
