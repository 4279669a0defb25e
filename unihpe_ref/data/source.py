"""Batches of motion: cameras, boxes, augmentation, pictures, and the choice of frames."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from multicontrast._checks import (
    check_choice,
    check_count,
    check_dense,
    check_number,
    check_size,
    check_texts,
    check_type,
    describe,
    three_beats,
)

from .batches import PoseBatch
from .bodies import random_lengths, random_turns, with_lengths, with_turns
from .boxes import crop_affine, displace_joints, joint_box
from .camera import Camera, crop_intrinsics, fixed_cameras, random_camera
from .facing import face_box
from .hashing import hashed_normal, hashed_uniform
from .motion import Motion
from .recording import Recording
from .render import NOISE_CHANNELS, render_poses
from .sampling import SpacedSampler
from .skeleton import SKELETON, flip_joints

CAMERAS = ("fixed", "random", "varied")
VIEWS = ("box", "camera")
_ROAM = 1.5  # metres: largest distance of a person from the middle of the room, as in Human3.6M
# What :func:`random_camera` draws from.
_VARIED: dict[str, Any] = {"distance": (2.5, 8.0), "height": (0.3, 3.0), "roll_degrees": 5.0}
_VARIED_ROAM = 0.3  # share of the camera's distance that limits roaming, too, so that nobody enters the lens


@dataclass(frozen=True, kw_only=True)
class Change:
    """The augmentation of a batch's samples; None leaves them unchanged.

    Attributes:
        angle: ``(B,)``, by which the camera rolls. mirror: ``(B,)`` bool.
        scale: ``(B,)``, factor on the box's side. shift: ``(B, 2)``, of the box, in shares of its side.
        errors: displacements of the 2D joints, ``(B, 17, 2)``, and each sample's deviation ``(B,)``.
        lengths: ``(B, 16)`` metres of the limbs, NaN for samples that stay as recorded.
        turns: ``(B, 16, 3)``, rotation vectors of the limbs.
    """

    angle: Tensor | None = None
    mirror: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    errors: tuple[Tensor, Tensor] | None = None
    lengths: Tensor | None = None
    turns: Tensor | None = None

    def reshaped(self, joints: Tensor) -> Tensor:
        """``(B, 17, 3)`` joints with turned limbs of the new lengths."""
        if self.turns is not None:
            joints = with_turns(joints, self.turns)
        if self.lengths is not None:
            joints = torch.where(self.lengths.isnan()[:, :1, None], joints, with_lengths(joints, self.lengths))
        return joints


_GENERATOR = "Make one with `torch.Generator().manual_seed(seed)`."


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentation of training samples; each changes 3D, 2D, box and picture together."""

    flip: float = 0.5  # probability of a mirrored sample
    scale: float = 0.25  # the box grows or shrinks by up to this share
    rotation_degrees: float = 30.0  # the camera rolls about its optical axis by up to this much
    shift: float = 0.0  # the box moves by up to this share of its side
    joint_noise: float = 0.0  # 2D joints err; each sample draws its deviation, up to this share of the box's side
    bodies: float = 0.0  # probability that a sample is another body (see ``bodies.py``); not with pictures
    limb_degrees: float = 0.0  # limbs turn about their joints, by a deviation of up to this much; not with pictures

    def __post_init__(self) -> None:
        """Raises ``ValueError`` outside the ranges that make sense."""
        limits = {"flip": 1.0, "scale": 0.9, "rotation_degrees": 180.0, "shift": 0.5, "joint_noise": 0.5, "bodies": 1.0,
                  "limb_degrees": 180.0}  # fmt: skip
        for name, high in limits.items():
            value = check_number("Augmentation", name, getattr(self, name))
            object.__setattr__(self, name, value)
            if not 0 <= value <= high:
                needed = f"`Augmentation` needs 0 <= `{name}` <= {high:g}"
                raise ValueError(three_beats(needed, repr(value), "0 switches it off."))

    def draw(self, count: int, generator: torch.Generator, rows: slice = slice(None)) -> Change:
        """The augmentation of a batch of ``count``, drawn for the whole batch and returned for ``rows``.

        Nothing is drawn for noise, other bodies or turned limbs that are off. The square root of the noise's deviation
        is uniform: small errors matter most to a lifter and are drawn most often.
        """
        draw = torch.rand(count, 5, generator=generator)[rows]
        errors = lengths = turns = None
        if self.joint_noise:
            deviation = self.joint_noise * torch.rand(count, generator=generator).square()
            error = deviation[:, None, None] * torch.randn(count, SKELETON.num_joints, 2, generator=generator)
            errors = error[rows], deviation[rows]
        if self.bodies:
            lengths = random_lengths(generator, count)
            other = torch.rand(count, 1, generator=generator) < self.bodies
            lengths = torch.where(other, lengths, torch.nan)[rows]
        if self.limb_degrees:
            turns = random_turns(generator, count, self.limb_degrees)[rows]
        return Change(
            angle=(2 * draw[:, 0] - 1) * math.radians(self.rotation_degrees),
            mirror=draw[:, 1] < self.flip,
            scale=1 + (2 * draw[:, 2] - 1) * self.scale,
            shift=(2 * draw[:, 3:] - 1) * self.shift,
            errors=errors,
            lengths=lengths,
            turns=turns,
        )


