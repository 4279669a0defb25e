"""torchmetrics: our metric classes are its metrics, so its collections and wrappers and Lightning's `self.log` work.

python examples/with_torchmetrics.py
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.wrappers import BootStrapper, Running

from multicontrast import metrics


def poses(count: int = 100) -> tuple[Tensor, Tensor]:
    """Predictions 30 mm off in each coordinate, and the truth, `(count, 17, 3)` in millimetres."""
    generator = torch.Generator().manual_seed(0)
    target = 300 * torch.randn(count, 17, 3, generator=generator)
    return target + 30 * torch.randn(count, 17, 3, generator=generator), target


def in_wrappers(pred: Tensor, target: Tensor) -> Mapping[str, Tensor]:
    collection = MetricCollection(
        {"mpjpe": metrics.MPJPE(root=0), "pa_mpjpe": metrics.PAMPJPE(), "pck": metrics.PCK3D()}, prefix="val_"
    )
    latest = Running(metrics.MPJPE(root=0), window=2)  # over the last two batches
    spread = BootStrapper(metrics.MPJPE(root=0), num_bootstraps=50)  # mean and standard deviation
    for batch in zip(pred.split(32), target.split(32)):  # the last batch is shorter and counts less
        collection.update(*batch)
        latest.update(*batch)
        spread.update(*batch)
    return {**collection.compute(), "latest": latest.compute(), **spread.compute()}


def in_lightning(pred: Tensor, target: Tensor) -> Mapping[str, Tensor]:
    import lightning as L

    class Lifter(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.lift = nn.Linear(2, 3)  # your model
            self.error = metrics.MPJPE(root=0)
            self.errors = MetricCollection({"pa_mpjpe": metrics.PAMPJPE(), "pck": metrics.PCK3D()}, prefix="val_")

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            pred, target = batch  # in place of `self.lift(joints_2d)`
            self.error.update(pred, target)
            self.errors.update(pred, target)
            self.log("val_mpjpe", self.error)  # log the object, so that the epoch's value covers all frames and ranks
            self.log_dict(self.errors)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, **quiet)
    batches = DataLoader(TensorDataset(pred, target), batch_size=32)
    (logged,) = trainer.validate(Lifter(), batches, verbose=False)
    return logged


def main() -> dict[str, Mapping[str, Tensor]]:
    results = {"wrappers": in_wrappers(*poses())}
    if importlib.util.find_spec("lightning") is not None:
        results["lightning"] = in_lightning(*poses())
    for name, values in results.items():
        print(name, " ".join(f"{key} {float(value):.2f}" for key, value in values.items()))
    return results


if __name__ == "__main__":
    main()
