"""Training over ranks: DistributedDataParallel and the cached step have the gradients of one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import multicontrast as mc

TOTAL = 9


class Model(nn.Module):
    """Three encoders and the loss, whose temperature is a parameter like any other."""

    def __init__(self, gather: Any, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 5)) for _ in range(3)
        )
        self.loss = mc.TrimodalInfoNCE(
            mc.Temperature(0.3, min=0.1), gather=gather, generator=torch.Generator().manual_seed(2)
        )
        self.double()

    def forward(self, *xs: Tensor) -> Tensor:
        return self.loss(*(encoder(x) for encoder, x in zip(self.encoders, xs)))


def batch() -> Tensor:
    return torch.randn(3, TOTAL, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def own_rows(group: Any, split: list[int]) -> Tensor:
    return batch().split(split, dim=1)[dist.get_rank(group)]


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same_to_its_type(got: Tensor, wanted: Tensor) -> None:
    """To 1e-9 in float64; the temperature is a float32 parameter."""
    tolerance = 1e-9 if wanted.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def train(model: nn.Module, inner: Model, inputs: Tensor) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(*inputs).backward()
        optimizer.step()
    return values(inner)


def train_in_parallel(group: Any, split: list[int]) -> list[Tensor]:
    inner = Model(group)
    return train(DistributedDataParallel(inner, process_group=group), inner, own_rows(group, split))


@pytest.mark.parametrize("split", [[4, 5], [3, 0, 6]], ids=str)
def test_three_steps_of_ddp_end_where_one_process_ends(pool, split):
    single = Model(False)
    expected = train(single, single, batch())
    for found in pool.run(train_in_parallel, split, ranks=len(split)):
        for got, wanted in zip(found, expected):  # a rounding of tau, which is float32, reaches the others
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def cached_in_parallel(
    group: Any, split: list[int], chunk_size: int, dropout: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the plain step (dropout drawn in the same chunks) and of the cached one, both by DDP."""
    inputs = own_rows(group, split)
    results = []
    for cached in (False, True):
        model = Model(group, dropout)
        parts = [DistributedDataParallel(encoder, process_group=group) for encoder in model.encoders]
        loss = DistributedDataParallel(model.loss, process_group=group)
        torch.manual_seed(7 + dist.get_rank(group))
        if cached:
            mc.cached_step(parts, list(inputs), loss, chunk_size=chunk_size)
        else:
            state = copy.deepcopy(model.encoders)
            embeddings = [torch.cat([e(x) for x in xs.split(chunk_size)]) for e, xs in zip(state, inputs)]
            loss(*embeddings).backward()
            for encoder, twin in zip(model.encoders, state):
                for parameter, other in zip(encoder.parameters(), twin.parameters()):
                    parameter.grad = other.grad
                    dist.all_reduce(parameter.grad, group=group)
                    parameter.grad /= dist.get_world_size(group)
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    return tuple(results)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_cached_step_under_ddp_synchronises_once_and_is_the_plain_step(pool, dropout):
    found = pool.run(cached_in_parallel, [2, 7], 3, dropout, ranks=2)
    for plain, cached in found:
        for got, wanted in zip(cached, plain):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)
    for first, second in zip(found[0][1], found[1][1]):
        assert torch.equal(first, second)
    if dropout == 0:
        single = Model(False)
        single(*batch()).backward()
        for got, parameter in zip(found[0][1], single.parameters()):
            assert_same_to_its_type(got, parameter.grad)


def cached_with_an_empty_rank(group: Any) -> list[Tensor]:
    model = Model(group)
    parts = [DistributedDataParallel(encoder, process_group=group) for encoder in model.encoders]
    loss = DistributedDataParallel(model.loss, process_group=group)
    mc.cached_step(parts, list(own_rows(group, [0, TOTAL])), loss, chunk_size=4)
    return [parameter.grad for parameter in model.parameters()]


def test_the_cached_step_with_an_empty_rank(pool):
    single = Model(False)
    single(*batch()).backward()
    for found in pool.run(cached_with_an_empty_rank, ranks=2):
        for got, parameter in zip(found, single.parameters()):
            assert_same_to_its_type(got, parameter.grad)
