"""The temperature: bounds, optimizers, presets, and the places where a module is taken apart."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import multicontrast as mc
from multicontrast.temperature import PRESETS
from tests import definitions

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=5.0),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=5.0, foreach=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=5.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=5.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("low", "init", "high"), [(0.1, 0.2, 0.4), (0.2, 0.2, None), (None, 0.2, 0.2)])
def test_bounds_hold_after_any_step_and_the_way_back_is_open(name, low, init, high):
    temperature = mc.Temperature(init, min=low, max=high)
    optimizer = OPTIMIZERS[name](temperature.parameters())
    for direction in (1, 1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1):
        optimizer.zero_grad()
        tau = temperature()
        (direction * tau).backward()
        assert temperature.log_tau.grad.item() == pytest.approx(direction * tau.item(), rel=1e-5)  # never cut
        optimizer.step()
        saved = temperature.state_dict()["log_tau"].exp().item()  # before the next forward
        for value in (saved, temperature.tau.item(), temperature().item()):
            assert (low or 0) * (1 - 1e-6) <= value <= (high or math.inf) * (1 + 1e-6)
        assert (low or 0) <= temperature.tau.item() <= (high or math.inf)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_those_of_the_papers(name):
    expected = {
        "unihpe_stage_1": (1 / 14, 0.01, 1e4),
        "unihpe_stage_2": (0.2, 0.1, 1e4),
        "unihpe_stage_3": (0.2, 0.2, 1e4),
        "clip": (0.07, 0.01, None),
    }[name]
    temperature = mc.Temperature.preset(name)
    assert temperature.tau.item() == pytest.approx(expected[0], rel=1e-6)
    assert (temperature.min, temperature.max) == expected[1:]
    assert temperature.logit_scale.item() == pytest.approx(1 / expected[0], rel=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("similarity", ["eigenvalue", "singular_value", "mean_cosine", "volume", "area"])
def test_a_similarity_starts_where_it_separates_as_the_cosine_does(similarity, count):
    """The logit of a match less that of orthogonal embeddings is 1 / base, whatever the similarity."""
    matched = torch.eye(count, dtype=torch.float64)[:1].expand(count, count)
    orthogonal = torch.eye(count, dtype=torch.float64)
    tau = mc.Temperature.for_similarity(similarity, count, base=0.05).tau.item()
    gap = definitions.tuple_similarity(matched, similarity) - definitions.tuple_similarity(orthogonal, similarity)
    assert gap.item() / tau == pytest.approx(20, rel=1e-6)


@pytest.mark.parametrize(("count", "dim"), [(2, 64), (3, 64), (4, 64)])
def test_random_products_spread_as_random_cosines_do(count, dim):
    rows = definitions.unit(torch.randn(20000, count, dim, generator=torch.Generator().manual_seed(0)))
    tau = mc.Temperature.for_similarity("multilinear", count, dim=dim).tau
    spread = (definitions.tuple_similarity(rows, "multilinear") / tau).std().item()
    assert spread == pytest.approx(dim**-0.5 / 0.07, rel=0.05)


def test_a_temperature_keeps_its_type_and_follows_the_device():
    model = nn.Sequential(nn.Linear(2, 2), mc.Temperature(0.0731))
    before = model[1].log_tau.item()
    for change in (model.half, model.double, model.bfloat16, lambda: model.to(torch.float16)):
        change()
        assert model[1].log_tau.dtype == torch.float32
        assert model[1].log_tau.item() == before
    assert isinstance(model[1].log_tau, nn.Parameter)
    assert model.to("meta")[1].log_tau.device.type == "meta"


def test_copies_pickles_and_state_dicts_hold_the_value():
    loss = mc.TripletInfoNCE(mc.Temperature(0.3, min=0.1))
    stream = io.BytesIO()
    torch.save(loss.state_dict(), stream)
    other = mc.TripletInfoNCE(mc.Temperature(0.2, min=0.1))
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    for twin in (other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin.temperature.tau == loss.temperature.tau


def train(loss: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6) -> list[str]:
    """The warnings of a few steps."""
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            loss(x, y).backward()
            optimizer.step()
    return [str(warning.message) for warning in caught if "Temperature" in str(warning.message)]


def test_a_temperature_in_no_optimizer_warns_once():
    loss, encoder = mc.PairwiseInfoNCE(0.1), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([encoder], lr=0.1)
    (words,) = train(loss, optimizer)
    assert "needs its parameter in the optimizer; got 3 steps of SGD that left it where it was. Add" in words
    assert not train(loss, optimizer)
    with pytest.raises(ValueError, match=r"needs its parameter in the optimizer; got none there\. Add"):
        loss.temperature.check_optimizer(optimizer)


@pytest.mark.parametrize("case", ["one", "fused", "two", "every second", "no gradient", "constant"])
def test_one_that_moves_or_need_not_does_not_warn(case):
    loss, encoder = mc.PairwiseInfoNCE(0.1), nn.Parameter(torch.zeros(2))
    mine = torch.optim.Adam(loss.parameters(), lr=0.1)
    others = torch.optim.SGD([encoder], lr=0.1)
    if case == "one":
        assert not train(loss, torch.optim.AdamW([encoder, *loss.parameters()], lr=0.1))
    elif case == "fused":  # which moves parameters without raising their version
        assert not train(loss, torch.optim.AdamW([encoder, *loss.parameters()], lr=0.1, fused=True))
    elif case == "two":
        both = lambda: (others.step(), mine.step())  # noqa: E731
        assert not train(loss, type("Both", (), {"step": staticmethod(both)})())
    elif case == "every second":
        calls = iter(range(100))
        both = lambda: (others.step(), next(calls) % 2 and mine.step())  # noqa: E731
        assert not train(loss, type("Both", (), {"step": staticmethod(both)})())
    elif case == "no gradient":
        loss.temperature.log_tau.requires_grad_(False)
        x = torch.randn(5, 3, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(6):
                loss(x, x).backward()
                others.step()
    else:
        loss = mc.PairwiseInfoNCE(mc.Temperature(0.1, learnable=False))
        loss.temperature.check_optimizer(others)


def test_the_steps_of_another_training_are_not_counted():
    loss, encoder = mc.PairwiseInfoNCE(0.1), nn.Parameter(torch.zeros(2))
    loss(torch.eye(2), torch.eye(2)).backward()
    optimizer = torch.optim.SGD([encoder], lr=0.1)
    encoder.grad = torch.ones(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            optimizer.step()


def test_the_guard_keeps_nothing_alive():
    from multicontrast import temperature

    loss = mc.PairwiseInfoNCE(0.1)
    loss(torch.eye(2), torch.eye(2)).backward()
    count = len(temperature._watched)
    del loss
    gc.collect()
    assert len(temperature._watched) < count


def test_check_optimizer_wants_the_parameter_without_decay():
    loss = mc.PairwiseInfoNCE(0.1)
    linear = nn.Linear(2, 2)
    without = torch.optim.SGD(linear.parameters(), lr=0.1)
    apart = torch.optim.AdamW([{"params": linear.parameters()}, {"params": loss.parameters(), "weight_decay": 0.0}])
    loss.temperature.check_optimizer(apart)
    loss.temperature.check_optimizer(without, apart)
    with pytest.raises(ValueError, match=r"no weight decay, .*; got weight_decay=0.01. Add"):
        loss.temperature.check_optimizer(torch.optim.AdamW([*linear.parameters(), *loss.parameters()]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph_and_stays_in_its_bounds(backend):
    temperature = mc.Temperature(0.2, min=0.1, max=0.3)
    torch._dynamo.reset()
    compiled = torch.compile(temperature, fullgraph=True, backend=backend)
    for pushed in (0.0, 5.0, -5.0, 0.5):
        with torch.no_grad():
            temperature.log_tau.add_(pushed)
        expected = copy.deepcopy(temperature)
        tau, plain = compiled(), expected()
        assert tau == plain
        assert 0.1 <= tau.item() <= 0.3
        (grad,) = torch.autograd.grad(tau, temperature.log_tau)
        assert grad == torch.autograd.grad(plain, expected.log_tau)[0]


def test_it_exports():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = mc.Temperature(0.2, min=0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / self.temperature()

    module = Scaled()
    exported = torch.export.export(module, (torch.ones(3),)).module()
    torch.testing.assert_close(exported(torch.ones(3)), module(torch.ones(3)))


@given(st.floats(1e-37, 1e38), st.floats(-1, 1))
def test_bounds_hold_at_any_magnitude(bound, pushed):
    temperature = mc.Temperature(bound, min=bound, max=bound)
    with torch.no_grad():
        temperature.log_tau.add_(pushed)
    tau = temperature().item()
    # A bound that float32 has not lies between two numbers, and both bounds cannot hold; one of the two it is.
    assert tau in (
        torch.tensor(bound).item(),
        *(torch.nextafter(torch.tensor(bound), torch.tensor(end)).item() for end in (0.0, math.inf)),
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: mc.Temperature(0.1, learnable=1), TypeError, "`learnable` to be True or False; got 1"),
        (lambda: mc.Temperature(1e-40), ValueError, "`init` in float32's range, 1.2e-38 to 3.4e38; got 1e-40"),
        (lambda: mc.Temperature(0.1, max=1e39), ValueError, "`max` in float32's range"),
        (lambda: mc.Temperature.preset("unihpe_stage2"), ValueError, "Did you mean 'unihpe_stage_2'?"),
        (lambda: mc.Temperature.for_similarity("eigen"), ValueError, "`similarity` to be one of"),
        (lambda: mc.Temperature.for_similarity("multilinear"), TypeError, "`dim` to be a count; got None"),
        (lambda: mc.Temperature.for_similarity("volume", 1), ValueError, "`num_modalities` to be a count; got 1"),
        (lambda: mc.Temperature.for_similarity("volume", base=0), ValueError, "`base` to be positive"),
    ],
)
def test_impossible_temperatures_raise_in_words(call, error, words):

    with pytest.raises(error, match=re.escape(words)):
        call()
