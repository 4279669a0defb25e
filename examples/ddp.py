"""`plain.py` over ranks. Each has a part of the batch, and training equals that of one process with the whole batch.

torchrun --nproc-per-node 2 examples/ddp.py
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from plain import batches, encoder
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import multicontrast as mc


class Model(nn.Module):
    """Encoders and loss in one module, so that DistributedDataParallel also averages the temperature's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoder() for _ in range(3))
        # All ranks draw the same negatives, because their generators start in the same state.
        self.loss = mc.TrimodalInfoNCE(0.07, gather=True, generator=torch.Generator().manual_seed(0))

    def forward(self, *views: Tensor) -> Tensor:
        return self.loss(*(encode(view) for encode, view in zip(self.encoders, views)))


def main() -> None:
    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"

    torch.manual_seed(0)
    model = Model().to(device)
    trained = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.AdamW(
        [{"params": model.encoders.parameters()}, {"params": model.loss.parameters(), "weight_decay": 0.0}], lr=3e-3
    )
    for views in batches(20):
        own = [view.tensor_split(world)[rank].to(device) for view in views]  # you would use a DistributedSampler
        value = trained(*own)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    if dist.is_initialized():
        dist.all_reduce(value)  # the mean over the ranks is the loss of the whole batch
        value = value.detach() / world
    if rank == 0:
        print(f"{world} ranks: loss {value.item():.4f}, tau {model.loss.temperature.tau.item():.5f}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
