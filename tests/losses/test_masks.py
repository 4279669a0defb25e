"""Missing modalities, duplicates, weights, smoothing, hardness and further negatives equal their definitions."""

import itertools
import warnings

import pytest
import torch
from torch import Tensor

import multicontrast as mc
from multicontrast.losses import _masked
from tests import definitions
from tests.losses.test_values import SCHEMES, SIMILARITIES, embeddings

SIZE = 5
PRESENT = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
IDS = torch.tensor([7, 2, 7, 2, 5])
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.0], dtype=torch.float64)


def further(count: int, *missing: int) -> list[Tensor | None]:
    rows = [x.detach() for x in embeddings(count, 3, seed=9)]
    return [None if m in missing else row for m, row in enumerate(rows)]


OPTIONS = {
    "present": {"present": PRESENT},
    "ids": {"ids": IDS},
    "weight": {"weight": WEIGHT},
    "smoothing": {"label_smoothing": 0.2},
    "hardness": {"hardness": 0.7},
    "extra": {"extra_negatives": further(3)},
    "some extra": {"extra_negatives": further(3, 1), "present": PRESENT},
    "everything": {
        "present": PRESENT,
        "ids": IDS,
        "weight": WEIGHT,
        "label_smoothing": 0.1,
        "hardness": 0.4,
        "extra_negatives": further(3),
    },
}


def poisoned(inputs: list[Tensor], present: Tensor | None, value: float = torch.nan) -> list[Tensor]:
    """The same embeddings with rubbish where nothing is; leaves of their own."""
    if present is None:
        return inputs
    return [
        torch.where(present[:, m, None], x.detach(), value).requires_grad_() for m, x in enumerate(inputs)
    ]  # fmt: skip


def split(options: dict, modalities=slice(None)) -> tuple[dict, Tensor | None]:
    """The options as the definitions take them, and the weight, for some of the modalities."""
    theirs = dict(options)
    weight = theirs.pop("weight", None)
    if "extra_negatives" in theirs:
        theirs["extra"] = theirs.pop("extra_negatives")[modalities]
    if "present" in theirs:
        theirs["present"] = theirs["present"][:, modalities]
    return theirs, weight


def check(ours: Tensor, theirs: Tensor, given: list[Tensor], clean: list[Tensor], tau: Tensor) -> None:
    """Values and gradients; those of absent rows are exactly 0."""
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    cotangent = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(ours, [*given, tau], cotangent)
    expected = torch.autograd.grad(theirs, [*clean, tau], cotangent, materialize_grads=True, retain_graph=True)
    for g, e in zip(got, expected):
        torch.testing.assert_close(g, e, atol=1e-8, rtol=1e-8)
    for g, x in zip(got, given):
        assert torch.equal(g[x.isnan()], torch.zeros_like(g[x.isnan()]))


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("option", OPTIONS)
def test_pairs(option, symmetric, tiled):
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    clean = embeddings(2, SIZE)
    theirs, weight = split(OPTIONS[option], slice(0, 2))
    ours = dict(OPTIONS[option])
    ours |= {"present": theirs["present"]} if "present" in theirs else {}
    ours |= {"extra_negatives": theirs["extra"]} if "extra" in theirs else {}
    given = poisoned(clean, theirs.get("present"))
    rows, here = definitions.masked_pair_infonce(*clean, tau, symmetric=symmetric, **theirs)
    for reduction in ("mean", "sum", "none"):
        loss = mc.pairwise_infonce(*given, tau, symmetric=symmetric, reduction=reduction, tiled=tiled, **ours)
        check(loss, definitions.average(rows, here, weight, reduction), given, clean, tau)


def compared(scheme: str, anchor: object, count: int = 3) -> tuple[list, Tensor | str]:
    """The tuples of each anchor, and what says so to the library."""
    if scheme == "all":
        return [definitions.every_tuple(SIZE, count, i, anchor) for i in range(SIZE)], "all"
    index = mc.sample_tuples(SIZE, count, scheme=scheme, generator=torch.Generator().manual_seed(3))
    return index.tolist(), index


CROSSED = [
    *itertools.product(["everything"], SIMILARITIES),
    *itertools.product([option for option in OPTIONS if option != "everything"], ["eigenvalue"]),
    ("some extra", "area"),
    ("present", "mean_cosine"),
]


@pytest.mark.parametrize("scheme", [*SCHEMES, "index", "all", "any"])
@pytest.mark.parametrize(("option", "similarity"), CROSSED)
def test_triplets(option, similarity, scheme):
    anchor = "any" if scheme == "any" else 0
    drawn = {"any": "all", "index": "permutation"}.get(scheme, scheme)
    cells, negatives = compared(drawn, anchor)
    if scheme in SCHEMES:
        negatives = scheme
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    clean = embeddings(3, SIZE, seed=4)
    theirs, weight = split(OPTIONS[option])
    given = poisoned(clean, theirs.get("present"))
    rows, here = definitions.masked_tuple_infonce(clean, cells, tau, similarity, **theirs)
    for reduction, tiled in (("mean", None), ("none", True)):
        loss = mc.triplet_infonce(
            *given,
            tau,
            similarity=similarity,
            negatives=negatives,
            anchor=anchor,
            generator=torch.Generator().manual_seed(3),
            reduction=reduction,
            tiled=None if drawn == "all" else tiled,
            **OPTIONS[option],
        )
        check(loss, definitions.average(rows, here, weight, reduction), given, clean, tau)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_other_numbers_of_modalities(similarity, count):
    present = torch.rand(SIZE, count, generator=torch.Generator().manual_seed(2)) < 0.7
    options = {"present": present, "ids": IDS, "extra_negatives": further(count)}
    theirs, _ = split(options)
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    clean = embeddings(count, SIZE, seed=4)
    given = poisoned(clean, present)
    schemes = [*SCHEMES, "all"] if count == 2 or similarity == "mean_cosine" else SCHEMES
    for scheme, anchor in [*itertools.product(schemes, [0]), *(("all", "any") for _ in schemes[4:])]:
        cells, negatives = compared(scheme, anchor, count)
        rows, here = definitions.masked_tuple_infonce(clean, cells, tau, similarity, **theirs)
        loss = mc.multimodal_infonce(given, tau, similarity=similarity, negatives=negatives, anchor=anchor, **options)
        check(loss, definitions.average(rows, here, None, "mean"), given, clean, tau)


