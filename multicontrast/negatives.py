r"""Which tuples are compared: the schemes of negatives, and their index.

Every scheme compares anchor ``i`` (its embedding in modality 0) with its positive tuple ``(i, i, ..., i)`` and with
``K`` negatives. It is a set of cells, and knows no similarity.

===============  ================================================================================  ==================
scheme           negative ``k`` of anchor ``i``, for three modalities                              cost
===============  ================================================================================  ==================
``permutation``  ``(i, p_k(i), q_k(i))``: a fresh permutation for each column and modality          gathers
                 (UniHPE, Algorithm 1)
``shared``       ``(i, p(k), q(k))``: one permutation for each modality, the same for all anchors   no gather
                 (as Symile's ``n``)
``cyclic``       ``(i, i + s_k, i + t_k)`` modulo B: random shifts                                  shears, no index
``tied``         ``(i, j, j)`` for the other samples ``j`` (as GRAM and TRIANGLE)                   no gather
``all``          every tuple of the batch (``anchor=0``: that holds the anchor's first embedding;   B^2 or 3 B^2 terms
                 ``anchor="any"``: that holds any embedding of the anchor's sample)                 for each anchor
===============  ================================================================================  ==================
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from multicontrast._checks import check_choice, check_generator, describe, three_beats

__all__ = ["SAMPLED_SCHEMES", "SCHEMES", "draw_cyclic", "draw_permutations", "draw_shared", "sample_tuples"]

SAMPLED_SCHEMES = ("permutation", "shared", "cyclic", "tied")
SCHEMES = (*SAMPLED_SCHEMES, "all")

_PAGE_LOCKED = 1 << 27  # bytes: the tuples of 2300 samples in three modalities
_KEYS = 1 << 16  # random keys that are sorted before the next are drawn


def sample_tuples(
    batch_size: int,
    num_modalities: int = 3,
    *,
    num_negatives: int | None = None,
    scheme: str = "permutation",
    exclude_positive: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw the tuples that each anchor is compared with (UniHPE, arXiv 2311.16477, Algorithm 1).

    Column 0 is the positive ``(i, i, ..., i)``; modality 0 is always the anchor's own row. The paper's Algorithm 1 is
    ``scheme="permutation"`` with ``exclude_positive=False``; as printed, its first loop runs over the batch where the
    three modalities are meant, and a negative cell can be the positive again. Here it never is, unless asked for: a
    column that hit it exchanges that entry with another of the same permutation.

    Args:
        batch_size: number of samples, B.
        num_modalities: N >= 2.
        num_negatives: K, the negatives of each anchor; ``None`` means B - 1. ``"shared"``, ``"cyclic"`` and ``"tied"``
            have at most B - 1, ``"permutation"`` any number.
        scheme: ``"permutation"``, ``"shared"``, ``"cyclic"`` or ``"tied"``; see :mod:`multicontrast.negatives`.
        exclude_positive: whether the positive is kept out of the negatives.
        generator: source of randomness, on the CPU; without one, torch's global CPU generator. The same generator
            state gives the same index on every device.
        device: where the index is put.

    Returns:
        int64 ``(B, 1 + K, N)`` of row numbers.

    Raises:
        ValueError: for an empty batch, fewer than two modalities, a number of negatives that the scheme does not have
            (one sample has none), or an unknown scheme.

    Example:
        >>> index = sample_tuples(4, generator=torch.Generator().manual_seed(0))
        >>> index.shape, index[2, 0].tolist(), index[:, 1, 0].tolist()
        (torch.Size([4, 4, 3]), [2, 2, 2], [0, 1, 2, 3])
    """
    check_choice("sample_tuples", "scheme", scheme, SAMPLED_SCHEMES)
    check_counts("sample_tuples", batch_size, num_modalities, num_negatives, scheme)
    if not isinstance(exclude_positive, bool):
        raise TypeError(
            three_beats(
                "`sample_tuples` needs `exclude_positive` to be True or False", describe(exclude_positive), "Pass one."
            )
        )
    check_generator("sample_tuples", generator)
    _check_device("sample_tuples", device)
    count = batch_size - 1 if num_negatives is None else num_negatives
    # Stored modality by modality, so that each modality's (B, 1 + K) plane is contiguous for the gathers. NumPy asks
    # for large pages, which torch does not: to be given small ones costs more than to write on them.
    planes = torch.from_numpy(np.empty((num_modalities, batch_size, 1 + count), dtype=np.int64))
    rows = torch.arange(batch_size)
    planes[0] = rows[:, None]
    planes[:, :, 0] = rows
    if count > 0:
        if scheme == "permutation":
            drawn = draw_permutations(batch_size, num_modalities, count, exclude_positive, generator)
            for plane, permutations in zip(planes[1:, :, 1:], drawn):
                transpose(permutations, out=plane)
        else:
            candidates = _draw(scheme, batch_size, num_modalities, count, exclude_positive, generator)
            for plane, candidate in zip(planes[1:, :, 1:], candidates):
                plane.copy_(candidate)
    return bring(planes.permute(1, 2, 0), device)


