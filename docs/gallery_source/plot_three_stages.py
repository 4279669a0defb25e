r"""
Three stages in a minute
========================

UniHPE is trained in three stages: the pose encoders meet (1), the image encoder joins them (2), and encoders and
decoders learn together (3). Here all of it happens in some seconds, on generated people and rendered pictures, at a
tenth of the size of ``unihpe demo``: enough to see each part at work, not to judge it. After so few steps the image
branch is no better than not looking.
"""

# %%

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console

from unihpe_ref.data import generate_motion
from unihpe_ref.logs import RunLog
from unihpe_ref.presets import preset
from unihpe_ref.runs import evaluate_model, train_model

config = preset("demo").override(
    **{
        "data.image_size": (32, 32),
        "model.embedding_dim": 64,
        "model.encoder_width": 32,
        "model.decoder_width": 128,
        "model.parameterisation": "preconditioned",
        "sampler.steps": 20,
        "stage1.steps": 60,
        "stage2.steps": 25,
        "stage2.batch_size": 16,
        "stage3.steps": 60,
        "stage3.batch_size": 24,
        "evaluation.stride": 200,
        "log_every": 1,
    }
)
motion = generate_motion(0, seconds=3)
with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder) / "log.jsonl", Console(quiet=True)) as log:
    model = train_model(config, motion, log, torch.device("cpu"))
    records = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]

# %%
# The contrastive loss of each stage, and in the last one the decoders' losses.

steps = [record for record in records if record["event"] == "step"]
stages = list(dict.fromkeys(record["stage"] for record in steps))
figure, axes = plt.subplots(1, len(stages), figsize=(11, 3.2), layout="constrained")
for axis, stage in zip(axes, stages):
    mine = [record for record in steps if record["stage"] == stage]
    for name, colour in (("contrastive", "#0072b2"), ("decoding_2d", "#d55e00"), ("decoding_3d", "#009e73")):
        values = [record[name] for record in mine if name in record]
        if values:
            axis.plot(values, color=colour, label=name.replace("_", " "))
    axis.set(title=f"stage {stage}", xlabel="step")
    axis.legend()
    axis.grid(alpha=0.3)

# %%
# What came of it, on people that it has not seen. The mean pose is what one scores without looking.

evaluation = evaluate_model(model, config, motion)
for path in evaluation.paths:
    figures = ", ".join(f"{name} {value:.1f}" for name, value in path.frame_mean.items())
    print(f"{path.name:>14}: {figures}")
