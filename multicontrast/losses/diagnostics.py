"""Statistics of a loss: detached figures of each term, from its own logits."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from multicontrast._checks import check_flag


@dataclass(frozen=True)
class TermDiagnostics:
    """One term of a loss on one batch: detached 0-dim tensors, over the anchors of the term.

    ``accuracy`` and ``effective_negatives`` have an entry for each direction: ``(2,)`` for a symmetric pair, ``(1,)``
    otherwise.
    """

    loss: Tensor
    """Mean loss of the term, without ``alpha``."""
    floor: Tensor
    """The loss at this batch size and temperature if every positive matched exactly and all other samples were
    orthogonal. A loss below it means that negatives have negative similarity."""
    accuracy: Tensor
    """Share of anchors whose positive is more similar than each of their negatives."""
    positive_similarity: Tensor
    """Mean similarity of the positives."""
    negative_similarity: Tensor
    """Mean similarity of the negatives."""
    effective_negatives: Tensor
    r"""The number of negatives that carry an anchor's gradient, :math:`(\sum_k p_k)^2 / \sum_k p_k^2` with p their
    probabilities: from 1 to all of them."""
    anchors: Tensor
    """Number of anchors of the term."""
    sign_flipped: Tensor | None = None
    """For tuples, the share of positives with members of both signs along the leading eigenvector. The eigenvalue and
    the volume do not depend on these signs."""
    sampling_gap: Tensor | None = None
    """For tuples, with ``Diagnostics(sampling_gap=True)``, the mean loss over every tuple of the batch (``anchor=0``)
    minus that over the sampled ones."""


@dataclass
class Diagnostics:
    """Statistics of a loss on its last batch: pass one as ``diagnostics=``, and the call fills it.

    The reference implementation computes the figures from its logits, without another matmul; they are detached and
    stay on the device. A call with diagnostics does not use the fused implementations, so pass one only every hundred
    steps or so. Under ``gather`` the figures are those of this rank's anchors.

    Args:
        sampling_gap: whether to compute how much the loss would grow over all tuples, which takes that loss as well
            (up to three modalities, any number for the mean cosine).

    Example:
        >>> import torch
        >>> from multicontrast import pairwise_infonce
        >>> diagnostics = Diagnostics()
        >>> loss = pairwise_infonce(torch.eye(4), torch.eye(4), 1.0, diagnostics=diagnostics)
        >>> term = diagnostics.pairs[0, 1]
        >>> term.accuracy.tolist(), round(term.floor.item(), 4), round(term.effective_negatives[0].item(), 4)
        ([1.0, 1.0], 0.7437, 3.0)
    """

    sampling_gap: bool = False
    pairs: dict[tuple[int, int], TermDiagnostics] = field(default_factory=dict, init=False)
    tuples: TermDiagnostics | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.sampling_gap = check_flag("Diagnostics", "sampling_gap", self.sampling_gap)

    def as_dict(self) -> dict[str, Tensor]:
        """All figures, 0-dim, by names such as ``pair_0_1/accuracy_0`` and ``tuples/loss``, for a logger."""
        terms = {f"pair_{m}_{n}": term for (m, n), term in self.pairs.items()}
        if self.tuples is not None:
            terms["tuples"] = self.tuples
        flat = {}
        for prefix, term in terms.items():
            for name, value in vars(term).items():
                if value is None:
                    continue
                if value.ndim == 0:
                    flat[f"{prefix}/{name}"] = value
                else:
                    flat.update({f"{prefix}/{name}_{k}": entry for k, entry in enumerate(value)})
        return flat
