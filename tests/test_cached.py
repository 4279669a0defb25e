"""A step in chunks has the gradients of the plain step: dropout, two passes, half precision, shared encoders."""

from __future__ import annotations

import copy
import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import multicontrast as mc


def encoders(dropout: float = 0.0) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)).double() for _ in range(3)
    )


def batch(rows: int = 11) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(rows, 6, dtype=torch.float64, generator=generator)
    return list(common + torch.randn(3, rows, 6, dtype=torch.float64, generator=generator))


def plain_step(models: list, inputs: list[Tensor], loss: nn.Module, chunk_size: int) -> Tensor:
    """The plain step: all chunks encoded with their graph, so that dropout draws what the cached one draws."""
    embeddings = [torch.cat([model(x) for x in xs.split(chunk_size)]) for model, xs in zip(models, inputs)]
    value = loss(*embeddings)
    value.backward()
    return value.detach()


def gradients(*modules: nn.Module) -> list[Tensor]:
    found = [parameter.grad for module in modules for parameter in module.parameters()]
    assert all(grad is not None for grad in found)
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("chunk_size", [1, 3, 11, 20])
def test_gradients_are_those_of_the_plain_step(chunk_size, dropout):
    models, loss = encoders(dropout), mc.TrimodalInfoNCE(0.2, negatives="tied")
    twins, twin_loss = copy.deepcopy(models), copy.deepcopy(loss)
    for _ in range(2):  # gradients accumulate, and the second step begins where the random numbers of the first end
        torch.manual_seed(5)
        expected = plain_step(twins, batch(), twin_loss, chunk_size)
        state = torch.get_rng_state()
        torch.manual_seed(5)
        got = mc.cached_step(models, batch(), loss, chunk_size=chunk_size)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    assert not got.requires_grad
    for grad, wanted in zip(gradients(*models, loss), gradients(*twins, twin_loss)):
        torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-14)


def test_no_graph_of_more_than_a_chunk_is_ever_held():
    rows = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            rows.append((len(x), torch.is_grad_enabled()))
            return super().forward(x)

    models = [Counting(6, 4).double(), Counting(6, 4).double()]
    mc.cached_step(models, batch()[:2], mc.PairwiseInfoNCE(0.2), chunk_size=4)
    sizes = [4, 4, 3, 4, 4, 3]
    assert rows == [(size, False) for size in sizes] + [(size, True) for size in sizes]


def test_one_encoder_for_all_and_one_that_returns_several():
    model, _, _ = encoders()
    twin = copy.deepcopy(model)
    loss = mc.TripletInfoNCE(mc.Temperature(0.2, learnable=False), negatives="all")
    plain_step([twin] * 3, batch(), loss, 4)
    mc.cached_step([model] * 3, batch(), loss, chunk_size=4)
    together = copy.deepcopy(twin)
    together.zero_grad()
    value = mc.cached_step(
        lambda rows: (together(rows["a"]), together(rows["bc"][0]), together(rows["bc"][1])),
        {"a": batch()[0], "bc": (batch()[1], batch()[2])},
        loss,
        chunk_size=4,
    )
    assert value.ndim == 0
    for grad, other, wanted in zip(gradients(model), gradients(together), gradients(twin)):
        torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(other, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: torch.compile(x, backend="eager"), nn.DataParallel],
    ids=["bare", "compiled", "wrapped"],
)
def test_the_loss_that_takes_a_list(wrap):
    models, loss = encoders(), mc.MultimodalInfoNCE(0.2, negatives="tied")
    twins, twin_loss = copy.deepcopy(models), copy.deepcopy(loss)
    plain_step(twins, batch(), lambda *embeddings: twin_loss(embeddings), 4)
    mc.cached_step(nn.ModuleList(models), batch(), wrap(loss), chunk_size=4)
    for grad, wanted in zip(gradients(*models, loss), gradients(*twins, twin_loss)):
        exact = grad.dtype == torch.float64  # a temperature is a float32
        torch.testing.assert_close(grad, wanted, rtol=1e-12 if exact else 1e-6, atol=1e-14 if exact else 1e-6)


class Rows(NamedTuple):
    first: Tensor
    others: list[Tensor]


