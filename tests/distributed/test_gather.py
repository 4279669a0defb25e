"""Every loss over several ranks is the loss of one process: its value, and every gradient after averaging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

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
    function = getattr(mc, name)
    arguments = (embeddings,) if name == "multimodal_infonce" else embeddings
    loss = function(*arguments, tau, **options, **gathering)
    loss.sum().backward()
    return loss.detach(), [weight.grad for weight in (*weights, tau)]


def steps(group: Any, cases: list[Case], split: list[int], gathering: dict[str, Any]) -> list[Any]:
    """The averaged losses and gradients of each case on this rank's part of the batch."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    start = sum(split[:rank])
    results = []
    for case in cases:
        loss, grads = step(case, slice(start, start + split[rank]), sum(split), gather=group, **gathering)
        for value in (*([loss] if loss.ndim == 0 else []), *grads):
            dist.all_reduce(value, group=group)
            value /= world
        results.append((loss, grads))
    return results


def assert_same(
    pool: Any, cases: list[Case], split: list[int], gathering: dict[str, Any] | None = None, tolerance: float = 1e-9
) -> None:
    found = pool.run(steps, cases, split, gathering or {}, ranks=len(split))
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
    ]


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
