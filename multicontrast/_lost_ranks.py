"""Finds the rank that is lost after a collective has failed.

The ranks exchange their process ids at every handshake. If one process has ended, the ranks on its machine see that and
write it to the store of the process group. Otherwise the ranks that write nothing are named: they are blocked
elsewhere, or their machine is gone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

GRACE = 3.0  # seconds for the other ranks to notice and write to the store

Process = tuple[int, int]  # machine, process id
_processes: dict[str, list[Process]] = {}  # by the name of a group, in the order of its ranks


def this_process() -> Process:
    """Identifies this process."""
    return _machine(), os.getpid()


def remember(group: Any, processes: Sequence[Process]) -> None:
    """Stores the processes of a group's ranks, from its last handshake."""
    _processes[group.group_name] = list(processes)


def words_of_lost(group: Any) -> str:
    """The missing ranks, as ``rank 1, which has ended``, ``rank 1, 2``, or ``one of them``."""
    rank, others = dist.get_rank(group), set(range(dist.get_world_size(group)))
    others.discard(rank)
    store, end = _store(), time.monotonic() + GRACE
    while True:
        gone = {other for other in others if _has_ended(group, other)}
        words = {other: word for other in others if (word := _word_of(store, group, other)) is not None}
        ended = (gone - set(words)).union(*words.values())  # a rank that wrote has ended because of another
        _leave_word(store, group, rank, ended)
        silent = others - set(words)
        if ended or not silent or time.monotonic() > end:
            break
        time.sleep(0.05)
    named = sorted(ended or (silent if len(silent) < len(others) or len(others) == 1 else ()))
    if not named:
        return "one of them"
    listed = f"rank{'s' * (len(named) > 1)} {', '.join(map(str, named))}"
    return listed + (f", which {'have' if len(named) > 1 else 'has'} ended," if ended else "")


def _has_ended(group: Any, rank: int) -> bool:
    """Whether that rank's process is known, ran on this machine, and has ended."""
    known = _processes.get(group.group_name, [])
    if os.name != "posix" or rank >= len(known) or known[rank][0] != _machine():
        return False
    process = known[rank][1]
    try:
        os.kill(process, 0)
        # A process that has ended and that its parent has not waited for yet.
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except ProcessLookupError:
        return True
    except (OSError, IndexError):  # another user's, or no /proc
        return False


@functools.cache
def _machine() -> int:
    """A number for this machine and the container on it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # on Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return zlib.crc32(" ".join(parts).encode())


def _store() -> Any:
    try:
        return dist.distributed_c10d._get_default_store()
    except (AttributeError, RuntimeError, ValueError):
        return None


def _key(group: Any, rank: int) -> str:
    return f"multicontrast/{group.group_name}/{rank}"


def _leave_word(store: Any, group: Any, rank: int, ended: set[int]) -> None:
    try:
        store.set(_key(group, rank), ",".join(map(str, sorted(ended))))
    except (AttributeError, RuntimeError):  # no store, or its rank is lost
        return


def _word_of(store: Any, group: Any, rank: int) -> set[int] | None:
    """The ranks that another one saw end; None if it wrote nothing."""
    try:
        key = _key(group, rank)
        return {int(other) for other in store.get(key).decode().split(",") if other} if store.check([key]) else None
    except (AttributeError, RuntimeError):
        return None
