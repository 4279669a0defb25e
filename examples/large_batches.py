"""A large batch in little memory, over ranks: `cached_step` encodes in chunks, and a ring exchanges candidates.

torchrun --nproc-per-node 2 examples/large_batches.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from plain import batches, encoder
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import multicontrast as mc


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    encoders = nn.ModuleList(encoder() for _ in range(3))
    loss = mc.TrimodalInfoNCE(0.07, negatives="tied", gather=True, ring=True)
    optimizer = torch.optim.AdamW(
        [{"params": encoders.parameters()}, {"params": loss.parameters(), "weight_decay": 0.0}], lr=3e-3
    )
    # Each encoder is averaged once in a step, however many chunks it sees.
    parts, averaged = [DistributedDataParallel(encode) for encode in encoders], DistributedDataParallel(loss)
    for views in batches(10, size=512):
        own = [view.tensor_split(world)[rank] for view in views]
        optimizer.zero_grad()
        value = mc.cached_step(parts, own, averaged, chunk_size=64)
        optimizer.step()

    dist.all_reduce(value)
    if rank == 0:
        print(f"{world} ranks: loss {value.item() / world:.4f}, tau {loss.temperature.tau.item():.5f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
