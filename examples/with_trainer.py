"""Hugging Face Trainer: a model that returns its loss, and an optimizer without weight decay for the temperature.

python examples/with_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from plain import batches, encoder
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import multicontrast as mc


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoder() for _ in range(3))
        self.loss = mc.TrimodalInfoNCE(mc.Temperature(0.07, min=0.01), negatives="cyclic", gather=True)

    def forward(self, image: Tensor, audio: Tensor, text: Tensor) -> dict[str, Tensor]:
        rows = [encode(view) for encode, view in zip(self.encoders, (image, audio, text))]
        return {"loss": self.loss(*rows)}


class Samples(Dataset):
    def __init__(self, count: int) -> None:
        views = next(batches(1, size=count))
        self.rows = [dict(zip(("image", "audio", "text"), sample)) for sample in zip(*views)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def optimizer(model: nn.Module, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    """By default Trainer decays everything except biases and norms, so it would decay the temperature."""
    return torch.optim.AdamW(mc.param_groups(model, weight_decay), lr=3e-3)


def main(steps: int = 60) -> tuple[Model, float]:
    torch.manual_seed(0)
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=64, report_to=[], save_strategy="no", use_cpu=True,
            dataloader_drop_last=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Samples(1024), optimizers=(optimizer(model), None))
        value = trainer.train().training_loss
    print(f"mean loss {value:.3f}, tau {model.loss.temperature.tau.item():.4f}")
    return model, value


if __name__ == "__main__":
    main()
