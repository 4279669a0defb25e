"""
A report of poses
=================

The table that papers print for a pose estimator, from one pass over the test set: errors by action with both means, by
joint and by subject, the curve of correct joints, and example poses.
"""

# %%
# Generated motion of five actions, and an estimator with larger errors for hands and feet, and when people sit.

import torch

from unihpe_ref.data import generate_motion
from unihpe_ref.report import PoseReport

actions = ("walk", "wave", "sit", "bend", "jump")
motion = generate_motion(
    20, actions=actions, num_subjects=2, num_test_subjects=1, seconds=4
)
target = motion.joints[::10]
names = [motion.action[sequence] for sequence in motion.sequence[::10].tolist()]

generator = torch.Generator().manual_seed(0)
extremity = "0.3 0.4 0.8 1.4 0.4 0.8 1.4 0.4 0.5 0.6 0.8 0.6 1.1 1.8 0.6 1.1 1.8"
extremity = torch.tensor([float(size) for size in extremity.split()])  # by joint
sitting = torch.tensor([2.0 if name == "sit" else 1.0 for name in names])
noise = torch.randn(target.shape, generator=generator)
pred = target + 0.03 * (sitting[:, None] * extremity)[..., None] * noise

# %%
# Poses are in metres, and the report is in millimetres.

report = PoseReport(actions=actions, unit_scale=1000.0)
for rows in torch.arange(len(target)).split(
    64
):  # as a loader hands them over; the last batch is short
    report.update(pred[rows], target[rows], action=[names[i] for i in rows])
result = report.compute()
print(result.to_markdown())

# %%
# The same for LaTeX, and every number with all its digits for other programs.

print(result.to_latex())
print(result.to_csv()[:300])

# %%
# Poses are drawn from where they are widest; thin lines show the error of every joint.

figure = result.plot(up="z")
