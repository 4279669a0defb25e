"""MPI-INF-3DHP: ``S*/Seq*/annot.mat`` (training) and ``mpi_inf_3dhp_test_set/TS*/annot_data.mat`` (test).

Training: MATLAB cells of 14 videos; ``annot2[v]`` ``(F, 56)`` pixels and ``annot3[v]`` ``(F, 84)`` millimetres in the
camera's frame, 28 joints; videos 0-8 less 3 see the whole body and are read. Cameras: ``camera.calibration``.
Test: HDF5 files (MATLAB v7.3) with ``annot2`` ``(F, 1, 17, 2)``, ``annot3`` and ``univ_annot3`` ``(F, 1, 17, 3)`` and
``valid_frame``. Results are reported on ``univ_annot3``, whose skeleton has the universal height; frames that are not
valid are left out. The camera is fitted to ``annot2`` and ``annot3``; the fit is exact.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from unihpe_ref.unfit import reading, unfit

from ..layouts import LAYOUTS
from ..recording import Lens, Recording, RecordingBuilder
from ..safe_hdf5 import read_hdf5
from ..safe_mat import read_cells
from ..shapes import Array
from .common import MILLIMETRE, fitted_lens, required

NAME = "mpi_inf_3dhp"
TITLE = "MPI-INF-3DHP"

_TRAIN, _TEST = "annot.mat", "annot_data.mat"
VIDEOS = (0, 1, 2, 4, 5, 6, 7, 8)
TRAIN_SEQUENCES: dict[tuple[str, str], tuple[int, float]] = {  # frames of the video, frames a second
    ("S1", "Seq1"): (6416, 25.0), ("S1", "Seq2"): (12430, 50.0), ("S2", "Seq1"): (6502, 25.0),
    ("S2", "Seq2"): (6081, 25.0), ("S3", "Seq1"): (12488, 50.0), ("S3", "Seq2"): (12283, 50.0),
    ("S4", "Seq1"): (6171, 25.0), ("S4", "Seq2"): (6675, 25.0), ("S5", "Seq1"): (12820, 50.0),
    ("S5", "Seq2"): (12312, 50.0), ("S6", "Seq1"): (6188, 25.0), ("S6", "Seq2"): (6145, 25.0),
    ("S7", "Seq1"): (6239, 25.0), ("S7", "Seq2"): (6320, 25.0), ("S8", "Seq1"): (6468, 25.0),
    ("S8", "Seq2"): (6054, 25.0),
}  # fmt: skip
TEST_FPS = 25.0
ACTIVITIES = (
    "standing/walking", "exercising", "sitting", "crouching/reaching", "on the floor", "sports", "miscellaneous",
)  # fmt: skip
_CALIBRATION = re.compile(r"^\s*(name|size|intrinsic|extrinsic)\s+(.*)$")


def find(path: Path) -> list[Path]:
    """Annotation files of training and test sequences at or below ``path``."""
    if path.is_file():
        return [path] if path.name in (_TRAIN, _TEST) else []
    train = [f"{place}{_TRAIN}" for place in ("", "Seq*/", "S*/Seq*/", "train/S*/Seq*/")]
    test = [f"{place}{_TEST}" for place in ("", "TS*/", "mpi_inf_3dhp_test_set/TS*/", "test/TS*/")]
    return [
        file for patterns in (train, test) for file in sorted(f for pattern in patterns for f in path.glob(pattern))
    ]


def read(path: Path) -> Recording:
    """The eight videos of every training sequence, and the valid frames of every test sequence."""
    files = required(find(path), path, f"{_TRAIN} or {_TEST}")
    builder = RecordingBuilder(NAME, path if path.is_dir() else path.parent)
    for file in files:
        builder.sources.append(file)
        (_read_train if file.name == _TRAIN else _read_test)(file, builder)
    return builder.build()


def _read_train(file: Path, builder: RecordingBuilder) -> None:
    with reading(f"{file} needs to be a MATLAB file of version 5 or 7", also=(OSError,)):
        held = read_cells(file, ("annot2", "annot3"))
    subject, sequence = _place(file)
    frames, fps = TRAIN_SEQUENCES.get((subject, sequence), (None, 25.0))
    cameras = _calibration(file.parent / "camera.calibration")
    builder.sources += [file.parent / "camera.calibration"] if cameras else []
    number = builder.sequence(f"{subject} {sequence}", subject=subject, action=sequence, split="train", fps=fps)
    order = LAYOUTS["3dhp28"]
    for video in VIDEOS:
        pixels, points = (_cell(held, name, video, width, file) for name, width in (("annot2", 2), ("annot3", 3)))
        count = min(len(pixels), len(points), frames or len(pixels))
        lens = cameras.get(video)
        joints = order.to_h36m(points[:count])[0] * MILLIMETRE
        joints_2d, _ = order.to_h36m(pixels[:count])
        if lens is None:
            lens = Lens(*fitted_lens(joints, joints_2d), (2048, 2048))
            builder.notes.append(f"no camera.calibration of {subject} {sequence}: video {video} fitted to its joints")
        pictures = file.parent / "imageFrames" / f"video_{video}"
        builder.add(
            number,
            builder.camera(str(video), lens, key=(subject, sequence, video)),
            np.arange(count),
            joints_2d=joints_2d,
            joints_cam=joints,
            pictures=_names(pictures, "frame_{:06d}.jpg", np.arange(count) + 1, builder.folder),
        )


def _read_test(file: Path, builder: RecordingBuilder) -> None:
    needed = f"{file} needs to be an HDF5 file with annot2, annot3, univ_annot3 and valid_frame"
    with reading(needed, also=(OSError,)):
        held = read_hdf5(file, ("annot2", "annot3", "univ_annot3", "valid_frame", "activity_annotation"))
        pixels = np.asarray(held["annot2"], float).reshape(-1, 17, 2)
        metric, universal = (np.asarray(held[name], float).reshape(-1, 17, 3) for name in ("annot3", "univ_annot3"))
        valid = held["valid_frame"].ravel() != 0
        activity = held["activity_annotation"].ravel() if "activity_annotation" in held else None
    if not len(pixels) == len(metric) == len(universal) == len(valid):
        came = f"{len(valid)}, {len(pixels)}, {len(metric)}"
        raise unfit(f"{file} needs one valid_frame, annot2 and annot3 a frame", came)
    subject = file.parent.name
    order = LAYOUTS["3dhp17"]
    joints_2d, _ = order.to_h36m(pixels)
    size = (1920, 1080) if subject in ("TS5", "TS6") else (2048, 2048)
    camera = builder.camera(subject, Lens(*fitted_lens(order.to_h36m(metric)[0], joints_2d), size))
    joints = order.to_h36m(universal)[0] * MILLIMETRE
    named = np.full(len(valid), "test", object)
    if activity is not None and len(activity) == len(valid):
        inside = (activity >= 1) & (activity <= len(ACTIVITIES))
        named[inside] = np.array(ACTIVITIES, object)[activity[inside].astype(int) - 1]
    builder.notes.append(f"{subject}: {int(valid.sum())} valid of {len(valid)} frames; 3D joints are univ_annot3")
    for action in dict.fromkeys(named[valid]):
        rows = np.flatnonzero(valid & (named == action))
        builder.add(
            builder.sequence(f"{subject} {action}", subject=subject, action=action, split="test", fps=TEST_FPS),
            camera,
            rows,
            joints_2d=joints_2d[rows],
            joints_cam=joints[rows],
            pictures=_names(file.parent / "imageSequence", "img_{:06d}.jpg", rows + 1, builder.folder),
        )


def _place(file: Path) -> tuple[str, str]:
    parts = file.resolve().parent.parts
    return (parts[-2], parts[-1]) if len(parts) > 1 else ("S?", "Seq?")


def _cell(held: dict[str, list[Array]], name: str, video: int, width: int, file: Path) -> Array:
    cells = held.get(name, [])
    if len(cells) <= video:
        raise unfit(f"{file} needs `{name}` as cells of 14 videos", str(len(cells) or "none"))
    values = cells[video]
    if values.ndim != 2 or values.shape[1] != 28 * width:
        raise unfit(f"{file} needs `{name}[{video}]` of shape (F, {28 * width})", str(values.shape))
    return values.reshape(-1, 28, width).astype(float)


def _names(folder: Path, pattern: str, numbers: Array, root: Path) -> list[str] | None:
    if not folder.is_dir():
        return None
    place = folder.relative_to(root)
    return [f"{place.as_posix()}/{pattern.format(number)}" for number in numbers]


def _calibration(path: Path) -> dict[int, Lens]:
    """Cameras by the number of their video; world and camera in millimetres in the file."""
    if not path.is_file():
        return {}
    cameras: dict[int, Lens] = {}
    current: dict[str, list[float]] = {}
    with reading(f"{path} needs name, size, intrinsic (16) and extrinsic (16) of each camera"):
        for line in path.read_text().splitlines():
            match = _CALIBRATION.match(line)
            if match is None:
                continue
            current = {} if match[1] == "name" else current
            current[match[1]] = [float(value) for value in match[2].split()]
            if {"name", "size", "intrinsic", "extrinsic"} <= set(current):
                lens, pose = (np.array(current[key]).reshape(4, 4) for key in ("intrinsic", "extrinsic"))
                cameras[int(current["name"][0])] = Lens(
                    focal=np.array([lens[0, 0], lens[1, 1]]),
                    principal=lens[:2, 2],
                    image_size=(int(current["size"][0]), int(current["size"][1])),
                    rotation=pose[:3, :3],
                    translation=pose[:3, 3] * MILLIMETRE,
                )
    return cameras
