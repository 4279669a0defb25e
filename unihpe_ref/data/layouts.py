"""Joint orders of data sets and detectors, and their conversion to the 17 joints of Human3.6M.

A layout is a tuple of joint names. One table (``_RULES``) says from which named joints each of the 17 is taken: the
joint itself, or a weighted mean of others, in order of preference. Joints without a rule are NaN.

The weights of trunk and head are fitted on motion capture, where the spine is then off by 35 mm, the thorax by 16 mm
and the head by 29 mm on average.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multicontrast._checks import three_beats

from .shapes import Array, all_finite
from .skeleton import SKELETON

_HIPS = {"lhip": 0.5, "rhip": 0.5}
_SHOULDERS = {"lshoulder": 0.5, "rshoulder": 0.5}
_SPINE, _THORAX = 0.42, 0.88  # of the way from the middle of the hips to the middle of the shoulders
_HEAD = 1.69  # top of the head, in units of the way from the middle of the shoulders to the ears
_FACES: tuple[dict[str, float], ...] = (
    {"lear": 0.5, "rear": 0.5}, {"lear": 1.0}, {"rear": 1.0}, {"nose": 1.0}, {"upper_neck": 1.0},
)  # fmt: skip


def _between(start: dict[str, float], end: dict[str, float], share: float) -> dict[str, float]:
    return {name: (1 - share) * weight for name, weight in start.items()} | {
        name: share * weight for name, weight in end.items()
    }


# Alternatives for each of the 17, the best first. A joint of the same name, if there is one, comes before all of them.
_RULES: dict[str, tuple[dict[str, float], ...]] = {
    "pelvis": (_HIPS,),
    "spine": (_between({"pelvis": 1.0}, _SHOULDERS, _SPINE), _between(_HIPS, _SHOULDERS, _SPINE)),
    "thorax": (_between({"pelvis": 1.0}, _SHOULDERS, _THORAX), _between(_HIPS, _SHOULDERS, _THORAX)),
    "neck_nose": _FACES,
    "head": tuple(_between(_SHOULDERS, face, _HEAD) for face in _FACES[:-1]),
}


@dataclass(frozen=True)
class Layout:
    """An order of K joints.

    Attributes:
        name: its key in ``LAYOUTS``, or what a file calls it.
        joints: K names, as :func:`joint_name` spells them; "" for a joint that is not used.
    """

    name: str
    joints: tuple[str, ...]

    @property
    def num_joints(self) -> int:
        """K."""
        return len(self.joints)

    @cached_property
    def sources(self) -> tuple[tuple[tuple[Array, Array], ...], ...]:
        """For each of the 17 joints its alternatives in this layout: indices and their weights, which sum to 1."""
        found = []
        for target in SKELETON.joint_names:
            rules = ({target: 1.0}, *_RULES.get(target, ()))
            found.append(
                tuple(
                    (np.array([self.joints.index(name) for name in rule]), np.array(list(rule.values())))
                    for rule in rules
                    if set(rule) <= set(self.joints)
                )
            )
        return tuple(found)

    def to_h36m(self, joints: Array, confidence: Array | None = None) -> tuple[Array, Array]:
        """Joints in this order as Human3.6M's 17.

        Args:
            joints: ``(..., K, C)``; NaN where a joint is missing.
            confidence: ``(..., K)``, 0 or less where a joint is missing; 1 for all unless given.
        Returns: ``(..., 17, C)``, NaN where no known joint can stand for it, and ``(..., 17)``, the least confidence of
            the joints used, 0 if there is none.
        Raises: ValueError for another number of joints.
        """
        count = joints.shape[-2] if joints.ndim > 1 else joints.shape
        if count != self.num_joints:
            fitting = layouts_of(count)
            remedy = f"Of that many: {', '.join(fitting)}." if fitting else "See `unihpe_ref.data.layouts.LAYOUTS`."
            raise ValueError(
                three_beats(f"the layout {self.name!r} needs {self.num_joints} joints", f"{count}", remedy)
            )
        if confidence is None:
            confidence = np.ones(joints.shape[:-1], joints.dtype)
        confidence = np.where(all_finite(joints, -1) & (confidence > 0), confidence, 0).astype(joints.dtype)
        points = np.full((*joints.shape[:-2], SKELETON.num_joints, joints.shape[-1]), np.nan, joints.dtype)
        least = np.zeros(points.shape[:-1], confidence.dtype)
        for target, alternatives in enumerate(self.sources):
            for index, weight in alternatives:
                known = confidence[..., index].min(-1)
                new = (known > 0) & (least[..., target] == 0)
                if new.any():
                    # one source is a copy, bit for bit
                    chosen = joints[new][..., index, :]
                    points[..., target, :][new] = (
                        chosen[..., 0, :] if len(index) == 1 else np.einsum("nkc,k->nc", chosen, weight)
                    )
                    least[..., target][new] = known[new]
        return points, least


def _placed(name: str, count: int, indices: Sequence[int]) -> Layout:
    """An order in which Human3.6M's 17 joints have these indices, and the others are not used."""
    joints = [""] * count
    for target, index in zip(SKELETON.joint_names, indices):
        if index >= 0:
            joints[index] = target
    return Layout(name, tuple(joints))


