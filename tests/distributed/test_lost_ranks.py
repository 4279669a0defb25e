"""A rank that is killed in the middle of a loss ends the others with an error that says in which loss."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import multicontrast as mc
from multicontrast import distributed

_TIMEOUT = 20  # seconds of the process group
# The collectives of a gathered loss, forward and backward, in the order in which they come.
PLACES = {"handshake": "_all_gather_even", "gather": "_all_gather", "backward": "_reduce_scatter"}


def _rank(rank: int, store: str, place: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, 3), rank=rank, world_size=3, timeout=timedelta(seconds=_TIMEOUT)
    )
    x, y = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    mc.pairwise_infonce(x, y, 0.1, gather=True).backward()  # all are well
    if rank == 1:
        setattr(distributed, PLACES[place], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    begun = time.monotonic()
    try:
        mc.pairwise_infonce(x, y, 0.1, gather=True).backward()
    except RuntimeError as error:
        answers.put((rank, time.monotonic() - begun, str(error)))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_is_killed_ends_the_others_within_the_timeout(place: str) -> None:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["multicontrast"])
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [context.Process(target=_rank, args=(rank, store, place, answers)) for rank in range(3)]
        for process in processes:
            process.start()
        found = sorted(answers.get(timeout=300) for _ in range(2))
        for process in processes:
            process.join()
    assert [rank for rank, _, _ in found] == [0, 2]
    assert processes[1].exitcode == -signal.SIGKILL
    for rank, seconds, message in found:
        assert message.startswith("`pairwise_infonce` needs every rank of the group"), message
        assert f"no answer from one of them on rank {rank} of 3" in message
        assert "How long to wait is the `timeout`" in message
        assert seconds < 3 * _TIMEOUT
