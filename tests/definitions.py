"""The losses straight from the papers' equations: slow, dense, differentiable, in the type of their input.

These are what the library is compared with (in float64), and the baselines that the benchmarks time. They
share no code with the library and follow the papers line by line.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """Rows of length one; a zero row stays zero."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / torch.where(norm > 0, norm, 1), 0 * x)


# --- pairs --------------------------------------------------------------------------------------------------


def directed_infonce(anchor: Tensor, candidates: Tensor, tau: float | Tensor) -> Tensor:
    """UniHPE eq. (1) for each anchor, ``(B,)``: ``anchor[i]`` matches ``candidates[i]``."""
    logits = unit(anchor) @ unit(candidates).mT / tau
    return F.cross_entropy(logits, torch.arange(len(anchor), device=anchor.device), reduction="none")


def pair_infonce(x: Tensor, y: Tensor, tau: float | Tensor, symmetric: bool = True) -> Tensor:
    """Eq. (1), the mean of both directions, averaged over the batch."""
    loss = directed_infonce(x, y, tau)
    if symmetric:
        loss = (loss + directed_infonce(y, x, tau)) / 2
    return loss.mean()


def clip_two_matmul(x: Tensor, y: Tensor, tau: float | Tensor) -> Tensor:
    """The CLIP loss as most code writes it: one product for each direction. Expects unit rows."""
    targets = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(x @ y.mT / tau, targets) + F.cross_entropy(y @ x.mT / tau, targets)) / 2


def three_pairs(xs: Sequence[Tensor], tau: float | Tensor) -> Tensor:
    """L_pair of eq. (4) for three modalities: the three symmetric pairs, summed."""
    return sum((pair_infonce(x, y, tau) for x, y in itertools.combinations(xs, 2)), start=torch.zeros(()))


# --- Algorithms 1 and 2 ---------------------------------------------------------------------------------------


def algorithm1(batch_size: int, num_modalities: int = 3, generator: torch.Generator | None = None) -> Tensor:
    """UniHPE Algorithm 1, with its first loop meant for the three modalities (as printed it leaves the array).

    A cell may be the positive again, with probability ``1 / batch_size**2``; the paper does not exclude it.
    """
    rows = torch.arange(batch_size)
    index = torch.zeros(batch_size, batch_size, num_modalities, dtype=torch.int64)
    for i in range(batch_size):
        index[:, i, 0] = rows
    for m in range(num_modalities):
        index[:, 0, m] = rows
    for i in range(1, batch_size):
        for m in range(1, num_modalities):
            index[:, i, m] = torch.randperm(batch_size, generator=generator)
    return index


def algorithm2_triplet(
    x_img: Tensor, x_2d: Tensor, x_3d: Tensor, index: Tensor, tau: float | Tensor, decomposition: str = "eigvalsh"
) -> Tensor:
    """UniHPE Algorithm 2 to the letter: gather ``(B, K, 3, D)``, multiply, decompose, cross-entropy.

    ``decomposition="eigvalsh"`` takes the largest eigenvalue of the batched 3x3 products;
    ``"svdvals"`` squares the largest singular value of the gathered 3xD matrices (the paper's slow row).
    Rows are normalised here. ``index`` is ``(B, 1 + K, 3)`` with the positive in column 0.
    """
    stacked = torch.stack((unit(x_img), unit(x_2d), unit(x_3d)), dim=1)  # (B, 3, D)
    gathered = stacked[index, torch.arange(3, device=index.device)]  # (B, 1 + K, 3, D)
    if decomposition == "eigvalsh":
        logits = torch.linalg.eigvalsh(gathered @ gathered.mT)[..., -1] / tau
    elif decomposition == "svdvals":
        logits = torch.linalg.svdvals(gathered)[..., 0].square() / tau
    else:
        raise ValueError(f"decomposition is 'eigvalsh' or 'svdvals', not {decomposition!r}")
    return F.cross_entropy(logits, torch.zeros(len(index), dtype=torch.int64, device=index.device))