COCO17 = (
    "nose", "leye", "reye", "lear", "rear", "lshoulder", "rshoulder", "lelbow", "relbow", "lwrist", "rwrist",
    "lhip", "rhip", "lknee", "rknee", "lankle", "rankle",
)  # fmt: skip
_RIGHT_ARM, _LEFT_ARM = ("rshoulder", "relbow", "rwrist"), ("lshoulder", "lelbow", "lwrist")
_RIGHT_LEG, _LEFT_LEG = ("rhip", "rknee", "rankle"), ("lhip", "lknee", "lankle")
_OPENPOSE_FACE = ("reye", "leye", "rear", "lear")
_FEET = ("lbigtoe", "lsmalltoe", "lheel", "rbigtoe", "rsmalltoe", "rheel")
_HALPE26 = (*COCO17, "head", "neck", "pelvis", "lbigtoe", "rbigtoe", "lsmalltoe", "rsmalltoe", "lheel", "rheel")

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        # --- detectors and annotation tools ---
        Layout("coco17", COCO17),
        Layout("h36m17", SKELETON.joint_names),
        # PoseTrack 2018: as COCO but for the second and third joint
        Layout("posetrack18", ("nose", "upper_neck", "head", *COCO17[3:])),
        # OpenPose's models "COCO" (also in 3DPW) and "BODY_25"
        Layout("coco18", ("nose", "neck", *_RIGHT_ARM, *_LEFT_ARM, *_RIGHT_LEG, *_LEFT_LEG, *_OPENPOSE_FACE)),
        Layout("body25", (
            "nose", "neck", *_RIGHT_ARM, *_LEFT_ARM, "pelvis", *_RIGHT_LEG, *_LEFT_LEG, *_OPENPOSE_FACE, *_FEET
        )),
        Layout("halpe26", _HALPE26),
        Layout("halpe136", _HALPE26 + ("",) * 110),  # face and hands
        Layout("wholebody133", COCO17 + _FEET + ("",) * 110),
        # MPII's thorax lies between the shoulders, higher than Human3.6M's: it is not used
        Layout("mpii16", (
            *_RIGHT_LEG[::-1], *_LEFT_LEG, "pelvis", "", "upper_neck", "head", *_RIGHT_ARM[::-1], *_LEFT_ARM
        )),
        # MediaPipe's
        Layout("blazepose33", (
            "nose", "", "leye", "", "", "reye", "", "lear", "rear", "", "", "lshoulder", "rshoulder", "lelbow",
            "relbow", "lwrist", "rwrist", "", "", "", "", "", "", "lhip", "rhip", "lknee", "rknee", "lankle", "rankle",
            "lheel", "rheel", "lbigtoe", "rbigtoe",
        )),
        # --- data sets ---
        # Human3.6M's own 32, of which 15 repeat others or never move
        _placed("h36m32", 32, (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)),
        # What `J_regressor_h36m.npy` makes of SMPL's vertices: the left leg comes first, the arms as usual
        _placed("j_regressor_h36m", 17, (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)),
        # SPIN's 24 ground-truth joints: ankles first, right to left
        _placed("spin24", 24, (14, 2, 1, 0, 3, 4, 5, 16, 12, 17, 18, 9, 10, 11, 8, 7, 6)),
        # MPI-INF-3DHP's training annotation; left legs 18-20, right legs 23-25. Its neck stands for the thorax
        _placed("3dhp28", 28, (4, 23, 24, 25, 18, 19, 20, 3, 5, 6, 7, 9, 10, 11, 14, 15, 16)),
        # ... and of its test set; here the right side comes first
        _placed("3dhp17", 17, (14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)),
        # SMPL's own 24 joints, without the top of the head: a substitute if the vertices are missing
        _placed("smpl24", 24, (0, 2, 5, 8, 1, 4, 7, 6, 12, 15, -1, 16, 18, 20, 17, 19, 21)),
    )
}  # fmt: skip
"""All layouts by name."""

