"""Every loss over several ranks is the loss of one process: its value, and every gradient after averaging."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import multicontrast as mc

SIMILARITIES = ["eigenvalue", "singular_value", "mean_cosine", "volume", "area", "multilinear"]
SCHEMES = ["permutation", "shared", "cyclic", "tied"]
SPLITS = {"2 ranks, uneven": [3, 5], "3 ranks, one empty": [3, 0, 5], "1 rank": [8]}
DIM = 5

Case = tuple[str, dict[str, Any]]


def encoders_and_inputs(total: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """Weights of four encoders, and the inputs of the whole batch, ``(4, B, D)``."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(4, DIM, DIM, dtype=torch.float64, generator=generator)
    common = torch.randn(total, DIM, dtype=torch.float64, generator=generator)
    inputs = common + torch.randn(4, total, DIM, dtype=torch.float64, generator=generator)
    return [nn.Parameter(weight.to(dtype)) for weight in weights], inputs.to(dtype)


def step(case: Case, rows: slice, total: int, **gathering: Any) -> tuple[Tensor, list[Tensor]]:
    """The loss of some rows of the batch, and its gradients by the encoders that it uses and by tau."""
    name, options = case
    options = dict(options)
    weights, inputs = encoders_and_inputs(total)
    count = options.pop("modalities", {"pairwise_infonce": 2}.get(name, 3))
    weights = weights[:count]
    tau = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    embeddings = [torch.tanh(x[rows] @ weight) for x, weight in zip(inputs, weights)]
    if options.get("negatives") == "index":
        index = mc.sample_tuples(total, count, num_negatives=4, generator=torch.Generator().manual_seed(1))
        options["negatives"] = index[torch.arange(total).flip(0)][rows]
    for local in ("present", "ids", "weight"):
        if local in options:
            options[local] = options[local][rows]
    if "seed" in options:
        options["generator"] = torch.Generator().manual_seed(options.pop("seed"))
    temperatures = tau
    if options.pop("by_terms", False):
        temperatures = dict(zip(((0, 1), (0, 2), (1, 2), "triplet"), (tau, 2 * tau, 0.5, 3 * tau)))
    function = getattr(mc, name)
    arguments = (embeddings,) if name == "multimodal_infonce" else embeddings
    loss = function(*arguments, temperatures, **options, **gathering)
    loss.sum().backward()
    return loss.detach(), [weight.grad for weight in (*weights, tau)]


