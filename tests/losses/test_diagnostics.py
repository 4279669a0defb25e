"""Diagnostics equal those of the definitions, and need no further matrix product."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import multicontrast as mc
from tests import definitions
from tests.losses.inputs import IDS, OPTIONS, PRESENT, SCHEMES, SIMILARITIES, SIZE, embeddings, poisoned

TAU = 0.3


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.overloadpacket.__name__.rstrip("_") in ("mm", "bmm", "addmm", "baddbmm")
        return function(*args, **(kwargs or {}))


def look(logits: torch.Tensor, loss: torch.Tensor, ours: mc.TermDiagnostics, direction: int = 0) -> None:
    """Rows whose positive is in column 0; no masks."""
    logits = logits.detach()
    assert math.isclose(ours.accuracy[direction], (logits[:, 0] > logits[:, 1:].amax(1)).double().mean())
    p = logits[:, 1:].softmax(1)
    assert math.isclose(ours.effective_negatives[direction], (1 / p.square().sum(1)).mean())
    assert math.isclose(ours.positive_similarity, TAU * logits[:, 0].mean(), abs_tol=1e-12)
    torch.testing.assert_close(ours.loss, loss)
    assert ours.anchors == len(logits)


@pytest.mark.parametrize("tiled", [None, True])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pairs(symmetric, tiled):
    x, y = embeddings(2, SIZE)
    seen = mc.Diagnostics()
    loss = mc.pairwise_infonce(x, y, TAU, symmetric=symmetric, diagnostics=seen, tiled=tiled)
    torch.testing.assert_close(loss, mc.pairwise_infonce(x, y, TAU, symmetric=symmetric))
    (term,) = seen.pairs.values()
    cosines = definitions.unit(x) @ definitions.unit(y).mT
    off = ~torch.eye(SIZE, dtype=torch.bool)
    for direction, block in enumerate((cosines, cosines.mT)[: 1 + symmetric]):
        logits = torch.cat((block.diagonal()[:, None], block[off].view(SIZE, -1)), 1) / TAU
        look(logits, loss, term, direction)
    torch.testing.assert_close(term.negative_similarity, cosines[off].mean())
    assert math.isclose(term.floor, math.log(1 + (SIZE - 1) * math.exp(-1 / TAU)))
    assert term.sign_flipped is None
    assert not any(value.requires_grad for value in seen.as_dict().values())


def test_the_floor_is_the_loss_of_aligned_orthogonal_samples():
    """0.79 and 0.008 at the paper's batch of 180 and tau = 1/5, in every shape of the softmax."""
    for options in ({}, {"label_smoothing": 0.1}, {"hardness": 0.5}):
        seen = mc.Diagnostics()
        x = torch.eye(180, dtype=torch.float64)
        mc.trimodal_infonce(x, x, x, 0.2, negatives="tied", diagnostics=seen, **options)
        torch.testing.assert_close(seen.pairs[0, 1].floor, seen.pairs[0, 1].loss)
        mc.triplet_infonce(x, x, x, 0.2, negatives="shared", diagnostics=seen, **options)
        if not options:
            assert seen.pairs == {}
            assert round(seen.tuples.floor.item(), 3) == 0.008
        mc.pairwise_infonce(x, x, 0.2, diagnostics=seen, **options)
        if not options:
            assert round(seen.pairs[0, 1].floor.item(), 2) == 0.79


@pytest.mark.parametrize("negatives", [*SCHEMES, "all"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_tuples(similarity, negatives):
    xs = embeddings(3, SIZE, seed=2)
    seen = mc.Diagnostics(sampling_gap=negatives != "all")
    options = {"similarity": similarity, "negatives": negatives}
    loss = mc.triplet_infonce(*xs, TAU, generator=torch.Generator().manual_seed(3), diagnostics=seen, **options)
    if negatives == "all":
        index = torch.tensor([definitions.every_tuple(SIZE, 3, i, 0) for i in range(SIZE)])
    else:
        index = mc.sample_tuples(SIZE, scheme=negatives, generator=torch.Generator().manual_seed(3))
        exact = definitions.exact_infonce(xs, TAU, similarity).mean()
        torch.testing.assert_close(seen.tuples.sampling_gap, exact - loss)
    stacked = torch.stack([definitions.unit(x) for x in xs], 1)
    values = definitions.tuple_similarity(stacked[index, torch.arange(3)], similarity)
    look(values / TAU, loss, seen.tuples)
    torch.testing.assert_close(seen.tuples.negative_similarity, values[:, 1:].mean())
    leading = torch.linalg.eigh(stacked @ stacked.mT).eigenvectors[..., -1]
    flipped = ((leading > 0).any(1) & (leading < 0).any(1)).double().mean()
    torch.testing.assert_close(seen.tuples.sign_flipped, flipped)


def test_a_flipped_modality_is_seen():
    x = embeddings(1, SIZE)[0]
    for sign, share in ((1, 0.0), (-1, 1.0)):
        seen = mc.Diagnostics()
        mc.triplet_infonce(x, sign * x, x, TAU, diagnostics=seen)
        assert seen.tuples.sign_flipped == share
    assert seen.tuples.positive_similarity == pytest.approx(3)


@pytest.mark.parametrize("option", OPTIONS)
def test_under_masks(option):
    """Losses are means over who takes part, and everything is finite whatever absent rows hold."""
    options = OPTIONS[option]
    given = poisoned(embeddings(3, SIZE), options.get("present"))
    seen = mc.Diagnostics(sampling_gap=True)
    loss = mc.trimodal_infonce(*given, TAU, alpha=0.7, negatives="tied", diagnostics=seen, **options)
    torch.testing.assert_close(sum(term.loss for term in seen.pairs.values()) + 0.7 * seen.tuples.loss, loss)
    assert all(value.isfinite().all() for value in seen.as_dict().values())
    if "present" in options:
        assert seen.tuples.anchors == (PRESENT.sum(1) >= 2).sum()
        assert [seen.pairs[m, n].anchors for m, n in itertools.combinations(range(3), 2)] == [3, 2, 3]
    if option == "ids":
        cosines = definitions.unit(given[0]) @ definitions.unit(given[1]).mT
        p = (cosines / TAU).masked_fill(IDS[:, None] == IDS, -torch.inf).softmax(1)
        assert math.isclose(seen.pairs[0, 1].effective_negatives[0], (1 / p.square().sum(1)).mean().detach())


@pytest.mark.parametrize("negatives", [*SCHEMES, "all"])
def test_no_further_product(negatives):
    """Neither than without diagnostics, nor in the backward pass."""
    xs = embeddings(3, SIZE)
    counts = []
    for seen in (None, mc.Diagnostics()):
        for reduction in ("mean", "none"):
            with Products() as products:
                loss = mc.trimodal_infonce(
                    *xs, TAU, negatives=negatives, reduction=reduction, diagnostics=seen,
                    generator=torch.Generator().manual_seed(0),
                )  # fmt: skip
                loss.sum().backward()
            counts.append(products.number)
    assert counts[0] > 0
    assert max(counts[2:]) <= min(counts[:2])


def test_what_cannot_be_filled_is_said():
    x = torch.eye(3)
    with pytest.raises(TypeError, match=r"`diagnostics` to be a Diagnostics or None; got True\. Make one"):
        mc.pairwise_infonce(x, x, 0.1, diagnostics=True)
    with pytest.raises(ValueError, match="up to three modalities"):
        mc.multimodal_infonce([x] * 4, 0.1, diagnostics=mc.Diagnostics(sampling_gap=True))
