"""If a rank is killed during a loss, the others raise an error that names the rank and the loss."""

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
from multicontrast import _lost_ranks, distributed
from multicontrast.losses import streamed

_TIMEOUT = 60  # seconds of the process group
RANKS = 4
# What a gathered loss waits for, forward and backward, in the order in which it comes.
PLACES = {
    "handshake": (distributed, "_all_gather_even", {}),
    "gather": (distributed, "_all_gather", {}),
    "gather, seen from another machine": (distributed, "_all_gather", {}),
    "backward": (distributed, "_reduce_scatter", {}),
    "ring": (streamed, "_tiles", {"ring": True}),
    "backward ring": (streamed, "_tiles", {"ring": True}),
}


def _rank(rank: int, store: str, place: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS, timeout=timedelta(seconds=_TIMEOUT)
    )
    room, name, options = PLACES[place]
    if rank == 3 and "another machine" in place:
        _lost_ranks._machine = lambda: 7  # to which the others leave word
    x, y = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    mc.pairwise_infonce(x, y, 0.1, gather=True, **options).backward()  # all are well
    begun = time.monotonic()
    try:
        loss = None
        for step in ("forward", "backward"):
            if rank == 1 and (step == "backward") == place.startswith("backward"):
                setattr(room, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            loss = mc.pairwise_infonce(x, y, 0.1, gather=True, **options) if loss is None else loss.backward()
    except RuntimeError as error:
        answers.put((rank, time.monotonic() - begun, str(error)))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_is_killed_ends_the_others_within_the_timeout(place: str) -> None:
    context = mp.get_context("forkserver")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [context.Process(target=_rank, args=(rank, store, place, answers)) for rank in range(RANKS)]
        for process in processes:
            process.start()
        found = sorted(answers.get(timeout=300) for _ in range(RANKS - 1))
        for process in processes:
            process.join()
    assert [rank for rank, _, _ in found] == [0, 2, 3]
    assert processes[1].exitcode == -signal.SIGKILL
    for rank, seconds, message in found:
        assert message.startswith("`pairwise_infonce` needs every rank of the group"), message
        assert f"; got no answer from rank 1, which has ended, on rank {rank} of {RANKS} (" in message
        assert "How long to wait is the `timeout`" in message
        assert seconds < _TIMEOUT / 2
