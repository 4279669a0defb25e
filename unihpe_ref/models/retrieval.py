"""Retrieves the nearest embeddings of one modality for those of another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from multicontrast._checks import check_count, check_same_device, check_shape, describe, three_beats

_BLOCK = 1024  # queries compared at once: memory is this times the gallery


class Retrieved(NamedTuple):
    """The nearest rows of a gallery, best first."""

    index: Tensor  # type: ignore[assignment]  # (Q, k) int64; hides the method of tuples
    cosine: Tensor  # (Q, k)


@torch.no_grad()
def retrieve(query: Tensor, gallery: Tensor, k: int = 5) -> Retrieved:
    """The ``k`` rows of ``gallery`` ``(N, D)`` with the largest cosines to each row of ``query`` ``(Q, D)``.

    Query and gallery may be of any modality. Rows are normalised.
    :func:`multicontrast.metrics.retrieval_recall` says how often the true match is among them.

    Raises: ValueError or TypeError for shapes that do not fit, and for ``k`` outside 1 to N.

    Example:
        >>> found = retrieve(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), k=2)
        >>> found.index.tolist()
        [[2, 1]]
    """
    for name, value in (("query", query), ("gallery", gallery)):
        check_shape("retrieve", name, value, ("rows", "D"), "Take embeddings from `UniHPE.encode`.")
    check_same_device("retrieve", ("query", "gallery"), (query, gallery))
    if query.shape[1] != gallery.shape[1]:
        needed = f"`retrieve` needs a gallery of the query's {query.shape[1]} numbers a row"
        raise ValueError(three_beats(needed, describe(gallery), "Encode both with one model."))
    k = check_count("retrieve", "k", k, 1, len(gallery), remedy=f"The gallery holds {len(gallery)}.")
    rows = nn.functional.normalize(gallery.float(), dim=-1).mT
    found = [(nn.functional.normalize(q.float(), dim=-1) @ rows).topk(k) for q in query.split(_BLOCK)]
    if not found:
        return Retrieved(query.new_zeros((0, k), dtype=torch.int64), query.new_zeros((0, k), dtype=torch.float32))
    return Retrieved(torch.cat([best.indices for best in found]), torch.cat([best.values for best in found]))
