"""The 17-joint Human3.6M skeleton: names, tree, mirror pairs and drawing colours.

The literature uses three names loosely. Here ``thorax`` is the point between the shoulders, ``head`` the top
of the head, and ``neck_nose`` lies between them: the nose in some data sets, the upper end of the neck in others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from multicontrast._checks import (
    check_counts,
    check_number,
    check_same_device,
    check_shape,
    check_texts,
    check_weights,
    describe,
    three_beats,
)


@dataclass(frozen=True)
class Skeleton:
    """A tree of named joints with left and right halves.

    Attributes:
        joint_names: J names; the order is the order of every ``(..., J, 2 | 3)`` tensor.
        parents: index of each joint's parent; the root has -1 and comes first, a parent before its children.
        left, right: joints that change places in a mirror, pairwise.
    """

    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]

    def __post_init__(self) -> None:
        names = tuple(check_texts("Skeleton", "joint_names", self.joint_names))
        object.__setattr__(self, "joint_names", names)
        for name, least in (("parents", -1), ("left", 0), ("right", 0)):
            held = check_counts("Skeleton", name, getattr(self, name), least, len(names) - 1)
            object.__setattr__(self, name, tuple(held))
        tree = self.parents[0] == -1 and all(0 <= p < child for child, p in enumerate(self.parents) if child)
        if len(self.parents) != len(names) or len(self.left) != len(self.right) or not tree:
            came = f"{len(names)} names, {len(self.parents)} parents, {len(self.left)} left, {len(self.right)} right"
            needed = "`Skeleton` needs a parent for each joint, before it, and as many joints left as right"
            raise ValueError(three_beats(needed, came, "Put the root first, with -1 as its parent."))

    @property
    def num_joints(self) -> int:
        """J."""
        return len(self.joint_names)

    @cached_property
    def limbs(self) -> tuple[tuple[int, int], ...]:
        """The J - 1 bones as (parent, child), in the order of their children."""
        return tuple((parent, child) for child, parent in enumerate(self.parents) if parent >= 0)

    @cached_property
    def flip_permutation(self) -> tuple[int, ...]:
        """``joints[..., flip_permutation, :]`` renames the joints of a mirrored body; its own inverse."""
        permutation = list(range(self.num_joints))
        for left, right in zip(self.left, self.right):
            permutation[left], permutation[right] = right, left
        return tuple(permutation)

    @cached_property
    def limb_colours(self) -> tuple[str, ...]:
        """One colour per limb for drawings: left blue, right vermilion, trunk grey (told apart by the colour-blind)."""
        sides = dict.fromkeys(self.left, "#0072b2") | dict.fromkeys(self.right, "#d55e00")
        return tuple(sides.get(child, "#444444") for _, child in self.limbs)

    def index(self, name: str) -> int:
        """Index of a joint by name. Raises ``ValueError`` for a name the skeleton does not have."""
        if not isinstance(name, str) or name not in self.joint_names:
            remedy = f"Choose one of {', '.join(self.joint_names)}."
            raise ValueError(three_beats("`Skeleton.index` needs the name of a joint", describe(name), remedy))
        return self.joint_names.index(name)


SKELETON = Skeleton(
    joint_names=(
        "pelvis", "rhip", "rknee", "rankle", "lhip", "lknee", "lankle", "spine", "thorax", "neck_nose", "head",
        "lshoulder", "lelbow", "lwrist", "rshoulder", "relbow", "rwrist",
    ),
    parents=(-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
    left=(4, 5, 6, 11, 12, 13),
    right=(1, 2, 3, 14, 15, 16),
)  # fmt: skip
"""Human3.6M's 17 joints, the skeleton of the whole package."""


def flip_joints(joints: Tensor) -> Tensor:
    """Mirrors a pose left to right: negates the first coordinate and renames the joints.

    For centred coordinates: a camera frame (x to the right) or box-normalised pixels. Flipping twice gives back the
    same bits. For pixels of an image use :func:`flip_pixels`.

    Args:
        joints: ``(..., 17, C)``, C >= 1.
    Returns: a new tensor of the same shape.
    """
    flipped = _renamed("flip_joints", joints)
    flipped[..., 0].neg_()
    return flipped


def flip_pixels(joints_px: Tensor, width: Tensor | float) -> Tensor:
    """Mirrors joints with the image that holds them: column u becomes ``width - 1 - u``, and joints are renamed.

    Args:
        joints_px: ``(..., 17, 2)`` in pixels whose centres have integer coordinates.
        width: of the image, in pixels; a number or ``(...)``.
    Returns: a new tensor of the same shape. Twice is the identity to one rounding of ``width``.
    """
    flipped = _renamed("flip_pixels", joints_px)
    if isinstance(width, Tensor):
        check_weights("flip_pixels", "width", width, "Pass widths in pixels.")
        check_same_device("flip_pixels", ("joints_px", "width"), (joints_px, width))
        leading = joints_px.shape[:-2]
        if width.shape not in ((), leading):
            needed = f"`flip_pixels` needs `width` as a number, or of shape {tuple(leading)}"
            raise ValueError(three_beats(needed, describe(width), "One for each pose."))
    else:
        width = check_number("flip_pixels", "width", width)
    width = torch.as_tensor(width, dtype=joints_px.dtype, device=joints_px.device)
    flipped[..., 0] = width[..., None] - 1 - flipped[..., 0]
    return flipped


def limb_lengths(joints: Tensor) -> Tensor:
    """Lengths of the 16 limbs of ``(..., 17, 3)`` joints, ``(..., 16)``, in the unit of the joints."""
    check_shape("limb_lengths", "joints", joints, ("...", SKELETON.num_joints, 3))
    parents, children = zip(*SKELETON.limbs)
    return (joints[..., list(children), :] - joints[..., list(parents), :]).norm(dim=-1)


def _renamed(operation: str, joints: Tensor) -> Tensor:
    remedy = "Map other skeletons to the 17 joints of Human3.6M first."
    check_shape(operation, "joints", joints, ("...", SKELETON.num_joints, "C"), remedy)
    if not joints.shape[-1]:
        raise ValueError(three_beats(f"`{operation}` needs coordinates", describe(joints), "Pass (..., 17, 2 or 3)."))
    return joints[..., list(SKELETON.flip_permutation), :]  # indexing by a list copies
