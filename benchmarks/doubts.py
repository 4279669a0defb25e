"""Measures the warnings, filled joints and smoothing of `unihpe lift` on poses whose truth is known.

    python -m benchmarks.doubts measure --motion cmu17_60hz.npz --photographs real_multiview   # a minute
    python -m benchmarks.doubts page

`measure` adds rows to `results/lifters/doubts.csv`; `page` writes the table of cameras into `docs/unihpe/lift.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import records
from benchmarks.environment import ROOT, describe_environment
from benchmarks.judged import photographs
from multicontrast.metrics import mpjpe
from unihpe_ref.applications.completion import complete, seen_from, steeply_seen, turned_by
from unihpe_ref.applications.lift_command import DOUBTFUL
from unihpe_ref.applications.tracks import smooth
from unihpe_ref.data import Motion, PoseSource, read_mocap
from unihpe_ref.files import write_whole
from unihpe_ref.lifter import load_lifter
from unihpe_ref.weights import lifter_path

RESULTS = ROOT / "benchmarks" / "results" / "lifters" / "doubts.csv"
PAGE = ROOT / "docs" / "unihpe" / "lift.md"
NOISE = 0.015  # of the person's size, on every 2D joint
CAMERAS = {
    0: "level",
    -22: "22 degrees below the person",
    -30: "30",
    -45: "45",
    30: "30 degrees above",
    45: "45",
    60: "60",
}
"""The table's words for an elevation in degrees."""
HEADS = {
    "error, mm": "mean error (mm)",
    "called steep": "called steep",
    "projects far": f"projects {100 * DOUBTFUL:g} % away",
}
_UPPER = (9, 10, 11, 12, 13, 14, 15, 16)  # head and arms
_LEGS = (1, 2, 3, 4, 5, 6)
_CLIP, _STEP = 90, 2  # frames of a clip, and every how many frames of the recording, for 30 a second
_REGION = re.compile(r"(<!-- table: steep -->\n).*?(<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure; a line of the CSV."""

    case: str
    figure: str
    value: float
    poses: int
    weights: str  # the first digits of the lifter's SHA-256
    torch: str
    commit: str
    date: str


Figure = tuple[str, str, float, int]
"""``(case, figure, value, poses)``."""


def cameras(motion: Motion) -> Iterator[Figure]:
    """Error and warnings by the elevation of the camera."""
    world = motion.joints[::37]
    lifter, matrix = load_lifter(), torch.diag(torch.tensor([1000.0, 1000.0, 1.0]))
    for degrees in CAMERAS:
        generator = torch.Generator().manual_seed(0)
        seen, truth = seen_from(world, (degrees, degrees), generator)
        noisy = _noisy(seen, generator)
        lifted = lifter.lift(noisy, intrinsics=matrix)
        steep, turned = steeply_seen(noisy), turned_by(noisy) != 0
        far = lifted.reprojection_px > DOUBTFUL * _extent(noisy)
        side = steep != 0 if degrees == 0 else steep == (1 if degrees > 0 else -1)
        case = f"camera {degrees:+d} degrees"
        yield case, "error, mm", 1000 * float(mpjpe(lifted.joints_3d, truth - truth[:, :1])), len(world)
        yield case, "called steep", float(side.float().mean()), len(world)
        yield case, "called turned", float(turned.float().mean()), len(world)
        yield case, "projects far", float(far.float().mean()), len(world)


def turns(name: str, joints: Tensor) -> Iterator[Figure]:
    """How often upright poses are called steep or turned, and turned poses turned by their angle."""
    clockwise = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    yield f"{name}, upright", "called steep", float((steeply_seen(joints) != 0).float().mean()), len(joints)
    yield f"{name}, upright", "called turned", float((turned_by(joints) != 0).float().mean()), len(joints)
    for degrees in (90, 180, 270):
        joints = joints @ clockwise.mT
        found = (turned_by(joints) == degrees).float().mean()
        yield f"{name}, turned by {degrees} degrees", "called turned", float(found), len(joints)


def missing(joints: Tensor, matrix: Tensor, truth: Tensor) -> Iterator[Figure]:
    """Errors, relative to the thorax, of seen and of estimated joints, and of the same joints of whole bodies."""
    lifter, count = load_lifter(), joints.shape[1]
    seen = {
        "portrait": list(_UPPER),
        "no legs": [joint for joint in range(count) if joint not in _LEGS],
    }
    whole = _from_thorax(lifter.lift(joints, intrinsics=matrix).joints_3d)
    truth = _from_thorax(truth)
    for case, members in seen.items():
        hidden = [joint for joint in range(count) if joint not in members]
        partial = joints.clone()
        partial[:, hidden] = torch.nan
        lifted = _from_thorax(lifter.lift(complete(partial)[0], intrinsics=matrix).joints_3d)
        for figure, which in (("seen joints, mm", members), ("estimated joints, mm", hidden)):
            yield case, figure, 1000 * float(mpjpe(lifted[:, which], truth[:, which])), len(joints)
            yield (
                f"{case}, whole body given",
                figure,
                1000 * float(mpjpe(whole[:, which], truth[:, which])),
                len(joints),
            )


def videos(motion: Motion) -> Iterator[Figure]:
    """Jitter and error of clips with and without smoothing, if one joint in a hundred is far off."""
    source, lifter, generator = PoseSource(motion), load_lifter(), torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    figures: dict[tuple[str, str], list[float]] = {}
    for start in range(0, len(source) - _STEP * _CLIP, len(source) // 24):
        frames = torch.arange(start, start + _STEP * _CLIP, _STEP)
        if len(motion.sequence[frames].unique()) > 1:
            continue
        batch = source.evaluation_batch(frames, camera=0)
        matrix = torch.diag_embed(torch.cat((batch.focal, torch.ones(_CLIP, 1)), -1))
        matrix[:, :2, 2] = batch.principal
        noisy = _noisy(batch.joints_2d, generator).double().numpy()
        wild = rng.random(noisy.shape[:2]) < 0.01
        noisy[wild] += 0.1 * float(_extent(batch.joints_2d).mean()) * rng.normal(size=(int(wild.sum()), 2))
        steady = smooth(noisy, range(_CLIP), motion.fps / _STEP)[0]
        tracks = {"as detected": noisy, "smoothed": steady}
        found = {
            name: lifter.lift(torch.from_numpy(t).float(), intrinsics=matrix).joints_3d for name, t in tracks.items()
        }
        for name, lifted in (found | {"true motion": batch.joints_3d}).items():
            shake = lifted.diff(n=2, dim=0).norm(dim=-1).mean()
            figures.setdefault((name, "shake, mm a frame squared"), []).append(1000 * float(shake))
            figures.setdefault((name, "error, mm"), []).append(1000 * float(mpjpe(lifted, batch.joints_3d)))
    for (name, figure), values in figures.items():
        yield f"video, {name}", figure, float(np.mean(values)), _CLIP * len(values)


def _noisy(joints: Tensor, generator: torch.Generator) -> Tensor:
    return joints + NOISE * _extent(joints)[:, None, None] * torch.randn(joints.shape, generator=generator)


def _extent(joints: Tensor) -> Tensor:
    return (joints.amax(1) - joints.amin(1)).amax(-1)


def _from_thorax(joints: Tensor) -> Tensor:
    return joints - joints[:, 8:9]


def measure(motion: Motion, pictures: Path | None) -> list[Row]:
    """All figures of the shipped lifter."""
    held_out = motion.select("test")
    source = PoseSource(held_out)
    batch = source.evaluation_batch(torch.arange(0, len(source), 151), camera=0)
    matrix = torch.diag_embed(torch.cat((batch.focal, torch.ones(len(batch), 1)), -1))
    matrix[:, :2, 2] = batch.principal
    noisy = _noisy(batch.joints_2d, torch.Generator().manual_seed(0))
    figures = [*cameras(held_out), *turns("recording", noisy), *missing(batch.joints_2d, matrix, batch.joints_3d)]
    figures += videos(held_out)
    if pictures is not None:
        figures += turns("photographs", next(photographs(pictures)).joints_px)
    environment = describe_environment(torch.device("cpu"), "none")
    held = {
        "weights": hashlib.sha256(lifter_path().read_bytes()).hexdigest()[:12],
        "torch": environment.torch,
        "commit": environment.commit,
        "date": environment.date,
    }
    return [
        Row(case=case, figure=figure, value=round(value, 3), poses=poses, **held)
        for case, figure, value, poses in figures
    ]


def table(path: Path = RESULTS) -> str:
    """The table of errors and warnings by camera, from the newest rows."""
    held = {(line["case"], line["figure"]): float(line["value"]) for line in records.latest(path)}
    lines = [["camera", *HEADS.values()], ["---", *["---:"] * len(HEADS)]]
    for degrees, words in CAMERAS.items():
        values = [held[f"camera {degrees:+d} degrees", figure] for figure in HEADS]
        lines.append([words, f"{values[0]:.0f}", *(f"{100 * share:.0f} %" for share in values[1:])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(page: str) -> str:
    """The page with its table regenerated."""
    return _REGION.sub(lambda match: f"{match[1]}\n{table()}\n\n{match[2]}", page)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 for input that does not fit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doubts", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measurer = commands.add_parser("measure", help="measure the shipped lifter, and add the rows to the results")
    measurer.add_argument("--motion", type=Path, required=True, help="the recording (npz)")
    measurer.add_argument("--photographs", type=Path, help="folder of the real crops; without it they are left out")
    commands.add_parser("page", help="write the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if options.command == "measure":
            for row in (rows := measure(read_mocap(options.motion), options.photographs)):
                print(f"{row.case:<34} {row.figure:<26} {row.value:8.3f}")
            records.append(RESULTS, rows)
        else:
            write_whole(PAGE, render(PAGE.read_text()).encode())
    except (ValueError, OSError) as error:
        print(f"doubts: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
