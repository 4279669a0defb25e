"""Assembles a run from its configuration: motion, sources, model, stages, results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from multicontrast._checks import three_beats
from unihpe_ref.checkpoint import load_model
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
from unihpe_ref.data.source import FrameSource
from unihpe_ref.evaluation import Evaluation, MeanPose, evaluate
from unihpe_ref.models import UniHPE, load_pose_weights
from unihpe_ref.runs.resume import Checkpoint, save_checkpoint
from unihpe_ref.stages import make_stages
from unihpe_ref.training import StageState, fit, processes
from unihpe_ref.training.logs import RunLog
from unihpe_ref.training.seeds import seed_of


def open_motion(config: RunConfig) -> Motion | Recording:
    """The motion or recording that the configuration names, or motion generated from its seed.

    Raises: OSError or ValueError if a recording cannot be read.
    """
    if config.motion is not None:
        return open_data(config.motion)
    data = config.data
    return generate_motion(config.seed, num_subjects=data.subjects, takes=data.takes, seconds=data.seconds)


def open_source(
    motion: Motion | Recording, config: RunConfig, *, images: bool, **names: tuple[str, ...]
) -> FrameSource:
    """All splits of ``motion`` as the configuration describes; ``.split`` selects one.

    Args:
        motion: from :func:`open_motion`.
        config: sets cameras, crops and augmentation.
        images: whether batches hold pictures.
        names: ``action_names`` and ``subject_names``; the data's own unless given.
    """
    data = config.data
    augmentation = Augmentation(
        flip=data.flip,
        scale=data.scale,
        rotation_degrees=data.rotation_degrees,
        joint_noise=data.joint_noise,
        bodies=data.bodies,
        limb_degrees=data.limb_degrees,
    )
    varied = augmentation != Augmentation(flip=0.0, scale=0.0, rotation_degrees=0.0)
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
    """The training split, joined with that of the configuration's additional data."""
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
        config: its seed draws them; then ``image_weights`` fills the image encoder, or ``start`` the whole model.
        to_be_restored: a checkpoint replaces the weights, so the file of the image weights may be missing.
    Raises: as :func:`unihpe_ref.models.load_pose_weights` and :func:`unihpe_ref.checkpoint.load_model`; ValueError
        if ``start`` holds another model.
    """
    torch.manual_seed(config.seed)
    model = UniHPE(config.model, config.sampler)
    if config.start is not None and not to_be_restored:
        started, held = load_model(config.start)
        other = held.model.differences(config.model)
        if other:
            name, (theirs, ours) = next(iter(other.items()))
            needed = f"`start` needs a model with `model.{name}` = {ours}"
            raise ValueError(three_beats(needed, f"{theirs} in {config.start}", "Set it as in that model."))
        model.load_state_dict(started.state_dict())
    if config.image_weights is not None and not to_be_restored:
        if model.image_encoder is None:
            needed = "`image_weights` needs a model with an image encoder"
            raise ValueError(three_beats(needed, "`image_encoder='none'`", "Leave out one of the two."))
        load_pose_weights(model.image_encoder, config.image_weights, fuse_init=config.fuse_init)
    return model


def train_model(
    config: RunConfig,
    motion: Motion | Recording,
    log: RunLog | None,
    device: torch.device,
    *,
    checkpoints: Path | None = None,
    start: Checkpoint | None = None,
) -> UniHPE:
    """A new model, taken through all stages of the configuration.

    Args:
        config: of the run.
        motion: to train on its "train" split.
        log: records the numbers; None in processes that do not write.
        device: where to train.
        checkpoints: the folder for checkpoints; none are written without it.
        start: the checkpoint to resume from.
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
            assert log is not None
            save_checkpoint(checkpoints, state, config, log.state())

        fit(
            stage,
            model,
            source,
            log,
            seed=seed_of(config.seed, "stage", stage.number),  # independent of the stages before it
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
    """Every path of the model on one split; the mean pose is that of the training split, if there is one."""
    mean_pose = None
    if "train" in motion.split:
        mean_pose = MeanPose.of(open_source(motion, config, images=False).split("train"), config.evaluation)
    has_pictures = not isinstance(motion, Recording) or bool((motion.picture >= 0).any())
    source = open_source(motion, config, images=model.image_encoder is not None and has_pictures).split(split)
    return evaluate(model, source, mean_pose, config.evaluation, seed=config.seed)
