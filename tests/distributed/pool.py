"""A few processes that wait for work: three ranks of a gloo group, started once and kept for the whole session.

``pool.run(function, *arguments)`` calls a module-level function on every rank as ``function(group, *arguments)`` and
returns the results in rank order. ``ranks=2`` takes the first two ranks, as a subgroup of the three.
"""

from __future__ import annotations

import contextlib
import queue
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 3
_PATIENCE = 120  # seconds for one task, on a loaded machine


def _serve(rank: int, store: str, tasks: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS, timeout=timedelta(seconds=_PATIENCE)
    )
    groups = {count: dist.new_group(list(range(count))) for count in range(1, RANKS)}
    groups[RANKS] = dist.group.WORLD
    answers.put((rank, None, None))
    while True:
        result, error = None, None
        try:
            task = tasks.get()  # which fails for a function that this process cannot import
            if task is None:
                break
            function, count, arguments = task
            if rank < count:
                result = function(groups[count], *arguments)
        except BaseException:
            error = traceback.format_exc()
        answers.put((rank, result, error))
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


class Pool:
    """Three ranks that stay."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = mp.get_context("forkserver")
        self._answers = context.Queue()
        self._tasks = [context.SimpleQueue() for _ in range(RANKS)]
        store = str(Path(self._folder.name) / "store")
        self._processes = [
            context.Process(target=_serve, args=(rank, store, tasks, self._answers), daemon=True)
            for rank, tasks in enumerate(self._tasks)
        ]
        for process in self._processes:
            process.start()
        self._collect()

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def run(self, function: Any, *arguments: Any, ranks: int = RANKS) -> list[Any]:
        """The results of ``function(group, *arguments)`` on the first ranks; raises if any of them raised."""
        for tasks in self._tasks:
            tasks.put((function, ranks, arguments))
        return self._collect()[:ranks]

    def _collect(self) -> list[Any]:
        results: list[Any] = [None] * RANKS
        errors = []
        for _ in range(RANKS):
            try:
                rank, results_of_rank, error = self._answers.get(timeout=_PATIENCE)
            except queue.Empty:
                self.close()
                raise AssertionError("a rank hangs") from None
            results[rank] = results_of_rank
            if error:
                errors.append(f"rank {rank}:\n{error}")
        if errors:
            self.close()  # what the group still holds belongs to no one: the next test gets a new pool
            raise AssertionError("\n".join(errors))
        return results

    def close(self) -> None:
        """End the processes."""
        for tasks in self._tasks:
            with contextlib.suppress(OSError):
                tasks.put(None)
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()
