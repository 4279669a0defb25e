"""Assembles a run from its configuration: motion, sources, model, stages, results; and the folder they are left in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from multicontrast._checks import three_beats
from unihpe_ref import processes
from unihpe_ref.checkpoint import save_model, write_whole
from unihpe_ref.config import RunConfig
from unihpe_ref.data import (
    Augmentation,
    JoinedSource,
    Motion,
    PoseSource,
    Recording,
    RecordingSource,
    Source,
    generate_motion,
    open_data,
    protocol,
)
from unihpe_ref.environment import describe_environment
from unihpe_ref.evaluation import Evaluation, MeanPose, evaluate
from unihpe_ref.logs import RunLog, SilentLog
from unihpe_ref.models import UniHPE, load_pose_weights
from unihpe_ref.presets import deviations
from unihpe_ref.resume import Checkpoint, newest_checkpoint, save_checkpoint
from unihpe_ref.seeds import seed_of
from unihpe_ref.stages import make_stages
from unihpe_ref.training import StageState, fit

MODEL, LOG, CONFIG, EVALUATION, POSES = "model.safetensors", "log.jsonl", "config.json", "evaluation.json", "poses.png"
ENVIRONMENT, CHECKPOINTS = "environment.json", "checkpoints"


def open_motion(config: RunConfig) -> Motion | Recording:
    """The motion or recording that the configuration names, or motion generated from its seed.

    Raises: OSError or ValueError where a recording cannot be read.
    """
    if config.motion is not None:
        return open_data(config.motion)
    data = config.data
    return generate_motion(config.seed, num_subjects=data.subjects, takes=data.takes, seconds=data.seconds)


def open_source(
    motion: Motion | Recording, config: RunConfig, *, images: bool, **names: tuple[str, ...]
) -> PoseSource | RecordingSource:
    """All splits of ``motion`` as the configuration sees them; ``.split`` parts them.

    Args:
        motion: from :func:`open_motion`.
        config: how it is seen.
        images: whether batches hold pictures.
        names: ``action_names`` and ``subject_names``; the data's own unless given.
    """
    data = config.data
    augmentation = Augmentation(
        flip=data.flip, scale=data.scale, rotation_degrees=data.rotation_degrees, joint_noise=data.joint_noise
    )
    varied = bool(data.flip or data.scale or data.rotation_degrees or data.joint_noise)
    options: dict[str, Any] = {
        "image_size": data.image_size if images else None,
        "augment": augmentation if varied else False,
        "view": data.view,
        "joint_noise": config.evaluation.joint_noise,
        **names,
    }
    if isinstance(motion, Recording):
        return RecordingSource(
            motion,
            joints_2d=data.joints_2d,
            min_distance=data.min_distance,
            convention=data.crop,
            protocol=None if config.evaluation.protocol is None else protocol(config.evaluation.protocol),
            **options,
        )
    return PoseSource(motion, cameras=data.cameras, seed=config.seed, **options)


def open_training_source(motion: Motion | Recording, config: RunConfig, *, images: bool) -> Source:
    """The training split, with that of the data beside it where the configuration names some."""
    if config.also is None:
        return open_source(motion, config, images=images).split("train")
    both = (motion, open_data(config.also))
    names = {
        f"{kind}_names": tuple(sorted({name for data in both for name in getattr(data, kind)}))
        for kind in ("action", "subject")
    }
    return JoinedSource([open_source(data, config, images=images, **names).split("train") for data in both])


def new_model(config: RunConfig, to_be_restored: bool = False) -> UniHPE:
    """A model with the weights that a run begins with.

    Args:
        config: its seed draws them; ``image_weights`` then fills the image encoder.
        to_be_restored: a checkpoint comes anyway; the file of the image weights need no longer be there.
    Raises: as :func:`unihpe_ref.models.load_pose_weights`.
    """
    torch.manual_seed(config.seed)
    model = UniHPE(config.model, config.sampler)
    if config.image_weights is not None and not to_be_restored:
        if model.image_encoder is None:
            needed = "`image_weights` needs a model with an image encoder"
            raise ValueError(three_beats(needed, "`image_encoder='none'`", "Leave out one of the two."))
        load_pose_weights(model.image_encoder, config.image_weights, fuse_init=config.fuse_init)
    return model


def train_model(
    config: RunConfig,
    motion: Motion | Recording,
    log: RunLog,
    device: torch.device,
    *,
    checkpoints: Path | None = None,
    start: Checkpoint | None = None,
) -> UniHPE:
    """A new model, taken through all stages of the configuration.

    Args:
        config: of the run.
        motion: to train on its "train" split.
        log: takes the numbers.
        device: where to train.
        checkpoints: the folder for checkpoints; none are written without it.
        start: where to go on instead of at the beginning.
    """
    model = new_model(config, start is not None).to(device)
    if processes.count() > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    has_images = model.image_encoder is not None
    for stage in make_stages(config):
        if start is not None and stage.number < start.stage:
            continue
        source = open_training_source(motion, config, images=has_images and stage.needs_images)

        def save(state: StageState) -> None:
            assert checkpoints is not None
            save_checkpoint(checkpoints, state, config, log.state())

        fit(
            stage,
            model,
            source,
            log,
            seed=seed_of(config.seed, "stage", stage.number),  # whatever the stages before it drew
            log_every=config.log_every,
            min_gap_seconds=config.data.min_gap_seconds,
            precision=config.precision,
            workers=config.workers,
            restore=start.restore if start is not None and stage.number == start.stage else None,
            save=save if checkpoints is not None and processes.rank() == 0 else None,
            save_every=config.checkpoint_every,
        )
    return model


def evaluate_model(model: UniHPE, config: RunConfig, motion: Motion | Recording, split: str = "test") -> Evaluation:
    """Every path of the model on one split; the mean pose beside it is the training split's, where there is one."""
    mean_pose = None
    if "train" in motion.split:
        mean_pose = MeanPose.of(open_source(motion, config, images=False).split("train"), config.evaluation)
    has_pictures = not isinstance(motion, Recording) or bool((motion.picture >= 0).any())
    source = open_source(motion, config, images=model.image_encoder is not None and has_pictures).split(split)
    return evaluate(model, source, mean_pose, config.evaluation, seed=config.seed)


