"""Test sets for lifters: the recording's held-out takes, and bodies, cameras and pictures outside the training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unihpe_ref.data import Motion, PoseBatch, PoseSource, generate_motion
from unihpe_ref.data.bodies import with_lengths
from unihpe_ref.data.body import Body
from unihpe_ref.data.boxes import displace_joints
from unihpe_ref.data.hashing import hashed_normal

STRIDE = 24  # every STRIDE-th frame of a take is judged
FOCAL_LENGTHS = (1.25, 0.8)  # factors by which a guess may be off

# Human3.6M's mean segments, metres, as papers and tools print them.
_H36M = Body(
    hip=0.132, thigh=0.442, shin=0.454, loin=0.233, chest=0.257, neck=0.118, head=0.115, shoulder=0.150, arm=0.279,
    forearm=0.251,
)  # fmt: skip
_PEOPLE = 24  # in the test set with scaled bodies


@dataclass(frozen=True)
class Judged:
    """The poses that a lifter gets, and the truth.

    Attributes:
        name: of the row in the table. joints_px: ``(N, 17, 2)``. intrinsics: ``(N, 3, 3)``. joints_3d: ``(N, 17, 3)``
            metres from the pelvis, camera axes.
    """

    name: str
    joints_px: Tensor
    intrinsics: Tensor
    joints_3d: Tensor

    def with_noise(self, deviation: float) -> Judged:
        """The same with Gaussian noise on every 2D joint, equal at every call, in shares of the box's longer side."""
        errors = hashed_normal(torch.arange(len(self.joints_px)), 2 * 17, 3).view(-1, 17, 2)
        return replace(self, joints_px=displace_joints(self.joints_px, deviation * errors))

    def with_focal_length(self, factor: float) -> Judged:
        """The same with a focal length wrong by ``factor``."""
        intrinsics = self.intrinsics.clone()
        intrinsics[:, (0, 1), (0, 1)] *= factor
        return replace(self, intrinsics=intrinsics)


def on_motion(motion: Motion) -> Iterator[Judged]:
    """The test sets from the "test" takes of a recording, one from its "train" takes, and one of generated people."""
    held_out = motion.select("test")
    yield _fixed("the recording's held-out takes", held_out)
    yield _fixed("the takes that it was trained on", motion.select("train"), stride=4 * STRIDE)
    h36m = _lengths(_H36M).expand(len(held_out), -1)
    yield _fixed("the same with Human3.6M's mean bones", replace(held_out, joints=with_lengths(held_out.joints, h36m)))
    people = torch.stack([_lengths(Body.random(torch.Generator().manual_seed(k))) for k in range(_PEOPLE)])
    scaled = with_lengths(held_out.joints, people[held_out.sequence % _PEOPLE])
    yield _fixed(f"the same with the bones of {_PEOPLE} generated people", replace(held_out, joints=scaled))
    source = PoseSource(held_out, cameras="varied")
    indices = source.evaluation_indices(STRIDE)
    seen = source.batch(indices, torch.Generator().manual_seed(0))
    yield _judged("the same from anywhere, 2.5 to 8 m away and 0.3 to 3 m high", seen)
    yield _fixed("generated motion of generated people", generate_motion(0).select("test"), stride=8)


def photographs(folder: Path) -> Iterator[Judged]:
    """Real pictures, with a detector's joints and with projections of the truth (triangulated from four detections)."""
    held = np.load(folder / "annot.npz", allow_pickle=False)
    rows = np.flatnonzero(held["ok"])
    truth = torch.from_numpy(held["joints_3d_cam"][rows]).float()
    intrinsics = torch.from_numpy(held["K_full"][rows]).float()
    for name, joints in (("a detector's joints", "kp2d_det_full"), ("projected labels", "kp2d_full")):
        pixels = torch.from_numpy(held[joints][rows][..., :2]).float()
        yield Judged(f"{len(rows)} photographs, {name}", pixels, intrinsics, truth - truth[:, :1])


def _fixed(name: str, motion: Motion, stride: int = STRIDE) -> Judged:
    source = PoseSource(motion)
    return _judged(name, source.evaluation_batch(source.evaluation_indices(stride)))


def _judged(name: str, batch: PoseBatch) -> Judged:
    intrinsics = torch.diag_embed(torch.cat((batch.focal, torch.ones(len(batch), 1)), -1))
    intrinsics[:, :2, 2] = batch.principal
    return Judged(name, batch.joints_2d, intrinsics, batch.joints_3d)


def _lengths(body: Body) -> Tensor:
    b = body
    leg, arm = (b.hip, b.thigh, b.shin), (b.shoulder, b.arm, b.forearm)
    return torch.tensor((*leg, *leg, b.loin, b.chest, b.neck, b.head, *arm, *arm))
