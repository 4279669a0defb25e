"""Draws lifted poses: a GIF and a PNG from all sides, and an interactive HTML page.

Poses are in camera axes and are drawn turned about the vertical through their middle. The HTML is one file without
network access: the joints as JSON, and plain JavaScript that draws them on a canvas.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import IO

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from multicontrast._checks import three_beats
from unihpe_ref.applications.drawing import bare, draw_limbs, turned
from unihpe_ref.applications.poses import PoseSet
from unihpe_ref.data import SKELETON
from unihpe_ref.files import write_whole

_GIF_FRAMES, _GIF_SECONDS, _GIF_SIZE = 48, 0.08, 360
_OVERSAMPLE = 3  # draw larger and reduce, because Pillow's lines have no smooth edges
_SHEET_DEGREES = (0, 60, 120, 180, 240, 300)
MOST_ROWS = 8


def save_pose_view(path: Path, poses: PoseSet) -> None:
    """Writes a file by the ending of ``path``: ``.gif``, ``.png`` or ``.html``.

    Several poses become frames of the GIF and rows of the PNG (at most eight, evenly chosen). The page shows all people
    of one picture at a time, with a slider.
    Raises: ValueError for another ending or no pose.
    """
    joints = poses.lifted.joints_3d.double()
    writers: dict[str, Callable[[IO[bytes]], object]] = {
        ".gif": lambda file: _gif(file, joints),
        ".png": lambda file: _sheet(joints, poses.image, poses.joints_2d).savefig(file, format="png", dpi=110),
        ".html": lambda file: file.write(page(poses)),
    }
    if path.suffix.lower() not in writers:
        needed = f"a picture of poses needs to be one of {', '.join(sorted(writers))}"
        raise ValueError(three_beats(needed, repr(path.name), "Change the ending."))
    if not len(poses):
        raise ValueError(three_beats("`save_pose_view` needs poses", "none", "Lift some first."))
    write_whole(path, writers[path.suffix.lower()])


def _middle(joints: Tensor) -> Tensor:
    return (joints.amin(-2, keepdim=True) + joints.amax(-2, keepdim=True)) / 2


def _reach(joints: Tensor) -> float:
    """The largest distance of a joint from the middle of its pose, seen from any side."""
    return max(0.3, float((joints - _middle(joints)).norm(dim=-1).max()))


def _by_depth(seen: Tensor) -> list[int]:
    """Limbs, the farthest first, so that near ones cover them."""
    depth = [float(seen[list(limb), 2].mean()) for limb in SKELETON.limbs]
    return sorted(range(len(depth)), key=lambda k: -depth[k])


def _gif(file: IO[bytes], joints: Tensor) -> None:
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
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=int(1000 * _GIF_SECONDS), loop=0)


def _disc(pen: ImageDraw.ImageDraw, pose: Tensor, azimuth: float, scale: float, size: int) -> None:
    """Draws the floor under the lowest joint."""
    centre = _middle(pose)[0]
    low = float(pose[:, 1].max() - centre[1]) + 0.05
    angle = torch.linspace(0, 2 * math.pi, 49, dtype=pose.dtype)
    ring = torch.stack((0.55 * angle.cos(), torch.full_like(angle, low), 0.55 * angle.sin()), -1)
    seen = turned(ring, azimuth)[:, :2] * scale + size / 2
    pen.polygon([(float(u), float(v)) for u, v in seen], fill="#f1f1f1", outline="#d5d5d5")


def _sheet(joints: Tensor, titles: Sequence[str], joints_px: Tensor) -> Figure:
    rows = sorted({k * len(joints) // min(len(joints), MOST_ROWS) for k in range(min(len(joints), MOST_ROWS))})
    columns = 1 + len(_SHEET_DEGREES)
    figure = Figure(figsize=(1.9 * columns, 2.1 * len(rows) + 0.3), facecolor="white")
    FigureCanvasAgg(figure)  # no display, and no effect on the caller's figures
    axes = figure.subplots(len(rows), columns, squeeze=False)
    reach = _reach(joints)
    for line, k in enumerate(rows):
        axis, *panels = axes[line]
        draw_limbs(axis, joints_px[k].double(), width=2.4)
        axis.margins(0.12)
        axis.invert_yaxis()
        axis.set_xlabel(titles[k], fontsize=8, parse_math=False)
        if line == 0:
            axis.set_title("input, 2D", fontsize=9)
        for axis, degrees in zip(panels, _SHEET_DEGREES):
            seen = turned(joints[k] - _middle(joints[k]), math.radians(degrees))
            draw_limbs(axis, seen[:, :2], width=2.4, order=_by_depth(seen))
            axis.set_xlim(-reach, reach)
            axis.set_ylim(reach, -reach)
            if line == 0:
                axis.set_title(f"3D, {degrees}°", fontsize=9)
    for axis in axes.flat:
        axis.set_aspect("equal")
        bare(axis)
    figure.tight_layout(pad=0.4)
    return figure


def page(poses: PoseSet) -> bytes:
    """One HTML file: the poses as JSON, and plain JavaScript that draws them, without network access."""
    # No title begins a tag or a comment in the script element, nor stands for the other part of the page.
    text = json.dumps(_scenes(poses), separators=(",", ":")).replace("<", "\\u003c")
    template = (files("unihpe_ref") / "assets" / "turntable.html").read_text(encoding="utf-8")
    parts = {"__TITLE__": html.escape(poses.image[0]), "__DATA__": text}
    return re.sub("|".join(parts), lambda found: parts[found[0]], template).encode()


def _scenes(poses: PoseSet) -> dict[str, object]:
    """The content of the page: a scene for each picture, with its people on one floor."""
    columns = poses.columns()
    numbers = list(poses.person) if poses.person is not None else [0] * len(poses)
    ground = _ground(poses, numbers)
    scenes: dict[str, dict[str, object]] = {}
    shown: tuple[int, tuple[int, ...]] | None = None  # the last picture of a video: number of its scene, and size
    for k, name in enumerate(poses.image):
        if name not in scenes:
            held = poses.pictures.get(name)
            scenes[name] = {"title": name, "people": []}
            if poses.time is not None:
                scenes[name]["time"] = round(float(poses.time[k]), 3)
            if held is None and shown is not None and poses.frame is not None:  # the page omits pictures of long videos
                scenes[name] |= {"from": shown[0], "size": shown[1]}
            if held is not None:
                shown = len(scenes) - 1, held[1:]
                scenes[name] |= {"picture": base64.b64encode(held[0]).decode(), "size": held[1:]}
        person: dict[str, object] = {
            "joints": np.round(ground[k], 4).tolist(),
            "solid": np.round(columns["joints_3d"][k].astype(float), 3).tolist(),
            "pixels": np.round(columns["joints_2d"][k].astype(float), 1).tolist(),
        }
        if poses.person is not None:
            person["number"] = int(poses.person[k])
        if poses.estimated is not None and bool(poses.estimated[k].any()):
            person["estimated"] = poses.estimated[k].int().tolist()
        if poses.spread is not None:
            person["spread"] = np.round(columns["spread"][k].astype(float), 3).tolist()
        scenes[name]["people"].append(person)  # type: ignore[attr-defined]
    return {
        "limbs": SKELETON.limbs,
        "colours": SKELETON.limb_colours,
        "names": SKELETON.joint_names,
        "scenes": list(scenes.values()),
        "video": poses.frame is not None,
        "assumed": poses.assumed_focal,
    }


def _ground(poses: PoseSet, numbers: Sequence[int]) -> np.ndarray:
    """Joints in the room: people at their places, each with the lowest foot at height 0."""
    joints = poses.lifted.joints_3d.double().numpy()
    root = poses.lifted.root.double().numpy()
    placed = joints + root[:, None] * np.array([1.0, 0.0, 1.0])
    placed[..., [0, 2]] -= np.median(placed[:, 0][:, [0, 2]], axis=0)
    video = poses.frame is not None
    for number in set(numbers):
        own = np.flatnonzero(np.array(numbers) == number)
        height = joints[own] + (root[own][:, None] * np.array([0.0, 1.0, 0.0]) if video else 0.0)
        low = height[..., 1].max(1)
        placed[own, :, 1] = height[..., 1] - (np.quantile(low, 0.9) if video else low)[..., None]
    return placed
