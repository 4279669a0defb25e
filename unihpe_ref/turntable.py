"""Lifted poses to look at: a GIF and a PNG from all sides, and an HTML page to turn by hand.

A pose stands in camera axes; what is drawn is turned about the vertical through its middle. The HTML is one file that
asks nothing of the network: the joints as JSON and a page of plain JavaScript that draws them on a canvas.
"""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from multicontrast._checks import describe, three_beats
from unihpe_ref.data import SKELETON
from unihpe_ref.files import write_whole

_GIF_FRAMES, _GIF_SECONDS, _GIF_SIZE = 48, 0.08, 360
_OVERSAMPLE = 3  # drawn larger and reduced: Pillow's lines have no smooth edges
_SHEET_DEGREES = (0, 60, 120, 180, 240, 300)
_ELEVATION = math.radians(12)
_MAX_SHEET_ROWS = 8


def save_pose_view(path: Path, joints_3d: Tensor, titles: Sequence[str], *, joints_px: Tensor | None = None) -> None:
    """Writes what the ending of ``path`` says: ``.gif``, ``.png`` or ``.html``.

    Args:
        path: of the picture; it appears when it is whole.
        joints_3d: ``(N, 17, 3)`` metres, camera axes. Several are frames of the GIF, rows of the PNG (at most eight,
            evenly chosen), and steps of the page's slider.
        titles: N captions.
        joints_px: ``(N, 17, 2)``, what was lifted; the PNG and the page show it beside the pose.
    Raises: ValueError for another ending or shapes that do not fit.
    """
    joints = joints_3d.double()
    writers: dict[str, Callable[[], bytes]] = {
        ".gif": lambda: _gif(joints),
        ".png": lambda: _png(joints, titles, joints_px),
        ".html": lambda: _html(joints, titles, joints_px),
    }
    if path.suffix.lower() not in writers:
        needed = f"a picture of poses needs to be one of {', '.join(sorted(writers))}"
        raise ValueError(three_beats(needed, repr(path.name), "Change the ending."))
    count = len(joints_3d)
    if tuple(joints_3d.shape[1:]) != (SKELETON.num_joints, 3) or not count or len(titles) != count:
        needed = "`save_pose_view` needs `joints_3d` of shape (N, 17, 3), N > 0, and N titles"
        raise ValueError(three_beats(needed, f"{describe(joints_3d)} and {len(titles)} titles", "Correct the shapes."))
    write_whole(path, writers[path.suffix.lower()]())


def turned(joints_3d: Tensor, azimuth: float, elevation: float = _ELEVATION) -> Tensor:
    """Joints as seen after walking round them.

    Args:
        joints_3d: ``(..., 3)`` camera axes, y down. azimuth, elevation: radians; elevation looks down from above.
    Returns: ``(..., 3)``: right, down, away.
    """
    x, y, z = joints_3d.unbind(-1)
    right = math.cos(azimuth) * x - math.sin(azimuth) * z
    away = math.sin(azimuth) * x + math.cos(azimuth) * z
    down = math.cos(elevation) * y - math.sin(elevation) * away
    return torch.stack((right, down, math.cos(elevation) * away + math.sin(elevation) * y), -1)


def _middle(joints: Tensor) -> Tensor:
    return (joints.amin(-2, keepdim=True) + joints.amax(-2, keepdim=True)) / 2


def _reach(joints: Tensor) -> float:
    """How far from its middle any pose goes, from any side."""
    return max(0.3, float((joints - _middle(joints)).norm(dim=-1).max()))


def _by_depth(seen: Tensor) -> list[int]:
    """Limbs, the farthest first, so that near ones cover them."""
    depth = [float(seen[list(limb), 2].mean()) for limb in SKELETON.limbs]
    return sorted(range(len(depth)), key=lambda k: -depth[k])


