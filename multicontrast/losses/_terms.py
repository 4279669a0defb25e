"""One temperature for each term of eq. (4): which terms there are, and the walk of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import compute_dtype, three_beats
from multicontrast.losses._arguments import check_tau
from multicontrast.losses._diagnostics import Diagnostics, TermDiagnostics
from multicontrast.losses._gathered import Batch
from multicontrast.losses._grams import Pair
from multicontrast.losses._walk import Walk

TRIPLET = "triplet"
Term = Pair | str


def terms_of(pairs: tuple[Pair, ...], with_triplet: bool) -> list[Term]:
    """The names of the terms of a loss."""
    return [*pairs, *([TRIPLET] if with_triplet else [])]


def check_taus(operation: str, taus: Mapping[Any, Any], terms: list[Term]) -> list[float | Tensor]:
    """The temperature of each term; raises unless there is a valid one for each and none for anything else."""
    named = {tuple(sorted(key)) if _is_pair(key) else key: tau for key, tau in taus.items()}
    if len(named) < len(taus) or set(named) != set(terms):
        raise ValueError(
            three_beats(
                f"`{operation}` needs a temperature for each of its terms, {', '.join(map(repr, terms))}",
                f"some for {', '.join(map(repr, taus)) or 'none'}",
                "Name each term once; with alpha=0 there is no triplet.",
            )
        )
    for tau in named.values():
        check_tau(operation, tau)
    return [named[term] for term in terms]


def together(taus: list[float | Tensor], embeddings: list[Tensor]) -> Tensor:
    """All temperatures as one tensor, so that they pass through the meeting of the ranks as one."""
    tensors = [tau for tau in taus if isinstance(tau, Tensor)]
    dtype = compute_dtype(*embeddings, *tensors)
    device = tensors[0].device if tensors else embeddings[0].device
    return torch.stack(
        [
            tau.to(device, dtype) if isinstance(tau, Tensor) else torch.full((), tau, dtype=dtype, device=device)
            for tau in taus
        ]
    )


def loss_by_terms(
    operation: str,
    batch: Batch,
    walk: Walk,
    *,
    normalize: bool,
    tiled: bool | None,
    diagnostics: Diagnostics | None,
) -> Tensor:
    """The loss of a batch whose ``tau`` holds one for each term: a walk for each, over blocks of its own."""
    assert isinstance(batch.tau, Tensor)
    losses = []
    pairs: dict[Pair, TermDiagnostics] = {}
    tuples: TermDiagnostics | None = None
    for tau, single in zip(batch.tau.unbind(), _walks(walk)):
        own = dataclasses.replace(batch, tau=tau)
        losses.append(own.loss(operation, single, normalize=normalize, tiled=tiled, diagnostics=diagnostics))
        if diagnostics is not None:  # which each walk begins anew
            pairs, tuples = pairs | diagnostics.pairs, diagnostics.tuples or tuples
    if diagnostics is not None:
        diagnostics.pairs, diagnostics.tuples = pairs, tuples
    return torch.stack(losses).sum(0)


def _walks(walk: Walk) -> Iterator[Walk]:
    for pair in walk.pairs:
        yield dataclasses.replace(walk, pairs=(pair,), tuples=None)
    if walk.tuples is not None:
        yield dataclasses.replace(walk, pairs=())


def _is_pair(key: object) -> bool:
    return isinstance(key, tuple) and len(key) == 2 and all(isinstance(m, int) for m in key)
