"""What a run writes while it trains: a JSONL file of numbers, and progress with the time left for a person."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_LINES = 10  # per stage, where there is no terminal


class RunLog:
    """Appends one JSON object per record to ``path`` and shows each stage's progress.

    On a terminal a bar with the time left; elsewhere about ten plain lines per stage. Use it as a context manager.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self.path = path
        self._console = console
        self._started = time.monotonic()
        self._file = path.open("w", encoding="utf-8")
        self._progress: Progress | None = None
        self._task: Any = None
        self._stage, self._steps, self._stage_started, self._printed = "", 0, 0.0, 0

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_progress()
        self._file.close()

    def write(self, event: str, **values: Any) -> None:
        """One line: the event, the seconds since the run began, and the values."""
        record = {"event": event, "seconds": round(time.monotonic() - self._started, 3), **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()  # a run that is killed leaves its numbers

    def begin_stage(self, name: str, steps: int) -> None:
        """A new bar, or a new series of lines."""
        self._stop_progress()
        self._stage, self._steps, self._stage_started, self._printed = name, steps, time.monotonic(), 0
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:<17}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}"),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(name, total=steps, shown="")

    def step(self, step: int, record: Mapping[str, float] | None) -> None:
        """Step ``step`` (from 1) is done; a record, where there is one, goes to the file and into the display."""
        if record is not None:
            self.write("step", stage=self._stage, step=step, **record)
        shown = "" if record is None else f"loss {record['loss']:.3f}  tau {record['tau']:.3f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, **({"shown": shown} if shown else {}))
        elif shown and (step == self._steps or step * _PLAIN_LINES >= (self._printed + 1) * self._steps):
            self._printed = step * _PLAIN_LINES // self._steps
            elapsed = time.monotonic() - self._stage_started
            left = elapsed / step * (self._steps - step)
            self._console.print(
                f"{self._stage:<17} {step:>6}/{self._steps}  {shown}  {clock(elapsed)} gone, {clock(left)} left",
                highlight=False,
            )

    def end_stage(self) -> None:
        """Takes the bar down; what it showed last stays."""
        self._stop_progress()

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def clock(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
