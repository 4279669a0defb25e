"""A jointed body: its sizes, the ranges of its angles, and its joints' positions.

The body's own frame: x forward, y left, z up. Angles are named columns, in degrees, zero in the upright stance with
hanging arms. A positive angle flexes: the thigh and the arm swing forward, the knee folds backward, the elbow folds
forward, the trunk bows. Abduction leads away from the middle, rotation of an arm or thigh turns its front inward.
Left and right mean the same motion mirrored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .skeleton import SKELETON

LIMITS: dict[str, tuple[float, float]] = {
    "spine_flex": (-30, 95), "spine_side": (-35, 35), "spine_twist": (-45, 45),
    "neck_flex": (-45, 50), "neck_side": (-30, 30), "neck_twist": (-65, 65),
    **{
        f"{side}_{name}": limits
        for side in "lr"
        for name, limits in {
            "hip_flex": (-35, 125), "hip_abd": (-25, 60), "hip_rot": (-40, 40), "knee": (0, 150),
            "arm_flex": (-60, 180), "arm_abd": (-45, 175), "arm_rot": (-95, 95), "elbow": (0, 150),
        }.items()
    },
}  # fmt: skip
"""Range of each joint angle in degrees. The heading, pitch and roll of the pelvis are free."""

FREE = ("yaw", "pitch", "roll")
ANGLES = (*FREE, *LIMITS)

# Lowest height of each joint's centre above the floor, metres: half the thickness of the body there; 8 cm at an ankle.
_CLEARANCE = torch.tensor(
    [0.10, 0.10, 0.06, 0.08, 0.10, 0.06, 0.08, 0.10, 0.10, 0.10, 0.08, 0.08, 0.05, 0.04, 0.08, 0.05, 0.04],
    dtype=torch.float64,
)
_SOFTNESS = 0.012  # metres over which the weight passes from one support to the next


@dataclass(frozen=True)
class Body:
    """Segment lengths in metres; left and right are equal."""

    hip: float  # half the distance between the hips
    thigh: float
    shin: float
    loin: float  # pelvis to spine
    chest: float  # spine to thorax
    neck: float  # thorax to neck/nose
    head: float  # neck/nose to the top of the head
    shoulder: float  # half the distance between the shoulders
    arm: float
    forearm: float

    @classmethod
    def random(cls, generator: torch.Generator) -> Body:
        """A person of 1.5 to 1.95 m; proportions vary by a few per cent around Human3.6M's means."""
        average = {
            "hip": 0.125, "thigh": 0.442, "shin": 0.447, "loin": 0.233, "chest": 0.255, "neck": 0.118, "head": 0.115,
            "shoulder": 0.150, "arm": 0.279, "forearm": 0.252,
        }  # fmt: skip
        size = 0.92 + 0.20 * float(torch.rand((), generator=generator, dtype=torch.float64))
        vary = (torch.randn(len(average), generator=generator, dtype=torch.float64) * 0.035).clamp(-0.08, 0.08)
        return cls(**{name: length * size * (1 + float(v)) for (name, length), v in zip(average.items(), vary)})


def within_limits(angles: dict[str, Tensor]) -> dict[str, Tensor]:
    """Limits every angle to its range smoothly: only the outer 4 degrees of a range are compressed."""
    margin = 4.0
    result = dict(angles)
    for name, (low, high) in LIMITS.items():
        if name in result:
            value = result[name]
            value = torch.where(value < low + margin, low + margin * ((value - low) / margin - 1).exp(), value)
            value = torch.where(value > high - margin, high - margin * ((high - value) / margin - 1).exp(), value)
            result[name] = value
    return result


