"""Metrics of embeddings against SciPy, scikit-learn and loops."""

from __future__ import annotations

import itertools
import math
import resource

import numpy as np
import pose_definitions as definitions
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from multicontrast import metrics
from multicontrast.metrics import embeddings as embeddings_file

scipy_distance = pytest.importorskip("scipy.spatial.distance")
scipy_special = pytest.importorskip("scipy.special")
scipy_stats = pytest.importorskip("scipy.stats")
paired_cosine_distances = pytest.importorskip("sklearn.metrics.pairwise").paired_cosine_distances


def draw(seed: int = 0, rows: int = 40, width: int = 16, modalities: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return [common + torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(modalities)]


def unit(x: Tensor) -> np.ndarray:
    return (x / x.norm(dim=-1, keepdim=True)).numpy()


def test_cosines_are_scikit_learns():
    x, y, z = draw()
    expected = paired_cosine_distances(x.numpy(), y.numpy())
    torch.testing.assert_close(metrics.cosine_alignment(x, y, reduction="none"), torch.from_numpy(1 - expected))
    matrix = metrics.cosine_matrix([x, y, z])
    for i, j in itertools.product(range(3), repeat=2):
        pair = paired_cosine_distances((x, y, z)[i].numpy(), (x, y, z)[j].numpy())
        assert matrix[i, j].item() == pytest.approx(1 - pair.mean())


def test_alignment_and_uniformity_are_those_of_the_paper():
    x, y, _ = draw()
    squared = ((unit(x) - unit(y)) ** 2).sum(-1)
    assert metrics.alignment(x, y).item() == pytest.approx(squared.mean())
    assert metrics.alignment(x, y, alpha=1).item() == pytest.approx(np.sqrt(squared).mean())
    distances = scipy_distance.pdist(unit(x), "sqeuclidean")
    for t in (2.0, 0.5):
        expected = scipy_special.logsumexp(-t * distances) - math.log(len(distances))
        assert metrics.uniformity(x, t=t).item() == pytest.approx(expected)


def test_uniformity_does_not_depend_on_its_blocks(monkeypatch):
    x = draw()[0]
    whole = metrics.uniformity(x)
    monkeypatch.setattr(embeddings_file, "_HELD_AT_ONCE", 100)
    torch.testing.assert_close(metrics.uniformity(x), whole)
    assert torch.autograd.gradcheck(metrics.uniformity, (x[:7].clone().requires_grad_(),))


def test_modality_gap():
    x, y, _ = draw()
    expected = np.linalg.norm(unit(x).mean(0) - unit(y[:20]).mean(0))
    assert metrics.modality_gap(x, y[:20]).item() == pytest.approx(expected)


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    for x in (draw(rows=40, width=16)[0], draw(rows=9, width=30)[0]):
        for normalize in (True, False):
            singular = np.linalg.svd(unit(x) if normalize else x.numpy(), compute_uv=False)
            expected = math.exp(scipy_stats.entropy(singular))
            assert metrics.effective_rank(x, normalize=normalize).item() == pytest.approx(expected, rel=1e-6)
    low = torch.randn(50, 2).double() @ torch.randn(2, 20).double()
    assert metrics.effective_rank(low) <= 2 + 1e-6
    assert metrics.effective_rank(torch.full((3, 4), math.nan)).isnan()
    assert metrics.effective_rank(1e-30 * torch.eye(5)).item() == pytest.approx(5)


@pytest.mark.parametrize("modalities", [2, 3, 4, 6, 9])
def test_sign_flips_are_where_the_leading_eigenvector_has_both_signs(modalities):
    parts = draw(modalities=modalities, width=4)
    expected = []
    for row in range(len(parts[0])):
        stacked = np.stack([unit(part)[row] for part in parts])
        leading = np.linalg.svd(stacked)[0][:, 0]
        expected.append(leading.min() < 0 < leading.max())
    assert metrics.sign_flipped_share(parts).item() == pytest.approx(np.mean(expected))
    flipped = [*parts[:-1], -parts[-1]]
    close = [parts[0], *(parts[0] + 0.1 * part for part in flipped[1:-1]), -parts[0]]
    assert metrics.sign_flipped_share(close) == 1
    assert metrics.sign_flipped_share([parts[0]] * modalities) == 0


def test_the_eigenvalue_is_blind_to_what_the_share_sees():
    """Negating one modality leaves every eigenvalue of the Gram matrices as it was."""
    x, y, z = draw(width=4)
    gram = [torch.from_numpy(np.stack([unit(p) for p in parts], 1)) for parts in ((x, y, z), (x, y, -z))]
    before, after = (torch.linalg.eigvalsh(g @ g.mT)[:, -1] for g in gram)
    torch.testing.assert_close(before, after)
    assert metrics.sign_flipped_share([x, y, z]) < metrics.sign_flipped_share([x, y, -z])


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "mean"])
@pytest.mark.parametrize("block", [1 << 24, 100])
def test_ranks_one_comparison_at_a_time(ties, block, monkeypatch):
    monkeypatch.setattr(embeddings_file, "_HELD_AT_ONCE", block)
    generator = torch.Generator().manual_seed(0)
    match = torch.randint(0, 30, (20,), generator=generator)
    query, gallery = (torch.randint(-1, 2, (n, 3), generator=generator).double() for n in (20, 30))  # many ties
    expected = definitions.ranks(query.numpy(), gallery.numpy(), match.tolist(), ties)
    ours = metrics.retrieval_ranks(query, gallery, match=match, ties=ties, normalize=False)
    assert ours.tolist() == expected
    query, gallery = (torch.randn(n, 5, generator=generator).double() for n in (20, 30))
    expected = definitions.ranks(unit(query), unit(gallery), match.tolist(), ties)
    assert metrics.retrieval_ranks(query, gallery, match=match, ties=ties).tolist() == expected


