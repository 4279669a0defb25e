"""Writes the data of the lifting page: the shipped lifter's weights, and a few poses to start from.

``docs/conf.py`` calls it at the end of a build. The poses are generated motion, seen from the front and a little from
the side, so no recording is published.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unihpe_ref.applications.browser import PageCamera, export_browser
from unihpe_ref.data import generate_motion, look_at
from unihpe_ref.lifter import load_lifter

# name on the button: (action, seconds into the take, degrees from the front)
_POSES = {
    "Standing": ("idle", 1.0, 20.0),
    "Walking": ("walk", 2.4, 50.0),
    "Waving": ("wave", 3.0, 15.0),
    "Kicking": ("kick", 1.4, 60.0),
    "Sitting": ("sit", 4.0, 50.0),
    "Dancing": ("dance", 3.0, 25.0),
}
_FPS = 25.0


def page_poses(camera: PageCamera) -> dict[str, Tensor]:
    """``(17, 2)`` pixels of each pose in the page's camera, 5 m away."""
    actions = sorted({action for action, _, _ in _POSES.values()})
    motion = generate_motion(3, actions=actions, num_subjects=2, num_test_subjects=1, fps=_FPS).select("train")
    poses = {}
    for name, (action, seconds, degrees) in _POSES.items():
        sequence = motion.action.index(action)
        pose = motion.joints[motion.starts[sequence] + round(seconds * _FPS)]
        middle = (pose.amin(0) + pose.amax(0)) / 2
        across = pose[11, :2] - pose[14, :2]  # right shoulder to left; one faces a quarter turn to its right
        facing = torch.atan2(-across[0], across[1]) + torch.deg2rad(torch.tensor(degrees))
        eye = middle + torch.stack([5 * facing.cos(), 5 * facing.sin(), torch.tensor(0.4)])
        rotation, translation = look_at(eye, middle)
        seen = pose @ rotation.mT + translation
        poses[name] = camera.focal * seen[:, :2] / seen[:, 2:] + camera.size / 2
    return poses


def write_weights(path: Path) -> None:
    """``weights.js`` beside the page."""
    camera = PageCamera()
    export_browser(load_lifter(), path, poses=page_poses(camera), camera=camera)
