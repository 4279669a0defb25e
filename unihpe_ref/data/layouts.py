"""Orders of joints in files, and the way from each to the 17 joints of Human3.6M.

A joint that a layout lacks is the mean of joints that it has, or is unknown (NaN). Where the usual tools disagree on
left and right, the trap is named beside the layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multicontrast._checks import check_choice, three_beats

from .skeleton import SKELETON

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Layout:
    """An order of K joints.

    Attributes:
        name: its key in :data:`LAYOUTS`.
        num_joints: K.
        sources: for each of Human3.6M's 17 joints the joints whose mean it is; empty where nothing stands for it.
        weights: of the sources, adding up to 1; all alike where empty.
    """

    name: str
    num_joints: int
    sources: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...] = ()

    def to_h36m(self, joints: Floats) -> Floats:
        """``(..., K, C)`` joints in this order to ``(..., 17, C)``; NaN for a joint that nothing stands for.

        Raises: ValueError for another number of joints.
        """
        self._check(joints.shape[-2] if joints.ndim > 1 else joints.shape)
        result = np.full((*joints.shape[:-2], SKELETON.num_joints, joints.shape[-1]), np.nan, joints.dtype)
        for target, source in enumerate(self.sources):
            if len(source) == 1:  # a copy, bit for bit
                result[..., target, :] = joints[..., source[0], :]
            elif source:
                weights = self.weights[target] if self.weights else (1 / len(source),) * len(source)
                result[..., target, :] = np.einsum("...kc,k->...c", joints[..., list(source), :], weights)
        return result

    def confidence_to_h36m(self, confidence: Floats) -> Floats:
        """``(..., K)`` confidences to ``(..., 17)``: the least of a joint's sources, 0 where there is none."""
        self._check(confidence.shape[-1])
        result = np.zeros((*confidence.shape[:-1], SKELETON.num_joints), confidence.dtype)
        for target, source in enumerate(self.sources):
            if source:
                result[..., target] = confidence[..., list(source)].min(-1)
        return result

    def _check(self, count: object) -> None:
        if count != self.num_joints:
            needed = f"the layout {self.name!r} needs {self.num_joints} joints"
            fitting = sorted(layout.name for layout in LAYOUTS.values() if layout.num_joints == count)
            remedy = f"Of that many: {', '.join(fitting)}." if fitting else "See `unihpe_ref.data.layouts.LAYOUTS`."
            raise ValueError(three_beats(needed, f"{count}", remedy))


def _picked(name: str, num_joints: int, indices: tuple[int, ...]) -> Layout:
    return Layout(name, num_joints, tuple((index,) for index in indices))


# Where a detector's joints put the trunk, as shares of the way from the hips to the shoulders, and the top of the head,
# from the shoulders through the ears: fitted on motion capture, as `unihpe lift` reads the same files.
_SPINE, _THORAX, _HEAD = 0.42, 0.88, 1.69


def _detected(
    name: str, num_joints: int, hips: tuple[int, ...], shoulders: tuple[int, ...], ears: tuple[int, ...],
    limbs: tuple[int, ...],
) -> Layout:  # fmt: skip
    """A detector's order, without trunk and top of the head; ``limbs`` are right leg, left leg, left arm, right arm."""

    def way(start: tuple[int, ...], end: tuple[int, ...], share: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
        weights = ((1 - share) / len(start),) * len(start) + (share / len(end),) * len(end)
        return start + end, weights

    one = [((index,), (1.0,)) for index in limbs]
    joints = [
        (hips, (1 / len(hips),) * len(hips)),
        *one[:6],
        way(hips, shoulders, _SPINE),
        way(hips, shoulders, _THORAX),
        (ears, (0.5, 0.5)),
        way(shoulders, ears, _HEAD),
        *one[6:],
    ]
    return Layout(name, num_joints, tuple(source for source, _ in joints), tuple(weight for _, weight in joints))


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _picked("h36m_17", 17, tuple(range(17))),
        # Human3.6M's own 32, of which 15 repeat others or never move
        _picked("h36m_32", 32, (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)),
        # What `J_regressor_h36m.npy` makes of SMPL's vertices. The trap: the left leg comes first, arms are as usual
        _picked("j_regressor_h36m", 17, (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)),
        # SPIN's 24 ground-truth joints: ankles first, right to left
        _picked("spin_24", 24, (14, 2, 1, 0, 3, 4, 5, 16, 12, 17, 18, 9, 10, 11, 8, 7, 6)),
        # MPI-INF-3DHP's training annotation; left legs 18-20, right legs 23-25. Its neck stands for the thorax
        _picked("3dhp_28", 28, (4, 23, 24, 25, 18, 19, 20, 3, 5, 6, 7, 9, 10, 11, 14, 15, 16)),
        # ... and of its test set; here the right side comes first
        _picked("3dhp_17", 17, (14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)),
        # SMPL's own 24 joints: no top of the head; a stand-in where the vertices are not at hand
        Layout(
            "smpl_24", 24,
            ((0,), (2,), (5,), (8,), (1,), (4,), (7,), (6,), (12,), (15,), (),
             (16,), (18,), (20,), (17,), (19,), (21,)),
        ),
        _detected("coco_17", 17, (11, 12), (5, 6), (3, 4), (12, 14, 16, 11, 13, 15, 5, 7, 9, 6, 8, 10)),
        # OpenPose's 18, as in 3DPW
        _detected("openpose_18", 18, (11, 8), (5, 2), (17, 16), (8, 9, 10, 11, 12, 13, 5, 6, 7, 2, 3, 4)),
        # OpenPose's BODY-25, which has a middle of the hips; its feet are left out
        _detected("body_25", 25, (8,), (5, 2), (18, 17), (9, 10, 11, 12, 13, 14, 5, 6, 7, 2, 3, 4)),
    )
}  # fmt: skip
"""All layouts by name."""

LSP_14 = (3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10)
"""The 14 joints of LSP, as indices into Human3.6M's 17: what SPIN, HMR and PARE evaluate."""


def layout(name: str) -> Layout:
    """A layout by name. Raises ``ValueError`` for an unknown one, with the nearest."""
    check_choice("layout", "name", name, LAYOUTS)
    return LAYOUTS[name]
