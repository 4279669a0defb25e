"""The temperature: bounds, optimizers, presets, and conversions of modules."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

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
    assert list(loss.state_dict()) == ["temperature.log_tau"]
    for twin in (other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin.temperature.tau == loss.temperature.tau


# --- Modules that are taken apart ---------------------------------------------------------------------------------


@pytest.mark.parametrize("learnable", [True, False])
def test_it_has_its_initial_value_after_the_meta_device(learnable):
    with torch.device("meta"):
        loss = mc.PairwiseInfoNCE(mc.Temperature(0.07, min=0.01, learnable=learnable))
    assert "tau=meta" in repr(loss)
    loss = loss.to_empty(device="cpu")
    assert loss.temperature.tau.item() == pytest.approx(0.07)
    with torch.no_grad():
        loss.temperature.log_tau.fill_(math.nan)  # as memory may be that `to_empty` did not write
    for module in loss.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert loss.temperature.tau.item() == pytest.approx(0.07)
    assert mc.Temperature(0.07).to("meta").to_empty(device="cpu").tau.item() == pytest.approx(0.07)


@pytest.mark.parametrize("kind", [torch.Tensor.detach, lambda x: x.detach().requires_grad_(), nn.Parameter])
@pytest.mark.parametrize("given", [0.001, 0.15, 7.0])
def test_a_value_of_functional_call_is_not_written_to(kind, given):
    temperature = mc.Temperature(0.2, min=0.1, max=0.3)
    lent = kind(torch.tensor(math.log(given)))
    before = lent.detach().clone()
    tau = torch.func.functional_call(temperature, {"log_tau": lent}, ())
    assert torch.equal(lent.detach(), before)
    assert tau.item() == pytest.approx(min(max(given, 0.1), 0.3))
    if lent.requires_grad:
        assert torch.autograd.grad(tau, lent)[0].item() == pytest.approx(tau.item())
    assert temperature.tau.item() == pytest.approx(0.2)


def test_an_ensemble_under_vmap():
    members = [mc.Temperature(0.2, min=0.1) for _ in range(3)]
    stacked = {"log_tau": torch.tensor([0.05, 0.2, 0.9]).log()}
    tau = torch.func.vmap(lambda state: torch.func.functional_call(members[0], state, ()))(stacked)
    torch.testing.assert_close(tau, torch.tensor([0.1, 0.2, 0.9]))


@pytest.mark.parametrize("change", ["copy", "pickle", "double", "assign", "parent"])
def test_the_own_parameter_is_clamped_in_place_whatever_became_of_the_module(change):
    temperature = mc.Temperature(0.2, min=0.1)
    if change == "copy":
        temperature = copy.deepcopy(temperature)
    elif change == "pickle":
        temperature = pickle.loads(pickle.dumps(temperature))
    elif change == "double":
        temperature = nn.Sequential(temperature).double()[0]
    elif change == "assign":
        temperature.load_state_dict({"log_tau": torch.tensor(0.5)}, assign=True)
        assert temperature.tau.item() == pytest.approx(math.exp(0.5))
    else:
        temperature = nn.ModuleList([temperature]).to("cpu")[0]
    with torch.no_grad():
        temperature.log_tau.fill_(-9.0)
    temperature()
    assert temperature.log_tau.item() == pytest.approx(math.log(0.1))


def test_it_shows_its_value():
    temperature = mc.Temperature(0.2, min=0.1)
    with torch.no_grad():
        temperature.log_tau.fill_(math.log(0.31))
    assert repr(temperature) == "Temperature(tau=0.31, min=0.1)"
    assert repr(mc.Temperature(0.07, learnable=False)) == "Temperature(tau=0.07, learnable=False)"
    assert "Temperature(tau=0.2)" in repr(mc.TripletInfoNCE(0.2))


# --- Optimizers ---------------------------------------------------------------------------------------------------


def test_check_optimizer_wants_the_parameter_without_decay():
    loss = mc.PairwiseInfoNCE(0.1)
    linear = nn.Linear(2, 2)
    without = torch.optim.SGD(linear.parameters(), lr=0.1)
    apart = torch.optim.AdamW([{"params": linear.parameters()}, {"params": loss.parameters(), "weight_decay": 0.0}])
    loss.temperature.check_optimizer(apart)
    loss.temperature.check_optimizer(without, apart)
    with pytest.raises(ValueError, match=r"needs its parameter in the optimizer; got none there\. Make"):
        loss.temperature.check_optimizer(without)
    with pytest.raises(ValueError, match=r"no weight decay, .*; got weight_decay=0.01. Make"):
        loss.temperature.check_optimizer(torch.optim.AdamW([*linear.parameters(), *loss.parameters()]))
    mc.PairwiseInfoNCE(mc.Temperature(0.1, learnable=False)).temperature.check_optimizer(without)


def test_param_groups_keep_every_temperature_out_of_weight_decay():
    shared = mc.Temperature(0.2)
    loss = mc.TrimodalInfoNCE({(0, 1): shared, (0, 2): shared, (1, 2): 0.1, "triplet": 0.3})
    model = nn.ModuleDict({"encoder": nn.Linear(3, 2), "loss": loss, "other": mc.PairwiseInfoNCE(shared)})
    groups = mc.param_groups(model, 0.5)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    held = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))  # each once
    for temperature in loss.temperature.values():
        temperature.check_optimizer(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    for (name, parameter), old in zip(model.named_parameters(), before):
        assert torch.equal(parameter, old) == ("log_tau" in name)


def test_param_groups_without_one_of_the_two():
    assert [group["weight_decay"] for group in mc.param_groups(nn.Linear(2, 2), 0.1)] == [0.1]
    assert [group["weight_decay"] for group in mc.param_groups(mc.PairwiseInfoNCE(0.1), 0.1)] == [0.0]
    assert mc.param_groups(mc.Temperature(0.1, learnable=False), 0.1) == []


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
        (
            lambda: mc.Temperature(1e-40),
            ValueError,
            "`init` to be a finite number and >= 1.17549e-38 and < 3.40282e+38; got 1e-40",
        ),
        (lambda: mc.Temperature(0.1, max=1e39), ValueError, "`max` to be a finite number"),
        (lambda: mc.Temperature(0.1, min=0.2), ValueError, "`min` <= `init` <= `max`"),
        (lambda: mc.Temperature(0.1, max=0.05), ValueError, "`min` <= `init` <= `max`"),
        (lambda: mc.Temperature.preset("unihpe_stage2"), ValueError, "Did you mean 'unihpe_stage_2'?"),
        (lambda: mc.Temperature.for_similarity("eigen"), ValueError, "`similarity` to be one of"),
        (lambda: mc.Temperature.for_similarity("multilinear"), TypeError, "`dim` to be an int; got None"),
        (lambda: mc.Temperature.for_similarity("volume", 1), ValueError, "`num_modalities` >= 2; got 1"),
        (lambda: mc.Temperature.for_similarity("volume", base=0), ValueError, "`base` to be a finite number"),
        (lambda: mc.param_groups([nn.Linear(2, 2)], 0.1), TypeError, "`param_groups` needs a module; got a list"),
        (lambda: mc.param_groups(nn.Linear(2, 2), None), TypeError, "`weight_decay` to be a finite number; got None"),
        (
            lambda: mc.param_groups(nn.Linear(2, 2), -0.1),
            ValueError,
            "`weight_decay` to be a finite number and >= 0; got -0.1",
        ),
    ],
)
def test_impossible_temperatures_raise_in_words(call, error, words):

    with pytest.raises(error, match=re.escape(words)):
        call()
