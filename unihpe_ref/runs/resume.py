"""Checkpoints of a run: all that it needs to resume with the same bits.

Each is a folder ``stage3-00000500`` (stage and steps done) with

``model.safetensors``
    the result at this step, for ``unihpe evaluate``: the average of the weights if there is one;
``last.safetensors``
    the last weights, if the first file holds their average;
``state.pt``
    the optimizer, the temperature, the scale of float16, and the length of the log; read with ``weights_only=True``;
``hashes.json``
    SHA-256 of the others, to detect files that changed or belong to another checkpoint.

A folder is written under another name, flushed to the disk and renamed, and renamed again before it is removed, so a
folder with a checkpoint's name is complete. Its contents are checked before use: an untrusted checkpoint can be wrong,
but can neither write a file nor run code.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multicontrast._checks import three_beats
from unihpe_ref.checkpoint import read_weights, save_model
from unihpe_ref.config import RunConfig
from unihpe_ref.files import file_hash, remove_whole, write_folder, write_whole
from unihpe_ref.stages import make_stages
from unihpe_ref.training import StageState

_MODEL, _LAST, _STATE, _HASHES = "model.safetensors", "last.safetensors", "state.pt", "hashes.json"
_KEPT = 2
# Settings that may differ from the resumed run, because they do not change the weights.
_FREE = ("workers", "log_every", "checkpoint_every", "tensorboard", "sampler", "evaluation")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    stage: int
    step: int
    log: dict[str, Any]
    beside: dict[str, Any]

    def restore(self, state: StageState) -> None:
        """Restores the state of the same stage.

        Raises: ValueError if the checkpoint holds something that does not belong to this stage.
        """
        try:
            model, _ = read_weights(self.folder / _MODEL)
            if state.average is None:
                state.restore(self.beside, model, None)
            else:
                state.restore(self.beside, read_weights(self.folder / _LAST)[0], model)
        except _UNFIT as error:
            raise _damaged(self.folder, error) from None


def save_checkpoint(folder: Path, state: StageState, config: RunConfig, log: dict[str, Any]) -> None:
    """Adds a checkpoint to ``folder``, which the run has locked, and removes all but the two newest."""
    folder.mkdir(exist_ok=True)

    def fill(partial: Path) -> None:
        save_model(state.result, config, partial / _MODEL)
        if state.average is not None:
            save_model(state.model, config, partial / _LAST)
        buffer = io.BytesIO()
        torch.save({**state.beside_the_weights(), "log": log, "config": config.to_dict()}, buffer)
        write_whole(partial / _STATE, buffer.getvalue())
        hashes = {file.name: file_hash(file) for file in sorted(partial.iterdir())}
        write_whole(partial / _HASHES, json.dumps(hashes).encode())

    # A resumed run may write the same checkpoint again, with the same bits.
    write_folder(folder / f"stage{state.stage.number}-{state.step:08d}", fill)
    for old in _found(folder)[:-_KEPT]:
        remove_whole(old)


def newest_checkpoint(folder: Path, config: RunConfig) -> Checkpoint | None:
    """The checkpoint from which the run in ``folder`` resumes; None if there is none.

    Raises: ValueError if the checkpoint is damaged, or belongs to a run with other settings of the training.
    """
    found = _found(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        held = _read_state(newest)
    except Exception as error:  # torch raises many kinds of error for other files
        raise _damaged(newest, error) from None
    check_same_run(newest, held.pop("config"), config)
    steps = {stage.number: stage.config.steps for stage in make_stages(config)}
    if not 0 < held["step"] <= steps.get(held["stage"], 0):
        raise _damaged(newest, ValueError(f"step {held['step']} of stage {held['stage']}"))
    return Checkpoint(newest, held["stage"], held["step"], held.pop("log"), held)


_UNFIT = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError)
_LOG_FILE = re.compile(r"log\.jsonl|steps-[\w.-]+\.csv")
_FIELDS = {"stage": int, "step": int, "optimizer": dict, "temperature": dict, "scaler": dict, "averaged": int}
_FIELDS |= {"log": dict, "config": dict}


def _read_state(folder: Path) -> dict[str, Any]:
    """The contents of the state, with the configuration parsed; raises if this package did not write them."""
    hashes = json.loads((folder / _HASHES).read_bytes())
    for name in {*hashes, _MODEL, _STATE}:
        if file_hash(folder / Path(name).name) != hashes.get(name):
            raise ValueError(f"other bytes in {name!r} than were written")
    held: dict[str, Any] = torch.load(folder / _STATE, weights_only=True, map_location="cpu")
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(held.get(name), kind)]
    wrong += [name for name, kind in _FIELDS.items() if isinstance(held.get(name), bool)]
    if wrong or folder.name != f"stage{held['stage']}-{held['step']:08d}":
        raise ValueError(f"no {wrong[0]!r}" if wrong else f"stage {held['stage']}, step {held['step']}")
    lengths, seconds = held["log"]["lengths"], held["log"]["seconds"]
    for name, length in lengths.items():
        if not _LOG_FILE.fullmatch(name) or type(length) is not int or length < 0:
            raise ValueError(f"a log of {length!r} bytes called {name!r}")
    if type(seconds) is not float or not 0 <= seconds < 1e12:
        raise ValueError(f"{seconds!r} seconds")
    return held | {"config": RunConfig.from_dict(held["config"])}


def _damaged(folder: Path, error: Exception) -> ValueError:
    came = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    remedy = "Remove this folder to continue from the one before."
    return ValueError(three_beats(f"`{folder}` needs to be a whole checkpoint of this run", came, remedy))


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("stage[0-9]-*"))


def check_same_run(folder: Path, old: RunConfig, new: RunConfig, free: tuple[str, ...] = _FREE) -> None:
    """Raises ValueError if the settings of two runs differ in more than ``free``."""
    found = {name: both for name, both in new.differences(old).items() if name.split(".")[0] not in free}
    if found:
        needed = f"to go on from `{folder}`, a run needs its settings"
        came = ", ".join(f"{name} = {now!r} (was {before!r})" for name, (now, before) in found.items())
        raise ValueError(three_beats(needed, came, "Take those settings back, or train into another folder."))
