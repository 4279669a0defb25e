"""A folder of pictures and a JSON of keypoints in COCO's form.

The JSON holds ``images`` (``id``, ``file_name``, ``width``, ``height``) and ``annotations`` (``image_id``, ``bbox`` as
x, y, width, height, and ``keypoints``: x, y and visibility of each joint, 0 for one that is not labelled). Which joints
these are follows from the names in ``categories``, else from their number and proportions. Crowds and people without a
labelled joint are left out; a joint is unknown if one of its source joints is. There is no 3D and no calibration: the
focal length is taken as the picture's diagonal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from unihpe_ref.unfit import reading, unfit

from ..joint_order import named_joints, people_in_h36m
from ..recording import Lens, Recording, RecordingBuilder, boxes_of
from .common import listed, required

NAME = "coco"
TITLE = "a folder of pictures with a COCO keypoint JSON"

_EXPORT = "Export it again."


def find(path: Path) -> list[Path]:
    """Keypoint files at or below ``path``."""
    if path.is_file():
        return [path] if path.suffix == ".json" and _looks_right(path) else []
    return sorted(file for place in (path, path / "annotations") for file in place.glob("*.json") if _looks_right(file))


def read(path: Path) -> Recording:
    """Every person with at least one labelled joint."""
    files = required(find(path), path, "a JSON of COCO keypoints")
    root = path if path.is_dir() else path.parent
    builder = RecordingBuilder(NAME, root)
    for file in files:
        builder.sources.append(file)
        _read_file(file, builder)
    return builder.build()


def _looks_right(path: Path) -> bool:
    """Whether a file holds images and annotations of keypoints; large files are checked once, when read."""
    if path.name.startswith("person_keypoints"):
        return True
    try:
        if path.stat().st_size > 64 << 20:
            return False
        held = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(held, dict) and {"images", "annotations"} <= set(held)


def _read_file(file: Path, builder: RecordingBuilder) -> None:
    with reading(f"{file} needs to be COCO's JSON, with `images` and `annotations`", _EXPORT):
        held: Any = json.loads(file.read_bytes())
        images = {
            image["id"]: (str(image["file_name"]), (int(image["width"]), int(image["height"])))
            for image in held["images"]
        }
        listed_people = [person for person in held["annotations"] if "keypoints" in person]
    people = []
    for person in listed_people:
        keypoints = np.asarray(person["keypoints"], float).ravel()
        if person.get("image_id") not in images or not keypoints.size or keypoints.size % 3:
            needed = f"{file} needs x, y, visibility for each joint, and a listed image, of each person"
            came = f"{keypoints.size} numbers for a person of image {person.get('image_id')!r}"
            raise unfit(needed, came, _EXPORT)
        if not person.get("iscrowd") and (keypoints[2::3] > 0).any():
            people.append((person, keypoints.reshape(-1, 3)))
    if not people:
        raise unfit(f"{file} needs people with labelled joints", "none", _EXPORT)
    if len(listed_people) > len(people):
        left = len(listed_people) - len(people)
        builder.notes.append(f"{left} crowds or people without a labelled joint left out of {file.name}")
    # frames in the order of the file's images
    number = {key: position for position, key in enumerate(images)}
    people.sort(key=lambda entry: number[entry[0]["image_id"]])
    names = named_joints(held.get("categories"))
    labelled = []
    for person, values in people:
        seen = values[:, 2:] > 0  # COCO's 1 means labelled but hidden
        marks = np.concatenate([np.where(seen, values[:, :2], np.nan), seen], 1)
        labelled.append((marks, names.get(person.get("category_id"))))
    joints, confidence, _, words = people_in_h36m(labelled, path=file)
    builder.notes += [f"{file.name}: {text}" for text in words]
    boxes = np.stack([_box(person.get("bbox"), marks[:, :2]) for (person, _), (marks, _) in zip(people, labelled)])
    places = _places(file, builder.folder)
    cameras, pictures = [], []
    lost: set[str] = set()
    for person, _ in people:
        name, size = images[person["image_id"]]
        if min(size) < 1:
            raise unfit(f"{file} needs the width and height of each image", f"{size} of {name!r}", _EXPORT)
        lens = Lens(np.hypot(*size), (np.array(size) - 1) / 2, size)
        cameras.append(builder.camera("assumed", lens, key=size, calibrated=False))
        picture = next((place / name for place in places if (place / name).is_file()), None)
        if picture is not None and builder.folder not in picture.parents:
            needed = f"{file} needs its pictures below {builder.folder}"
            raise unfit(needed, repr(name), "Write their names relative to it.")
        lost |= set() if picture else {name}
        pictures.append("" if picture is None else picture.relative_to(builder.folder).as_posix())
    if lost:
        builder.notes.append(f"{len(lost)} pictures of {file.name} are not there: {listed(lost)}")
    split = "train" if "train" in file.stem else "test"
    builder.add(
        builder.sequence(file.stem, subject="people", action="pictures", split=split, fps=1.0),
        np.array(cameras),
        np.array([number[person["image_id"]] for person, _ in people]),
        joints_2d=joints,
        confidence=confidence,
        box=boxes,
        pictures=pictures,
    )


def _box(given: Any, pixels: Any) -> Any:
    """The annotated box, padded and widened as in the rest of the package; without one, the box of labelled joints."""
    if given is not None and len(given) == 4 and given[2] > 0 and given[3] > 0:
        left, top, width, height = map(float, given)
        corners = np.array([[[left, top], [left + width, top + height]]])
        return boxes_of(corners)[0]
    return boxes_of(pixels[None])[0]


def _places(file: Path, root: Path) -> list[Path]:
    """The folders that may hold the pictures of a file: those below its root, the usual names first."""
    year = file.stem.rpartition("_")[2]  # person_keypoints_val2017: pictures in val2017/
    names = [".", "images", year, f"images/{year}", file.stem]
    tops = [root, file.parent]
    return [top / name for top in tops for name in names if (top / name).is_dir()]