class Source(Protocol):
    """A source of training batches: one data set (:class:`FrameSource`) or several (``JoinedSource``)."""

    def batch(self, indices: Tensor, generator: torch.Generator, rows: slice = ...) -> PoseBatch:
        """A training batch."""

    def sampler(self, batch_size: int, generator: torch.Generator, min_gap_seconds: float = 1.0) -> Iterator[Tensor]:
        """Endless batches of sample numbers without near duplicates."""


@dataclass(frozen=True)
class Seen:
    """B people as seen by their cameras, before boxes and crops.

    Attributes:
        joints: ``(B, 17, 3)`` from the pelvis. root: ``(B, 3)``. pixels: ``(B, 17, 2)``. camera: a batch ``(B,)``.
        pictures: makes the crops ``(B, 3, H, W)``, normalised, from ``(B, 2, 3)``, full-image pixels to crop pixels.
    """

    joints: Tensor
    root: Tensor
    pixels: Tensor
    camera: Camera
    pictures: Callable[[Tensor], Tensor]


class FrameSource(ABC):
    """Draws batches of one data set: a motion (:class:`PoseSource`) or a recording (``RecordingSource``).

    A subclass names its samples by ``_hold`` and shows them by ``_look``. If a sample can be seen in several views,
    ``_draw_view`` chooses one.

    Args:
        data: the motion or recording that the samples come from.
        image_size: (height, width) of crops; None for no pictures (crops then have 256 x 192 pixels).
        augment: an :class:`Augmentation`, True for its defaults, False for none. Evaluation ignores it.
        view: "camera", or "box" for poses in the frame of a camera that faces them (see ``facing.py``).
        joint_noise: in evaluation, standard deviation of the 2D joints' error, in shares of the longer side of the box.
        action_names, subject_names: the names behind the numbers; the data's own names, sorted, unless given.
    Raises: ValueError for an unknown name or sizes that are not positive.
    """

    convention = "aligned"  # of the crops' pixels (:func:`.boxes.crop_affine`)
    own_noise = 0.0  # as ``joint_noise``: the error that the data's own 2D joints have
    seed = 0  # of the noise that an evaluation adds
    min_distance = 0.0  # of the poses of a batch, metres (:class:`.sampling.SpacedSampler`)

    def __init__(
        self,
        data: Motion | Recording,
        *,
        image_size: tuple[int, int] | None,
        augment: bool | Augmentation,
        view: str,
        joint_noise: float,
        action_names: tuple[str, ...] | None,
        subject_names: tuple[str, ...] | None,
    ) -> None:
        self._owner = type(self).__name__
        check_choice(self._owner, "view", view, VIEWS)
        self.image_size = (
            None
            if image_size is None
            else check_size(self._owner, "image_size", image_size, remedy="Pass `(height, width)`. Try (64, 48).")
        )
        if not isinstance(augment, bool):
            check_type(self._owner, "augment", augment, Augmentation, "Pass `augment=True` for the usual one.")
        self.augment = Augmentation() if augment is True else None if augment is False else augment
        for name in ("bodies", "limb_degrees"):
            if self.augment is not None and getattr(self.augment, name) and image_size is not None:
                came, remedy = "pictures, which show what was recorded", f"Set `data.{name}` to 0."
                raise ValueError(three_beats(f"`{name}` needs poses alone", came, remedy))
        self.view = view
        self.joint_noise = check_number(self._owner, "joint_noise", joint_noise, least=0, below=1)
        self.action_names = self._vocabulary("action", data.action, action_names)
        self.subject_names = self._vocabulary("subject", data.subject, subject_names)

    def _vocabulary(self, kind: str, own: tuple[str, ...], given: tuple[str, ...] | None) -> tuple[str, ...]:
        if given is None:
            return tuple(sorted(set(own)))
        given = tuple(check_texts(self._owner, f"{kind}_names", given))
        missing = sorted(set(own) - set(given))
        if missing:
            needed = f"`{self._owner}` needs `{kind}_names` to hold every {kind} of the data"
            raise ValueError(three_beats(needed, f"no {missing[0]!r}", "Add it, or leave the names out."))
        return given

    def _hold(
        self, data: Motion | Recording, sequence: Tensor, views: Tensor, time: Tensor, fps: Sequence[float]
    ) -> None:
        """Sets the samples of ``data``, ``(N,)`` int64 each; those of one view are neighbours in ``time``, counted in
        frames at the ``fps`` of their sequence."""
        self._actions = torch.tensor([self.action_names.index(name) for name in data.action])
        self._subjects = torch.tensor([self.subject_names.index(name) for name in data.subject])
        self._sequence, self._views, self._time, self._fps = sequence, views, time, fps
        self._samplers: dict[float, SpacedSampler] = {}

    @abstractmethod
    def split(self, name: str) -> FrameSource:
        """Samples of one split, with the same options and the same numbers for actions and subjects."""

    @abstractmethod
    def _look(self, indices: Tensor, view: Any, change: Change) -> Seen:
        """These samples in this view, after the changes to bodies and cameras."""

    def _draw_view(self, indices: Tensor, generator: torch.Generator, rows: slice) -> Any:
        """The view of a training batch, drawn for the whole batch and returned for ``rows``."""
        return None

    def _covered(self) -> Tensor:
        """The samples that an evaluation covers at stride 1."""
        return torch.arange(len(self))

    def _poses(self) -> Tensor | None:
        """The poses ``(N, 17, 3)`` that ``min_distance`` compares."""
        return None

    @property
    def evaluated_joints(self) -> tuple[int, ...]:
        """The joints that errors are averaged over: all 17."""
        return tuple(range(SKELETON.num_joints))

    @property
    def evaluated_metrics(self) -> tuple[str, ...]:
        """The usual metrics of the data."""
        return ("MPJPE", "PA-MPJPE")

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._sequence)

    @property
    def num_sequences(self) -> int:
        """The number of sequences of the data, with or without samples."""
        return len(self._actions)

    @property
    def actions(self) -> Tensor:
        """``(N,)`` int64: the action's number of each sample."""
        return self._actions[self._sequence]

    def batch(self, indices: Tensor, generator: torch.Generator, rows: slice = slice(None)) -> PoseBatch:
        """A training batch: every call draws views, augmentation and looks from ``generator``.

        Args:
            indices: ``(B,)`` int64 samples, B > 0. generator: on the CPU.
            rows: builds only these rows of the batch, equal to those of the whole batch; for processes that share a
                batch.
        """
        indices = self._checked(indices)
        check_type("batch", "generator", generator, torch.Generator, _GENERATOR)
        check_type("batch", "rows", rows, slice, "Pass `slice(first, last)`.")
        view = self._draw_view(indices, generator, rows)
        change = Change() if self.augment is None else self.augment.draw(len(indices), generator, rows)
        return self._seen(indices[rows], view, change)

    def evaluation_batch(self, indices: Tensor) -> PoseBatch:
        """The same samples at every call, one by one: no augmentation, except ``joint_noise``.

        Args:
            indices: ``(B,)`` int64 samples, B > 0.
        """
        return self._evaluated(self._checked(indices))

    def _evaluated(self, indices: Tensor, view: Any = None) -> PoseBatch:
        errors = None
        if self.joint_noise:
            error = hashed_normal(indices, 2 * SKELETON.num_joints, self.seed + 3).view(-1, SKELETON.num_joints, 2)
            errors = self.joint_noise * error, torch.full((len(indices),), self.joint_noise)
        return self._seen(indices, view, Change(errors=errors))

    def evaluation_indices(self, stride: int = 1) -> Tensor:
        """The samples that an evaluation covers, int64: every ``stride``-th sample of each view."""
        stride = check_count("evaluation_indices", "stride", stride, 1, remedy="1 takes all.")
        covered = self._covered()
        view, order = self._views[covered].sort(stable=True)
        count = view.unique_consecutive(return_counts=True)[1]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(view)) - (count.cumsum(0) - count).repeat_interleave(count)
        return covered[place % stride == 0]

    def sampler(self, batch_size: int, generator: torch.Generator, min_gap_seconds: float = 1.0) -> Iterator[Tensor]:
        """Endless batches of sample numbers without near duplicates.

        Two samples of one view (a sequence, or a sequence seen by one camera) are at least ``min_gap_seconds`` apart:
        each batch takes a grid of that spacing in every view, at a random phase, and draws without replacement. Another
        view of the same moment is a different pose in the camera's frame and may be in the batch.

        Args:
            batch_size: samples in each batch. generator: on the CPU.
            min_gap_seconds: 0 only excludes duplicates of a sample.
        Returns: an iterator over ``(batch_size,)`` int64 tensors.
        Raises: ValueError, at the call, if the data are too short for such batches.
        """
        batch_size = check_count("sampler", "batch_size", batch_size)
        check_type("sampler", "generator", generator, torch.Generator, _GENERATOR)
        min_gap_seconds = check_number("sampler", "min_gap_seconds", min_gap_seconds, least=0, below=1e9)
        if min_gap_seconds not in self._samplers:
            fps = torch.tensor(self._fps, dtype=torch.float64)[self._sequence]
            gap = torch.ones(int(self._views.max()) + 1, dtype=torch.int64)
            gap[self._views] = (min_gap_seconds * fps - 1e-9).ceil().clamp(min=1).long()
            self._samplers[min_gap_seconds] = SpacedSampler(self._views, self._time, gap, self._poses())
        sampler = self._samplers[min_gap_seconds]
        sampler.check(batch_size, min_gap_seconds)
        return sampler.batches(batch_size, generator, self.min_distance)

    def _checked(self, indices: Tensor) -> Tensor:
        check_dense(self._owner, "indices", indices)
        if (
            indices.is_meta
            or indices._is_zerotensor()
            or indices.ndim != 1
            or indices.dtype != torch.int64
            or not len(indices)
        ):
            needed = f"`{self._owner}` needs `indices` as a non-empty int64 tensor of shape (B,)"
            remedy = "Take them from `sampler` or `evaluation_indices`."
            raise ValueError(three_beats(needed, describe(indices), remedy))
        if bool((indices < 0).any()) or bool((indices >= len(self)).any()):
            came = f"{int(indices.min())} .. {int(indices.max())}"
            needed = f"`{self._owner}` needs `indices` from 0 to {len(self) - 1}"
            raise ValueError(three_beats(needed, came, "Use indices with the source or split they came from."))
        return indices.cpu().resolve_neg()

    def _seen(self, indices: Tensor, view: Any, change: Change) -> PoseBatch:
        """Samples, their boxes and their crops."""
        seen = self._look(indices, view, change)
        pixels = seen.pixels if change.errors is None else displace_joints(seen.pixels, change.errors[0])
        box = joint_box(pixels)
        if change.shift is not None:
            box = torch.cat([box[:, :2] + change.shift * box[:, 2:], box[:, 2:]], -1)
        if change.scale is not None:
            box = torch.cat([box[:, :2], box[:, 2:] * change.scale[:, None]], -1)
        affine = crop_affine(box, self.image_size or (256, 192), convention=self.convention)
        own = torch.full((len(indices),), self.own_noise)
        sequence = self._sequence[indices]
        batch = PoseBatch(
            joints_3d=seen.joints,
            root=seen.root,
            joints_2d=pixels,
            box=box,
            focal=seen.camera.focal,
            principal=seen.camera.principal,
            image_size=seen.camera.image_size,
            image=None if self.image_size is None else seen.pictures(affine),
            crop_affine=affine,
            action=self._actions[sequence],
            subject=self._subjects[sequence],
            sequence=sequence,
            index=indices,
            joint_noise=own if change.errors is None else own.hypot(change.errors[1]),
        )
        return face_box(batch) if self.view == "box" else batch


