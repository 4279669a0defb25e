"""Which rank is lost, asked after a collective has failed.

The ranks tell each other their processes at every handshake. Where one of them has ended, the others of its machine see
it, and leave word of it in the store of the process group. Otherwise those are named that leave no word at all: blocked
elsewhere, or on a machine that is gone.
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

GRACE = 3.0  # seconds in which the ranks that live notice, too, and leave word

Process = tuple[int, int]  # machine, process id
_processes: dict[str, list[Process]] = {}  # by the name of a group, in the order of its ranks


def this_process() -> Process:
    """What tells this process from all others."""
    return _machine(), os.getpid()


def remember(group: Any, processes: Sequence[Process]) -> None:
    """The processes of a group's ranks, as they came with its last handshake."""
    _processes[group.group_name] = list(processes)


def words_of_lost(group: Any) -> str:
    """Who is missing: as ``rank 1, which has ended``, ``rank 1, 2``, or ``one of them``."""
    rank, others = dist.get_rank(group), set(range(dist.get_world_size(group)))
    others.discard(rank)
    store, end = _store(), time.monotonic() + GRACE
    while True:
        gone = {other for other in others if _has_ended(group, other)}
        words = {other: word for other in others if (word := _word_of(store, group, other)) is not None}
        ended = (gone - set(words)).union(*words.values())  # who has left word has ended because of another
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
    """Whether that rank's process is known, of this machine, and gone."""
    known = _processes.get(group.group_name, [])
    if os.name != "posix" or rank >= len(known) or known[rank][0] != _machine():
        return False
    process = known[rank][1]
    try:
        os.kill(process, 0)
        # Of a process that its parent has not asked after yet this is all that is left.
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except ProcessLookupError:
        return True
    except (OSError, IndexError):  # somebody else's, or no /proc
        return False


@functools.cache
def _machine() -> int:
    """A number of this machine, and of this container on it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # what Linux has
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
    except (AttributeError, RuntimeError):  # no store, or its rank is the one that is lost
        return


def _word_of(store: Any, group: Any, rank: int) -> set[int] | None:
    """The ranks that another one has seen end; None without a word of it."""
    try:
        key = _key(group, rank)
        return {int(other) for other in store.get(key).decode().split(",") if other} if store.check([key]) else None
    except (AttributeError, RuntimeError):
        return None
