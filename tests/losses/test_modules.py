"""The modules: their options are the function's, and they own or share a temperature."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multicontrast as mc

PAIRED = [
    (mc.PairwiseInfoNCE, mc.pairwise_infonce, 2),
    (mc.TripletInfoNCE, mc.triplet_infonce, 3),
    (mc.TrimodalInfoNCE, mc.trimodal_infonce, 3),
    (mc.MultimodalInfoNCE, mc.multimodal_infonce, 4),
]


def call(module, count, size=5, **options):
    xs = torch.randn(count, size, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    return module(xs, **options) if isinstance(module, mc.MultimodalInfoNCE) else module(*xs, **options)


def keywords(function):
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


@pytest.mark.parametrize(("module", "function", "count"), PAIRED)
def test_the_signatures_hold_together(module, function, count):
    """What belongs to a batch goes to `forward`, everything else to the constructor; `negatives` may be either."""
    stored, of_batch = keywords(module), keywords(module.forward)
    assert set(of_batch) - {"negatives"} == {"present", "ids", "weight", "extra_negatives", "diagnostics"}
    assert not set(stored) & (set(of_batch) - {"negatives"})
    assert of_batch | stored == keywords(function)


@pytest.mark.parametrize(("module", "function", "count"), PAIRED)
def test_the_module_calls_the_function_with_its_options(module, function, count):
    xs = torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    arguments = (xs,) if function is mc.multimodal_infonce else xs
    options = {"reduction": "sum"}
    if function is not mc.pairwise_infonce:
        options |= {"similarity": "mean_cosine", "negatives": "tied"}
    expected = function(*arguments, 0.3, **options)
    torch.testing.assert_close(module(0.3, **options)(*arguments), expected)
    if function is not mc.pairwise_infonce:
        index = mc.sample_tuples(5, count, num_negatives=2, generator=torch.Generator().manual_seed(0))
        given = call(module(0.3, num_negatives=4), count, negatives=index)
        torch.testing.assert_close(given, function(*arguments, 0.3, negatives=index))


@pytest.mark.parametrize(("module", "function", "count"), PAIRED)
def test_the_temperature_learns_and_can_be_shared(module, function, count):
    shared = mc.Temperature(0.2, min=0.1)
    first, second = module(shared), module(shared)
    assert list(first.parameters()) == list(second.parameters()) == list(shared.parameters())
    call(first, count).backward()
    assert shared.log_tau.grad.abs() > 0
    own = module(0.2)
    assert own.temperature.log_tau is not shared.log_tau
    assert math.isclose(own.temperature().item(), 0.2, rel_tol=1e-6)
    with pytest.raises(TypeError, match=r"`temperature` to be a number or a `Temperature`; got '0.1'"):
        module("0.1")


@given(st.lists(st.floats(2**-10, 2**10, width=32), min_size=3, max_size=3), st.floats(-20, 20))
def test_the_temperature_stays_inside_its_bounds(values, pushed):
    low, init, high = sorted(values)
    temperature = mc.Temperature(init, min=low, max=high)
    with torch.no_grad():
        temperature.log_tau.add_(pushed)
    tau = temperature()
    assert low <= tau.item() <= high
    tau.backward()
    assert temperature.log_tau.grad.item() > 0


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.07), (0.1, 1e4), (1 / 14, 1 / 5)])
def test_bounds_that_float32_cannot_represent_hold(low, high):
    temperature = mc.Temperature(low, min=low, max=high)
    for pushed in (-50, 50):
        with torch.no_grad():
            temperature.log_tau.fill_(pushed)
        assert low <= temperature().item() <= high


def test_a_fixed_temperature_is_a_buffer():
    temperature = mc.Temperature(0.07, learnable=False)
    assert not list(temperature.parameters())
    assert not temperature().requires_grad
    assert list(temperature.state_dict()) == ["log_tau"]
