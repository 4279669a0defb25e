"""Accumulating metrics of embeddings: agreement of modalities, and retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import check_choice
from multicontrast.metrics._accumulate import Accumulator, first_of_each, read_ids, refuse_mixture
from multicontrast.metrics._inputs import length, state_device
from multicontrast.metrics.embeddings import pairwise, read_embeddings
from multicontrast.metrics.retrieval import TIES, median_of_ranks, recall_of_ranks, retrieval_ranks


class ModalityAlignment(Accumulator):
    """How well modalities agree over many batches: cosines, alignment and gap of every pair, from sums alone.

    ``compute`` gives a dict of ``(N, N)`` float64 tensors: ``"cosine"`` (`cosine_matrix`), ``"alignment"`` (`alignment`
    with ``alpha=2``) and ``"gap"`` (`modality_gap`).

    Args:
        normalize: False promises rows of length one.
        sync_on_compute, process_group: as for every accumulating metric.

    Example:
        >>> metric = ModalityAlignment()
        >>> metric.update([torch.eye(2), -torch.eye(2)])
        >>> metric.compute()["cosine"]
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """

    def __init__(self, *, normalize: bool = True, **accumulation: Any) -> None:
        self.normalize = normalize
        super().__init__(**accumulation)

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"

    def update(self, embeddings: Sequence[Tensor], *, ids: Sequence[int | str] | Tensor | None = None) -> None:
        """Takes in one batch: N >= 2 tensors ``(B, D)``, row ``i`` of each from sample ``i``. An empty one is fine.

        ``ids``: ``(B,)`` integers or names; a sample whose id was seen before, here or on another rank, is not counted
        again. Keeps the embeddings of every sample. All updates give ids, or none does.
        """
        self._update_count += 1
        if not isinstance(embeddings, Tensor) and len(embeddings) and all(len(part) == 0 for part in embeddings):
            return
        rows = read_embeddings("ModalityAlignment", embeddings, self.normalize, least=2)
        rows = [part.detach().to(state_device(part.device)).double() for part in rows]
        if ids is not None:
            keys = read_ids("ModalityAlignment", ids, len(rows[0]), rows[0].device)
        if ("squared" in self._sums and ids is not None) or ("ids" in self._rows and ids is None):
            refuse_mixture("ModalityAlignment")
        if ids is not None:
            self._append("ids", keys)
            self._append("embeddings", torch.stack(rows, 1))
            return
        for name, value in _modality_sums(rows).items():
            self._add(name, value)

    def _result(self, sums: dict[str, Tensor], rows: dict[str, Tensor]) -> dict[str, Tensor]:
        if sums and rows:
            refuse_mixture("ModalityAlignment")
        if rows:
            sums = _modality_sums(rows["embeddings"][first_of_each(rows["ids"])].unbind(1))
        if not sums:
            nothing = torch.full((0, 0), torch.nan, dtype=torch.float64)
            return {"cosine": nothing, "alignment": nothing, "gap": nothing}
        count = sums["count"].double()
        centroids = sums["centroid"] / count
        return {
            "cosine": sums["cosine"] / count,
            "alignment": sums["squared"] / count,
            "gap": length(centroids[:, None] - centroids),
        }


def _modality_sums(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """What the averages of N modalities are made of."""
    return {
        "cosine": pairwise(rows, lambda x, y: (x * y).sum()),
        "squared": pairwise(rows, lambda x, y: (x - y).square().sum()),
        "centroid": torch.stack([part.sum(0) for part in rows]),
        "count": torch.full((1,), len(rows[0]), dtype=torch.int64, device=rows[0].device),
    }


class RetrievalRecall(Accumulator):
    """`retrieval_recall` over everything taken in: each query searches the gallery of all batches and all ranks.

    Embeddings are kept (float32 unless they are float64), and the search is blocked, so memory grows with the samples
    and not with their square. ``compute`` gives a dict: ``"recall@k"`` for each ``k``, ``"median_rank"`` and
    ``"mean_reciprocal_rank"``.

    Args:
        k, ties, normalize: as for `retrieval_recall`.
        sync_on_compute, process_group: as for every accumulating metric.

    Example:
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
        check_choice("RetrievalRecall", "ties", ties, TIES)
        self.k = (k,) if isinstance(k, int) else tuple(k)
        recall_of_ranks("RetrievalRecall", torch.ones(1), self.k)  # checks k
        self.ties, self.normalize = ties, normalize
        super().__init__(**accumulation)

    def extra_repr(self) -> str:
        return f"k={self.k}, ties={self.ties!r}, normalize={self.normalize}"

    def update(self, query: Tensor, gallery: Tensor, *, ids: Sequence[int | str] | Tensor | None = None) -> None:
        """Takes in one batch: row ``i`` of ``query`` should find row ``i`` of ``gallery``. An empty one is fine.

        ``ids``: ``(B,)`` integers or names; a pair whose id was seen before, here or on another rank, is not counted
        again.
        """
        self._update_count += 1
        if len(query) == 0 and len(gallery) == 0:
            return
        rows = read_embeddings("RetrievalRecall", (query, gallery), self.normalize, names=("query", "gallery"))
        keys = None if ids is None else read_ids("RetrievalRecall", ids, len(query), query.device)
        if (ids is not None) != ("ids" in self._rows) and "query" in self._rows:
            refuse_mixture("RetrievalRecall")
        self._append("query", rows[0])
        self._append("gallery", rows[1])
        if keys is not None:
            self._append("ids", keys)

    def _result(self, sums: dict[str, Tensor], rows: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [f"recall@{limit}" for limit in self.k]
        if not rows:
            return {name: torch.tensor(torch.nan) for name in (*names, "median_rank", "mean_reciprocal_rank")}
        query, gallery = rows["query"], rows["gallery"]
        if "ids" in rows:
            if len(rows["ids"]) != len(query):  # merged, or gathered, from some that had ids and others that had none
                refuse_mixture("RetrievalRecall")
            kept = first_of_each(rows["ids"])
            query, gallery = query[kept], gallery[kept]
        ranks = retrieval_ranks(query, gallery, ties=self.ties, normalize=self.normalize)
        recalls = recall_of_ranks("RetrievalRecall", ranks, self.k)
        return {
            **dict(zip(names, recalls.unbind())),
            "median_rank": median_of_ranks(ranks),
            "mean_reciprocal_rank": (1 / ranks).mean(),
        }