def test_recall_median_and_reciprocal_rank_are_those_of_the_ranks():
    x, y, _ = draw(rows=41, width=3)
    ranks = np.array(definitions.ranks(unit(x), unit(y), range(41), "pessimistic"))
    for k in (1, 3, 10):
        assert metrics.retrieval_recall(x, y, k=k).item() == pytest.approx((ranks <= k).mean())
    several = metrics.retrieval_recall(x, y, k=(1, 3, 10))
    assert several.tolist() == pytest.approx([(ranks <= k).mean() for k in (1, 3, 10)])
    assert metrics.retrieval_recall(x, y, k=(1, 3), reduction="none").shape == (41, 2)
    assert metrics.median_rank(x, y) == np.median(ranks)
    assert metrics.median_rank(x[:40], y[:40]) == np.median(
        definitions.ranks(unit(x[:40]), unit(y[:40]), range(40), "pessimistic")
    )
    assert metrics.mean_reciprocal_rank(x, y).item() == pytest.approx((1 / ranks).mean())


@pytest.mark.parametrize("block", [1 << 22, 37])
@pytest.mark.parametrize("rows", [5, 63, 129])
@pytest.mark.parametrize("width", [3, 16, 130])
def test_a_collapsed_model_finds_nothing(rows, width, block, monkeypatch):
    """All embeddings equal: ties are counted against the query, or the first place would be everyone's.

    The same product of two rows has other last bits at the edge of a matrix, and in a block of one row.
    """
    monkeypatch.setattr(embeddings_file, "_HELD_AT_ONCE", block)
    x = torch.randn(1, width, generator=torch.Generator().manual_seed(0)).expand(rows, width)
    assert metrics.retrieval_recall(x, x) == 0
    assert metrics.median_rank(x, x) == rows
    assert metrics.retrieval_recall(x, x, ties="optimistic") == 1
    assert metrics.uniformity(x) == pytest.approx(0, abs=1e-5)
    assert metrics.effective_rank(x).item() == pytest.approx(1, abs=1e-3)


def test_rows_of_unlike_length_tie_within_their_own_rounding():
    """Ranked by inner product: a long row of the gallery does not widen the ties of the others."""
    query = torch.tensor([[1.0, 1e-3]])
    gallery = torch.tensor([[1.0, 0.0], [1.0, 1e-2], [-1e8, 0.0]])
    assert metrics.retrieval_ranks(query, gallery, match=torch.tensor([1]), normalize=False).item() == 1
    assert metrics.retrieval_ranks(query, gallery, match=torch.tensor([0]), normalize=False).item() == 2


def test_no_product_of_all_pairs_of_modalities_is_held():
    """``cosine_matrix`` of many rows takes no more memory than one pair."""
    parts = [torch.randn(1000, 8) for _ in range(6)]
    with torch.profiler.profile(profile_memory=True) as profile:
        metrics.cosine_matrix(parts, normalize=False)
    assert max(event.cpu_memory_usage for event in profile.events()) <= 1000 * 8 * 4 + 4096


def test_alignment_of_equal_rows_has_a_gradient_at_any_exponent():
    x = torch.eye(3, requires_grad=True)
    for alpha in (0.5, 1.0, 2.0):
        (gradient,) = torch.autograd.grad(metrics.alignment(x, torch.eye(3), alpha=alpha), x)
        assert (gradient == 0).all()
    with pytest.raises(ValueError, match=r"`alpha`.* > 0; got 0"):
        metrics.alignment(x, x, alpha=0.0)


