"""Hugging Face Accelerate: one model holds encoders and loss, and `prepare` accepts it like any other.

accelerate launch examples/with_accelerate.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from ddp import Model
from plain import batches


def main() -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rank, world = accelerator.process_index, accelerator.num_processes

    torch.manual_seed(0)
    model = Model()  # its loss has gather=True: over all ranks, or alone without a process group
    optimizer = torch.optim.AdamW(
        [{"params": model.encoders.parameters()}, {"params": model.loss.parameters(), "weight_decay": 0.0}], lr=3e-3
    )
    trained, optimizer = accelerator.prepare(model, optimizer)
    for views in batches(20):
        own = [view.tensor_split(world)[rank].to(accelerator.device) for view in views]
        with accelerator.autocast():
            value = trained(*own)
        optimizer.zero_grad()
        accelerator.backward(value)
        optimizer.step()

    mean = gather(value.detach().reshape(1)).mean().item()
    accelerator.print(f"{world} ranks: loss {mean:.4f}, tau {model.loss.temperature.tau.item():.5f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
