"""Other bodies for a recorded motion: limbs keep their directions and get other lengths.

A recording holds few people, and a lifter memorises their bones. Lengths drawn for each sample prevent that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .skeleton import SKELETON

# Mean length in metres, between Human3.6M's published means and CMU's, and the deviation of its logarithm beside that
# of the whole body: wide where data sets put a joint in different places. The trunk, pelvis to thorax, is parted below.
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

# Row j: which limbs lead from the pelvis to joint j, so that joints are one product with the limbs.
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
