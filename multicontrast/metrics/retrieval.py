"""Retrieval between modalities: recall at k, median rank, mean reciprocal rank; in bounded memory."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from multicontrast._checks import check_same_device, check_whole, describe, three_beats
from multicontrast.metrics._inputs import check_options, check_values, length, reduce_values
from multicontrast.metrics.embeddings import products, read_embeddings

_HELD_AT_ONCE = 1 << 22  # similarities held at a time: 16 MiB in float32, whatever the number of queries


def retrieval_ranks(
    query: Tensor,
    gallery: Tensor,
    *,
    match: Tensor | None = None,
    ties: str = "pessimistic",
    normalize: bool = True,
) -> Tensor:
    """The rank of each query's match in the gallery by cosine: 1 is first.

    Equal similarities are counted *against* the query by default. A model that maps everything to one point then ranks
    every match last; with ties broken by position it would look perfect. Similarities are equal within ``sqrt(D)`` eps
    of the product of lengths, since a matrix product does not give one pair of rows the same bits at every place of its
    result.

    Args:
        query: ``(Q, D)``.
        gallery: ``(G, D)``, compared in blocks: 1e5 x 1e5 takes 16 MiB at a time.
        match: ``(Q,)`` int64, the row of the gallery that each query should find. None: row ``i`` for query ``i``.
        ties: ``"pessimistic"`` (the last of the equals), ``"optimistic"`` (the first) or ``"mean"``.
        normalize: False promises rows of length one (or ranks by inner product).

    Returns:
        ``(Q,)`` float32, exact to 16 million; a half-integer under ``"mean"``. NaN for a query with NaN or infinity,
        and for all where a row of the gallery has one: it cannot be ranked among the others.

    Raises:
        ValueError, TypeError: shapes, types or devices that do not fit; a match outside the gallery (on the CPU;
            elsewhere its rank is NaN).

    Example:
        >>> gallery = torch.eye(3)
        >>> retrieval_ranks(torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]), gallery)
        tensor([1., 2., 3.])
    """
    check_options("retrieval_ranks", ties=ties)
    names = ("query", "gallery")
    query, gallery = read_embeddings("retrieval_ranks", (query, gallery), normalize, names=names, matching=False)
    match = _read_match(match, query, gallery)
    inside = (match >= 0) & (match < len(gallery))
    place = torch.where(inside, match, 0).unsqueeze(-1)
    with torch.no_grad():
        finite = query.isfinite().all(-1) & gallery.isfinite().all() & inside
        lengths = None if normalize else (length(query).unsqueeze(-1), length(gallery))
        # One tensor for all results: small ones, kept between blocks, would split the heap that the blocks come from.
        ranks = torch.empty_like(query[:, 0], dtype=torch.float32)
        block = max(_HELD_AT_ONCE // len(gallery), 1)
        for start in range(0, len(query), block):
            rows = slice(start, start + block)
            similarity = products(query[rows], gallery)
            margin: Tensor | float = torch.finfo(query.dtype).eps * query.shape[1] ** 0.5
            if lengths is not None:
                margin = margin * lengths[0][rows] * lengths[1]
            own = similarity.gather(1, place[rows])
            above = (similarity > own + margin).sum(-1, dtype=torch.int32).float()
            equal = (similarity >= own - margin).sum(-1, dtype=torch.int32).float() - above - 1  # not counting itself
            share = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}[ties]
            ranks[rows] = torch.where(finite[rows], 1 + above + share * equal, torch.nan)
    return ranks


def retrieval_recall(
    query: Tensor,
    gallery: Tensor,
    *,
    k: int | Sequence[int] = 1,
    match: Tensor | None = None,
    ties: str = "pessimistic",
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Recall at k: the share of queries whose match is among the k nearest of the gallery.

    Args:
        query, gallery, match, ties, normalize: as for `retrieval_ranks`.
        k: one or several.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for 1 or 0 per query.

    Returns: a scalar for one ``k``, ``(len(k),)`` for several; with ``"none"`` after a leading axis of queries.

    Raises: as for `retrieval_ranks`; a ``k`` below 1.

    Example:
        >>> query = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
        >>> retrieval_recall(query, torch.eye(3)[:2], k=(1, 2))
        tensor([0.5000, 1.0000])
    """
    check_options("retrieval_recall", k=k, reduction=reduction)
    return recall_of_ranks(retrieval_ranks(query, gallery, match=match, ties=ties, normalize=normalize), k, reduction)


def recall_of_ranks(ranks: Tensor, k: int | Sequence[int], reduction: str = "mean") -> Tensor:
    single = isinstance(k, numbers.Integral)
    limits = list(cast("Sequence[int]", [k] if single else k))
    found = torch.stack([(ranks <= limit).to(ranks.dtype) for limit in limits], -1)
    found = torch.where(ranks.isnan().unsqueeze(-1), torch.nan, found)
    if single:
        found = found.squeeze(-1)
    if reduction == "none":
        return found
    return found.mean(0) if reduction == "mean" else found.sum(0)


def median_rank(
    query: Tensor,
    gallery: Tensor,
    *,
    match: Tensor | None = None,
    ties: str = "pessimistic",
    normalize: bool = True,
) -> Tensor:
    """Median rank of the matches ("MedR"): 1 is perfect. For an even number of queries the mean of the middle two.

    Args, Raises: as for `retrieval_ranks`.

    Returns: a scalar; NaN where any rank is.

    Example:
        >>> median_rank(torch.eye(3), torch.eye(3))
        tensor(1.)
    """
    return median_of_ranks(retrieval_ranks(query, gallery, match=match, ties=ties, normalize=normalize))


def median_of_ranks(ranks: Tensor) -> Tensor:
    ordered = ranks.sort().values  # NaN comes last
    middle = (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2
    return torch.where(ranks.isnan().any(), torch.nan, middle)


def mean_reciprocal_rank(
    query: Tensor,
    gallery: Tensor,
    *,
    match: Tensor | None = None,
    ties: str = "pessimistic",
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Mean reciprocal rank (MRR) of the matches: 1 is perfect.

    Args, Raises: as for `retrieval_ranks`; ``reduction`` as for `retrieval_recall`.

    Returns: a scalar, or ``(Q,)`` for ``"none"``.

    Example:
        >>> query = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
        >>> mean_reciprocal_rank(query, torch.eye(3)[:2])
        tensor(0.7500)
    """
    check_options("mean_reciprocal_rank", reduction=reduction)
    ranks = retrieval_ranks(query, gallery, match=match, ties=ties, normalize=normalize)
    return reduce_values(1 / ranks, None, reduction)


def _read_match(match: Tensor | None, query: Tensor, gallery: Tensor) -> Tensor:
    if match is None:
        if len(query) != len(gallery):
            came = f"{len(query)} queries and {len(gallery)} gallery rows"
            remedy = "Say with `match` which gallery row each query should find."
            raise ValueError(three_beats("`retrieval_ranks` needs one gallery row per query", came, remedy))
        return torch.arange(len(query), device=query.device)
    check_whole("retrieval_ranks", "match", match)
    if match.dtype != torch.int64 or match.shape != query.shape[:1]:
        remedy = "Pass row numbers of the gallery."
        raise ValueError(three_beats(f"`retrieval_ranks` needs `match` int64 ({len(query)},)", describe(match), remedy))
    check_same_device("retrieval_ranks", ("query", "match"), (query, match))
    wrong = (match < 0) | (match >= len(gallery))
    needed = f"row numbers of the gallery, 0 to {len(gallery) - 1}"
    check_values("retrieval_ranks", "match", match, wrong, needed, "Check how the gallery was put together.")
    return match
