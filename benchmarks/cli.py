"""The options that all benchmarks share, and the end of a run.

Only ``--record`` writes to files of the repository. Without it, rows, pages and pictures go to ``runs/benchmarks``, a
folder that git ignores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import driver
from benchmarks.environment import ROOT

SCRATCH = ROOT / "runs" / "benchmarks"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """An argument parser with the common options."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--device", default=None, help="default: cuda if available, else cpu")
    made.add_argument("--threads", type=int, default=1, help="CPU threads (default 1, for which CPU time is measured)")
    made.add_argument("--rounds", type=int, help="interleaved repetitions")
    made.add_argument("--seed", type=int, default=0)
    made.set_defaults(name=name)
    made.add_argument("--csv", type=Path, help="append the rows here")
    made.add_argument("--json", type=Path, help="write this run here")
    add_record(made)
    made.add_argument("--plot", type=Path, default=None, help="draw this run here (.png, .svg)")
    made.add_argument("--compare", type=Path, metavar="BASE", help="a .csv or .json of an earlier run")
    made.add_argument("--fail-above", type=float, metavar="FACTOR", help="with --compare: fail when slower than this")
    return made


def add_record(parser: argparse.ArgumentParser) -> None:
    """The option that lets a benchmark write to the repository's own files."""
    parser.add_argument("--record", action="store_true", help="write to the repository's own files, for a commit")


def place(tracked: Path, record: bool) -> Path:
    """``tracked`` itself with ``record``, else a file of that name that git ignores."""
    return tracked if record else SCRATCH / tracked.name


def device(options: argparse.Namespace) -> torch.device:
    """The requested device; also sets the number of threads and refuses meaningless combinations."""
    if options.fail_above is not None and options.compare is None:
        raise SystemExit("--fail-above needs a run to compare with; got none. Add --compare BASE.")
    torch.set_num_threads(options.threads)
    chosen = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda needs a CUDA device; PyTorch sees none. Use --device cpu.")
    return chosen


def progress(text: str) -> None:
    """Prints a line that overwrites itself on a terminal, and nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def csv_of(options: argparse.Namespace) -> Path:
    """The file to which a run's rows are added."""
    given: Path | None = options.csv
    return given or place(driver.RESULTS / f"{options.name}.csv", options.record)


def finish(
    options: argparse.Namespace,
    rows: Sequence[driver.Row],
    failed: Sequence[str] = (),
    *,
    appended: bool = False,
    **extra: object,
) -> int:
    """Append the rows, unless ``appended`` already, compare them with an earlier run, return the exit status."""
    progress("")
    if options.compare is not None:
        failed = [*failed, *_compare(options, rows)]
    csv = csv_of(options)
    if not appended:
        driver.append_csv(csv, rows)
    driver.write_json(options.json or place(driver.RESULTS / f"{options.name}.json", options.record), rows, **extra)
    print(f"{len(rows)} rows appended to {csv}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _compare(options: argparse.Namespace, rows: Sequence[driver.Row]) -> list[str]:
    failed = []
    print(f"\nagainst {options.compare} (median over median):")
    for row, factor in driver.compare(rows, driver.read_rows(options.compare)):
        name = f"{row.case}: {row.implementation}, {row.shape}"
        print(f"  {factor:6.3f}  {name}")
        if options.fail_above is not None and factor > options.fail_above:
            failed.append(f"{name} takes {factor:.3f} times as long as before (limit {options.fail_above})")
    return failed
