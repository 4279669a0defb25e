"""Append-only CSV files with a dataclass per line: add a run, read the latest one."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any


def every(path: Path) -> list[dict[str, str]]:
    """All lines, as text by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def latest(path: Path) -> list[dict[str, str]]:
    """The lines of the run with the newest ``date``."""
    records = every(path)
    newest = max(record["date"] for record in records)
    return [record for record in records if record["date"] == newest]


def append(path: Path, lines: Sequence[Any]) -> None:
    """Adds dataclass instances of one kind at the end of a CSV, which is created if it does not exist."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(lines[0])], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(asdict(line) for line in lines)
