"""The shipped lifter: made from a training run, evaluated, and shown in tables.

    python -m benchmarks.lifters ship RUN
    python -m benchmarks.lifters judge --motion cmu17_60hz.npz --photographs real_multiview
    python -m benchmarks.lifters page

RUN is the folder of `unihpe train --preset lifter`; `ship` puts its model into the package, with a model card. `judge`
adds a row for each test set (`judged.py`) to `results/lifters/judged.csv`; `page` writes the tables from the rows.
`judge --weights FILE --name NAME` evaluates another lifter.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.environment import ROOT, describe_environment
from benchmarks.judged import FOCAL_LENGTHS, Judged, on_motion, photographs
from multicontrast._checks import three_beats
from multicontrast.metrics import mpjpe, pa_mpjpe
from unihpe_ref.applications.run import CONFIG, ENVIRONMENT, EVALUATION, LOG, MODEL
from unihpe_ref.checkpoint import load_model, save_model
from unihpe_ref.data import JOINT_NOISE, read_mocap
from unihpe_ref.files import write_whole
from unihpe_ref.lifter import Lifter, load_lifter
from unihpe_ref.models import UniHPE
from unihpe_ref.weights import ASSETS, CARD, LIFTER, WHOLE, lifter_path

RESULTS = ROOT / "benchmarks" / "results" / "lifters" / "judged.csv"
PAGES = (ROOT / "docs" / "unihpe" / "lift.md", ASSETS / "LIFTER.md")
NOISE = (0.0, 0.004, 0.01, 0.02)
"""Standard deviations in shares of the box; a person fills 0.8 of it."""
SHIPPED = "shipped"
COLUMNS = {
    ("four people, exact joints", ""): "before: four people, exact joints",
    ("four people, noisy joints", ""): "before: four people, noisy joints",
    (SHIPPED, "annotated"): "shipped, `annotated`",
    (SHIPPED, "detected"): "shipped, `detected`",
}
"""Heads of columns, by lifter and its `joints_2d`."""
_REGION = re.compile(r"(<!-- table: lifters -->\n).*?(<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One lifter on one kind of poses; a line of the CSV."""

    lifter: str
    weights: str  # the first digits of the file's SHA-256
    joints_2d: str  # as for `load_lifter`; "" for a lifter without a noise level as an input
    judged_on: str
    joint_noise: float  # standard deviation in shares of the box's longer side
    focal_length: float  # factor by which the assumed focal length is wrong
    count: int
    mpjpe: float  # mm, with the mirrored pose
    pa_mpjpe: float
    torch: str
    commit: str
    date: str


def ship(run: Path) -> list[Path]:
    """Puts the model of a run into the package, in half precision: the lifter, the whole, and their model card."""
    model, config = load_model(run / MODEL)
    if config.motion is not None:  # a path on the machine that trained
        config = config.override(motion=Path(config.motion.name))
    pair_config = config.override(**{"model.lifting_only": True})
    pair = UniHPE(pair_config.model)
    weights = model.state_dict()
    pair.load_state_dict({name: weights[name] for name in pair.state_dict()})
    save_model(pair.eval(), pair_config, ASSETS / LIFTER, dtype=torch.float16)
    save_model(model, config, ASSETS / WHOLE, dtype=torch.float16)
    environment = json.loads((run / ENVIRONMENT).read_text())
    last = json.loads((run / LOG).read_text().splitlines()[-1])
    card = {
        "preset": config.preset,
        "parameters": sum(parameter.numel() for parameter in pair.parameters()),
        "stored": "float16",
        "whole_sha256": hashlib.sha256((ASSETS / WHOLE).read_bytes()).hexdigest(),
        "trained": {
            "steps": {name: getattr(config, name).steps for name in ("lifting", "companions")},
            "torch": environment["packages"]["torch"],
            "threads": environment["threads"],
            "processor": environment["processor"],
            "wall_minutes": round(last["seconds"] / 60, 1),
        },
        "evaluation": _rounded(json.loads((run / EVALUATION).read_text())),
    }
    write_whole(ASSETS / CARD, (json.dumps(card, indent=1) + "\n").encode())
    return [ASSETS / LIFTER, ASSETS / WHOLE, ASSETS / CARD]


