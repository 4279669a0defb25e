"""A folder of pictures and a JSON of keypoints in COCO's form.

The JSON holds ``images`` (``id``, ``file_name``, ``width``, ``height``) and ``annotations`` (``image_id``, ``bbox`` as
x, y, width, height, and ``keypoints``: x, y and visibility of 17 joints, 0 for one that is not labelled). Crowds and
people without a labelled joint are left out. Pelvis, trunk and head are weighted means of hips, shoulders and ears
and are unknown where one of these is. There is no 3D and no calibration: the focal length is taken as the picture's
diagonal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from multicontrast._checks import three_beats

from ..layouts import LAYOUTS
from ..recording import Recording, RecordingBuilder, boxes_of
from .common import listed

NAME = "coco"
TITLE = "a folder of pictures with a COCO keypoint JSON"

_HEAD = 4096  # characters in which the keys of COCO's JSON are looked for


def find(path: Path) -> list[Path]:
    """Keypoint files at or below ``path``."""
    if path.is_file():
        return [path] if path.suffix == ".json" and _looks_right(path) else []
    return sorted(file for place in (path, path / "annotations") for file in place.glob("*.json") if _looks_right(file))


def read(path: Path) -> Recording:
    """Every person with at least one labelled joint."""
    files = find(path)
    if not files:
        raise FileNotFoundError(
            three_beats(f"`read_data` needs a JSON of COCO keypoints at {path}", "none", "Check the path.")
        )
    root = path if path.is_dir() else path.parent
    builder = RecordingBuilder(NAME, root)
    for file in files:
        builder.sources.append(file)
        _read_file(file, builder)
    return builder.build()


def _looks_right(path: Path) -> bool:
    """Whether images and annotations of keypoints are in it; large files are judged once, when read."""
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
    try:
        held: Any = json.loads(file.read_bytes())
        images = {image["id"]: image for image in held["images"]}
        people = [person for person in held["annotations"] if "keypoints" in person]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        needed = f"{file} needs to be COCO's JSON, with `images` and `annotations`"
        raise ValueError(three_beats(needed, f"something else ({error!r})", "Export it again.")) from None
    split = "train" if "train" in file.stem else "test"
    sequence = builder.sequence(file.stem, subject="people", action="pictures", split=split, fps=1.0)
    order = LAYOUTS["coco_17"]
    number = {key: position for position, key in enumerate(images)}
    places = _places(file, builder.folder)
    kept, rows, boxes, cameras, frames, pictures = 0, [], [], [], [], []
    lost: set[str] = set()
    for person in people:
        image = images.get(person.get("image_id"))
        keypoints = np.asarray(person["keypoints"], float)
        if image is None or keypoints.size != 51:
            needed = f"{file} needs 17 keypoints of a listed image for each person"
            came = f"{keypoints.size / 3:g} of image {person.get('image_id')!r}"
            raise ValueError(three_beats(needed, came, "Other layouts have to be mapped to COCO's 17 joints first."))
        keypoints = keypoints.reshape(17, 3)
        if person.get("iscrowd") or not (keypoints[:, 2] > 0).any():
            continue
        kept += 1
        size = (int(image["width"]), int(image["height"]))
        pixels = np.where(keypoints[:, 2:] > 0, keypoints[:, :2], np.nan)
        rows.append(np.concatenate([order.to_h36m(pixels), _seen(keypoints[:, 2])[:, None]], 1))
        boxes.append(_box(person.get("bbox"), pixels))
        principal = (np.array(size) - 1) / 2
        cameras.append(
            builder.camera("assumed", key=size, focal=np.hypot(*size), principal=principal, size=size, calibrated=False)
        )
        frames.append(number[image["id"]])
        picture = next((place / image["file_name"] for place in places if (place / image["file_name"]).is_file()), None)
        lost |= set() if picture else {str(image["file_name"])}
        pictures.append("" if picture is None else picture.relative_to(builder.folder).as_posix())
    if not kept:
        raise ValueError(three_beats(f"{file} needs people with labelled joints", "none", "Export it again."))
    if lost:
        builder.notes.append(f"{len(lost)} pictures of {file.name} are not there: {listed(lost)}")
    if len(people) > kept:
        builder.notes.append(f"{len(people) - kept} crowds or people without a labelled joint left out of {file.name}")
    order_of_frames = np.argsort(frames, kind="stable")
    both = np.stack(rows)[order_of_frames]
    builder.add(
        sequence,
        np.array(cameras)[order_of_frames],
        np.array(frames)[order_of_frames],
        joints_2d=both[..., :2],
        confidence=both[..., 2],
        box=np.stack(boxes)[order_of_frames],
        pictures=[pictures[index] for index in order_of_frames],
    )


def _seen(visibility: Any) -> Any:
    """1 where every source is labelled, 0 elsewhere (COCO's 1 is labelled though hidden)."""
    return LAYOUTS["coco_17"].confidence_to_h36m((visibility > 0).astype(float))


def _box(given: Any, pixels: Any) -> Any:
    """The annotated box padded and widened as everywhere; around the labelled joints where there is none."""
    if given is not None and len(given) == 4 and given[2] > 0 and given[3] > 0:
        left, top, width, height = map(float, given)
        corners = np.array([[[left, top], [left + width, top + height]]])
        return boxes_of(corners)[0]
    return boxes_of(pixels[None])[0]


def _places(file: Path, root: Path) -> list[Path]:
    """Where the pictures of a file may be: the folders below its root, the usual names first."""
    year = file.stem.rpartition("_")[2]  # person_keypoints_val2017: pictures in val2017/
    names = [".", "images", year, f"images/{year}", file.stem]
    tops = [root, file.parent]
    return [top / name for top in tops for name in names if (top / name).is_dir()]
