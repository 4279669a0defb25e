"""One pose out of several hypotheses ``(H, B, J, 2 or 3)``, as :meth:`unihpe_ref.models.UniHPE.decode` draws them."""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast._checks import check_floating, describe, three_beats
from multicontrast.metrics import mpjpe


def mean_hypothesis(hypotheses: Tensor) -> Tensor:
    """The mean of the hypotheses, ``(B, J, 2 or 3)``. Limbs get shorter where hypotheses disagree."""
    _check("mean_hypothesis", hypotheses)
    return hypotheses.mean(0)


def best_hypothesis(hypotheses: Tensor, target: Tensor) -> Tensor:
    """The hypothesis nearest to ``target`` ``(B, J, 2 or 3)`` by MPJPE, sample by sample.

    This is an oracle, because it uses the truth; label its numbers as such.
    :func:`multicontrast.metrics.min_mpjpe` is the error of this pose.
    """
    _check("best_hypothesis", hypotheses)
    check_floating("best_hypothesis", "target", target)
    if hypotheses.shape[1:] != target.shape:
        needed = f"`best_hypothesis` needs `target` of shape {tuple(hypotheses.shape[1:])}"
        raise ValueError(three_beats(needed, describe(target), "Give the truth of the same samples."))
    errors = mpjpe(hypotheses, target.expand_as(hypotheses), reduction="none")
    return hypotheses[errors.argmin(0), torch.arange(len(target), device=errors.device)]


def _check(operation: str, hypotheses: Tensor) -> None:
    check_floating(operation, "hypotheses", hypotheses)
    if hypotheses.ndim != 4 or not len(hypotheses):
        needed = f"`{operation}` needs hypotheses of shape (H, B, J, 2 or 3), H > 0"
        raise ValueError(three_beats(needed, describe(hypotheses), "Ask `decode` for `hypotheses=H`."))
