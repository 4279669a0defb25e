"""Properties of the masks, by hypothesis; their derivatives, transforms, ranges and memory."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multicontrast as mc
from multicontrast.losses import reference
from multicontrast.losses.softmax import Masks
from tests.definitions import shaped_cross_entropy
from tests.losses.inputs import (
    IDS,
    OPTIONS,
    PRESENT,
    SCHEMES,
    SIMILARITIES,
    SIZE,
    WEIGHT,
    assert_same,
    assert_transforms_agree,
    embeddings,
    further,
    poisoned,
    trimodal_of_range,
)

seeds = st.integers(0, 2**16)
sizes = st.integers(2, 7)
schemes = st.sampled_from([*SCHEMES, "all"])
similarities = st.sampled_from(SIMILARITIES)
reductions = st.sampled_from(["mean", "sum", "none"])


def draw(seed, size):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 5, dtype=torch.float64, generator=generator) for _ in range(3)], generator


def loss_of(xs, seed, **options):
    return mc.trimodal_infonce(*xs, 0.3, generator=torch.Generator().manual_seed(seed), **options)


@given(seeds, sizes, schemes, st.integers(-30, 30))
def test_scaling_all_weights_changes_no_bit_of_a_mean(seed, size, negatives, power):
    xs, generator = draw(seed, size)
    weight = torch.rand(size, dtype=torch.float64, generator=generator)
    losses = [loss_of(xs, seed, negatives=negatives, weight=w) for w in (weight, weight * 2.0**power)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_taken_as_they_are(dtype):
    weight = torch.tensor([1.0, 3.0, 0.7, 5.0, 0.3, 2.2, 0.9], dtype=dtype)
    xs = embeddings(3, len(weight))
    assert torch.equal(loss_of(xs, 0, weight=weight), loss_of(xs, 0, weight=weight.double()))


@given(seeds, sizes, schemes, similarities, st.sampled_from([float("nan"), float("inf"), 1e300]))
def test_what_absent_rows_hold_changes_no_bit(seed, size, negatives, similarity, value):
    xs, generator = draw(seed, size)
    present = torch.rand(size, 3, generator=generator) < 0.7
    present[0] = True
    results = []
    for filled in (xs, [torch.where(present[:, m, None], x, value) for m, x in enumerate(xs)]):
        leaves = [x.clone().requires_grad_() for x in filled]
        loss = loss_of(leaves, seed, negatives=negatives, similarity=similarity, present=present)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for first, second in zip(*results):
        assert torch.equal(first, second)


@pytest.mark.parametrize("hardness", [5e-324, 1e-46, 1e-8, 30.0, 1e4, 1e8, 1e30, 1e38, 1e308])
@pytest.mark.parametrize("split", [False, True])
def test_any_hardness_is_right_in_float32(hardness, split):
    """At its ends all negatives weigh alike, and the nearest alone: no sum overflows, and no two large ones cancel."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.nn.functional.normalize(torch.randn(2, 6, 5, generator=generator), dim=-1)
    extra = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=-1)
    rows = [x.clone().requires_grad_(), x.double().requires_grad_()]
    masks = {"normalize": False} | ({"extra_negatives": [None, extra]} if split else {})
    loss = mc.pairwise_infonce(rows[0], y, 0.1, symmetric=False, hardness=hardness, reduction="none", **masks)
    candidates = torch.cat((y, extra)) if split else y
    logits = rows[1] @ candidates.double().mT / 0.1
    others = [torch.cat((row[:i], row[i + 1 :])) for i, row in enumerate(logits)]
    expected = torch.stack([shaped_cross_entropy(logits[i, i], z, hardness=hardness) for i, z in enumerate(others)])
    if hardness < 1e300:  # beyond it the definition overflows
        torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    nearest = [torch.logaddexp(logits[i, i], z.max() + math.log(len(z))) - logits[i, i] for i, z in enumerate(others)]
    if hardness >= 1e4:
        torch.testing.assert_close(loss.double(), torch.stack(nearest), rtol=1e-4, atol=1e-4)
    loss.sum().backward()
    (expected if hardness < 1e4 else torch.stack(nearest)).sum().backward()
    torch.testing.assert_close(rows[0].grad.double(), rows[1].grad, rtol=1e-3, atol=1e-3)


