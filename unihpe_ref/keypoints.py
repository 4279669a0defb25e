"""2D poses as detectors write them: COCO, OpenPose and plain JSON, brought to the 17 joints of Human3.6M.

Layouts: ``coco17``, ``body25`` (OpenPose) and ``h36m17``. COCO has no trunk and no top of the head: they are weighted
means of its joints, with weights fitted on motion capture, where the spine is then off by 35 mm, the thorax by 16 mm
and the head by 29 mm on average. A joint is missing where its confidence is 0, and so is whatever needs it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multicontrast._checks import check_choice, check_floating, describe, three_beats
from unihpe_ref.data import SKELETON

COCO17 = (
    "nose", "leye", "reye", "lear", "rear", "lshoulder", "rshoulder", "lelbow", "relbow", "lwrist", "rwrist",
    "lhip", "rhip", "lknee", "rknee", "lankle", "rankle",
)  # fmt: skip
BODY25 = (
    "nose", "neck", "rshoulder", "relbow", "rwrist", "lshoulder", "lelbow", "lwrist", "midhip", "rhip", "rknee",
    "rankle", "lhip", "lknee", "lankle", "reye", "leye", "rear", "lear", "lbigtoe", "lsmalltoe", "lheel", "rbigtoe",
    "rsmalltoe", "rheel",
)  # fmt: skip
LAYOUTS: dict[str, tuple[str, ...]] = {"h36m17": SKELETON.joint_names, "coco17": COCO17, "body25": BODY25}

_HIPS, _SHOULDERS = ("lhip", "rhip"), ("lshoulder", "rshoulder")
_THORAX, _SPINE = 0.88, 0.42  # of the way from the middle of the hips to the middle of the shoulders
_HEAD = 1.69  # top of the head, in units of the way from the middle of the shoulders to the ears
_FACE = (("lear", "rear"), ("lear",), ("rear",), ("nose",))  # where the head is: the first of these that is seen


@dataclass(frozen=True)
class Keypoints:
    """2D poses of N people, in one image each.

    Attributes:
        joints_px: ``(N, 17, 2)`` float32, pixels of the full image; NaN where a joint is missing.
        confidence: ``(N, 17)`` float32; 0 where a joint is missing, 1 where the file says nothing.
        image: N names or numbers of images.
        image_size: ``(N, 2)`` width and height, or None where the file does not say.
        intrinsics: ``(N, 3, 3)``, or None where the file does not say.
    """

    joints_px: Tensor
    confidence: Tensor
    image: tuple[str, ...]
    image_size: Tensor | None = None
    intrinsics: Tensor | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.image)

    @property
    def complete(self) -> Tensor:
        """Who has all 17 joints, ``(N,)`` bool."""
        return (self.confidence > 0).all(-1)


def to_h36m(keypoints: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Joints of another layout as Human3.6M's 17.

    Args:
        keypoints: ``(N, J, 2)`` pixels, or ``(N, J, 3)`` with a confidence, which is 0 for a missing joint.
        layout: ``"coco17"``, ``"body25"`` or ``"h36m17"``.
    Returns: joints ``(N, 17, 2)``, NaN where missing, and confidence ``(N, 17)``, the least of the joints used.
    Raises: ValueError or TypeError for shapes and names that do not fit.

    Example:
        >>> joints, confidence = to_h36m(torch.rand(2, 17, 3), "coco17")
        >>> joints.shape, confidence.shape
        (torch.Size([2, 17, 2]), torch.Size([2, 17]))
    """
    check_choice("to_h36m", "layout", layout, LAYOUTS)
    check_floating("to_h36m", "keypoints", keypoints)
    names = LAYOUTS[layout]
    if keypoints.ndim != 3 or keypoints.shape[1] != len(names) or keypoints.shape[2] not in (2, 3):
        needed = f"`to_h36m` needs {layout} keypoints of shape (N, {len(names)}, 2 or 3)"
        raise ValueError(three_beats(needed, describe(keypoints), "Check `layout`."))
    given = keypoints[..., 2] if keypoints.shape[2] == 3 else torch.ones_like(keypoints[..., 0])
    seen = keypoints[..., :2].isfinite().all(-1) & (given > 0)
    confidence = torch.where(seen, given, torch.zeros_like(given))
    points = torch.where(seen[..., None], keypoints[..., :2], torch.nan)
    if layout == "h36m17":
        return points, confidence
    joint = {name: (points[:, k], confidence[:, k]) for k, name in enumerate(names)}
    hips = joint["midhip"] if layout == "body25" else _middle(joint, _HIPS)
    shoulders, face = _middle(joint, _SHOULDERS), _first_seen(joint)
    joint["pelvis"] = hips
    joint["spine"] = _between(hips, shoulders, _SPINE)
    joint["thorax"] = _between(hips, shoulders, _THORAX)
    joint["neck_nose"] = face
    joint["head"] = _between(shoulders, face, _HEAD)
    mapped = [joint[name] for name in SKELETON.joint_names]
    return torch.stack([point for point, _ in mapped], 1), torch.stack([value for _, value in mapped], 1)


