"""Two uneven ranks, one sometimes empty, equal one process, on torchmetrics' base and ours."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from metric_bases import available, on

from multicontrast import metrics

ITEMS = 11
# The rows of each rank, and those that a sampler repeats to fill the last batch, which have ids.
SPLITS = {
    "uneven": ([list(range(8)), [8, 9, 10]], [[], [0, 1, 2]]),
    "one empty": ([list(range(11)), []], [[], []]),
}


def batches():
    generator = torch.Generator().manual_seed(0)
    target = 300 * torch.randn(ITEMS, 17, 3, generator=generator, dtype=torch.float64)
    pred = target + 60 * torch.randn(ITEMS, 17, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(ITEMS, 17, generator=generator) > 0.2
    mask[4] = False
    return pred, target, mask


def results(classes, rows, repeated=()):
    """What the classes give for these rows, over all ranks."""
    pred, target, mask = batches()
    made = {
        "MPJPE": classes.MPJPE(root=0),
        "PAMPJPE": classes.PAMPJPE(),
        "PCK3D": classes.PCK3D(average="macro"),
        "CPS": classes.CPS(),
    }
    for metric in made.values():
        if rows:
            metric.update(pred[rows], target[rows], mask=mask[rows])
    once = made["ids"] = classes.EPE()
    padded = [*rows, *repeated]
    once.update(pred[padded], target[padded], mask=mask[padded], ids=padded)
    grouped = made["groups"] = classes.MPJPE(groups=["a", "b", "c"])
    grouped.update(pred[rows], target[rows], mask=mask[rows], group=["abc"[i % 3] for i in rows])
    search, agreement = classes.RetrievalRecall(k=(1, 3)), classes.ModalityAlignment()
    flat = pred.flatten(1)[rows], target.flatten(1)[rows]
    search.update(*flat)
    agreement.update(list(flat))
    found = {name: metric.compute() for name, metric in made.items()}
    found |= {f"retrieval {name}": value for name, value in search.compute().items()}
    found |= {f"alignment {name}": value for name, value in agreement.compute().items()}
    report = grouped.report()
    found |= {"action mean": report.action_mean, "counts": torch.tensor([*report.items.values(), report.hidden])}
    local = grouped.clone()
    local.merge(grouped)  # what was gathered is not kept: each rank still holds its own
    torch.testing.assert_close(local.compute(), found["groups"])
    return found


def rank_main(rank: int, folder: str) -> None:
    warnings.filterwarnings("ignore", message=".*before the ``update``")
    try:
        store = dist.FileStore(str(Path(folder) / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        torch.set_num_threads(1)
        found = {}
        pred, target, _ = batches()
        for base in available():
            classes = on(base)
            for name, (split, repeated) in SPLITS.items():
                found[base, name] = results(classes, split[rank], repeated[rank])
            assert classes.MPJPE().compute().isnan()  # one that no rank has fed
            with pytest.raises(ValueError, match="one metric on all ranks"):
                classes.MPJPE(root=rank).compute()
            shorter = classes.MPJPE()
            shorter.update(pred[:, rank:], target[:, rank:])
            with pytest.raises(ValueError, match="one number of joints"):
                shorter.compute()
            local = classes.MPJPE(sync_on_compute=False)
            local.update(pred[rank:], target[rank:])
            torch.testing.assert_close(local.compute(), metrics.mpjpe(pred[rank:], target[rank:]))
            grouped = classes.MPJPE(process_group=dist.new_group([0, 1])).clone()
            grouped.update(pred[rank::2], target[rank::2])
            torch.testing.assert_close(grouped.compute(), metrics.mpjpe(pred, target))
        torch.save(found, Path(folder) / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)


def test_two_ranks_equal_one_process(tmp_path):
    try:
        # Forked where that can be done: two fresh processes import for as long as all else takes.
        method = "fork" if os.name == "posix" and sys.platform != "darwin" else "spawn"
        mp.start_processes(rank_main, args=(str(tmp_path),), nprocs=2, start_method=method)
    except mp.ProcessExitedException:
        pytest.fail("\n".join(report.read_text() for report in sorted(tmp_path.glob("error*.txt"))))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for base in available():
        expected = results(on(base), list(range(ITEMS)))
        for split in SPLITS:
            for name, value in expected.items():
                ours, theirs = first[base, split][name], second[base, split][name]
                assert torch.equal(ours, theirs), name  # the same bits on both ranks
                torch.testing.assert_close(ours, value, rtol=1e-13, atol=1e-12, msg=f"{base}, {split}: {name}")
