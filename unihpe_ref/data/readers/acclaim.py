r"""Acclaim's ASF (a skeleton) and AMC (a motion), as the CMU Graphics Lab publishes its motion capture.

A bone with direction d, length l and axis rotation C carries the local rotation of its degrees of freedom M:

.. math::
    R_{bone} = R_{parent} \, C M C^{-1}, \qquad p_{bone} = p_{parent} + l \, R_{bone} d

with the root's rotation and place from the file. Angles about x, y, z apply in the order in which they are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from multicontrast._checks import three_beats
from unihpe_ref.unfit import reading, unfit

from ..motion import Motion
from ..shapes import Array
from ..skeleton import SKELETON
from .common import listed, required
from .takes import Take, read_takes, rotation_about, to_z_up

NAME = "amc"
TITLE = "motion capture, ASF and AMC"

FPS = 120.0  # CMU's; the files do not state it
_INCH = 0.0254

# The bone at whose end each of the 17 joints is; the pelvis lies between the hips.
_ENDS = {
    "rhip": "rhipjoint", "rknee": "rfemur", "rankle": "rtibia", "lhip": "lhipjoint", "lknee": "lfemur",
    "lankle": "ltibia", "spine": "lowerback", "thorax": "thorax", "neck_nose": "upperneck", "head": "head",
    "lshoulder": "lclavicle", "lelbow": "lhumerus", "lwrist": "lwrist", "rshoulder": "rclavicle",
    "relbow": "rhumerus", "rwrist": "rwrist",
}  # fmt: skip


@dataclass
class _Bone:
    name: str
    direction: Array = field(default_factory=lambda: np.zeros(3))
    length: float = 0.0
    axis: Array = field(default_factory=lambda: np.eye(3))
    dof: tuple[str, ...] = ()


@dataclass
class Skeleton:
    """An ASF file: bones by name, each with its parent, parents first; metres; and the order of the root's numbers."""

    bones: dict[str, _Bone]
    parents: dict[str, str]
    root_order: tuple[str, ...]
    root_axis: str
    metres: float
    degrees: bool


def find(path: Path) -> list[Path]:
    """AMC files at or below ``path``."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".amc" else []
    return sorted(file for pattern in ("*.amc", "*/*.amc", "*.AMC") for file in path.glob(pattern))


def read(path: Path) -> Motion:
    """All takes; each needs its subject's skeleton (``01_02.amc``: ``01.asf``) or the only one beside it."""
    files = required(find(path), path, "AMC files")
    skeletons: dict[Path, Skeleton] = {}

    def read_one(file: Path) -> Take:
        skeleton = _skeleton_of(file)
        if skeleton not in skeletons:
            skeletons[skeleton] = read_asf(skeleton)
        return Take(joints_of(skeletons[skeleton], read_amc(file, skeletons[skeleton])), FPS)

    return read_takes(files, read_one)


def _skeleton_of(file: Path) -> Path:
    beside = sorted(other for other in file.parent.iterdir() if other.suffix.lower() == ".asf")
    fitting = [other for other in beside if other.stem in (file.stem, file.stem.partition("_")[0])]
    if len(fitting) + len(beside) == 0 or (not fitting and len(beside) > 1):
        needed = f"`read_data` needs the skeleton {file.stem.partition('_')[0]}.asf, or a single one, beside {file}"
        raise FileNotFoundError(three_beats(needed, listed(b.name for b in beside) or "none", "Put it there."))
    return (fitting or beside)[0]


def read_asf(path: Path) -> Skeleton:
    """A skeleton. Raises ``ValueError`` if a part is missing or invalid."""
    sections: dict[str, list[list[str]]] = {}
    current: list[list[str]] = []
    for line in path.read_text(encoding="latin-1").splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        if words[0].startswith(":"):
            current = sections.setdefault(words[0].lower(), [])
            words = words[1:]
        if words:
            current.append(words)
    with reading(f"{path} needs units, root, bonedata and hierarchy of an ASF file"):
        units = {words[0].lower(): words[1] for words in sections[":units"]}
        degrees = units.get("angle", "deg").lower().startswith("deg")
        root = {words[0].lower(): words[1:] for words in sections[":root"]}
        bones = _bones(sections[":bonedata"], degrees)
        parents = {child: words[0] for words in sections[":hierarchy"] for child in words[1:] if words[0] != "begin"}
        ordered: dict[str, str] = {}
        while len(ordered) < len(parents):  # parents first, whatever the order in the file
            ready = [c for c, p in parents.items() if c not in ordered and (p == "root" or p in ordered)]
            if not ready:
                raise ValueError("a hierarchy that does not begin at the root")
            ordered.update({child: parents[child] for child in ready})
        return Skeleton(
            bones=bones,
            parents=ordered,
            root_order=tuple(word.lower() for word in root["order"]),
            root_axis=root["axis"][0].lower(),
            metres=_INCH / float(units["length"]),
            degrees=degrees,
        )


