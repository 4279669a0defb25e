"""From motion to batches: cameras, boxes, augmentation, pictures, and which frames meet in a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from multicontrast._checks import check_choice, describe, three_beats

from .batches import PoseBatch
from .bodies import random_lengths, with_lengths
from .boxes import crop_affine, displace_joints, joint_box
from .camera import Camera, crop_intrinsics, fixed_cameras, random_camera
from .facing import face_box
from .hashing import hashed_normal, hashed_uniform
from .motion import Motion
from .render import NOISE_CHANNELS, render_poses
from .sampling import SpacedSampler
from .skeleton import SKELETON, flip_joints

CAMERAS = ("fixed", "random", "varied")
VIEWS = ("box", "camera")
_ROAM = 1.5  # metres: how far from the middle of the room a person is seen, as in Human3.6M
_VARIED = {"distance": (2.5, 8.0), "height": (0.3, 3.0), "roll_degrees": 5.0}  # of :func:`random_camera`
_VARIED_ROAM = 0.3  # of the camera's distance, where that is nearer than _ROAM: nobody enters the lens


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training samples are varied; each alteration reaches 3D, 2D, box and picture alike."""

    flip: float = 0.5  # probability of a mirrored sample
    scale: float = 0.25  # the box grows or shrinks by up to this share
    rotation_degrees: float = 30.0  # the camera rolls about its optical axis by up to this much
    shift: float = 0.0  # the box moves by up to this share of its side
    joint_noise: float = 0.0  # 2D joints err, each sample's by a deviation drawn up to this share of the box's side
    bodies: float = 0.0  # probability that a sample is another body (see ``bodies.py``); not with pictures

    def __post_init__(self) -> None:
        """Raises ``ValueError`` outside the ranges that make sense."""
        limits = {"flip": 1.0, "scale": 0.9, "rotation_degrees": 180.0, "shift": 0.5, "joint_noise": 0.5, "bodies": 1.0}
        for name, high in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= high:
                needed = f"`Augmentation` needs 0 <= `{name}` <= {high:g}"
                raise ValueError(three_beats(needed, repr(value), "0 switches it off."))

    def check_pictures(self, pictures: bool) -> None:
        """Raises ``ValueError`` where pictures would show another body than the joints."""
        if self.bodies and pictures:
            needed = "`bodies` needs poses alone"
            raise ValueError(three_beats(needed, "pictures, which show the recorded body", "Set `data.bodies` to 0."))

    def joint_errors(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """What a batch's 2D joints are displaced by, ``(count, 17, 2)``, and each sample's deviation ``(count,)``.

        The deviation's square root is uniform: small errors matter most to a lifter and are drawn most. None, and
        nothing is drawn, without noise.
        """
        if not self.joint_noise:
            return None
        deviation = self.joint_noise * torch.rand(count, generator=generator).square()
        return deviation[:, None, None] * torch.randn(count, SKELETON.num_joints, 2, generator=generator), deviation

    def limb_lengths(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Limb lengths of a batch, ``(count, 16)`` metres, NaN for who stays as recorded; None, and nothing is drawn,
        where all do."""
        if not self.bodies:
            return None
        lengths = random_lengths(generator, count)
        return torch.where(torch.rand(count, 1, generator=generator) < self.bodies, lengths, torch.nan)


class Source(Protocol):
    """Where batches come from: motion (:class:`~unihpe_ref.data.source.PoseSource`) or a recording."""

    action_names: tuple[str, ...]
    evaluated_joints: tuple[int, ...]
    evaluated_metrics: tuple[str, ...]

    def __len__(self) -> int: ...

    @property
    def actions(self) -> Tensor:
        """``(N,)`` int64: the action's number of each sample."""

    def split(self, name: str) -> Source:
        """Samples of one split, with the same options."""

    def batch(self, indices: Tensor, generator: torch.Generator, rows: slice = ...) -> PoseBatch:
        """A training batch."""

    def evaluation_batch(self, indices: Tensor) -> PoseBatch:
        """The same samples at every call."""

    def evaluation_indices(self, stride: int = 1) -> Tensor:
        """What an evaluation covers."""

    def sampler(self, batch_size: int, generator: torch.Generator, min_gap_seconds: float = 1.0) -> Iterator[Tensor]:
        """Endless batches of sample numbers without near duplicates."""


class PoseSource:
    """Frames of a motion as seen by cameras.

    Training batches (:meth:`batch`) see a frame from a camera of their own at each draw; evaluation batches
    (:meth:`evaluation_batch`) always see it from the same one of four fixed cameras and are never augmented.

    Args:
        motion: where the poses come from.
        cameras: for training, "random" draws a new camera like Human3.6M's and a new place in the room for each
            sample; "varied" draws it from 2.5 to 8 m away and 0.3 to 3 m high; "fixed" draws one of the four
            evaluation cameras.
        image_size: (height, width) of rendered crops; None leaves pictures out (crops then have 256 x 192 pixels).
        augment: an :class:`Augmentation`, True for its defaults, False for none. Evaluation ignores it.
        seed: decides how evaluation pictures look; training draws from the generator that is passed in.
        view: "camera", or "box" for poses in the frame of a camera that faces them (see ``facing.py``).
        joint_noise: of evaluation: standard deviation of the 2D joints' error, in shares of the longer side of the box.
        action_names, subject_names: what the numbers mean; the motion's own names, sorted, unless given.
    Raises: ValueError for an unknown name or sizes that are not positive.
    """

    evaluated_joints: tuple[int, ...] = tuple(range(SKELETON.num_joints))
    evaluated_metrics: tuple[str, ...] = ("MPJPE", "PA-MPJPE")

    def __init__(
        self,
        motion: Motion,
        *,
        cameras: str = "random",
        image_size: tuple[int, int] | None = None,
        augment: bool | Augmentation = False,
        seed: int = 0,
        view: str = "camera",
        joint_noise: float = 0.0,
        action_names: tuple[str, ...] | None = None,
        subject_names: tuple[str, ...] | None = None,
    ) -> None:
        check_choice("PoseSource", "cameras", cameras, CAMERAS)
        check_choice("PoseSource", "view", view, VIEWS)
        if image_size is not None and not (len(image_size) == 2 and min(image_size) > 0):
            needed = "`PoseSource` needs `image_size` as (height, width) in pixels, or None"
            raise ValueError(three_beats(needed, repr(image_size), "Try (64, 48)."))
        self.motion = motion
        self.cameras = cameras
        self.image_size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
        self.augment = Augmentation() if augment is True else None if augment is False else augment
        if self.augment is not None:
            self.augment.check_pictures(image_size is not None)
        self.seed = seed
        self.view = view
        self.joint_noise = joint_noise
        self.action_names = vocabulary("PoseSource", "action", motion.action, action_names)
        self.subject_names = vocabulary("PoseSource", "subject", motion.subject, subject_names)
        self._actions = torch.tensor([self.action_names.index(name) for name in motion.action])
        self._subjects = torch.tensor([self.subject_names.index(name) for name in motion.subject])
        self._starts = motion.starts
        self._places = _walked_in_room(motion)
        self._fixed = fixed_cameras()
        self._samplers: dict[int, SpacedSampler] = {}

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.motion)

    @property
    def actions(self) -> Tensor:
        """``(F,)`` int64: the action's number of each frame."""
        return self._actions[self.motion.sequence]

    def split(self, name: str) -> PoseSource:
        """The "train" or "test" sequences as a source of their own, with the same options and the same numbers for
        actions and subjects; frames and sequences are counted anew."""
        return PoseSource(
            self.motion.select(name),
            cameras=self.cameras,
            image_size=self.image_size,
            augment=self.augment or False,
            seed=self.seed,
            view=self.view,
            joint_noise=self.joint_noise,
            action_names=self.action_names,
            subject_names=self.subject_names,
        )

    def batch(self, indices: Tensor, generator: torch.Generator, rows: slice = slice(None)) -> PoseBatch:
        """A training batch: every call draws cameras, augmentation and looks from ``generator``.

        Args:
            indices: ``(B,)`` int64 frames, B > 0. generator: on the CPU.
            rows: builds these rows of the batch alone, the same as they are in the whole batch; for processes that
                share one.
        """
        indices = self._checked(indices)
        count = len(indices)
        if self.cameras != "fixed":
            camera = random_camera(generator, count, **(_VARIED if self.cameras == "varied" else {}))
            roam = camera.position[:, :2].norm(dim=-1).mul(_VARIED_ROAM).clamp(max=_ROAM)
            radius = (roam if self.cameras == "varied" else _ROAM) * torch.rand(count, generator=generator).sqrt()
            angle = 2 * math.pi * torch.rand(count, generator=generator)
            place = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
        else:
            camera = self._fixed[torch.randint(len(self._fixed), (count,), generator=generator)]
            place = self._places[indices]
        noise = torch.rand(count, NOISE_CHANNELS, generator=generator)[rows] if self.image_size else None
        indices, place, camera = indices[rows], place[rows], camera[rows]
        if self.augment is None:
            return self._seen(indices, place, camera, noise)
        draw = torch.rand(count, 5, generator=generator)[rows]
        errors = self.augment.joint_errors(count, generator)
        lengths = self.augment.limb_lengths(count, generator)
        angle = (2 * draw[:, 0] - 1) * math.radians(self.augment.rotation_degrees)
        return self._seen(
            indices,
            place,
            camera.rolled(angle),
            noise,
            mirror=draw[:, 1] < self.augment.flip,
            scale=1 + (2 * draw[:, 2] - 1) * self.augment.scale,
            shift=(2 * draw[:, 3:] - 1) * self.augment.shift,
            errors=None if errors is None else (errors[0][rows], errors[1][rows]),
            lengths=None if lengths is None else lengths[rows],
        )

    def evaluation_batch(self, indices: Tensor, camera: int | None = None) -> PoseBatch:
        """The same samples at every call, one by one: fixed cameras, no augmentation, looks decided by the seed.

        Args:
            indices: ``(B,)`` int64 frames, B > 0.
            camera: 0-3; None gives each frame one of the four, scattered evenly.
        """
        indices = self._checked(indices)
        if camera is None:
            view = (hashed_uniform(indices, 1, seed=1)[:, 0] * len(self._fixed)).long()
        elif 0 <= camera < len(self._fixed):
            view = torch.full_like(indices, camera)
        else:
            needed = f"`evaluation_batch` needs `camera` from 0 to {len(self._fixed) - 1}, or None"
            raise ValueError(three_beats(needed, repr(camera), "Choose one of the fixed cameras."))
        noise = hashed_uniform(indices, NOISE_CHANNELS, seed=self.seed + 2) if self.image_size else None
        errors = hashed_joint_errors(indices, self.joint_noise, self.seed)
        return self._seen(indices, self._places[indices], self._fixed[view], noise, errors=errors)

    def evaluation_indices(self, stride: int = 1) -> Tensor:
        """Every ``stride``-th frame of each sequence, int64: what an evaluation covers."""
        if stride < 1:
            raise ValueError(three_beats("`evaluation_indices` needs `stride` >= 1", str(stride), "1 takes all."))
        frames = torch.arange(len(self))
        return frames[(frames - self._starts[self.motion.sequence]) % stride == 0]

    def sampler(self, batch_size: int, generator: torch.Generator, min_gap_seconds: float = 1.0) -> Iterator[Tensor]:
        """Endless batches of frame numbers without near duplicates.

        Two frames of one batch from the same sequence are at least ``min_gap_seconds`` apart: each batch lays a comb
        of that pitch over every sequence, at a random phase, and draws teeth without replacement.

        Args:
            batch_size: frames in each batch. generator: on the CPU.
            min_gap_seconds: 0 only keeps a frame from meeting itself.
        Returns: an iterator over ``(batch_size,)`` int64 tensors.
        Raises: ValueError, at once, where the motion is too short for such batches.
        """
        gap = max(1, math.ceil(min_gap_seconds * self.motion.fps - 1e-9))
        if gap not in self._samplers:
            gaps = torch.full((self.motion.num_sequences,), gap)
            self._samplers[gap] = SpacedSampler(self.motion.sequence, torch.arange(len(self)), gaps)
        available = self._samplers[gap].available
        if not 0 < batch_size <= available:
            needed = f"`sampler` needs 0 < `batch_size` <= {available}, the frames {min_gap_seconds:g} s apart in "
            needed += f"{self.motion.num_sequences} sequences of {self.motion.seconds:.0f} s in all"
            raise ValueError(three_beats(needed, str(batch_size), "Lower `min_gap_seconds` or add motion."))
        return self._samplers[gap].batches(batch_size, generator)

    def _checked(self, indices: Tensor) -> Tensor:
        if indices.ndim != 1 or indices.dtype != torch.int64 or not len(indices):
            needed = "`PoseSource` needs `indices` as a non-empty int64 tensor of shape (B,)"
            raise ValueError(
                three_beats(needed, describe(indices), "Take them from `sampler` or `evaluation_indices`.")
            )
        if bool((indices < 0).any()) or bool((indices >= len(self)).any()):
            came = f"{int(indices.min())} .. {int(indices.max())}"
            needed = f"`PoseSource` needs `indices` from 0 to {len(self) - 1}"
            raise ValueError(three_beats(needed, came, "Indices belong to the source, or the split, they came from."))
        return indices.cpu()

    def _seen(
        self,
        indices: Tensor,
        place: Tensor,
        camera: Camera,
        noise: Tensor | None,
        *,
        mirror: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        errors: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> PoseBatch:
        """Puts the frames at ``place`` (B, 2) on the floor and takes their pictures."""
        world = self.motion.joints[indices]
        if lengths is not None:
            world = torch.where(lengths.isnan()[:, :1, None], world, with_lengths(world, lengths))
        moved = torch.cat([place - world[:, 0, :2], torch.zeros(len(place), 1)], -1)
        joints = camera.world_to_camera(world + moved[:, None])
        if mirror is not None:
            joints = torch.where(mirror[:, None, None], flip_joints(joints), joints)
            principal = torch.where(mirror[:, None], camera.mirrored().principal, camera.principal)
            camera = replace(camera, principal=principal)
        pixels = camera.project(joints, distort=False)
        if errors is not None:
            pixels = displace_joints(pixels, errors[0])
        box = joint_box(pixels)
        if shift is not None:
            box = torch.cat([box[:, :2] + shift * box[:, 2:], box[:, 2:]], -1)
        if scale is not None:
            box = torch.cat([box[:, :2], box[:, 2:] * scale[:, None]], -1)
        affine = crop_affine(box, self.image_size or (256, 192))
        image = None
        if self.image_size is not None and noise is not None:
            image = render_poses(joints, crop_intrinsics(affine, camera.intrinsics), self.image_size, noise=noise)
        root = joints[:, 0]
        batch = PoseBatch(
            joints_3d=joints - root[:, None],
            root=root,
            joints_2d=pixels,
            box=box,
            focal=camera.focal,
            principal=camera.principal,
            image_size=camera.image_size,
            image=image,
            crop_affine=affine,
            action=self._actions[self.motion.sequence[indices]],
            subject=self._subjects[self.motion.sequence[indices]],
            sequence=self.motion.sequence[indices],
            index=indices,
            joint_noise=torch.zeros(len(indices)) if errors is None else errors[1],
        )
        return face_box(batch) if self.view == "box" else batch


def hashed_joint_errors(indices: Tensor, joint_noise: float, seed: int) -> tuple[Tensor, Tensor] | None:
    """As :meth:`Augmentation.joint_errors`, for evaluated samples: one deviation, the same at every call."""
    if not joint_noise:
        return None
    errors = hashed_normal(indices, 2 * SKELETON.num_joints, seed + 3).view(-1, SKELETON.num_joints, 2)
    return joint_noise * errors, torch.full((len(indices),), joint_noise)


def vocabulary(owner: str, kind: str, own: tuple[str, ...], given: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names behind the numbers of a source: its own, sorted, or ``given`` ones that hold them all.

    Raises: ValueError where one is missing.
    """
    if given is None:
        return tuple(sorted(set(own)))
    missing = sorted(set(own) - set(given))
    if missing:
        needed = f"`{owner}` needs `{kind}_names` to hold every {kind} there is"
        raise ValueError(three_beats(needed, f"no {missing[0]!r}", "Add it, or leave the names out."))
    return tuple(given)


def _walked_in_room(motion: Motion) -> Tensor:
    """Where each pelvis is, ``(F, 2)`` metres, in the room of the fixed cameras.

    The middle of each sequence comes to the middle of the room; who walks further than Human3.6M's people do is kept
    at the edge, as on a treadmill: a recording made in a larger hall would leave the picture, or enter the lens.
    """
    pelvis = motion.joints[:, SKELETON.index("pelvis"), :2]
    rows = motion.sequence[:, None].expand(-1, 2)
    low = pelvis.new_full((motion.num_sequences, 2), torch.inf).scatter_reduce(0, rows, pelvis, "amin")
    high = pelvis.new_full((motion.num_sequences, 2), -torch.inf).scatter_reduce(0, rows, pelvis, "amax")
    place = pelvis - ((low + high) / 2)[motion.sequence]
    distance = place.norm(dim=-1, keepdim=True)
    return place * (_ROAM / distance.clamp(min=_ROAM))
