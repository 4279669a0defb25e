r"""
Procrustes on poses that break others
=====================================

PA-MPJPE aligns the estimate with the truth by scale, rotation and translation before it measures. A mirrored person
must keep its error. For a person on one line the rotation is not unique, and for one collapsed to a point it is
undefined. Here none of these is NaN, and none scores 0.
"""

# %%
# One pose, and five estimates of it.

import math

import matplotlib.pyplot as plt
import torch

import multicontrast as mc
from unihpe_ref.data import SKELETON, generate_motion

pose = generate_motion(
    2, actions=("walk",), num_subjects=2, num_test_subjects=1, seconds=4
).joints[40]
pose = 1000 * (pose - pose[0])  # millimetres from the pelvis, z up
generator = torch.Generator().manual_seed(0)

angle = torch.tensor(0.7)
rotation = torch.tensor(
    [[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]]
)
estimates = {
    "turned, half the size, moved": 0.5 * pose @ rotation.T + 300,
    "noisy": pose + 30 * torch.randn(pose.shape, generator=generator),
    "mirrored": pose * torch.tensor([1.0, -1.0, 1.0]),
    "on one line": pose * torch.tensor([0.0, 0.0, 1.0]),
    "collapsed to a point": torch.zeros_like(pose) + 55.0,
}

# %%
# Grey is the truth, colour the estimate after alignment.

figure, axes = plt.subplots(
    1,
    len(estimates),
    figsize=(13, 4),
    layout="constrained",
    subplot_kw={"projection": "3d"},
)
for axis, (name, estimate) in zip(axes, estimates.items()):
    aligned = mc.metrics.procrustes_align(estimate, pose).aligned
    error = mc.metrics.pa_mpjpe(estimate, pose).item()
    for joints, width, faint in ((pose, 4, True), (aligned, 2, False)):
        for (parent, child), colour in zip(SKELETON.limbs, SKELETON.limb_colours):
            axis.plot(
                *joints[[parent, child]].T,
                color="0.8" if faint else colour,
                linewidth=width,
            )
    axis.set_title(f"{name}\nPA-MPJPE {error:.1f} mm", fontsize=10)
    axis.set_axis_off()
    axis.set_box_aspect((1, 1, 2), zoom=1.5)
    axis.view_init(elev=8, azim=-55)

# %%
# The gradient is finite in every case, so you can train on the aligned error.

for name, estimate in estimates.items():
    leaf = estimate.clone().requires_grad_()
    mc.metrics.pa_mpjpe(leaf, pose).backward()
    assert math.isfinite(leaf.grad.abs().max().item())
    print(f"{name:>30}: largest entry of the gradient {leaf.grad.abs().max():.4f}")