_Joint = tuple[Tensor, Tensor]  # (N, 2) pixels, (N,) confidence


def _middle(joint: Mapping[str, _Joint], names: Sequence[str]) -> _Joint:
    points, confidence = zip(*(joint[name] for name in names))
    return torch.stack(points).mean(0), torch.stack(confidence).amin(0)


def _between(a: _Joint, b: _Joint, share: float) -> _Joint:
    return torch.lerp(a[0], b[0], share), torch.minimum(a[1], b[1])


def _first_seen(joint: Mapping[str, _Joint]) -> _Joint:
    point, confidence = _middle(joint, _FACE[0])
    for names in _FACE[1:]:
        other_point, other = _middle(joint, names)
        missing = confidence <= 0
        point = torch.where(missing[:, None], other_point, point)
        confidence = torch.where(missing, other, confidence)
    return point, confidence


def read_keypoints(path: Path | str, *, layout: str = "auto", min_confidence: float = 0.0) -> Keypoints:
    """Reads a file of 2D poses, or a folder of OpenPose files, one for each image, in the order of their names.

    Understood are COCO annotations (``{"images": ..., "annotations": ...}``), COCO results (a list of objects with
    ``keypoints``), OpenPose's output (``{"people": ...}`` with BODY-25), and plain files::

        {"layout": "h36m17", "image_size": [1000, 1002], "intrinsics": [[1145, 0, 512], [0, 1144, 515], [0, 0, 1]],
         "keypoints": [[[u, v], ...17 joints...], ...poses...]}

    Args:
        path: of the JSON, or the folder.
        layout: what the joints are; ``"auto"`` reads it from the file, which a plain file has to state.
        min_confidence: joints at or below it are missing.
    Raises: OSError where nothing can be read; ValueError where it is not JSON, or none of the above.
    """
    if layout != "auto":
        check_choice("read_keypoints", "layout", layout, LAYOUTS)
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            needed = f"`read_keypoints` needs JSON files in {path}"
            raise ValueError(three_beats(needed, "none", "Point to the folder that `--write_json` of OpenPose filled."))
        people = [person for file in files for person in _people_of(_load(file), file, layout)]
        where = path
    else:
        people, where = _people_of(_load(path), path, layout), path
    if not people:
        needed = f"`read_keypoints` needs people in {where}"
        raise ValueError(three_beats(needed, "none", "Run the detector again, or choose another file."))
    return _gather(people, min_confidence)


@dataclass(frozen=True)
class _Person:
    joints: Tensor  # (17, 2)
    confidence: Tensor  # (17,)
    image: str
    size: tuple[float, float] | None
    intrinsics: Tensor | None


def _load(path: Path) -> Any:
    if not path.is_file():
        needed = f"`read_keypoints` needs a file or a folder at {path}"
        raise FileNotFoundError(three_beats(needed, "nothing there", "Check the path."))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        needed = f"`read_keypoints` needs JSON in {path}"
        raise ValueError(three_beats(needed, f"something else ({error})", "Write it again.")) from None


def _people_of(content: Any, path: Path, layout: str) -> list[_Person]:
    if isinstance(content, dict) and isinstance(content.get("people"), list):
        return _openpose(content, path, layout)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _coco(content["annotations"], content.get("images") or [], path, layout)
    if isinstance(content, dict) and "keypoints" in content:
        return _plain(content, path, layout)
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        return _coco(content, [], path, layout)
    needed = f"`read_keypoints` needs COCO, OpenPose or plain keypoints in {path}"
    came = f"an object with {sorted(content)[:5]}" if isinstance(content, dict) else describe(content)
    remedy = 'Write {"layout": ..., "image_size": [width, height], "keypoints": [[[u, v], ...], ...]}.'
    raise ValueError(three_beats(needed, came, remedy))


def _openpose(content: Mapping[str, Any], path: Path, layout: str) -> list[_Person]:
    people = []
    for person in content["people"]:
        flat = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
        values = _numbers(flat, path)
        if len(values) == 3 * 18 and layout == "auto":
            needed = f"`read_keypoints` needs OpenPose's BODY-25 in {path}"
            raise ValueError(three_beats(needed, "18 joints (the COCO model)", "Run it with `--model_pose BODY_25`."))
        people.append(_person(values, 3, layout, "body25", path, image=path.stem))
    return people


def _coco(annotations: Sequence[Any], images: Sequence[Mapping[str, Any]], path: Path, layout: str) -> list[_Person]:
    known = {image["id"]: image for image in images if isinstance(image, dict) and "id" in image}
    people = []
    for annotation in annotations:
        if not isinstance(annotation, dict) or "keypoints" not in annotation:
            continue  # a person with a box alone
        values = _numbers(annotation["keypoints"], path)
        if not values.any() or annotation.get("num_keypoints") == 0:
            continue  # COCO writes zeros for people without labels
        image = known.get(annotation.get("image_id"), {})
        size = (float(image["width"]), float(image["height"])) if {"width", "height"} <= set(image) else None
        name = str(image.get("file_name", annotation.get("image_id", len(people))))
        people.append(_person(values, 3, layout, "coco17", path, image=name, size=size))
    return people


