"""What readers share: Human3.6M's names and cameras, the lens that a file implies, sizes of pictures."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from multicontrast._checks import three_beats
from unihpe_ref.unfit import reading

from ..pictures import open_picture
from ..recording import Lens
from ..safe_pickle import load_pickle
from ..shapes import Array, all_finite

MILLIMETRE = 1e-3

H36M_CAMERAS = ("54138969", "55011271", "58860488", "60457274")
"""In the order in which VideoPose3D lists the views."""
H36M_TEST = ("S9", "S11")
H36M_FPS = 50.0
H36M_SIZES = {"54138969": (1000, 1002), "55011271": (1000, 1000), "58860488": (1000, 1000), "60457274": (1000, 1002)}
_H36M_SYNONYMS = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog", "Greet": "Greeting", "Wait": "Waiting"}
_H36M_NAME = re.compile(r"(S\d+)[_ ](\w+?)(?:[_ ](\d))?\.(\d{8})(?:_(\d+))?(?:\.\w+)?$")


def h36m_action(name: str) -> tuple[str, str]:
    """The action and the take as all readers spell them: ``"WalkingDog 1"`` gives ``("WalkDog", "WalkDog 1")``."""
    base, _, number = re.sub("_", " ", name.strip()).partition(" ")
    base = _H36M_SYNONYMS.get(base, base)
    return base, f"{base} {number}".strip()


def h36m_picture(path: str) -> tuple[str, str, str, str, int] | None:
    """Subject, take, action, camera and frame (from 0, at 50 a second) from a picture's name; None for other names."""
    match = _H36M_NAME.search(path.replace("\\", "/").rsplit("/", 1)[-1])
    if match is None:
        return None
    subject, action, number, camera, frame = match.groups()
    action, take = h36m_action(action if number is None else f"{action} {number}")
    return subject, take, action, camera, int(frame or 1) - 1


def h36m_cameras(folder: Path) -> tuple[dict[tuple[str, str], Lens], Path] | None:
    """Human3.6M's calibration by (subject, camera), from the usual files near ``folder``.

    mmpose's ``cameras.pkl``, or VideoPose3D's ``common/h36m_dataset.py``, whose two tables are read as data: the file
    is parsed, never run. None if neither is in the folder, beside it, or above it.
    """
    near = [folder, folder / "annotation_body3d", folder.parent, folder.parent.parent]
    for place in near:
        if (place / "cameras.pkl").is_file():
            return _cameras_of_pickle(place / "cameras.pkl"), place / "cameras.pkl"
    for place in (*near, *(place / "common" for place in near)):
        if (place / "h36m_dataset.py").is_file():
            return _cameras_of_source(place / "h36m_dataset.py"), place / "h36m_dataset.py"
    return None


def _cameras_of_pickle(path: Path) -> dict[tuple[str, str], Lens]:
    held = load_pickle(path)
    needed = f"{path} needs {{(subject, camera): {{R, T, c, f, k, p, w, h}}}}"
    with reading(needed, "Write it with mmpose's converter."):
        return {(str(subject), str(name)): _camera_of_pickle(values) for (subject, name), values in held.items()}


def _camera_of_pickle(values: dict[str, Any]) -> Lens:
    # R turns camera axes into the world's, T is where the camera stands; in millimetres in older files
    rotation = np.asarray(values["R"], float).reshape(3, 3).T
    place = np.asarray(values["T"], float).reshape(3)
    place = place * MILLIMETRE if np.abs(place).max() > 100 else place
    return Lens(
        focal=np.asarray(values["f"], float).reshape(2),
        principal=np.asarray(values["c"], float).reshape(2),
        image_size=(int(values["w"]), int(values["h"])),
        radial=np.asarray(values["k"], float).reshape(3),
        tangential=np.asarray(values["p"], float).reshape(2),
        rotation=rotation,
        translation=-rotation @ place,
    )


def _cameras_of_source(path: Path) -> dict[tuple[str, str], Lens]:
    tables: dict[str, Any] = {}
    needed = f"{path} needs VideoPose3D's tables of intrinsic and extrinsic parameters"
    with reading(needed, "Take the file of the repository."):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name in ("h36m_cameras_intrinsic_params", "h36m_cameras_extrinsic_params"):
                    tables[name] = ast.literal_eval(node.value)
        lenses = tables["h36m_cameras_intrinsic_params"]
        stands = tables["h36m_cameras_extrinsic_params"]
        cameras = {}
        for subject, rows in stands.items():
            for lens, stand in zip(lenses, rows):
                if stand:  # empty for subjects whose poses were never published
                    rotation = rotation_of_quaternion(stand["orientation"]).T
                    place = np.asarray(stand["translation"], float) * MILLIMETRE
                    cameras[subject, str(lens["id"])] = Lens(
                        focal=np.asarray(lens["focal_length"], float),
                        principal=np.asarray(lens["center"], float),
                        image_size=(int(lens["res_w"]), int(lens["res_h"])),
                        radial=np.asarray(lens["radial_distortion"], float),
                        tangential=np.asarray(lens["tangential_distortion"], float),
                        rotation=rotation,
                        translation=-rotation @ place,
                    )
        return cameras


def rotation_of_quaternion(quaternion: Any) -> Array:
    """The rotation matrix ``(3, 3)`` of a quaternion (w, x, y, z) of any length."""
    w, x, y, z = np.asarray(quaternion, float) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def fitted_lens(joints_cam: Array, joints_2d: Array) -> tuple[Array, Array]:
    """Focal lengths and principal point that joints in the camera's frame and their pixels imply.

    Least squares of ``u Z = f X + c Z`` over all joints, each axis by itself: exact where the lens has no distortion.

    Args:
        joints_cam: ``(F, J, 3)``. joints_2d: ``(F, J, 2)`` pixels.
    Returns: focal ``(2,)`` and principal ``(2,)``.
    """
    points, pixels = joints_cam.reshape(-1, 3).astype(float), joints_2d.reshape(-1, 2).astype(float)
    known = all_finite(points, 1) & all_finite(pixels, 1) & (points[:, 2] > 0)
    points, pixels = points[known], pixels[known]
    rays = points[:, :2] / points[:, 2:]
    solved = [
        np.linalg.lstsq(np.stack([rays[:, axis], np.ones(len(rays))], 1), pixels[:, axis], rcond=None)[0]
        for axis in (0, 1)
    ]
    return np.array([solved[0][0], solved[1][0]]), np.array([solved[0][1], solved[1][1]])


def picture_size(picture: Path | bytes) -> tuple[int, int] | None:
    """Width and height from the header of a picture; None if it is missing or cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_picture(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            return opened.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def required(files: list[Path], path: Path, needed: str) -> list[Path]:
    """The files that a reader found at ``path``; raises if there are none."""
    if files:
        return files
    raise FileNotFoundError(three_beats(f"`read_data` needs {needed} at {path}", "none", "Check the path."))


def existing(folder: Path, *candidates: str) -> Path | None:
    """The first of some paths below a folder that exists."""
    return next((folder / name for name in candidates if (folder / name).exists()), None)


def listed(values: Any, most: int = 4) -> str:
    """A few names as text."""
    names = sorted(map(str, values))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
