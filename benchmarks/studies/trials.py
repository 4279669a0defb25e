"""Does the runs of the plan one after another; finished ones are skipped."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.environment import ROOT, describe_environment
from benchmarks.studies.photographs import judge_photographs
from benchmarks.studies.plan import EQUAL_TIME, MAX_STRETCH, RATES, SEEDS, STUDIES, TUNED_ROWS, Trial, rows
from multicontrast._checks import three_beats
from multicontrast.metrics import cosine_alignment, median_rank, mpjpe, retrieval_recall
from unihpe_ref.config import RunConfig, SamplerConfig
from unihpe_ref.data import Motion
from unihpe_ref.files import write_whole
from unihpe_ref.models import UniHPE, best_hypothesis
from unihpe_ref.runs import evaluate_model, open_source, train_model
from unihpe_ref.training.logs import RunLog

RESULTS = ROOT / "benchmarks" / "results" / "studies"
_PAIRS = (("img", "2d"), ("img", "3d"), ("2d", "3d"))
_MAP_POINTS = 240  # of each modality in Figure 6


def result_path(trial: Trial, folder: Path = RESULTS) -> Path:
    """The path of a trial's result."""
    return folder / f"{trial.name}.json"


def read_result(trial: Trial, folder: Path = RESULTS) -> dict[str, Any] | None:
    """A trial's result; None if it has not been run.

    Raises: ValueError if the result was made with other settings than those of the plan.
    """
    path = result_path(trial, folder)
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    other = differences(_stretched(trial.config, result["stretch"]).to_dict(), result["config"])
    if other:
        came = f"others in {', '.join(other)}"
        raise ValueError(
            three_beats(f"`{path.name}` needs the settings of the plan", came, "Delete it, or restore them.")
        )
    return result


def chosen_rate(study: str, row: str, folder: Path = RESULTS) -> str | None:
    """The learning rate of a tuned row with the smallest MPJPE of the first seed, summed over 2D and images if it has
    images; None if there is no result."""
    errors = {}
    for rate in RATES[study]:
        if (found := read_result(Trial(study, f"{row}-{rate}", SEEDS[0]), folder)) is not None:
            paths = found["result"]["poses"]["paths"]
            kept = [paths[name] for name in ("2D to 3D", "image to 3D") if name in paths]
            errors[rate] = sum(path["frame_mean"]["MPJPE"] for path in kept)
    return min(errors, key=lambda rate: errors[rate], default=None)


def planned_trials(folder: Path = RESULTS) -> list[Trial]:
    """All trials in the order in which they are run: every row once before any seed is repeated. Of a tuned row only
    the chosen rate is repeated; a rate that was chosen before the list grew keeps its seeds."""
    repeated = {
        (study, f"{row}-{chosen_rate(study, row, folder)}") for study, held in TUNED_ROWS.items() for row in held
    }
    trials = [Trial(study, row, seed) for seed in SEEDS for study in STUDIES for row in rows(study)]
    return [
        trial
        for trial in trials
        if trial.seed == SEEDS[0]
        or trial.study not in RATES
        or (trial.study, trial.row) in repeated
        or result_path(trial, folder).exists()
    ]


