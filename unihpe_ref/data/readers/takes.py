"""Joins takes of motion capture, one file each, into a :class:`~unihpe_ref.data.motion.Motion`.

Shared by AMC/ASF and BVH: a folder of takes, their names, the held-out takes, and the floor.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unihpe_ref.unfit import unfit

from ..body import about
from ..motion import Motion
from ..shapes import Array
from .common import listed

ACTIONS_FILE = "actions.csv"
_HELD_OUT = 5  # every fifth take of a subject is for testing
_FOOT = 0.08  # metres: height of a standing ankle


@dataclass(frozen=True)
class Take:
    """One file: ``(F, 17, 3)`` metres, z up, its frame rate, and remarks."""

    joints: Array
    fps: float
    note: str = ""


def read_takes(files: Sequence[Path], read: Callable[[Path], Take]) -> Motion:
    """Reads and joins takes.

    Each take's floor is moved to z = 0: the second percentile of the lower ankle's height becomes 8 cm. Every fifth
    take of a subject, in the order of names, is held out for testing. Actions come from ``actions.csv`` beside a
    file (lines ``take,action``), else from the words in its name, or "motion" if it has none. Takes of a higher frame
    rate are thinned to the lowest, which must divide it.

    Raises: OSError or ValueError if a file cannot be read or frame rates do not go together.
    """
    takes = [read(file) for file in files]
    slowest = min(take.fps for take in takes)
    actions = {folder: _actions(folder / ACTIONS_FILE) for folder in {file.parent for file in files}}
    joints, subject, action, split, name = [], [], [], [], []
    counted: dict[str, int] = {}
    for file, take in zip(files, takes):
        step = round(take.fps / slowest)
        if abs(take.fps / slowest - step) > 0.02 * step:
            needed = f"`read_data` needs takes whose frame rates are whole multiples of {slowest:g} a second"
            raise unfit(needed, f"{take.fps:g} in {file}", "Read such takes from a folder of their own.")
        person = _subject_of(file)
        counted[person] = counted.get(person, 0) + 1
        points = take.joints[::step]
        if not np.isfinite(points).all():
            raise unfit(f"{file} needs finite joints", "NaN or infinity")
        points = points - np.array([0, 0, np.percentile(points[:, [3, 6], 2].min(1), 2) - _FOOT])
        joints.append(points)
        subject.append(person)
        action.append(actions[file.parent].get(file.stem) or action_of_name(file.stem))
        split.append("test" if counted[person] % _HELD_OUT == 0 else "train")
        name.append(file.stem)
    return Motion(
        joints=torch.from_numpy(np.concatenate(joints).astype(np.float32)),
        sequence=torch.arange(len(joints)).repeat_interleave(torch.tensor([len(points) for points in joints])),
        subject=tuple(subject),
        action=tuple(action),
        split=tuple(split),
        name=tuple(name),
        fps=float(slowest),
        notes=tuple(take.note for take in takes if take.note),
    )


def _subject_of(file: Path) -> str:
    """The subject: from CMU's file names ``subject_take``, else the folder's name."""
    match = re.fullmatch(r"(\d+)_\d+", file.stem)
    return match[1] if match else file.parent.name or "1"


_NO_ACTION = ("take", "motion", "subject", "mocap", "dataset", "data", "trial", "anim", "animation", "clip", "bvh")


def action_of_name(stem: str) -> str:
    """The words of a file's name without numbers: "walk1_subject2" gives "walk", "Run_Fast 03" gives "run_fast"."""
    words = [word.lower() for word in re.findall(r"[A-Za-z]{3,}", stem)]
    return "_".join(word for word in words if word not in _NO_ACTION) or "motion"


def _actions(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if any(len(row) != 2 for row in rows):
        raise unfit(f"{path} needs lines `take,action`", listed(rows), "Write two columns.")
    return {take.strip(): action.strip() for take, action in rows}


def to_z_up(points: Array) -> Array:
    """y up to z up by a proper rotation: ``(..., 3)`` (x, y, z) to (x, -z, y)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


def rotation_about(axis: str, degrees: Array) -> Array:
    """``(...)`` degrees to ``(..., 3, 3)`` rotations about "x", "y" or "z"."""
    return about(axis, torch.from_numpy(np.deg2rad(np.asarray(degrees, float)))).numpy()
