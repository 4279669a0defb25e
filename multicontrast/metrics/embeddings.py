"""How well the embeddings of several modalities agree, and how evenly they fill the sphere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multicontrast._checks import (
    check_floating,
    check_list,
    check_same_device,
    compute_dtype,
    describe,
    three_beats,
    without_autocast,
)
from multicontrast.linalg.symmetric import symmetric_eigmax
from multicontrast.metrics._inputs import check_options, length, reduce_values, state_device

_HELD_AT_ONCE = 1 << 22  # similarities held at a time, where all pairs are needed


def cosine_alignment(x: Tensor, y: Tensor, *, normalize: bool = True, reduction: str = "mean") -> Tensor:
    """Mean cosine of matching embeddings: row ``i`` of ``x`` with row ``i`` of ``y``.

    Args:
        x, y: ``(B, D)`` embeddings. Half precision is computed in float32.
        normalize: False promises rows of length one.
        reduction: ``"none"`` for ``(B,)``, ``"mean"`` or ``"sum"``.

    Returns: a scalar in [-1, 1], or ``(B,)``. A zero row has cosine 0.

    Raises: ValueError, TypeError for shapes, types or devices that do not fit, and for an empty batch.

    Example:
        >>> cosine_alignment(torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, -1.0]]), reduction="none")
        tensor([ 1., -1.])
    """
    check_options("cosine_alignment", reduction=reduction)
    x, y = read_embeddings("cosine_alignment", (x, y), normalize, names=("x", "y"))
    return reduce_values((x * y).sum(-1), None, reduction)


def cosine_matrix(embeddings: Sequence[Tensor], *, normalize: bool = True) -> Tensor:
    """Mean cosine between every two modalities over matching rows: the curves of UniHPE's Fig. 5, as one matrix.

    Args:
        embeddings: N tensors ``(B, D)``, row ``i`` of each from sample ``i``.
        normalize: False promises rows of length one.

    Returns: ``(N, N)``, symmetric. The diagonal is 1, or the share of rows that are not zero.

    Raises: as for `cosine_alignment`.

    Example:
        >>> cosine_matrix([torch.eye(2), torch.eye(2), -torch.eye(2)])
        tensor([[ 1.,  1., -1.],
                [ 1.,  1., -1.],
                [-1., -1.,  1.]])
    """
    return pairwise(read_embeddings("cosine_matrix", embeddings, normalize), lambda x, y: (x * y).sum(-1).mean())


def alignment(x: Tensor, y: Tensor, *, alpha: float = 2.0, normalize: bool = True, reduction: str = "mean") -> Tensor:
    r"""Alignment of matching embeddings, :math:`\operatorname{E} \lVert x_i - y_i \rVert^\alpha`: 0 is perfect.

    Args:
        alpha: the exponent; the paper's 2 gives ``2 - 2 cosine``.

    Other Args, Returns, Raises: as for `cosine_alignment`.

    Reference:
        Wang and Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere, ICML 2020.

    Example:
        >>> alignment(torch.eye(2), -torch.eye(2))
        tensor(4.)
    """
    check_options("alignment", alpha=alpha, reduction=reduction)
    x, y = read_embeddings("alignment", (x, y), normalize, names=("x", "y"))
    distance = length(x - y)
    together = distance == 0  # where a power below 1 has no derivative
    powers = torch.where(together, 0.0, torch.where(together, 1.0, distance) ** float(alpha))
    return reduce_values(powers, None, reduction)


def uniformity(x: Tensor, *, t: float = 2.0, normalize: bool = True) -> Tensor:
    r"""Uniformity, :math:`\log \operatorname{E}_{i<j} \exp(-t \lVert x_i - x_j \rVert^2)`: lower is more even.

    0 means that all rows coincide. Over all pairs of two different rows, in blocks of bounded memory.

    Args:
        x: ``(B, D)`` with at least two rows.
        t: the paper's 2.
        normalize: False promises rows of length one.

    Returns: a scalar between ``-4 t`` and 0.

    Raises: as for `cosine_alignment`; ValueError for fewer than two rows.

    Reference: Wang and Isola, ICML 2020.

    Example:
        >>> uniformity(torch.eye(2))  # one pair, at squared distance 2
        tensor(-4.)
    """
    check_options("uniformity", t=t)
    (x,) = read_embeddings("uniformity", (x,), normalize, names=("x",))
    rows = len(x)
    if rows < 2:
        raise ValueError(three_beats("`uniformity` needs at least two rows", f"{rows}", "Pass a larger batch."))
    parts = []
    block = max(_HELD_AT_ONCE // rows, 1)
    for start in range(0, rows - 1, block):
        left, right = x[start : start + block], x[start + 1 :]
        # |x - y|^2 = 2 - 2 cosine for unit rows; a zero row is at distance 1 from the others, and so is not exact there
        squared = left.square().sum(-1, keepdim=True) + right.square().sum(-1) - 2 * products(left, right)
        earlier = torch.ones_like(squared, dtype=torch.bool).tril(-1)  # pairs (i, j) with j <= i, already counted
        parts.append(torch.logsumexp((-float(t) * squared.clamp_min(0)).masked_fill(earlier, -torch.inf).flatten(), 0))
    pairs = rows * (rows - 1) / 2
    return torch.logsumexp(torch.stack(parts), 0) - torch.log(torch.full_like(parts[0], pairs))


def modality_gap(x: Tensor, y: Tensor, *, normalize: bool = True) -> Tensor:
    """Distance between the centroids of two modalities on the sphere, between 0 and 2.

    Args:
        x, y: ``(B, D)``; the two may have different numbers of rows.
        normalize: False promises rows of length one.

    Returns: a scalar.

    Raises: as for `cosine_alignment`.

    Reference:
        Liang et al., Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Representation Learning,
        NeurIPS 2022.

    Example:
        >>> modality_gap(torch.tensor([[1.0, 0.0]]), torch.tensor([[-3.0, 0.0]]))
        tensor(2.)
    """
    x, y = read_embeddings("modality_gap", (x, y), normalize, names=("x", "y"), matching=False)
    return length(x.mean(0) - y.mean(0))


def sign_flipped_share(embeddings: Sequence[Tensor], *, normalize: bool = True) -> Tensor:
    """Share of tuples in which the eigenvalue similarity takes a modality for its opposite.

    The largest eigenvalue of a tuple's Gram matrix does not change when an embedding is negated: three vectors of which
    one points the other way score 3, like three equal ones. A tuple is sign-flipped where the leading eigenvector has
    entries of both signs: there the eigenvalue pulls an embedding towards the *opposite* of another. A model trained
    with the triplet alone can end so; the pairwise terms prevent it. For two modalities it is a negative cosine.

    Args:
        embeddings: N >= 2 tensors ``(B, D)``, row ``i`` of each from sample ``i``.
        normalize: False promises rows of length one.

    Returns: a scalar in [0, 1]. A tuple with NaN makes it NaN.

    Raises: as for `cosine_alignment`; ValueError for fewer than two modalities.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> sign_flipped_share([x, x, x * torch.tensor([[1.0], [-1.0]])])
        tensor(0.5000)
    """
    rows = read_embeddings("sign_flipped_share", embeddings, normalize, least=2)
    gram = pairwise([part.detach() for part in rows], lambda x, y: (x * y).sum(-1)).movedim(-1, 0)  # (B, N, N)
    invalid = gram.isnan().any(-1).any(-1)
    modalities = gram.shape[-1]
    gram = torch.where(invalid[:, None, None], 0.0, gram)
    least = _leading_projector(gram).flatten(1).amin(-1)
    flipped = least < -modalities * torch.finfo(gram.dtype).eps  # a modality at right angles has no side
    return torch.where(invalid, torch.nan, flipped.to(gram.dtype)).mean()


def _leading_projector(gram: Tensor) -> Tensor:
    """``u u'`` of the leading eigenvector of each ``(B, N, N)``; of several, the mean over their space."""
    if gram.shape[-1] <= 8:  # it is the derivative of the largest eigenvalue, and needs no LAPACK
        projector: Tensor = torch.func.grad(lambda matrix: symmetric_eigmax(matrix).sum())(gram)
        return projector
    leading = torch.linalg.eigh(gram).eigenvectors[..., -1:]
    return leading @ leading.mT


