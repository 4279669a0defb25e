"""Random steps of the soak test, compared with float64."""

from __future__ import annotations

import pytest
import torch

import multicontrast as mc
from benchmarks import soak

_WIDEST = 4.0  # times what rounding explains; twenty thousand steps saw less than one


@pytest.mark.filterwarnings("ignore:No sample of this batch")
def test_sixty_random_steps():
    report = soak.soak(60)
    assert report.steps == 60
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
