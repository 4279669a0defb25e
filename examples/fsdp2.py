"""Sharded encoders (FSDP2). The loss stays outside, because FSDP2 cannot shard its temperature, a single number.

torchrun --nproc-per-node 2 examples/fsdp2.py
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from plain import batches, encoder
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import multicontrast as mc


def main() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh(kind, (int(os.environ["WORLD_SIZE"]),))
    rank, world = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    encoders = nn.ModuleList(encoder() for _ in range(3)).to(kind)
    for encode in encoders:
        fully_shard(encode, mesh=mesh)  # averages its gradients over the ranks, as DistributedDataParallel does
    loss = mc.TrimodalInfoNCE(0.07, gather=True, generator=torch.Generator().manual_seed(0)).to(kind)
    averaged = DistributedDataParallel(loss)
    optimizer = torch.optim.AdamW(
        [{"params": encoders.parameters()}, {"params": loss.parameters(), "weight_decay": 0.0}], lr=3e-3, foreach=False
    )
    for views in batches(20):
        own = [view.tensor_split(world)[rank].to(kind) for view in views]
        value = averaged(*(encode(view) for encode, view in zip(encoders, own)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    dist.all_reduce(value)
    if rank == 0:
        print(f"{world} ranks: loss {value.item() / world:.4f}, tau {loss.temperature.tau.item():.5f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
