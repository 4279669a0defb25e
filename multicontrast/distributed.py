r"""Losses over the batches of all ranks, with the gradient of one process.

With ``gather`` each of the W ranks returns W / B times the sum of the losses of its own anchors, whose candidates are
the rows of all ranks, B in number. The mean over the ranks is the loss of one process with the whole batch. A row is a
candidate of the anchors of every rank, so the backward pass sums its gradients over the ranks and returns them to its
own rank. DistributedDataParallel then averages over the ranks, and

.. math:: \frac1W \sum_r \sum_s \frac{\partial \mathcal L_s}{\partial x_r} \frac{\partial x_r}{\partial \theta}
          = \frac{\partial}{\partial\theta} \frac1W \sum_s \mathcal L_s

is the gradient of one process, for the encoders and for the temperature alike.

Every loss begins with a ``Handshake``, which returns the ``Ranks``. For your own losses, :func:`gather_rows` is the
differentiable collective.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from multicontrast._checks import check_floating, compute_dtype, describe, three_beats
from multicontrast._lost_ranks import remember, this_process, words_of_lost

__all__ = ["Gather", "gather_rows"]

Gather: TypeAlias = "bool | dist.ProcessGroup"
"""The values of ``gather=``, which are False, True for the default process group, or a process group."""

# The names since torch 2.14, and before it.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_MESSAGE_BYTES = 512  # of an error message for the other ranks
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Ranks:
    """The ranks of one call and their numbers of rows."""

    group: Any
    rank: int
    counts: tuple[int, ...]
    seed: int = 0  # rank 0's, if something is drawn without a generator
    operation: str = "gather"  # its name in errors

    @property
    def size(self) -> int:
        """W, the number of ranks."""
        return len(self.counts)

    @property
    def total(self) -> int:
        """B, the rows of all ranks."""
        return sum(self.counts)

    @property
    def start(self) -> int:
        """The global number of this rank's first row."""
        return sum(self.counts[: self.rank])

    @property
    def stop(self) -> int:
        """One past the global number of this rank's last row."""
        return self.start + self.counts[self.rank]

    def bounds(self, rank: int) -> tuple[int, int]:
        """The global numbers of the first row of a rank and of the one past its last."""
        start = sum(self.counts[:rank])
        return start, start + self.counts[rank]

    def join(self, loss: Tensor, *inputs: Tensor) -> Tensor:
        """``loss``, connected to the inputs even on a rank without rows: the others wait for its backward pass."""
        if self.start < self.stop:
            return loss
        return loss + torch.stack([x.reshape(-1)[:0].sum().to(loss) for x in inputs]).sum()

    def gather(self, *tensors: Tensor, tau: Tensor | None = None) -> tuple[Tensor | None, list[Tensor]]:
        """The rows of all ranks, in rank order, in float32 at least; and ``tau`` unchanged.

        Differentiable twice. ``tau`` passes through the same node of the graph and gets its gradient after the
        collective, so that the collectives of a backward pass have one order on all ranks, whatever hooks the
        parameters have.
        """
        dtype = compute_dtype(*tensors)
        tau, *gathered = _GatherRows.apply(self, dtype, tau, *tensors)
        return tau, gathered

    def gather_values(self, *tensors: Tensor) -> list[Tensor]:
        """The rows of all ranks of tensors of any type; no gradient."""
        if self.size == 1 or not tensors:
            return [x.detach() for x in tensors]
        with torch.no_grad():
            rows = [_flat(x.detach()).contiguous().view(torch.uint8) for x in tensors]
            together = with_all(self.operation, self.group, _all_gather, torch.cat(rows, dim=1), self)
            parts = together.split([x.shape[1] for x in rows], dim=1)
            return [
                part.contiguous().view(x.dtype).reshape(self.total, *x.shape[1:]) for part, x in zip(parts, tensors)
            ]


