r"""
Lifting a walking person
========================

The shipped lifter estimates a 3D pose from 2D joints. A single picture does not determine depth, so its errors are
mostly in depth.
"""

# %%
# A person walks through the room, filmed by a fixed camera.

import matplotlib.pyplot as plt
import torch

import multicontrast as mc
from unihpe_ref.data import SKELETON, PoseSource, generate_motion
from unihpe_ref.lifter import load_lifter

torch.manual_seed(0)
walk = generate_motion(
    5, actions=("walk",), num_subjects=2, num_test_subjects=1, seconds=4
).select("train")
frames = torch.arange(10, 60, 12)
seen = PoseSource(walk).evaluation_batch(frames, camera=0)
intrinsics = torch.zeros(len(frames), 3, 3)
intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 2, 2] = *seen.focal.T, 1
intrinsics[:, :2, 2] = seen.principal
lifted = (
    load_lifter(joints_2d="annotated")
    .lift(seen.joints_2d, intrinsics=intrinsics)
    .joints_3d
)
error = 1000 * mc.metrics.mpjpe(lifted, seen.joints_3d, root=0, reduction="none")

# %%
# The truth is grey and the lifted pose coloured, both seen from the side. The lifter was trained on recorded people;
# this one is generated.


def draw(axis, joints, **style):
    """A pose from the side: depth to the right."""
    for (parent, child), colour in zip(SKELETON.limbs, SKELETON.limb_colours):
        depth, height = joints[[parent, child], 2], -joints[[parent, child], 1]
        axis.plot(depth, height, **({"color": colour} | style))
    axis.set(xlim=(-0.8, 0.8), ylim=(-1.05, 0.85), aspect="equal", xticks=[], yticks=[])


figure, axes = plt.subplots(1, len(frames), figsize=(11, 3.2), layout="constrained")
for axis, truth, pose, one in zip(axes, seen.joints_3d, lifted, error):
    draw(axis, truth, color="0.8", linewidth=5)
    draw(axis, pose, linewidth=2)
    axis.set_title(f"{one:.0f} mm", fontsize=10)
figure.supxlabel("depth: away from the camera to the right", fontsize=9)
