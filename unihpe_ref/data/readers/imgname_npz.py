"""Annotation in one npz with a row for each picture: mmpose's files of Human3.6M, SPIN's files of several data sets.

Both hold ``imgname``, ``center``, ``scale`` (side / 200), ``part`` and ``S``.

* mmpose: ``part`` ``(N, 17, 3)`` pixels and visibility, ``S`` ``(N, 17, 4)`` camera metres and visibility, from the
  camera, not from the pelvis. Pictures are in ``images/`` beside ``annotation_body3d/``, cameras in ``cameras.pkl``.
* SPIN: 24 joints in SPIN's order, ``S`` (if there is one) from the pelvis; the distance and the camera are unknown.

Pictures are numbered at the rate of the video: every fifth frame of Human3.6M is 1, 6, 11 and so on.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np

from unihpe_ref.unfit import unfit

from ..layouts import LAYOUTS
from ..recording import Lens, Recording, RecordingBuilder
from ..safe_pickle import read_npz
from ..shapes import Array
from .common import (
    H36M_FPS,
    H36M_SIZES,
    H36M_TEST,
    fitted_lens,
    h36m_cameras,
    h36m_picture,
    picture_size,
    required,
)
from .mpi_inf_3dhp import TRAIN_SEQUENCES

NAME = "imgname_npz"
TITLE = "Human3.6M by mmpose, or SPIN's npz files"

_KEYS = ("imgname", "center", "scale", "part", "S")
_TOOLS = "Write it with mmpose's or SPIN's tools."
_3DHP_TRAIN = re.compile(r"(S\d)[/_](Seq\d)[/_](?:imageFrames/)?(?:video_|Cam)(\d+)[/_](?:frame_)?(\d+)\.")
_3DHP_TEST = re.compile(r"(TS\d)[/_](?:imageSequence/)?(?:img_)?(\d+)\.")
_3DPW = re.compile(r"imageFiles/([^/]+)/image_(\d+)\.")


def find(path: Path) -> list[Path]:
    """Annotation files at or below ``path``; of mmpose's two frame rates the lower one."""
    if path.is_file():
        return [path] if path.suffix == ".npz" and {"imgname", "scale"} <= _entries(path) else []
    for folder in (path / "annotation_body3d", path):
        for rate in ("fps10", "fps50"):
            files = [folder / rate / f"h36m_{split}.npz" for split in ("train", "test")]
            if any(file.is_file() for file in files):
                return [file for file in files if file.is_file()]
    return sorted(file for file in path.glob("*.npz") if {"imgname", "scale", "center"} <= _entries(file))


def read(path: Path) -> Recording:
    """All samples of the files at ``path``."""
    files = required(find(path), path, "npz files with `imgname`")
    folder = _pictures_of(files[0])
    builder = RecordingBuilder(NAME, folder)
    held: set[str] = set()
    for file in files:
        held |= _read_file(file, builder, held)
    return builder.build()


