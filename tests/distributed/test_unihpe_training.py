"""Three processes that share the batches of a run get the gradients and the result of one process."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tests.distributed.pool import Pool

sys.path.append(str(Path(__file__).resolve().parents[1] / "unihpe"))

CASES: dict[str, dict[str, Any]] = {  # batches of 8, 6 and 6 unless said
    "images": {},
    "cached, uneven": {
        "model.image_encoder": "none",
        "stage1.accumulate": 3,
        "stage3.accumulate": 2,
        "stage3.batch_size": 10,
    },
}


def eye(config: Any) -> nn.Module | None:
    """Instead of an image encoder: without BatchNorm, and without the seconds that timm takes in every process."""
    if config.image_encoder == "none":
        return None
    return nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, config.embedding_dim)
    )


def train(changes: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The weights and the records of a short run without dropout, by plain gradient descent.

    Adam would divide a rounding error by itself wherever a gradient is nearly zero.
    """
    from small import SMALL, small_motion

    from unihpe_ref.models import unihpe
    from unihpe_ref.runs import train_model
    from unihpe_ref.training import loop

    records: list[dict[str, float]] = []

    class Kept:
        def begin_stage(self, *_: Any) -> None: ...
        def end_stage(self) -> None: ...

        def step(self, step: int, record: Any) -> None:
            records.append(dict(record))

    def descent(model: Any, stage: Any) -> torch.optim.Optimizer:
        parameters = [p for part in stage.trained(model) for p in part.parameters()]
        return torch.optim.SGD([*parameters, *stage.temperature.parameters()], lr=0.1)

    still = {"model.encoder_dropout": 0.0, "model.decoder_dropout": 0.0}
    still |= {f"stage{k}.{name}": value for k in (1, 2, 3) for name, value in (("clip", 1e6), ("warmup_steps", 0))}
    still |= {f"stage{k}.learning_rate": 0.02 for k in (1, 2, 3)}
    config = SMALL.override(**still).override(**changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", descent)
        patch.setattr(unihpe, "_image_encoder", eye)
        model = train_model(config, small_motion(seconds=2.0), Kept(), torch.device("cpu"))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, records


def shared(group: Any, changes: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    return train(changes)


@pytest.mark.parametrize("case", CASES)
def test_processes_train_as_one(case: str, pool: Pool) -> None:
    weights, records = train(CASES[case])
    start = train({**CASES[case], "stage1.steps": 0, "stage2.steps": 0, "stage3.steps": 0})[0]
    assert sum(not torch.equal(weights[name], start[name]) for name in weights) > len(weights) / 2  # it moved
    for other_weights, other_records in pool.run(shared, CASES[case]):
        for name, tensor in weights.items():
            torch.testing.assert_close(other_weights[name], tensor, rtol=1e-4, atol=2e-6, msg=name)
        for one, other in zip(records, other_records):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_a_run_of_several_processes_leaves_one_folder(pool: Pool, tmp_path: Path) -> None:
    results = pool.run(run_in, str(tmp_path))
    assert results == [True, False, False]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "log.jsonl", "config.json", "environment.json", "evaluation.json"} <= names
    assert "checkpoints" not in names


def run_in(group: Any, folder: str) -> bool:
    """Whether this process has the results."""
    from small import POSES_ONLY

    from unihpe_ref.applications.run import run

    return run(POSES_ONLY, Path(folder), Console(file=io.StringIO()), torch.device("cpu")) is not None