def steps(group: Any, cases: list[Case], split: list[int], gathering: dict[str, Any] | None = None) -> list[Any]:
    """The averaged losses and gradients of each case on this rank's part of the batch."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    start = sum(split[:rank])
    results = []
    for case in cases:
        loss, grads = step(case, slice(start, start + split[rank]), sum(split), gather=group, **gathering or {})
        for value in (*([loss] if loss.ndim == 0 else []), *grads):
            dist.all_reduce(value, group=group)
            value /= world
        results.append((loss, grads))
    return results


def assert_same(pool: Any, cases: list[Case], split: list[int], run: Any = steps, tolerance: float = 1e-9) -> None:
    found = pool.run(run, cases, split, ranks=len(split))
    for place, case in enumerate(cases):
        loss, grads = step(case, slice(None), sum(split))
        rows = [results[place][0] for results in found]
        joined = torch.cat(rows) if loss.ndim else torch.stack(rows)
        # For "none" each rank returns its own rows, whose sum is not a mean over ranks: the gradients are 1/W of it.
        scale = len(split) if loss.ndim else 1
        expected = loss if loss.ndim else loss.expand(len(split))
        torch.testing.assert_close(joined, expected, rtol=1e-12, atol=1e-12, msg=lambda m: f"{case}: {m}")  # noqa: B023
        for results in found:
            for grad, wanted in zip(results[place][1], grads):
                difference = (grad * scale - wanted).abs().max().item()
                assert difference <= tolerance * max(1.0, wanted.abs().max().item()), (case, difference)


def pair_cases() -> list[Case]:
    return [
        ("pairwise_infonce", {"symmetric": symmetric, "reduction": reduction, "tiled": tiled})
        for symmetric in (True, False)
        for reduction in ("mean", "sum", "none")
        for tiled in (None, True)
    ]


def tuple_cases(similarity: str) -> list[Case]:
    options = {"similarity": similarity, "seed": 5}
    cases: list[Case] = [("triplet_infonce", options | {"negatives": scheme}) for scheme in [*SCHEMES, "all", "index"]]
    cases += [("triplet_infonce", options | {"negatives": "all", "anchor": "any"})]
    cases += [("multimodal_infonce", options | {"negatives": scheme, "modalities": 2}) for scheme in [*SCHEMES, "all"]]
    if similarity != "area":
        cases += [("multimodal_infonce", options | {"negatives": scheme, "modalities": 4}) for scheme in SCHEMES]
    cases += [("trimodal_infonce", options | {"negatives": scheme, "alpha": 0.7}) for scheme in [*SCHEMES, "all"]]
    return cases


def various_cases() -> list[Case]:
    options = {"seed": 5}
    return [
        ("trimodal_infonce", options | {"num_negatives": 3}),
        ("trimodal_infonce", options | {"pairs": ((0, 2),), "symmetric": False, "reduction": "sum"}),
        ("trimodal_infonce", options | {"alpha": 0.0}),
        ("trimodal_infonce", options | {"reduction": "none", "negatives": "shared"}),
        ("trimodal_infonce", options | {"tiled": True, "negatives": "cyclic"}),
        ("trimodal_infonce", options | {"normalize": False, "negatives": "tied"}),
        ("multimodal_infonce", options | {"similarity": "mean_cosine", "negatives": "all", "modalities": 4}),
        ("multimodal_infonce", options | {"num_negatives": 0}),
        ("trimodal_infonce", options | {"by_terms": True, "negatives": "tied"}),
        ("trimodal_infonce", options | {"by_terms": True}),
    ]


def masked_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(8)
    present = torch.rand(8, 3, generator=generator) > 0.3
    ids = torch.randint(0, 6, (8,), generator=generator)
    weight = torch.rand(8, dtype=torch.float64, generator=generator)
    every = {"present": present, "ids": ids, "weight": weight, "label_smoothing": 0.1, "hardness": 0.2}
    cases: list[Case] = [("pairwise_infonce", every | {"present": present[:, :2]})]
    for scheme in [*SCHEMES, "all"]:
        for options in ({"weight": weight}, {"present": present}, {"ids": ids, "reduction": "sum"}, every):
            if scheme == "permutation" or len(options) > 2:
                cases += [("trimodal_infonce", options | {"negatives": scheme, "seed": 5})]
    return cases


@pytest.mark.parametrize("split", [[3, 5], [3, 0, 5]], ids=str)
def test_masks_and_weights(pool, split):
    assert_same(pool, masked_cases(), split)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_pairs(pool, split):
    assert_same(pool, pair_cases(), split)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("split", [[3, 5], [3, 0, 5]], ids=str)
def test_every_scheme_with_every_similarity(pool, similarity, split):
    assert_same(pool, tuple_cases(similarity), split)


@pytest.mark.parametrize("split", [[3, 5], [4, 4], [2, 3, 3], [8]], ids=str)
def test_options(pool, split):
    assert_same(pool, various_cases(), split)


def ring_cases(part: str) -> list[Case]:
    if part == "pairs and options":
        cases = [case for case in pair_cases() if case[1]["tiled"] is None]
        cases += [case for case in various_cases() if case[1].get("modalities") != 4]
        return cases + masked_cases()
    return [case for case in tuple_cases(part) if case[1].get("anchor") != "any"]


def in_a_ring(group: Any, cases: list[Case], split: list[int]) -> list[Any]:
    """In tiles small enough that a batch of eight has several."""
    from multicontrast.losses import reference, streamed

    kept = streamed.TILE, reference._CANDIDATES, reference._GATHERED
    streamed.TILE, reference._CANDIDATES, reference._GATHERED = 2, 30, 200
    try:
        return steps(group, cases, split, {"ring": True})
    finally:
        streamed.TILE, reference._CANDIDATES, reference._GATHERED = kept


@pytest.mark.parametrize("part", ["pairs and options", "eigenvalue", "area", "multilinear"])
@pytest.mark.parametrize("split", [[3, 5], [2, 0, 6]], ids=str)
def test_a_ring_has_the_same_numbers(pool, split, part):
    assert_same(pool, ring_cases(part), split, in_a_ring)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.numel())
        return out


def largest_of_a_step(group: Any, name: str, options: dict[str, Any]) -> int:
    from multicontrast.losses import reference, streamed

    streamed.TILE, reference._CANDIDATES, reference._GATHERED = 8, 256, 2048
    own, dim = 32, 2
    generator = torch.Generator().manual_seed(dist.get_rank(group))
    xs = [torch.randn(own, dim, generator=generator).requires_grad_() for _ in range(2 + (name != "pairwise_infonce"))]
    with Largest() as largest:
        getattr(mc, name)(*xs, 0.1, gather=group, ring=True, **options).backward()
    return largest.entries


@pytest.mark.parametrize(
    ("name", "options", "entries"),
    [
        ("pairwise_infonce", {}, 32 * 8),
        ("triplet_infonce", {"negatives": "tied", "similarity": "mean_cosine"}, 32 * 8),
        ("trimodal_infonce", {"negatives": "permutation", "num_negatives": 4}, 96 * 5 * 3),  # the index itself
    ],
)
def test_no_rank_holds_the_logits_of_all(pool, name, options, entries):
    """Three ranks of 32 rows: all logits of one's own anchors are 32 x 96, those of all anchors 96 x 96."""
    assert max(pool.run(largest_of_a_step, name, options)) <= entries


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"ring": True}, ValueError, "needs `gather` for a ring; got ring=True alone. Pass gather=True"),
        ({"ring": 1, "gather": True}, TypeError, "`ring` to be True or False; got 1"),
        ({"ring": True, "gather": True, "tiled": False}, ValueError, "a ring in tiles; got ring=True and tiled=False"),
        ({"gather": 3}, TypeError, "`gather` to be True, False or a process group; got 3"),
    ],
)
def test_what_does_not_go_together_raises_in_words(options, error, words):
    x = torch.eye(3)
    with pytest.raises(error, match=re.escape(words)):
        mc.trimodal_infonce(x, x, x, 0.1, **options)


