r"""The mean cosine over every tuple of the batch. Its exponential is a product over the pairs of modalities.

For three modalities :math:`\sum_{jk} e^{a_{ij} + b_{ik} + c_{jk}} = \sum_j A_{ij} (B C^\top)_{ij}` with
:math:`A = e^a, B = e^b, C = e^c`: one matmul of size B instead of :math:`B^3` exponentials. More modalities fix the
members one by one until three are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from multicontrast.losses.candidates import Blocks
from multicontrast.losses.softmax import finite_logsumexp


def mean_cosine_denominators(blocks: Blocks, tau: Tensor, anchor: int | str, start: int, stop: int) -> Tensor:
    """The log of the sum of exp(mean cosine / tau) over the tuples of each of the anchors ``start..stop``.

    The exponentials are taken in float64, relative to the largest entry of each row or block. For unit rows in three
    modalities this works down to a ``tau`` of 1e-3; if all of them vanish the result is NaN.
    """
    count = len(blocks.units)
    scale = count * (count - 1) / 2 * tau
    if anchor == 0:
        return _holding(blocks, scale, 0, start, stop).to(tau.dtype)
    # Tuples with sample i anywhere, split by its first place: those with i at place m and at none before.
    parts = [_holding(blocks, scale, m, start, stop, without=range(m)) for m in range(count)]
    return torch.logsumexp(torch.stack(parts), 0).to(tau.dtype)


def _holding(blocks: Blocks, scale: Tensor, place: int, start: int, stop: int, without: range = range(0)) -> Tensor:
    """Log-sums over the tuples with sample ``i`` at ``place`` and not at the places ``without``."""
    others = [m for m in range(len(blocks.units)) if m != place]
    inner = {(m, n): (blocks.whole(m, n) / scale).double() for m, n in itertools.combinations(others, 2)}
    rows = {m: (blocks.rows(place, m, start, stop) / scale).double() for m in others}
    everyone = torch.arange(blocks.size, device=scale.device)
    own = everyone[start:stop, None] == everyone
    rows = {m: row.masked_fill(own, -torch.inf) if m in without else row for m, row in rows.items()}
    return _log_sum(rows, inner)


def _log_sum(rows: Mapping[int, Tensor], inner: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """Log-sum over one member of each modality in ``rows`` ``(R, B)``, coupled by ``inner``, for each of the R rows."""
    first, *rest = sorted(rows)
    if not rest:
        return finite_logsumexp(rows[first])
    if len(rest) == 1:
        a, b, c = rows[first], rows[rest[0]], inner[first, rest[0]]
        peak_a, peak_b, peak_c = _peak(a, 1), _peak(b, 1), _peak(c.flatten(), 0)
        total = ((a - peak_a).exp() * ((b - peak_b).exp() @ (c - peak_c).exp().mT)).sum(1)
        log_total = torch.where(total > 0, total.log(), torch.nan)
        empty = (a == -torch.inf).all(1) | (b == -torch.inf).all(1)
        log_total = torch.where(empty, -torch.inf, log_total)
        return log_total + peak_a.squeeze(1) + peak_b.squeeze(1) + peak_c
    # Fix the member j of the first modality; its couplings are then row terms of the others.
    parts = []
    remaining = {pair: gram for pair, gram in inner.items() if first not in pair}
    for j in range(inner[first, rest[0]].shape[0]):
        coupled = {m: rows[m] + inner[first, m][j] for m in rest}
        parts.append(rows[first][:, j] + _log_sum(coupled, remaining))
    return finite_logsumexp(torch.stack(parts, dim=1))


def _peak(x: Tensor, dim: int) -> Tensor:
    """The largest finite entry, detached; 0 if there is none."""
    peak = x.detach().amax(dim, keepdim=dim == 1)
    return torch.where(peak == -torch.inf, 0, peak)
