"""The part of ``torchmetrics.Metric`` that the accumulating metrics need, for use without torchmetrics.

It has the same names with the same meaning: states that are declared once, reset, joined over ranks, moved and saved.
If torchmetrics is installed this file is not imported.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Self

State = Tensor | list[Tensor]
_REDUCTIONS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "sum": lambda parts: torch.stack(parts).sum(0),
    "max": lambda parts: torch.stack(parts).amax(0),
    "cat": torch.cat,
}


class Metric(nn.Module):
    """States with a default and a way to join them; ``update`` adds a batch, ``compute`` gives the result."""

    higher_is_better: ClassVar[bool | None] = None
    is_differentiable: ClassVar[bool | None] = None
    full_state_update: ClassVar[bool | None] = None

    _update_count = 0
    _computed: Any = None
    _forward_cache: Any = None
    dist_sync_on_step = False

    def __init__(self, *, sync_on_compute: bool, process_group: Any, dist_sync_fn: Callable[..., list[Tensor]]) -> None:
        super().__init__()
        self.sync_on_compute, self.process_group, self.dist_sync_fn = sync_on_compute, process_group, dist_sync_fn
        self._to_sync = sync_on_compute
        self._defaults: dict[str, State] = {}
        self._reductions: dict[str, str] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, wrap in (("update", _counted), ("compute", _over_ranks)):
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))

    def add_state(self, name: str, default: State, dist_reduce_fx: str, persistent: bool = True) -> None:
        self._defaults[name], self._reductions[name] = default, dist_reduce_fx
        setattr(self, name, copy.copy(default))

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Adds one batch."""
        raise NotImplementedError

    def compute(self) -> Any:
        """The result over all batches of all ranks."""
        raise NotImplementedError

    def reset(self) -> None:
        for name, default in self._defaults.items():
            setattr(self, name, copy.copy(default))
        self._update_count, self._forward_cache = 0, None

    def clone(self) -> Self:
        """A copy with a state of its own."""
        return copy.deepcopy(self)

    @property
    def metric_state(self) -> dict[str, State]:
        """The states of this rank, by name."""
        return {name: getattr(self, name) for name in self._defaults}

    @property
    def update_count(self) -> int:
        """The number of batches added."""
        return self._update_count

    @property
    def update_called(self) -> bool:
        """Whether any batch was added."""
        return self._update_count > 0

    def set_dtype(self, dst_type: torch.dtype) -> Self:
        """Does nothing: states keep their types."""
        return self

    @contextlib.contextmanager
    def sync_context(self, dist_sync_fn: Callable[..., list[Tensor]], should_sync: bool = True) -> Iterator[None]:
        """Within it the states are those of all ranks; afterwards they are this rank's again."""
        mine = self.metric_state
        try:
            if should_sync and dist.is_available() and dist.is_initialized():
                for name, state in mine.items():
                    if isinstance(state, list):
                        state = torch.cat(state) if state else torch.empty(0)
                    parts = dist_sync_fn(state, group=self.process_group)
                    setattr(self, name, _REDUCTIONS[self._reductions[name]](parts))
            yield
        finally:
            vars(self).update(mine)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, state in self.metric_state.items():
            setattr(self, name, [fn(part) for part in state] if isinstance(state, list) else fn(state))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, state in self.metric_state.items():
            destination[f"{prefix}{name}"] = copy.copy(state)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        for name in self._defaults:
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, copy.copy(state_dict.pop(f"{prefix}{name}")))
            elif strict:
                missing.append(f"{prefix}{name}")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


def _counted(update: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(update)
    def counted(self: Metric, *args: Any, **kwargs: Any) -> None:
        self._update_count += 1
        update(self, *args, **kwargs)

    return counted


def _over_ranks(compute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compute)
    def over_ranks(self: Metric) -> Any:
        with self.sync_context(self.dist_sync_fn, self._to_sync):
            return compute(self)

    return over_ranks
