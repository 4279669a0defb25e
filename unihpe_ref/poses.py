"""Files of lifted poses: JSON for people and other programs, npz for NumPy. Both can be read back."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multicontrast._checks import three_beats
from unihpe_ref.data import SKELETON
from unihpe_ref.files import write_whole
from unihpe_ref.lifter import LiftedPoses

FORMAT = "unihpe-poses/1"
_FRAME = "camera axes: x right, y down, z forward; metres from the pelvis"


def save_poses(path: Path, poses: LiftedPoses, joints_px: Tensor, names: Sequence[str]) -> None:
    """Writes ``.json`` or ``.npz``, whole or not at all.

    Args:
        path: the ending decides.
        poses: N of them.
        joints_px: ``(N, 17, 2)``, what was lifted.
        names: N, of the images.
    """
    if path.suffix.lower() == ".npz":
        content = io.BytesIO()
        np.savez_compressed(
            content,
            format=np.array(FORMAT),
            frame=np.array(_FRAME),
            joint_names=np.array(SKELETON.joint_names),
            image=np.array(list(names)),
            joints_3d=poses.joints_3d.numpy(),
            root=poses.root.numpy(),
            joints_2d=joints_px.numpy(),
            reprojection_px=poses.reprojection_px.numpy(),
            clamped=poses.clamped.numpy(),
        )
        write_whole(path, content.getvalue())
        return
    people = [
        {
            "image": name,
            "joints_3d": _rounded(poses.joints_3d[k], 5),
            "root": _rounded(poses.root[k], 4),
            "joints_2d": _rounded(joints_px[k], 2),
            "reprojection_px": round(float(poses.reprojection_px[k]), 2),
            "clamped": bool(poses.clamped[k]),
        }
        for k, name in enumerate(names)
    ]
    head = {"format": FORMAT, "frame": _FRAME, "joint_names": SKELETON.joint_names, "poses": people}
    write_whole(path, (json.dumps(head) + "\n").encode())


def read_poses(path: Path) -> tuple[list[str], Tensor, Tensor] | None:
    """Names, 3D joints ``(N, 17, 3)`` and roots ``(N, 3)`` of a file of :func:`save_poses`; None for another kind.

    Raises: OSError where it cannot be read; ValueError where it is damaged.
    """
    if path.is_dir():
        return None
    if not path.is_file():
        raise FileNotFoundError(three_beats(f"`{path}` needs to be a file or a folder", "nothing", "Check the path."))
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as held:
                if "format" not in held.files or str(held["format"]) != FORMAT:
                    return None
                names = [str(name) for name in held["image"]]
                joints, root = (torch.from_numpy(held[name]) for name in ("joints_3d", "root"))
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                return None
            names = [str(pose["image"]) for pose in content["poses"]]
            joints, root = (torch.tensor([pose[name] for pose in content["poses"]]) for name in ("joints_3d", "root"))
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        needed = f"`{path}` needs to be a whole file"
        raise ValueError(three_beats(needed, f"something else ({error})", "Write it again.")) from None
    fits = joints.shape == (len(names), SKELETON.num_joints, 3) and root.shape == (len(names), 3)
    if not fits or not bool(joints.isfinite().all()):
        needed = f"`{path}` needs finite joints of shape (N, 17, 3)"
        raise ValueError(three_beats(needed, f"shape {tuple(joints.shape)}", "Write it again."))
    return names, joints.float(), root.float()


def _rounded(values: Tensor, digits: int) -> list[object]:
    rounded: list[object] = np.round(values.double().numpy(), digits).tolist()
    return rounded
