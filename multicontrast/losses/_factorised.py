r"""The mean cosine over every tuple of the batch: its exponential is a product over the pairs of modalities.

For three modalities :math:`\sum_{jk} e^{a_{ij} + b_{ik} + c_{jk}} = \sum_j A_{ij} (B C^\top)_{ij}` with
:math:`A = e^a, B = e^b, C = e^c`: one matmul of size B instead of :math:`B^3` exponentials. More modalities fix the
members one by one until three are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

Grams = Mapping[tuple[int, int], Tensor]


def mean_cosine_denominators(grams: Grams, num_modalities: int, anchor: int | str) -> Tensor:
    """The log of the sum of exp(sum of the entries of ``grams``) over the tuples of each anchor, ``(B,)``.

    ``grams`` hold cosine / (number of pairs x tau). The exponentials are taken in float64, relative to the largest
    entry of each row or block, and serve down to tau of about 0.003; where all of them vanish the result is NaN.
    """
    dtype = next(iter(grams.values())).dtype
    doubles = {pair: gram.double() for pair, gram in grams.items()}
    if anchor == 0:
        return _holding(doubles, num_modalities, 0).to(dtype)
    # Tuples that hold sample i anywhere, by inclusion and exclusion over the first place where it stands: the tuples
    # with i at place m and at none before it.
    parts = [_holding(doubles, num_modalities, m, without=range(m)) for m in range(num_modalities)]
    return torch.logsumexp(torch.stack(parts), 0).to(dtype)


def _holding(grams: Grams, num_modalities: int, place: int, without: range = range(0)) -> Tensor:
    """Log-sums over the tuples with sample ``i`` at ``place`` and not at the places ``without``."""
    size = next(iter(grams.values())).shape[0]
    others = [m for m in range(num_modalities) if m != place]
    rows = {m: grams[place, m] if place < m else grams[m, place].mT for m in others}
    own = torch.eye(size, dtype=torch.bool, device=next(iter(grams.values())).device)
    rows = {m: row.masked_fill(own, -torch.inf) if m in without else row for m, row in rows.items()}
    inner = {(m, n): grams[m, n] for m, n in itertools.combinations(others, 2)}
    return _log_sum(rows, inner)


def _log_sum(rows: Mapping[int, Tensor], inner: Grams) -> Tensor:
    """Log-sum over one member of each modality in ``rows`` ``(R, B)``, coupled by ``inner``, for each of the R rows."""
    first, *rest = sorted(rows)
    if not rest:
        return _finite_logsumexp(rows[first])
    if len(rest) == 1:
        a, b, c = rows[first], rows[rest[0]], inner[first, rest[0]]
        peak_a, peak_b, peak_c = _peak(a, 1), _peak(b, 1), _peak(c.flatten(), 0)
        total = ((a - peak_a).exp() * ((b - peak_b).exp() @ (c - peak_c).exp().mT)).sum(1)
        log_total = torch.where(total > 0, total.log(), torch.nan)
        empty = (a == -torch.inf).all(1) | (b == -torch.inf).all(1)
        log_total = torch.where(empty, -torch.inf, log_total)
        return log_total + peak_a.squeeze(1) + peak_b.squeeze(1) + peak_c
    # Fix the member j of the first modality; the others then have its couplings as further row terms.
    parts = []
    remaining = {pair: gram for pair, gram in inner.items() if first not in pair}
    for j in range(inner[first, rest[0]].shape[0]):
        coupled = {m: rows[m] + inner[first, m][j] for m in rest}
        parts.append(rows[first][:, j] + _log_sum(coupled, remaining))
    return _finite_logsumexp(torch.stack(parts, dim=1))


def _peak(x: Tensor, dim: int) -> Tensor:
    """The largest finite entry, a constant for the gradient; 0 where there is none."""
    peak = x.detach().amax(dim, keepdim=dim == 1)
    return torch.where(peak == -torch.inf, 0, peak)


def _finite_logsumexp(x: Tensor) -> Tensor:
    """logsumexp over the last axis with the gradient 0 where nothing is finite."""
    empty = (x == -torch.inf).all(-1)
    total = torch.logsumexp(x.masked_fill(empty[..., None], 0), -1)
    return total.masked_fill(empty, -torch.inf)
