"""Results of training runs too long for a study, kept beside the trials."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.environment import ROOT
from multicontrast._checks import three_beats
from unihpe_ref.applications.run import CHECKPOINTS, ENVIRONMENT, LOG, MODEL
from unihpe_ref.checkpoint import load_model
from unihpe_ref.data import Motion
from unihpe_ref.files import write_whole
from unihpe_ref.presets import deviations
from unihpe_ref.runs import evaluate_model, open_source

RUNS = ROOT / "benchmarks" / "results" / "training"
FULL_SIZE = "transformer-diffusion"
"""The paper's pair in the paper's size."""
LAST = "last.safetensors"  # of a checkpoint: the weights in training
_COLUMNS = ("stage", "step", "seconds", "loss", "decoding_3d", "learning_rate")
_KEPT = ("date", "python", "processor", "cores", "threads", "device")


def read_run(name: str, folder: Path = RUNS) -> dict[str, Any] | None:
    """The result that :func:`keep_run` kept under that name; None if there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def keep_run(run: Path, name: str, motion: Motion, folder: Path = RUNS, sampler_steps: int | None = None) -> list[Path]:
    """Evaluates the model of a training run, finished or not, and keeps the result with the run's steps.

    Args:
        run: folder of ``unihpe train``; if it has no model yet, its newest checkpoint is evaluated.
        name: of the files.
        motion: whose "test" takes are evaluated.
        folder: where the files go.
        sampler_steps: of the evaluation, instead of those that the run was given.
    Raises: ValueError if there is neither model nor checkpoint.
    """
    found = [run / MODEL] if (run / MODEL).exists() else sorted((run / CHECKPOINTS).glob(f"stage*-*/{MODEL}"))
    if not found:
        needed = "`keep` needs a run with a model or a checkpoint"
        raise ValueError(three_beats(needed, str(run), "`unihpe train --out` names it."))
    model, config = load_model(found[-1])
    if sampler_steps is not None:
        config = config.override(**{"sampler.steps": sampler_steps})
        model.sampler = config.sampler
    records = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    if found[-1].parent != run:
        stage, step = found[-1].parent.name.removeprefix("stage").split("-")
        steps = [r for r in steps if (int(r["stage"].split()[0]), r["step"]) <= (int(stage), int(step))]
    environment = json.loads((run / ENVIRONMENT).read_text())
    content = {
        "preset": config.preset,
        "deviations": {name: list(both) for name, both in deviations(config).items()},
        "seed": config.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": {"taken": steps[-1]["step"], "planned": config.stage3.steps},
        "wall_minutes": round(steps[-1]["seconds"] / 60, 1),
        "environment": {key: environment[key] for key in _KEPT} | {"torch": environment["packages"]["torch"]},
        "evaluation": evaluate_model(model, config, motion).to_dict(),
    }
    if (found[-1].parent / LAST).exists() and config.model.decoder == "diffusion":
        content["noise_loss"] = _noise_loss(found[-1].parent, motion)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.csv"]
    write_whole(paths[0], (json.dumps(content, indent=1, default=str) + "\n").encode())
    lines = [_COLUMNS, *([_short(record.get(column, "")) for column in _COLUMNS] for record in steps)]
    temporary = paths[1].with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    temporary.replace(paths[1])
    return paths


@torch.no_grad()
def _noise_loss(checkpoint: Path, motion: Motion, batches: int = 6) -> dict[str, float]:
    """Half the squared error of the noise, summed over coordinates, for the weights in training: mean, standard error.

    A run with GFPose's parameterisation logs it as ``decoding_3d``; here it is measured for any.
    """
    model, config = load_model(checkpoint / MODEL)
    model.load_state_dict(load_file(checkpoint / LAST))
    model.train()
    source = open_source(motion, config, images=False).split("train")
    generator = torch.Generator().manual_seed(config.seed)
    model.decoder_3d.network.loss_weight = torch.ones_like  # GFPose's weight
    losses = []
    for _ in range(batches):
        rows = torch.randint(len(source), (config.stage3.batch_size,), generator=generator)
        batch = source.batch(rows, generator)
        embeddings = {"2d": model.encode(**batch.inputs_2d()), "3d": model.encode(kp3d=batch.joints_3d)}
        args = (batch.joints_2d_normalised(), batch.joints_3d, batch.box_info())
        losses.append(model.decoding_losses(embeddings, *args, generator=generator)[1])
    found = torch.stack(losses)
    return {"mean": round(float(found.mean()), 3), "standard error": round(float(found.std() / batches**0.5), 3)}


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
