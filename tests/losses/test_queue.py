"""The memory queue: the latest samples, first in first out, in the state, without a gradient."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multicontrast as mc


@given(st.integers(1, 7), st.lists(st.integers(0, 9), max_size=6))
def test_it_holds_the_last_samples(size, batches):
    queue = mc.MemoryQueue(size, 1, num_modalities=3)
    told = []
    for number in batches:
        new = [float(len(told) + k + 1) for k in range(number)]
        told += new
        queue.push([m * 100 + torch.tensor(new).view(-1, 1) for m in range(3)])
    assert len(queue) == min(size, len(told))
    for m, rows in enumerate(queue()):
        assert sorted(rows.flatten().tolist()) == [m * 100 + value for value in told[-size:]]


def test_the_state_moves_with_the_module():
    queue = mc.MemoryQueue(5, 2)
    queue.push([torch.ones(3, 2), 2 * torch.ones(3, 2)])
    other = mc.MemoryQueue(5, 2)
    other.load_state_dict(queue.state_dict())
    for twin in (other, copy.deepcopy(queue)):
        assert len(twin) == 3
        assert all(torch.equal(a, b) for a, b in zip(twin(), queue()))
        twin.push([torch.zeros(4, 2)] * 2)
        assert len(twin) == 5
    assert len(queue) == 3
    queue.clear()
    assert len(queue) == 0
    assert queue()[0].shape == (0, 2)


def test_a_loss_with_a_queue_has_that_many_more_negatives_and_no_gradient_to_them():
    generator = torch.Generator().manual_seed(0)
    x, y, u, v = (torch.randn(4, 8, generator=generator, requires_grad=True) for _ in range(4))
    queue = mc.MemoryQueue(6, 8)
    assert torch.equal(mc.pairwise_infonce(x, y, 0.2, extra_negatives=queue()), mc.pairwise_infonce(x, y, 0.2))
    queue.push([u, v])
    loss = mc.pairwise_infonce(x, y, 0.2, extra_negatives=queue())
    torch.testing.assert_close(loss, mc.pairwise_infonce(x, y, 0.2, extra_negatives=[u.detach(), v.detach()]))
    queue.push([x, y])  # before the backward pass, which must not notice
    loss.backward()
    assert u.grad is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0, 2), ValueError, "`size` >= 1; got 0"),
        ((2, 2.0), TypeError, "`dim` to be an int; got 2.0"),
        ((2, 2, 1), ValueError, "`num_modalities` >= 2; got 1"),
    ],
)
def test_impossible_queues(arguments, error, words):
    with pytest.raises(error, match=words):
        mc.MemoryQueue(*arguments)


@pytest.mark.parametrize(
    ("embeddings", "error", "words"),
    [
        (torch.ones(2, 3, 4), TypeError, "a list or tuple"),
        ([torch.ones(3, 4)], ValueError, "2 modalities; got 1 tensors"),
        ([torch.ones(3, 4), torch.ones(2, 4)], ValueError, r"shape \(3, 4\)"),
        ([torch.ones(3, 5)] * 2, ValueError, r"shape \(3, 4\)"),
        ([torch.ones(3, 4).long()] * 2, TypeError, "real floating-point"),
    ],
)
def test_what_cannot_be_pushed_is_said(embeddings, error, words):
    queue = mc.MemoryQueue(5, 4)
    with pytest.raises(error, match=words):
        queue.push(embeddings)
    assert len(queue) == 0
