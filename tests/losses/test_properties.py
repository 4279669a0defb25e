"""Properties of every batch, by hypothesis."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

import multicontrast as mc
from tests.losses.inputs import SCHEMES, SIMILARITIES

seeds = st.integers(0, 2**16)
sizes = st.integers(2, 9)
dims = st.integers(2, 7)
taus = st.floats(0.02, 5.0)
schemes = st.sampled_from(SCHEMES)
similarities = st.sampled_from(SIMILARITIES)


def draw(seed: int, size: int, dim: int, count: int = 3) -> tuple[list[torch.Tensor], torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dim, dtype=torch.float64, generator=generator) for _ in range(count)], generator


@given(seeds, sizes, dims, taus, similarities)
def test_the_order_of_the_batch_does_not_matter(seed, size, dim, tau, similarity):
    xs, generator = draw(seed, size, dim)
    order = torch.randperm(size, generator=generator)
    index = mc.sample_tuples(size, generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(size)
    loss = mc.trimodal_infonce(*xs, tau, negatives=index, similarity=similarity, reduction="none")
    moved = mc.trimodal_infonce(
        *(x[order] for x in xs), tau, negatives=place[index[order]], similarity=similarity, reduction="none"
    )
    torch.testing.assert_close(moved, loss[order])


@given(seeds, sizes, dims, taus, similarities, st.sampled_from(list(itertools.permutations(range(3)))))
def test_the_order_of_the_modalities_does_not_matter(seed, size, dim, tau, similarity, order):
    xs, generator = draw(seed, size, dim)
    index = mc.sample_tuples(size, generator=generator)
    loss = mc.trimodal_infonce(*xs, tau, negatives=index, similarity=similarity)
    moved = mc.trimodal_infonce(*(xs[m] for m in order), tau, negatives=index[:, :, list(order)], similarity=similarity)
    torch.testing.assert_close(moved, loss)


@given(seeds, sizes, dims, taus, schemes, st.sampled_from([s for s in SIMILARITIES if s != "multilinear"]))
def test_a_rotation_of_the_space_changes_nothing(seed, size, dim, tau, scheme, similarity):
    xs, generator = draw(seed, size, dim)
    rotation = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator)).Q
    results = [
        mc.trimodal_infonce(
            *ys, tau, negatives=scheme, similarity=similarity, generator=torch.Generator().manual_seed(seed)
        )
        for ys in (xs, [x @ rotation for x in xs])
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@given(seeds, sizes, dims, taus, schemes, similarities, st.integers(-200, 200))
def test_scaling_rows_by_powers_of_two_changes_no_bit(seed, size, dim, tau, scheme, similarity, power):
    xs, _ = draw(seed, size, dim)
    results = [
        mc.trimodal_infonce(
            *ys, tau, negatives=scheme, similarity=similarity, reduction="none",
            generator=torch.Generator().manual_seed(seed),
        )
        for ys in (xs, [xs[0] * 2.0**power, xs[1], xs[2] * 2.0**-power])
    ]  # fmt: skip
    assert torch.equal(results[0], results[1])


@given(seeds, st.integers(2, 6), dims, taus, schemes)
def test_the_exact_denominator_bounds_the_sampled_one(seed, size, dim, tau, scheme):
    """Sampled tuples are some of those with the anchor's first member, and these some of those with any member."""
    xs, generator = draw(seed, size, dim)
    index = mc.sample_tuples(size, scheme=scheme, generator=generator)
    distinct = torch.stack([torch.unique(row, dim=0).shape[0] * torch.ones(()) for row in index]) == size
    sampled = mc.triplet_infonce(*xs, tau, negatives=index, reduction="none")
    exact = mc.triplet_infonce(*xs, tau, negatives="all", reduction="none")
    widest = mc.triplet_infonce(*xs, tau, negatives="all", anchor="any", reduction="none")
    assert (exact <= widest + 1e-9).all()
    assert (sampled[distinct] <= exact[distinct] + 1e-9).all()


@given(seeds, sizes, dims, taus)
def test_a_harder_negative_raises_the_loss(seed, size, dim, tau):
    """Moving one candidate towards an anchor's row raises that anchor's directed loss."""
    (x, y), _ = draw(seed, size, dim, count=2)
    before = mc.pairwise_infonce(x, y, tau, symmetric=False, reduction="none")[0]
    unit_x, unit_y = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
    nearer = y.clone()
    nearer[1] = unit_y[1] + 0.5 * unit_x[0]
    assert mc.pairwise_infonce(x, nearer, tau, symmetric=False, reduction="none")[0] >= before - 1e-9


@given(seeds, sizes, dims, taus)
def test_the_eigenvalue_is_blind_to_a_flip_of_two_cosines_and_the_pairs_are_not(seed, size, dim, tau):
    """Negating one modality everywhere turns cosines (a, b, c) into (-a, -b, c): the spectrum stays."""
    xs, generator = draw(seed, size, dim)
    index = mc.sample_tuples(size, generator=generator)
    flipped = [-xs[0], xs[1], xs[2]]
    blind = [mc.triplet_infonce(*ys, tau, negatives=index) for ys in (xs, flipped)]
    torch.testing.assert_close(blind[0], blind[1])
    aligned = [xs[0]] * 3
    opposite = [-xs[0], xs[0], xs[0]]
    options = {"negatives": index, "alpha": 1.0}
    assert mc.trimodal_infonce(*aligned, tau, **options) < mc.trimodal_infonce(*opposite, tau, **options)