def gather_rows(x: Tensor, group: Any = None) -> Tensor:
    """The rows of all ranks in rank order. In the backward pass each rank gets the sum over all ranks of the gradients
    w.r.t. its own rows.

    Ranks may have different numbers of rows, including none. Averaged over the ranks, as DistributedDataParallel does,
    the gradients are those of the *mean* of the ranks' losses.

    Args:
        x: ``(B_local, ...)``, floating; equal on all ranks but for the number of rows.
        group: a process group; the default one if None. Without one, this is a single process.

    Returns:
        ``(B, ...)``. Half precision is sent as it is and returned in float32, in which the gradients are summed.

    Raises:
        TypeError, ValueError: if ``x`` is not a floating tensor with rows, or differs in shape or type between ranks.
        RuntimeError: if another rank failed before it came here, or did not come before the group's timeout.

    Example:
        >>> import torch
        >>> gather_rows(torch.eye(2)).shape  # no process group: one process
        torch.Size([2, 2])
    """
    with Handshake("gather_rows", True if group is None else group) as handshake:
        check_floating("gather_rows", "x", x)
        if x.ndim < 1:
            raise ValueError(three_beats("`gather_rows` needs rows", describe(x), "Call `.unsqueeze(0)` for one row."))
        ranks = handshake.exchange([_flat(x)], None, {"shape of a row": tuple(x.shape[1:])})
    if ranks is None:
        return x.to(compute_dtype(x))
    return ranks.gather(x)[1][0]


def check_gather(operation: str, gather: object) -> Any:
    """The process group of ``gather``, or None for a single process; raises for anything else."""
    if isinstance(gather, bool):
        alone = not gather or not dist.is_available() or not dist.is_initialized()
        return None if alone else dist.group.WORLD
    if dist.is_available() and isinstance(gather, dist.ProcessGroup):
        return gather
    if gather is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            three_beats(
                f"`{operation}` needs a process group that this rank belongs to",
                "a group of other ranks",
                "Compute the loss on the members of the group alone.",
            )
        )
    raise TypeError(
        three_beats(
            f"`{operation}` needs `gather` to be True, False or a process group",
            describe(gather),
            "True gathers over the default process group.",
        )
    )


class Handshake:
    """The exchange between the ranks of one call before any of them computes.

    The checks of a function run inside ``with Handshake(...)`` and end in :meth:`exchange`. If they raise on one rank,
    it tells the others, which then raise instead of waiting. Checks that need the other ranks come between
    :meth:`reopen` and :meth:`close`.
    """

    def __init__(self, operation: str, gather: object) -> None:
        self.operation = operation
        group = check_gather(operation, gather)
        self._group = None if group is not None and dist.get_world_size(group) == 1 else group
        self._open = True

    @property
    def alone(self) -> bool:
        """Whether this is a single process."""
        return self._group is None

    def __enter__(self) -> Handshake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._open and self._group is not None:
            _tell(self._group, self.operation, str(error))

    def exchange(
        self,
        embeddings: Sequence[Tensor],
        tau: Tensor | None,
        alike: dict[str, object],
        generator: torch.Generator | None = None,
        draws: bool = False,
    ) -> Ranks | None:
        """Compares the ranks and returns them; None for a single process.

        Args:
            embeddings: ``(B_local, D)`` each, checked.
            tau: the temperature, if it is a tensor.
            alike: options that must be the same on all ranks, by their names in errors.
            generator: the source of randomness; its state must be the same on all ranks.
            draws: whether negatives are drawn; without a generator rank 0 then draws a seed for all.

        Raises:
            ValueError: on all ranks, if ranks differ in what must be the same, or all are empty.
            RuntimeError: if another rank failed before it came here, or never came.
        """
        if self._group is None:
            return None
        self._open = False
        needs = tuple(x.requires_grad for x in (*embeddings, *(() if tau is None else (tau,))))
        terms = {
            "number of modalities": len(embeddings),
            "dimension of the embeddings": embeddings[0].shape[1],
            "type of the embeddings": tuple(_DTYPES.index(x.dtype) for x in embeddings),
            "state of the generator": () if generator is None else generator.get_state().numpy().tobytes(),
            **alike,
            "inputs that require a gradient": needs if torch.is_grad_enabled() else (),
        }
        seed = int(torch.randint(2**62, (), device="cpu")) if draws and generator is None else 0
        codes = [zlib.crc32(value if isinstance(value, bytes) else repr(value).encode()) for value in terms.values()]
        ranks = _agree(self._group, self.operation, len(embeddings[0]), seed, codes, list(terms))
        if ranks.total == 0:
            raise ValueError(
                three_beats(
                    f"`{self.operation}` needs at least one row on one of the ranks",
                    f"none on any of {ranks.size}",
                    "Skip the loss for an empty batch, on all ranks alike.",
                )
            )
        return ranks

    def leave(self) -> None:
        """From here on an error occurs on every rank, so no rank needs to tell the others."""
        self._open = False

    def reopen(self) -> None:
        """More checks follow, which may fail on one rank alone, until :meth:`close`."""
        self._open = True

    def close(self) -> None:
        """All checks passed on this rank; after :meth:`reopen`, learn whether they did on the others."""
        if self._open and self._group is not None:
            self._open = False
            _agree(self._group, self.operation, 0, 0, [], [])


