"""Terms that run as Triton kernels of their own, where Triton is the back end.

===========================================  ======================================================
term                                         operator
===========================================  ======================================================
pairs in tiles, beside another term          ``fused_loss`` of those with one temperature
sampled triplets, largest eigenvalue         ``sampled_loss``: nothing of size (B, 1 + K) but an index
all triplets of an anchor, likewise          ``exact_logsumexp``: nothing of size B^3
===========================================  ======================================================

Plain PyTorch computes the terms that are not in the table. Differentiable twice.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast._backend import is_transformed, use_triton
from multicontrast._checks import compute_dtype
from multicontrast._version import __version__
from multicontrast.linalg.gram3 import gram3_excess
from multicontrast.losses import reference, streamed
from multicontrast.losses.candidates import index_of
from multicontrast.losses.plan import Plan
from multicontrast.losses.reference import Evaluation
from multicontrast.losses.triton import fused_operator
from multicontrast.losses.triton.exact_operator import exact_logsumexp
from multicontrast.losses.triton.sampled_operator import sampled_loss
from multicontrast.similarity import Eigenvalue


def applies(plan: Plan, embeddings: Sequence[Tensor]) -> bool:
    """Where Triton is the back end, the only masks are weights, and one of the terms has a kernel. All triplets also
    under a compiler for a CPU."""
    tuples = plan.tuples
    if plan.tiled:
        return bool(plan.pairs) and all(fused_operator.applies(part, embeddings) for part in _pairs_by_tau(plan))
    by_kernels = use_triton(embeddings[0])
    # A compiler for a CPU fuses the formulas of all triplets, which it sees in place of the operator.
    fuses = torch.compiler.is_compiling() and embeddings[0].device.type == "cpu"
    if not (by_kernels or fuses) or not plan.masks.only_weigh or plan.diagnostics is not None:
        return False
    # A batch of one must have a gradient of exactly 0, which only the subtraction of equal numbers gives.
    if plan.size == 1 or is_transformed(*embeddings, *plan.taus):
        return False
    if tuples is None or len(embeddings) != 3 or type(tuples.similarity) is not Eigenvalue or tuples.symmetric:
        return False
    parts = tuples.directions[0]
    if len(parts) != 1:
        return False
    if not by_kernels:
        return parts[0].are_all
    return not parts[0].are_all or compute_dtype(*embeddings) == torch.float32


def _pairs_by_tau(plan: Plan) -> list[Plan]:
    """The pairs, grouped by temperature."""
    found = (tuple(term for term in plan.pairs if term.tau is tau) for tau in plan.taus)
    return [dataclasses.replace(plan, terms=terms) for terms in found if terms]


def loss(plan: Plan, embeddings: Sequence[Tensor]) -> Tensor:
    """The plan's loss: 0-dim, or one value for each anchor for ``reduction="none"``."""
    wide = [x.to(compute_dtype(*embeddings)) for x in embeddings]
    if not plan.tiled:
        return reference.loss(plan, wide, _by_anchor)
    losses = [fused_operator.loss(part, embeddings) for part in _pairs_by_tau(plan)]
    if plan.tuples is not None:
        rest = dataclasses.replace(plan, terms=(plan.tuples,))
        plain = streamed.loss if streamed.applies(rest, wide) else reference.loss
        losses.append(plain(rest, wide))
    return sum(losses[1:], start=losses[0])


def _by_anchor(evaluation: Evaluation) -> Tensor | None:
    term, plan, tau = evaluation.term, evaluation.plan, evaluation.tau
    start, stop = plan.start, plan.stop
    if term.is_pair:  # the tuples need its blocks as well
        return None
    blocks, candidates = evaluation.blocks, term.directions[0][0]
    c = blocks.whole(1, 2)
    if not candidates.anchored:  # the first members may be any rows
        whole: Tensor = sampled_loss(blocks.whole(0, 1), blocks.whole(0, 2), c, index_of(candidates, start, stop), tau)
        return whole
    a, b = (blocks.rows(0, n, start, stop) for n in (1, 2))
    if candidates.are_all:
        lse, _ = exact_logsumexp(a, b, c, tau, __version__)
        return lse - gram3_excess(a.diagonal(start), b.diagonal(start), c.diagonal()[start:stop]) / tau
    scheme, index = candidates.listed() or ("index", index_of(candidates, start, stop))
    anchored: Tensor = sampled_loss(a, b, c, index, tau, scheme, start)
    return anchored
