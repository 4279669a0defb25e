"""The base of the accumulating metrics: states that add or append, merging, ranks, checkpoints, devices.

The interface is that of ``torchmetrics.Metric``, without the package: where it has been imported, the base class is
registered as a virtual subclass of ``Metric``, so that a ``MetricCollection`` takes these classes like its own.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multicontrast._checks import describe, three_beats
from multicontrast.metrics._inputs import state_device

if TYPE_CHECKING:
    from typing_extensions import Self


class Accumulator(nn.Module):
    """Sums and rows gathered over many batches, from which `compute` makes one result.

    A *sum* is a tensor that adds; a *row state* a tensor that grows along its first axis. Both merge exactly, whatever
    the sizes of the batches and however they are spread over ranks. Subclasses implement ``update`` (which calls
    `_add` and `_append`) and ``_result``.

    Args:
        sync_on_compute: gather from all ranks in `compute`, where ``torch.distributed`` is initialised. Every rank must
            then call it, also one without data.
        process_group: the ranks to gather from; None: all.
    """

    higher_is_better: ClassVar[bool | None] = None
    is_differentiable: ClassVar[bool] = False
    full_state_update: ClassVar[bool] = False

    _sums: dict[str, Tensor]
    _rows: dict[str, list[Tensor]]
    _computed: Any
    _forward_cache: Any

    def __init__(self, *, sync_on_compute: bool = True, process_group: Any = None) -> None:
        super().__init__()
        self.sync_on_compute = sync_on_compute
        self.process_group = process_group
        self.reset()
        meet_torchmetrics()

    # --- for subclasses ---------------------------------------------------------------------------------------

    def _result(self, sums: dict[str, Tensor], rows: dict[str, Tensor]) -> Any:
        """The result of these states; a state that nothing was added to is absent."""
        raise NotImplementedError

    def _signature(self) -> str:
        """What must be equal for two states to merge."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach()
        if name in self._sums:
            held = self._sums[name]
            if held.shape != value.shape:
                came = f"{tuple(value.shape)} after {tuple(held.shape)}"
                remedy = "Keep one number of joints per metric, or call `reset()` in between."
                needed = f"`{type(self).__name__}` needs states of one shape"
                raise ValueError(three_beats(needed, came, remedy))
            self._sums[name] = held + value.to(held.device)
        else:
            self._sums[name] = value.to(state_device(value.device))

    def _append(self, name: str, rows: Tensor) -> None:
        held = self._rows.setdefault(name, [])
        held.append(rows.detach().to(held[0].device if held else state_device(rows.device)))

    # --- the protocol -----------------------------------------------------------------------------------------

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Takes in one batch."""
        raise NotImplementedError

    def compute(self) -> Any:
        """The result over everything taken in, on all ranks; NaN where that is nothing."""
        return self._result(*self._synced())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes in one batch, and returns the result for that batch alone."""
        alone = copy.copy(self)
        alone.reset()
        alone.update(*args, **kwargs)
        self.merge(alone)
        self._forward_cache = alone._result(alone._sums, alone._joined_rows())
        return self._forward_cache

    def merge(self, other: Self) -> None:
        """Takes in everything that ``other``, a metric of the same class and options, has taken in."""
        if not isinstance(other, Accumulator) or other._signature() != self._signature():
            came = other._signature() if isinstance(other, Accumulator) else type(other).__name__
            remedy = "Merge metrics of one class that were made with the same options."
            raise ValueError(three_beats(f"`merge` needs another {self._signature()}", came, remedy))
        for name, value in other._sums.items():
            self._add(name, value)
        for name, parts in other._rows.items():
            for part in parts:
                self._append(name, part)
        self._update_count += other._update_count

    merge_state = merge  # torchmetrics' name

    def reset(self) -> None:
        """Forgets everything taken in."""
        self._sums, self._rows = {}, {}
        self._update_count = 0
        self._computed = None
        self._forward_cache = None

    def clone(self) -> Self:
        """A copy with a state of its own."""
        return copy.deepcopy(self)

    @property
    def update_called(self) -> bool:
        return self._update_count > 0

    _update_called = update_called

    @property
    def update_count(self) -> int:
        return self._update_count

    @property
    def metric_state(self) -> dict[str, Tensor]:
        """The states of this rank, by name."""
        return {**self._sums, **self._joined_rows()}

    @property
    def _defaults(self) -> dict[str, Tensor]:
        """None: a MetricCollection lets metrics whose states look alike share one, and alike is not the same."""
        return {}

    def _filter_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        taken = inspect.signature(self.update).parameters
        return {name: value for name, value in kwargs.items() if name in taken}

    def persistent(self, mode: bool = True) -> None:
        """Does nothing: states are always part of the ``state_dict``."""

    def set_dtype(self, dst_type: torch.dtype) -> Self:
        """Does nothing: sums stay float64 and counts int64."""
        return self

    # --- devices and checkpoints ------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows moves between devices, and no change of type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

        def moved(state: Tensor) -> Tensor:
            probe = fn(torch.empty(0, dtype=torch.uint8, device=state.device))
            return state.to(state_device(probe.device))

        self._sums = {name: moved(value) for name, value in self._sums.items()}
        self._rows = {name: [moved(part) for part in parts] for name, parts in self._rows.items()}
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}signature"] = torch.tensor(list(self._signature().encode()), dtype=torch.uint8)
        destination[f"{prefix}update_count"] = torch.tensor(self._update_count)
        for name, value in self._sums.items():
            destination[f"{prefix}sum_{name}"] = value.clone()
        for name, rows in self._joined_rows().items():
            destination[f"{prefix}rows_{name}"] = rows.clone()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if f"{prefix}signature" not in state_dict:
            missing_keys.append(f"{prefix}signature")
            return
        signature = bytes(state_dict[f"{prefix}signature"].tolist()).decode()
        if signature != self._signature():
            remedy = "Make the metric with the options it was saved with."
            error_msgs.append(three_beats(f"the state needs to be that of {self._signature()}", signature, remedy))
            return
        self.reset()
        self._update_count = int(state_dict[f"{prefix}update_count"])
        for key, value in state_dict.items():
            kind, _, name = key.removeprefix(prefix).partition("_")
            if not key.startswith(prefix) or "." in name:
                continue
            if kind == "sum":
                self._sums[name] = value.clone()
            elif kind == "rows":
                self._rows[name] = [value.clone()]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": None}  # a group belongs to its process

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(
            {
                name: value if name == "process_group" else copy.deepcopy(value, memo)
                for name, value in self.__dict__.items()
            }
        )
        return copied

    # --- ranks ------------------------------------------------------------------------------------------------

    def _joined_rows(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self._rows.items()}

    def _synced(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The states of all ranks, added and joined in the order of the ranks, so that every rank has the same bits."""
        rows = self._joined_rows()
        if not (self.sync_on_compute and dist.is_available() and dist.is_initialized()):
            return dict(self._sums), rows
        group = self.process_group
        world = dist.get_world_size(group)
        if world == 1:
            return dict(self._sums), rows
        offers: list[Any] = [None] * world
        shapes = {name: (tuple(value.shape), value.dtype) for name, value in {**self._sums, **rows}.items()}
        dist.all_gather_object(offers, (self._signature(), shapes, list(self._sums)), group=group)
        if len({signature for signature, _, _ in offers}) > 1:
            came = "; ".join(sorted({signature for signature, _, _ in offers}))
            remedy = "Make the metrics with the same options on every rank."
            raise ValueError(three_beats("`compute` needs one metric on all ranks", came, remedy))
        where = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
        added = {name for _, _, sums in offers for name in sums}
        everything: dict[str, Tensor] = {}
        for name in sorted({name for _, shapes, _ in offers for name in shapes}):
            known = [shapes.get(name) for _, shapes, _ in offers]
            home = self._sums.get(name, rows.get(name))
            sizes = [entry[0] if name in added else entry[0][1:] for entry in known if entry is not None]
            if len(set(sizes)) > 1:  # the same on every rank, so that all raise
                came = ", ".join(map(str, sizes))
                remedy = "Use one number of joints, or one width of embeddings, on every rank."
                raise ValueError(three_beats(f"`{type(self).__name__}` needs states of one shape", came, remedy))
            parts = _gather(home, known, where, group)
            joined = torch.stack(parts).sum(0) if name in added else torch.cat(parts)
            everything[name] = joined.to(home.device) if home is not None else joined
        sums = {name: value for name, value in everything.items() if name in added}
        return sums, {name: value for name, value in everything.items() if name not in added}


def _gather(local: Tensor | None, known: list[Any], where: Any, group: Any) -> list[Tensor]:
    """One state from every rank that has it. All ranks send tensors of one shape: rows are padded, absent ones zero."""
    shape, dtype = max((entry for entry in known if entry is not None), key=lambda entry: entry[0])
    full = torch.zeros(shape, dtype=dtype, device=where)
    if local is not None:
        full[: len(local)] = local.to(where)
    received = [torch.empty_like(full) for _ in known]
    dist.all_gather(received, full, group=group)
    return [tensor[: entry[0][0]] for tensor, entry in zip(received, known) if entry is not None]


def meet_torchmetrics() -> None:
    """Makes `Accumulator` a virtual subclass of ``torchmetrics.Metric``, if that has been imported."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is not None and hasattr(torchmetrics, "Metric"):
        torchmetrics.Metric.register(Accumulator)


def first_of_each(ids: Tensor) -> Tensor:
    """The index of the first row with each id, in ascending order of ids."""
    _, inverse = ids.unique(return_inverse=True)
    order = torch.arange(len(inverse), device=inverse.device)
    first = torch.full_like(order, len(inverse)).scatter_reduce_(0, inverse, order, "amin")
    return first[: int(inverse.max()) + 1]


def read_ids(name: str, ids: Sequence[int | str] | Tensor, rows: int, device: torch.device) -> Tensor:
    """One int64 for each row; names are hashed to 64 bits."""
    if not isinstance(ids, Tensor):
        ids = torch.tensor([_number(one) for one in ids], dtype=torch.int64)
    if ids.is_floating_point() or ids.shape != (rows,):
        remedy = "Pass one integer or name for each sample of the batch."
        raise ValueError(three_beats(f"`{name}` needs {rows} integer `ids`", describe(ids), remedy))
    return ids.to(state_device(device), torch.int64)


def _number(identity: int | str) -> int:
    if isinstance(identity, str):
        digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)
    return int(identity)


def refuse_mixture(name: str) -> NoReturn:
    """Raise: some samples came with ids, and some without."""
    remedy = "Pass `ids` to every update, or to none."
    raise ValueError(three_beats(f"`{name}` needs ids for all samples or for none", "a mixture", remedy))
