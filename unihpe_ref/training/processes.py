"""The processes of ``torchrun``, which share each batch.

Gradients are averaged once per step, in one message, after the last micro-batch. DistributedDataParallel would need
exactly one call of the whole model and one backward pass in each step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Joins the process group if ``torchrun`` started this process; yields the process's own device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Waits for all processes."""
    if count() > 1:
        dist.barrier()


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Averages each gradient over the processes."""
    if count() > 1:
        _average([parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def average(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The means over processes of numbers by name."""
    if count() == 1:
        return values
    copies = {name: value.detach().clone() for name, value in values.items()}
    _average(list(copies.values()))
    return copies


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Copies the running statistics of process 0 to all, because each process gathers its own."""
    if count() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _average(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    pieces = (flat / count()).split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors)])
