"""Other bodies and poses for a recorded motion: limbs get other lengths, or turn about their joints.

A recording shows few people, so a lifter memorises their bones and, in a long training, how they move. Random lengths
and turns for each sample prevent that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .skeleton import SKELETON

# Mean length in metres, between Human3.6M's published means and CMU's, and the deviation of its logarithm in addition
# to that of the whole body, wide where data sets place a joint differently. The trunk (pelvis to thorax) is split
# below.
_SEGMENTS = {
    "hip": (0.110, 0.22),  # half the distance between the hips
    "thigh": (0.435, 0.06),
    "shin": (0.435, 0.06),
    "trunk": (0.470, 0.06),
    "neck": (0.145, 0.28),
    "head": (0.115, 0.25),
    "shoulder": (0.170, 0.18),  # half the distance between the shoulders
    "arm": (0.280, 0.07),
    "forearm": (0.262, 0.07),
}
_SIZE = (0.86, 1.14)  # of the whole body: 1.5 to 2.0 m
_SPINE = (0.22, 0.60)  # position of the spine's joint on the trunk
_LIMB_OF = ("hip", "thigh", "shin", "hip", "thigh", "shin", "loin", "chest", "neck", "head",
            "shoulder", "arm", "forearm", "shoulder", "arm", "forearm")  # fmt: skip
_BEND = {"hip": 0.0, "loin": 0.5, "chest": 0.5, "neck": 1.5, "head": 1.5, "shoulder": 0.3}  # factors; 1 for all others

# Row j marks the limbs from the pelvis to joint j, so the joints are one matrix product with the limbs.
_PATH = torch.zeros(SKELETON.num_joints, SKELETON.num_joints - 1)
for _limb, (_parent, _child) in enumerate(SKELETON.limbs):
    _PATH[_child] = _PATH[_parent]
    _PATH[_child, _limb] = 1


def random_lengths(generator: torch.Generator, count: int) -> Tensor:
    """Limb lengths of ``count`` random people, ``(count, 16)`` metres, in the order of ``SKELETON.limbs``.

    Each is 1.5 to 2.0 m tall with individual proportions; left and right are equal.
    """
    size = torch.empty(count, 1).uniform_(*_SIZE, generator=generator)
    spine = torch.empty(count).uniform_(*_SPINE, generator=generator)
    mean, deviation = torch.tensor(tuple(_SEGMENTS.values())).T
    drawn = dict(
        zip(_SEGMENTS, (size * mean * (deviation * torch.randn(count, len(mean), generator=generator)).exp()).T)
    )
    drawn |= {"loin": spine * drawn["trunk"], "chest": (1 - spine) * drawn["trunk"]}
    return torch.stack([drawn[name] for name in _LIMB_OF], -1)


def with_lengths(joints: Tensor, lengths: Tensor) -> Tensor:
    """The pose of another body: ``(..., 17, 3)`` joints with limbs of ``(..., 16)`` metres in their old directions.

    The pelvis does not move, so feet leave the floor as legs change. A limb of length 0 has no
    direction and stays at 0.
    """
    parents, children = zip(*SKELETON.limbs)
    limbs = joints[..., list(children), :] - joints[..., list(parents), :]
    limbs = torch.nn.functional.normalize(limbs, dim=-1) * lengths[..., None]
    return joints[..., :1, :] + _PATH.to(joints) @ limbs


def random_turns(generator: torch.Generator, count: int, degrees: float) -> Tensor:
    """Rotation vectors of the limbs of ``count`` samples, ``(count, 16, 3)`` radians, for :func:`with_turns`.

    Their deviation about each axis is one number for a sample, uniform up to ``degrees`` in half of the samples and 0
    in the others; trunk and shoulders turn less, neck and head more, and hips not at all.
    """
    deviation = math.radians(degrees) * (2 * torch.rand(count, 1, 1, generator=generator) - 1).clamp(min=0)
    bend = torch.tensor([_BEND.get(name, 1.0) for name in _LIMB_OF])
    return deviation * bend[:, None] * torch.randn(count, len(bend), 3, generator=generator)


def with_turns(joints: Tensor, turns: Tensor) -> Tensor:
    """The pose after each limb of ``(..., 17, 3)`` joints has turned about its nearer end, with all limbs beyond it.

    Args:
        turns: ``(..., 16, 3)``, an axis times radians for each of ``SKELETON.limbs``.
    """
    zero = torch.zeros_like(turns[..., 0])
    x, y, z = turns.unbind(-1)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    angle = turns.norm(dim=-1)[..., None, None] / torch.pi  # in half turns, for sinc
    rotation = torch.eye(3).to(joints) + angle.sinc() * cross + (angle / 2).sinc().square() / 2 * (cross @ cross)
    turned, carried = {0: joints[..., 0, :]}, {0: torch.eye(3).to(joints)}
    for limb, (parent, child) in enumerate(SKELETON.limbs):
        carried[child] = carried[parent] @ rotation[..., limb, :, :]
        offset = joints[..., child, :] - joints[..., parent, :]
        turned[child] = turned[parent] + (carried[child] @ offset[..., None])[..., 0]
    return torch.stack([turned[joint] for joint in range(SKELETON.num_joints)], -2)
