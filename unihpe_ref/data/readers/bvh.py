r"""BVH: a skeleton and its motion in one text file.

A joint with offset o and channels in the order of the file:

.. math::
    R_{joint} = R_{parent} \, R_{channel_1} R_{channel_2} R_{channel_3}, \qquad p_{joint} = p_{parent} + R_{parent}\, o

Positions replace the offset of the root. BVH states neither unit nor vertical axis. The unit is whichever of metre,
decimetre, centimetre, inch, CMU's 1/0.45 inch and millimetre gives the longest plausible leg (0.55 to 1.15 m), and up
is the axis along which the head is above the feet. Joints are found by name, in the spelling of any of the usual rigs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multicontrast._checks import check_choice
from unihpe_ref.unfit import reading, unfit

from ..motion import Motion
from ..shapes import Array
from ..skeleton import SKELETON
from .common import listed, required
from .takes import Take, read_takes, rotation_about, to_z_up

NAME = "bvh"
TITLE = "motion capture, BVH"

_UNITS = (1.0, 0.1, 0.0254 / 0.45, 0.0254, 0.01, 0.001)
_LEG = (0.55, 1.15)  # metres, hip to ankle

# Names of each joint in common exports, letters only. The first that exists is used, with the lowest number.
_SIDED = {
    "hip": ("upleg", "upperleg", "thigh", "thighbend", "femur", "hip", "hipjoint", "buttock"),
    "knee": ("leg", "lowerleg", "knee", "shin", "calf", "lowleg", "tibia"),
    "ankle": ("foot", "ankle"),
    "shoulder": ("arm", "upperarm", "shldr", "shldrbend", "shoulder", "uparm", "humerus"),
    "elbow": ("forearm", "forearmbend", "lowerarm", "elbow", "lowarm", "radius"),
    "wrist": ("hand", "wrist"),
}
_NECKS, _HEADS, _TOPS = ("neck", "neckupper"), ("head",), ("headend", "headtop", "headtopend", "headnub", "headsite")
_KNOWN = {name for names in _SIDED.values() for name in names} | {*_NECKS, *_HEADS, *_TOPS}
_NOISE = ("jnt", "joint", "bone", "bind", "def", "j", "c")  # prefixes and suffixes to ignore
_UNTOLD = re.compile(  # never one of the 17, so errors about missing joints do not list them
    r"finger|thumb|index|middle|ring|pinky|pinkie|metacarpal|carpal|toe|eye|lid|brow|lip|mouth|jaw|tongue|teeth|cheek"
    r"|nose|nostril|ear\b|orbicularis|oculi|levator|risorius|temporalis|twist|roll|special| end$",
    re.IGNORECASE,
)
# Human3.6M's proportions, in lengths of a leg: neck/nose and top of the head above the middle of the shoulders
_NECK_HEIGHT, _TOP_HEIGHT, _LOW_TOP = 0.13, 0.26, 0.22
_SPINE_SHARE, _SPINE_OFF = 0.42, 0.2  # share of the way from hips to shoulders, and how far off a joint may be
_ALIEN = 5.0  # times the fastest other step, above which the first frame belongs to another motion


@dataclass
class _Joint:
    name: str
    parent: int
    offset: Array
    channels: tuple[str, ...]


def find(path: Path) -> list[Path]:
    """BVH files at or below ``path``."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".bvh" else []
    return sorted(file for file in path.rglob("*") if file.suffix.lower() == ".bvh" and file.is_file())


def read(path: Path, joints: Mapping[str, str] | None = None) -> Motion:
    """All takes at or below ``path``; ``joints`` as :func:`read_bvh`."""
    files = required(find(path), path, "BVH files")
    return read_takes(files, lambda file: read_bvh(file, joints))


_MOST_JOINTS = 1000  # including hands and faces