# --- any similarity, any tuples ---------------------------------------------------------------------------------


def gram_matrix(rows: Tensor) -> Tensor:
    """``(..., N, N)``: the cosines of unit rows ``(..., N, D)``, and ones on the diagonal, also for a zero row."""
    eye = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    return torch.where(eye > 0, eye, rows @ rows.mT)


def cosines_of(rows: Tensor) -> list[Tensor]:
    """The cosines of unit rows ``(..., N, D)`` in the order (0, 1), (0, 2), ..., (N - 2, N - 1)."""
    gram = rows @ rows.mT
    return [gram[..., m, n] for m, n in itertools.combinations(range(rows.shape[-2]), 2)]


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Of symmetric ``(..., N, N)``; differentiable twice wherever it is simple, whatever the others do.

    The Rayleigh quotient of the eigenvector moved by its first derivative is right to the third order. (Autograd
    through ``eigvalsh`` divides by the differences of all eigenvalues, and those below may coincide.)
    """
    values, vectors = torch.linalg.eigh(matrix.detach())
    gaps = values[..., -1:] - values
    inverse = torch.where(gaps > 1e-9, 1 / torch.where(gaps > 1e-9, gaps, 1), 0)
    top = vectors[..., -1:]
    moved = top + (vectors * inverse.unsqueeze(-2)) @ vectors.mT @ matrix @ top
    return (moved.mT @ matrix @ moved)[..., 0, 0] / moved.square().sum((-2, -1))


def root(square: Tensor) -> Tensor:
    """The square root, with the gradient 0 where it is 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def tuple_similarity(rows: Tensor, name: str) -> Tensor:
    """Similarity of tuples of unit rows ``(..., N, D)``, from the vectors themselves."""
    n = rows.shape[-2]
    if name == "multilinear":  # Symile
        return rows.prod(dim=-2).sum(-1)
    gram = gram_matrix(rows)
    if name == "eigenvalue":  # UniHPE eq. (3)
        return largest_eigenvalue(gram)
    if name == "singular_value":  # UniHPE eq. (2); PMRL
        return largest_eigenvalue(gram).sqrt()
    if name == "mean_cosine":
        upper = torch.triu_indices(n, n, 1)
        return gram[..., upper[0], upper[1]].mean(-1)
    if name == "volume":  # GRAM: minus the volume of the parallelotope
        return -root(torch.linalg.det(gram))
    if name == "area":  # TRIANGLE: minus the area of the triangle (the simplex) with the rows as corners
        edges = gram[..., 1:, 1:] - gram[..., 1:, :1] - gram[..., :1, 1:] + 1
        return -root(torch.linalg.det(edges)) / math.factorial(n - 1)
    raise ValueError(name)


def sampled_infonce(
    embeddings: Sequence[Tensor], index: Tensor, tau: float | Tensor, similarity: str = "eigenvalue"
) -> Tensor:
    """Eq. (3) for each anchor, ``(B,)``, over the tuples that ``index`` ``(B, 1 + K, N)`` names."""
    stacked = torch.stack([unit(x) for x in embeddings], dim=1)
    rows = stacked[index, torch.arange(len(embeddings), device=index.device)]
    logits = tuple_similarity(rows, similarity) / tau
    return torch.logsumexp(logits, 1) - logits[:, 0]


def every_tuple(batch_size: int, num_modalities: int, anchor: int, rule: object) -> list[tuple[int, ...]]:
    """The tuples compared with sample ``anchor`` under ``negatives="all"``, the positive first.

    ``rule=0``: the tuples whose first member is the anchor's. ``rule="any"``: those that hold at least one
    member of the anchor: for three modalities ``3 B^2 - 3 B + 1``, as the paper counts.
    """
    positive = (anchor,) * num_modalities
    rest = [
        cell
        for cell in itertools.product(range(batch_size), repeat=num_modalities)
        if cell != positive and (cell[0] == anchor if rule == 0 else anchor in cell)
    ]
    return [positive, *rest]


