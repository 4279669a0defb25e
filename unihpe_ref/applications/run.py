"""One run from start to finish, and its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from multicontrast._checks import three_beats
from unihpe_ref.applications.figures import save_pose_sheet
from unihpe_ref.checkpoint import load_model, save_model
from unihpe_ref.config import RunConfig
from unihpe_ref.data import Motion, Recording
from unihpe_ref.evaluation import Evaluation
from unihpe_ref.files import clear_partial, locked, remove_whole, write_json
from unihpe_ref.models import UniHPE
from unihpe_ref.presets import deviations
from unihpe_ref.runs import evaluate_model, open_motion, open_source, train_model
from unihpe_ref.runs.environment import describe_environment
from unihpe_ref.runs.resume import check_same_run, newest_checkpoint
from unihpe_ref.training import processes
from unihpe_ref.training.logs import RunLog, end_of_log

MODEL, LOG, CONFIG, EVALUATION, POSES = "model.safetensors", "log.jsonl", "config.json", "evaluation.json", "poses.png"
ENVIRONMENT, CHECKPOINTS = "environment.json", "checkpoints"


@contextmanager
def run_folder(folder: Path, *, overwrite: bool = False, resume: bool = False) -> Iterator[None]:
    """Makes and locks the folder of a run, and removes what a killed process left half-written.

    ``overwrite`` also removes its checkpoints, and later the model. Only the first of several processes does anything.

    Raises: FileExistsError if it already holds a model or checkpoints and neither ``overwrite`` nor ``resume`` is
        given, or if another process uses it; ValueError for both options; OSError if it cannot be written.
    """
    if processes.rank() > 0:
        yield
        return
    if overwrite and resume:
        needed = "`--resume` continues a run, which `--overwrite` would remove: it needs one of them"
        raise ValueError(three_beats(needed, "both", "Leave out one of the two."))
    if folder.exists() and not folder.is_dir():
        needed = "`--out` needs a folder"
        raise NotADirectoryError(three_beats(needed, f"the file {folder}", "Choose another name."))
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        needed = "`--out` needs a folder that can be written"
        raise PermissionError(three_beats(needed, str(folder), "Choose another folder."))
    with locked(folder):
        for name, what in ((MODEL, "a trained model"), (CHECKPOINTS, "checkpoints")):
            if (folder / name).exists() and not overwrite and not resume:
                remedy = "Add `--resume` to continue that run, or `--overwrite` to begin again."
                raise FileExistsError(three_beats(f"`--out` needs a folder without {what}", f"{folder / name}", remedy))
        if overwrite:
            remove_whole(folder / CHECKPOINTS)
        clear_partial(folder / CHECKPOINTS)
        yield


def run(
    config: RunConfig,
    folder: Path,
    console: Console,
    device: torch.device,
    *,
    motion: Motion | Recording | None = None,
    resume: bool = False,
) -> tuple[UniHPE, Evaluation] | None:
    """Trains, evaluates and draws; writes everything to ``folder``.

    Args:
        config: of the run.
        folder: of the run; the caller holds it by :func:`run_folder`.
        console: shows progress.
        device: where to train.
        motion: the data that the configuration names, if they are open already.
        resume: from the newest checkpoint in the folder; if the model exists, only does what is missing.
    Returns: model and results; None if nothing was missing, and in all processes but the first.
    """
    motion = open_motion(config) if motion is None else motion
    start = newest_checkpoint(folder / CHECKPOINTS, config) if resume else None
    trained = resume and (folder / MODEL).exists() and not (folder / CHECKPOINTS).exists()
    processes.wait()  # until all have read the folder
    if processes.rank() > 0:
        if not trained:
            train_model(config, motion, None, device, start=start)
        return None
    if trained:
        model, own = load_model(folder / MODEL, device)
        check_same_run(folder, own, config, ("workers", "log_every", "checkpoint_every", "tensorboard"))
        if all((folder / name).exists() for name in (EVALUATION, POSES)):
            console.print("The run is done; nothing is missing.", highlight=False)
            return None
    else:
        (folder / CHECKPOINTS).mkdir(exist_ok=True)  # while it exists, model and log belong to an older run
        write_json(folder / CONFIG, config.to_dict())
        write_json(folder / ENVIRONMENT, describe_environment(device))
    held = end_of_log(folder / LOG) if trained else None if start is None else start.log
    with RunLog(folder / LOG, console, resume=held, tensorboard=config.tensorboard) as log:
        if trained:
            log.write("resume", checkpoint=MODEL, torch=torch.__version__, device=str(device))
            console.print("The model is trained; evaluating it.", highlight=False)
        elif start is None:
            named = {name: {"here": here, "paper": paper} for name, (here, paper) in deviations(config).items()}
            log.write("begin", config=config.to_dict(), deviations=named, torch=torch.__version__, device=str(device))
        else:
            log.write("resume", checkpoint=start.folder.name, torch=torch.__version__, device=str(device))
            console.print(f"Resuming after step {start.step} of stage {start.stage}.", highlight=False)
        if not trained:
            model = train_model(config, motion, log, device, checkpoints=folder / CHECKPOINTS, start=start)
            save_model(model, config, folder / MODEL)
        evaluation = evaluate_model(model, config, motion)
        log.write("evaluation", **evaluation.to_dict())
    write_json(folder / EVALUATION, evaluation.to_dict())
    source = open_source(motion, config, images=model.image_encoder is not None).split("test")
    save_pose_sheet(model, source, folder / POSES, seed=config.seed)
    remove_whole(folder / CHECKPOINTS)  # no longer needed, because the model is saved
    return model, evaluation
