"""Files of lifted poses: JSON and npz, written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multicontrast._checks import three_beats
from unihpe_ref.data import SKELETON
from unihpe_ref.data.safe_pickle import read_npz
from unihpe_ref.files import write_json, write_whole
from unihpe_ref.lifter import LiftedPoses
from unihpe_ref.unfit import reading, unfit

FORMAT = "unihpe-poses/1"
_FRAME = "camera axes: x right, y down, z forward; metres from the pelvis"


@dataclass(frozen=True, kw_only=True)
class PoseSet:
    """N lifted poses, and what is known about them.

    Attributes:
        image: N names of pictures; poses of one picture share a name.
        joints_2d: ``(N, 17, 2)`` pixels, what was lifted.
        lifted: the poses in 3D.
        confidence: ``(N, 17)`` in [0, 1], 0 where a joint was not seen; 1 everywhere unless given.
        estimated: ``(N, 17)`` bool, joints that were filled in rather than seen; none unless given.
        joint_reprojection_px: ``(N, 17)``, how far each joint projects from the one in 2D.
        frame, time, person: for a video, N numbers each: the frame's number, its time in seconds, the person's number.
        spread: ``(N, 17)`` metres, root mean square deviation of a joint's hypotheses.
        assumed_focal: whether the focal length is assumed; every distance from the camera depends on it.
        pictures: encoded pictures by name, with width and height of the picture to which the joints' pixels refer.
    """

    image: Sequence[str]
    joints_2d: Tensor
    lifted: LiftedPoses
    confidence: Tensor | None = None
    estimated: Tensor | None = None
    joint_reprojection_px: Tensor | None = None
    frame: Sequence[int] | None = None
    time: Sequence[float] | None = None
    person: Sequence[int] | None = None
    spread: Tensor | None = None
    assumed_focal: bool = False
    pictures: Mapping[str, tuple[bytes, int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        """N."""
        return len(self.image)

    def columns(self) -> dict[str, np.ndarray]:
        """All arrays with a row for each pose, by their names in files."""
        found: dict[str, Any] = {
            "image": np.array(list(self.image)),
            "frame": self.frame,
            "time": self.time,
            "person": self.person,
            "joints_3d": self.lifted.joints_3d,
            "root": self.lifted.root,
            "joints_2d": self.joints_2d,
            "confidence": self.confidence,
            "estimated": self.estimated,
            "reprojection_px": self.lifted.reprojection_px,
            "joint_reprojection_px": self.joint_reprojection_px,
            "clamped": self.lifted.clamped,
            "spread": self.spread,
        }
        return {name: np.asarray(values) for name, values in found.items() if values is not None}


_DIGITS = {"joints_3d": 5, "root": 4, "joints_2d": 2, "confidence": 3, "spread": 4, "time": 4}


def save_poses(path: Path, poses: PoseSet) -> None:
    """Writes ``.json`` or ``.npz``, by the ending of ``path``."""
    columns = poses.columns()
    if path.suffix.lower() == ".npz":
        head: dict[str, Any] = {"format": FORMAT, "frame_of_axes": _FRAME, "joint_names": SKELETON.joint_names}
        head["assumed_focal"] = poses.assumed_focal
        entries: dict[str, Any] = {name: np.array(value) for name, value in head.items()} | columns
        write_whole(path, lambda file: np.savez_compressed(file, **entries))
        return
    for name, values in columns.items():
        if values.dtype.kind == "f":
            columns[name] = np.round(values.astype(float), _DIGITS.get(name, 2))
    rounded = {name: values.tolist() for name, values in columns.items()}
    people = [dict(zip(rounded, row)) for row in zip(*rounded.values())]
    held: dict[str, Any] = {"format": FORMAT, "frame": _FRAME, "joint_names": SKELETON.joint_names}
    held |= {"assumed_focal": poses.assumed_focal, "poses": people}
    write_json(path, held, indent=None)


def read_poses(path: Path) -> tuple[list[str], Tensor, Tensor] | None:
    """Names, 3D joints ``(N, 17, 3)`` and roots ``(N, 3)`` from a file of :func:`save_poses`; None for other files.

    Raises: OSError if it cannot be read; ValueError if it is damaged.
    """
    if path.is_dir():
        return None
    if not path.is_file():
        raise FileNotFoundError(three_beats(f"`{path}` needs to be a file or a folder", "nothing", "Check the path."))
    with reading(f"`{path}` needs to be a whole file", "Write it again."):
        if path.suffix.lower() == ".npz":
            held = read_npz(path)
            if str(held.get("format")) != FORMAT:
                return None
            names = [str(name) for name in held["image"]]
            joints, root = (torch.from_numpy(held[name]) for name in ("joints_3d", "root"))
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                return None
            names = [str(pose["image"]) for pose in content["poses"]]
            joints, root = (torch.tensor([pose[name] for pose in content["poses"]]) for name in ("joints_3d", "root"))
    fits = joints.shape == (len(names), SKELETON.num_joints, 3) and root.shape == (len(names), 3)
    if not fits or not bool(joints.isfinite().all() and root.isfinite().all()):
        needed = f"`{path}` needs finite joints of shape (N, 17, 3) and their roots (N, 3)"
        raise unfit(needed, f"shapes {tuple(joints.shape)} and {tuple(root.shape)}", "Write it again.")
    return names, joints.float(), root.float()
