"""The drawn tuples: the properties of Algorithm 1, and excluded positives."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multicontrast as mc

SCHEMES = ["permutation", "shared", "cyclic", "tied"]
counts = st.integers(2, 5)
sizes = st.integers(2, 12)
seeds = st.integers(0, 2**20)


def sample(size, count, scheme, seed, **options):
    return mc.sample_tuples(size, count, scheme=scheme, generator=torch.Generator().manual_seed(seed), **options)


@given(sizes, counts, st.sampled_from(SCHEMES), seeds)
def test_shape_positive_and_anchor(size, count, scheme, seed):
    index = sample(size, count, scheme, seed)
    rows = torch.arange(size)
    assert index.shape == (size, size, count)
    assert index.dtype == torch.int64
    assert torch.equal(index[:, 0], rows[:, None].expand(-1, count))
    assert torch.equal(index[:, :, 0], rows[:, None].expand(-1, size))
    assert index.min() >= 0
    assert index.max() < size


@given(sizes, counts, st.sampled_from(SCHEMES), seeds)
def test_the_positive_is_never_drawn(size, count, scheme, seed):
    index = sample(size, count, scheme, seed)
    assert not (index[:, 1:] == torch.arange(size)[:, None, None]).all(2).any()


@given(st.integers(2, 8), st.integers(2, 5), st.integers(1, 20), seeds, st.booleans())
def test_columns_of_the_paper_are_permutations(size, count, number, seed, exclude):
    """Also where an entry had to move off the positive, and for more negatives than samples."""
    index = sample(size, count, "permutation", seed, num_negatives=number, exclude_positive=exclude)
    assert index.shape == (size, 1 + number, count)
    ordered = index[:, 1:].sort(dim=0).values
    assert torch.equal(ordered, torch.arange(size)[:, None, None].expand_as(ordered))


@given(st.integers(3, 12), st.integers(3, 5), seeds)
def test_shared_candidates_are_the_same_for_every_anchor(size, count, seed):
    index = sample(size, count, "shared", seed)
    candidates = index[:, 1:, 1:]
    assert torch.equal(candidates, candidates[:1].expand_as(candidates))
    assert all(len(set(column.tolist())) == size - 1 for column in candidates[0].T)


@given(sizes, st.integers(2, 5), seeds)
def test_cyclic_candidates_are_shifts(size, count, seed):
    index = sample(size, count, "cyclic", seed)
    shifts = (index - torch.arange(size)[:, None, None]) % size
    assert torch.equal(shifts, shifts[:1].expand_as(shifts))


@given(sizes, st.integers(2, 5), seeds)
def test_tied_candidates_are_other_whole_samples(size, count, seed):
    index = sample(size, count, "tied", seed)
    others = index[:, 1:, 1:]
    assert torch.equal(others, others[:, :, :1].expand_as(others))
    for i, row in enumerate(others[:, :, 0]):
        assert sorted(row.tolist()) == [j for j in range(size) if j != i]


def test_without_the_exclusion_the_positive_is_drawn_as_often_as_chance_has_it():
    """Probability 1 / B^2 for each cell; 2,000 batches of 4 put the count within five standard deviations."""
    size, batches = 4, 2000
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(batches):
        index = mc.sample_tuples(size, exclude_positive=False, generator=generator)
        hits += int((index[:, 1:] == torch.arange(size)[:, None, None]).all(2).sum())
    expected = batches * size * (size - 1) / size**2
    assert abs(hits - expected) < 5 * expected**0.5


def test_permutations_are_uniform():
    generator = torch.Generator().manual_seed(0)
    index = mc.sample_tuples(3, num_negatives=60_000, exclude_positive=False, generator=generator)
    columns = index[:, 1:, 1].T
    counts = torch.unique(columns, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 10_000).abs() < 5 * 10_000**0.5).all()


@given(sizes, st.integers(2, 4), st.integers(1, 30), seeds)
def test_cyclic_rounds_repeat_nothing(size, count, number, seed):
    """An anchor meets a sample of a modality at most once in a round of B - 1."""
    index = sample(size, count, "cyclic", seed, num_negatives=number)
    assert index.shape == (size, 1 + number, count)
    for first in range(1, 1 + number, size - 1):
        met = index[:, first : first + size - 1, 1:].sort(dim=1).values
        assert (met.diff(dim=1) > 0).all()
    assert not (index[:, 1:] == torch.arange(size)[:, None, None]).all(2).any()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_cyclic_round_leaves_out_the_positive_or_the_last_column(size):
    """Its law, tuple by tuple, from all pairs of permutations of the shifts."""
    counts = torch.zeros(size, size)
    for s, t in itertools.product(itertools.permutations(range(size)), repeat=2):
        columns = list(zip(s, t))
        columns.remove((0, 0)) if (0, 0) in columns else columns.pop()
        for column in columns:
            counts[column] += 1
    law = counts / counts.sum()
    generator, batches = torch.Generator().manual_seed(0), 4000
    drawn = torch.zeros(size, size)
    for _ in range(batches):
        index = mc.sample_tuples(size, scheme="cyclic", generator=generator)
        drawn.index_put_((index[0, 1:, 1], index[0, 1:, 2]), torch.ones(size - 1), accumulate=True)
    expected = law * batches * (size - 1)
    assert ((drawn - expected).abs() < 5 * expected.sqrt() + 1e-9).all()


@pytest.mark.parametrize("size", [4096, 9000, 33_000])
def test_large_batches_have_permutations_too(size):
    index = sample(size, 3, "permutation", 0, num_negatives=2)
    ordered = index[:, 1:].sort(dim=0).values
    assert torch.equal(ordered, torch.arange(size)[:, None, None].expand_as(ordered))
    moved = index[:, 1, 1] - index[:, 1, 2]
    assert (moved == 0).sum() < 20  # two independent permutations meet about once


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_generator_decides(scheme):
    assert torch.equal(sample(20, 3, scheme, 1), sample(20, 3, scheme, 1))
    if scheme != "tied":
        assert not torch.equal(sample(20, 3, scheme, 1), sample(20, 3, scheme, 2))
    torch.manual_seed(5)
    first = mc.sample_tuples(20, scheme=scheme)
    torch.manual_seed(5)
    assert torch.equal(first, mc.sample_tuples(20, scheme=scheme))


def test_one_sample_and_no_negatives():
    assert mc.sample_tuples(1).tolist() == [[[0, 0, 0]]]
    assert mc.sample_tuples(3, num_negatives=0).shape == (3, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (((0,), {}), ValueError, "`batch_size` >= 1; got 0"),
        (((4, 1), {}), ValueError, "`num_modalities` >= 2; got 1"),
        (((4.0,), {}), TypeError, "`batch_size` to be an int; got 4.0"),
        (((1,), {"num_negatives": 2}), ValueError, "at least two samples"),
        (((4,), {"num_negatives": -1}), ValueError, "`num_negatives` >= 0; got -1"),
        (((4,), {"num_negatives": True}), TypeError, "`num_negatives` to be an int"),
        (((4,), {"num_negatives": 4, "scheme": "shared"}), ValueError, "at most batch_size - 1 = 3 negatives"),
        (((4,), {"scheme": "permutations"}), ValueError, "Did you mean 'permutation'"),
        (((4,), {"scheme": 3}), TypeError, "`scheme` to be one of"),
    ],
)
def test_errors_of_drawing_are_worded(arguments, error, words):
    positional, named = arguments
    with pytest.raises(error, match=words):
        mc.sample_tuples(*positional, **named)