# --- The small exchange before the collectives ---------------------------------------------------------------------
#
# int64: [failed, operation, rows, seed, codes of what must be the same ...]. Every operation sends the same length, so
# that ranks in different losses raise instead of misreading each other.

_HEADER = 32


def _agree(group: Any, operation: str, rows: int, seed: int, codes: list[int], names: list[str]) -> Ranks:
    assert len(codes) <= _HEADER - 4
    header = [0, zlib.crc32(operation.encode()), rows, seed, *codes]
    table = _exchange_headers(group, operation, header)
    failed = [rank for rank, line in enumerate(table) if line[0]]
    if failed:
        words = _exchange_message(group, operation, "")[failed[0]]
        raise RuntimeError(
            three_beats(
                f"`{operation}` needs every rank to come with a valid batch",
                f"an error on rank {failed[0]} of the group: {words}",
                "Correct it there; this rank stops instead of waiting.",
            )
        )
    rank = dist.get_rank(group)
    _compare(operation, table, 1, "loss", "Call the losses in one order on all ranks.")
    for place, name in enumerate(names, 4):
        _compare(operation, table, place, name, f"Make the {name} the same everywhere.")
    return Ranks(group, rank, tuple(line[2] for line in table), table[0][3], operation)


def _compare(operation: str, table: list[list[int]], place: int, name: str, remedy: str) -> None:
    others = [rank for rank, line in enumerate(table) if line[place] != table[0][place]]
    if others:
        listed = ", ".join(map(str, others))
        raise ValueError(
            three_beats(
                f"`{operation}` needs the same {name} on all ranks",
                f"one that differs from rank 0's on rank {listed} of the group",
                remedy,
            )
        )


def _tell(group: Any, operation: str, words: str) -> None:
    """Let the other ranks know that this one has failed."""
    try:
        _exchange_headers(group, operation, [1, zlib.crc32(operation.encode())])
        _exchange_message(group, operation, words)
    except RuntimeError:
        pass  # the original error matters more


def _exchange_headers(group: Any, operation: str, header: list[int]) -> list[list[int]]:
    padded = [*header, *[0] * (_HEADER - len(header)), *this_process()]
    mine = torch.tensor(padded, device=_handshake_device(group))
    table: list[list[int]] = with_all(operation, group, _all_gather_even, mine, group).tolist()
    remember(group, [(line[-2], line[-1]) for line in table])
    return table