def _entries(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()


def _pictures_of(file: Path) -> Path:
    """The folder to which a file's picture names are relative: where its first picture is, or where it should be."""
    name = str(next(iter(read_npz(file, ("imgname",)).get("imgname", [])), ""))
    near = (file.parent, *file.resolve().parents[1:3])
    places = [folder for place in near for folder in (place / "images", place)]
    there = [place for place in places if name and (place / name).is_file()]
    return next(iter([*there, *(place for place in places[::2] if place.is_dir())]), file.parent)


def _read_file(file: Path, builder: RecordingBuilder, before: set[str]) -> set[str]:
    """Adds the samples whose pictures no file ``before`` had, and returns the names of these pictures."""
    arrays = read_npz(file, _KEYS)
    builder.sources.append(file)
    missing = {"imgname", "center", "scale"} - set(arrays)
    if missing:
        raise unfit(f"{file} needs the entries {', '.join(_KEYS)}", f"no {', '.join(sorted(missing))}", _TOOLS)
    arrays["imgname"] = arrays["imgname"].astype(str)  # some are bytes
    new = np.array([name not in before for name in arrays["imgname"].tolist()], bool)
    if not new.all():  # the same set at 10 and at 50 frames a second, or in two places
        builder.notes.append(f"{int((~new).sum())} samples of {file} are left out: another file has their pictures")
        arrays = {key: array[new] if len(array) == len(new) else array for key, array in arrays.items()}
    names = arrays["imgname"].tolist()
    if not names:
        return set()
    part, solid = arrays.get("part"), arrays.get("S")
    joints = next((array.shape[1] for array in (part, solid) if array is not None and array.ndim == 3), 24)
    for name, array, width in (("part", part, 3), ("S", solid, 4)):
        if array is not None and array.shape != (len(names), joints, width):
            needed = f"{file} needs `{name}` of shape ({len(names)}, 17 or 24, {width})"
            raise unfit(needed, str(array.shape), _TOOLS)
    if joints not in (17, 24):
        raise unfit(f"{file} needs 17 joints (mmpose) or 24 (SPIN)", str(joints), "Convert the file.")
    absolute = joints == 17
    order = LAYOUTS["h36m17" if absolute else "spin24"]
    first = _3DHP_TRAIN.search(names[0]) or _3DHP_TEST.search(names[0]) if names else None
    if absolute and first is not None:  # mmpose's file of MPI-INF-3DHP is in that data set's order
        order = LAYOUTS["3dhp17"]
    if solid is None:
        builder.notes.append(f"{file.name} holds no 3D joints")
    found = h36m_cameras(file.parent)
    if found is not None:
        builder.notes.append(f"cameras from {found[1]}")
        builder.sources.append(found[1])
    cameras = {} if found is None else found[0]

    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    facts: dict[tuple[str, str], tuple[str, str, str, float, tuple[int, int] | None]] = {}
    for row, name in enumerate(names):
        sequence, camera, frame, fact = _parsed(name, file)
        groups.setdefault((sequence, camera), []).append((frame, row))
        facts[sequence, camera] = fact
    for (sequence, camera), members in groups.items():
        subject, action, split, fps, size = facts[sequence, camera]
        members.sort()
        frames, rows = np.array(members).T
        pixels = confidence = points = None
        if part is not None:
            marks = part[rows].astype(np.float32)
            pixels, confidence = order.to_h36m(marks[..., :2], marks[..., 2])
        if solid is not None:
            points, _ = order.to_h36m(solid[rows, :, :3].astype(np.float32), solid[rows, :, 3])
        lens = cameras.get((subject, camera))
        calibrated = lens is not None
        if lens is None and absolute and pixels is not None and points is not None:
            focal, principal = fitted_lens(points, pixels)
            lens, calibrated = Lens(focal, principal, size or _twice(principal)), True
            builder.notes.append(f"camera {camera} of {sequence} fitted to its own 2D and 3D joints")
        if lens is None:
            size = picture_size(builder.folder / names[rows[0]]) or size or (1000, 1000)
            lens = Lens(np.hypot(*size), (np.asarray(size, float) - 1) / 2, size)
        center, side = arrays["center"][rows], np.ravel(arrays["scale"][rows]) * 200
        own_box = np.concatenate([center, side[:, None] * 1.25 / 1.2], 1)
        builder.add(
            builder.sequence(sequence, subject=subject, action=action, split=split, fps=fps),
            builder.camera(
                camera,
                lens,
                key=(subject, camera, tuple(lens.image_size)) if calibrated and cameras else (sequence, camera),
                calibrated=calibrated,
            ),
            frames,
            joints_2d=pixels,
            confidence=confidence,
            joints_cam=points if absolute else None,
            joints_3d=None if absolute or points is None else points - points[:, :1],
            box=own_box if pixels is None or not np.isfinite(pixels).all() else None,
            pictures=[names[row] for row in rows],
        )
    return set(names)


def _twice(principal: Array) -> tuple[int, int]:
    return round(2 * float(principal[0])), round(2 * float(principal[1]))


def _parsed(name: str, file: Path) -> tuple[str, str, int, tuple[str, str, str, float, tuple[int, int] | None]]:
    """Sequence, camera, frame, and (subject, action, split, frame rate, size of the picture if known)."""
    human = h36m_picture(name)
    if human is not None:
        subject, take, action, camera, frame = human
        split = "test" if subject in H36M_TEST else "train"
        return f"{subject} {take}", camera, frame, (subject, action, split, H36M_FPS, H36M_SIZES.get(camera))
    match = _3DHP_TRAIN.search(name)
    if match:
        subject, sequence, camera, number = match.groups()
        fps = TRAIN_SEQUENCES.get((subject, sequence), (0, 25.0))[1]
        return f"{subject} {sequence}", camera, int(number) - 1, (subject, sequence, "train", fps, (2048, 2048))
    match = _3DHP_TEST.search(name)
    if match:
        subject, number = match.groups()
        size = (1920, 1080) if subject in ("TS5", "TS6") else (2048, 2048)
        return subject, "test", int(number) - 1, (subject, "test", "test", 25.0, size)
    split = next((split for split in ("test", "validation", "train") if split in file.stem), "train")
    match = _3DPW.search(name)
    if match:
        return match[1], "3dpw", int(match[2]), (match[1], match[1].split("_")[0], split, 30.0, None)
    folder, _, last = name.rpartition("/")
    digits = re.findall(r"\d+", last)
    return folder or file.stem, "unknown", int(digits[-1]) if digits else 0, ("unknown", "unknown", split, 1.0, None)
