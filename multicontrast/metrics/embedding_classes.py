"""Accumulating metrics of embeddings: agreement of modalities, and retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import check_counts, check_flag, check_floating, check_list
from multicontrast.metrics._accumulate import Accumulator, Ids, first_of_each
from multicontrast.metrics._inputs import check_options, length, state_device
from multicontrast.metrics.embeddings import (
    median_of_ranks,
    pairwise,
    read_embeddings,
    recall_of_ranks,
    retrieval_ranks,
)


class ModalityAlignment(Accumulator):
    """How well modalities agree over many batches: cosines, alignment and gap of every pair, from sums alone.

    ``compute`` gives a dict of ``(N, N)`` float64 tensors: ``"cosine"`` (`cosine_matrix`), ``"alignment"`` (`alignment`
    with ``alpha=2``) and ``"gap"`` (`modality_gap`). The other options are those of every accumulating metric.

    >>> metric = ModalityAlignment()
    >>> metric.update([torch.eye(2), -torch.eye(2)])
    >>> metric.compute()["cosine"]
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """

    _one_shape = "Keep as many modalities, of one width,"

    def __init__(self, *, normalize: bool = True, **accumulation: Any) -> None:
        self._options = {"normalize": check_flag("ModalityAlignment", "normalize", normalize)}
        super().__init__(**accumulation)

    def update(self, embeddings: Sequence[Tensor], *, ids: Ids | None = None) -> None:
        """Takes in one batch: N >= 2 tensors ``(B, D)``, row ``i`` of each from sample ``i``. An empty one is fine.

        ``ids``: ``(B,)`` integers or names; a sample whose id was taken in, here or on another rank, is not counted
        again. Keeps a row of ``N (2 N + D + 1)`` numbers for each sample. All updates give ids, or none does.
        """
        name = type(self).__name__
        listed = check_list(name, "embeddings", embeddings, remedy="Pass a list with one (B, D) tensor per modality.")
        for index, part in enumerate(listed):
            check_floating(name, f"embeddings[{index}]", part)
        if listed and all(part.dim() == 2 and len(part) == 0 for part in embeddings):
            return
        rows = read_embeddings(name, embeddings, **self._options, least=2)
        rows = [part.detach().to(state_device(part.device)).double() for part in rows]
        keys = self._read_ids(ids, len(rows[0]), rows[0].device)
        cosine = pairwise(rows, lambda x, y: (x * y).sum(-1))
        squared = pairwise(rows, lambda x, y: (x - y).square().sum(-1))
        stacked = torch.stack(rows, 1)
        parts = (cosine.movedim(-1, 0), squared.movedim(-1, 0), stacked, torch.ones_like(stacked[..., :1]))
        self._take_in(torch.cat(parts, -1), keys, torch.zeros(len(stacked), dtype=torch.int64, device=stacked.device))

    def compute(self) -> dict[str, Tensor]:
        """The three matrices over everything taken in, on all ranks; of no size where that is nothing."""
        totals = self._totals()
        if totals is None:
            nothing = torch.full((0, 0), torch.nan, dtype=torch.float64)
            return {"cosine": nothing, "alignment": nothing, "gap": nothing}
        modalities = totals.shape[1]
        means = totals[0, :, :-1] / totals[0, :, -1:]
        cosine, squared, centroids = means.tensor_split((modalities, 2 * modalities), -1)
        return {"cosine": cosine, "alignment": squared, "gap": length(centroids[:, None] - centroids)}


class RetrievalRecall(Accumulator):
    """`retrieval_recall` over everything taken in: each query searches the gallery of all batches and all ranks.

    Embeddings are kept (float32 unless they are float64), and the search is blocked, so memory grows with the samples
    and not with their square. ``compute`` gives a dict: ``"recall@k"`` for each ``k``, ``"median_rank"`` and
    ``"mean_reciprocal_rank"``. The other options are those of every accumulating metric.

    >>> metric = RetrievalRecall(k=(1, 2))
    >>> metric.update(torch.eye(4)[:2], torch.eye(4)[:2])
    >>> metric.update(torch.eye(4)[2:], torch.eye(4)[2:].flip(0))
    >>> metric.compute()["recall@1"]
    tensor(0.5000)
    """

    higher_is_better = True

    def __init__(
        self,
        *,
        k: int | Sequence[int] = (1, 5, 10),
        ties: str = "pessimistic",
        normalize: bool = True,
        **accumulation: Any,
    ) -> None:
        check_options("RetrievalRecall", k=k, ties=ties, normalize=normalize)
        k = tuple(check_counts("RetrievalRecall", "k", k, 1))
        self._options = {"k": k, "ties": ties, "normalize": bool(normalize)}
        super().__init__(**accumulation)

    def update(self, query: Tensor, gallery: Tensor, *, ids: Ids | None = None) -> None:
        """Takes in one batch: row ``i`` of ``query`` should find row ``i`` of ``gallery``. An empty one is fine.

        ``ids``: ``(B,)`` integers or names; a pair whose id was taken in, here or on another rank, is not counted
        again.
        """
        name = type(self).__name__
        check_floating(name, "query", query)
        check_floating(name, "gallery", gallery)
        if query.dim() == gallery.dim() == 2 and len(query) == 0 and len(gallery) == 0:
            return
        rows = read_embeddings(name, (query, gallery), self._options["normalize"], names=("query", "gallery"))
        keys = self._read_ids(ids, len(query), query.device)
        self._join("rows", torch.stack(rows, 1))
        if keys is not None:
            self._join("ids", keys)

    def compute(self) -> dict[str, Tensor]:
        """Recalls and ranks over everything taken in, on all ranks; NaN where that is nothing."""
        options = dict(self._options)
        limits = options.pop("k")
        names = [f"recall@{limit}" for limit in limits]
        rows, ids = self._joined("rows"), self._joined("ids")
        if rows is None:
            return {name: torch.tensor(torch.nan) for name in (*names, "median_rank", "mean_reciprocal_rank")}
        if ids is not None:
            if len(ids) != len(rows):
                self._refuse_mixture()
            rows = rows[first_of_each(ids)]
        query, gallery = rows.unbind(1)
        ranks = retrieval_ranks(query, gallery, **options)
        return {
            **dict(zip(names, recall_of_ranks(ranks, limits).unbind())),
            "median_rank": median_of_ranks(ranks),
            "mean_reciprocal_rank": (1 / ranks).mean(),
        }
