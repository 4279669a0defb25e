"""Terms that run as Triton kernels, where Triton is in charge.

===========================================  ======================================================
term                                         operator
===========================================  ======================================================
pairs of all anchors, without a tuple term   ``pairwise_logsumexp``: no Gram block at all
sampled triplets, largest eigenvalue         ``sampled_loss``: nothing of size (B, 1 + K) but an index
all triplets of an anchor, likewise          ``exact_logsumexp``: nothing of size B^3
===========================================  ======================================================

Terms that are not in the table are the reference's. Differentiable twice.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast._backend import is_transformed, use_triton
from multicontrast.linalg.gram3 import gram3_excess
from multicontrast.losses import reference
from multicontrast.losses.candidates import index_of
from multicontrast.losses.reference import Evaluation
from multicontrast.losses.terms import Plan
from multicontrast.losses.triton.exact_operator import exact_logsumexp
from multicontrast.losses.triton.pairwise_operator import pairwise_logsumexp
from multicontrast.losses.triton.sampled_operator import sampled_loss
from multicontrast.similarity import Eigenvalue


def applies(plan: Plan, embeddings: Sequence[Tensor]) -> bool:
    """Where Triton is in charge, nothing but weights masks, and one of the terms has a kernel."""
    first = embeddings[0]
    if not use_triton(first) or not plan.masks.only_weigh or plan.diagnostics is not None:
        return False
    # A batch of one has the gradient 0 exactly, which only subtraction of equals gives.
    if plan.size == 1 or is_transformed(*embeddings, *plan.taus):
        return False
    tuples = plan.tuples
    if tuples is None or plan.tiled:
        return bool(plan.pairs) and plan.is_whole and first.dtype == torch.float32
    if len(embeddings) != 3 or type(tuples.similarity) is not Eigenvalue or tuples.symmetric:
        return False
    parts = tuples.directions[0]
    return len(parts) == 1 and (not parts[0].are_all or first.dtype == torch.float32)


def loss(plan: Plan, embeddings: Sequence[Tensor]) -> Tensor:
    """The plan's loss: 0-dim, or one value for each anchor for ``reduction="none"``."""
    return reference.loss(plan, embeddings, _by_anchor)


def _by_anchor(evaluation: Evaluation) -> Tensor | None:
    term, plan, tau = evaluation.term, evaluation.plan, evaluation.tau
    start, stop = plan.start, plan.stop
    if term.is_pair:
        if plan.tuples is not None and not plan.tiled:  # the tuples need the block as well
            return None
        if not plan.is_whole:
            return None
        rows, columns, match = pairwise_logsumexp(*evaluation.blocks.units, tau, 0, term.symmetric)
        return ((rows + columns) / 2 if term.symmetric else rows) - match
    if plan.tiled:
        return None
    blocks, candidates = evaluation.blocks, term.directions[0][0]
    c = blocks.whole(1, 2)
    if not candidates.anchored:  # the first members may be any rows
        whole: Tensor = sampled_loss(blocks.whole(0, 1), blocks.whole(0, 2), c, index_of(candidates, start, stop), tau)
        return whole
    a, b = (blocks.rows(0, n, start, stop) for n in (1, 2))
    if candidates.are_all:
        lse, _ = exact_logsumexp(a, b, c, tau)
        return lse - gram3_excess(a.diagonal(start), b.diagonal(start), c.diagonal()[start:stop]) / tau
    scheme, index = candidates.listed() or ("index", index_of(candidates, start, stop))
    anchored: Tensor = sampled_loss(a, b, c, index, tau, scheme, start)
    return anchored