def effective_rank(x: Tensor, *, normalize: bool = True) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the singular values, between 1 and ``min(B, D)``.

    :math:`\exp(-\sum_k p_k \log p_k)` with :math:`p_k = \sigma_k / \sum \sigma`, in float64 (on the CPU for devices
    without it). It falls towards 1 as embeddings collapse. RankMe takes the same number of features that are not
    normalised: ``normalize=False``.

    Args:
        x: ``(B, D)``.
        normalize: whether rows are brought to length one first.

    Returns: a scalar; NaN where all rows are zero or where any is NaN.

    Raises: as for `cosine_alignment`.

    Reference:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007; Garrido et al.,
        RankMe, ICML 2023.

    Example:
        >>> effective_rank(torch.eye(4)), effective_rank(torch.ones(4, 4))
        (tensor(4.), tensor(1.))
    """
    (x,) = read_embeddings("effective_rank", (x,), normalize, names=("x",))
    dtype = x.dtype
    wide = x.to(state_device(x.device)).double()
    wide = wide / wide.detach().abs().amax().clamp_min(torch.finfo(wide.dtype).tiny)  # squares stay in range
    small = wide.mT @ wide if len(wide) > wide.shape[1] else wide @ wide.mT
    invalid = small.isnan().any()
    eigenvalues = torch.linalg.eigvalsh(torch.where(invalid, 0.0, small)).clamp_min(0)
    floor = len(small) * torch.finfo(small.dtype).eps * eigenvalues.amax()
    singular = torch.where(eigenvalues > floor, eigenvalues, 0.0).sqrt()  # below the floor they are rounding
    shares = singular / singular.sum()
    rank = torch.exp(-torch.special.xlogy(shares, shares).sum())
    return torch.where(invalid, torch.nan, rank).to(x.device, dtype)


def read_embeddings(
    operation: str,
    embeddings: Sequence[Tensor],
    normalize: bool,
    *,
    names: Sequence[str] | None = None,
    matching: bool = True,
    least: int = 1,
) -> list[Tensor]:
    """Checks, promotes, and brings rows to length one; a zero row stays zero."""
    check_options(operation, normalize=normalize)
    remedy = "Pass a list with one (B, D) tensor per modality."
    if len(check_list(operation, "embeddings", embeddings, remedy=remedy)) < least:
        needed = f"`{operation}` needs a list of {least} or more embeddings"
        raise ValueError(three_beats(needed, f"{len(embeddings)} of them", remedy))
    names = names or [f"embeddings[{index}]" for index in range(len(embeddings))]
    for name, tensor in zip(names, embeddings):
        check_floating(operation, name, tensor)
        if tensor.dim() != 2 or tensor.numel() == 0:
            remedy = "Pass one row per sample, and at least one of them."
            raise ValueError(three_beats(f"`{operation}` needs `{name}` of shape (B, D)", describe(tensor), remedy))
    first = embeddings[0]
    for name, tensor in zip(names, embeddings):
        if tensor.shape[1] != first.shape[1] or (matching and len(tensor) != len(first)):
            came = f"`{names[0]}` {tuple(first.shape)} and `{name}` {tuple(tensor.shape)}"
            remedy = "Drop the samples that lack a modality, and project all to one width."
            raise ValueError(three_beats(f"`{operation}` needs embeddings of one shape", came, remedy))
    check_same_device(operation, names, embeddings)
    dtype = compute_dtype(*embeddings)
    rows = [tensor.to(dtype) for tensor in embeddings]
    if not normalize:
        return rows
    norms = [length(tensor).unsqueeze(-1) for tensor in rows]
    return [tensor / torch.where(norm == 0, 1.0, norm) for tensor, norm in zip(rows, norms)]


def pairwise(parts: Sequence[Tensor], function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``(N, N, ...)``: a symmetric function of every two of N tensors, one pair at a time."""
    upper = {(i, j): function(parts[i], parts[j]) for i in range(len(parts)) for j in range(i, len(parts))}
    places = range(len(parts))
    return torch.stack([torch.stack([upper[min(i, j), max(i, j)] for j in places]) for i in places])


def products(x: Tensor, y: Tensor) -> Tensor:
    """All inner products, in the type of the rows whatever autocast says."""
    with without_autocast(x.device):
        return x @ y.mT