def exact_infonce(
    embeddings: Sequence[Tensor], tau: float | Tensor, similarity: str = "eigenvalue", anchor: object = 0
) -> Tensor:
    """Eq. (3) for each anchor, ``(B,)``, with every tuple of the batch in the denominator. Tiny batches only."""
    size, n = len(embeddings[0]), len(embeddings)
    index = torch.tensor([every_tuple(size, n, i, anchor) for i in range(size)])
    return sampled_infonce(embeddings, index, tau, similarity)


# --- masks, weights and shapes of the softmax ---------------------------------------------------------------------


def shaped_cross_entropy(
    positive: Tensor, negatives: Tensor, label_smoothing: float = 0.0, hardness: float = 0.0
) -> Tensor:
    """The loss of one anchor, from the logit of its positive and those of its negatives, ``(C - 1,)``.

    Hardness, as Robinson et al. (ICLR 2021) weigh: negative k counts ``exp(hardness z_k)``, over the mean of that.
    Label smoothing, as Szegedy et al.: the target is ``1 - e`` on the positive, and ``e`` spread over all candidates.
    """
    if len(negatives) == 0:
        return 0 * positive
    log_weight = 0.0
    if hardness > 0:
        log_weight = hardness * negatives - torch.logsumexp(hardness * negatives, 0) + math.log(len(negatives))
    loss = torch.logsumexp(torch.cat((positive[None], negatives + log_weight)), 0)
    if label_smoothing > 0:
        loss = loss - label_smoothing * torch.cat((positive[None], negatives)).mean()
    return loss - (1 - label_smoothing) * positive


def of_anchor(extra: Tensor, i: int) -> Tensor:
    """``(E, D)``: the further negatives of anchor ``i``, of ``(E, D)`` for all anchors or ``(B, E, D)``."""
    return extra if extra.ndim == 2 else extra[i]


def masked_directed_infonce(
    anchor: Tensor,
    candidates: Tensor,
    tau: float | Tensor,
    present: Tensor | None = None,
    ids: Tensor | None = None,
    extra: Tensor | None = None,
    normalize: bool = True,
    **shape: float,
) -> tuple[Tensor, Tensor]:
    """Eq. (1) for each anchor and who has a loss, ``(B,)`` both. ``present`` is ``(B, 2)``: a pair needs both."""
    if normalize:
        anchor, candidates, extra = unit(anchor), unit(candidates), None if extra is None else unit(extra)
    size = len(anchor)
    here = [present is None or bool(present[i].all()) for i in range(size)]
    rows = []
    for i in range(size):
        if not here[i]:
            rows.append(anchor.new_zeros(()))
            continue
        others = [j for j in range(size) if j != i and here[j] and (ids is None or ids[i] != ids[j])]
        rivals = candidates[others]
        if extra is not None:
            rivals = torch.cat((rivals, of_anchor(extra, i)))
        rows.append(shaped_cross_entropy(anchor[i] @ candidates[i] / tau, rivals @ anchor[i] / tau, **shape))
    return torch.stack(rows), torch.tensor(here)


def masked_pair_infonce(
    x: Tensor,
    y: Tensor,
    tau: float | Tensor,
    symmetric: bool = True,
    extra: Sequence[Tensor | None] | None = None,
    **options: object,
) -> tuple[Tensor, Tensor]:
    """Both directions of a pair under masks; the loss of each anchor and who has one, ``(B,)`` both."""
    extra_x, extra_y = (None, None) if extra is None else extra
    rows, here = masked_directed_infonce(x, y, tau, extra=extra_y, **options)
    if symmetric:
        rows = (rows + masked_directed_infonce(y, x, tau, extra=extra_x, **options)[0]) / 2
    return rows, here


