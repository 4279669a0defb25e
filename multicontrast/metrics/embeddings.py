"""How well the embeddings of several modalities agree, find one another, and fill the sphere."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from multicontrast._checks import (
    check_floating,
    check_list,
    check_same_device,
    check_whole,
    compute_dtype,
    describe,
    three_beats,
    without_autocast,
)
from multicontrast.linalg.symmetric import EIGMAX
from multicontrast.metrics._inputs import (
    RankOptions,
    check_options,
    check_values,
    length,
    reduce_values,
    state_device,
    with_options,
)

_HELD_AT_ONCE = 1 << 22  # similarities held at a time: 16 MiB in float32, whatever the number of rows


def cosine_alignment(x: Tensor, y: Tensor, *, normalize: bool = True, reduction: str = "mean") -> Tensor:
    """Mean cosine of matching embeddings, in [-1, 1]: row ``i`` of ``x`` with row ``i`` of ``y``.

    Args:
        x, y: ``(B, D)`` embeddings. Half precision is computed in float32. A zero row has cosine 0.
        normalize: False promises rows of length one. All metrics of embeddings share this option and these errors.
        reduction: ``"none"`` for ``(B,)``, ``"mean"`` or ``"sum"``.
    Raises: ValueError, TypeError for shapes, types or devices that do not fit, and for an empty batch.

    >>> cosine_alignment(torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, -1.0]]), reduction="none")
    tensor([ 1., -1.])
    """
    check_options("cosine_alignment", reduction=reduction)
    x, y = read_embeddings("cosine_alignment", (x, y), normalize, names=("x", "y"))
    return reduce_values((x * y).sum(-1), None, reduction)


def cosine_matrix(embeddings: Sequence[Tensor], *, normalize: bool = True) -> Tensor:
    """Mean cosine between every two of N modalities over matching rows: the curves of UniHPE's Fig. 5, as one matrix.

    From N tensors ``(B, D)``: ``(N, N)``, symmetric, with a diagonal of 1, or the share of rows that are not zero.

    >>> cosine_matrix([torch.eye(2), torch.eye(2), -torch.eye(2)])
    tensor([[ 1.,  1., -1.],
            [ 1.,  1., -1.],
            [-1., -1.,  1.]])
    """
    return pairwise(read_embeddings("cosine_matrix", embeddings, normalize), lambda x, y: (x * y).sum(-1).mean())


def alignment(x: Tensor, y: Tensor, *, alpha: float = 2.0, normalize: bool = True, reduction: str = "mean") -> Tensor:
    r"""Alignment of matching embeddings, :math:`\operatorname{E} \lVert x_i - y_i \rVert^\alpha`: 0 is perfect.

    Of ``x`` and ``y``, ``(B, D)``, a scalar, or ``(B,)`` for ``reduction="none"``. The paper's ``alpha=2`` gives
    ``2 - 2 cosine`` (Wang and Isola, Alignment and Uniformity on the Hypersphere, ICML 2020).

    >>> alignment(torch.eye(2), -torch.eye(2))
    tensor(4.)
    """
    check_options("alignment", alpha=alpha, reduction=reduction)
    x, y = read_embeddings("alignment", (x, y), normalize, names=("x", "y"))
    distance = length(x - y)
    together = distance == 0  # a power below 1 has no derivative there
    powers = torch.where(together, 0.0, torch.where(together, 1.0, distance) ** float(alpha))
    return reduce_values(powers, None, reduction)


def uniformity(x: Tensor, *, t: float = 2.0, normalize: bool = True) -> Tensor:
    r"""Uniformity, :math:`\log \operatorname{E}_{i<j} \exp(-t \lVert x_i - x_j \rVert^2)`: lower is more even.

    Of ``x``, ``(B, D)`` with two rows or more: a scalar between ``-4 t`` and 0, which means that all rows coincide.
    Over all pairs of two different rows, in blocks of bounded memory. The paper's ``t`` is 2 (Wang and Isola, ICML
    2020).

    >>> uniformity(torch.eye(2))  # one pair, at squared distance 2
    tensor(-4.)
    """
    check_options("uniformity", t=t)
    (x,) = read_embeddings("uniformity", (x,), normalize, names=("x",))
    rows = len(x)
    if rows < 2:
        raise ValueError(three_beats("`uniformity` needs at least two rows", f"{rows}", "Pass a larger batch."))
    parts = []
    block = max(_HELD_AT_ONCE // rows, 1)
    for start in range(0, rows - 1, block):
        left, right = x[start : start + block], x[start + 1 :]
        # Not 2 - 2 cosine, because a zero row is at distance 1 from the others.
        squared = left.square().sum(-1, keepdim=True) + right.square().sum(-1) - 2 * products(left, right)
        earlier = torch.ones_like(squared, dtype=torch.bool).tril(-1)  # pairs (i, j) with j <= i, already counted
        parts.append(torch.logsumexp((-float(t) * squared.clamp_min(0)).masked_fill(earlier, -torch.inf).flatten(), 0))
    pairs = rows * (rows - 1) / 2
    return torch.logsumexp(torch.stack(parts), 0) - torch.log(torch.full_like(parts[0], pairs))


def modality_gap(x: Tensor, y: Tensor, *, normalize: bool = True) -> Tensor:
    """Distance between the centroids of two modalities on the sphere, between 0 and 2 (Liang et al., NeurIPS 2022).

    Of ``x`` and ``y``, ``(B, D)``, which may have different numbers of rows.

    >>> modality_gap(torch.tensor([[1.0, 0.0]]), torch.tensor([[-3.0, 0.0]]))
    tensor(2.)
    """
    x, y = read_embeddings("modality_gap", (x, y), normalize, names=("x", "y"), matching=False)
    return length(x.mean(0) - y.mean(0))


def sign_flipped_share(embeddings: Sequence[Tensor], *, normalize: bool = True) -> Tensor:
    """Share of tuples in which the eigenvalue similarity takes a modality for its opposite.

    The largest eigenvalue of a tuple's Gram matrix does not change when an embedding is negated: three vectors of which
    one points the other way score 3, like three equal ones. A tuple is sign-flipped if the leading eigenvector has
    entries of both signs: then the eigenvalue pulls an embedding towards the *opposite* of another. A model trained
    with the triplet alone can end like this; the pairwise terms prevent it. For two modalities it is a negative cosine.

    From N >= 2 tensors ``(B, D)``, a scalar in [0, 1]. A tuple with NaN makes it NaN.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> sign_flipped_share([x, x, x * torch.tensor([[1.0], [-1.0]])])
    tensor(0.5000)
    """
    rows = read_embeddings("sign_flipped_share", embeddings, normalize, least=2)
    gram = pairwise([part.detach() for part in rows], lambda x, y: (x * y).sum(-1)).movedim(-1, 0)  # (B, N, N)
    invalid = gram.isnan().any(-1).any(-1)
    modalities = gram.shape[-1]
    gram = torch.where(invalid[:, None, None], 0.0, gram)
    least = _leading_projector(gram).flatten(1).amin(-1)
    flipped = least < -modalities * torch.finfo(gram.dtype).eps  # a modality at right angles has no sign
    return torch.where(invalid, torch.nan, flipped.to(gram.dtype)).mean()


def _leading_projector(gram: Tensor) -> Tensor:
    """``u u'`` of the leading eigenvector of each ``(B, N, N)``; of several, for N <= 8, the mean over their space."""
    if gram.shape[-1] <= 8:  # it is the derivative of the largest eigenvalue, which needs no LAPACK
        _, projector, *_ = EIGMAX(gram)
        return projector
    leading = torch.linalg.eigh(gram).eigenvectors[..., -1:]
    return leading @ leading.mT