def read_bvh(path: Path, joints: Mapping[str, str] | None = None) -> Take:
    """One file.

    Args:
        path: of the file.
        joints: which joints of the file stand for which of the 17, by name; takes precedence.
    Raises: ValueError if it is damaged or its joints have names that are not known.
    """
    words = path.read_text(encoding="latin-1").split()
    with reading(f"{path} needs to be a whole BVH file", "Copy or export it again."):
        tree, position = _hierarchy(words)
        if [word.upper() for word in words[position : position + 2]] != ["MOTION", "FRAMES:"]:
            raise ValueError("no MOTION after the skeleton")
        frames, seconds = int(words[position + 2]), float(words[position + 5])
        values = np.array(words[position + 6 :], float)
        width = sum(len(joint.channels) for joint in tree)
        if frames < 1 or width < 1 or values.size != frames * width or not np.isfinite(values).all() or not seconds > 0:
            raise ValueError(f"{values.size} numbers for {frames} frames of {width}")
    body = _Body(path, tree, *_places(tree, values.reshape(frames, width)))
    points = _upright(_metres(body.to_17(dict(joints or {})), path), path)
    if _begins_elsewhere(points):
        return Take(points[1:], 1 / seconds, f"{path.name}: the first frame belongs to no motion and is left out")
    return Take(points, 1 / seconds)


def _begins_elsewhere(points: Array) -> bool:
    """Whether the first of at least four frames is far from the second, because exports may begin with a T-pose."""
    step = np.linalg.norm(np.diff(points, axis=0), axis=-1).mean(-1)
    return len(step) >= 3 and step[0] > 0.02 and step[0] > _ALIEN * step[1:].max()


def _hierarchy(words: list[str]) -> tuple[list[_Joint], int]:
    joints: list[_Joint] = []
    stack: list[int] = []
    position = 1 if words[0].upper() == "HIERARCHY" else 0
    while words[position].upper() != "MOTION":
        word = words[position].upper()
        if word in ("ROOT", "JOINT", "END"):
            ended = bool(stack) and joints[stack[-1]].name.endswith(" end")
            if ended or len(joints) >= _MOST_JOINTS:
                raise ValueError("a joint within an end" if ended else f"more than {_MOST_JOINTS} joints")
            name = words[position + 1] if word != "END" else f"{joints[stack[-1]].name} end"
            joints.append(_Joint(name, stack[-1] if stack else -1, np.zeros(3), ()))
            position += 2
        elif word == "{":
            stack.append(len(joints) - 1)
            position += 1
        elif word == "}":
            stack.pop()
            position += 1
        elif word == "OFFSET":
            joints[stack[-1]].offset = np.array([float(value) for value in words[position + 1 : position + 4]])
            position += 4
        elif word == "CHANNELS":
            count = int(words[position + 1])
            if not 0 <= count <= 6:
                raise ValueError(f"{count} channels")
            names = tuple(name.lower() for name in words[position + 2 : position + 2 + count])
            if not all(re.fullmatch(r"[xyz](position|rotation)", name) for name in names):
                raise ValueError(f"channels {' '.join(names)}")
            joints[stack[-1]].channels = names
            position += 2 + count
        else:
            raise ValueError(f"the word {words[position]!r} in the skeleton")
    if stack:
        raise ValueError("a skeleton whose braces do not close")
    return joints, position


def _places(joints: list[_Joint], values: Array) -> tuple[Array, Array]:
    """Forward kinematics: places ``(F, joints, 3)`` in the unit of the file, and rotations ``(F, joints, 3, 3)``."""
    frames = len(values)
    turns: list[Array] = []
    places: list[Array] = []
    column = 0
    for joint in joints:
        turn = np.broadcast_to(np.eye(3), (frames, 3, 3))
        offset = np.broadcast_to(joint.offset, (frames, 3)).copy()
        for channel in joint.channels:
            axis, kind = channel[0], channel[1:]
            if kind == "rotation":
                turn = turn @ rotation_about(axis, values[:, column])
            else:
                offset[:, "xyz".index(axis)] = values[:, column]
            column += 1
        if joint.parent >= 0:
            offset = places[joint.parent] + (turns[joint.parent] @ offset[..., None])[..., 0]
            turn = turns[joint.parent] @ turn
        turns.append(turn)
        places.append(offset)
    return np.stack(places, 1), np.stack(turns, 1)