def prepare_folder(folder: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Makes the folder of a run; with ``overwrite`` the checkpoints in it go, and later the model.

    Raises: FileExistsError when it already holds a model, or checkpoints that ``resume`` does not ask for, unless
        ``overwrite``; OSError when it cannot be written.
    """
    unfinished = (folder / CHECKPOINTS).exists()
    if (folder / MODEL).exists() and not overwrite and not (resume and unfinished):
        needed = "`--out` needs a folder without a trained model"
        raise FileExistsError(three_beats(needed, f"{folder / MODEL}", "Choose another folder, or add `--overwrite`."))
    if unfinished and not overwrite and not resume:
        needed = "`--out` needs a folder without checkpoints"
        remedy = "Add `--resume` to go on from them, or `--overwrite` to begin again."
        raise FileExistsError(three_beats(needed, f"{folder / CHECKPOINTS}", remedy))
    if folder.exists() and not folder.is_dir():
        needed = "`--out` needs a folder"
        raise NotADirectoryError(three_beats(needed, f"the file {folder}", "Choose another name."))
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        needed = "`--out` needs a folder that can be written"
        raise PermissionError(three_beats(needed, str(folder), "Choose another folder."))
    if overwrite:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def save_json(values: object, path: Path) -> None:
    """Indented JSON, whole or not at all."""
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())


def run(
    config: RunConfig,
    folder: Path,
    console: Console,
    device: torch.device,
    *,
    motion: Motion | Recording | None = None,
    resume: bool = False,
) -> tuple[UniHPE, Evaluation, Motion | Recording] | None:
    """Trains, saves and evaluates; leaves everything that happened in ``folder``.

    Args:
        config: of the run.
        folder: from :func:`prepare_folder`.
        console: for a person.
        device: where to train.
        motion: what the configuration names, where it is open already.
        resume: goes on from the newest checkpoint in the folder, where there is one.
    Returns: what is there at the end; None in the processes that helped the first one to train.
    """
    motion = open_motion(config) if motion is None else motion
    start = newest_checkpoint(folder / CHECKPOINTS, config) if resume else None
    processes.wait()  # all have looked
    if processes.rank() > 0:
        train_model(config, motion, SilentLog(), device, start=start)
        return None
    save_json(config.to_dict(), folder / CONFIG)
    save_json(describe_environment(device), folder / ENVIRONMENT)
    held = None if start is None else start.log
    with RunLog(folder / LOG, console, resume=held, tensorboard=config.tensorboard) as log:
        if start is None:
            named = {name: {"here": here, "paper": paper} for name, (here, paper) in deviations(config).items()}
            log.write("begin", config=config.to_dict(), deviations=named, torch=torch.__version__, device=str(device))
        else:
            log.write("resume", checkpoint=start.folder.name, torch=torch.__version__, device=str(device))
            console.print(f"Resumes after step {start.step} of stage {start.stage}.", highlight=False)
        model = train_model(config, motion, log, device, checkpoints=folder / CHECKPOINTS, start=start)
        save_model(model, config, folder / MODEL)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # the model is what they led to
        evaluation = evaluate_model(model, config, motion)
        log.write("evaluation", **evaluation.to_dict())
    save_json(evaluation.to_dict(), folder / EVALUATION)
    return model, evaluation, motion
