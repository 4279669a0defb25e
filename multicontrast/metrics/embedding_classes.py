"""Accumulating metrics of embeddings: agreement of modalities, and retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import check_choice, three_beats
from multicontrast.metrics._accumulate import Accumulator, first_of_each, state_device
from multicontrast.metrics._inputs import length
from multicontrast.metrics.embeddings import read_embeddings
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

    def update(self, embeddings: Sequence[Tensor]) -> None:
        """Takes in one batch: N >= 2 tensors ``(B, D)``, row ``i`` of each from sample ``i``. An empty one is fine."""
        self._update_count += 1
        if not isinstance(embeddings, Tensor) and len(embeddings) and all(len(part) == 0 for part in embeddings):
            return
        rows = read_embeddings("ModalityAlignment", embeddings, self.normalize, least=2)
        stacked = torch.stack(rows)
        stacked = stacked.to(state_device(stacked.device)).double()  # (N, B, D)
        self._add("cosine", (stacked[:, None] * stacked).sum((-2, -1)))
        self._add("squared", (stacked[:, None] - stacked).square().sum((-2, -1)))
        self._add("centroid", stacked.sum(1))
        self._add("count", torch.full((1,), stacked.shape[1], dtype=torch.int64, device=stacked.device))

    def _result(self, sums: dict[str, Tensor], rows: dict[str, Tensor]) -> dict[str, Tensor]:
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

    def update(self, query: Tensor, gallery: Tensor, *, ids: Tensor | None = None) -> None:
        """Takes in one batch: row ``i`` of ``query`` should find row ``i`` of ``gallery``. An empty one is fine.

        ``ids``: ``(B,)`` integers; a pair whose id was seen before, here or on another rank, is not counted again.
        """
        self._update_count += 1
        if len(query) == 0 and len(gallery) == 0:
            return
        rows = read_embeddings("RetrievalRecall", (query, gallery), self.normalize, names=("query", "gallery"))
        if ids is not None and (ids.is_floating_point() or ids.shape != rows[0].shape[:1]):
            remedy = "Pass one integer for each row."
            raise ValueError(three_beats(f"`RetrievalRecall` needs {len(query)} integer `ids`", str(ids.shape), remedy))
        if (ids is not None) != ("ids" in self._rows) and "query" in self._rows:
            remedy = "Pass `ids` to every update, or to none."
            raise ValueError(
                three_beats("`RetrievalRecall` needs ids for all samples or for none", "a mixture", remedy)
            )
        self._append("query", rows[0])
        self._append("gallery", rows[1])
        if ids is not None:
            self._append("ids", ids.to(rows[0].device, torch.int64))

    def _result(self, sums: dict[str, Tensor], rows: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [f"recall@{limit}" for limit in self.k]
        if not rows:
            return {name: torch.tensor(torch.nan) for name in (*names, "median_rank", "mean_reciprocal_rank")}
        query, gallery = rows["query"], rows["gallery"]
        if "ids" in rows:
            kept = first_of_each(rows["ids"])
            query, gallery = query[kept], gallery[kept]
        ranks = retrieval_ranks(query, gallery, ties=self.ties, normalize=False)
        recalls = recall_of_ranks("RetrievalRecall", ranks, self.k)
        return {
            **dict(zip(names, recalls.unbind())),
            "median_rank": median_of_ranks(ranks),
            "mean_reciprocal_rank": (1 / ranks).mean(),
        }
