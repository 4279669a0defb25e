"""The tables of the README and the docs, generated from the rows in ``results/``.

    python -m benchmarks.table            # rewrite them
    python -m benchmarks.table --check    # check whether they are up to date

A table is between two comments, ``<!-- table: NAME -->`` and ``<!-- end of table -->``. It shows the whole latest run
for its setting, and never mixes runs.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import driver, losses, timing
from benchmarks.driver import Row
from benchmarks.environment import ROOT

PAGES = tuple(
    ROOT / page for page in ("README.md", "docs/compared.md", "docs/benchmarks/index.md", "docs/benchmarks/tables.md")
)
_REGION = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end of table -->)", re.DOTALL)


def latest_run(rows: Sequence[Row], case: str, device: str) -> list[Row]:
    """The newest of those runs of a case on a device that measured the most shapes."""
    mine = [row for row in rows if row.case == case and row.device == device]
    runs = {date: [row for row in mine if row.date == date] for date in sorted({row.date for row in mine})}
    widest = max((len({row.shape for row in run}) for run in runs.values()), default=0)
    return next((run for run in reversed(runs.values()) if len({row.shape for row in run}) == widest), [])


def settings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Every (case, device), the newest run first."""
    return list(dict.fromkeys((row.case, row.device) for row in sorted(rows, key=lambda row: row.date, reverse=True)))


def origin(row: Row) -> str:
    """The setting in which a run's figures were measured."""
    parts = [row.device, f"{row.threads} thread{'s' if row.threads > 1 else ''}", f"PyTorch {row.torch}"]
    if row.cuda:
        parts += [f"CUDA {row.cuda}", f"TF32 {row.tf32}"]
    parts += [row.clock, f"commit `{row.commit}`", row.date[:10]]
    return ", ".join(part for part in parts if part)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; the first columns are text, the others numbers."""
    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines)) + "\n"


def timing_table(rows: Sequence[Row]) -> str:
    """The paper's Table 7, once for each setting that was run."""
    parts = []
    for case, device in settings(rows):
        run = latest_run(rows, case, device)
        base = next((row.p50_ms for row in run if row.implementation == timing.PAIRS), None)
        lines = []
        for row in run:
            if row.p50_ms is None:
                lines.append((row.implementation, row.status, "", "", timing.beside(row)))
                continue
            overhead = "" if base is None or row.implementation == timing.PAIRS else timing.overhead(row.p50_ms / base)
            spread = f"{seconds(row.p50_ms)} ({seconds(row.p20_ms)} to {seconds(row.p80_ms)})"
            lines.append((row.implementation, spread, overhead, megabytes(row.peak_mb), timing.beside(row)))
        header = ("loss", "s per batch: median (p20 to p80)", "over pairs", "peak MB", "paper, A100")
        parts.append(f"**{case}**, {run[0].shape}: {origin(run[0])}\n\n{markdown(header, lines)}")
    return "\n".join(parts) or "No rows yet.\n"


def losses_alone_table(rows: Sequence[Row]) -> str:
    """The losses of Table 7 without the encoder, on the device of the newest run."""
    mine = [row for row in rows if row.case == timing.LOSSES_ALONE]
    newest = max(mine, key=lambda row: row.date).device if mine else ""
    return timing_table([row for row in mine if row.device == newest])


def losses_table(rows: Sequence[Row]) -> str:
    """Medians of every contender by batch size, then the ratios with their targets."""
    parts = []
    for case, device in settings(rows):
        run = latest_run(rows, case, device)
        shapes = list(dict.fromkeys(row.shape for row in run))
        found = {(row.shape, row.implementation): row for row in run}
        lines = [
            (name, *(_cell(found.get((shape, name))) for shape in shapes))
            for name in dict.fromkeys(row.implementation for row in run)
        ]
        parts.append(f"ms (peak MB), {origin(run[0])}\n\n{markdown(('', *shapes), lines)}")
        parts.append(f"Our targets for ratios, and what was reached:\n\n{_ratio_table(found, shapes)}")
    return "\n".join(parts) or "No rows yet.\n"


BESIDE = {
    "three pairs as CLIP computes them": "three CLIP losses, two matmuls each",
    "three pairs": "three pairs",
    "three pairs + triplet, as drawn by default": "trimodal, cyclic",
    'three pairs + triplet, `negatives="shared"`': "trimodal, shared",
    "triplet alone, Algorithm 2 of the paper": "Algorithm 2, eigvalsh",
    "triplet alone, with an index": "triplet",
    "triplet alone, all triplets": "triplet, exact",
}


def beside_table(rows: Sequence[Row]) -> str:
    """The choices that a user has, from the newest run: ours, CLIP-style pairs, the paper's algorithm."""
    rows = [row for row in rows if row.case == losses.GIVEN]
    if not rows:
        return "No rows yet.\n"
    newest = max(rows, key=lambda row: row.date)
    run = latest_run(rows, newest.case, newest.device)
    shapes = list(dict.fromkeys(row.shape for row in run))
    found = {(row.shape, row.implementation): row for row in run}
    lines = [(text, *(_cell(found.get((shape, name))) for shape in shapes)) for text, name in BESIDE.items()]
    header = ("ms (MB)", *shapes)
    return f"{origin(run[0])}\n\n{markdown(header, [line for line in lines if any(line[1:])])}"