@given(seeds, sizes, st.floats(0, 0.9))
def test_smoothing_is_that_of_torch(seed, size, smoothing):
    (x, y, _), _ = draw(seed, size)
    logits = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).mT / 0.3
    theirs = torch.nn.functional.cross_entropy(logits, torch.arange(size), label_smoothing=smoothing)
    ours = mc.pairwise_infonce(x, y, 0.3, symmetric=False, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("option", OPTIONS)
def test_transforms_of_torch_func(option):
    options = dict(OPTIONS[option]) | {"present": PRESENT}
    stacked = torch.stack([torch.stack(embeddings(3, SIZE, seed=s)).detach() for s in range(3)])
    index = mc.sample_tuples(SIZE, generator=torch.Generator().manual_seed(1))

    def loss(xs):
        return mc.trimodal_infonce(*xs.unbind(0), 0.2, negatives=index, similarity="area", **options)

    assert_transforms_agree(loss, stacked)
    masks = torch.rand(3, SIZE, 3, generator=torch.Generator().manual_seed(0)) < 0.8
    rest = {name: value for name, value in options.items() if name != "present"}

    def masked(xs, present):
        return mc.trimodal_infonce(*xs.unbind(0), 0.2, negatives=index, present=present, **rest)

    together = torch.func.vmap(masked)(stacked, masks)
    torch.testing.assert_close(together, torch.stack([masked(x, p) for x, p in zip(stacked, masks)]))


@pytest.mark.parametrize("negatives", [*SCHEMES, "all"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ranges_of_anchors_join_up(reduction, negatives):
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    masks = Masks(PRESENT, IDS, WEIGHT, 0.1, 0.4, tuple(further(3)))
    for anchor in (0, "any") if negatives == "all" else (0,):
        xs = embeddings(3, SIZE)
        options = {"similarity": "area", "negatives": negatives, "anchor": anchor, "alpha": 0.7, "reduction": reduction}
        options["pairs"] = ((0, 1), (1, 2))
        results = []
        for anchors in (None, (0, 2), (2, 2), (2, SIZE)):
            generator = torch.Generator().manual_seed(1)
            results.append(trimodal_of_range(xs, tau, anchors, masks, generator, **options))
        whole, *parts = results
        ours = torch.cat(parts) if reduction == "none" else torch.stack(parts).sum()
        assert_same(ours, whole, [*xs, tau])


@pytest.mark.parametrize("negatives", ["index", "tied", "all"])
def test_one_graph_without_a_break(negatives):
    """Under torch.compile nobody looks at values, and the numbers stay."""
    xs = [x.detach().float() for x in embeddings(3, SIZE)]
    chosen = mc.sample_tuples(SIZE, generator=torch.Generator().manual_seed(0)) if negatives == "index" else negatives

    def loss(x, y, z, present, ids, weight):
        return mc.trimodal_infonce(x, y, z, 0.2, negatives=chosen, present=present, ids=ids, weight=weight)

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    arguments = (*xs, PRESENT, IDS, WEIGHT.float())
    torch.testing.assert_close(compiled(*arguments), loss(*arguments))


@pytest.mark.parametrize("negatives", [*SCHEMES, None])
def test_masks_keep_a_quarter_of_the_logits_they_mask(negatives):
    """What is kept for the backward pass: bool masks, and no second copy of any logits."""
    size = 128
    xs, generator = draw(0, size)
    xs = [x.float().requires_grad_() for x in xs]

    def kept(**options):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = (tensor, tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if negatives is None:
                mc.pairwise_infonce(*xs[:2], 0.3, reduction="none", **options)
            else:
                loss_of(xs, 0, negatives=negatives, reduction="none", **options)
        return sum(count for _, count in storages.values())

    softmaxes = 2 if negatives is None else 7
    ids = torch.arange(size) // 2
    present = torch.rand(size, 2 if negatives is None else 3, generator=generator) < 0.8
    for options in ({"ids": ids}, {"present": present}, {"ids": ids, "present": present}):
        assert kept(**options) <= kept() + softmaxes * size**2 + 1000 * size


@pytest.mark.parametrize("negatives", [*SCHEMES, "all"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_batch_without_samples_is_0_and_warns_once(negatives, similarity):
    """Every sample has one modality at most, and rubbish elsewhere."""
    present = torch.eye(3, dtype=torch.bool)[[0, 1, 2, 0]]
    given = poisoned([x[:4].detach() for x in embeddings(3, SIZE)], present, torch.inf)
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    reference._warn_once_of_no_anchor.cache_clear()
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


def test_a_row_number_out_of_range_is_nan_under_masks_too():
    """Off the CPU and under transforms nobody looks at an index: nothing is read, and nothing passes as a number."""
    index = mc.sample_tuples(SIZE)
    index[0, 1, 1] = 99
    xs = [x.detach() for x in embeddings(3, SIZE)]
    options = {"ids": IDS, "present": PRESENT, "reduction": "none"}
    rows = torch.func.vmap(lambda i: mc.triplet_infonce(*xs, 0.3, negatives=i, **options))(index[None])[0]
    assert rows[0].isnan()
    assert rows[1:].isfinite().all()
