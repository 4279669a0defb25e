"""Every loss equals its definition: values and gradients, every scheme, every similarity, every reduction."""

import itertools

import pytest
import torch
from torch import Tensor

import multicontrast as mc
from multicontrast.losses import _rows
from tests import definitions

SIMILARITIES = ["eigenvalue", "singular_value", "mean_cosine", "volume", "area", "multilinear"]
SCHEMES = ["permutation", "shared", "cyclic", "tied"]


def embeddings(count: int, size: int, dim: int = 6, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, dim, dtype=torch.float64, generator=generator)
    return [
        (common + scale * torch.randn(size, dim, dtype=torch.float64, generator=generator)).requires_grad_()
        for _ in range(count)
    ]


def assert_same(
    ours: Tensor, theirs: Tensor, inputs: list[Tensor], value: float = 1e-10, gradient: float = 1e-8
) -> None:
    """Values within ``value`` and, for a random cotangent, gradients within ``gradient``."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=value, rtol=value)
    cotangent = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(ours, inputs, cotangent, retain_graph=True)
    expected = torch.autograd.grad(theirs, inputs, cotangent, retain_graph=True)
    for g, e in zip(got, expected):
        torch.testing.assert_close(g, e, atol=gradient, rtol=gradient)


def reduced(rows: Tensor, reduction: str) -> Tensor:
    return {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tau", [0.3, 0.01], ids=["one shift", "a shift for each row"])
def test_pairwise_is_equation_1(tau, symmetric, reduction):
    inputs = [*embeddings(2, 7), torch.tensor(tau, dtype=torch.float64, requires_grad=True)]
    x, y, t = inputs
    rows = definitions.directed_infonce(x, y, t)
    if symmetric:
        rows = (rows + definitions.directed_infonce(y, x, t)) / 2
    ours = mc.pairwise_infonce(x, y, t, symmetric=symmetric, reduction=reduction)
    assert_same(ours, reduced(rows, reduction), inputs)


@pytest.mark.parametrize("decomposition", ["eigvalsh", "svdvals"])
@pytest.mark.parametrize("size", [2, 9, 33])
def test_triplet_is_algorithm_2(size, decomposition):
    inputs = [*embeddings(3, size), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)]
    index = definitions.algorithm1(size, generator=torch.Generator().manual_seed(size))
    theirs = definitions.algorithm2_triplet(*inputs[:3], index, inputs[3], decomposition)
    assert_same(mc.triplet_infonce(*inputs, negatives=index), theirs, inputs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_similarity_with_every_scheme(count, similarity, scheme, reduction):
    inputs = [*embeddings(count, 6, seed=count), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]
    index = mc.sample_tuples(6, count, scheme=scheme, generator=torch.Generator().manual_seed(3))
    theirs = definitions.sampled_infonce(inputs[:-1], index, inputs[-1], similarity)
    options = {"similarity": similarity, "reduction": reduction}
    drawn = mc.multimodal_infonce(
        inputs[:-1], inputs[-1], negatives=scheme, generator=torch.Generator().manual_seed(3), **options
    )
    assert_same(drawn, reduced(theirs, reduction), inputs)
    given = mc.multimodal_infonce(inputs[:-1], inputs[-1], negatives=index, **options)
    assert_same(given, reduced(theirs, reduction), inputs)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("number", [0, 1, 4])
def test_fewer_negatives(scheme, number):
    inputs = embeddings(3, 7)
    options = {"num_negatives": number, "generator": torch.Generator().manual_seed(5)}
    index = mc.sample_tuples(7, 3, scheme=scheme, **options)
    assert index.shape == (7, 1 + number, 3)
    options["generator"] = torch.Generator().manual_seed(5)
    ours = mc.triplet_infonce(*inputs, 0.3, negatives=scheme, **options)
    assert_same(ours, definitions.sampled_infonce(inputs, index, 0.3).mean(), inputs)


@pytest.mark.parametrize("count", [5, 8])
def test_more_modalities(count):
    inputs = embeddings(count, 5, seed=count)
    index = mc.sample_tuples(5, count, generator=torch.Generator().manual_seed(0))
    ours = mc.multimodal_infonce(inputs, 0.3, negatives=index)
    assert_same(ours, definitions.sampled_infonce(inputs, index, 0.3).mean(), inputs)


@pytest.mark.parametrize("anchor", [0, "any"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("count", [2, 3])
def test_every_tuple_of_the_batch(count, similarity, reduction, anchor):
    inputs = [*embeddings(count, 5, seed=2), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]
    theirs = definitions.exact_infonce(inputs[:-1], inputs[-1], similarity, anchor)
    ours = mc.multimodal_infonce(
        inputs[:-1], inputs[-1], similarity=similarity, negatives="all", anchor=anchor, reduction=reduction
    )
    assert_same(ours, reduced(theirs, reduction), inputs)


@pytest.mark.parametrize("anchor", [0, "any"])
@pytest.mark.parametrize("count", [4, 5])
def test_every_tuple_of_many_modalities_by_the_mean_cosine(count, anchor):
    inputs = embeddings(count, 3)
    theirs = definitions.exact_infonce(inputs, 0.2, "mean_cosine", anchor).mean()
    ours = mc.multimodal_infonce(inputs, 0.2, similarity="mean_cosine", negatives="all", anchor=anchor)
    assert_same(ours, theirs, inputs)


def test_the_paper_counts_the_triplets_that_hold_an_embedding_of_the_anchor():
    size = 4
    assert len(definitions.every_tuple(size, 3, 1, "any")) == 3 * size**2 - 3 * size + 1
    assert len(definitions.every_tuple(size, 3, 1, 0)) == size**2


@pytest.mark.parametrize("negatives", [*SCHEMES, "index", "all"])
@pytest.mark.parametrize("pairs", [((0, 1), (0, 2), (1, 2)), ((0, 1), (0, 2)), ((1, 2),), ()])
def test_trimodal_is_the_pairs_and_the_triplet(pairs, negatives):
    size, alpha = 8, 0.7
    inputs = [*embeddings(3, size), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]
    xs, tau = inputs[:3], inputs[3]
    if negatives == "all":
        triplet = definitions.exact_infonce(xs, tau).mean()
    else:
        scheme = "permutation" if negatives == "index" else negatives
        index = mc.sample_tuples(size, scheme=scheme, generator=torch.Generator().manual_seed(4))
        triplet = definitions.sampled_infonce(xs, index, tau).mean()
    theirs = sum((definitions.pair_infonce(xs[m], xs[n], tau) for m, n in pairs), start=0) + alpha * triplet
    ours = mc.trimodal_infonce(
        *xs,
        tau,
        alpha=alpha,
        pairs=pairs,
        negatives=index if negatives == "index" else negatives,
        generator=torch.Generator().manual_seed(4),
    )
    assert_same(ours, theirs, inputs)


def test_trimodal_without_the_triplet_is_the_pairs():
    inputs = embeddings(3, 6)
    assert_same(mc.trimodal_infonce(*inputs, 0.1, alpha=0), definitions.three_pairs(inputs, 0.1), inputs)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=4)))
def test_frozen_encoders_and_a_frozen_temperature(wanted):
    """The gradient of what trains does not depend on what is frozen."""
    if not any(wanted):
        return
    values = [*embeddings(3, 6), torch.tensor(0.3, dtype=torch.float64)]
    for value, needed in zip(values, wanted):
        value.requires_grad_(needed)
    index = mc.sample_tuples(6, generator=torch.Generator().manual_seed(0))
    trained = [value for value, needed in zip(values, wanted) if needed]
    for similarity in ("eigenvalue", "volume"):
        theirs = (
            definitions.three_pairs(values[:3], values[3])
            + definitions.sampled_infonce(values[:3], index, values[3], similarity).mean()
        )
        ours = mc.trimodal_infonce(*values, negatives=index, similarity=similarity)
        assert_same(ours, theirs, trained)


@pytest.mark.parametrize("size", [1, 63, 100, 128, 400])
@pytest.mark.parametrize("negatives", ["permutation", "shared", "cyclic", "tied"])
def test_blocks_of_rows_join_up(negatives, size):
    """The fused road and the plain one agree at sizes of one and of several row blocks, in float32."""
    xs = [x.detach().float().requires_grad_() for x in embeddings(3, size, dim=24)]
    tau = torch.tensor(0.1, requires_grad=True)
    results = []
    for reduction in ("sum", "none"):
        generator = torch.Generator().manual_seed(0)
        loss = mc.trimodal_infonce(*xs, tau, negatives=negatives, generator=generator, reduction=reduction).sum()
        results.append((loss, torch.autograd.grad(loss, [*xs, tau])))
    (fused, fused_grads), (plain, plain_grads) = results
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-4)
    for f, p in zip(fused_grads, plain_grads):
        torch.testing.assert_close(f, p, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dim", [40, 60, 200], ids=["unit rows", "scaled products", "cosines kept"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("negatives", ["permutation", "shared", "cyclic"])
def test_lengths_are_undone_in_the_products_or_in_the_rows(negatives, normalize, dim, monkeypatch):
    """In short batches the products of the embeddings are scaled, some at a time, and no unit rows are made. Values and
    gradients are those of the plain road, whichever embeddings are trained and whatever comes from above."""
    monkeypatch.setattr(_rows, "_CHUNK", 1000)
    size = 50
    lengths = torch.logspace(-3, 3, size, dtype=torch.float64)[:, None] if normalize else 0.1
    for wanted in [(True, True, True, True), (True, False, True, True), (False, True, False, False)]:
        inputs = [(lengths * x.detach()).requires_grad_(need) for x, need in zip(embeddings(3, size, dim), wanted)]
        inputs.append(torch.tensor(0.2, dtype=torch.float64, requires_grad=wanted[3]))
        results = []
        for reduction in ("sum", "none"):
            generator = torch.Generator().manual_seed(0)
            options = {"negatives": negatives, "generator": generator, "normalize": normalize}
            loss = mc.trimodal_infonce(*inputs, **options, reduction=reduction).sum()
            results.append(-2.5 * loss)
        assert_same(*results, [x for x in inputs if x.requires_grad])
