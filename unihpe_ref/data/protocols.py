"""Evaluation protocols: the frames, joints, subjects and averages of a published number.

Two papers' "Protocol 1" may differ in cameras, frames, joints and averages; a name here fixes all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multicontrast._checks import check_choice, three_beats

from .layouts import LSP_14
from .recording import Recording
from .shapes import Array, all_finite

ALL_17 = tuple(range(17))

FAULTY_H36M = ("S9 Greeting", "S9 SittingDown", "S9 Waiting 1")
"""Takes of Human3.6M whose 3D ground truth is displaced relative to the pictures."""


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate.

    Attributes:
        name: the key in :data:`PROTOCOLS`. about: a sentence, with its users.
        split: whose samples. subjects, cameras: only these; all if empty.
        every: takes one frame in this many, counted from 0 at the recording's frame rate.
        every_sample: takes one in this many of the remaining samples, across sequences.
        without: sequences that are left out.
        joints: those of the 17 that errors are averaged over (and, for PA-MPJPE, aligned by).
        mean: "actions" averages the actions' means, "frames" averages over frames; the protocol's usual one.
        metrics: the metrics that it reports.
    """

    name: str
    about: str
    split: str = "test"
    subjects: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    every: int = 1
    every_sample: int = 1
    without: tuple[str, ...] = ()
    joints: tuple[int, ...] = ALL_17
    mean: str = "actions"
    metrics: tuple[str, ...] = ("MPJPE", "PA-MPJPE")

    def select(self, recording: Recording) -> Array:
        """The samples it evaluates, ``(N',)`` int64, in the recording's order.

        Raises: ValueError if the recording has none of them.
        """
        keep = (recording.splits == self.split) & (recording.frame % self.every == 0)
        if self.subjects:
            keep &= np.isin(np.array(recording.subject), self.subjects)[recording.sequence]
        if self.cameras:
            keep &= np.isin(recording.camera_name, self.cameras)[recording.camera]
        if self.without:
            keep &= ~np.isin(np.array(recording.sequence_name), self.without)[recording.sequence]
        keep &= all_finite(recording.joints_3d[:, list(self.joints)], (1, 2))
        rows = np.flatnonzero(keep)[:: self.every_sample]
        if not len(rows):
            needed = f"the protocol {self.name} needs {self.split} samples with its {len(self.joints)} joints"
            came = f"none among {len(recording)} of the form {recording.format}"
            raise ValueError(three_beats(needed, came, self.about))
        return rows


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "h36m_lifting",
            "S9 and S11, every frame of all four cameras, 17 joints, mean of the 15 actions (VideoPose3D and lifters).",
            subjects=("S9", "S11"),
        ),
        Protocol(
            "h36m_lifting_sound",
            "As h36m_lifting, without the three takes of S9 whose ground truth is faulty (MotionBERT).",
            subjects=("S9", "S11"),
            without=FAULTY_H36M,
        ),
        Protocol(
            "h36m_p1_image",
            "S9 and S11, every 5th frame of all four cameras, 14 joints, mean over frames (HMR and SPIN, Protocol 1).",
            subjects=("S9", "S11"),
            every=5,
            joints=LSP_14,
            mean="frames",
        ),
        Protocol(
            "h36m_p2_image",
            "S9 and S11, every 5th frame of camera 60457274, 14 joints, mean over frames (HMR and SPIN, Protocol 2).",
            subjects=("S9", "S11"),
            cameras=("60457274",),
            every=5,
            joints=LSP_14,
            mean="frames",
            metrics=("PA-MPJPE",),
        ),
        Protocol(
            "h36m_every_64th",
            "S9 and S11, every 64th frame of all four cameras, 17 joints (integral pose regression).",
            subjects=("S9", "S11"),
            every=64,
        ),
        Protocol(
            "h36m_every_640th",
            "S9 and S11, every 640th sample of the whole list (GFPose's multi-hypothesis table).",
            subjects=("S9", "S11"),
            every_sample=640,
        ),
        Protocol(
            "h36m_2d",
            "S9 and S11 at 10 frames a second, 2D: PCK at 0.05 of the box's larger side, EPE in pixels of the "
            "full picture (mmpose).",
            subjects=("S9", "S11"),
            every=5,
            mean="frames",
            metrics=("PCK@0.05", "EPE"),
        ),
        Protocol(
            "3dhp",
            "The valid frames of TS1 to TS6 on the universal skeleton, 17 joints; 3DPCK at 150 mm and its AUC over 14 "
            "of them (the data set's own).",
            mean="frames",
            metrics=("MPJPE", "PA-MPJPE", "3DPCK@150", "AUC"),
        ),
        Protocol(
            "3dpw_14",
            "The test split's frames with a valid camera, 14 joints regressed from SMPL, PA-MPJPE over frames (SPIN, "
            "PARE).",
            joints=LSP_14,
            mean="frames",
            metrics=("PA-MPJPE", "MPJPE"),
        ),
        Protocol(
            "3dpw_17",
            "As 3dpw_14 with all 17 joints (ZeDO).",
            mean="frames",
            metrics=("PA-MPJPE", "MPJPE"),
        ),
    )
}
"""All protocols by name."""


def protocol(name: str) -> Protocol:
    """A protocol by name. Raises ``ValueError`` for an unknown one, with the nearest."""
    check_choice("protocol", "name", name, PROTOCOLS)
    return PROTOCOLS[name]