def _plain(content: Mapping[str, Any], path: Path, layout: str) -> list[_Person]:
    stated = content.get("layout", "auto") if layout == "auto" else layout
    if stated == "auto":
        needed = f"`read_keypoints` needs a layout for {path}"
        remedy = f'Add `"layout"` to the file, or `--layout`: one of {", ".join(LAYOUTS)}.'
        raise ValueError(three_beats(needed, "joints without names", remedy))
    check_choice("read_keypoints", "layout", stated, LAYOUTS)
    poses = _array(content["keypoints"], path)
    if poses.ndim == 2:
        poses = poses[None]
    if poses.ndim != 3 or poses.shape[1] != len(LAYOUTS[stated]) or poses.shape[2] not in (2, 3):
        needed = f"`read_keypoints` needs {stated} keypoints of shape (N, {len(LAYOUTS[stated])}, 2 or 3) in {path}"
        raise ValueError(three_beats(needed, f"shape {poses.shape}", "Check the layout."))
    size = content.get("image_size")
    if size is not None:
        size = _array(size, path)
        if size.shape != (2,):
            needed = f"`read_keypoints` needs `image_size` as [width, height] in {path}"
            raise ValueError(three_beats(needed, f"shape {size.shape}", "One size for all poses."))
        size = (float(size[0]), float(size[1]))
    intrinsics = content.get("intrinsics")
    matrix = None if intrinsics is None else camera_matrix(_array(intrinsics, path).tolist())
    names = content.get("images", [str(k) for k in range(len(poses))])
    if len(names) != len(poses):
        needed = f"`read_keypoints` needs one of `images` for each pose in {path}"
        raise ValueError(three_beats(needed, f"{len(names)} for {len(poses)}", "Leave them out to number the poses."))
    return [
        _person(pose.reshape(-1), poses.shape[2], stated, stated, path, image=str(name), size=size, intrinsics=matrix)
        for pose, name in zip(poses, names)
    ]


def camera_matrix(values: Any) -> Tensor:
    """K ``(3, 3)`` of a 3 x 3 list, or of the four numbers fx, fy, cx, cy.

    Raises: ValueError for anything else, and for focal lengths that are not positive.
    """
    needed, remedy = "`intrinsics` need to be a 3 x 3 matrix, or fx, fy, cx, cy", "Give pixels of the full image."
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(three_beats(needed, repr(values)[:80], remedy)) from None
    if array.shape == (4,):
        fx, fy, cx, cy = array
        array = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    fits = array.shape == (3, 3) and np.isfinite(array).all() and min(array[0, 0], array[1, 1]) > 0
    if not fits or array[2].tolist() != [0, 0, 1]:
        raise ValueError(three_beats(needed, repr(values)[:80], remedy))
    return torch.from_numpy(array).float()


def _person(
    values: np.ndarray,
    width: int,
    layout: str,
    default: str,
    path: Path,
    *,
    image: str,
    size: tuple[float, float] | None = None,
    intrinsics: Tensor | None = None,
) -> _Person:
    name = default if layout == "auto" else layout
    count = len(LAYOUTS[name])
    if len(values) != width * count:
        needed = f"`read_keypoints` needs {width * count} numbers ({name}) for each person in {path}"
        raise ValueError(three_beats(needed, f"{len(values)}", "State another `layout`, or convert the file."))
    pose = torch.from_numpy(values.reshape(1, count, width)).float()
    joints, confidence = to_h36m(pose, name)
    return _Person(joints[0], confidence[0], image, size, intrinsics)


def _numbers(values: Any, path: Path) -> np.ndarray:
    array = _array([] if values is None else values, path)
    return array.reshape(-1)


def _array(values: Any, path: Path) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        needed = f"`read_keypoints` needs lists of numbers, all of one length, in {path}"
        raise ValueError(three_beats(needed, repr(values)[:80], "Write [[u, v, confidence], ...].")) from None
    return array


def _gather(people: Sequence[_Person], min_confidence: float) -> Keypoints:
    if not (math.isfinite(min_confidence) and 0 <= min_confidence < 1):
        needed = "`min_confidence` needs to be at least 0 and less than 1"
        raise ValueError(three_beats(needed, repr(min_confidence), "0 takes every joint that the detector reports."))
    confidence = torch.stack([person.confidence for person in people])
    confidence = torch.where(confidence > min_confidence, confidence, 0.0)
    joints = torch.where((confidence > 0)[..., None], torch.stack([person.joints for person in people]), torch.nan)
    sizes = [person.size for person in people]
    matrices = [person.intrinsics for person in people]
    return Keypoints(
        joints,
        confidence,
        tuple(person.image for person in people),
        None if None in sizes else torch.tensor(sizes),
        None if any(matrix is None for matrix in matrices) else torch.stack(matrices),  # type: ignore[arg-type]
    )
