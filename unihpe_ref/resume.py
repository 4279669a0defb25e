"""Checkpoints of a run: everything that it needs to go on as if it had never stopped.

Each is a folder ``stage3-00000500`` (stage and steps done) with

``model.safetensors``
    what the stage would end with now, for ``unihpe evaluate``: the average of the weights where there is one;
``last.safetensors``
    the moving weights, where the first file holds their average;
``state.pt``
    the optimizer, the temperature, the scale of float16, and how long the log was; read with ``weights_only=True``.

A folder is written under another name, flushed to the disk, and renamed: at every moment the newest one is whole.
"""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multicontrast._checks import three_beats
from unihpe_ref.checkpoint import read_weights, save_model, write_whole
from unihpe_ref.config import RunConfig
from unihpe_ref.training import StageState

_MODEL, _LAST, _STATE = "model.safetensors", "last.safetensors", "state.pt"
_KEPT = 2
# What may differ from the run that is resumed: none of it reaches the weights.
_FREE = ("workers", "log_every", "checkpoint_every", "tensorboard", "sampler", "evaluation")


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole."""

    folder: Path
    stage: int
    step: int
    log: dict[str, Any]
    beside: dict[str, Any]

    def restore(self, state: StageState) -> None:
        """Brings the state of the same stage to where it was."""
        model, _ = read_weights(self.folder / _MODEL)
        if state.average is None:
            state.restore(self.beside, model, None)
        else:
            state.restore(self.beside, read_weights(self.folder / _LAST)[0], model)


def save_checkpoint(folder: Path, state: StageState, config: RunConfig, log: dict[str, Any]) -> None:
    """Adds a checkpoint to ``folder`` and removes all but the two newest."""
    folder.mkdir(exist_ok=True)
    name = f"stage{state.stage.number}-{state.step:08d}"
    partial = folder / f".{name}.{os.getpid()}.tmp"
    partial.mkdir()
    try:
        save_model(state.result, config, partial / _MODEL)
        if state.average is not None:
            save_model(state.model, config, partial / _LAST)
        buffer = io.BytesIO()
        torch.save({**state.beside_the_weights(), "log": log, "config": config.to_dict()}, buffer)
        write_whole(partial / _STATE, buffer.getvalue())
        _flush(partial)
        if (folder / name).exists():  # a resumed run comes by once more, with the same bits
            shutil.rmtree(folder / name)
        partial.rename(folder / name)
        _flush(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _found(folder)[:-_KEPT]:
        shutil.rmtree(old)
    for left in folder.glob(".*.tmp"):  # of a process that was killed
        shutil.rmtree(left)


def newest_checkpoint(folder: Path, config: RunConfig) -> Checkpoint | None:
    """Where the run in ``folder`` goes on; None where it has not come to a checkpoint.

    Raises: ValueError when the checkpoint is damaged, or belongs to a run whose settings differ in what trains.
    """
    found = _found(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        held = torch.load(newest / _STATE, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises half a dozen kinds for a file that is not one of its own
        needed = f"`{newest}` needs a whole `{_STATE}`"
        came = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ValueError(three_beats(needed, came, "Remove this folder to go on from the one before.")) from None
    _check_same_run(newest, RunConfig.from_dict(held["config"]), config)
    return Checkpoint(newest, held["stage"], held["step"], held.pop("log"), held)


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("stage[0-9]-*"))


def _check_same_run(folder: Path, old: RunConfig, new: RunConfig) -> None:
    found = {name: both for name, both in new.differences(old).items() if name.split(".")[0] not in _FREE}
    if found:
        needed = f"to go on from `{folder}`, a run needs its settings"
        came = ", ".join(f"{name} = {now!r} (was {before!r})" for name, (now, before) in found.items())
        raise ValueError(three_beats(needed, came, "Take those settings back, or train into another folder."))


def _flush(folder: Path) -> None:
    """A name in a folder reaches the disk when the folder is flushed. Not every system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
