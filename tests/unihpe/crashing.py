"""Simulates a kill, or an error, at any file operation.

Python tells an audit hook of every file that is opened, renamed, made or removed, before it happens. A process that is
killed there leaves the disk as it is at that moment, so it is copied: one run gives all states.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watching: list[FileOperations] = []
_hooked: list[bool] = []


class FileOperations:
    """Hears of each operation that changes ``root`` or what is in it, before it happens.

    Args:
        root: a folder, which need not be there yet.
        hear: is called with the number of the operation, from 0, and its name; what it raises, the operation raises.
    """

    def __init__(self, root: Path, hear: Callable[[int, str], object] = lambda *_: None) -> None:
        self.root, self._hear = str(root), hear
        self.names: list[str] = []

    def __enter__(self) -> FileOperations:
        if not _hooked:  # a hook stays for good
            sys.addaudithook(_hear)
            _hooked.append(True)
        _watching.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watching.remove(self)

    def hear(self, event: str, path: str) -> None:
        if path != self.root and not path.startswith(self.root + os.sep):
            return
        self.names.append(f"{event} {path.removeprefix(self.root)}")
        self._hear(len(self.names) - 1, self.names[-1])


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not flags & _WRITING:
            return
        folder = -1
    elif event in _CHANGES:
        path = arguments[0]
        folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    else:
        return
    name = os.fsdecode(path)
    if folder != -1 and folder is not None:
        name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    for watcher in list(_watching):
        watcher.hear(event, os.path.abspath(name))


def contents(folder: Path) -> dict[str, Any]:
    """Every file and folder by its path, without what tells of the time, the place, or of an interruption."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file():
            found[name] = None
            continue
        found[name] = content = path.read_bytes().replace(str(folder.resolve()).encode(), b"...")
        if path.suffix == ".jsonl":
            records = [_record(line) for line in content.decode().splitlines()]
            found[name] = [record for record in records if record.get("event") != "resume"]
        elif path.name == "environment.json" and content:
            of_now = ("date", "commit", "changed")  # a commit may be made meanwhile
            found[name] = {key: value for key, value in json.loads(content).items() if key not in of_now}
    return found


def _record(line: str) -> dict[str, Any]:
    try:
        return {key: value for key, value in json.loads(line).items() if key != "seconds"}
    except ValueError:
        return {"partial": line}


def kills(folder: Path, act: Callable[[Path], object], root: Path | None = None) -> Iterator[tuple[str, Path]]:
    """What ``act`` would have left, had it been killed at each of its file operations in turn.

    A state of the disk that was there before is passed over: whatever goes on from it finds the same files.

    Args:
        folder: where the copies lie. act: given the folder of the run, which is not there yet unless ``root`` is one.
        root: the folder of the run, filled already.
    Yields: the name of the operation, and a copy of the run as it was before.
    """
    place = folder / "run" if root is None else root
    found: dict[str, tuple[str, Path]] = {}

    def copy(number: int, name: str) -> None:
        copied = folder / f"killed-{number}" / place.name
        copied.parent.mkdir()
        if place.exists():
            shutil.copytree(place, copied, symlinks=True)
        state = hashlib.sha256(repr(contents(copied.parent)).encode()).hexdigest()
        found.setdefault(state, (f"{number}: {name}", copied))

    with FileOperations(place, copy):
        act(place)
    yield from found.values()
