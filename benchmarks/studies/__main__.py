"""``python -m benchmarks.studies``: list the runs, run the missing ones, write the page, keep longer runs.

python -m benchmarks.studies list
python -m benchmarks.studies run --motion cmu17_60hz.npz --photographs real_multiview
python -m benchmarks.studies page
python -m benchmarks.studies keep runs/full --motion ../shared/data/cmu17_60hz.npz   # a longer run, finished or not
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.studies.page import write_page
from benchmarks.studies.plan import STUDIES
from benchmarks.studies.runs import FULL_SIZE, keep_run
from benchmarks.studies.trials import planned_trials, read_result, run_trial
from unihpe_ref.data import read_mocap


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 for input that does not fit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list all runs, and which are missing")
    commands.add_parser("page", help="write docs/unihpe/studies.md and its figures from the results")
    runner = commands.add_parser("run", help="do the missing runs, one by one; each result is written when it is done")
    runner.add_argument("--motion", type=Path, required=True, help="the recording (npz)")
    runner.add_argument("--photographs", type=Path, help="folder of the real crops; without it they are left out")
    runner.add_argument("--only", choices=STUDIES, action="append", help="only these studies")
    runner.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this many minutes")
    keeper = commands.add_parser("keep", help="evaluate a longer training run, and keep its results")
    keeper.add_argument("run", type=Path, help="folder of `unihpe train`")
    keeper.add_argument("--motion", type=Path, required=True, help="the recording (npz)")
    keeper.add_argument("--name", default=FULL_SIZE, help="of the result (default: the pair in the paper's size)")
    keeper.add_argument("--sampler-steps", type=int, help="of the evaluation; 50 lose 1-3 mm (default: the run's)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            for trial in planned_trials():
                result = read_result(trial)
                state = "missing" if result is None else f"{result['cpu_seconds']['all']:.0f} s"
                print(f"{trial.name:<36} {state}")
        elif options.command == "page":
            print(*write_page(), sep="\n")
        elif options.command == "keep":
            torch.set_num_threads(1)
            print(
                *keep_run(options.run, options.name, read_mocap(options.motion), sampler_steps=options.sampler_steps),
                sep="\n",
            )
        else:
            _run(options)
    except (ValueError, OSError) as error:
        print(f"studies: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    motion = read_mocap(options.motion)
    began = time.monotonic()
    while True:  # planned again after each run, because results choose the learning rates that are repeated
        missing = (c for c in planned_trials() if c.study in (options.only or STUDIES) and read_result(c) is None)
        if (trial := next(missing, None)) is None:
            return
        if time.monotonic() - began > 60 * options.minutes:
            print("Time is up; run the same command to continue.", flush=True)
            return
        print(run_trial(trial, motion, options.motion, options.photographs), flush=True)


if __name__ == "__main__":
    sys.exit(main())