def effective_rank(x: Tensor, *, normalize: bool = True) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the singular values, between 1 and ``min(B, D)``.

    Of ``x``, ``(B, D)``, the scalar :math:`\exp(-\sum_k p_k \log p_k)` with :math:`p_k = \sigma_k / \sum \sigma`,
    computed in float64 (on the CPU for devices without it). It falls towards 1 as embeddings collapse. RankMe is the
    same number for features that are not normalised: ``normalize=False``. NaN if all rows are zero or any is NaN.

    Reference: Roy and Vetterli, EUSIPCO 2007; Garrido et al., RankMe, ICML 2023.

    >>> effective_rank(torch.eye(4)), effective_rank(torch.ones(4, 4))
    (tensor(4.), tensor(1.))
    """
    (x,) = read_embeddings("effective_rank", (x,), normalize, names=("x",))
    dtype = x.dtype
    wide = x.to(state_device(x.device)).double()
    wide = wide / wide.detach().abs().amax().clamp_min(torch.finfo(wide.dtype).tiny)  # squares stay in range
    small = wide.mT @ wide if len(wide) > wide.shape[1] else wide @ wide.mT
    invalid = small.isnan().any()
    eigenvalues = torch.linalg.eigvalsh(torch.where(invalid, 0.0, small)).clamp_min(0)
    floor = len(small) * torch.finfo(small.dtype).eps * eigenvalues.amax()
    singular = torch.where(eigenvalues > floor, eigenvalues, 0.0).sqrt()  # below the floor they are rounding errors
    shares = singular / singular.sum()
    rank = torch.exp(-torch.special.xlogy(shares, shares).sum())
    return torch.where(invalid, torch.nan, rank).to(x.device, dtype)


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
    every match last; with ties broken by position it would look perfect. Similarities count as equal within ``sqrt(D)``
    eps of the product of lengths, because a matrix product may round the same pair of rows differently at different
    places of its result.

    Args:
        query: ``(Q, D)``.
        gallery: ``(G, D)``, compared in blocks: 1e5 x 1e5 takes 16 MiB at a time.
        match: ``(Q,)`` int64, the row of the gallery that each query should find. None: row ``i`` for query ``i``.
        ties: the place among equal similarities, ``"pessimistic"`` (last), ``"optimistic"`` (first) or ``"mean"``.
        normalize: False promises rows of length one (or ranks by inner product).
    Returns: ``(Q,)`` float32, exact to 16 million; possibly a half-integer under ``"mean"``. NaN for a query with NaN
        or infinity, and for all queries if a row of the gallery has one, because it cannot be ranked.
    Raises: as for `cosine_alignment`; a match outside the gallery (on the CPU; elsewhere its rank is NaN).

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
        # One tensor for all results: small tensors kept between blocks would fragment the heap.
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


@with_options(RankOptions)
def retrieval_recall(
    query: Tensor,
    gallery: Tensor,
    *,
    k: int | Sequence[int] = 1,
    reduction: str = "mean",
    **options: Unpack[RankOptions],
) -> Tensor:
    """Recall at k: the share of queries whose match is among the k nearest of the gallery.

    Arguments as for `retrieval_ranks`. A scalar for one ``k``, ``(len(k),)`` for several; with ``reduction="none"``, 1
    or 0 per query, after a leading axis of queries.

    >>> query = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
    >>> retrieval_recall(query, torch.eye(3)[:2], k=(1, 2))
    tensor([0.5000, 1.0000])
    """
    return recall_of_ranks(retrieval_ranks(query, gallery, **options), k, reduction)


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


@with_options(RankOptions)
def median_rank(query: Tensor, gallery: Tensor, **options: Unpack[RankOptions]) -> Tensor:
    """Median of `retrieval_ranks` ("MedR"): 1 is perfect. For an even number of queries the mean of the middle two; NaN
    if any rank is.

    >>> median_rank(torch.eye(3), torch.eye(3))
    tensor(1.)
    """
    return median_of_ranks(retrieval_ranks(query, gallery, **options))


def median_of_ranks(ranks: Tensor) -> Tensor:
    ordered = ranks.sort().values  # NaN comes last
    middle = (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]) / 2
    return torch.where(ranks.isnan().any(), torch.nan, middle)


@with_options(RankOptions)
def mean_reciprocal_rank(
    query: Tensor, gallery: Tensor, *, reduction: str = "mean", **options: Unpack[RankOptions]
) -> Tensor:
    """Mean reciprocal of `retrieval_ranks` (MRR), 1 is perfect; ``(Q,)`` for ``reduction="none"``.

    >>> query = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
    >>> mean_reciprocal_rank(query, torch.eye(3)[:2])
    tensor(0.7500)
    """
    return reduce_values(1 / retrieval_ranks(query, gallery, **options), None, reduction)


def _read_match(match: Tensor | None, query: Tensor, gallery: Tensor) -> Tensor:
    if match is None:
        if len(query) != len(gallery):
            came = f"{len(query)} queries and {len(gallery)} gallery rows"
            remedy = "Pass the gallery row that each query should find as `match`."
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


def read_embeddings(
    operation: str,
    embeddings: Sequence[Tensor],
    normalize: bool,
    *,
    names: Sequence[str] | None = None,
    matching: bool = True,
    least: int = 1,
    may_be_empty: bool = False,
) -> list[Tensor]:
    """Checks, promotes, and scales rows to length one; a zero row stays zero. Raises for no rows unless allowed."""
    check_options(operation, normalize=normalize)
    remedy = "Pass a list with one (B, D) tensor per modality."
    if len(check_list(operation, "embeddings", embeddings, remedy=remedy)) < least:
        needed = f"`{operation}` needs a list of {least} or more embeddings"
        raise ValueError(three_beats(needed, f"{len(embeddings)} of them", remedy))
    names = names or [f"embeddings[{index}]" for index in range(len(embeddings))]
    for name, tensor in zip(names, embeddings):
        check_floating(operation, name, tensor)
        if tensor.dim() != 2 or tensor.shape[1] == 0 or (len(tensor) == 0 and not may_be_empty):
            remedy = "Pass one row per sample, and at least one of them."
            raise ValueError(three_beats(f"`{operation}` needs `{name}` of shape (B, D)", describe(tensor), remedy))
    first = embeddings[0]
    for name, tensor in zip(names, embeddings):
        if tensor.shape[1] != first.shape[1] or (matching and len(tensor) != len(first)):
            came = f"`{names[0]}` {tuple(first.shape)} and `{name}` {tuple(tensor.shape)}"
            remedy = "Drop the samples that lack a modality, and project all to one width."
            raise ValueError(three_beats(f"`{operation}` needs embeddings of one shape", came, remedy))
    check_same_device(operation, names, embeddings)
    dtype = compute_dtype(*embeddings)
    rows = [tensor.to(dtype) for tensor in embeddings]
    if not normalize:
        return rows
    norms = [length(tensor).unsqueeze(-1) for tensor in rows]
    return [tensor / torch.where(norm == 0, 1.0, norm) for tensor, norm in zip(rows, norms)]


def pairwise(parts: Sequence[Tensor], function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``(N, N, ...)``: a symmetric function of every two of N tensors, one pair at a time."""
    upper = {(i, j): function(parts[i], parts[j]) for i in range(len(parts)) for j in range(i, len(parts))}
    places = range(len(parts))
    return torch.stack([torch.stack([upper[min(i, j), max(i, j)] for j in places]) for i in places])


def products(x: Tensor, y: Tensor) -> Tensor:
    """All inner products, in the type of the rows regardless of autocast."""
    with without_autocast(x.device):
        return x @ y.mT
