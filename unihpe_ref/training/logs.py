"""The log of a run: numbers as JSONL and CSV, TensorBoard on request, and a live table on the terminal."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from multicontrast._checks import three_beats

_PLAIN_LINES = 10  # per stage, without a terminal
_COLUMNS = {"loss": "loss", "contrastive": "L_cl", "decoding_2d": "L_2D", "decoding_3d": "L_3D", "tau": "tau"}


class RunLog:
    """Appends one JSON object per record to ``path``, one CSV row per step beside it, and shows each stage's progress.

    A terminal shows a live table with the time left; other outputs get about ten plain lines per stage. Use it as a
    context manager.

    Args:
        path: of the JSONL file; ``steps-<stage>.csv`` and ``tensorboard/`` come beside it.
        console: where progress is shown.
        resume: a value of :meth:`state`; the files are truncated to that length and continued.
        tensorboard: whether to write event files as well.
    Raises: ValueError when ``tensorboard`` is asked for and not installed.
    """

    def __init__(
        self, path: Path, console: Console, *, resume: Mapping[str, Any] | None = None, tensorboard: bool = False
    ) -> None:
        self.path = path
        self._console = console
        self._csv: TextIO | None = None
        self._live: Live | None = None
        self._rows: dict[str, dict[str, str]] = {}  # the live table, stage by stage
        self._writer: Any = None
        self._summary_writer = _summary_writer() if tensorboard else None
        if resume is None:
            for old in path.parent.glob("steps-*.csv"):
                old.unlink()
            self._started = time.monotonic()
        else:
            for name, length in resume["lengths"].items():
                if (path.parent / name).exists() and (path.parent / name).stat().st_size > length:
                    os.truncate(path.parent / name, length)
            for later in path.parent.glob("steps-*.csv"):
                if later.name not in resume["lengths"]:
                    later.unlink()
            self._started = time.monotonic() - resume["seconds"]
        self._file = path.open("w" if resume is None else "a", encoding="utf-8")
        self._stage, self._steps, self._begun_at, self._stage_started, self._printed = "", 0, 0, 0.0, 0

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_stage()
        self._file.close()

    def write(self, event: str, **values: Any) -> None:
        """One line: the event, the seconds since the run began, and the values."""
        record = {"event": event, "seconds": round(time.monotonic() - self._started, 3), **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()  # so that a killed run leaves its numbers on disk

    def state(self) -> dict[str, Any]:
        """The length of the files after flushing them to the disk, stored in checkpoints to resume :class:`RunLog`."""
        for file in (self._file, self._csv):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
        files = [self.path, *self.path.parent.glob("steps-*.csv")]
        lengths = {file.name: file.stat().st_size for file in files}
        return {"lengths": lengths, "seconds": time.monotonic() - self._started}

    def begin_stage(self, name: str, steps: int, done: int = 0) -> None:
        """A new row of the table, or a new series of lines; ``done`` steps were taken by an earlier process."""
        self.end_stage()
        self._stage, self._steps, self._begun_at = name, steps, done
        self._stage_started, self._printed = time.monotonic(), done * _PLAIN_LINES // max(1, steps)
        slug = name.replace(" ", "-")
        self._csv = (self.path.parent / f"steps-{slug}.csv").open("a", newline="", encoding="utf-8")
        if self._summary_writer is not None:
            folder = self.path.parent / "tensorboard" / slug
            self._writer = self._summary_writer(folder, purge_step=done + 1)
        self._rows[name] = {}
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=2)
            self._live.start()

    def step(self, step: int, record: Mapping[str, float] | None) -> None:
        """Step ``step`` (from 1) is done; its record, if any, goes to the files and the display."""
        elapsed = time.monotonic() - self._stage_started
        left = elapsed / max(1, step - self._begun_at) * (self._steps - step)
        row = self._rows[self._stage]
        row |= {"step": f"{step}/{self._steps}", "gone": clock(elapsed), "left": clock(left)}
        row["steps/s"] = f"{(step - self._begun_at) / max(elapsed, 1e-9):.2f}"
        if record is None:
            return
        row |= {name: f"{value:.3f}" for name, value in record.items()}
        self.write("step", stage=self._stage, step=step, **record)
        assert self._csv is not None
        writer = csv.DictWriter(self._csv, ["step", *record])
        if not self._csv.tell():
            writer.writeheader()
        writer.writerow({"step": step, **record})
        self._csv.flush()
        if self._writer is not None:
            for name, value in record.items():
                self._writer.add_scalar(name, value, step)
        if self._live is None and (step == self._steps or step * _PLAIN_LINES >= (self._printed + 1) * self._steps):
            self._printed = step * _PLAIN_LINES // self._steps
            self._console.print(
                f"{self._stage:<17} {step:>6}/{self._steps}  loss {record['loss']:.3f}  tau {record['tau']:.3f}  "
                f"{clock(elapsed)} gone, {clock(left)} left",
                highlight=False,
            )

    def end_stage(self) -> None:
        """Closes the stage's files and the display; its last state stays on the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._rows = {}
        if self._csv is not None:
            self._csv.close()
            self._csv = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _table(self) -> Table:
        shown = {name for row in self._rows.values() for name in row}
        cosines = {
            name: name.replace("cosine_", "cos ").replace("_", "-") for name in sorted(shown) if "cosine" in name
        }
        names = {"step": "step", **{k: v for k, v in (_COLUMNS | cosines).items() if k in shown}}
        names |= {"steps/s": "steps/s", "gone": "gone", "left": "left"}
        table = Table("stage", box=None, pad_edge=False)
        for title in names.values():
            table.add_column(title, justify="right", no_wrap=True)
        for stage, row in self._rows.items():
            table.add_row(stage, *(row.get(name, "") for name in names))
        return table


def end_of_log(path: Path) -> dict[str, Any]:
    """The value of :meth:`RunLog.state` for an existing log, without a truncated last line."""
    content = path.read_bytes() if path.exists() else b""
    content = content[: content.rfind(b"\n") + 1]
    lengths = {file.name: file.stat().st_size for file in path.parent.glob("steps-*.csv")}
    seconds = float(json.loads(content.splitlines()[-1])["seconds"]) if content else 0.0
    return {"lengths": {**lengths, path.name: len(content)}, "seconds": seconds}


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        needed = "`tensorboard` needs the package of that name"
        remedy = "Run `pip install 'multicontrast[tensorboard]'`, or leave the option out; JSONL and CSV remain."
        raise ValueError(three_beats(needed, "no such package", remedy)) from None
    return SummaryWriter


def clock(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