def judge(lifter: Lifter, weights: Path, name: str, joints_2d: str, sets: list[Judged]) -> list[Row]:
    """One row for each of ``sets``, with every level of noise if there is a truth to add it to."""
    environment = describe_environment(torch.device("cpu"), "none")
    digits = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    cases = [
        (given.name, noise, 1.0, given.with_noise(noise))
        for given in sets
        for noise in ((0.0,) if "photographs" in given.name else NOISE)
    ]
    cases += [(sets[0].name, 0.0, factor, sets[0].with_focal_length(factor)) for factor in FOCAL_LENGTHS]
    rows = []
    for judged_on, noise, focal_length, given in cases:
        lifted = lifter.lift(given.joints_px, intrinsics=given.intrinsics).joints_3d
        rows.append(
            Row(
                lifter=name,
                weights=digits,
                joints_2d=joints_2d,
                judged_on=judged_on,
                joint_noise=noise,
                focal_length=focal_length,
                count=len(lifted),
                mpjpe=round(1000 * float(mpjpe(lifted, given.joints_3d)), 2),
                pa_mpjpe=round(1000 * float(pa_mpjpe(lifted, given.joints_3d)), 2),
                torch=environment.torch,
                commit=environment.commit,
                date=environment.date,
            )
        )
    return rows


def read_rows(path: Path = RESULTS) -> dict[tuple[str, str, str, float, float], tuple[float, float]]:
    """(MPJPE, PA-MPJPE) in mm by (lifter, joints_2d, judged on, noise, focal length); the last line of a key counts."""
    found = {}
    for line in records.every(path):
        names = (line["lifter"], line["joints_2d"], line["judged_on"])
        key = (*names, float(line["joint_noise"]), float(line["focal_length"]))
        found[key] = (float(line["mpjpe"]), float(line["pa_mpjpe"]))
    return found


def table(path: Path = RESULTS) -> str:
    """MPJPE / PA-MPJPE of every lifter on all its test sets."""
    held = read_rows(path)
    lines = [["judged on", "2D joints", *COLUMNS.values()], ["---", "---", *["---:"] * len(COLUMNS)]]
    for judged_on, noise, focal_length in dict.fromkeys(key[2:] for key in held):
        if focal_length != 1:
            continue
        joints = "as they are" if "photographs" in judged_on else f"{100 * noise:g} % noise" if noise else "exact"
        cells = (held.get((*column, judged_on, noise, 1.0)) for column in COLUMNS)
        lines.append([judged_on, joints, *("" if cell is None else f"{cell[0]:.1f} / {cell[1]:.1f}" for cell in cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(page: str) -> str:
    """The page with its table regenerated."""
    return _REGION.sub(lambda match: f"{match[1]}\n{table()}\n\n{match[2]}", page)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 for input that does not fit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lifters", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shipper = commands.add_parser("ship", help="put the model of a training run into the package")
    shipper.add_argument("run", type=Path)
    judger = commands.add_parser("judge", help="measure a lifter, and add the rows to the results")
    judger.add_argument("--motion", type=Path, required=True, help="the recording (npz)")
    judger.add_argument("--photographs", type=Path, help="folder of the real crops; without it they are left out")
    judger.add_argument("--weights", type=Path, help="another lifter than the shipped one")
    judger.add_argument("--name", help="of another lifter")
    commands.add_parser("page", help="write the tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if options.command == "ship":
            if not (options.run / CONFIG).exists():
                needed = "`ship` needs the folder of a finished training run"
                raise ValueError(three_beats(needed, str(options.run), "`unihpe train --out` names it."))
            print(*ship(options.run), sep="\n")
        elif options.command == "judge":
            _judge(options)
        else:
            for page in PAGES:
                write_whole(page, render(page.read_text()).encode())
                print(page)
    except (ValueError, OSError) as error:
        print(f"lifters: {error}", file=sys.stderr)
        return 2
    return 0


def _judge(options: argparse.Namespace) -> None:
    if (options.weights is None) != (options.name is None):
        needed = "`judge` needs `--weights` and `--name` together"
        raise ValueError(three_beats(needed, "one of them", "Leave both out for the shipped lifter."))
    sets = list(on_motion(read_mocap(options.motion)))
    if options.photographs is not None:
        sets += photographs(options.photographs)
    weights = options.weights or lifter_path()
    takes_level = load_model(weights)[1].model.encoder_noise_token
    for joints_2d in JOINT_NOISE if takes_level else ("",):
        lifter = load_lifter(weights, joints_2d=joints_2d or "annotated")
        for row in (rows := judge(lifter, weights, options.name or SHIPPED, joints_2d, sets)):
            errors = f"{row.mpjpe:6.1f} / {row.pa_mpjpe:5.1f}"
            print(f"{row.joints_2d:<10} {row.judged_on:<62} {row.joint_noise:<6} {errors}")
        records.append(RESULTS, rows)


if __name__ == "__main__":
    sys.exit(main())
