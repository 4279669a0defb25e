"""The whole contrastive loss of UniHPE, eq. (4): the pairs and the triplet, over Gram blocks computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from multicontrast.distributed import Gather, Meeting
from multicontrast.losses._arguments import (
    check_embeddings,
    check_flag,
    check_masks,
    check_pairs,
    check_reduction,
    check_ring_flag,
    check_tau,
    check_weight_of_triplet,
)
from multicontrast.losses._diagnostics import Diagnostics
from multicontrast.losses._gathered import meet_for_tuples
from multicontrast.losses._module import as_temperature
from multicontrast.losses._terms import check_taus, loss_by_terms, terms_of, together
from multicontrast.losses._tiled import check_tiled
from multicontrast.losses._walk import Walk
from multicontrast.losses.triplet import NAMES
from multicontrast.similarity import Similarity
from multicontrast.temperature import Temperature

ALL_PAIRS = ((0, 1), (0, 2), (1, 2))


def trimodal_infonce(
    x_img: Tensor,
    x_2d: Tensor,
    x_3d: Tensor,
    tau: float | Tensor | Mapping[tuple[int, int] | str, float | Tensor],
    *,
    alpha: float = 1.0,
    pairs: Sequence[tuple[int, int]] = ALL_PAIRS,
    symmetric: bool = True,
    similarity: str | Similarity = "eigenvalue",
    negatives: str | Tensor = "permutation",
    num_negatives: int | None = None,
    anchor: int | str = 0,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    tiled: bool | None = None,
    gather: Gather = False,
    ring: bool = False,
    present: Tensor | None = None,
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    hardness: float = 0.0,
    extra_negatives: Sequence[Tensor | None] | None = None,
    diagnostics: Diagnostics | None = None,
) -> Tensor:
    r"""UniHPE's contrastive loss, eq. (4): :math:`\mathcal{L}_{pair} + \alpha \mathcal{L}_{triplet}`.

    The pairs are summed; each is the mean of both directions. One Gram block for each pair of modalities serves the
    pairs and the triplets, so the triplet term costs a fraction of the pairs, where the paper's costs a multiple.

    Args:
        x_img, x_2d, x_3d: ``(B, D)`` embeddings, normalised here; row ``i`` of each is sample ``i``.
        tau: temperature, a positive number or 0-dim tensor, shared by all terms as in the paper. Or one for each term,
            by name: ``{(0, 1): 0.07, (0, 2): 0.07, (1, 2): 0.1, "triplet": 0.2}``; terms then share no Gram block.
        alpha: weight of the triplet term; 0 leaves the pairs alone.
        pairs: the pairs of modalities to align; the paper's stage 2, whose pose encoders are frozen, has
            ``((0, 1), (0, 2))``.
        symmetric: whether each pair is the mean of both directions, or only has its first modality as anchor.
        similarity, negatives, num_negatives, anchor, generator, reduction, normalize, tiled: of the triplet term; see
            :func:`multicontrast.multimodal_infonce`.
        gather, ring: for the rows of all ranks as candidates; see there too.
        present, ids, weight, label_smoothing, hardness, extra_negatives: of every term; see
            :func:`multicontrast.multimodal_infonce`. A pair takes the samples that have both of its modalities, the
            triplet those that have two, and the mean of each term is over its own.
        diagnostics: a :class:`multicontrast.Diagnostics` that the call fills.

    Returns:
        The loss in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: for arguments that do not fit; before any work.

    Reference:
        Eq. (4) of Jiang et al., UniHPE, arXiv 2311.16477.

    Example:
        >>> import torch
        >>> x_img, x_2d, x_3d = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
        >>> pairs_alone = trimodal_infonce(x_img, x_2d, x_3d, 0.2, alpha=0.0)
        >>> bool(pairs_alone < trimodal_infonce(x_img, x_2d, x_3d, 0.2))
        True
    """
    operation = "trimodal_infonce"
    embeddings = [x_img, x_2d, x_3d]
    with Meeting(operation, gather) as meeting:
        check_embeddings(operation, NAMES, embeddings, may_be_empty=not meeting.alone)
        check_weight_of_triplet(operation, alpha)
        chosen = check_pairs(operation, pairs, 3)
        by_terms = isinstance(tau, Mapping)
        if isinstance(tau, Mapping):
            tau = together(check_taus(operation, tau, terms_of(chosen, alpha > 0)), embeddings)
        else:
            check_tau(operation, tau)
        flags = {"symmetric": symmetric, "normalize": normalize}
        for name, value in flags.items():
            check_flag(operation, name, value)
        check_reduction(operation, reduction)
        check_ring_flag(operation, ring, gather, tiled)
        ring = ring and diagnostics is None  # which look at logits
        options = flags | {
            "pairs": chosen,
            "reduction": reduction,
            "tiled": tiled,
            "ring": ring,
            "kind of temperature": by_terms,
        }
        terms = (similarity, negatives, num_negatives, anchor, generator)
        masks = check_masks(operation, embeddings, present, ids, weight, label_smoothing, hardness, extra_negatives)
        batch, tuples = meet_for_tuples(operation, meeting, embeddings, tau, options, terms, float(alpha), masks, ring)
        check_tiled(operation, tiled, tuples)
    walk = Walk(3, chosen, symmetric, tuples, reduction, batch.anchors, batch.masks)
    if by_terms:
        return loss_by_terms(operation, batch, walk, normalize=normalize, tiled=tiled, diagnostics=diagnostics)
    return batch.loss(operation, walk, normalize=normalize, tiled=tiled, diagnostics=diagnostics)


class TrimodalInfoNCE(nn.Module):
    """:func:`trimodal_infonce` with a temperature of its own, or a shared one.

    Args:
        temperature: an initial value, for a learnable :class:`multicontrast.Temperature` without bounds, or a
            :class:`~multicontrast.Temperature`; or one of these for each term, by its name as for the function. Its
            parameters have to be in the optimizer, without weight decay.
        alpha, pairs, symmetric, similarity, negatives, num_negatives, anchor: as for the function.
        generator, reduction, normalize, tiled, gather, ring, label_smoothing, hardness: as for the function.
    """

    def __init__(
        self,
        temperature: float | Temperature | Mapping[tuple[int, int] | str, float | Temperature] = 0.07,
        *,
        alpha: float = 1.0,
        pairs: Sequence[tuple[int, int]] = ALL_PAIRS,
        symmetric: bool = True,
        similarity: str | Similarity = "eigenvalue",
        negatives: str = "permutation",
        num_negatives: int | None = None,
        anchor: int | str = 0,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
        normalize: bool = True,
        tiled: bool | None = None,
        gather: Gather = False,
        ring: bool = False,
        label_smoothing: float = 0.0,
        hardness: float = 0.0,
    ) -> None:
        super().__init__()
        self.temperature: Temperature | nn.ModuleDict
        if isinstance(temperature, Mapping):
            made = {key: as_temperature("TrimodalInfoNCE", value) for key, value in temperature.items()}
            self._terms = tuple(made)
            self.temperature = nn.ModuleDict({_name(key): value for key, value in made.items()})
        else:
            self.temperature = as_temperature("TrimodalInfoNCE", temperature)
        self.label_smoothing, self.hardness = label_smoothing, hardness
        self.alpha, self.pairs, self.symmetric = alpha, pairs, symmetric
        self.similarity, self.negatives, self.num_negatives = similarity, negatives, num_negatives
        self.anchor, self.generator = anchor, generator
        self.reduction, self.normalize = reduction, normalize
        self.tiled, self.gather, self.ring = tiled, gather, ring

    def forward(
        self,
        x_img: Tensor,
        x_2d: Tensor,
        x_3d: Tensor,
        *,
        negatives: Tensor | None = None,
        present: Tensor | None = None,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        extra_negatives: Sequence[Tensor | None] | None = None,
        diagnostics: Diagnostics | None = None,
    ) -> Tensor:
        """The loss of a batch; an index passed here takes the place of the drawn negatives. The rest as for
        the function."""
        return trimodal_infonce(
            x_img,
            x_2d,
            x_3d,
            self._taus(),
            alpha=self.alpha,
            pairs=self.pairs,
            symmetric=self.symmetric,
            similarity=self.similarity,
            negatives=self.negatives if negatives is None else negatives,
            num_negatives=self.num_negatives if negatives is None else None,
            anchor=self.anchor,
            generator=self.generator,
            reduction=self.reduction,
            normalize=self.normalize,
            tiled=self.tiled,
            gather=self.gather,
            ring=self.ring,
            present=present,
            ids=ids,
            weight=weight,
            label_smoothing=self.label_smoothing,
            hardness=self.hardness,
            extra_negatives=extra_negatives,
            diagnostics=diagnostics,
        )

    def _taus(self) -> Tensor | dict[tuple[int, int] | str, Tensor]:
        if isinstance(self.temperature, nn.ModuleDict):
            return {key: self.temperature[_name(key)]() for key in self._terms}
        return self.temperature()


def _name(term: tuple[int, int] | str) -> str:
    """A term's name in the state_dict: ``pair_0_1`` or ``triplet``."""
    return term if isinstance(term, str) else "_".join(("pair", *map(str, term)))
