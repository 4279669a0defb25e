"""A temperature for each term of eq. (4): the sum of the terms at their own temperatures."""

from __future__ import annotations

import re

import pytest
import torch

import multicontrast as mc
from tests import definitions
from tests.losses.inputs import assert_same, embeddings

PAIRS = ((0, 1), (0, 2), (1, 2))


def temperatures() -> dict:
    values = (0.1, 0.2, 0.3, 0.4)
    taus = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    return dict(zip((*PAIRS, "triplet"), taus))


@pytest.mark.parametrize("negatives", ["permutation", "shared", "tied", "all"])
def test_equal_temperatures_equal_one_shared_temperature(negatives):
    xs = embeddings(3, 6)
    options = {"negatives": negatives, "pairs": ((0, 2), (1, 2))}
    taus = {(2, 0): 0.2, (1, 2): 0.2, "triplet": torch.tensor(0.2, dtype=torch.float64)}
    ours, shared = (
        mc.trimodal_infonce(*xs, tau, generator=torch.Generator().manual_seed(1), **options)
        for tau in (taus, torch.tensor(0.2, dtype=torch.float64))
    )
    assert_same(ours, shared, xs)
    alone = mc.trimodal_infonce(*xs, {(0, 1): 0.2}, alpha=0, pairs=((0, 1),))
    torch.testing.assert_close(alone, mc.pairwise_infonce(*xs[:2], 0.2))


@pytest.mark.parametrize("pairs", [((0, 1),), ((1, 0),), ((2, 0), (1, 2))])
def test_a_pair_keeps_its_order(pairs):
    """In one direction the first modality is the anchor, and the second is what it is compared with."""
    xs = embeddings(3, 6)
    rows = sum(definitions.directed_infonce(xs[m], xs[n], 0.2) for m, n in pairs)
    ours = mc.trimodal_infonce(*xs, 0.2, alpha=0, pairs=pairs, symmetric=False, reduction="none")
    assert_same(ours, rows, [xs[m] for m in sorted({m for pair in pairs for m in pair})])


def test_the_module_owns_one_for_each_and_shares_what_it_is_given():
    shared = mc.Temperature.preset("unihpe_stage_2")
    loss = mc.TrimodalInfoNCE({(0, 1): 0.07, (0, 2): shared, (1, 2): shared, "triplet": 0.3}, negatives="tied")
    assert set(loss.state_dict()) == {
        "temperature.pair_0_1.log_tau", "temperature.pair_0_2.log_tau", "temperature.pair_1_2.log_tau",
        "temperature.triplet.log_tau",
    }  # fmt: skip
    assert len(list(loss.parameters())) == 3
    xs = [x.detach().float() for x in embeddings(3, 5)]
    seen = mc.Diagnostics()
    value = loss(*xs, diagnostics=seen)
    value.backward()
    assert all(parameter.grad.abs() > 0 for parameter in loss.parameters())
    assert set(seen.pairs) == set(PAIRS)
    assert seen.tuples is not None
    taus = {(0, 1): 0.07, (0, 2): 0.2, (1, 2): 0.2, "triplet": 0.3}
    torch.testing.assert_close(value, mc.trimodal_infonce(*xs, taus, negatives="tied"))


@pytest.mark.parametrize(
    ("taus", "options", "words"),
    [
        ({}, {}, "a temperature for each of its terms, (0, 1), (0, 2), (1, 2), 'triplet'; got some for none"),
        ({(0, 1): 0.1, "triplet": 0.1}, {}, "got some for (0, 1), 'triplet'. Name each term once"),
        ({(0, 1): 0.1, "triplet": 0.1}, {"pairs": ((0, 1),), "alpha": 0}, "with alpha=0 there is no triplet"),
        ({(0, 1): 0.1, (1, 0): 0.1, "triplet": 0.1}, {"pairs": ((0, 1),)}, "Name each term once"),
        ({(0, 1): -1, "triplet": 0.1}, {"pairs": ((0, 1),)}, "`tau` to be positive and finite; got -1"),
    ],
)
def test_terms_without_a_temperature_raise_in_words(taus, options, words):
    xs = embeddings(3, 4)
    with pytest.raises(ValueError, match=re.escape(words)):
        mc.trimodal_infonce(*xs, taus, **options)
