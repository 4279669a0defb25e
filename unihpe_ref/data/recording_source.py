"""Batches of a recording: real cameras, real pictures, and augmentation of both."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from multicontrast._checks import check_choice, three_beats

from .body import about
from .boxes import apply_affine, compose_affine, invert_affine
from .camera import Camera
from .pictures import decode, warp
from .protocols import Protocol
from .recording import Recording
from .render import normalise_image
from .shapes import all_finite
from .skeleton import SKELETON, flip_joints
from .source import Augmentation, Change, FrameSource, Seen, mirror_cameras

JOINT_NOISE = {"annotated": 0.0, "detected": 0.015}
"""Error of 2D joints by their origin: a standard deviation in shares of the box's longer side."""


class RecordingSource(FrameSource):
    """Samples of a recording.

    Only complete samples are used: all 17 joints in 2D and 3D, and a picture if pictures are requested. Lens
    distortion is ignored: on Human3.6M's cameras it moves joints by less than a pixel near the middle.

    Args:
        recording: where the samples come from.
        joints_2d: the 2D joints of a batch: "annotated", or "detected" for a detector's.
        convention: of the crops' pixels, "aligned", "classic" or "udp" (``boxes.py``).
        need_3d: False also takes samples without 3D joints, whose ``joints_3d`` and ``root`` are then NaN.
        protocol: what ``evaluation_indices`` covers; every frame unless given.
        min_distance: metres; the poses of a batch of ``sampler`` differ by at least this (root mean square over
            joints, in the camera's frame), across sequences. 0 does not check; 0.02 excludes near duplicates.
        image_size, augment, view, joint_noise, action_names, subject_names: as in
            :class:`~unihpe_ref.data.source.FrameSource`.
    Raises: ValueError for an unknown name, or if no sample is complete.
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
        super().__init__(
            recording,
            image_size=image_size,
            augment=augment,
            view=view,
            joint_noise=joint_noise,
            action_names=action_names,
            subject_names=subject_names,
        )
        self.convention, self.min_distance, self.own_noise = convention, min_distance, JOINT_NOISE[joints_2d]
        pixels = recording.joints_2d if joints_2d == "annotated" else recording.detected_2d
        if pixels is None:
            needed = "`RecordingSource` needs detected joints in the recording"
            raise ValueError(three_beats(needed, "none", "Choose annotated `joints_2d`, or add a file of detections."))
        self.recording = recording
        self.need_3d = need_3d
        self.protocol = protocol
        self._pixels = pixels
        usable = all_finite(pixels, (1, 2))
        usable &= recording.has_3d if need_3d else True
        usable &= (recording.picture >= 0) if image_size is not None else True
        if recording.picture_affine is not None and image_size is not None:
            usable &= all_finite(recording.picture_affine, (1, 2))
        if not usable.any():
            wanted = f"17 {joints_2d} 2D joints" + (", 17 3D joints" if need_3d else "")
            wanted += ", a picture" if image_size is not None else ""
            needed = f"`RecordingSource` needs samples with {wanted}"
            came = f"none of {len(recording)}"
            raise ValueError(three_beats(needed, came, "`unihpe data check` says what there is."))
        self._choose(np.flatnonzero(usable))

    def _choose(self, rows: np.ndarray) -> None:
        """Makes these rows of the recording the samples; its arrays are not copied, memory-mapped or not."""
        self.rows = rows
        sequence, views, time = (
            torch.from_numpy(np.array(column[rows]))
            for column in (self.recording.sequence, self.recording.views, self.recording.frame)
        )
        self._hold(self.recording, sequence, views, time, self.recording.fps)

    @property
    def evaluated_joints(self) -> tuple[int, ...]:
        """The joints that errors are averaged over: the protocol's, or all 17."""
        return super().evaluated_joints if self.protocol is None else self.protocol.joints

    @property
    def evaluated_metrics(self) -> tuple[str, ...]:
        """The protocol's metrics; MPJPE and PA-MPJPE without a protocol."""
        return super().evaluated_metrics if self.protocol is None else self.protocol.metrics

    def split(self, name: str) -> RecordingSource:
        """The samples of a split as a source of their own, with the same options and the same numbers for actions and
        subjects; samples are renumbered. A protocol of another split is dropped.

        Raises: ValueError if the split has no such samples.
        """
        rows = self.rows[self.recording.splits[self.rows] == name]
        if not len(rows):
            needed = f"`RecordingSource.split` needs complete samples of the split {name!r}"
            came = f"none, but {', '.join(sorted(set(self.recording.split)))}"
            raise ValueError(three_beats(needed, came, "`unihpe data check` says what there is."))
        part = copy.copy(self)
        part._choose(rows)
        if self.protocol is not None and self.protocol.split != name:
            part.protocol = None
        return part

    def _covered(self) -> Tensor:
        """The protocol's samples, or all."""
        if self.protocol is None:
            return super()._covered()
        return torch.from_numpy(np.flatnonzero(np.isin(self.rows, self.protocol.select(self.recording))))

    def _poses(self) -> Tensor | None:
        looks = self.need_3d and self.min_distance > 0
        return torch.from_numpy(np.array(self.recording.joints_3d[self.rows])) if looks else None

    def _look(self, indices: Tensor, view: None, change: Change) -> Seen:
        """Applies one map to the pictures of samples, and to poses and cameras."""
        rows = self.rows[indices.numpy()]
        recording = self.recording
        joints, root, pixels = (
            torch.from_numpy(np.array(array[rows])) for array in (recording.joints_3d, recording.root, self._pixels)
        )
        camera = recording.cameras[torch.from_numpy(np.array(recording.camera[rows]))]
        other = change.reshaped(joints)
        if other is not joints:  # pixels move with the joints' projections, and keep a detector's error
            pixels = pixels + camera.project(other + root[:, None]) - camera.project(joints + root[:, None])
            joints = other
        moved = torch.eye(2, 3).repeat(len(rows), 1, 1)
        if change.angle is not None:
            turn = about("z", change.angle)
            joints, root = joints @ turn.mT, (turn @ root[..., None])[..., 0]
            moved = rolled_affine(camera, turn)
        mirror = change.mirror
        if mirror is not None:
            joints = torch.where(mirror[:, None, None], flip_joints(joints), joints)
            root = torch.where(mirror[:, None], root * root.new_tensor([-1.0, 1.0, 1.0]), root)
            flipped = torch.eye(2, 3).repeat(len(rows), 1, 1)
            flipped[:, 0, 0], flipped[:, 0, 2] = -1, camera.image_size[:, 0] - 1
            moved = torch.where(mirror[:, None, None], compose_affine(flipped, moved), moved)
        pixels = apply_affine(moved, pixels)
        if mirror is not None:
            pixels = torch.where(mirror[:, None, None], pixels[:, list(SKELETON.flip_permutation)], pixels)

        def pictures(affine: Tensor) -> Tensor:
            return self._pictures(rows, compose_affine(affine, moved))

        return Seen(joints, root, pixels, mirror_cameras(camera, mirror), pictures)

    def _pictures(self, rows: np.ndarray, affine: Tensor) -> Tensor:
        """Crops ``(B, 3, H, W)``, normalised; ``affine`` maps the full picture to the crop."""
        assert self.image_size is not None
        if self.recording.picture_affine is not None:  # the stored picture is a crop of the full one
            affine = compose_affine(affine, invert_affine(torch.from_numpy(self.recording.picture_affine[rows])))
        crops = np.empty((len(rows), *self.image_size, 3), np.uint8)
        for position, row in enumerate(rows):
            name = self.recording.picture_path(int(row)) or f"number {row} of the pack"
            content = self.recording.picture_bytes(int(row))
            assert content is not None
            crops[position] = warp(decode(content, name), affine[position].numpy(), self.image_size)
        return normalise_image(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)


def rolled_affine(camera: Camera, turn: Tensor) -> Tensor:
    """The affine map of a picture when its camera turns about its optical axis: ``K R K^-1``.

    Args:
        camera: a batch ``(B,)``. turn: ``(B, 3, 3)`` about the third axis.
    Returns: ``(B, 2, 3)``, full-image pixels to full-image pixels; exact for any focal lengths.
    """
    linear = turn[:, :2, :2] * camera.focal[:, :, None] / camera.focal[:, None, :]
    shift = camera.principal - (linear @ camera.principal[..., None])[..., 0]
    return torch.cat([linear, shift[..., None]], -1)
