"""Every implementation agrees with per-anchor loops in float64, in value, gradient and second derivatives.

The cases are random calls over all options at once; see :mod:`tests.losses.differential`. A failure prints the
Python code of its call, reduced to the options that matter.
"""

from __future__ import annotations

import pytest
import torch

from tests.losses.differential import NAMES, compare, disagreements, draw_case, expected_of, smallest

BLOCK = 100
# How many of them each implementation does at least: were one never to apply, its comparison would say nothing. The
# kernels are compared in tests/triton.
LEAST = {None: BLOCK, "reference": BLOCK, "cpu": 10, "streamed": 1, "fused": 0, "triton": 0}


@pytest.mark.parametrize("block", [*range(6), *(pytest.param(k, marks=pytest.mark.slow) for k in range(6, 50))])
def test_random_calls_equal_their_definition(block):
    failures, done = compare(range(block * BLOCK, (block + 1) * BLOCK))
    shown = "\n\n".join(str(smallest(failure)) for failure in failures[:3])
    assert not failures, f"{len(failures)} of {sum(done.values())} calls differ:\n\n{shown}"
    assert all(done[name] >= LEAST[name] for name in NAMES), done


def test_a_seed_is_a_case():
    for seed in range(50):
        case, again = draw_case(seed), draw_case(seed)
        assert case.code() == again.code()
        assert torch.equal(case.definition().loss.nan_to_num(), again.definition().loss.nan_to_num())


def test_a_wrong_loss_is_found(monkeypatch):
    """Another temperature, another row, another sign of a second derivative: each is reported."""
    seed = next(seed for seed in range(100) if "tau" in draw_case(seed).leaves() and draw_case(seed).size > 2)
    case = draw_case(seed)
    expected = expected_of(case)
    right = type(case).call
    for wrong in (
        lambda loss: 1.001 * loss,
        lambda loss: loss + 0.01 * (case.tau - case.tau.detach()),
        lambda loss: loss + 0.01 * (case.tau - case.tau.detach()) ** 2,
    ):
        monkeypatch.setattr(type(case), "call", lambda self, wrong=wrong, **extra: wrong(right(self, **extra)))
        assert disagreements(case, expected=expected)
