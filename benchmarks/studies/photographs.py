"""Errors of the image branch on real photographs, compared with a baseline.

The photographs are crops of one person filmed by four calibrated cameras; 2D and 3D joints are pseudo-labels (detected,
triangulated). The networks of the studies have only seen renders, so this tests how well such training transfers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multicontrast.metrics import mpjpe, pa_mpjpe
from unihpe_ref.applications.images import crop_image
from unihpe_ref.config import RunConfig
from unihpe_ref.data import Motion, box_information, joint_box, normalise_image, normalise_joints
from unihpe_ref.evaluation import MeanPose
from unihpe_ref.models import UniHPE
from unihpe_ref.runs import open_source


@torch.no_grad()
def judge_photographs(model: UniHPE, config: RunConfig, motion: Motion, folder: Path) -> dict[str, Any]:
    """Errors (mm) of images and of the pseudo-labels' 2D, beside the mean training pose.

    Args:
        model: with an image encoder.
        config: of its training.
        motion: whose training split gives the mean pose.
        folder: with ``annot.npz`` and the pictures that it names.
    """
    held = np.load(folder / "annot.npz", allow_pickle=False)
    rows = np.flatnonzero(held["ok"])
    crops, boxes, focal, principal, joints_px = [], [], [], [], []
    for row in rows:
        pixels = torch.from_numpy(held["kp2d_full"][row]).float()
        box = joint_box(pixels)
        # The stored picture is itself a crop, so the map that made it takes our box into its pixels.
        affine = torch.from_numpy(held["affine"][row]).float()
        inside = torch.cat([affine[:2, :2] @ box[:2] + affine[:2, 2], box[2:] * affine[0, 0]])
        with Image.open(folder / str(held["imgname"][row])) as picture:
            crops.append(crop_image(picture.convert("RGB"), inside, config.data.image_size, antialias=True))
        camera = held["K_full"][row]
        boxes.append(box)
        joints_px.append(pixels)
        focal.append(torch.tensor([camera[0, 0], camera[1, 1]]).float())
        principal.append(torch.tensor([camera[0, 2], camera[1, 2]]).float())
    box = torch.stack(boxes)
    information = box_information(box, torch.stack(focal), torch.stack(principal))
    image = normalise_image(torch.stack(crops))
    joints = torch.from_numpy(held["joints_3d_cam"][rows]).float()
    joints = joints - joints[:, :1]
    generator = torch.Generator().manual_seed(config.seed)
    estimate = model.estimate(image, information, generator=generator)
    lifted = model.lift(normalise_joints(torch.stack(joints_px), box), information, generator=generator)
    guess = MeanPose.of(open_source(motion, config, images=False).split("train"), config.evaluation)
    paths = {
        "mean pose, 3D": guess.joints_3d.expand_as(joints),
        "2D to 3D": lifted,
        "image to 3D": estimate.joints_3d,
    }
    return {"photographs": len(rows), "paths": {name: _errors(pose, joints) for name, pose in paths.items()}}


def _errors(pose: Tensor, truth: Tensor) -> dict[str, float]:
    return {
        "MPJPE": round(1000 * float(mpjpe(pose, truth)), 3),
        "PA-MPJPE": round(1000 * float(pa_mpjpe(pose, truth)), 3),
    }
