"""Random steps compared with float64, and random arguments that raise worded errors."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multicontrast as mc
from benchmarks import soak

_WIDEST = 4.0  # times what rounding explains; twenty thousand steps saw less than one


@pytest.mark.filterwarnings("ignore:No sample of this batch")
def test_two_hundred_random_steps():
    report = soak.soak(200)
    assert report.steps == 200
    assert report.loss_error < _WIDEST
    assert report.gradient_error < _WIDEST


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No sample of this batch")
def test_twenty_thousand_random_steps():
    report = soak.soak(20_000, first_seed=1_000_000)
    assert report.loss_error < _WIDEST
    assert report.gradient_error < _WIDEST
    assert report.resident_mb[-1] - report.resident_mb[0] < 40
    assert max(report.live_tensors) < 100


def test_a_soak_sees_a_wrong_loss(monkeypatch):
    true = mc.pairwise_infonce

    def wrong(x, y, tau, **options):
        return true(x, y, tau, **options) * (1 + 1e-3 * (x.dtype == torch.float32))

    monkeypatch.setattr(mc, "pairwise_infonce", wrong)
    with pytest.raises(soak.Failed, match="times what rounding explains"):
        soak.soak(200)


# --- The fuzzer ------------------------------------------------------------------------------------------------------

X = torch.eye(3)
INDEX = mc.sample_tuples(3, 3, num_negatives=2, generator=torch.Generator().manual_seed(0))


class Odd:
    """An object that nobody expects."""


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.just(10**400),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.lists(st.integers(-1, 3), max_size=3),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from(
        [
            X, X.double(), X.half(), X.bfloat16(), X.long(), X.bool(), X.to(torch.complex64), X[0], X[:0],
            X[:, :0], X[:2], X.to("meta"), X.to_sparse(), X.mT, X.requires_grad_(False), torch.tensor(0.1),
            torch.tensor(math.nan), torch.tensor([[]]), torch.ones(3), torch.ones(3, 3, 3), torch.full((3,), math.inf),
            -torch.ones(3),
            torch.zeros(3, dtype=torch.uint8), torch.ones(3, 3, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool),
            INDEX, INDEX + 1, INDEX.int(), INDEX[:2], INDEX[:, :0], torch.Generator(), mc.Temperature(0.1), Odd(), Odd,
            len, {}, {"a": 1}, {1, 2}, range(3), [X, X, X], (X, X), [X, None, X], [X, X[:1], X[:0]], "tied", "all",
            "any", "permutation", "eigenvalue", "none", "sum", torch.float32, torch.device("cpu"), ..., float, object(),
        ]
    ),
)  # fmt: skip

PAIR = ("x", "y", "tau", "symmetric", "reduction", "normalize", "tiled", "gather", "ring", "present", "ids", "weight")
SHAPED = ("label_smoothing", "hardness", "extra_negatives", "diagnostics")
TUPLE = ("tau", "similarity", "negatives", "num_negatives", "anchor", "generator", *PAIR[4:], *SHAPED)
DOORS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "pairwise_infonce": ({"x": X, "y": X, "tau": 0.1}, (*PAIR, *SHAPED)),
    "triplet_infonce": ({"x_img": X, "x_2d": X, "x_3d": X, "tau": 0.1}, ("x_img", "x_3d", *TUPLE)),
    "trimodal_infonce": (
        {"x_img": X, "x_2d": X, "x_3d": X, "tau": 0.1},
        ("x_2d", "alpha", "pairs", "symmetric", *TUPLE),
    ),
    "multimodal_infonce": ({"embeddings": [X, X, X], "tau": 0.1}, ("embeddings", *TUPLE)),
    "sample_tuples": (
        {"batch_size": 3},
        ("batch_size", "num_modalities", "num_negatives", "scheme", "exclude_positive", "generator", "device"),
    ),
    "Temperature": ({"init": 0.1}, ("init", "min", "max", "learnable")),
    "PairwiseInfoNCE": ({"temperature": 0.1}, ("temperature",)),
    "TrimodalInfoNCE": ({"temperature": 0.1}, ("temperature",)),
    "cached_step": (
        {"encoders": [torch.nn.Identity()] * 2, "inputs": [X, X], "loss": mc.PairwiseInfoNCE(0.1), "chunk_size": 2},
        ("inputs", "chunk_size"),
    ),
    "distributed.gather_rows": ({"x": X}, ("x", "group")),
}


def named(door: str) -> Any:
    thing = mc
    for name in door.split("."):
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize("door", DOORS)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_comes_raises_a_value_or_type_error_in_words_or_works(door, data):
    usual, names = DOORS[door]
    changed = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    arguments = usual | {name: data.draw(ANYTHING, label=name) for name in changed}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = named(door)(**arguments)
    except (ValueError, TypeError) as error:
        message = str(error)
        assert re.search(r"; got .+\. ", message, re.DOTALL), f"not in three beats: {message}"
        return
    if isinstance(result, torch.Tensor) and result.dtype.is_floating_point and door.endswith("infonce"):
        assert result.dtype in (torch.float32, torch.float64)
