"""The differentiable all-gather, the handshake before it, and missing ranks."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

import multicontrast as mc
from multicontrast.distributed import Handshake, Ranks, gather_rows

SPLITS = [(3, [3, 5, 2]), (3, [4, 0, 4]), (2, [3, 5]), (2, [4, 4]), (1, [6])]


def rows_of(total: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(total, *shape, dtype=dtype, generator=torch.Generator().manual_seed(7))


def local(x: torch.Tensor, split: list[int], group: object) -> torch.Tensor:
    return x.split(split)[dist.get_rank(group)].clone()


def function_of(x: torch.Tensor, rank: int) -> torch.Tensor:
    """Some function of all rows, another one on each rank."""
    weights = torch.linspace(1, 2, x.numel(), dtype=x.dtype).view(x.shape) * (rank + 1)
    return (weights * x.sin()).sum() * x.square().sum()


def first_and_second(group, split, shape):
    whole = rows_of(sum(split), *shape)
    x = local(whole, split, group).requires_grad_()
    gathered = gather_rows(x, group)
    assert torch.equal(gathered, whole)
    (grad,) = torch.autograd.grad(function_of(gathered, dist.get_rank(group)), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.pow(3).sum(), x)
    return grad.detach(), second


@pytest.mark.parametrize(("ranks", "split"), SPLITS)
@pytest.mark.parametrize("shape", [(4,), (), (2, 3)])
def test_gradients_sum_over_the_ranks(pool, ranks, split, shape):
    x = rows_of(sum(split), *shape).requires_grad_()
    total = sum(function_of(x, rank) for rank in range(ranks))
    (grad,) = torch.autograd.grad(total, x, create_graph=True)
    (second,) = torch.autograd.grad(grad.pow(3).sum(), x)
    found = pool.run(first_and_second, split, shape, ranks=ranks)
    torch.testing.assert_close(torch.cat([first for first, _ in found]), grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([second for _, second in found]), second, rtol=1e-12, atol=1e-12)


def half_precision(group, split):
    x = local(rows_of(sum(split), 3, dtype=torch.float32), split, group).bfloat16().requires_grad_()
    gathered = gather_rows(x, group)
    assert gathered.dtype == torch.float32
    gathered.sum().backward()
    return x.detach(), gathered.detach(), x.grad


def test_half_precision_is_gathered_exactly_and_summed_in_float32(pool):
    found = pool.run(half_precision, [3, 5, 2])
    whole = torch.cat([x for x, _, _ in found])
    for _, gathered, grad in found:
        assert torch.equal(gathered, whole.float())
        assert grad.dtype == torch.bfloat16
        assert torch.equal(grad, torch.full_like(grad, 3))


def values_of_many_types(group, split):
    rank, total = dist.get_rank(group), sum(split)
    ranks = Ranks(group, rank, tuple(split))
    present = rows_of(total, 3) > 0
    ids = torch.arange(total) * 2**40 - 7
    weight = rows_of(total, dtype=torch.float32)
    mine = [x.split(split)[rank] for x in (present, ids, weight)]
    for got, expected in zip(ranks.gather_values(*mine), (present, ids, weight)):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("ranks", "split"), SPLITS)
def test_values_of_any_type_come_as_they_are(pool, ranks, split):
    pool.run(values_of_many_types, split, ranks=ranks)


def meet(group, case):
    """What each rank hears: the type and words of its error, or the counts."""
    rank = dist.get_rank(group)
    x = torch.randn(2, 4, requires_grad=case == "gradient" and rank == 1)
    operation, generator = "a_loss", None
    if case == "empty":
        x = x[:0]
    if case == "type" and rank == 2:
        x = x.double()
    if case == "dimension" and rank == 0:
        x = x[:, :3]
    if case == "loss" and rank == 1:
        operation = "another_loss"
    if case == "generator":
        generator = torch.Generator().manual_seed(rank // 2)
    try:
        with Handshake(operation, group) as meeting:
            if case == "raises" and rank == 1:
                raise TypeError("`x` was no tensor; got 'ä'. " + "Mend it. " * 100)
            ranks = meeting.exchange([x], None, {"options": case == "options" and rank == 1}, generator, draws=True)
    except (ValueError, TypeError, RuntimeError) as error:
        return type(error).__name__, str(error)
    return ranks.counts, ranks.seed


REFUSED = {
    "gradient": "same inputs that require a gradient on all ranks; got one that differs from rank 0's on rank 1",
    "empty": "at least one row on one of the ranks; got none on any of 3",
    "type": "same type of the embeddings on all ranks; got one that differs from rank 0's on rank 2",
    "dimension": "same dimension of the embeddings on all ranks; got one that differs from rank 0's on rank 1, 2",
    "loss": "same loss on all ranks; got one that differs from rank 0's on rank 1",
    "generator": "same state of the generator on all ranks; got one that differs from rank 0's on rank 2",
    "options": "same options on all ranks",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_differs_between_ranks_raises_on_all_of_them(pool, case):
    for kind, words in pool.run(meet, case):
        assert kind == "ValueError"
        assert REFUSED[case] in words
        assert re.search(r"; got .+\. ", words), "three beats"


def test_a_rank_that_raises_is_heard_of_and_keeps_its_own_error(pool):
    first, raising, third = pool.run(meet, "raises")
    assert raising[0] == "TypeError"
    for kind, words in (first, third):
        assert kind == "RuntimeError"
        assert "got an error on rank 1 of the group: `x` was no tensor; got 'ä'" in words
    # and the next meeting is undisturbed
    found = pool.run(meet, "fine")
    assert [counts for counts, _ in found] == [(2, 2, 2)] * 3
    assert len({seed for _, seed in found}) == 1


def skip_on_rank_2(_):
    patient = dist.new_group([0, 1, 2], timeout=timedelta(seconds=1))
    if dist.get_rank() == 2:
        return None
    with pytest.raises(RuntimeError, match=r"to call it; got no answer from rank 2 on rank . of 3 .*see its log"):
        gather_rows(torch.ones(2, 3), patient)
    return True


def test_a_rank_that_never_comes_is_an_error_after_the_timeout_of_the_group(pool):
    assert pool.run(skip_on_rank_2) == [True, True, None]


def test_without_a_process_group_it_is_one_process():
    x = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(gather_rows(x), x)
    assert gather_rows(x.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.ones(2, dtype=torch.int64),), TypeError, "`x` to hold real floating-point numbers"),
        ((torch.ones(()),), ValueError, "`gather_rows` needs rows"),
        ((torch.ones(2), "all"), TypeError, "`gather` to be True, False or a process group; got 'all'"),
    ],
)
def test_bad_arguments_raise_in_words(arguments, error, words):
    with pytest.raises(error, match=words):
        mc.distributed.gather_rows(*arguments)