def mirror_cameras(camera: Camera, mirror: Tensor | None) -> Camera:
    """The cameras of the mirrored samples; only their principal points differ."""
    if mirror is None:
        return camera
    return replace(camera, principal=torch.where(mirror[:, None], camera.mirrored().principal, camera.principal))


class PoseSource(FrameSource):
    """Frames of a motion as seen by cameras.

    Training batches (``batch``) draw a camera for each frame at each call. Evaluation batches
    (:meth:`evaluation_batch`) always show a frame from the same one of four fixed cameras and are never augmented.

    Args:
        motion: where the poses come from.
        cameras: for training, "random" draws a new camera like Human3.6M's and a new place in the room for each
            sample; "varied" draws it from 2.5 to 8 m away and 0.3 to 3 m high; "fixed" draws one of the four
            evaluation cameras.
        image_size: (height, width) of rendered crops; None for no pictures.
        seed: of the looks of evaluation pictures; training draws from the generator that is passed in.
        augment, view, joint_noise, action_names, subject_names: as in :class:`FrameSource`.
    Raises: ValueError for an unknown name or sizes that are not positive.
    """

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
        check_type("PoseSource", "motion", motion, Motion, "Make one with `generate_motion(seed)`.")
        check_choice("PoseSource", "cameras", cameras, CAMERAS)
        seed = check_count("PoseSource", "seed", seed, -(2**62), 2**62)
        super().__init__(
            motion,
            image_size=image_size,
            augment=augment,
            view=view,
            joint_noise=joint_noise,
            action_names=action_names,
            subject_names=subject_names,
        )
        self.cameras, self.seed = cameras, seed
        self._fixed = fixed_cameras()
        self._choose(motion)

    def _choose(self, motion: Motion) -> None:
        self.motion = motion
        self._places = _walked_in_room(motion)
        time = torch.arange(len(motion))
        self._hold(motion, motion.sequence, motion.sequence, time, [motion.fps] * motion.num_sequences)

    def split(self, name: str) -> PoseSource:
        """The "train" or "test" sequences as a source of their own, with the same options and the same numbers for
        actions and subjects; frames and sequences are counted anew."""
        part = copy.copy(self)
        part._choose(self.motion.select(name))
        return part

    def evaluation_batch(self, indices: Tensor, camera: int | None = None) -> PoseBatch:
        """The same samples at every call, one by one: fixed cameras, no augmentation, looks decided by the seed.

        Args:
            indices: ``(B,)`` int64 frames, B > 0.
            camera: 0-3; None gives each frame one of the four, scattered evenly.
        """
        indices = self._checked(indices)
        if camera is None:
            view = (hashed_uniform(indices, 1, seed=1)[:, 0] * len(self._fixed)).long()
        else:
            remedy = "Choose one of the fixed cameras."
            camera = check_count("evaluation_batch", "camera", camera, 0, len(self._fixed) - 1, remedy=remedy)
            view = torch.full_like(indices, camera)
        noise = hashed_uniform(indices, NOISE_CHANNELS, seed=self.seed + 2) if self.image_size else None
        return self._evaluated(indices, (self._fixed[view], self._places[indices], noise))

    def _draw_view(self, indices: Tensor, generator: torch.Generator, rows: slice) -> _View:
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
        return camera[rows], place[rows], noise

    def _look(self, indices: Tensor, view: _View, change: Change) -> Seen:
        """Puts the frames at their places on the floor and renders them."""
        camera, place, noise = view
        if change.angle is not None:
            camera = camera.rolled(change.angle)
        world = change.reshaped(self.motion.joints[indices])
        moved = torch.cat([place - world[:, 0, :2], torch.zeros(len(place), 1)], -1)
        joints = camera.world_to_camera(world + moved[:, None])
        if change.mirror is not None:
            joints = torch.where(change.mirror[:, None, None], flip_joints(joints), joints)
        camera = mirror_cameras(camera, change.mirror)
        pixels = camera.project(joints, distort=False)

        def pictures(affine: Tensor) -> Tensor:
            assert self.image_size is not None
            return render_poses(joints, crop_intrinsics(affine, camera.intrinsics), self.image_size, noise=noise)

        root = joints[:, 0]
        return Seen(joints - root[:, None], root, pixels, camera, pictures)


_View = tuple[Camera, Tensor, Tensor | None]  # cameras, places on the floor (B, 2), looks


def _walked_in_room(motion: Motion) -> Tensor:
    """The place of each pelvis, ``(F, 2)`` metres, in the room of the fixed cameras.

    The middle of each sequence is moved to the middle of the room. A person who walks further than Human3.6M's people
    stays at the edge, as on a treadmill, so that recordings of larger rooms neither leave the picture nor enter the
    lens.
    """
    pelvis = motion.joints[:, SKELETON.index("pelvis"), :2]
    rows = motion.sequence[:, None].expand(-1, 2)
    low = pelvis.new_full((motion.num_sequences, 2), torch.inf).scatter_reduce(0, rows, pelvis, "amin")
    high = pelvis.new_full((motion.num_sequences, 2), -torch.inf).scatter_reduce(0, rows, pelvis, "amax")
    place = pelvis - ((low + high) / 2)[motion.sequence]
    distance = place.norm(dim=-1, keepdim=True)
    return place * (_ROAM / distance.clamp(min=_ROAM))