def test_nan_is_not_a_good_rank():
    x, y, _ = draw()
    x[3] = math.nan
    ranks = metrics.retrieval_ranks(x, y)
    assert ranks.isnan().nonzero().flatten().tolist() == [3]
    assert metrics.retrieval_recall(x, y).isnan() and metrics.median_rank(x, y).isnan()
    assert metrics.cosine_alignment(x, y).isnan()
    assert metrics.sign_flipped_share([x, y]).isnan()


@pytest.mark.slow
def test_a_hundred_thousand_against_themselves_fit_into_bounded_memory():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, 16, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recall = metrics.retrieval_recall(x, x + 0.01 * torch.randn(x.shape, generator=generator))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert recall > 0.9
    assert grown < 600, f"{grown:.0f} MiB"  # all similarities at once would be 40 GB


def test_memory_is_bounded_by_the_block(monkeypatch):
    """No product has more cells than the bound, whatever the sizes."""
    seen = []
    products = embeddings_file.products
    monkeypatch.setattr(embeddings_file, "_HELD_AT_ONCE", 1000)
    monkeypatch.setattr(embeddings_file, "products", lambda a, b: seen.append(len(a) * len(b)) or products(a, b))
    x = draw(rows=90)[0]
    metrics.retrieval_recall(x, x)
    assert max(seen) <= 1000 and sum(seen) == 90 * 90


@given(st.integers(0, 2**31), st.integers(-60, 60))
def test_neither_the_length_of_rows_nor_a_rotation_matters(seed, exponent):
    x, y, z = draw(seed, rows=12, width=5)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)).double())[0]
    for function in (
        lambda *e: metrics.cosine_alignment(*e[:2]),
        lambda *e: metrics.alignment(*e[:2]),
        lambda *e: metrics.modality_gap(*e[:2]),
        lambda *e: metrics.uniformity(e[0]),
        lambda *e: metrics.effective_rank(e[0]),
        lambda *e: metrics.cosine_matrix(e),
        lambda *e: metrics.sign_flipped_share(e),
        lambda *e: metrics.mean_reciprocal_rank(*e[:2]),
    ):
        expected = function(x, y, z)
        torch.testing.assert_close(function(x * 2.0**exponent, y * 2.0**-exponent, z), expected)
        torch.testing.assert_close(function(x @ turn, y @ turn, z @ turn), expected, rtol=1e-8, atol=1e-8)


def test_rows_of_any_finite_length_and_zero_rows():
    x = torch.tensor([[1e-30, 0.0], [0.0, 1e30], [0.0, 0.0]], requires_grad=True)
    value = metrics.cosine_alignment(x, torch.eye(3)[:, :2], reduction="none")
    assert value.tolist() == [1.0, 1.0, 0.0]
    value.sum().backward()
    assert x.grad.isfinite().all()


def test_types():
    x, y, _ = (part.to(torch.bfloat16) for part in draw())
    assert metrics.cosine_alignment(x, y).dtype == torch.float32
    assert metrics.uniformity(x.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = metrics.mean_reciprocal_rank(x.float(), y.float()), metrics.uniformity(x.float())
    assert inside[0] == metrics.mean_reciprocal_rank(x.float(), y.float())
    assert inside[1] == metrics.uniformity(x.float())


def test_arguments():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"`y` of shape \(B, D\)"):
        metrics.cosine_alignment(x, x[0])
    with pytest.raises(ValueError, match="one shape"):
        metrics.cosine_alignment(x, x[:3])
    with pytest.raises(ValueError, match="one shape"):
        metrics.modality_gap(x, x[:, :2])
    with pytest.raises(TypeError, match="floating-point"):
        metrics.uniformity(x.long())
    with pytest.raises(ValueError, match="at least two rows"):
        metrics.uniformity(x[:1])
    with pytest.raises(ValueError, match="list of 2 or more"):
        metrics.sign_flipped_share([x])
    with pytest.raises(ValueError, match="list of 1 or more"):
        metrics.cosine_matrix([])
    with pytest.raises(TypeError, match="`embeddings` to be a list"):
        metrics.cosine_matrix(x)
    with pytest.raises(ValueError, match="one gallery row per query"):
        metrics.retrieval_recall(x, x[:3])
    with pytest.raises(ValueError, match=r"0 to 3; got 4"):
        metrics.retrieval_recall(x, x, match=torch.tensor([0, 1, 2, 4]))
    with pytest.raises(TypeError, match="`match` to be integers"):
        metrics.retrieval_recall(x, x, match=torch.ones(4))
    with pytest.raises(ValueError, match="`k` >= 1; got 0"):
        metrics.retrieval_recall(x, x, k=0)
    with pytest.raises(ValueError, match="Did you mean 'optimistic'"):
        metrics.retrieval_recall(x, x, ties="optimist")
