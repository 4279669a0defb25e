"""``unihpe ablate``: all rows of one of the paper's tables, on the same data with the same changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from multicontrast._checks import check_choice, three_beats
from unihpe_ref.applications.commands import choose_device, set_threads
from unihpe_ref.applications.run import CHECKPOINTS, EVALUATION, run, run_folder
from unihpe_ref.config import RunConfig
from unihpe_ref.files import LOCK, write_whole
from unihpe_ref.presets import PRESETS, SECOND_DATA_SET, preset

SUMMARY = "ablation.md"
_PATHS = ("2D to 3D", "image to 3D")
_METRICS = ("MPJPE", "PA-MPJPE")


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Train and evaluate every row of Table 4, 5 or 6, one after another; finished rows are skipped.

    The rows are the presets ``table4-...`` and so on. You may stop it at any time; the same command resumes.
    """

    table: Literal["4", "5", "6"]
    """which of the paper's ablations"""
    motion: Path | None = None
    """a recording that `unihpe data` reads or prepared; generated motion unless given"""
    also: Path | None = None
    """a second recording, for the rows that the paper trains on two: Table 5, and the last row of Table 6"""
    image_weights: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ENCODER=PATH")] = ()
    """pose checkpoints to start image encoders from, one for each kind: hrnet_w32=pose_hrnet_w32.pth vit_s=..."""
    out: Path = Path("runs/ablation")
    """folder for ablation.md and a run for each row and seed"""
    seeds: tuple[int, ...] = (0,)
    """run each row once with each of these seeds"""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """settings of every row that differ from the preset, such as stage3.steps=2000"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 1
    """CPU threads"""
    dry_run: bool = False
    """list the rows, say which are done, and stop"""

    def execute(self, console: Console) -> None:
        device = choose_device(self.device)
        set_threads(self.threads)
        if self.also is not None and self.table == "4":
            needed = "`--also` needs a table with rows of two data sets, 5 or 6"
            raise ValueError(three_beats(needed, "table 4", "Leave it out."))
        changes = parse_settings(self.set)
        names = [name for name in PRESETS if name.startswith(f"table{self.table}-")]
        if self.table == "6" and self.also is None:
            names.remove(SECOND_DATA_SET)
            console.print(f"{SECOND_DATA_SET}: left out, it needs a second data set (`--also`)", highlight=False)
        trials = [(name, seed, self._config(name, seed, changes)) for seed in self.seeds for name in names]
        if not trials:
            raise ValueError(three_beats("`--seeds` needs a seed", "none", "Leave it out for seed 0."))
        for name, seed, config in trials:
            folder = self.out / f"{name}-{seed}"
            done = finished(folder, config)
            console.print(f"{name}, seed {seed}: {'done' if done else 'to be run'}", highlight=False)
            if done or self.dry_run:
                continue
            with run_folder(folder, resume=True):
                run(config, folder, console, device, resume=True)
            write_whole(self.out / SUMMARY, summary(self.out, trials).encode())
        if not self.dry_run:
            text = summary(self.out, trials)
            write_whole(self.out / SUMMARY, text.encode())
            console.print(text, highlight=False)
            console.print(f"  {self.out / SUMMARY}", highlight=False, soft_wrap=True)

    def _config(self, name: str, seed: int, changes: dict[str, Any]) -> RunConfig:
        """The configuration of one row, with its data and the weights that its image encoder starts from."""
        config = preset(name).override(**changes, seed=seed, motion=self.motion)
        if self.table == "5" or name == SECOND_DATA_SET:
            config = config.override(also=self.also)
        weights = parse_settings(self.image_weights, "--image-weights", "hrnet_w32=pose_hrnet_w32.pth")
        known = {preset(row).model.image_encoder for row in PRESETS if row.startswith("table")}
        for encoder in weights:
            check_choice("--image-weights", "ENCODER", encoder, sorted(known))
        encoder = config.model.image_encoder
        return config.override(image_weights=weights[encoder]) if encoder in weights else config


def parse_settings(texts: Sequence[str], option: str = "--set", example: str = "stage3.steps=200") -> dict[str, Any]:
    """``stage3.steps=200`` as a name and a value; the value is read as JSON if it is JSON, else as text.

    Raises: ValueError without an equals sign.

    Example:
        >>> parse_settings(["stage3.steps=200", "data.image_size=[64, 64]", "data.cameras=fixed"])
        {'stage3.steps': 200, 'data.image_size': [64, 64], 'data.cameras': 'fixed'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(three_beats(f"`{option}` needs NAME=VALUE", repr(text), f"For example {example}."))
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def finished(folder: Path, config: RunConfig) -> bool:
    """Whether a row has its result.

    Raises: ValueError if it was made with other settings.
    """
    if not (folder / EVALUATION).is_file() or (folder / CHECKPOINTS).exists() or (folder / LOCK).exists():
        return False
    held = json.loads((folder / "config.json").read_text())
    if RunConfig.from_dict(held) != config:
        needed = f"`{folder}` needs a run with the settings of this ablation"
        raise ValueError(three_beats(needed, "other settings", "Choose another `--out`, or delete the folder."))
    return True


def summary(out: Path, trials: Sequence[tuple[str, int, RunConfig]]) -> str:
    """A Markdown table of the finished rows: mean over frames / over actions, mm."""
    lines = []
    for name, seed, _ in trials:
        path = out / f"{name}-{seed}" / EVALUATION
        numbers = [""] * (len(_PATHS) * len(_METRICS))
        if path.is_file():
            paths = json.loads(path.read_text())["paths"]
            numbers = [
                f"{paths[p]['frame_mean'][m]:.1f} / {paths[p]['action_mean'][m]:.1f}" if p in paths else ""
                for p in _PATHS
                for m in _METRICS
            ]
        lines.append([name, str(seed), *numbers])
    head = ["row", "seed", *(f"{path}: {metric} (mm)" for path in _PATHS for metric in _METRICS)]
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ruler, *lines)) + "\n"