def _plain(name: str) -> tuple[str, str, int]:
    """Side, name and number of a joint: "mixamorig:LeftUpLeg" is l, upleg, 0; "upperarm01.L" is l, upperarm, 1.

    Prefixes and suffixes of rigs are ignored: the longest known end of the name counts.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name.rpartition(":")[2])]
    words = [word for word in words if word not in _NOISE]
    number = 0
    side = ""
    while words and (words[-1].isdigit() or words[-1] in _SIDES):
        last = words.pop()
        number, side = (int(last), side) if last.isdigit() else (number, _SIDES[last])
    for start in range(len(words)):
        before, rest = words[:start], "".join(words[start:])
        own = side or next((_SIDES[word] for word in reversed(before) if word in _SIDES), "")
        for letters, spelt in (("", own), ("left", "l"), ("right", "r"), ("l", "l"), ("r", "r")):  # "lhip", "RIGHTHIP"
            if rest.startswith(letters) and rest[len(letters) :] in _KNOWN:
                return spelt, rest[len(letters) :], number
    return side, "".join(words), number


_SIDES = {"l": "l", "left": "l", "r": "r", "right": "r"}


@dataclass
class _Body:
    """A moving skeleton that is converted to the 17 joints."""

    path: Path
    joints: list[_Joint]
    places: Array  # (F, joints, 3)
    turns: Array  # (F, joints, 3, 3)

    def __post_init__(self) -> None:
        self.rest = np.zeros((len(self.joints), 3))
        for number, joint in enumerate(self.joints):
            self.rest[number] = joint.offset + (self.rest[joint.parent] if joint.parent >= 0 else 0)
        self.index: dict[tuple[str, str], list[int]] = {}
        named = [(*_plain(joint.name), number) for number, joint in enumerate(self.joints)]
        for side, name, _, number in sorted(named, key=lambda entry: entry[2:]):
            self.index.setdefault((side, name), []).append(number)

    def first(self, side: str, names: tuple[str, ...]) -> int | None:
        """The joint of the first of some names that exists, the one with the lowest number."""
        return next((self.index[side, name][0] for name in names if (side, name) in self.index), None)

    def to_17(self, asked: dict[str, str]) -> Array:
        """``(F, 17, 3)``. Raises: ValueError if a limb or the head is not found."""
        chosen, missing = self._asked(asked), []
        for side in "lr":
            for joint, names in _SIDED.items():
                # "LeftShoulder" is the collar bone if there is a "LeftArm", so the names are tried in that order
                found = self.first(side, names)
                if side + joint in chosen:
                    continue
                if found is None:
                    missing.append(side + joint)
                else:
                    chosen[side + joint] = found
        head = chosen.get("head", self.first("", _HEADS))
        necks = [number for name in _NECKS for number in self.index.get(("", name), [])]
        if head is None and not necks:
            missing.append("head")
        if missing:
            needed = f"{self.path} needs joints for {', '.join(missing)} under one of the usual names"
            there = [joint.name for joint in self.joints if not _UNTOLD.search(joint.name)]
            came = ", ".join(there[:24]) + (f" and {len(there) - 24} more" if len(there) > 24 else "")
            raise unfit(needed, came, f"Say which: `--joints {missing[0]}=NAME ...`.")
        points = {name: self.places[:, number] for name, number in chosen.items()}
        points.setdefault("pelvis", (points["lhip"] + points["rhip"]) / 2)
        points.setdefault("thorax", (points["lshoulder"] + points["rshoulder"]) / 2)
        rest = {name: self.rest[number] for name, number in chosen.items()}
        hips, shoulders = ((rest["l" + name] + rest["r" + name]) / 2 for name in ("hip", "shoulder"))
        leg = sum(float(np.linalg.norm(rest["r" + a] - rest["r" + b])) for a, b in (("hip", "knee"), ("knee", "ankle")))
        if "spine" not in points:
            points["spine"] = self._spine(points, hips, shoulders, necks[0] if necks else head)
        self._head(points, shoulders, leg, head, necks)
        return np.stack([points[name] for name in SKELETON.joint_names], 1)

    def _asked(self, asked: dict[str, str]) -> dict[str, int]:
        numbers = {joint.name.lower(): number for number, joint in enumerate(self.joints)}
        for target, name in asked.items():
            check_choice("`--joints`", "joint", target, SKELETON.joint_names)
            if name.lower() not in numbers:
                near = difflib.get_close_matches(name, [joint.name for joint in self.joints], n=3, cutoff=0.4)
                remedy = f"Did you mean {', '.join(near)}?" if near else "Take a name of the file."
                raise unfit(f"{self.path} needs the joint that `--joints` names", repr(name), remedy)
        return {target: numbers[name.lower()] for target, name in asked.items()}

    def _spine(self, points: dict[str, Array], hips: Array, shoulders: Array, top: int | None) -> Array:
        """The spine joint nearest to the middle, or the point there if no joint is near."""
        best, apart = None, _SPINE_OFF
        number = -1 if top is None else self.joints[top].parent
        up = shoulders - hips
        while number >= 0:
            share = (self.rest[number] - hips) @ up / (up @ up)
            if abs(share - _SPINE_SHARE) < apart:
                best, apart = number, abs(share - _SPINE_SHARE)
            number = self.joints[number].parent
        if best is None:
            return points["pelvis"] + _SPINE_SHARE * (points["thorax"] - points["pelvis"])
        return self.places[:, best]

    def _head(self, points: dict[str, Array], shoulders: Array, leg: float, head: int | None, necks: list[int]) -> None:
        """Neck and top of the head: the joints nearest to where Human3.6M has them, or their continuation above."""
        last = necks[-1] if head is None else head
        chain = [*necks, *([] if head is None else [head])]
        up = self.rest[last] - shoulders
        up = up / max(np.linalg.norm(up), 1e-12)

        def height(number: int) -> float:
            return float((self.rest[number] - shoulders) @ up)

        if "neck_nose" not in points:
            points["neck_nose"] = self.places[
                :, min(chain, key=lambda number: abs(height(number) - _NECK_HEIGHT * leg))
            ]
        if "head" in points:
            return
        tops = [self.first("", _TOPS)] + [number for number, joint in enumerate(self.joints) if joint.parent == last]
        best = max((number for number in tops if number is not None), key=height, default=None)
        if best is not None and height(best) >= _LOW_TOP * leg:
            points["head"] = self.places[:, best]
        else:  # an end site of length 0: carry on along the axis of the head
            more = max(_TOP_HEIGHT * leg - height(last), 0.06 * leg) * up
            points["head"] = self.places[:, last] + self.turns[:, last] @ more


def _metres(points: Array, path: Path) -> Array:
    leg = np.median(
        np.linalg.norm(points[:, 1] - points[:, 2], axis=-1) + np.linalg.norm(points[:, 2] - points[:, 3], axis=-1)
    )
    for unit in _UNITS:
        if _LEG[0] <= leg * unit <= _LEG[1]:
            return points * unit
    needed = f"{path} needs a leg of {_LEG[0]} to {_LEG[1]} m in metres, inches, CMU's unit, centimetres or millimetres"
    raise unfit(needed, f"{leg:.4g} units", "Scale the file.")


def _upright(points: Array, path: Path) -> Array:
    rise = (points[:, SKELETON.index("head")] - points[:, [3, 6]].mean(1)).mean(0)
    axis = int(np.abs(rise).argmax())
    if axis == 0 or rise[axis] < 0:
        came = f"a head that is {listed(np.round(rise, 2))} m above the feet"
        raise unfit(f"{path} needs y or z to point up", came, "Turn it.")
    return to_z_up(points) if axis == 1 else points