def _gif(joints: Tensor) -> bytes:
    frames = max(_GIF_FRAMES, len(joints))
    reach, size = _reach(joints), _GIF_SIZE * _OVERSAMPLE
    scale = 0.46 * size / reach
    pictures = []
    for k in range(frames):
        pose = joints[k * len(joints) // frames]
        seen = turned(pose - _middle(pose), 2 * math.pi * k / _GIF_FRAMES)
        picture = Image.new("RGB", (size, size), "white")
        pen = ImageDraw.Draw(picture)
        _disc(pen, pose, 2 * math.pi * k / _GIF_FRAMES, scale, size)
        for limb in _by_depth(seen):
            ends = [
                (size / 2 + scale * float(seen[j, 0]), size / 2 + scale * float(seen[j, 1]))
                for j in SKELETON.limbs[limb]
            ]
            pen.line(ends, fill=SKELETON.limb_colours[limb], width=5 * _OVERSAMPLE)
            for u, v in ends:
                r = 3.2 * _OVERSAMPLE
                pen.ellipse((u - r, v - r, u + r, v + r), fill=SKELETON.limb_colours[limb])
        pictures.append(picture.resize((_GIF_SIZE, _GIF_SIZE), Image.Resampling.LANCZOS).quantize(64))
    content = io.BytesIO()
    pictures[0].save(
        content, "GIF", save_all=True, append_images=pictures[1:], duration=int(1000 * _GIF_SECONDS), loop=0
    )
    return content.getvalue()


def _disc(pen: ImageDraw.ImageDraw, pose: Tensor, azimuth: float, scale: float, size: int) -> None:
    """The floor under the lowest joint, for the eye to hold on to."""
    centre = _middle(pose)[0]
    low = float(pose[:, 1].max() - centre[1]) + 0.05
    angle = torch.linspace(0, 2 * math.pi, 49, dtype=pose.dtype)
    ring = torch.stack((0.55 * angle.cos(), torch.full_like(angle, low), 0.55 * angle.sin()), -1)
    seen = turned(ring, azimuth)[:, :2] * scale + size / 2
    pen.polygon([(float(u), float(v)) for u, v in seen], fill="#f1f1f1", outline="#d5d5d5")


def _png(joints: Tensor, titles: Sequence[str], joints_px: Tensor | None) -> bytes:
    rows = sorted(
        {k * len(joints) // min(len(joints), _MAX_SHEET_ROWS) for k in range(min(len(joints), _MAX_SHEET_ROWS))}
    )
    columns = len(_SHEET_DEGREES) + (joints_px is not None)
    figure = Figure(figsize=(1.9 * columns, 2.1 * len(rows) + 0.3), facecolor="white")
    FigureCanvasAgg(figure)  # no display, and no effect on the figures of whoever calls
    axes = figure.subplots(len(rows), columns, squeeze=False)
    reach = _reach(joints)
    for line, k in enumerate(rows):
        panels = list(axes[line])
        if joints_px is not None:
            axis = panels.pop(0)
            _limbs(axis, joints_px[k].double(), range(len(SKELETON.limbs)))
            axis.margins(0.12)
            axis.invert_yaxis()
            axis.set_xlabel(titles[k], fontsize=8, parse_math=False)
            if line == 0:
                axis.set_title("input, 2D", fontsize=9)
        for axis, degrees in zip(panels, _SHEET_DEGREES):
            seen = turned(joints[k] - _middle(joints[k]), math.radians(degrees))
            _limbs(axis, seen, _by_depth(seen))
            axis.set_xlim(-reach, reach)
            axis.set_ylim(reach, -reach)
            if line == 0:
                axis.set_title(f"3D, {degrees}°", fontsize=9)
    for axis in axes.flat:
        axis.set_aspect("equal")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.tight_layout(pad=0.4)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _limbs(axis: object, joints: Tensor, order: Sequence[int]) -> None:
    for limb in order:
        ends = joints[list(SKELETON.limbs[limb])]
        axis.plot(ends[:, 0], ends[:, 1], color=SKELETON.limb_colours[limb], linewidth=2.4, solid_capstyle="round")  # type: ignore[attr-defined]


def _html(joints: Tensor, titles: Sequence[str], joints_px: Tensor | None) -> bytes:
    data = {
        "limbs": SKELETON.limbs,
        "colours": SKELETON.limb_colours,
        "names": SKELETON.joint_names,
        "titles": list(titles),
        "poses": [[[round(float(x), 4) for x in joint] for joint in pose] for pose in joints],
        "pixels": None
        if joints_px is None
        else [[[round(float(x), 1) for x in joint] for joint in pose] for pose in joints_px],
    }
    # No title begins a tag or a comment in the script element, nor stands for the other part of the page.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = (files("unihpe_ref") / "assets" / "turntable.html").read_text(encoding="utf-8")
    parts = {"__TITLE__": html.escape(titles[0]), "__DATA__": text}
    return re.sub("|".join(parts), lambda found: parts[found[0]], page).encode()
