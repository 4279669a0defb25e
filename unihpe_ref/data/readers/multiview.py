"""Crops of synchronous calibrated views: a folder with ``annot.npz`` and the pictures it names.

``imgname`` (N,), ``cam``, ``frame``, ``K_full`` (N, 3, 3), ``R``, ``t`` (world to camera), ``img_wh``, ``affine``
(N, 3, 3) full-image pixels to the crop's, ``kp2d_full`` (N, 17, 2) and, optionally, ``kp2d_det_full`` (N, 17, 3) with a
confidence, ``joints_3d_cam`` (N, 17, 3) metres, ``ok`` (N,) and ``fps``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unihpe_ref.unfit import unfit

from ..recording import Lens, Recording, RecordingBuilder
from ..safe_pickle import read_npz
from .common import required

NAME = "multiview_crops"
TITLE = "crops of calibrated views (annot.npz)"

_KEYS = ("imgname", "cam", "frame", "K_full", "R", "t", "img_wh", "affine", "kp2d_full", "joints_3d_cam")


def find(path: Path) -> list[Path]:
    """``annot.npz`` at or in ``path``."""
    file = path / "annot.npz" if path.is_dir() else path
    return [file] if file.name == "annot.npz" and file.is_file() else []


def read(path: Path) -> Recording:
    """The samples marked ``ok``, or all samples if there are no marks."""
    files = required(find(path), path, "annot.npz")
    file = files[0]
    held = read_npz(file)
    missing = [key for key in _KEYS if key not in held]
    if missing:
        needed = f"{file} needs the entries {', '.join(_KEYS)}"
        raise unfit(needed, f"no {', '.join(missing)}", "Write all of them.")
    count = len(held["imgname"])
    for key in _KEYS:
        if len(held[key]) != count:
            needed = f"{file} needs {count} rows of `{key}`, as of `imgname`"
            raise unfit(needed, str(len(held[key])), "Write one row a picture.")
    builder = RecordingBuilder(NAME, file.parent)
    builder.sources.append(file)
    good = held["ok"].astype(bool) if "ok" in held else np.ones(count, bool)
    if not good.all():
        builder.notes.append(f"{count - int(good.sum())} of {count} samples are not marked ok and are left out")
    fps = float(held["fps"]) if "fps" in held else 30.0
    sequence = builder.sequence(file.parent.name, subject="1", action=file.parent.name, split="test", fps=fps)
    for camera in np.unique(held["cam"]):
        rows = np.flatnonzero((held["cam"] == camera) & good)
        rows = rows[np.argsort(held["frame"][rows], kind="stable")]
        if not len(rows):
            continue
        matrix, size, rotation, translation = (held[key][rows[0]] for key in ("K_full", "img_wh", "R", "t"))
        focal, principal = np.array([matrix[0, 0], matrix[1, 1]]), matrix[:2, 2]
        lens = Lens(focal, principal, size, rotation=rotation, translation=translation)
        found = held.get("kp2d_det_full")
        builder.add(
            sequence,
            builder.camera(str(camera), lens),
            held["frame"][rows],
            joints_2d=held["kp2d_full"][rows],
            joints_cam=held["joints_3d_cam"][rows],
            detected_2d=None if found is None else found[rows, :, :2],
            pictures=held["imgname"][rows].astype(str).tolist(),
            picture_affine=held["affine"][rows, :2],
        )
    return builder.build()
