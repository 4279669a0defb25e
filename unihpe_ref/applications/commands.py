"""The commands ``unihpe demo``, ``train`` and ``evaluate``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from multicontrast._checks import three_beats
from unihpe_ref.applications.figures import save_pose_sheet
from unihpe_ref.applications.run import CONFIG, EVALUATION, LOG, MODEL, POSES, run, run_folder
from unihpe_ref.checkpoint import load_model
from unihpe_ref.config import RunConfig
from unihpe_ref.data import Motion, Recording
from unihpe_ref.evaluation import UNITS, Evaluation, PathResult
from unihpe_ref.files import write_json
from unihpe_ref.models import UniHPE, parameters
from unihpe_ref.presets import deviations, preset
from unihpe_ref.runs import evaluate_model, open_motion, open_source, open_training_source
from unihpe_ref.runs.memory import memory_lines
from unihpe_ref.stages import make_stages
from unihpe_ref.training.logs import clock
from unihpe_ref.training.processes import joined, rank


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train a small UniHPE on generated motion and pictures, in minutes, and evaluate it.

    All three stages run on one core, without a GPU or a download. The same seed gives the same numbers.
    """

    out: Path = Path("runs/demo")
    """folder for model, log, results and picture; an earlier demo in it is replaced"""
    seed: int = 0
    """seed of all random numbers"""
    dry_run: bool = False
    """print the settings, their differences from the paper, and the memory they need, and stop"""

    def execute(self, console: Console) -> None:
        config = preset("demo").override(seed=self.seed)
        Train(config=config, out=self.out, device="cpu", overwrite=True, dry_run=self.dry_run).execute(console)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train on a recording (--motion PATH), or on generated motion, and evaluate on its test sequences."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: Path = Path("runs/train")
    """folder for model, log, results and picture"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 1
    """CPU threads; the same number gives the same results"""
    overwrite: bool = False
    """replace a model that is already in the folder"""
    resume: bool = False
    """continue from the newest checkpoint in the folder, if there is one; a finished run stays as it is"""
    dry_run: bool = False
    """print the settings, their differences from the paper, and the memory they need, and stop"""

    def execute(self, console: Console) -> None:
        started = time.monotonic()
        config, device = self.config, choose_device(self.device)
        set_threads(self.threads)
        motion = None if config.motion is None else checked_data(config)
        if self.dry_run:
            console.print_json(data=config.to_dict())
            console.print(_describe_run(config, device))
            for line in (*_describe_deviations(config), "Memory, by stage:", *memory_lines(config)):
                console.print(line, soft_wrap=True)
            return
        with joined(device) as own, run_folder(self.out, overwrite=self.overwrite, resume=self.resume):
            if rank() == 0:
                console.print(_describe_run(config, device))
            done = run(config, self.out, console, own, motion=motion, resume=self.resume)
        if done is None:
            return
        console.print(results_table(done[1]))
        console.print(f"Done in {clock(time.monotonic() - started)}.")
        say_where(console, self.out, (POSES, EVALUATION, LOG, CONFIG, MODEL))


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a trained model on the test sequences of its recording, or of another one."""

    checkpoint: tyro.conf.Positional[Path]
    """model.safetensors, or the folder that holds it"""
    motion: Path | None = None
    """a recording that `unihpe data` reads or prepared; the one the model was trained on unless given"""
    protocol: str | None = None
    """for a recording: name of a protocol, which sets frames and joints; all its frames unless --stride is given"""
    joints_2d: Literal["annotated", "detected"] | None = None
    """for a recording: which 2D joints to lift; as in training unless given"""
    joint_noise: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    """Gaussian noise of the 2D joints, a share of the box's longer side (a person is 0.8 of it); none unless given"""
    split: Literal["train", "test"] = "test"
    """which sequences to evaluate"""
    stride: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """evaluate every Nth frame; as in training unless given"""
    seed: int | None = None
    """seed of the score-based decoders' noise and of the pictures; as in training unless given"""
    out: Path | None = None
    """folder for evaluation.json and poses.png; nothing is written unless given"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 1
    """CPU threads"""

    def execute(self, console: Console) -> None:
        device = choose_device(self.device)
        set_threads(self.threads)
        path = self.checkpoint / MODEL if self.checkpoint.is_dir() else self.checkpoint
        model, config = load_model(path, device)
        asked = {
            "motion": self.motion,
            "evaluation.protocol": self.protocol,
            "evaluation.stride": 1 if self.protocol is not None and self.stride is None else self.stride,
            "data.joints_2d": self.joints_2d,
            "evaluation.joint_noise": self.joint_noise,
        }
        config = config.override(**{name: value for name, value in asked.items() if value is not None})
        motion = open_motion(config)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
        if self.seed is not None:  # not the seed of generated motion
            config = config.override(seed=self.seed)
        console.print(f"{path}: preset {config.preset}, {_describe_motion(config)}, {self.split} sequences")
        evaluation = evaluate_model(model, config, motion, self.split)
        console.print(results_table(evaluation))
        for line in retrieval_lines(evaluation):
            console.print(line)
        if self.out is not None:
            source = open_source(motion, config, images=model.image_encoder is not None).split(self.split)
            write_json(self.out / EVALUATION, evaluation.to_dict())
            save_pose_sheet(model, source, self.out / POSES, seed=config.seed)
            say_where(console, self.out, (EVALUATION, POSES))


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the GPU if there is one.

    Raises: ValueError for a name that torch does not know or a missing device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    needed = "`--device` needs to be auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(three_beats(needed, repr(name), "Leave it out to choose by itself.")) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(three_beats(needed, repr(name), "Leave it out to choose by itself."))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        came = f"{name!r} with {torch.cuda.device_count()} CUDA devices here"
        raise ValueError(three_beats("`--device` needs a device of this machine", came, "Use `--device cpu`."))
    return device


def set_threads(threads: int) -> None:
    """Sets the number of CPU threads. Raises: ValueError below one."""
    if threads < 1:
        raise ValueError(three_beats("`--threads` needs to be at least 1", str(threads), "One suits most CPUs."))
    torch.set_num_threads(threads)


def results_table(evaluation: Evaluation) -> Table:
    """Paths against metrics; a cell holds the mean over frames and the mean over actions, or one number if equal."""
    metrics = [metric for metric in UNITS if any(metric in path.frame_mean for path in evaluation.paths)]
    many = len(metrics) > 5  # seven metrics and the paths fill 80 columns
    table = Table(
        title=f"{evaluation.frames} frames, {len(evaluation.actions)} actions: mean over frames / over actions",
        title_justify="left",
        title_style="",
        padding=(0, 0 if many else 1),
    )
    table.add_column("path", no_wrap=True)  # the one column that must not be cut
    for metric in metrics:
        widest = max(len(metric), len("100.0 /")) if many else None
        table.add_column(f"{metric}\n({UNITS[metric]})", justify="right", min_width=len(metric), max_width=widest)

    def cell(path: PathResult, metric: str) -> str:
        if metric not in path.frame_mean:
            return ""
        means = dict.fromkeys((f"{path.frame_mean[metric]:.1f}", f"{path.action_mean[metric]:.1f}"))
        return " / ".join(means)

    for path in evaluation.paths:
        table.add_row(path.name, *(cell(path, metric) for metric in metrics))
    return table


def retrieval_lines(evaluation: Evaluation) -> list[str]:
    """One line for each direction: how often the nearest embedding of the other modality is from the same frame."""
    return [
        f"{name}: recall@1 {found['recall@1']:.1f} %, median rank {found['median rank']:.0f}, "
        f"mean cosine {found['cosine']:.2f}"
        for name, found in evaluation.retrieval.items()
    ]


def checked_data(config: RunConfig) -> Motion | Recording:
    """Opens the data of a run, and checks that they are enough for all its stages and its evaluation.

    Raises: OSError or ValueError if data cannot be read, a batch of some stage cannot be filled, or there is no test
        split.
    """
    motion = open_motion(config)
    for stage in make_stages(config):
        images = config.model.image_encoder != "none" and stage.needs_images
        source = open_training_source(motion, config, images=images)
        source.sampler(stage.config.batch_size, torch.Generator(), config.data.min_gap_seconds)
    open_source(motion, config, images=config.model.image_encoder != "none").split("test")
    return motion


def _describe_run(config: RunConfig, device: torch.device) -> str:
    with torch.device("meta"):
        size = parameters(UniHPE(config.model, config.sampler)) / 1e6
    steps = ", ".join(
        f"{stage.name}: {stage.config.steps} steps of {stage.config.batch_size}" for stage in make_stages(config)
    )
    return (
        f"Preset {config.preset}, seed {config.seed}: {size:.2f} M parameters on {device}, "
        f"{_describe_motion(config)}.\nStages {steps}."
    )


def _describe_deviations(config: RunConfig) -> list[str]:
    found = deviations(config)
    if not found:
        return ["Every setting is the paper's."]
    return ["Differs from the paper in:"] + [f"  {name} = {now} (paper: {then})" for name, (now, then) in found.items()]


def _describe_motion(config: RunConfig) -> str:
    return "generated motion" if config.motion is None else f"motion of {config.motion}"


def say_where(console: Console, folder: Path, names: tuple[str, ...]) -> None:
    words = {
        MODEL: "model",
        LOG: "log",
        CONFIG: "settings",
        EVALUATION: "results",
        POSES: "poses, truth and estimate",
    }
    for name in names:
        console.print(f"  {folder / name}  ({words[name]})", soft_wrap=True)