def one_wrong_index(group: Any) -> tuple[str, str]:
    x = torch.eye(4)
    index = mc.sample_tuples(8, 3, num_negatives=2)[dist.get_rank(group) * 4 :][:4]
    if dist.get_rank(group) == 1:
        index[0, 1, 2] = 8
    try:
        mc.triplet_infonce(x, x, x, 0.1, negatives=index, gather=group)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def test_a_wrong_index_on_one_rank_stops_all(pool):
    (kind, heard), (own, words) = pool.run(one_wrong_index, ranks=2)
    assert kind == "RuntimeError"
    assert own == "ValueError"
    assert re.search(r"row numbers from 0 to 7 in the index; got values from \d to 8", words)
    assert words in heard


def another_option(group: Any, name: str) -> str:
    """What each rank hears if rank 1 calls with something else."""
    other = dist.get_rank(group) == 1
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    usual, changed, _ = DIFFERENT[name]
    options = {"num_negatives": 2} | usual() | (changed() if other else {})
    x, tau = options.pop("x", x), options.pop("tau", 0.1)
    try:
        mc.trimodal_infonce(*x, tau, gather=group, **options)
    except ValueError as error:
        return str(error)
    return "nothing"


def _nothing() -> dict[str, Any]:
    return {}


# What all ranks pass, what rank 1 passes in its place, and what the error calls it.
DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "dimension": (_nothing, lambda: {"x": torch.randn(3, 4, 6)}, "dimension of the embeddings"),
    "type": (_nothing, lambda: {"x": torch.randn(3, 4, 5).double()}, "type of the embeddings"),
    "tau": (_nothing, lambda: {"tau": 0.2}, "temperature"),
    "tau tensor": (_nothing, lambda: {"tau": torch.tensor(0.1)}, "temperature"),
    "reduction": (_nothing, lambda: {"reduction": "sum"}, "reduction"),
    "hardness": (_nothing, lambda: {"hardness": 0.5}, "hardness"),
    "ring": (_nothing, lambda: {"ring": True}, "ring"),
    "pairs": (_nothing, lambda: {"pairs": ((0, 1),)}, "pairs"),
    "similarity": (_nothing, lambda: {"similarity": "volume"}, "similarity"),
    "num_negatives": (_nothing, lambda: {"num_negatives": 3}, "num_negatives"),
    "an index": (_nothing, lambda: {"negatives": mc.sample_tuples(12, num_negatives=2)[4:8]}, "negatives"),
    "no ids": (lambda: {"ids": torch.arange(4)}, lambda: {"ids": None}, "ids"),
    "ids": (lambda: {"ids": torch.arange(4)}, lambda: {"ids": torch.arange(4).int()}, "ids"),
    "weight": (lambda: {"weight": torch.ones(4)}, lambda: {"weight": torch.ones(4).double()}, "weight"),
    "extra": (
        lambda: {"extra_negatives": [torch.ones(2, 5)] * 3},
        lambda: {"extra_negatives": [torch.ones(2, 5).double()] * 3},
        "extra_negatives",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_one_rank_passes_alone_raises_on_all(pool, name):
    for words in pool.run(another_option, name):
        needed = (
            f"needs the same {DIFFERENT[name][2]} on all ranks; "
            "got one that differs from rank 0's on rank 1 of the group"
        )
        assert needed in words, words


def global_generator(group: Any) -> Tensor:
    """Without a generator: ranks that would draw different tuples on their own."""
    torch.manual_seed(dist.get_rank(group))
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = [mc.triplet_infonce(*x, 0.1, num_negatives=2, gather=group, reduction="none") for _ in range(2)]
    return torch.stack(losses)


def test_without_a_generator_the_ranks_agree_on_a_seed_and_draw_anew_each_time(pool):
    """All ranks bring the same rows; the anchors of the first rank then have the losses that one draw gives."""
    first, second = pool.run(global_generator, ranks=2)
    assert not torch.equal(first[0], first[1])
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1)
    torch.manual_seed(0)  # rank 0's
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    expected = mc.triplet_infonce(*x, 0.1, num_negatives=2, reduction="none", generator=generator)
    torch.testing.assert_close(torch.cat((first[0], second[0])), expected)
