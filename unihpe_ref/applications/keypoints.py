"""Reads the 2D poses of detectors as the 17 joints of Human3.6M.

It reads COCO annotations and results, OpenPose, AlphaPose, mmpose's inferencer, and plain JSON. The layouts are those
of :data:`unihpe_ref.data.layouts.DETECTED`. Names in a file decide the layout of its joints. Without names their
number decides, and the proportions of the poses if several layouts have that number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multicontrast._checks import check_choice, check_floating, describe, three_beats
from unihpe_ref.data.joint_order import named_joints, people_in_h36m
from unihpe_ref.data.layouts import DETECTED, LAYOUTS
from unihpe_ref.data.shapes import all_finite
from unihpe_ref.unfit import reading, unfit

MIN_CONFIDENCE = 0.3
"""A detector's joint below this confidence is a guess; visibility flags of annotations (0, 1, 2) are far from it."""
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".heic")


@dataclass(frozen=True)
class Keypoints:
    """2D poses of N people.

    Attributes:
        joints_px: ``(N, 17, 2)`` float32, pixels of the full image; NaN where a joint is missing.
        confidence: ``(N, 17)`` float32 in [0, 1]; 0 where a joint is missing, 1 if the file states none.
        image: N names or numbers of images.
        image_size: ``(N, 2)`` width and height, or None if the file does not say.
        intrinsics: ``(N, 3, 3)``, or None if the file does not say.
        frame: N numbers of frames of one video, or None for pictures that do not belong together.
        person: N numbers that a tracker gave to people, or None.
        layout: the layout of the file's joints.
        notes: remarks about how the file was read, a sentence each.
    """

    joints_px: Tensor
    confidence: Tensor
    image: tuple[str, ...]
    image_size: Tensor | None = None
    intrinsics: Tensor | None = None
    frame: tuple[int, ...] | None = None
    person: tuple[int, ...] | None = None
    layout: str = "h36m17"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """N."""
        return len(self.image)

    @property
    def complete(self) -> Tensor:
        """Which poses have all 17 joints, ``(N,)`` bool."""
        return (self.confidence > 0).all(-1)

    def take(self, rows: Tensor) -> Keypoints:
        """Some of the poses, by their numbers."""
        found: dict[str, Any] = {}
        for name in ("joints_px", "confidence", "image", "image_size", "intrinsics", "frame", "person"):
            held = getattr(self, name)
            found[name] = tuple(held[k] for k in rows.tolist()) if isinstance(held, tuple) else held
            if isinstance(held, Tensor):
                found[name] = held[rows]
        return replace(self, **found)


