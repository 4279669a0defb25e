"""Accumulating metrics of embeddings: agreement of modalities, and retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import check_counts, check_flag, check_floating, check_list, three_beats
from multicontrast.metrics._accumulate import Accumulator, check_names, first_of_each, read_ids, refuse_mixture
from multicontrast.metrics._inputs import check_options, length, state_device
from multicontrast.metrics.embeddings import pairwise, read_embeddings
from multicontrast.metrics.retrieval import median_of_ranks, recall_of_ranks, retrieval_ranks

_ACCUMULATION = ("sync_on_compute", "process_group")
_SUMS = ("cosine", "squared", "centroid")


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

    cosine: Tensor
    squared: Tensor
    centroid: Tensor
    count: Tensor
    ids: list[Tensor]

    def __init__(self, *, normalize: bool = True, **accumulation: Any) -> None:
        check_names("ModalityAlignment", ("normalize", *_ACCUMULATION), accumulation)
        self._normalize = check_flag("ModalityAlignment", "normalize", normalize)
        super().__init__(**accumulation)
        self._add_sums(*_SUMS)
        self._add_sums("count", dtype=torch.int64)
        self._add_rows("ids", "embeddings")

    def extra_repr(self) -> str:
        """The options."""
        return f"normalize={self._normalize}"

    def update(self, embeddings: Sequence[Tensor], *, ids: Sequence[int | str] | Tensor | None = None) -> None:
        """Takes in one batch: N >= 2 tensors ``(B, D)``, row ``i`` of each from sample ``i``. An empty one is fine.

        ``ids``: ``(B,)`` integers or names; a sample whose id was taken in, here or on another rank, is not counted
        again. Keeps the embeddings of every sample. All updates give ids, or none does.
        """
        name = type(self).__name__
        listed = check_list(name, "embeddings", embeddings, remedy="Pass a list with one (B, D) tensor per modality.")
        for index, part in enumerate(listed):
            check_floating(name, f"embeddings[{index}]", part)
        if listed and all(part.dim() == 2 and len(part) == 0 for part in embeddings):
            return
        rows = read_embeddings(name, embeddings, self._normalize, least=2)
        rows = [part.detach().to(state_device(part.device)).double() for part in rows]
        keys = None if ids is None else read_ids(name, ids, len(rows[0]), rows[0].device)
        if (keys is None and self.ids) or (keys is not None and self.count.dim()):
            refuse_mixture(name)
        if keys is not None:
            self._append("ids", keys)
            self._append("embeddings", torch.stack(rows, 1))
            return
        sums = _modality_sums(rows)
        if self.cosine.dim() and self.centroid.shape != sums["centroid"].shape:
            needed, came = f"`{name}` needs as many modalities as before, of one width", tuple(sums["centroid"].shape)
            raise ValueError(three_beats(needed, f"{came}", "Call `reset()` in between."))
        for state, value in sums.items():
            self._add(state, value)

    def compute(self) -> dict[str, Tensor]:
        """The three matrices over everything taken in, on all ranks; of no size where that is nothing."""
        sums = {state: getattr(self, state) for state in (*_SUMS, "count")}
        ids, embeddings = self._joined("ids"), self._joined("embeddings")
        if ids is not None and embeddings is not None:
            if sums["count"].dim():
                refuse_mixture(type(self).__name__)
            sums = _modality_sums(embeddings[first_of_each(ids)].unbind(1))
        if not sums["count"].dim():
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
    query: list[Tensor]
    ids: list[Tensor]

    def __init__(
        self,
        *,
        k: int | Sequence[int] = (1, 5, 10),
        ties: str = "pessimistic",
        normalize: bool = True,
        **accumulation: Any,
    ) -> None:
        check_names("RetrievalRecall", ("k", "ties", "normalize", *_ACCUMULATION), accumulation)
        check_options("RetrievalRecall", k=k, ties=ties, normalize=normalize)
        self._k = tuple(check_counts("RetrievalRecall", "k", k, 1))
        self._ties, self._normalize = ties, bool(normalize)
        super().__init__(**accumulation)
        self._add_rows("query", "gallery", "ids")

    def extra_repr(self) -> str:
        """The options."""
        return f"k={self._k}, ties={self._ties!r}, normalize={self._normalize}"

    def update(self, query: Tensor, gallery: Tensor, *, ids: Sequence[int | str] | Tensor | None = None) -> None:
        """Takes in one batch: row ``i`` of ``query`` should find row ``i`` of ``gallery``. An empty one is fine.

        ``ids``: ``(B,)`` integers or names; a pair whose id was taken in, here or on another rank, is not counted
        again.
        """
        name = type(self).__name__
        check_floating(name, "query", query)
        check_floating(name, "gallery", gallery)
        if query.dim() == gallery.dim() == 2 and len(query) == 0 and len(gallery) == 0:
            return
        rows = read_embeddings(name, (query, gallery), self._normalize, names=("query", "gallery"))
        keys = None if ids is None else read_ids(name, ids, len(query), query.device)
        if self.query and (keys is not None) != bool(self.ids):
            refuse_mixture(name)
        self._append("query", rows[0])
        self._append("gallery", rows[1])
        if keys is not None:
            self._append("ids", keys)

    def compute(self) -> dict[str, Tensor]:
        """Recalls and ranks over everything taken in, on all ranks; NaN where that is nothing."""
        names = [f"recall@{limit}" for limit in self._k]
        query, gallery, ids = (self._joined(name) for name in ("query", "gallery", "ids"))
        if query is None or gallery is None:
            return {name: torch.tensor(torch.nan) for name in (*names, "median_rank", "mean_reciprocal_rank")}
        if ids is not None:
            if len(ids) != len(query):  # merged, or gathered, from some that had ids and others that had none
                refuse_mixture(type(self).__name__)
            kept = first_of_each(ids)
            query, gallery = query[kept], gallery[kept]
        ranks = retrieval_ranks(query, gallery, ties=self._ties, normalize=self._normalize)
        return {
            **dict(zip(names, recall_of_ranks(ranks, self._k).unbind())),
            "median_rank": median_of_ranks(ranks),
            "mean_reciprocal_rank": (1 / ranks).mean(),
        }
