"""Lightning: the loss is a submodule, so checkpoints, devices and precision include it.

python examples/with_lightning.py
"""

from __future__ import annotations

import lightning as L
import torch
from plain import batches, encoder
from torch import Tensor, nn
from torch.utils.data import DataLoader

import multicontrast as mc


class Alignment(L.LightningModule):
    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoders = nn.ModuleList(encoder() for _ in range(3))
        self.loss = mc.TrimodalInfoNCE(mc.Temperature(0.07, min=0.01), negatives="cyclic", gather=True)
        self.recall = mc.metrics.RetrievalRecall(k=1)

    def forward(self, *views: Tensor) -> list[Tensor]:
        return [encode(view) for encode, view in zip(self.encoders, views)]

    def training_step(self, views: tuple[Tensor, ...]) -> Tensor:
        value = self.loss(*self(*views))  # computes in float32 under every `precision`
        self.log("loss", value)
        self.log("tau", self.loss.temperature.tau)
        return value

    def validation_step(self, views: tuple[Tensor, ...]) -> None:
        image, audio, _ = self(*views)
        self.recall.update(image, audio)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.recall.compute())  # over all batches; the mean of their recalls is higher
        self.recall.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": self.encoders.parameters(), "weight_decay": 0.01},
            {"params": self.loss.parameters(), "weight_decay": 0.0},  # decay would pull tau to 1
        ]
        return torch.optim.AdamW(groups, lr=self.hparams.learning_rate)


def trainer(**options: object) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=1, **(quiet | options))


def main(precision: str = "bf16-mixed") -> tuple[Alignment, float]:
    L.seed_everything(0)
    module = Alignment()
    fitted = trainer(precision=precision)
    train, validation = (DataLoader(list(batches(count)), batch_size=None) for count in (60, 2))
    fitted.fit(module, train, validation)
    recall = float(fitted.callback_metrics["recall@1"])
    print(f"precision {precision}: tau {module.loss.temperature.tau.item():.4f}, recall at 1 {recall:.2f}")
    return module, recall


if __name__ == "__main__":
    main()