def _ratio_table(found: dict[tuple[str, str], Row], shapes: Sequence[str]) -> str:
    lines = []
    for bar in losses.BARS:
        cells = []
        for shape in shapes:
            above, below = found.get((shape, bar.numerator)), found.get((shape, bar.denominator))
            held = not bar.batches or int(shape.split()[0][2:]) in bar.batches
            cells.append(_ratio(above, below, bar) if above and below and held else "")
        if any(cells):
            what = f"{bar.numerator} / {bar.denominator}" + (", memory" if bar.of == "memory" else "")
            lines.append((what, ratio(bar.limit), *cells))
    return markdown(("", "target", *shapes), lines)


def _ratio(above: Row, below: Row, bar: losses.Bar) -> str:
    top, bottom = (row.peak_mb if bar.of == "memory" else row.p50_ms for row in (above, below))
    if top is None or not bottom:
        return ""
    return ratio(top / bottom) + ("" if top / bottom <= bar.limit else " (missed)")


def kernels_table(rows: Sequence[Row]) -> str:
    """Operations by case, with their baselines."""
    parts = []
    for device in dict.fromkeys(device for _, device in settings(rows)):
        newest = max(row.date for row in rows if row.device == device)
        run = [row for row in rows if row.device == device and row.date == newest]
        lines = []
        for case, shape in dict.fromkeys((row.case, row.shape) for row in run):
            group = [row for row in run if (row.case, row.shape) == (case, shape)]
            ours = group[0].p50_ms
            for row in group:
                times = "" if not ours or row.p50_ms is None or row is group[0] else f"{row.p50_ms / ours:.1f} x"
                time = row.status if row.p50_ms is None else three_digits(row.p50_ms)
                lines.append((f"{case}, {shape}", row.implementation, time, times, megabytes(row.peak_mb)))
        header = ("case", "implementation", "ms", "ours is faster by", "peak MB")
        parts.append(f"{origin(run[0])}\n\n{markdown(header, lines, text_columns=2)}")
    return "\n".join(parts) or "No rows yet.\n"


# --- cells ----------------------------------------------------------------------------------------------------


def seconds(milliseconds: float | None) -> str:
    """Milliseconds as seconds."""
    return "" if milliseconds is None else three_digits(milliseconds / 1e3)


def three_digits(value: float) -> str:
    """A number with at least three digits and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def megabytes(value: float | None) -> str:
    """Megabytes, as whole numbers from ten on."""
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def ratio(value: float) -> str:
    """A ratio; small ones as their inverse."""
    return f"1/{1 / value:.0f}" if 0 < value < 0.0501 else f"{value:.2f}"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.p50_ms is None:
        return row.status
    return three_digits(row.p50_ms) + (f" ({megabytes(row.peak_mb)})" if row.peak_mb is not None else "")


# --- pages ----------------------------------------------------------------------------------------------------

TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "timing": ("timing.csv", timing_table),
    "timing-losses": ("timing.csv", losses_alone_table),
    "losses": ("losses.csv", losses_table),
    "losses-beside": ("losses.csv", beside_table),
    "kernels": ("kernels.csv", kernels_table),
}
_ACCURACY = Path("accuracy") / "eigenvalues.csv"


def accuracy_table(path: Path) -> str:
    """The worst errors of the newest study of the eigenvalues, in float32."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dtype"] == "float32"]
    newest = {row["operation"]: row["date"] for row in rows}  # the rows are ordered by date
    wanted = (
        ("three cosines, `gram3_eigmax`", "gram3_eigmax", "value", "value"),
        ("", "gram3_eigmax", "gradient", "gradient"),
        ("any symmetric 3x3, `eigh3`", "eigh3", "values", "all three values"),
    )
    lines = []
    for label, operation, quantity, text in wanted:
        cells = []
        for implementation in ("ours", "LAPACK", "arc cosine"):
            errors = [
                float(row["error"])
                for row in rows
                if (row["operation"], row["quantity"], row["implementation"]) == (operation, quantity, implementation)
                and row["date"] == newest[operation]
            ]
            cells.append(_error(max(errors)) if errors else "")
        lines.append((label, text, *cells))
    return markdown(("of", "error of", "multicontrast", "LAPACK", "arc cosine"), lines, text_columns=2)


def _error(error: float) -> str:
    if not math.isfinite(error):
        return "not finite"
    return f"{error:.1f}" if error < 100 else f"{error:.0e}".replace("e+0", "e").replace("e+", "e")


def render(page: str, results: Path = driver.RESULTS) -> str:
    """The page with every table regenerated."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name == "accuracy":
            return f"{match[1]}\n{accuracy_table(results / _ACCURACY).strip()}\n\n{match[4]}"
        if name not in TABLES:
            known = ", ".join((*TABLES, "accuracy"))
            raise driver.BenchmarkError(f"a table's name is one of {known}; got `{name}`. Correct the comment.")
        file, make = TABLES[name]
        rows = driver.read_rows(results / file) if (results / file).exists() else []
        return f"{match[1]}\n{make(rows).strip()}\n\n{match[4]}"

    return _REGION.sub(fill, page)


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the tables, or list the stale ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Generate the tables of the docs.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is stale")
    options = parser.parse_args(arguments)
    stale = 0
    for page in PAGES:
        before = page.read_text()
        after = render(before)
        if after == before:
            continue
        stale += 1
        if options.check:
            print(f"{page.relative_to(ROOT)} is stale: run `python -m benchmarks.table`", file=sys.stderr)
        else:
            page.write_text(after)
            print(f"{page.relative_to(ROOT)} rewritten")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