@pytest.mark.parametrize("option", OPTIONS)
def test_trimodal_has_a_mean_for_each_term(option):
    alpha = 0.7
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    clean = embeddings(3, SIZE)
    cells, index = compared("permutation", 0)
    theirs, weight = split(OPTIONS[option])
    given = poisoned(clean, theirs.get("present"))
    for reduction in ("mean", "none"):
        rows, here = definitions.masked_tuple_infonce(clean, cells, tau, **theirs)
        expected = alpha * definitions.average(rows, here, weight, reduction)
        for m, n in ((0, 1), (0, 2), (1, 2)):
            of_pair, _ = split(OPTIONS[option], [m, n]) if "extra_negatives" not in OPTIONS[option] else (theirs, None)
            if "extra" in of_pair:
                of_pair = dict(theirs) | {"extra": [theirs["extra"][m], theirs["extra"][n]]}
                if "present" in theirs:
                    of_pair["present"] = theirs["present"][:, [m, n]]
            rows, here = definitions.masked_pair_infonce(clean[m], clean[n], tau, **of_pair)
            expected = expected + definitions.average(rows, here, weight, reduction)
        loss = mc.trimodal_infonce(*given, tau, alpha=alpha, negatives=index, reduction=reduction, **OPTIONS[option])
        check(loss, expected, given, clean, tau)


@pytest.mark.parametrize("negatives", [*SCHEMES, "all"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_nobody_left_is_0_and_said_once(negatives, similarity):
    """Every sample has one modality at most, and rubbish elsewhere."""
    present = torch.eye(3, dtype=torch.bool)[[0, 1, 2, 0]]
    given = poisoned([x[:4].detach() for x in embeddings(3, SIZE)], present, torch.inf)
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    _masked._say_that_nobody_is_left.cache_clear()
    for number, reduction in enumerate(("mean", "sum", "none")):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loss = mc.trimodal_infonce(
                *given, tau, negatives=negatives, similarity=similarity, reduction=reduction, present=present
            )
        assert len(said) == (number == 0)
        options = {"negatives": negatives, "similarity": similarity, "present": present}
        draws = [torch.Generator().manual_seed(seed) for seed in range(4)]  # some of which join no two that are there
        alone = [mc.triplet_infonce(*given, tau, generator=generator, **options) for generator in draws]
        for term in (loss, *alone):
            assert torch.equal(term, torch.zeros_like(term))
            for grad in torch.autograd.grad(term.sum(), [*given, tau]):
                assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tau", [0.3, 0.004], ids=["one shift", "a shift for each row"])
@pytest.mark.parametrize("negatives", [*SCHEMES, None])
def test_weights_on_the_fused_road(negatives, tau, symmetric):
    """Several row blocks; what the average of the anchors' losses has."""
    size = 400
    xs = [x.detach().float().requires_grad_() for x in embeddings(3, size, dim=24)]
    temperature = torch.tensor(tau, requires_grad=True)
    weight = torch.rand(size, generator=torch.Generator().manual_seed(7))

    def loss(**options):
        options["symmetric"] = symmetric
        if negatives is None:
            return mc.pairwise_infonce(*xs[:2], temperature, **options)
        generator = torch.Generator().manual_seed(0)
        pairs = ((0, 1), (1, 2))
        return mc.trimodal_infonce(
            *xs, temperature, negatives=negatives, generator=generator, pairs=pairs, similarity="area", **options
        )

    inputs = [*(xs if negatives else xs[:2]), temperature]
    for reduction in ("mean", "sum"):
        fused = loss(weight=weight, reduction=reduction)
        assert "DenseLoss" in type(fused.grad_fn).__name__
        plain = (loss(reduction="none") * weight).sum()
        if reduction == "mean":
            plain = plain / weight.sum()
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-4)
        scale = plain.detach().abs()
        for f, p in zip(torch.autograd.grad(fused, inputs), torch.autograd.grad(plain, inputs)):
            torch.testing.assert_close(f / scale, p / scale, rtol=1e-3, atol=1e-4)


def test_a_row_number_out_of_range_is_nan_under_masks_too():
    """Off the CPU and under transforms nobody looks at an index: nothing is read, and nothing passes as a number."""
    index = mc.sample_tuples(SIZE)
    index[0, 1, 1] = 99
    xs = [x.detach() for x in embeddings(3, SIZE)]
    options = {"ids": IDS, "present": PRESENT, "reduction": "none"}
    rows = torch.func.vmap(lambda i: mc.triplet_infonce(*xs, 0.3, negatives=i, **options))(index[None])[0]
    assert rows[0].isnan()
    assert rows[1:].isfinite().all()