def _bones(lines: list[list[str]], degrees: bool) -> dict[str, _Bone]:
    bones: dict[str, _Bone] = {}
    bone = _Bone("")
    for words in lines:
        key = words[0].lower()
        if key == "begin":
            bone = _Bone("")
        elif key == "name":
            bone.name = words[1]
        elif key == "direction":
            bone.direction = np.array([float(word) for word in words[1:4]])
            bone.direction = bone.direction / (np.linalg.norm(bone.direction) or 1.0)  # 0 0 0: of a bone without length
        elif key == "length":
            bone.length = float(words[1])
        elif key == "axis":
            bone.axis = _turned(words[4].lower(), np.array([[float(word) for word in words[1:4]]]), degrees)[0]
        elif key == "dof":
            bone.dof = tuple(word.lower() for word in words[1:])
        elif key == "end":
            bones[bone.name] = bone
    return bones


def _turned(order: str, angles: Array, degrees: bool) -> Array:
    """Rotations ``(F, 3, 3)`` by ``(F, K)`` angles about the named axes; the first is applied first."""
    angles = angles if degrees else np.rad2deg(angles)
    rotation = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for position, axis in enumerate(order):
        rotation = rotation_about(axis, angles[:, position]) @ rotation
    return rotation


def read_amc(path: Path, skeleton: Skeleton) -> dict[str, Array]:
    """The numbers of each bone, ``(F, its degrees of freedom)``. Raises ``ValueError`` for a file that is damaged."""
    frames: list[dict[str, list[float]]] = []
    width = {"root": len(skeleton.root_order)} | {name: len(bone.dof) for name, bone in skeleton.bones.items()}
    with reading(f"{path} needs to be an AMC file of its skeleton"):
        for line in path.read_text(encoding="latin-1").splitlines():
            words = line.split()
            if not words or words[0].startswith((":", "#")):
                continue
            if len(words) == 1 and words[0].isdigit():
                frames.append({})
            else:
                values = [float(word) for word in words[1:]]
                if len(values) != width[words[0]]:
                    raise ValueError(f"{len(values)} numbers for {words[0]} in frame {len(frames)}")
                frames[-1][words[0]] = values
        moving = frames[0].keys()
        if any(frame.keys() != moving for frame in frames):
            raise ValueError("frames with different bones; the last one may be cut off")
        motion = {name: np.array([frame[name] for frame in frames]) for name in moving}
        if "root" not in motion or not all(np.isfinite(values).all() for values in motion.values()):
            raise ValueError("no root, or numbers that are not finite")
        return motion


def joints_of(skeleton: Skeleton, motion: dict[str, Array]) -> Array:
    """Forward kinematics: ``(F, 17, 3)`` metres, z up."""
    root = motion["root"]
    column = {name: root[:, position] for position, name in enumerate(skeleton.root_order)}
    place = {"root": np.stack([column["tx"], column["ty"], column["tz"]], 1)}
    angles = np.stack([column[f"r{axis}"] for axis in skeleton.root_axis], 1)
    turn = {"root": _turned(skeleton.root_axis, angles, skeleton.degrees)}
    for name, parent in skeleton.parents.items():
        bone = skeleton.bones[name]
        local = np.broadcast_to(np.eye(3), (len(root), 3, 3))
        if bone.dof and name in motion:
            rotating = [position for position, kind in enumerate(bone.dof) if kind.startswith("r")]
            order = "".join(bone.dof[position][1] for position in rotating)
            local = _turned(order, motion[name][:, rotating], skeleton.degrees)
        turn[name] = turn[parent] @ bone.axis @ local @ bone.axis.T
        place[name] = place[parent] + bone.length * (turn[name] @ bone.direction)
    missing = [bone for bone in _ENDS.values() if bone not in place]
    if missing:
        needed = f"`read_data` needs the bones of CMU's skeletons ({', '.join(sorted(set(_ENDS.values())))})"
        raise unfit(needed, f"no {', '.join(missing)}", "Map other skeletons to those names.")
    ends = {joint: place[bone] for joint, bone in _ENDS.items()}
    ends["pelvis"] = (ends["lhip"] + ends["rhip"]) / 2
    return to_z_up(np.stack([ends[name] for name in SKELETON.joint_names], 1)) * skeleton.metres