def to_h36m(keypoints: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Joints of another layout as Human3.6M's 17.

    Args:
        keypoints: ``(N, J, 2)`` pixels, or ``(N, J, 3)`` with a confidence, which is 0 for a missing joint.
        layout: a name of ``unihpe_ref.data.layouts.LAYOUTS``.
    Returns: joints ``(N, 17, 2)``, NaN where missing, and confidence ``(N, 17)``, the least of the joints used.
    Raises: ValueError or TypeError for shapes and names that do not fit.

    Example:
        >>> joints, confidence = to_h36m(torch.rand(2, 17, 3), "coco17")
        >>> joints.shape, confidence.shape
        (torch.Size([2, 17, 2]), torch.Size([2, 17]))
    """
    check_choice("to_h36m", "layout", layout, LAYOUTS)
    check_floating("to_h36m", "keypoints", keypoints)
    count = LAYOUTS[layout].num_joints
    if keypoints.ndim != 3 or keypoints.shape[1] != count or keypoints.shape[2] not in (2, 3):
        needed = f"`to_h36m` needs {layout} keypoints of shape (N, {count}, 2 or 3)"
        raise ValueError(three_beats(needed, describe(keypoints), "Check `layout`."))
    values = keypoints.detach().cpu().numpy()
    joints, confidence = LAYOUTS[layout].to_h36m(values[..., :2], values[..., 2] if values.shape[2] == 3 else None)
    return torch.from_numpy(joints), torch.from_numpy(confidence)


def read_keypoints(path: Path | str, *, layout: str = "auto", min_confidence: float = MIN_CONFIDENCE) -> Keypoints:
    """Reads a file of 2D poses, or a folder of files, one for each image, in the order of their names.

    The formats are COCO annotations (``{"images": ..., "annotations": ..., "categories": ...}``), COCO and AlphaPose
    results (a list of objects with ``keypoints``), OpenPose's output (``{"people": ...}``), mmpose's (``instances``),
    and plain files::

        {"layout": "h36m17", "image_size": [1000, 1002], "intrinsics": [[1145, 0, 512], [0, 1144, 515], [0, 0, 1]],
         "keypoints": [[[u, v], ...17 joints...], ...poses...]}

    Args:
        path: of the JSON, or the folder.
        layout: of the joints; ``"auto"`` reads it from the file.
        min_confidence: joints at or below it are missing, and so are joints at (0, 0).
    Raises: OSError if nothing can be read; ValueError for files that are not JSON, of another format, or not in pixels.
    """
    if layout != "auto":
        check_choice("read_keypoints", "layout", layout, DETECTED)
    if not (math.isfinite(min_confidence) and 0 <= min_confidence < 1):
        needed = "`min_confidence` needs to be at least 0 and less than 1"
        raise ValueError(three_beats(needed, repr(min_confidence), f"{MIN_CONFIDENCE} drops a detector's guesses."))
    path = Path(path)
    with reading(f"`read_keypoints` needs a whole file of a known form at {path}", "Write it again."):
        people = list(_people_at(path))
    if not people:
        needed = f"`read_keypoints` needs people with joints in {path}"
        raise unfit(needed, "none", "Run the detector again, or choose another file.")
    _check_pixels(people, path)
    present = [(_present(person.joints, min_confidence), person.layout) for person in people]
    joints, confidence, used, notes = people_in_h36m(present, path=path, asked=layout)
    if origins := sum(int(_at_origin(person.joints).sum()) for person in people):
        notes.insert(0, f"{origins} joints at (0, 0) are taken as missing, whatever their confidence.")
    frames, persons = [person.frame for person in people], [person.person for person in people]
    sizes, matrices = [person.size for person in people], [person.intrinsics for person in people]
    return Keypoints(
        torch.from_numpy(joints).float(),
        torch.from_numpy(confidence).float(),
        tuple(person.image for person in people),
        None if None in sizes else torch.tensor(sizes),
        None if any(matrix is None for matrix in matrices) else torch.stack(matrices),  # type: ignore[arg-type]
        None if None in frames else tuple(frames),  # type: ignore[arg-type]
        None if None in persons else tuple(persons),  # type: ignore[arg-type]
        used,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Person:
    joints: np.ndarray  # (K, 3): pixels and confidence, as the file has them
    layout: tuple[str, ...] | str | None  # names of the joints, name of a layout, or neither
    image: str
    size: tuple[float, float] | None = None
    intrinsics: Tensor | None = field(default=None, compare=False)
    frame: int | None = None
    person: int | None = None


def _check_pixels(people: Sequence[_Person], path: Path) -> None:
    """Refuses poses without any confidence, and coordinates that are not pixels."""
    known = [person.joints[person.joints[:, 2] > 0, :2] for person in people]
    if not any(len(joints) for joints in known):
        needed = f"`read_keypoints` needs joints with a confidence above 0 in {path}"
        remedy = "Write the confidence, or leave the third number of each joint out."
        raise unfit(needed, "a confidence of 0 for every joint", remedy)
    most = max(float(np.nanmax(np.abs(joints))) for joints in known if len(joints))
    if most <= 2:
        remedy = "They are shares of the image: multiply u by its width and v by its height."
        raise unfit(f"`read_keypoints` needs pixels in {path}", f"no coordinate beyond {most:.3g}", remedy)


def _at_origin(values: np.ndarray) -> np.ndarray:
    return (values[..., :2] == 0).all(-1) & (values[..., 2] > 0)


def _present(values: np.ndarray, min_confidence: float) -> np.ndarray:
    """Joints with confidences in [0, 1]; NaN and 0 where they are missing."""
    values = values.copy()
    confidence = values[..., 2]
    confidence[_at_origin(values) | ~all_finite(values, -1) | (confidence <= min_confidence)] = 0
    np.clip(confidence, 0, 1, out=confidence)  # COCO's flag 2; AlphaPose's scores above 1
    values[confidence == 0, :2] = np.nan
    return values


def _people_at(path: Path) -> Iterator[_Person]:
    if not path.is_dir():
        yield from _people_of(_load(path), path)
        return
    files = sorted(path.glob("*.json"))
    if not files:
        needed = f"`read_keypoints` needs JSON files in {path}"
        raise unfit(needed, "none", "Point to the folder that the detector filled.")
    for position, file in enumerate(files):
        numbers = re.findall(r"\d+", file.stem)
        for person in _people_of(_load(file), file):
            frame = int(numbers[-1]) if numbers else position
            yield replace(person, image=file.stem, frame=frame) if person.frame is None else person


def _load(path: Path) -> Any:
    if not path.is_file():
        needed = f"`read_keypoints` needs a file or a folder at {path}"
        raise FileNotFoundError(three_beats(needed, "nothing there", "Check the path."))
    if path.suffix.lower() in _IMAGES:
        remedy = "Give pictures to `unihpe lift`, which finds the people."
        raise unfit(f"`read_keypoints` needs JSON in {path}", "a picture", remedy)
    with reading(f"`read_keypoints` needs JSON in {path}", "Write it again."):
        return json.loads(path.read_text(encoding="utf-8"))


def _people_of(content: Any, path: Path) -> Iterator[_Person]:
    if isinstance(content, dict):
        if isinstance(content.get("people"), list):
            return _openpose(content["people"], path, path.stem)
        if isinstance(content.get("annotations"), list):
            return _coco(content, path)
        if isinstance(content.get("instance_info"), list):
            return _mmpose(content["instance_info"], content.get("meta_info"), path)
        if "keypoints" in content:
            return _plain(content, path)
        bodies = [_bodies(held) for held in content.values()]
        if bodies and all(held is not None for held in bodies):  # AlphaPose's forms "cmu" and "open"
            pairs = zip(content, bodies)
            return (person for name, held in pairs for person in _openpose(held, path, str(name)))  # type: ignore[arg-type]
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        first = content[0]
        if "instances" in first or "keypoint_scores" in first:
            return _mmpose(content, None, path)
        return _coco({"annotations": content}, path)
    needed = f"`read_keypoints` needs keypoints of COCO, OpenPose, AlphaPose or mmpose, or plain ones, in {path}"
    came = f"an object with {sorted(map(str, content))[:5]}" if isinstance(content, dict) else describe(content)
    remedy = 'Write {"layout": ..., "image_size": [width, height], "keypoints": [[[u, v], ...], ...]}.'
    raise unfit(needed, came, remedy)


def _bodies(held: Any) -> list[Any] | None:
    found = held.get("people", held.get("bodies")) if isinstance(held, dict) else None
    return found if isinstance(found, list) else None


def _openpose(people: Sequence[Any], path: Path, image: str) -> Iterator[_Person]:
    for person in people:
        held = person if isinstance(person, dict) else {}
        joints = _joints(held.get("pose_keypoints_2d", held.get("joints")), 3, path)
        yield _Person(joints, None, image)


def _coco(content: Mapping[str, Any], path: Path) -> Iterator[_Person]:
    images = {image["id"]: image for image in content.get("images") or [] if isinstance(image, dict) and "id" in image}
    names = named_joints(content.get("categories"))
    people = [person for person in content["annotations"] if isinstance(person, dict) and "keypoints" in person]
    # AlphaPose names the frames of a video 0.jpg, 1.jpg, ...
    numbers = [re.fullmatch(r"(\d+)\.jpg", str(person.get("image_id"))) for person in people]
    video = not images and all(numbers)
    for number, person in zip(numbers, people):
        joints = _joints(person["keypoints"], 3, path)
        if not joints.any() or person.get("num_keypoints") == 0 or person.get("iscrowd"):
            continue  # COCO writes zeros for people without labels
        image = images.get(person.get("image_id"), {})
        track = person.get("track_id", person.get("idx"))
        yield _Person(
            joints,
            names.get(person.get("category_id")),
            str(image.get("file_name", person.get("image_id", ""))),
            size=(float(image["width"]), float(image["height"])) if {"width", "height"} <= set(image) else None,
            frame=int(number[1]) if video and number else None,
            person=int(track) if isinstance(track, (int, float)) else None,
        )


def _mmpose(items: Sequence[Any], meta: Any, path: Path) -> Iterator[_Person]:
    """A list of people in one picture, or of frames with ``instances``; ``meta_info`` may name the joints."""
    names: Any = meta.get("keypoint_id2name") if isinstance(meta, dict) else None
    if names is not None:
        names = tuple(str(names[key]) for key in sorted(names, key=int))
    for item in items:
        frame = item.get("frame_id")
        for person in item.get("instances", [item]):
            points = _array(person.get("keypoints"), path).reshape(-1, 2)
            scores = _array(person.get("keypoint_scores", np.ones(len(points))), path).reshape(-1)
            if len(scores) != len(points):
                needed = f"`read_keypoints` needs one of `keypoint_scores` for each joint in {path}"
                raise unfit(needed, f"{len(scores)} for {len(points)}", "Write the file again.")
            track = person.get("track_id")
            yield _Person(
                np.concatenate([points, scores[:, None]], 1),
                names,
                path.stem if frame is None else str(frame),
                frame=None if frame is None else int(frame),
                person=None if track is None else int(track),
            )


def _plain(content: Mapping[str, Any], path: Path) -> Iterator[_Person]:
    stated = content.get("layout")
    if stated is not None:
        check_choice("read_keypoints", "layout", stated, DETECTED)
    poses = _array(content["keypoints"], path)
    if poses.ndim == 2:
        poses = poses[None]
    if poses.ndim != 3 or poses.shape[2] not in (2, 3):
        needed = f"`read_keypoints` needs keypoints of shape (N, joints, 2 or 3) in {path}"
        raise unfit(needed, f"shape {poses.shape}", "Check the lists.")
    size = content.get("image_size")
    if size is not None:
        size = _array(size, path)
        if size.shape != (2,):
            needed = f"`read_keypoints` needs `image_size` as [width, height] in {path}"
            raise unfit(needed, f"shape {size.shape}", "One size for all poses.")
        size = (float(size[0]), float(size[1]))
    intrinsics = content.get("intrinsics")
    matrix = None if intrinsics is None else camera_matrix(_array(intrinsics, path).tolist())
    names = content.get("images", [str(k) for k in range(len(poses))])
    if len(names) != len(poses):
        needed = f"`read_keypoints` needs one of `images` for each pose in {path}"
        raise unfit(needed, f"{len(names)} for {len(poses)}", "Leave them out to number the poses.")
    for pose, name in zip(poses, names):
        yield _Person(_joints(pose, poses.shape[2], path), stated, str(name), size, matrix)


def camera_matrix(values: Any) -> Tensor:
    """K ``(3, 3)`` from a 3 x 3 list, or from the four numbers fx, fy, cx, cy.

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


def _joints(values: Any, width: int, path: Path) -> np.ndarray:
    """``(K, 3)`` from a flat or nested list with ``width`` numbers for each joint."""
    array = _array([] if values is None else values, path).reshape(-1)
    if not len(array) or len(array) % width:
        needed = f"`read_keypoints` needs {width} numbers for each joint in {path}"
        raise unfit(needed, f"{len(array)} for a person", "Write [u, v, confidence, ...].")
    rows = array.reshape(-1, width)
    return rows if width == 3 else np.concatenate([rows, np.ones((len(rows), 1))], 1)


def _array(values: Any, path: Path) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        needed = f"`read_keypoints` needs lists of numbers, all of one length, in {path}"
        raise unfit(needed, repr(values)[:80], "Write [[u, v, confidence], ...].") from None