def masked_tuple_infonce(
    embeddings: Sequence[Tensor],
    cells: Sequence[Sequence[Sequence[int]]],
    tau: float | Tensor,
    similarity: str | Callable[[Tensor], Tensor] = "eigenvalue",
    present: Tensor | None = None,
    ids: Tensor | None = None,
    extra: Sequence[Tensor | None] | None = None,
    normalize: bool = True,
    reverse: bool = False,
    **shape: float,
) -> tuple[Tensor, Tensor]:
    """Eq. (3) under masks: the loss of each anchor and who has one, ``(B,)`` both. ``cells[i]`` are the tuples of
    anchor ``i``, the positive first; ``similarity`` is a name or a function of unit rows ``(C, n, D)``.

    A sample with fewer than two modalities is not there. A tuple is as alike as those of its members that are present,
    and needs two. A tuple is no negative if all its present members have the anchor's id; without ids, but with
    absences, if they all are the anchor's own. A further negative ``e`` is the tuple ``(i; e, ..., e)``, with
    ``reverse`` ``(e; i, ..., i)``.
    """
    alike = functools.partial(tuple_similarity, name=similarity) if isinstance(similarity, str) else similarity
    size, n = len(embeddings[0]), len(embeddings)
    extra = [None] * n if extra is None else list(extra)
    if normalize:
        embeddings, extra = [unit(x) for x in embeddings], [None if x is None else unit(x) for x in extra]
    has = [[present is None or bool(present[i, m]) for m in range(n)] for i in range(size)]
    here = [sum(row) >= 2 for row in has]
    name = list(range(size)) if ids is None else ids.tolist()

    losses = []
    for i in range(size):
        if not here[i]:
            losses.append(embeddings[0].new_zeros(()))
            continue
        # The rows of the batch, and after them the further ones; a tuple of which is named by n row numbers.
        tables, further = list(embeddings), 0
        for m, x in enumerate(extra):
            if x is not None:
                tables[m] = torch.cat((embeddings[m], of_anchor(x, i)))
                further = len(tables[m]) - size

        def members(cell: Sequence[int]) -> tuple[int, ...]:
            return tuple(m for m in range(n) if (has[cell[m]][m] if cell[m] < size else extra[m] is not None))

        def logits(cells: list[Sequence[int]], members: tuple[int, ...]) -> Tensor:
            if len(members) < 2:  # asked only of a positive, which an index of the user's own may choose
                return torch.full((1,), torch.nan)
            index = torch.tensor(cells)
            return alike(torch.stack([tables[m][index[:, m]] for m in members], 1)) / tau  # noqa: B023

        positive, *candidates = cells[i]
        negatives = []
        for cell in candidates:
            mine = all(name[cell[m]] == name[i] for m in members(cell))
            if not (present is None and ids is None) and mine:
                continue
            if all(here[row] for row in cell) and len(members(cell)) >= 2:
                negatives.append(cell)
        for e in range(size, size + further):
            cell = (e, *[i] * (n - 1)) if reverse else (i, *[e] * (n - 1))
            if any(x is not None for x in (extra[:1] if reverse else extra[1:])) and len(members(cell)) >= 2:
                negatives.append(cell)
        by_members: dict[tuple[int, ...], list[Sequence[int]]] = {}
        for cell in negatives:
            by_members.setdefault(members(cell), []).append(cell)
        z = [logits(group, those) for those, group in by_members.items()]
        losses.append(
            shaped_cross_entropy(
                logits([positive], members(positive))[0], torch.cat(z) if z else tables[0].new_zeros(0), **shape
            )
        )
    return torch.stack(losses), torch.tensor(here)


def average(rows: Tensor, here: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Losses of anchors, times their weights; the mean is over the weights of those who have a loss, 0 for none."""
    weight = torch.ones_like(rows) if weight is None else weight
    rows = torch.where(here, rows * weight, 0)
    if reduction == "none":
        return rows
    total = sum(w for w, h in zip(weight, here) if h)
    return rows.sum() if reduction == "sum" or total == 0 else rows.sum() / total