@pytest.mark.parametrize("kind", ["named", "mapping", "nested"])
def test_inputs_keep_their_kind(kind):
    model, _, _ = encoders()
    twin = copy.deepcopy(model)
    a, b, _ = batch()
    given = {"named": Rows(a, [b]), "mapping": {"first": a, "others": (b,)}, "nested": ([a], Rows(a, [b]))}[kind]

    def pair(rows, encoder):
        rows = rows[1] if kind == "nested" else rows
        assert kind == "mapping" or type(rows) is Rows
        first, others = rows.values() if kind == "mapping" else rows
        return Rows(encoder(first), encoder(others[0])) if kind == "named" else (encoder(first), encoder(others[0]))

    mc.cached_step(lambda rows: pair(rows, model), given, mc.PairwiseInfoNCE(0.2), chunk_size=4)
    plain_step([twin] * 2, [a, b], mc.PairwiseInfoNCE(0.2), 4)
    for grad, wanted in zip(gradients(model), gradients(twin)):
        torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-14)


def test_a_frozen_encoder_stays_frozen():
    models = encoders()
    models[1].requires_grad_(False)
    loss = mc.TrimodalInfoNCE(0.2, negatives="tied")
    mc.cached_step(models, batch(), loss, chunk_size=4)
    assert all(parameter.grad is None for parameter in models[1].parameters())
    gradients(models[0], models[2], loss)


def test_under_autocast_and_with_a_scaler():
    models = [model.float() for model in encoders()[:2]]
    twins = copy.deepcopy(models)
    inputs = [x.float() for x in batch()[:2]]
    loss, scaler = mc.PairwiseInfoNCE(0.2), torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mc.cached_step(models, inputs, loss, chunk_size=4, scaler=scaler)
        plain_step(twins, inputs, copy.deepcopy(loss), 4)
    assert value.dtype == torch.float32
    for grad, wanted in zip(gradients(*models), gradients(*twins)):
        assert (grad / 1024 - wanted).norm() < 0.03 * wanted.norm()


def test_batch_norm_warns():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).double()
    with pytest.warns(UserWarning, match="rows that do not depend on each other; got BatchNorm in training mode"):
        mc.cached_step([model, model], batch()[:2], mc.PairwiseInfoNCE(0.2), chunk_size=4)
    model.eval()
    mc.cached_step([model, model], batch()[:2], mc.PairwiseInfoNCE(0.2), chunk_size=4)


X = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"chunk_size": 0}, ValueError, "`chunk_size` >= 1; got 0"),
        ({"chunk_size": 2.0}, TypeError, "`chunk_size` to be an int; got 2.0"),
        ({"encoders": 3}, TypeError, "`encoders` to be a callable; got 3"),
        ({"encoders": [nn.Identity(), nn.Linear]}, TypeError, "`encoders[1]` to be a callable; got the class Linear"),
        (
            {"encoders": [lambda: X, nn.Identity()]},
            TypeError,
            "calls each encoder with 2 rows of its input; got TypeErr",
        ),
        ({"loss": 0.1}, TypeError, "`loss` to be a callable; got 0.1. Pass a loss"),
        ({"loss": lambda x: x.sum()}, TypeError, "calls `loss` with 2 embeddings; got TypeError: "),
        ({"scaler": True}, TypeError, "`scaler` to be a GradScaler or None; got True"),
        ({"inputs": [X, X.to_sparse()]}, TypeError, "`inputs[1]` to be dense"),
        ({"inputs": [X]}, ValueError, "one input for each encoder; got 1 for 2"),
        ({"inputs": X}, ValueError, "one input for each encoder; got a float32 tensor"),
        ({"inputs": [X, X[:3]]}, ValueError, "as many rows in every input; got [4, 3]"),
        (
            {"inputs": [X, "text"]},
            TypeError,
            "`inputs[1]` to be a tensor (B, ...), or a tuple, list or mapping of them",
        ),
        ({"inputs": [X, {}]}, TypeError, "`inputs[1]` to be a tensor"),
        ({"encoders": [nn.Identity(), torch.sum]}, ValueError, "embeddings (2, D) for 2 rows; got a float32 tensor"),
        (
            {"loss": lambda x, y: x * y},
            ValueError,
            "a loss that is a 0-dim tensor; got a float32 tensor",
        ),
    ],
)
def test_bad_arguments_raise_in_words(arguments, error, words):
    usual = {"encoders": [nn.Identity()] * 2, "inputs": [X, X], "loss": mc.PairwiseInfoNCE(0.1), "chunk_size": 2}
    with pytest.raises(error, match=re.escape(words)):
        mc.cached_step(**usual | arguments)
