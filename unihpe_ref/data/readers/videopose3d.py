"""Human3.6M as VideoPose3D stores it: ``data_3d_h36m.npz`` and, beside it, ``data_2d_h36m_*.npz``.

3D: ``positions_3d.item()[subject][action]``, ``(F, 32, 3)`` float32 world metres at 50 frames a second. 2D:
``positions_2d.item()[subject][action]``, a list of four ``(F', 17, 2)`` arrays of pixels, F' >= F. Both are pickled
dictionaries, read without running anything. The cameras are in VideoPose3D's source, ``common/h36m_dataset.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from multicontrast._checks import three_beats
from unihpe_ref.unfit import unfit

from ..camera import project
from ..layouts import LAYOUTS
from ..recording import Lens, Recording, RecordingBuilder
from ..safe_pickle import read_npz
from ..shapes import Array
from .common import H36M_CAMERAS, H36M_FPS, H36M_TEST, h36m_action, h36m_cameras, listed, required

NAME = "videopose3d"
TITLE = "Human3.6M, VideoPose3D's npz files"

_POSES = "data_3d_h36m.npz"
_TRUTH = "data_2d_h36m_gt.npz"
_DETECTED = ("data_2d_h36m_cpn_ft_h36m_dbb.npz", "data_2d_h36m_detectron_ft_h36m.npz")


def find(path: Path) -> list[Path]:
    """The file of 3D positions at, in, or in ``data/`` below ``path``."""
    candidates = [path] if path.name == _POSES else [path / _POSES, path / "data" / _POSES]
    return [file for file in candidates if file.is_file()][:1]


def read(path: Path) -> Recording:
    """Every frame in every view. Annotated joints are those of the ``gt`` file, or else the projected 3D joints;
    detected joints are CPN's, or else those of a Mask R-CNN, if their file exists."""
    files = required(find(path), path, f"VideoPose3D's {_POSES}")
    file = files[0]
    folder = file.parent
    found = h36m_cameras(folder)
    if found is None:
        needed = f"`read_data` needs the cameras of Human3.6M near {folder}, which these npz files lack"
        remedy = "Put VideoPose3D's common/h36m_dataset.py or mmpose's cameras.pkl beside them."
        raise FileNotFoundError(three_beats(needed, "neither h36m_dataset.py nor cameras.pkl", remedy))
    cameras, source = found
    poses = _nested(file, "positions_3d")
    truth = _nested(folder / _TRUTH, "positions_2d") if (folder / _TRUTH).is_file() else None
    detector = next((folder / name for name in _DETECTED if (folder / name).is_file()), None)
    detected = None if detector is None else _nested(detector, "positions_2d")

    builder = RecordingBuilder(NAME, folder)
    builder.notes.append(f"cameras from {source}")
    builder.sources += [file, source]
    if truth is None:
        builder.notes.append(f"no {_TRUTH}: annotated 2D joints are the 3D joints through the cameras")
    else:
        builder.sources.append(folder / _TRUTH)
    if detector is not None:
        builder.sources.append(detector)
        builder.notes.append(f"detected 2D joints from {detector.name}")
    longer = 0
    for subject, takes in poses.items():
        for name, world in takes.items():
            action, take = h36m_action(name)
            split = "test" if subject in H36M_TEST else "train"
            sequence = builder.sequence(f"{subject} {take}", subject=subject, action=action, split=split, fps=H36M_FPS)
            joints_world = _to_17(world, f"{file} [{subject}][{name}]")
            for view, camera_name in enumerate(H36M_CAMERAS):
                if (subject, camera_name) not in cameras:
                    needed = f"`read_data` needs the camera {camera_name} of {subject} in {source}"
                    raise unfit(needed, "none", "Take the file as its project publishes it.")
                lens = cameras[subject, camera_name]
                joints = joints_world @ np.asarray(lens.rotation).T + np.asarray(lens.translation)
                pixels, extra = _view(truth, subject, name, view, folder / _TRUTH, len(world))
                seen, _ = _view(detected, subject, name, view, detector or folder, len(world))
                longer += extra
                builder.add(
                    sequence,
                    builder.camera(camera_name, lens, key=(subject, camera_name)),
                    np.arange(len(world)),
                    joints_2d=_projected(joints, lens) if pixels is None else pixels,
                    joints_cam=joints,
                    detected_2d=seen,
                )
    if longer:
        builder.notes.append(f"2D longer than 3D in {longer} views, cut to the length of the 3D")
    if "S11" in poses and not any(h36m_action(name)[1] == "Directions" for name in poses["S11"]):
        builder.notes.append("S11 Directions is absent, as usual: its recording is corrupt")
    return builder.build()


def _nested(file: Path, entry: str) -> dict[str, dict[str, Any]]:
    arrays = read_npz(file, (entry,))
    held = arrays[entry].item() if entry in arrays and arrays[entry].shape == () else None
    if not isinstance(held, dict) or not all(isinstance(takes, dict) for takes in held.values()):
        needed = f"{file} needs `{entry}` as a dictionary of subjects, each a dictionary of actions"
        raise unfit(needed, f"entries {', '.join(arrays) or 'without it'}")
    return held


def _to_17(joints: Any, name: str) -> Array:
    joints = np.asarray(joints)
    known = joints.ndim == 3 and joints.shape[1] in (17, 32) and joints.shape[2] == 3 and joints.dtype.kind == "f"
    if not known or not len(joints):
        raise unfit(f"{name} needs floats of shape (F, 32, 3) or (F, 17, 3)", f"{joints.dtype} of shape {joints.shape}")
    return LAYOUTS[f"h36m{joints.shape[1]}"].to_h36m(joints.astype(np.float64))[0]


def _view(held: Any, subject: str, name: str, view: int, file: Path, frames: int) -> tuple[Array | None, int]:
    """The 2D joints of one view, cut to ``frames``, and whether it was longer."""
    if held is None:
        return None, 0
    views = held.get(subject, {}).get(name)
    if views is None or len(views) <= view:
        needed = f"{file} needs four views of {subject} {name!r}, as the 3D file has"
        came = f"{0 if views is None else len(views)} (it has {listed(held.get(subject, {}))})"
        raise unfit(needed, came, "Take 2D and 3D files that were made together.")
    pixels = np.asarray(views[view])
    if pixels.ndim != 3 or pixels.shape[1] != 17 or pixels.shape[2] < 2 or len(pixels) < frames:
        needed = f"{file} needs at least {frames} frames of (17, 2) pixels for {subject} {name!r}, view {view}"
        raise unfit(needed, f"shape {pixels.shape}", "Take 2D and 3D files that were made together.")
    return pixels[:frames, :, :2], int(len(pixels) > frames)


def _projected(joints: Array, lens: Lens) -> Array:
    values = (joints, lens.focal, lens.principal, lens.radial, lens.tangential)
    return project(*(torch.as_tensor(np.asarray(value, dtype=np.float64)) for value in values)).numpy()