def bring(drawn: Tensor, device: torch.device | str | None) -> Tensor:
    """What was drawn on the CPU, on the device; through page-locked memory, so that the host does not wait for it.

    Page-locked memory is kept for the next time, so large draws do without.
    """
    if device is None or torch.device(device).type != "cuda" or drawn.nbytes > _PAGE_LOCKED:
        return drawn.to(device)
    return drawn.pin_memory().to(device, non_blocking=True)


def check_counts(
    operation: str, batch_size: object, num_modalities: object, num_negatives: object, scheme: str
) -> None:
    """Raise unless a scheme has that many negatives for that many samples."""
    for name, value, least in (("batch_size", batch_size, 1), ("num_modalities", num_modalities, 2)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(
                three_beats(f"`{operation}` needs `{name}` to be an int", describe(value), "Pass a number.")
            )
        if value < least:
            raise ValueError(
                three_beats(
                    f"`{operation}` needs `{name}` >= {least}", describe(value), "Skip the loss for such a batch."
                )
            )
    assert isinstance(batch_size, int)
    assert isinstance(num_modalities, int)
    _check_size(operation, batch_size * num_modalities)
    if num_negatives is None:
        return
    if isinstance(num_negatives, bool) or not isinstance(num_negatives, int):
        raise TypeError(
            three_beats(
                f"`{operation}` needs `num_negatives` to be an int or None", describe(num_negatives), "Pass a number."
            )
        )
    if num_negatives < 0:
        raise ValueError(
            three_beats(
                f"`{operation}` needs `num_negatives` >= 0",
                describe(num_negatives),
                "Pass None for one less than the batch.",
            )
        )
    if num_negatives > 0 and batch_size == 1:
        raise ValueError(
            three_beats(
                f"`{operation}` needs at least two samples to draw negatives from",
                f"a batch of 1 with num_negatives={num_negatives}",
                "Use a larger batch, or num_negatives=0, for which the loss is 0.",
            )
        )
    _check_size(operation, batch_size * num_modalities * (1 + num_negatives))
    if scheme != "permutation" and num_negatives > batch_size - 1:
        raise ValueError(
            three_beats(
                f"`{operation}` has at most batch_size - 1 = {batch_size - 1} negatives with the scheme {scheme!r}",
                f"num_negatives={num_negatives}",
                "Ask for fewer, or use the scheme 'permutation', which has any number.",
            )
        )


def _check_device(operation: str, device: object) -> None:
    """Raise unless ``device`` is None or names one."""
    if device is None or isinstance(device, torch.device):
        return
    remedy = "For example 'cpu', 'cuda:0' or a `torch.device`."
    needed = f"`{operation}` needs `device` to name one"
    if not isinstance(device, str):
        raise TypeError(three_beats(needed, describe(device), remedy))
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(three_beats(needed, repr(device), remedy)) from None


def _check_size(operation: str, entries: int) -> None:
    """Raise for an index that no memory holds."""
    if entries > 2**36:
        raise ValueError(
            three_beats(
                f"`{operation}` needs an index of at most 2^36 row numbers, half a terabyte",
                describe(entries),
                "Ask for fewer negatives: a few thousand serve any anchor.",
            )
        )


def _draw(
    scheme: str, size: int, num_modalities: int, count: int, exclude: bool, generator: torch.Generator | None
) -> list[Tensor]:
    """The candidates of each modality but the first, broadcastable to ``(B, K)``; not for ``permutation``."""
    rows = torch.arange(size)
    if scheme == "shared" and num_modalities > 2:
        return list(draw_shared(size, num_modalities, exclude, generator)[:, :count])
    if scheme == "shared":
        # Two modalities: all anchors share one list of candidates, and each leaves out its own match.
        order = torch.randperm(size, generator=generator)
        if not exclude:
            return [order[:count]]
        own = torch.empty_like(order)
        own[order] = rows
        column = torch.arange(count)
        return [order[column + (column >= own[:, None])]]
    shifts = draw_cyclic(scheme, size, num_modalities, count, exclude, generator)
    return [(rows[:, None] + shift) % size for shift in shifts]


def draw_permutations(
    size: int, num_modalities: int, count: int, exclude: bool, generator: torch.Generator | None
) -> Tensor:
    """``(N - 1, K, B)`` permutations of the batch, none of whose columns holds the positive if ``exclude``; int16, or
    int32 where that is too narrow."""
    drawn = _random_permutations((num_modalities - 1, count), size, generator)
    if exclude:
        _part_from_positive(drawn)
    return drawn


def draw_shared(size: int, num_modalities: int, exclude: bool, generator: torch.Generator | None) -> Tensor:
    """``(N - 1, B)`` for N >= 3: one order of the batch for each modality, whose first K entries are the candidates.
    With ``exclude`` no column is the positive of an anchor: its members never all come from one sample."""
    drawn = _random_permutations((num_modalities - 1,), size, generator).long()
    if exclude and size > 1:
        first, last = drawn[0], drawn[-1]
        bad = (drawn == first).all(0).nonzero().flatten()
        if len(bad) == 1:
            other = (bad + 1) % size
            bad = torch.cat((bad, other))
        last[bad] = last[bad.roll(1)]
    return drawn


def draw_cyclic(
    scheme: str, size: int, num_modalities: int, count: int, exclude: bool, generator: torch.Generator | None
) -> Tensor:
    """``(N - 1, K)`` shifts: candidate ``k`` of anchor ``i`` is row ``i + shift[k]`` modulo B."""
    if scheme == "tied" or num_modalities == 2:
        first = 1 if exclude else 0
        if scheme == "tied" and exclude and count == size - 1:
            shift = torch.arange(1, size)
        else:
            shift = first + torch.randperm(size - first, generator=generator)[:count]
        return shift.expand(num_modalities - 1, count)
    shifts = _random_permutations((num_modalities - 1,), size, generator).long()
    if exclude and size > 1:
        zero = (shifts == 0).all(0).nonzero().flatten()
        for k in zero.tolist():  # at most one column
            other = (k + 1) % size
            shifts[-1, [k, other]] = shifts[-1, [other, k]]
    return shifts[:, :count]


def _random_permutations(shape: tuple[int, ...], size: int, generator: torch.Generator | None) -> Tensor:
    """Independent uniform permutations ``(*shape, size)``; int16, or int32 for more than 2^15 rows.

    Random keys that carry their position in the low bits are sorted by value: several times faster than an argsort, or
    than a call of ``torch.randperm`` for each. The keys come from a NumPy bit generator, whose stream is the same in
    every version, seeded by one draw from ``generator``. Keys of 32 bits sort twice as fast as those of 64; where
    their random parts agree, which leaves the positions in order, those positions are shuffled. A few permutations at a
    time: they stay in cache until they are done.
    """
    source = np.random.SFC64(int(torch.randint(2**63 - 1, (1,), generator=generator)))
    count, bits = math.prod(shape), max(1, (size - 1).bit_length())
    word = np.uint32 if bits <= 13 else np.uint64  # beyond, too many would agree
    low, positions = word((1 << bits) - 1), np.arange(size, dtype=word)
    drawn = np.empty((count, size), dtype=np.int16 if size <= 2**15 else np.int32)
    step = max(1, _KEYS // size)
    for start in range(0, count, step):
        rows = drawn[start : start + step]
        words = source.random_raw(-(-rows.size * np.dtype(word).itemsize // 8)).view(word)
        keys = words[: rows.size].reshape(rows.shape)
        keys &= ~low
        keys |= positions
        keys.sort(axis=-1)
        _shuffle_ties(keys, low, source)
        np.bitwise_and(keys, low, out=rows, casting="unsafe")
    return torch.from_numpy(drawn).view(*shape, size)


def _shuffle_ties(keys: np.ndarray, low: np.unsignedinteger, source: np.random.SFC64) -> None:
    """Shuffle, in place, each run of keys in the sorted rows that agree but for their low bits."""
    tied = np.zeros(keys.shape, dtype=bool)
    np.less_equal(keys[:, 1:] ^ keys[:, :-1], low, out=tied[:, 1:])  # with the one before
    later = np.flatnonzero(tied)
    if len(later) == 0:
        return
    members = np.union1d(later - 1, later)
    run = np.cumsum(~tied.flat[members])
    keys.flat[members] = keys.flat[members[np.lexsort((source.random_raw(len(members)), run))]]


def _part_from_positive(permutations: Tensor) -> None:
    """Make sure, in place, that no entry ``i`` of the ``(M, K, B)`` permutations is ``i`` in all M modalities.

    Within a column the offending entries of the last modality change places among themselves, a single one with any
    other entry; that leaves a permutation and cannot make a new offence.
    """
    size = permutations.shape[-1]
    if size == 1:
        return
    # About one entry of a permutation stays in its place, so the other modalities are only looked at there.
    columns, entries = (permutations[0] == torch.arange(size, dtype=permutations.dtype)).nonzero(as_tuple=True)
    offending = (permutations[1:, columns, entries] == entries).all(0)
    columns, entries = columns[offending], entries[offending]
    for k in columns.unique().tolist():
        where = entries[columns == k]
        if len(where) == 1:
            where = torch.cat((where, (where + 1) % size))
        permutations[-1, k, where] = permutations[-1, k, where.roll(1)]


def transpose(source: Tensor, out: Tensor) -> Tensor:
    """``out[i, k] = source[k, i]``, whatever the types; some rows of ``out`` at a time.

    Rows a power of two apart share a few lines of the cache, so what is transposed is copied together first.
    """
    for start in range(0, len(out), 64):
        out[start : start + 64] = source[:, start : start + 64].contiguous().mT
    return out
