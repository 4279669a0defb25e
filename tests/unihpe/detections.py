"""Simulated detections of generated people, in the order of any layout."""

from __future__ import annotations

import torch
from small import small_source

from unihpe_ref.data import SKELETON, project
from unihpe_ref.data.layouts import LAYOUTS


def people(layout: str, count: int = 12, *, stride: int = 0, source=None) -> torch.Tensor:
    """``(count, K, 3)`` pixels of a 1000 x 1000 image and a confidence of 0.9; 0 for joints nothing stands for."""
    source = source or small_source()
    index = torch.arange(count) * (stride or len(source) // count)
    batch = source.evaluation_batch(index)
    body = dict(zip(SKELETON.joint_names, (batch.joints_3d + batch.root[:, None]).unbind(1)))
    across = torch.nn.functional.normalize(body["lshoulder"] - body["rshoulder"], dim=-1)
    up = torch.nn.functional.normalize(body["head"] - body["neck_nose"], dim=-1)
    ahead = torch.linalg.cross(across, up)
    face = body["neck_nose"]
    points = body | {
        "nose": face + 0.09 * ahead,
        "neck": (body["lshoulder"] + body["rshoulder"]) / 2,
        "upper_neck": body["thorax"] + 0.6 * (face - body["thorax"]),
    }
    for side, sign in (("l", 1), ("r", -1)):
        points[f"{side}eye"] = face + 0.07 * ahead + sign * 0.035 * across + 0.03 * up
        points[f"{side}ear"] = face + sign * 0.075 * across
    found = torch.zeros(count, LAYOUTS[layout].num_joints, 3)
    for k, name in enumerate(LAYOUTS[layout].joints):
        if name in points:
            found[:, k, :2] = project(points[name][:, None], batch.focal, batch.principal)[:, 0]
            found[:, k, 2] = 0.9
    return found