def with_all(operation: str, group: Any, collective: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a collective; if a rank is lost, raises an error that names the rank and the loss."""
    try:
        return collective(*arguments)
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[0]
        here = f"rank {dist.get_rank(group)} of {dist.get_world_size(group)}"
        raise RuntimeError(
            three_beats(
                f"`{operation}` needs every rank of the group to call it",
                f"no answer from {words_of_lost(group)} on {here} ({first_line})",
                "That rank has raised, died, or skipped this loss: see its log. "
                "How long to wait is the `timeout` of the process group.",
            )
        ) from error


def _exchange_message(group: Any, operation: str, words: str) -> list[str]:
    raw = words.encode()[:_MESSAGE_BYTES]
    mine = torch.tensor(list(raw.ljust(_MESSAGE_BYTES, b"\0")), dtype=torch.uint8, device=_handshake_device(group))
    lines = with_all(operation, group, _all_gather_even, mine, group).cpu()
    return [bytes(line.tolist()).rstrip(b"\0").decode(errors="ignore") for line in lines]


def _handshake_device(group: Any) -> torch.device:
    """The device of small messages: the CPU if the group has a back end for it, to spare the accelerator a wait."""
    backends = dist.get_backend_config(group)
    if "gloo" in backends or "mpi" in backends:
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


# --- Rows over the ranks, differentiably ------------------------------------------------------------------------------


class _GatherRows(torch.autograd.Function):
    """All modalities in one collective: forward an all-gather, backward a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, dtype: torch.dtype, tau: Tensor | None, *xs: Tensor) -> Any:
        ctx.ranks, ctx.dtypes = ranks, [x.dtype for x in xs]
        ctx.shapes = [x.shape[1:] for x in xs]
        ctx.set_materialize_grads(True)
        gathered = _gathered(ranks, dtype, xs)
        return (None if tau is None else tau.view_as(tau), *gathered)

    @staticmethod
    def backward(ctx: Any, grad_tau: Tensor | None, *grads: Tensor) -> Any:
        wanted = [m for m, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        results: list[Tensor | None] = [None] * len(grads)
        if wanted:
            sums = _SumRows.apply(ctx.ranks, *(grads[m] for m in wanted))
            for m, total in zip(wanted, sums):
                results[m] = total.to(ctx.dtypes[m])
        return None, None, grad_tau, *results


class _SumRows(torch.autograd.Function):
    """The transpose of :class:`_GatherRows`: the sum over the ranks, of which each keeps its own rows."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *grads: Tensor) -> Any:
        ctx.ranks = ranks
        if ranks.size == 1:
            return tuple(grad.clone() for grad in grads)
        flat = [_flat(grad) for grad in grads]
        widths = [part.shape[1] for part in flat]
        own = with_all(ranks.operation, ranks.group, _reduce_scatter, torch.cat(flat, dim=1), ranks)
        return tuple(part.reshape(len(own), *grad.shape[1:]) for part, grad in zip(own.split(widths, dim=1), grads))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        _, gathered = ctx.ranks.gather(*grads)
        return (None, *gathered)


def _gathered(ranks: Ranks, dtype: torch.dtype, xs: Sequence[Tensor]) -> list[Tensor]:
    if ranks.size == 1:
        return [x.to(dtype, copy=True) for x in xs]
    sent = functools.reduce(torch.promote_types, (x.dtype for x in xs))
    flat = [_flat(x).to(sent) for x in xs]
    together = with_all(ranks.operation, ranks.group, _all_gather, torch.cat(flat, dim=1), ranks).to(dtype)
    parts = together.split([part.shape[1] for part in flat], dim=1)
    return [part.reshape(ranks.total, *x.shape[1:]).contiguous() for part, x in zip(parts, xs)]


def _all_gather(x: Tensor, ranks: Ranks) -> Tensor:
    """From ``(B_local, C)`` of each rank to ``(B, C)`` on all; ranks with fewer rows are padded for the exchange."""
    longest = max(ranks.counts)
    received = _all_gather_even(_padded(x, longest), ranks.group)
    if min(ranks.counts) == longest:
        return received.view(ranks.total, x.shape[1])
    return torch.cat([part[:count] for part, count in zip(received, ranks.counts)])


def _all_gather_even(x: Tensor, group: Any) -> Tensor:
    """The tensors of all ranks, which have one shape, stacked."""
    received = x.new_empty(dist.get_world_size(group), *x.shape)
    _all_gather_single(received.view(-1), x.contiguous().view(-1), group=group)
    return received


def _reduce_scatter(x: Tensor, ranks: Ranks) -> Tensor:
    """From ``(B, C)`` on each rank to the sum over the ranks of this rank's own rows, ``(B_local, C)``."""
    if "nccl" not in dist.get_backend(ranks.group):
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ranks.group)
        return total[ranks.start : ranks.stop]
    longest = max(ranks.counts)
    if min(ranks.counts) < longest:
        x = torch.cat([_padded(x[slice(*ranks.bounds(rank))], longest) for rank in range(ranks.size)])
    own = x.new_empty(longest, x.shape[1])
    _reduce_scatter_single(own, x.contiguous(), group=ranks.group)
    return own[: ranks.counts[ranks.rank]]


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def _padded(x: Tensor, rows: int) -> Tensor:
    return x if len(x) == rows else torch.cat((x, x.new_zeros(rows - len(x), *x.shape[1:])))
