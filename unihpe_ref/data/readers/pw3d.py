"""3DPW: ``sequenceFiles/{train,validation,test}/*.pkl`` and ``imageFiles/<sequence>/image_00000.jpg``.

Each pickle (of Python 2, read without running anything) holds ``sequence``, ``poses2d`` (one ``(F, 3, 18)`` a person:
OpenPose's x, y and confidence), ``jointPositions`` (one ``(F, 72)`` a person: SMPL's 24 joints in world metres),
``poses``, ``betas``, ``trans``, ``genders``, ``cam_poses`` ``(F, 4, 4)`` world to camera, ``campose_valid`` and
``cam_intrinsics``. Frames whose camera is not valid are left out.

Results on 3DPW are reported on joints regressed from SMPL's vertices, which the files do not hold. With SMPL's model
files in ``smpl/`` beside ``sequenceFiles`` (:mod:`.smpl`) the 17 joints are regressed, too. Without them SMPL's own
joints are used where they correspond, and the top of the head is unknown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from unihpe_ref.unfit import unfit

from ..camera import project
from ..layouts import LAYOUTS
from ..recording import SPLITS, Lens, Recording, RecordingBuilder
from ..safe_pickle import load_pickle
from ..shapes import Array
from .common import picture_size, required
from .smpl import BodyModels

NAME = "3dpw"
TITLE = "3DPW"

FPS = 30.0
_KEYS = ("sequence", "poses2d", "jointPositions", "cam_poses", "campose_valid", "cam_intrinsics", "genders")


def find(path: Path) -> list[Path]:
    """Sequence files at or below ``path``."""
    if path.is_file():
        return [path] if path.suffix == ".pkl" and path.parent.name in SPLITS else []
    for folder in (path / "sequenceFiles", path):
        files = sorted(file for split in SPLITS for file in (folder / split).glob("*.pkl"))
        if files:
            return files
    return []


def read(path: Path) -> Recording:
    """Every person of every sequence, in the frames whose camera is known."""
    files = required(find(path), path, "3DPW's sequenceFiles")
    folder = files[0].resolve().parents[2] if files[0].parent.parent.name == "sequenceFiles" else files[0].parent
    models = BodyModels.near(folder)
    builder = RecordingBuilder(NAME, folder)
    builder.notes.append(
        "no SMPL model files in smpl/: joints are SMPL's own, without the head; protocols need the regressed ones"
        if models is None
        else f"joints regressed from SMPL's vertices with the files in {models.folder}"
    )
    for file in files:
        builder.sources.append(file)
        _read_sequence(file, builder, models)
    return builder.build()


def _read_sequence(file: Path, builder: RecordingBuilder, models: BodyModels | None) -> None:
    held = load_pickle(file, encoding="latin1")
    missing = [key for key in _KEYS if not isinstance(held, dict) or key not in held]
    if missing:
        raise unfit(f"{file} needs the entries {', '.join(_KEYS)}", f"no {', '.join(missing)}")
    name = str(held["sequence"])
    poses = np.asarray(held["cam_poses"], float)
    lens = np.asarray(held["cam_intrinsics"], float)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or lens.shape != (3, 3):
        came = f"{poses.shape} and {lens.shape}"
        raise unfit(f"{file} needs cam_poses (F, 4, 4) and cam_intrinsics (3, 3)", came)
    focal, principal = np.array([lens[0, 0], lens[1, 1]]), lens[:2, 2]
    pictures = Path("imageFiles") / name
    has_pictures = (builder.folder / pictures).is_dir()
    size = picture_size(builder.folder / pictures / "image_00000.jpg") if has_pictures else None
    size = size or ((1080, 1920) if principal[1] > principal[0] else (1920, 1080))
    for person in range(len(held["genders"])):
        world = _array(held, "jointPositions", person, (len(poses), 72), file).reshape(-1, 24, 3)
        found = _array(held, "poses2d", person, (len(poses), 3, 18), file)
        valid = np.asarray(held["campose_valid"][person]).ravel() != 0
        if len(valid) != len(poses):
            raise unfit(f"{file} needs campose_valid for {len(poses)} frames", str(len(valid)))
        rows = np.flatnonzero(valid)
        if not len(rows):
            builder.notes.append(f"{name}: no frame of person {person} has a valid camera")
            continue
        joints, _ = LAYOUTS["smpl24"].to_h36m(world[rows])
        if models is not None:
            joints = models.joints(held, person, rows, file)
        rotation, translation = poses[:, :3, :3], poses[:, :3, 3]
        joints_cam = joints @ rotation[rows].transpose(0, 2, 1) + translation[rows, None]
        lenses = [Lens(focal, principal, size, rotation=rotation[row], translation=translation[row]) for row in rows]
        cameras = [builder.camera("moving", lens, key=(name, int(row))) for row, lens in zip(rows, lenses)]
        detected, _ = LAYOUTS["coco18"].to_h36m(found[rows, :2].transpose(0, 2, 1), found[rows, 2])
        suffix = f" person {person}" if len(held["genders"]) > 1 else ""
        values = (joints_cam, focal, principal)
        builder.add(
            builder.sequence(
                f"{name}{suffix}", subject=f"{name}{suffix}", action=name.split("_")[0], split=file.parent.name, fps=FPS
            ),
            np.array(cameras),
            rows,
            joints_2d=project(*(torch.as_tensor(value) for value in values)).numpy(),
            joints_cam=joints_cam,
            detected_2d=detected,
            pictures=[f"{pictures.as_posix()}/image_{row:05d}.jpg" for row in rows] if has_pictures else None,
        )


def _array(held: dict[str, Any], key: str, person: int, shape: tuple[int, ...], file: Path) -> Array:
    values = np.asarray(held[key][person], float) if len(held[key]) > person else np.zeros(0)
    if values.shape != shape:
        raise unfit(f"{file} needs {key}[{person}] of shape {shape}", str(values.shape))
    return values
