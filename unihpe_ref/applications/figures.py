"""A sheet of poses: the input, the truth and the estimates.

Each sample has a panel of the input with the 2D pose, then one panel for each way to 3D, seen from 55 degrees to the
side, where an error of depth is visible. The truth is a grey body; the estimate is coloured by side, so that a swap of
left and right is visible, too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from multicontrast.metrics import epe, mpjpe
from unihpe_ref.applications.drawing import bare, draw_limbs, turned
from unihpe_ref.data import SKELETON, PoseBatch, apply_affine, denormalise_image, denormalise_joints
from unihpe_ref.data.source import FrameSource
from unihpe_ref.files import write_whole
from unihpe_ref.models import UniHPE

_TRUTH = "0.75"
_VIEW = math.radians(55)
_PANEL_INCHES = 2.2
_BLOCKS, _GAP = 2, 0.12  # samples side by side, and the space between them


def save_pose_sheet(model: UniHPE, source: FrameSource, path: Path, *, samples: int = 8, seed: int = 0) -> None:
    """Writes a PNG with ``samples`` samples of ``source``, of as many actions as there are.

    Args:
        model: in evaluation mode.
        source: the split to show; with images if the model encodes them.
        path: of the PNG.
        samples: how many.
        seed: of the score-based decoders' noise.
    """
    batch = source.evaluation_batch(_varied_frames(source, samples)).to(model.device)
    generator = torch.Generator().manual_seed(seed)
    box_info = batch.box_info()
    with torch.no_grad():
        panels = {"2D to 3D": model.lift(batch.joints_2d_normalised(), box_info, generator=generator).cpu()}
        crop_2d = None
        if model.image_encoder is not None:
            assert batch.image is not None
            estimate = model.estimate(batch.image, box_info, generator=generator)
            panels = {"image to 3D": estimate.joints_3d.cpu(), **panels}
            crop_2d = apply_affine(batch.crop_affine, denormalise_joints(estimate.joints_2d, batch.box)).cpu()
    figure = _draw(batch.to("cpu"), [source.action_names[k] for k in batch.action.tolist()], panels, crop_2d)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))


def _varied_frames(source: FrameSource, samples: int) -> Tensor:
    """Frames of evenly chosen actions, one of each or several if there are few actions, at scattered times."""
    action = source.actions
    present = action.unique()
    chosen = []
    for k in range(samples):
        of = (
            present[(2 * k + 1) * len(present) // (2 * samples)]
            if samples < len(present)
            else present[k % len(present)]
        )
        frames = torch.nonzero(action == of)[:, 0]
        chosen.append(frames[int((0.3 + 0.618 * k) % 1 * len(frames))])
    return torch.stack(chosen)


def _draw(batch: PoseBatch, actions: list[str], panels: dict[str, Tensor], crop_2d: Tensor | None) -> Figure:
    """Samples run down the left half of the sheet, then down the right."""
    rows, columns = math.ceil(len(batch) / _BLOCKS), 1 + len(panels)
    height = _PANEL_INCHES * rows + 0.9
    figure = Figure(figsize=(_PANEL_INCHES * (_BLOCKS * columns + _GAP), height), facecolor="white")
    FigureCanvasAgg(figure)  # no display, and no effect on the caller's figures
    grid = figure.add_gridspec(
        rows,
        _BLOCKS * (columns + 1) - 1,
        width_ratios=([1.0] * columns + [_GAP]) * (_BLOCKS - 1) + [1.0] * columns,
        left=0.01,
        right=0.99,
        bottom=0.6 / height,
        top=1 - 0.3 / height,
        wspace=0.04,
        hspace=0.12,
    )
    for sample in range(len(batch)):
        row, first = sample % rows, sample // rows * (columns + 1)
        axes = [figure.add_subplot(grid[row, first + column]) for column in range(columns)]
        _draw_input(axes[0], batch, sample, actions[sample], None if crop_2d is None else crop_2d[sample])
        for axis, joints in zip(axes[1:], panels.values()):
            _draw_3d(axis, batch.joints_3d[sample], joints[sample])
        if row == 0:
            for axis, title in zip(axes, ("input, 2D" if crop_2d is None else "image to 2D", *panels)):
                axis.set_title(title, fontsize=10, parse_math=False)
    handles = [
        Line2D([], [], color=colour, linewidth=width, label=label)
        for colour, width, label in (
            (_TRUTH, 4, "truth (white on images)"),
            (_limb_colour("lknee"), 2, "estimate, left side"),
            (_limb_colour("rknee"), 2, "right side"),
            (_limb_colour("thorax"), 2, "middle"),
        )
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_input(axis: Any, batch: PoseBatch, row: int, action: str, estimate: Tensor | None) -> None:
    truth = batch.joints_2d_crop()[row]
    if batch.image is not None and estimate is not None:
        pixels = denormalise_image(batch.image[row : row + 1])[0]
        axis.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="bilinear")
        draw_limbs(axis, truth.numpy(), width=3.0, colour="white")
        draw_limbs(axis, estimate.numpy(), width=1.6)
        scale = batch.crop_affine[row, 0, 0]
        error = epe(estimate[None], truth[None]).item() / scale.item()
        caption = f"{action}, {error:.0f} px"
    else:
        draw_limbs(axis, truth.numpy(), width=1.8)
        axis.set_aspect("equal")
        axis.invert_yaxis()
        axis.margins(0.1)
        caption = action
    _finish(axis, caption)


def _draw_3d(axis: Any, truth: Tensor, estimate: Tensor) -> None:
    seen_truth, seen_estimate = (turned(joints.double(), _VIEW, 0.0)[:, :2].numpy() for joints in (truth, estimate))
    _floor(axis, seen_truth)
    draw_limbs(axis, seen_truth, width=4.5, colour=_TRUTH)
    draw_limbs(axis, seen_estimate, width=2.0)
    middle = (seen_truth.min(0) + seen_truth.max(0)) / 2
    axis.set_xlim(middle[0] - 0.95, middle[0] + 0.95)
    axis.set_ylim(middle[1] + 0.95, middle[1] - 0.95)  # y points down
    axis.set_aspect("equal")
    _finish(axis, f"{1000 * mpjpe(estimate[None], truth[None]).item():.0f} mm")


def _floor(axis: Any, joints: np.ndarray) -> None:
    low = joints[:, 1].max() + 0.06
    axis.plot([joints[:, 0].min() - 0.2, joints[:, 0].max() + 0.2], [low, low], color="0.85", linewidth=1)


def _limb_colour(child: str) -> str:
    return dict(zip((limb[1] for limb in SKELETON.limbs), SKELETON.limb_colours))[SKELETON.index(child)]


def _finish(axis: Any, caption: str) -> None:
    bare(axis)
    axis.set_xlabel(caption, fontsize=8, color="0.25", labelpad=2, parse_math=False)
