"""From a recording to batches: real cameras, real pictures, and augmentation that reaches all of them alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from multicontrast._checks import check_choice, describe, three_beats

from .batches import PoseBatch
from .bodies import with_lengths
from .boxes import apply_affine, compose_affine, crop_affine, displace_joints, invert_affine, joint_box
from .camera import Camera
from .facing import face_box
from .pictures import decode, warp
from .protocols import Protocol
from .recording import Recording
from .render import normalise_image
from .sampling import SpacedSampler
from .skeleton import SKELETON, flip_joints
from .source import VIEWS, Augmentation, hashed_joint_errors, vocabulary

JOINT_NOISE = {"annotated": 0.0, "detected": 0.015}
"""How much 2D joints err by where they come from: a standard deviation in shares of the box's longer side."""


class RecordingSource:
    """Samples of a recording, with the interface of :class:`~unihpe_ref.data.source.PoseSource`.

    Only samples that have what is asked for are there: all 17 joints in 2D and 3D, and a picture where pictures are
    wanted. Lens distortion is left out: on Human3.6M's cameras it moves joints by less than a pixel near the middle.

    Args:
        recording: where the samples come from.
        image_size: (height, width) of crops; None leaves pictures out (crops then have 256 x 192 pixels).
        augment: an :class:`Augmentation`, True for its defaults, False for none. Evaluation ignores it.
        joints_2d: the 2D joints of a batch: "annotated", or "detected" for a detector's.
        convention: of the crops' pixels, "aligned", "classic" or "udp" (:func:`.boxes.crop_affine`).
        view: "camera", or "box" for poses in the frame of a camera that faces them (see :mod:`.facing`).
        need_3d: False also takes samples without 3D joints, whose ``joints_3d`` and ``root`` are then NaN.
        protocol: what :meth:`evaluation_indices` covers; every frame unless given.
        min_distance: metres; the poses of a batch of :meth:`sampler` differ by at least so much (root mean square over
            joints, in the camera's frame), from whatever sequences. 0 does not look; 0.02 keeps out what looks alike.
        joint_noise: of evaluation: standard deviation of the 2D joints' error, in shares of the longer side of the box.
        action_names, subject_names: what the numbers mean; the recording's own names, sorted, unless given.
    Raises: ValueError for an unknown name, or where no sample has what is asked for.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        image_size: tuple[int, int] | None = None,
        augment: bool | Augmentation = False,
        joints_2d: str = "annotated",
        convention: str = "aligned",
        view: str = "camera",
        need_3d: bool = True,
        protocol: Protocol | None = None,
        min_distance: float = 0.0,
        joint_noise: float = 0.0,
        action_names: tuple[str, ...] | None = None,
        subject_names: tuple[str, ...] | None = None,
    ) -> None:
        check_choice("RecordingSource", "joints_2d", joints_2d, JOINT_NOISE)
        check_choice("RecordingSource", "view", view, VIEWS)
        if joints_2d == "detected" and recording.detected_2d is None:
            needed = "`RecordingSource` needs detected joints in the recording"
            raise ValueError(three_beats(needed, "none", "Choose annotated `joints_2d`, or add a file of detections."))
        self.recording = recording
        self.image_size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
        self.augment = Augmentation() if augment is True else None if augment is False else augment
        if self.augment is not None:
            self.augment.check_pictures(image_size is not None)
        self.joints_2d = joints_2d
        self.convention = convention
        self.view = view
        self.need_3d = need_3d
        self.protocol = protocol
        self.min_distance = min_distance
        self.joint_noise = joint_noise
        self.action_names = vocabulary("RecordingSource", "action", recording.action, action_names)
        self.subject_names = vocabulary("RecordingSource", "subject", recording.subject, subject_names)
        self._pixels = recording.joints_2d if joints_2d == "annotated" else recording.detected_2d
        assert self._pixels is not None
        usable = np.isfinite(self._pixels).all((1, 2))
        usable &= recording.has_3d if need_3d else True
        usable &= (recording.picture >= 0) if image_size is not None else True
        if recording.picture_affine is not None and image_size is not None:
            usable &= np.isfinite(recording.picture_affine).all((1, 2))
        if not usable.any():
            wanted = f"17 {joints_2d} 2D joints" + (", 17 3D joints" if need_3d else "")
            wanted += ", a picture" if image_size is not None else ""
            needed = f"`RecordingSource` needs samples with {wanted}"
            came = f"none of {len(recording)}"
            raise ValueError(three_beats(needed, came, "`unihpe data check` says what there is."))
        self._actions = torch.tensor([self.action_names.index(name) for name in recording.action])
        self._subjects = torch.tensor([self.subject_names.index(name) for name in recording.subject])
        self._choose(np.flatnonzero(usable))

    def _choose(self, rows: np.ndarray) -> None:
        """Makes these rows of the recording the samples; its arrays stay where they are, memory-mapped or not."""
        self._rows = rows
        self._sequence = torch.from_numpy(np.array(self.recording.sequence[rows]))
        self._views = torch.from_numpy(self.recording.views[rows])
        self._samplers: dict[float, SpacedSampler] = {}

    def __len__(self) -> int:
        """The number of samples that have what is asked for."""
        return len(self._rows)

    @property
    def evaluated_joints(self) -> tuple[int, ...]:
        """Those that errors are averaged over: the protocol's, or all 17."""
        return tuple(range(SKELETON.num_joints)) if self.protocol is None else self.protocol.joints

    @property
    def evaluated_metrics(self) -> tuple[str, ...]:
        """Those that the protocol is known for; MPJPE and PA-MPJPE without one."""
        return ("MPJPE", "PA-MPJPE") if self.protocol is None else self.protocol.metrics

    @property
    def actions(self) -> Tensor:
        """``(N,)`` int64: the action's number of each sample."""
        return self._actions[self._sequence]

    def split(self, name: str) -> RecordingSource:
        """The samples of a split as a source of their own, with the same options and the same numbers for actions and
        subjects; samples are counted anew. A protocol of another split is left behind.

        Raises: ValueError where the split has no such samples.
        """
        rows = self._rows[self.recording.splits[self._rows] == name]
        if not len(rows):
            needed = f"`RecordingSource.split` needs complete samples of the split {name!r}"
            came = f"none, but {', '.join(sorted(set(self.recording.split)))}"
            raise ValueError(three_beats(needed, came, "`unihpe data check` says what there is."))
        part = copy.copy(self)
        part._choose(rows)
        if self.protocol is not None and self.protocol.split != name:
            part.protocol = None
        return part

    def batch(self, indices: Tensor, generator: torch.Generator, rows: slice = slice(None)) -> PoseBatch:
        """A training batch: every call draws the augmentation from ``generator``.

        Args:
            indices: ``(B,)`` int64 samples, B > 0. generator: on the CPU.
            rows: builds these rows of the batch alone, the same as they are in the whole batch.
        """
        indices = self._checked(indices)
        if self.augment is None:
            return self._seen(indices[rows])
        draw = torch.rand(len(indices), 5, generator=generator)[rows]
        errors = self.augment.joint_errors(len(indices), generator)
        lengths = self.augment.limb_lengths(len(indices), generator)
        return self._seen(
            indices[rows],
            angle=(2 * draw[:, 0] - 1) * math.radians(self.augment.rotation_degrees),
            mirror=draw[:, 1] < self.augment.flip,
            scale=1 + (2 * draw[:, 2] - 1) * self.augment.scale,
            shift=(2 * draw[:, 3:] - 1) * self.augment.shift,
            errors=None if errors is None else (errors[0][rows], errors[1][rows]),
            lengths=None if lengths is None else lengths[rows],
        )

    def evaluation_batch(self, indices: Tensor) -> PoseBatch:
        """The samples as they were recorded, but for the joints' noise where one is asked for."""
        indices = self._checked(indices)
        return self._seen(indices, errors=hashed_joint_errors(indices, self.joint_noise, 0))

    def evaluation_indices(self, stride: int = 1) -> Tensor:
        """What an evaluation covers: the protocol's samples, of these every ``stride``-th of each view."""
        if stride < 1:
            raise ValueError(three_beats("`evaluation_indices` needs `stride` >= 1", str(stride), "1 takes all."))
        chosen = np.arange(len(self))
        if self.protocol is not None:
            chosen = np.flatnonzero(np.isin(self._rows, self.protocol.select(self.recording)))
        view = self._views[torch.from_numpy(chosen)].numpy()
        order = np.argsort(view, kind="stable")
        _, first, count = np.unique(view[order], return_index=True, return_counts=True)
        place = np.empty(len(view), np.int64)
        place[order] = np.arange(len(view)) - np.repeat(first, count)
        return torch.from_numpy(chosen[place % stride == 0])

    def sampler(self, batch_size: int, generator: torch.Generator, min_gap_seconds: float = 1.0) -> Iterator[Tensor]:
        """Endless batches of sample numbers without near duplicates.

        Two samples of one view (a sequence seen by one camera) are at least ``min_gap_seconds`` apart. Another view
        of the same moment is another pose in the camera's frame, and may be there.

        Args:
            batch_size: samples in each batch. generator: on the CPU.
            min_gap_seconds: 0 only keeps a sample from meeting itself.
        Returns: an iterator over ``(batch_size,)`` int64 tensors.
        Raises: ValueError, at once, where the recording is too short for such batches.
        """
        if min_gap_seconds not in self._samplers:
            fps = torch.tensor(self.recording.fps, dtype=torch.float64)[self._sequence]
            gap = torch.zeros(int(self._views.max()) + 1, dtype=torch.int64)
            gap[self._views] = (min_gap_seconds * fps - 1e-9).ceil().clamp(min=1).long()
            time = torch.from_numpy(np.array(self.recording.frame[self._rows]))
            poses = torch.from_numpy(np.array(self.recording.joints_3d[self._rows])) if self.need_3d else None
            self._samplers[min_gap_seconds] = SpacedSampler(self._views, time, gap.clamp(min=1), poses)
        sampler = self._samplers[min_gap_seconds]
        if not 0 < batch_size <= sampler.available:
            needed = f"`sampler` needs 0 < `batch_size` <= {sampler.available}, the samples {min_gap_seconds:g} s apart"
            raise ValueError(three_beats(needed, str(batch_size), "Lower `min_gap_seconds` or add recordings."))
        return sampler.batches(batch_size, generator, self.min_distance)

    def _checked(self, indices: Tensor) -> Tensor:
        if indices.ndim != 1 or indices.dtype != torch.int64 or not len(indices):
            needed = "`RecordingSource` needs `indices` as a non-empty int64 tensor of shape (B,)"
            remedy = "Take them from `sampler` or `evaluation_indices`."
            raise ValueError(three_beats(needed, describe(indices), remedy))
        if bool((indices < 0).any()) or bool((indices >= len(self)).any()):
            came = f"{int(indices.min())} .. {int(indices.max())}"
            needed = f"`RecordingSource` needs `indices` from 0 to {len(self) - 1}"
            raise ValueError(three_beats(needed, came, "Indices belong to the source, or the split, they came from."))
        return indices.cpu()

    def _seen(
        self,
        indices: Tensor,
        *,
        angle: Tensor | None = None,
        mirror: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        errors: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> PoseBatch:
        """Takes samples through one map of their pictures, and poses and cameras with it."""
        rows = self._rows[indices.numpy()]
        recording = self.recording
        assert self._pixels is not None
        joints, root, pixels = (
            torch.from_numpy(np.array(array[rows])) for array in (recording.joints_3d, recording.root, self._pixels)
        )
        camera = recording.cameras[torch.from_numpy(np.array(recording.camera[rows]))]
        if lengths is not None:  # pixels move as the joints' projections do, and keep the error that a detector made
            other = torch.where(lengths.isnan()[:, :1, None], joints, with_lengths(joints, lengths))
            pixels = pixels + camera.project(other + root[:, None]) - camera.project(joints + root[:, None])
            joints = other
        moved = torch.eye(2, 3).repeat(len(rows), 1, 1)
        if angle is not None:
            turn = torch.eye(3).repeat(len(rows), 1, 1)
            turn[:, 0, 0], turn[:, 1, 1] = angle.cos(), angle.cos()
            turn[:, 1, 0], turn[:, 0, 1] = angle.sin(), -angle.sin()
            joints, root = joints @ turn.mT, (turn @ root[..., None])[..., 0]
            moved = rolled_affine(camera, turn)
        if mirror is not None:
            joints = torch.where(mirror[:, None, None], flip_joints(joints), joints)
            root = torch.where(mirror[:, None], root * root.new_tensor([-1.0, 1.0, 1.0]), root)
            flipped = torch.eye(2, 3).repeat(len(rows), 1, 1)
            flipped[:, 0, 0], flipped[:, 0, 2] = -1, camera.image_size[:, 0] - 1
            moved = torch.where(mirror[:, None, None], compose_affine(flipped, moved), moved)
        pixels = apply_affine(moved, pixels)
        principal = camera.principal
        if mirror is not None:
            pixels = torch.where(mirror[:, None, None], pixels[:, list(SKELETON.flip_permutation)], pixels)
            principal = torch.where(mirror[:, None], camera.mirrored().principal, principal)
        if errors is not None:
            pixels = displace_joints(pixels, errors[0])
        box = joint_box(pixels)
        if shift is not None:
            box = torch.cat([box[:, :2] + shift * box[:, 2:], box[:, 2:]], -1)
        if scale is not None:
            box = torch.cat([box[:, :2], box[:, 2:] * scale[:, None]], -1)
        affine = crop_affine(box, self.image_size or (256, 192), convention=self.convention)
        sequence = self._sequence[indices]
        batch = PoseBatch(
            joints_3d=joints,
            root=root,
            joints_2d=pixels,
            box=box,
            focal=camera.focal,
            principal=principal,
            image_size=camera.image_size,
            image=None if self.image_size is None else self._pictures(rows, compose_affine(affine, moved)),
            crop_affine=affine,
            action=self._actions[sequence],
            subject=self._subjects[sequence],
            sequence=sequence,
            index=indices,
            joint_noise=torch.hypot(
                torch.full((len(rows),), JOINT_NOISE[self.joints_2d]),
                torch.zeros(len(rows)) if errors is None else errors[1],
            ),
        )
        return face_box(batch) if self.view == "box" else batch

    def _pictures(self, rows: np.ndarray, affine: Tensor) -> Tensor:
        """Crops ``(B, 3, H, W)``, normalised; ``affine`` leads from the full picture to the crop."""
        assert self.image_size is not None
        if self.recording.picture_affine is not None:  # what is stored is a crop of the full picture
            affine = compose_affine(affine, invert_affine(torch.from_numpy(self.recording.picture_affine[rows])))
        crops = np.empty((len(rows), *self.image_size, 3), np.uint8)
        for position, row in enumerate(rows):
            name = self.recording.picture_path(int(row)) or f"number {row} of the pack"
            try:
                content = self.recording.picture_bytes(int(row))
            except OSError as error:
                needed = f"`RecordingSource` needs the picture {name}"
                came = error.strerror or str(error)
                raise type(error)(three_beats(needed, came, "Put it there, or train on poses alone.")) from None
            assert content is not None
            crops[position] = warp(decode(content, name), affine[position].numpy(), self.image_size)
        return normalise_image(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)


def rolled_affine(camera: Camera, turn: Tensor) -> Tensor:
    """What turning the camera about its optical axis does to its picture: ``K R K^-1``, an affine map.

    Args:
        camera: a batch ``(B,)``. turn: ``(B, 3, 3)`` about the third axis.
    Returns: ``(B, 2, 3)``, full-image pixels to full-image pixels; exact for any focal lengths.
    """
    linear = turn[:, :2, :2] * camera.focal[:, :, None] / camera.focal[:, None, :]
    shift = camera.principal - (linear @ camera.principal[..., None])[..., 0]
    return torch.cat([linear, shift[..., None]], -1)