def differences(planned: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """Dotted names of settings whose values differ. Options that only one has are ignored: a later option had its
    default before."""
    found = []
    for name in planned.keys() & made.keys():
        if isinstance(planned[name], dict) and isinstance(made[name], dict):
            found += [f"{name}.{inner}" for inner in differences(planned[name], made[name])]
        elif planned[name] != made[name]:
            found.append(name)
    return sorted(found)


def _stretched(config: RunConfig, stretch: float) -> RunConfig:
    return config.override(**{"stage2.steps": round(config.stage2.steps * stretch)})


def run_trial(trial: Trial, motion: Motion, recording: Path, photographs: Path | None, folder: Path = RESULTS) -> Path:
    """Trains and evaluates one trial, and writes its result."""
    config = trial.config
    stretch = 1.0
    if trial.name.startswith(EQUAL_TIME):
        stretch = equal_time_stretch(trial, folder)
        config = _stretched(config, stretch)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        log_path = Path(scratch) / "log.jsonl"
        with RunLog(log_path, Console(file=io.StringIO())) as log:
            model = train_model(config, motion, log, torch.device("cpu"))
        steps = [json.loads(line) for line in log_path.read_text().splitlines()]
    training = time.process_time() - began
    result: dict[str, Any] = {"alignment": _alignment(model, config, motion)}
    if trial.aligns_only:
        result["curve"] = _curve(steps)
    else:
        result["poses"] = evaluate_model(model, config, motion).to_dict()
    if trial.study in ("table4-fair", "spread") and config.model.decoder == "diffusion":
        result["hypotheses"] = _hypotheses(model, config, motion)
    if trial.study == "table6" and photographs is not None:
        result["photographs"] = judge_photographs(model, config, motion, photographs)
    if trial.study == "fig5":
        result["map"] = _map(model, config, motion)
    environment = describe_environment(torch.device("cpu"), "process")
    content = {
        "study": trial.study,
        "row": trial.row,
        "seed": trial.seed,
        "stretch": stretch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cpu_seconds": {"training": round(training, 1), "all": round(time.process_time() - began, 1)},
        "recording": {"name": recording.name, "sha256": hashlib.sha256(recording.read_bytes()).hexdigest()},
        "environment": {
            "device": environment.device,
            "threads": environment.threads,
            "torch": environment.torch,
            "commit": environment.commit,
            "date": environment.date,
        },
        "config": config.to_dict(),
        "result": result,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = result_path(trial, folder)
    write_whole(path, (json.dumps(content) + "\n").encode())
    return path


def equal_time_stretch(trial: Trial, folder: Path) -> float:
    """The factor on the sampled loss's steps that fills the time of the exact one; both results must exist."""
    seconds = {}
    for row in ("sampled", "exact"):
        found = read_result(Trial(trial.study, row, trial.seed), folder)
        if found is None:
            needed = f"`{trial.name}` needs the result of `{row}` with the same seed"
            raise ValueError(three_beats(needed, "none", "Run that first."))
        seconds[row] = found["cpu_seconds"]["training"]
    return float(np.clip(seconds["exact"] / seconds["sampled"], 1 / MAX_STRETCH, MAX_STRETCH))


@torch.no_grad()
def _embeddings(model: UniHPE, config: RunConfig, motion: Motion) -> tuple[dict[str, Tensor], Tensor]:
    """The embeddings of every evaluated frame in each modality, and the number of its action."""
    source = open_source(motion, config, images=model.image_encoder is not None).split("test")
    found: dict[str, list[Tensor]] = {}
    actions = []
    for indices in source.evaluation_indices(config.evaluation.stride).split(config.evaluation.batch_size):
        batch = source.evaluation_batch(indices)
        rows = {
            "2d": model.encode(**batch.inputs_2d()),
            "3d": model.encode(kp3d=batch.joints_3d),
        }
        if batch.image is not None:
            rows["img"] = model.encode(image=batch.image)
        for name, value in rows.items():
            found.setdefault(name, []).append(value)
        actions.append(batch.action)
    return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(actions)


def _alignment(model: UniHPE, config: RunConfig, motion: Motion) -> dict[str, Any]:
    """For held-out frames, pair by pair: the mean cosine of the positives, and retrieval among all frames."""
    embeddings, _ = _embeddings(model, config, motion)
    found = {}
    for a, b in _PAIRS:
        if a in embeddings and b in embeddings:
            x, y = embeddings[a], embeddings[b]
            found[f"{a}-{b}"] = {
                "cosine": round(float(cosine_alignment(x, y)), 5),
                "recall@1": round(float(retrieval_recall(x, y, k=1)), 5),
                "recall@10": round(float(retrieval_recall(x, y, k=10)), 5),
                "median_rank": float(median_rank(x, y)),
            }
    return {"frames": len(embeddings["2d"]), "pairs": found}


@torch.no_grad()
def _hypotheses(model: UniHPE, config: RunConfig, motion: Motion) -> dict[str, Any]:
    """Errors of drawn poses, in mm, on every other evaluated frame: MPJPE of the first of ten, of their mean, and of
    the best, which an oracle chooses; and the root mean squares of their spread and of their mean's error.

    If they were drawn from the truth's own distribution, the spread of ten would be 0.95 of their mean's error.
    """
    source = open_source(motion, config, images=False).split("test")
    batch = source.evaluation_batch(source.evaluation_indices(2 * config.evaluation.stride))
    truth, generator = batch.joints_3d, torch.Generator().manual_seed(config.seed)
    deterministic = model.lift(**batch.inputs_2d(), generator=generator)
    found: dict[str, Any] = {"poses": len(batch), "deterministic": 1000 * float(mpjpe(deterministic, truth))}
    for sampler, steps in (("sde", 50), ("ode", 25)):  # the same number of network evaluations
        sampling = SamplerConfig(sampler=sampler, steps=steps)
        drawn = model.lift(**batch.inputs_2d(), hypotheses=10, sampling=sampling, generator=generator)
        mean = drawn.mean(0)
        found[sampler] = {
            "first": 1000 * float(mpjpe(drawn[0], truth)),
            "mean": 1000 * float(mpjpe(mean, truth)),
            "best, by an oracle": 1000 * float(mpjpe(best_hypothesis(drawn, truth), truth)),
            "spread": 1000 * float(drawn.var(0).sum(-1).mean().sqrt()),
            "error of the mean": 1000 * float((mean - truth).square().sum(-1).mean().sqrt()),
        }
    return found


def _curve(steps: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Figure 5: cosines of the positives in the batches of stage 2."""
    kept = [record for record in steps if record.get("event") == "step" and str(record["stage"]).startswith("2")]
    names = ("step", "loss", "tau", *(f"cosine_{a}_{b}" for a, b in _PAIRS))
    return {name: [round(float(record[name]), 5) for record in kept] for name in names}


def _map(model: UniHPE, config: RunConfig, motion: Motion) -> dict[str, Any]:
    """Figure 6: t-SNE of held-out embeddings of all modalities together."""
    from sklearn.manifold import TSNE

    embeddings, actions = _embeddings(model, config, motion)
    chosen = torch.linspace(0, len(actions) - 1, min(_MAP_POINTS, len(actions))).long()
    names = [name for name in ("img", "2d", "3d") if name in embeddings]
    rows = torch.cat([embeddings[name][chosen] for name in names]).numpy()
    points = TSNE(2, metric="cosine", init="random", perplexity=30, random_state=0).fit_transform(rows)
    parts = np.split(points.round(2), len(names))
    return {name: part.tolist() for name, part in zip(names, parts)} | {"action": actions[chosen].tolist()}