def forward_kinematics(body: Body, angles: dict[str, Tensor]) -> Tensor:
    """Joint positions relative to the pelvis.

    Args:
        body: the segment lengths.
        angles: every name of ``ANGLES`` to ``(F,)`` degrees.
    Returns: ``(F, 17, 3)`` metres, z up, heading given by ``yaw``; limb lengths are the body's.
    """
    radians = {name: angle * (math.pi / 180) for name, angle in angles.items()}
    pelvis = about("z", radians["yaw"]) @ about("y", radians["pitch"]) @ about("x", radians["roll"])

    def trunk(share: float) -> Tensor:  # the spine bends in two places
        side, twist = about("x", share * radians["spine_side"]), about("z", share * radians["spine_twist"])
        return about("y", share * radians["spine_flex"]) @ side @ twist

    low = pelvis @ trunk(0.45)
    high = low @ trunk(0.55)
    nod = about("y", radians["neck_flex"])
    face = high @ about("z", radians["neck_twist"]) @ nod @ about("x", radians["neck_side"])

    joints: dict[str, Tensor] = {"pelvis": pelvis.new_zeros(pelvis.shape[0], 3)}

    def grow(child: str, rotation: Tensor, offset: tuple[float, float, float]) -> None:
        parent = SKELETON.joint_names[SKELETON.parents[SKELETON.index(child)]]
        joints[child] = joints[parent] + rotation @ rotation.new_tensor(offset)

    grow("spine", low, (0, 0, body.loin))
    grow("thorax", high, (0, 0, body.chest))
    grow("neck_nose", face, (0.30 * body.neck, 0, 0.954 * body.neck))
    grow("head", face, (0, 0, body.head))
    for side, sign in (("l", 1.0), ("r", -1.0)):
        hip = pelvis @ _ball(radians, f"{side}_hip", sign)
        grow(f"{side}hip", pelvis, (0, sign * body.hip, 0))
        grow(f"{side}knee", hip, (0, 0, -body.thigh))
        grow(f"{side}ankle", hip @ about("y", radians[f"{side}_knee"]), (0, 0, -body.shin))
        arm = high @ _ball(radians, f"{side}_arm", sign)
        grow(f"{side}shoulder", high, (0, sign * body.shoulder, -0.12 * body.shoulder))
        grow(f"{side}elbow", arm, (0, 0, -body.arm))
        grow(f"{side}wrist", arm @ about("y", -radians[f"{side}_elbow"]), (0, 0, -body.forearm))
    return torch.stack([joints[name] for name in SKELETON.joint_names], 1)


def stand(joints: Tensor, lift: Tensor, support: Tensor | None = None) -> Tensor:
    """Puts a moving body on the floor, and moves it so that its feet do not slide.

    The lowest joint of each frame rests at its clearance above z = 0 (plus ``lift``), and the pelvis moves so that the
    supporting ankle stays in place. The weight passes smoothly from one support to the next.

    Args:
        joints: ``(F, 17, 3)`` relative to the pelvis.
        lift: ``(F,)`` metres above the floor, for jumps.
        support: ``(F,)`` share of the weight on the right foot; None: the lower ankle carries it.
    Returns: ``(F, 17, 3)`` world metres; the first pelvis is above the origin.
    """
    above = joints[..., 2] - _CLEARANCE
    height = _SOFTNESS * torch.logsumexp(-above / _SOFTNESS, -1) + lift
    ankles = [SKELETON.index("rankle"), SKELETON.index("lankle")]
    if support is None:
        weight = torch.softmax(-joints[:, ankles, 2] / (2 * _SOFTNESS), -1)
    else:
        weight = torch.stack([support, 1 - support], -1)
    weight = (weight[1:] + weight[:-1]) / 2
    step = -(weight[..., None] * joints[:, ankles, :2].diff(dim=0)).sum(1)
    path = torch.cat([step.new_zeros(1, 2), step.cumsum(0)])
    return joints + torch.cat([path, height[:, None]], -1)[:, None]


def about(axis: str, angle: Tensor) -> Tensor:
    """Rotations ``(..., 3, 3)`` by ``angle`` (...) radians about "x", "y" or "z", right-handed."""
    cosine, sine, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        "x": [one, zero, zero, zero, cosine, -sine, zero, sine, cosine],
        "y": [cosine, zero, sine, zero, one, zero, -sine, zero, cosine],
        "z": [cosine, -sine, zero, sine, cosine, zero, zero, zero, one],
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _ball(radians: dict[str, Tensor], joint: str, sign: float) -> Tensor:
    """Rotation of a shoulder or hip: forward, then away from the middle (``sign``: +1 left, -1 right), then a twist."""
    swing = about("y", -radians[f"{joint}_flex"]) @ about("x", sign * radians[f"{joint}_abd"])
    return swing @ about("z", -sign * radians[f"{joint}_rot"])
