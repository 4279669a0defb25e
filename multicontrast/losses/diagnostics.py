"""Statistics of a loss: detached figures of each term, from the logits that it computes anyway."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from multicontrast._checks import check_flag


@dataclass(frozen=True)
class TermDiagnostics:
    """One term of a loss on one batch: detached 0-dim tensors, over the anchors that take part in the term.

    ``accuracy`` and ``effective_negatives`` have an entry for each direction: ``(2,)`` for a symmetric pair, ``(1,)``
    otherwise.
    """

    loss: Tensor
    """Mean loss of the term, without ``alpha``."""
    floor: Tensor
    """What is reached at this batch size and temperature, the loss if every positive matched exactly and all other
    samples were at right angles. Below it negatives point away from each other."""
    accuracy: Tensor
    """Share of anchors whose positive is more alike than each of its negatives."""
    positive_similarity: Tensor
    """Mean similarity of the positives."""
    negative_similarity: Tensor
    """Mean similarity of the negatives."""
    effective_negatives: Tensor
    r"""Over how many negatives an anchor's gradient spreads, :math:`(\sum_k p_k)^2 / \sum_k p_k^2` with p their
    probabilities: from 1, one of them, to all of them."""
    anchors: Tensor
    """Number of anchors that take part."""
    sign_flipped: Tensor | None = None
    """Of tuples the share of positives some of whose members point against the others along the leading eigenvector, to
    which the eigenvalue and the volume are blind."""
    sampling_gap: Tensor | None = None
    """Of tuples, if asked for, the mean of the loss with every tuple of the batch (``anchor=0``) minus that of the
    sampled ones."""


@dataclass
class Diagnostics:
    """Statistics of a loss on its last batch. Pass one as ``diagnostics=``, and the call fills it.

    The figures come from the logits that the reference implementation computes anyway, without a further matmul; they
    are detached, and stay on the device. They disable the fused implementations: ask for them every hundred steps or
    so. Under ``gather`` they are of this rank's anchors.

    Args:
        sampling_gap: whether to compute what sampling leaves out of the denominators, which takes the loss over all
            tuples once more (up to three modalities, any number for the mean cosine).

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
        """All figures by names such as ``pair_0_1/accuracy_0`` and ``tuples/loss``, 0-dim each, for a logger."""
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
