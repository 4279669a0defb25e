"""A walk over a range of the anchors: results of ranges that partition the batch join up to that of the whole."""

import pytest
import torch

import multicontrast as mc
from multicontrast.losses._road import choose_tuples, walk_loss
from multicontrast.losses._walk import Walk
from tests.losses.test_values import SCHEMES, SIMILARITIES, assert_same, embeddings

RANGES = [(0, 3), (3, 3), (3, 4), (4, 7)]  # ragged, one empty, one of a single row


def tuples_of(xs, scheme, similarity, anchor, anchors):
    size, count = len(xs[0]), len(xs)
    generator = torch.Generator().manual_seed(1)
    if scheme == "index":  # which does not anchor modality 0
        index = mc.sample_tuples(size, count, num_negatives=4, generator=generator)[torch.arange(size).flip(0)]
        scheme = index[slice(*anchors) if anchors else slice(None)]
    return choose_tuples("test", xs, similarity, scheme, None, anchor, generator, 0.7, anchors)


def results(xs, tau, scheme, similarity, anchor, pairs, reduction, symmetric, tiled=None):
    whole, parts = [], []
    for anchors in [None, *RANGES]:
        tuples = None if scheme is None else tuples_of(xs, scheme, similarity, anchor, anchors)
        walk = Walk(len(xs), pairs, symmetric, tuples, reduction, anchors)
        (whole if anchors is None else parts).append(walk_loss("test", xs, tau, walk, normalize=True, tiled=tiled))
    return torch.cat(parts) if reduction == "none" else torch.stack(parts).sum(), whole[0]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("scheme", [*SCHEMES, "index", "all"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("count", [2, 3])
def test_tuples(count, similarity, scheme, reduction):
    inputs = [*embeddings(count, 7), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]
    pairs = ((0, 1), (1, 2)) if count == 3 else ()
    for anchor in (0, "any") if scheme == "all" else (0,):
        ours, whole = results(inputs[:-1], inputs[-1], scheme, similarity, anchor, pairs, reduction, True)
        assert_same(ours, whole, inputs)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_pairs(symmetric, tiled):
    inputs = [*embeddings(2, 7), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]
    for reduction in ("mean", "sum", "none"):
        ours, whole = results(inputs[:2], inputs[2], None, None, 0, ((0, 1),), reduction, symmetric, tiled)
        assert_same(ours, whole, inputs)


@pytest.mark.parametrize("anchor", [0, "any"])
def test_many_modalities_by_the_mean_cosine(anchor):
    inputs = [*embeddings(4, 7), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]
    ours, whole = results(inputs[:-1], inputs[-1], "all", "mean_cosine", anchor, (), "none", True)
    assert_same(ours, whole, inputs)


@pytest.mark.parametrize("scheme", ["permutation", "shared", "tied"])
def test_tuples_in_tiles(scheme):
    inputs = [*embeddings(3, 7), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]
    ours, whole = results(inputs[:-1], inputs[-1], scheme, "eigenvalue", 0, ((0, 2),), "mean", True, True)
    assert_same(ours, whole, inputs)


def test_only_rows_of_the_range_are_multiplied():
    """The blocks of the anchor are products of its rows alone: no tensor of the walk has B^2 entries."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.entries = max(self.entries, out.numel())
            return out

    xs = embeddings(3, 40, dim=3)
    for scheme, tiled in (("tied", None), ("shared", None), ("permutation", True)):
        tuples = tuples_of(xs, scheme, "eigenvalue", 0, (4, 8))
        walk = Walk(3, ((0, 1), (1, 2)), True, tuples, "mean", (4, 8))
        with Largest() as seen:
            walk_loss("test", xs, torch.tensor(0.3), walk, normalize=True, tiled=tiled).backward()
        assert 4 * 40 <= seen.entries < 40 * 40
