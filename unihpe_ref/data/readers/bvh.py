r"""BVH: a skeleton and its motion in one text file.

A joint with offset o and channels in the order of the file:

.. math::
    R_{joint} = R_{parent} \, R_{channel_1} R_{channel_2} R_{channel_3}, \qquad p_{joint} = p_{parent} + R_{parent}\, o

Positions replace the offset of the root. BVH states neither unit nor axis: the unit is the one of metre, decimetre,
centimetre, inch, CMU's 1/0.45 inch and millimetre that gives the longest plausible leg (0.55 to 1.15 m), and up is
the axis along which the head is above the feet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multicontrast._checks import three_beats

from ..motion import Motion
from ..skeleton import SKELETON
from .common import Array, listed
from .takes import Take, read_takes, rotation_about, subject_of_name, to_z_up

NAME = "bvh"
TITLE = "motion capture, BVH"

_UNITS = (1.0, 0.1, 0.0254 / 0.45, 0.0254, 0.01, 0.001)
_LEG = (0.55, 1.15)  # metres, hip to ankle

# Names of each joint in the exports that are about, letters only, sides spelt out; the first that exists is taken.
_SIDED = {
    "hip": ("upleg", "upperleg", "thigh", "hip", "hipjoint"),
    "knee": ("leg", "lowerleg", "knee", "shin", "calf", "lowleg"),
    "ankle": ("foot", "ankle"),
    "shoulder": ("arm", "upperarm", "shoulder", "uparm"),
    "elbow": ("forearm", "lowerarm", "elbow", "lowarm"),
    "wrist": ("hand", "wrist"),
}
_MIDDLE = {
    "spine": ("spine", "chest", "lowerback", "spine1"),
    "neck_nose": ("neck1", "neck", "head"),
}


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
    return sorted(file for pattern in ("*.bvh", "*/*.bvh", "*.BVH") for file in path.glob(pattern))


def read(path: Path) -> Motion:
    """All takes at or below ``path``."""
    files = find(path)
    if not files:
        raise FileNotFoundError(three_beats(f"`read_data` needs BVH files at {path}", "none", "Check the path."))
    return read_takes(files, read_bvh, subject_of_name)


_MOST_JOINTS = 1000  # of hands and faces, too


def read_bvh(path: Path) -> Take:
    """One file. Raises ``ValueError`` where it is damaged or its joints have names that are not known."""
    words = path.read_text(encoding="latin-1").split()
    try:
        joints, position = _hierarchy(words)
        if [word.upper() for word in words[position : position + 2]] != ["MOTION", "FRAMES:"]:
            raise ValueError("no MOTION after the skeleton")
        frames, seconds = int(words[position + 2]), float(words[position + 5])
        values = np.array(words[position + 6 :], float)
        width = sum(len(joint.channels) for joint in joints)
        if frames < 1 or width < 1 or values.size != frames * width or not np.isfinite(values).all() or not seconds > 0:
            raise ValueError(f"{values.size} numbers for {frames} frames of {width}")
    except (ValueError, IndexError, KeyError) as error:
        needed = f"{path} needs to be a whole BVH file"
        raise ValueError(three_beats(needed, f"something else ({error})", "Copy or export it again.")) from None
    places = _places(joints, values.reshape(frames, width))
    points = _to_17(joints, places, path)
    return Take(_upright(_metres(points, path), path), 1 / seconds)


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


def _places(joints: list[_Joint], values: Array) -> Array:
    """Forward kinematics: ``(F, joints, 3)`` in the unit of the file."""
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
    return np.stack(places, 1)


def _plain(name: str) -> str:
    """Letters of a name, its side in front: "mixamorig:LeftUpLeg" and "UpperLeg_L" to "leftupleg", "leftupperleg"."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name.rpartition(":")[2])
    words = [word.lower() for word in words]
    side = "".join({"l": "left", "left": "left", "r": "right", "right": "right"}.get(word, "") for word in words[:1])
    if side:
        words = words[1:]
    elif words and words[-1] in ("l", "r", "left", "right"):
        side = "left" if words[-1].startswith("l") else "right"
        words = words[:-1]
    return side + "".join(words)


def _to_17(joints: list[_Joint], places: Array, path: Path) -> Array:
    index = {}
    for number, joint in enumerate(joints):
        index.setdefault(_plain(joint.name), number)
    chosen: dict[str, Array] = {}
    missing = []

    def pick(target: str, names: tuple[str, ...]) -> None:
        found = next((index[name] for name in names if name in index), None)
        if found is None:
            missing.append(target)
        else:
            chosen[target] = places[:, found]

    for side, letter in (("left", "l"), ("right", "r")):
        for joint, names in _SIDED.items():
            # "LeftShoulder" is the collar bone wherever there is a "LeftArm"; the order of names sees to that
            pick(f"{letter}{joint}", tuple(side + name for name in names))
    for joint, names in _MIDDLE.items():
        pick(joint, names)
    pick("head", ("headend", "headtop", "headnub", "headsite", "head"))
    if missing:
        needed = f"{path} needs joints for {', '.join(missing)} under one of the usual names"
        names_there = listed((joint.name for joint in joints), 40)
        raise ValueError(three_beats(needed, names_there, "Rename them, LeftUpLeg for a hip and so on."))
    chosen["pelvis"] = (chosen["lhip"] + chosen["rhip"]) / 2
    chosen["thorax"] = (chosen["lshoulder"] + chosen["rshoulder"]) / 2
    return np.stack([chosen[name] for name in SKELETON.joint_names], 1)


def _metres(points: Array, path: Path) -> Array:
    leg = np.median(
        np.linalg.norm(points[:, 1] - points[:, 2], axis=-1) + np.linalg.norm(points[:, 2] - points[:, 3], axis=-1)
    )
    for unit in _UNITS:
        if _LEG[0] <= leg * unit <= _LEG[1]:
            return points * unit
    needed = f"{path} needs a leg of {_LEG[0]} to {_LEG[1]} m in metres, inches, CMU's unit, centimetres or millimetres"
    raise ValueError(three_beats(needed, f"{leg:.4g} units", "Scale the file."))


def _upright(points: Array, path: Path) -> Array:
    rise = (points[:, SKELETON.index("head")] - points[:, [3, 6]].mean(1)).mean(0)
    axis = int(np.abs(rise).argmax())
    if axis == 0 or rise[axis] < 0:
        needed = f"{path} needs y or z to point up"
        raise ValueError(
            three_beats(needed, f"a head that is {listed(np.round(rise, 2))} m above the feet", "Turn it.")
        )
    return to_z_up(points) if axis == 1 else points