DETECTED = (
    "coco17", "h36m17", "posetrack18", "coco18", "body25", "halpe26", "halpe136", "wholebody133", "mpii16",
    "blazepose33",
)  # fmt: skip
"""The layouts of keypoint files; of several with the same number of joints the first is the default."""

LSP_14 = (3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10)
"""The 14 joints of LSP, as indices into Human3.6M's 17, which SPIN, HMR and PARE evaluate."""


def layouts_of(count: object, names: Sequence[str] = tuple(LAYOUTS)) -> list[str]:
    """Those of ``names`` that have ``count`` joints."""
    return [name for name in names if LAYOUTS[name].num_joints == count]


_SIDES = {"l": "l", "left": "l", "r": "r", "right": "r"}
_SYNONYMS = {
    "root": "pelvis", "hips": "pelvis", "midhip": "pelvis", "hipcenter": "pelvis", "torso": "spine",
    "neckbase": "neck_nose", "neckormidshoulder": "neck", "throat": "neck_nose",
    "headbottom": "upper_neck", "upperneck": "upper_neck", "headtop": "head", "topofhead": "head", "tophead": "head",
    "bigtoe": "bigtoe", "foot": "ankle", "hand": "wrist", "sho": "shoulder", "uparm": "shoulder",
}  # fmt: skip


def joint_name(text: str) -> str:
    """The spelling of a joint in this package: "Left Shoulder", "left_shoulder" and "LShoulder" are "lshoulder"."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", text)]
    side = ""
    if words and words[0] in _SIDES:
        side, words = _SIDES[words[0]], words[1:]
    elif words and words[-1] in _SIDES:
        side, words = _SIDES[words[-1]], words[:-1]
    plain = "".join(words)
    if not side and re.fullmatch("[lr](eye|ear|shoulder|elbow|wrist|hip|knee|ankle|bigtoe|smalltoe|heel)", plain):
        side, plain = plain[0], plain[1:]
    if plain == "hip" and not side:
        return "pelvis"
    if f"{side}{plain}" in ("neck_nose", "neckornose", "necknose"):
        return "neck_nose"
    return side + _SYNONYMS.get(plain, plain)


def layout_of_names(names: Sequence[str]) -> Layout:
    """The layout of a file that names its joints: one of ``LAYOUTS`` if all names agree, else a new one.

    Raises: ValueError if no name matches one of the 17 joints.
    """
    own = tuple(joint_name(name) for name in names)
    for known in DETECTED:
        joints = LAYOUTS[known].joints
        if len(joints) == len(own) and all(not name or name == other for name, other in zip(joints, own)):
            return LAYOUTS[known]
    found = Layout("its own", own)
    if not any(found.sources):
        needed = "`layout_of_names` needs names of joints, left_shoulder and so on"
        raise ValueError(three_beats(needed, ", ".join(map(str, names[:6])), "Name them, or state a layout."))
    return found
