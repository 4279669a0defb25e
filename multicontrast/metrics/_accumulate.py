"""The base of the accumulating metrics: states that add up or grow, merging, ranks, checkpoints, devices.

If torchmetrics is installed they are its ``Metric`` and use its machinery; otherwise they use that of ``_standalone``.
Either way a *sum* is a tensor that adds up, a scalar 0 until its shape is known, and *rows* are a list of tensors that
are joined along their first axis. Both merge exactly, whatever the batch sizes and the split over ranks.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from multicontrast._checks import check_count, check_flag, check_list, check_names, check_whole, describe, three_beats
from multicontrast.metrics._inputs import state_device

if TYPE_CHECKING:
    from multicontrast.metrics._standalone import Metric
else:
    try:
        from torchmetrics import Metric
    except ImportError:
        from multicontrast.metrics._standalone import Metric

Ids = Sequence[int | str] | Tensor
_OPTIONS_OF_TORCHMETRICS = (
    "compute_on_cpu", "compute_with_cache", "dist_sync_fn", "dist_sync_on_step", "distributed_available_fn",
)  # fmt: skip
_LISTS = ("rows", "row_groups", "ids")


class Accumulator(Metric):
    """Sums and rows gathered over many batches, from which ``compute`` makes one result.

    A class either adds up what it measures, or keeps a row per sample. With sample ids it keeps rows, so that no sample
    counts twice. `PoseMetric` documents the options of all classes.
    """

    is_differentiable = False
    full_state_update = False
    _one_shape = "Keep one number of joints"  # what to do about states of different shapes
    _one_batch = False  # whether this holds one batch of `forward`, rather than everything
    _options: dict[str, Any]  # in plain Python
    sums: Tensor  # (groups, ...) float64, once their shape is known
    rows: list[Tensor]  # (samples, ...)
    row_groups: list[Tensor]  # (samples,) int64
    ids: list[Tensor]  # (samples,) int64

    def __init__(self, *, sync_on_compute: bool = True, process_group: Any = None, **torchmetrics_options: Any) -> None:
        name = type(self).__name__
        check_flag(name, "sync_on_compute", sync_on_compute)
        parameters = inspect.signature(type(self)).parameters.values()
        own = dict.fromkeys(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)
        own |= dict.fromkeys(("sync_on_compute", "process_group"))
        check_names(name, [one for one in torchmetrics_options if one not in _OPTIONS_OF_TORCHMETRICS], own)
        torchmetrics_options.setdefault("dist_sync_fn", self._gather)
        super().__init__(sync_on_compute=bool(sync_on_compute), process_group=process_group, **torchmetrics_options)
        # MetricCollection lets metrics share their states if these are equal after one batch. Metrics with different
        # options may agree on that batch, so this state tells them apart.
        self.add_state("fingerprint", torch.tensor(_digest(self._signature())), "max", True)
        self.add_state("sums", torch.zeros((), dtype=torch.float64), "sum", True)
        for state in _LISTS:
            self.add_state(state, [], "cat", True)

    def extra_repr(self) -> str:
        """The options that are not the default."""
        defaults = inspect.signature(type(self)).parameters
        chosen = {name: value for name, value in self._options.items() if value != defaults[name].default}
        return ", ".join(f"{name}={value!r}" for name, value in chosen.items())

    def _signature(self) -> str:
        """What must be equal for two states to merge."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def _read_ids(self, ids: Ids | None, rows: int, device: torch.device) -> Tensor | None:
        """One int64 for each row of a batch, with names hashed to 64 bits, or None; as in the batches before."""
        if (self.rows or self.sums.dim()) and bool(self.ids) != (ids is not None):
            self._refuse_mixture()
        if ids is None:
            return None
        name, remedy = type(self).__name__, "Pass one integer or name for each sample of the batch."
        if isinstance(ids, Tensor):
            check_whole(name, "ids", ids)
        else:
            listed = check_list(name, "ids", ids.tolist() if hasattr(ids, "tolist") else ids, remedy=remedy)
            if len({isinstance(one, str) for one in listed}) > 1:
                needed = f"`{name}` needs `ids` that are all integers or all names"
                raise TypeError(three_beats(needed, "a mixture, in which 1 and '1' are two samples", remedy))
            numbers = [
                _digest(one) if isinstance(one, str) else check_count(name, "ids", one, -(2**63), remedy=remedy)
                for one in listed
            ]
            ids = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        if ids.shape != (rows,):
            raise ValueError(three_beats(f"`{name}` needs {rows} integer `ids`", describe(ids), remedy))
        return ids.to(state_device(device), torch.int64)

    def _add(self, measured: Tensor, keys: Tensor | None, labels: Tensor, groups: int = 1) -> None:
        """Adds the measurements ``(rows, ...)`` to the sums of their groups, or keeps them as rows with their keys."""
        if keys is None:
            self._join("sums", measured.new_zeros(groups, *measured.shape[1:]).index_add_(0, labels, measured))
        else:
            for name, rows in (("rows", measured), ("row_groups", labels), ("ids", keys)):
                self._join(name, rows)

    def _totals(self, groups: int = 1) -> Tensor | None:
        """``(groups, ...)``: the sums, or the sum over the rows, with each id once; None if there was no data."""
        ids, rows, labels = self._joined("ids"), self._joined("rows"), self._joined("row_groups")
        if ids is None or rows is None or labels is None:
            return self.sums if self.sums.dim() else None
        if self.sums.dim():
            self._refuse_mixture()
        kept = first_of_each(ids)
        return rows.new_zeros(groups, *rows.shape[1:]).index_add_(0, labels[kept], rows[kept])

    def _refuse_mixture(self) -> None:
        """Raises: some samples came with ids and some without, in updates, from a merge or from other ranks."""
        remedy = "Pass `ids` to every update, or to none."
        needed = f"`{type(self).__name__}` needs ids for all samples or for none"
        raise ValueError(three_beats(needed, "a mixture", remedy))

    def _joined(self, name: str) -> Tensor | None:
        """All rows of a state; None if there are none."""
        held = getattr(self, name)
        held = torch.cat(held) if isinstance(held, list) and held else held
        return held if len(held) else None

    def _join(self, name: str, value: Tensor) -> None:
        """Adds to the sums or to the kept rows, on the device of what they already hold."""
        held, value = getattr(self, name), value.detach()
        listed = isinstance(held, list)
        first = next(iter(held), None) if listed else held if held.dim() else None
        value = value.to(state_device(value.device) if first is None else first.device)
        if first is not None and first.shape[listed:] != value.shape[listed:]:
            came = f"{tuple(value.shape)} after {tuple(first.shape)}"
            remedy = f"{self._one_shape} in one metric, or call `reset()` in between."
            raise ValueError(three_beats(f"`{type(self).__name__}` needs states of one shape", came, remedy))
        setattr(self, name, [*held, value] if listed else held.to(value.device) + value)

    def reset(self) -> None:
        """Clears all states."""
        for name in _LISTS:  # torchmetrics would empty the list in place, which a wrapper or a copy may still hold
            setattr(self, name, [])
        super().reset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Adds one batch, and returns the result for that batch alone. A batch that raises changes nothing."""
        batch = copy.copy(self)
        batch.reset()
        batch._one_batch, batch._to_sync, batch.process_group = True, self.dist_sync_on_step, self.process_group
        batch.update(*args, **kwargs)
        value = batch.compute()
        self.merge(batch)
        self._forward_cache = value
        return value

    def merge(self, other: Self) -> None:
        """Adds all data of ``other``, a metric of the same class and options."""
        if not isinstance(other, Accumulator) or other._signature() != self._signature():
            came = other._signature() if isinstance(other, Accumulator) else f"a {type(other).__name__}"
            remedy = "Merge metrics of one class that were made with the same options."
            raise ValueError(three_beats(f"`merge` needs another {self._signature()}", came, remedy))
        if other.sums.dim():
            self._join("sums", other.sums)
        for name in _LISTS:
            for part in getattr(other, name):
                self._join(name, part)
        self._update_count += other._update_count
        self._computed = None

    merge_state = merge  # torchmetrics' name

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """A figure of ``val``, one result or several in turn, by default of ``compute()``.

        Returns the matplotlib figure and axes. Needs torchmetrics and matplotlib.
        """
        plot = getattr(self, "_plot", None)
        if plot is None:
            needed = "`plot` needs torchmetrics and matplotlib"
            raise ModuleNotFoundError(three_beats(needed, "neither", "Run `pip install torchmetrics matplotlib`."))
        return plot(val, ax)

    # --- devices, copies and checkpoints ----------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """Follows moves between devices, but no change of type: sums stay float64."""

        def moved(state: Tensor) -> Tensor:
            probe = fn(torch.empty(0, dtype=torch.uint8, device=state.device))
            return state.to(state_device(probe.device))

        return super()._apply(moved, *args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """The number of updates, the class and the options, which a checkpoint stores beside the states."""
        return torch.tensor(list(f"{self._update_count} {self._signature()}".encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises unless the checkpoint is that of a metric with the same options."""
        count, _, signature = bytes(state.tolist()).decode().partition(" ")
        if signature != self._signature():
            needed = f"the checkpoint needs to be that of {self._signature()}"
            raise ValueError(three_beats(needed, signature, "Make the metric with the options it was saved with."))
        self._update_count = int(count)
        self._computed = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "process_group": None}  # a group belongs to its process

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        copied.process_group = self.process_group
        return copied

    # --- ranks ------------------------------------------------------------------------------------------------

    def _gather(self, local: Tensor, group: Any = None) -> list[Tensor]:
        """One state of every rank, in rank order, so that every rank has the same bits.

        Ranks may have different numbers of rows. A rank without data gives zeros, or no rows, in the shape of the
        others.
        """
        offers: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(offers, (self._signature(), tuple(local.shape), local.dtype), group=group)
        if len({signature for signature, _, _ in offers}) > 1:
            came = "; ".join(sorted({signature for signature, _, _ in offers}))
            remedy = "Make the metrics with the same options on every rank."
            raise ValueError(three_beats("`compute` needs one metric on all ranks", came, remedy))
        shapes = [shape for _, shape, _ in offers]
        filled = [(shape, dtype) for _, shape, dtype in offers if shape not in ((), (0,))]
        if len({shape[1:] for shape, _ in filled}) > 1:  # the same on every rank, so that all raise
            came = ", ".join(map(str, shapes))
            remedy = f"{self._one_shape} on every rank."
            raise ValueError(three_beats(f"`{type(self).__name__}` needs states of one shape", came, remedy))
        largest, dtype = max(filled, key=lambda entry: entry[0]) if filled else (local.shape, local.dtype)
        where = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
        mine = torch.zeros(largest, dtype=dtype, device=where)
        if local.shape == mine.shape:
            mine.copy_(local)
        elif local.dim() and len(local):
            mine[: len(local)] = local.to(where)
        parts = [torch.empty_like(mine) for _ in offers]
        dist.all_gather(parts, mine, group=group)
        return [
            part.to(local.device)[: shape[0]] if shape else part.to(local.device) for part, shape in zip(parts, shapes)
        ]


def first_of_each(ids: Tensor) -> Tensor:
    """The index of the first row with each id, in ascending order of ids."""
    _, inverse = ids.unique(return_inverse=True)
    order = torch.arange(len(inverse), device=inverse.device)
    first = torch.full_like(order, len(inverse)).scatter_reduce_(0, inverse, order, "amin")
    return first[: int(inverse.max()) + 1]


def _digest(text: str) -> int:
    """A hash of 64 bits, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
