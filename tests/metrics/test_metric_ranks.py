"""Two ranks, uneven, one of them empty at times, equal one process."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from multicontrast import metrics

ITEMS = 11


def batches():
    generator = torch.Generator().manual_seed(0)
    target = 300 * torch.randn(ITEMS, 17, 3, generator=generator, dtype=torch.float64)
    pred = target + 60 * torch.randn(ITEMS, 17, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(ITEMS, 17, generator=generator) > 0.2
    mask[4] = False
    action = [("Walking", "Eating", "Posing")[i % 3] for i in range(ITEMS)]
    return pred, target, mask, action


def make():
    return {
        "MPJPE": metrics.MPJPE(root=0),
        "PAMPJPE": metrics.PAMPJPE(),
        "PCK3D": metrics.PCK3D(average="macro"),
        "CPS": metrics.CPS(),
        "ids": metrics.EPE(),
        "retrieval": metrics.RetrievalRecall(k=(1, 3)),
        "alignment": metrics.ModalityAlignment(),
        "report": metrics.PoseReport(examples=4),
    }


def take(made, rows, repeated=()):
    """The rows of this rank; those with ids also get repeats, as a sampler pads them."""
    pred, target, mask, action = batches()
    for name in ("MPJPE", "PAMPJPE", "PCK3D", "CPS"):
        made[name].update(pred[rows], target[rows], mask=mask[rows])
    padded = [*rows, *repeated]
    made["ids"].update(pred[padded], target[padded], mask=mask[padded], ids=padded)
    flat = pred.flatten(1)[rows], target.flatten(1)[rows]
    made["retrieval"].update(*flat)
    made["alignment"].update(list(flat))
    made["report"].update(pred[rows], target[rows], mask=mask[rows], action=[action[i] for i in rows])


def results(made):
    found = {name: made[name].compute() for name in ("MPJPE", "PAMPJPE", "PCK3D", "CPS", "ids")}
    found |= {f"retrieval {name}": value for name, value in made["retrieval"].compute().items()}
    found |= {f"alignment {name}": value for name, value in made["alignment"].compute().items()}
    report = made["report"].compute()
    found["report"] = torch.tensor([report["MPJPE"].frame_mean, report["PA-MPJPE"].action_mean, *report.curve])
    found["best"] = torch.tensor(report.examples.errors[0])
    found["counts"] = torch.tensor([report.items, report.hidden])
    return found


def rank_main(rank: int, folder: str, split: list[list[int]], repeated: list[list[int]]) -> None:
    try:
        store = dist.FileStore(str(Path(folder) / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        torch.set_num_threads(1)
        made = make()
        take(made, split[rank], repeated[rank])
        torch.save(results(made), Path(folder) / f"{rank}.pt")
        # one metric that no rank has fed, and one that differs
        assert metrics.MPJPE().compute().isnan()
        with pytest.raises(ValueError, match="one metric on all ranks"):
            metrics.MPJPE(root=rank).compute()
        local = metrics.MPJPE(sync_on_compute=False)
        if split[rank]:
            pred, target, _, _ = batches()
            local.update(pred[split[rank]], target[split[rank]])
            expected = metrics.mpjpe(pred[split[rank]], target[split[rank]])
            torch.testing.assert_close(local.compute(), expected)
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)


@pytest.mark.parametrize(
    ("split", "repeated"),
    [([list(range(8)), [8, 9, 10]], [[], [0, 1, 2]]), ([list(range(11)), []], [[], []])],
    ids=["uneven", "one empty"],
)
def test_two_ranks_equal_one_process(split, repeated, tmp_path):
    try:
        mp.spawn(rank_main, args=(str(tmp_path), split, repeated), nprocs=2)
    except mp.ProcessExitedException:
        pytest.fail("\n".join(report.read_text() for report in sorted(tmp_path.glob("error*.txt"))))
    single = make()
    take(single, list(range(ITEMS)))
    expected = results(single)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name  # the same bits on both ranks
        torch.testing.assert_close(first[name], value, rtol=1e-13, atol=1e-12, msg=name)
