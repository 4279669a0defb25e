"""The temperature: learnable, inside its bounds, and never stuck on one."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
import struct
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from multicontrast._checks import as_float, check_choice, describe, three_beats

__all__ = ["PRESETS", "Temperature"]

PRESETS: dict[str, tuple[float, float | None, float | None]] = {
    "unihpe_stage_1": (1 / 14, 1 / 100, 1e4),
    "unihpe_stage_2": (1 / 5, 1 / 10, 1e4),
    "unihpe_stage_3": (1 / 5, 1 / 5, 1e4),
    "clip": (0.07, 0.01, None),
}
"""``(init, min, max)`` by name: the stages of UniHPE (arXiv 2311.16477, training settings), and CLIP's logit scale of
at most 100 (arXiv 2103.00020)."""


class Temperature(nn.Module):
    r"""A learnable temperature :math:`\tau` that divides the similarities.

    Stores :math:`\log \tau` in float32, whatever ``.half()`` or ``.double()`` make of the model around it. Each forward
    first clamps the stored value between the bounds, in place and outside the graph, so that the gradient always
    reaches it: one that points back inside moves it off the bound, and one that points outside is undone by the next
    clamp. ``state_dict`` clamps as well. Calling the module returns :math:`\tau`, inside the bounds.

    The parameter has to be in the optimizer, without weight decay (decay would pull :math:`\tau` towards 1)::

        optimizer = torch.optim.AdamW([
            {"params": model.parameters()},
            {"params": loss.parameters(), "weight_decay": 0.0},
        ])
        loss.temperature.check_optimizer(optimizer)

    One that gets gradients while an optimizer steps again and again and leaves it as it is warns once.

    Args:
        init: initial temperature, positive and inside the bounds.
        min, max: bounds; ``None`` is no bound. :meth:`preset` has those of UniHPE's stages and of CLIP.
        learnable: ``False`` keeps the value as a buffer.

    Raises:
        TypeError, ValueError: for values that are not positive finite numbers, or an ``init`` out of bounds.

    Example:
        >>> tau = Temperature(0.2, min=0.1)
        >>> round(tau().item(), 6)
        0.2
    """

    log_tau: Tensor

    def __init__(self, init: float, min: float | None = None, max: float | None = None, learnable: bool = True) -> None:
        super().__init__()
        for name, value in (("init", init), ("min", min), ("max", max)):
            if value is not None or name == "init":
                _check_positive(name, value)
        if not isinstance(learnable, bool):
            raise TypeError(
                three_beats(
                    "`Temperature` needs `learnable` to be True or False", describe(learnable), "False is a constant."
                )
            )
        low, high = min or 0.0, math.inf if max is None else max
        if not low <= init <= high:
            raise ValueError(
                three_beats(
                    "`Temperature` needs `min` <= `init` <= `max`",
                    f"min={min!r}, init={init!r}, max={max!r}",
                    "Move the initial value inside the bounds.",
                )
            )
        self.min, self.max, self.learnable = min, max, learnable
        # The bounds as float32 has them: not below `min`, not above `max`.
        self._lowest = None if min is None else _nearest_float32(min, upwards=True)
        self._highest = None if max is None else _nearest_float32(max, upwards=False)
        log_tau = torch.tensor(math.log(init), dtype=torch.float32)
        if learnable:
            self.log_tau = nn.Parameter(log_tau)
        else:
            self.register_buffer("log_tau", log_tau)
        self._unmoved = _Unmoved()
        self.register_state_dict_pre_hook(_clamp_before_saving)

    @classmethod
    def preset(cls, name: str, learnable: bool = True) -> Temperature:
        """A temperature with published settings, by name.

        Args:
            name: ``"unihpe_stage_1"`` (1/14 in [1/100, 1e4]), ``"unihpe_stage_2"`` (1/5 in [1/10, 1e4]),
                ``"unihpe_stage_3"`` (1/5 in [1/5, 1e4]), or ``"clip"`` (0.07, at least 0.01).
            learnable: ``False`` keeps the value as a buffer.

        Example:
            >>> Temperature.preset("unihpe_stage_2")
            Temperature(min=0.1, max=10000.0, learnable=True)
        """
        check_choice("Temperature.preset", "name", name, PRESETS)
        return cls(*PRESETS[name], learnable=learnable)

    @classmethod
    def for_similarity(
        cls,
        similarity: str,
        num_modalities: int = 3,
        *,
        dim: int | None = None,
        base: float = 0.07,
        min: float | None = None,
        max: float | None = None,
        learnable: bool = True,
    ) -> Temperature:
        r"""A sensible start for a similarity: the one that separates as the cosine does at ``base``.

        Similarities live on different scales. The start is ``base`` times the difference between a perfect match and
        a tuple of orthogonal embeddings, which for the cosine is 1 and for three modalities is

        ================  ==================  ===================
        similarity        difference          start at base 0.07
        ================  ==================  ===================
        eigenvalue        N - 1 = 2           0.14
        singular_value    sqrt N - 1 = 0.73   0.051
        mean_cosine       1                   0.07
        volume            1                   0.07
        area              sqrt 3 / 2 = 0.87   0.061
        multilinear       (see below)         0.07 / sqrt D
        ================  ==================  ===================

        The multilinear product of random unit rows has the standard deviation :math:`D^{-(N-1)/2}`, where a cosine has
        :math:`D^{-1/2}`; its start is smaller by the ratio of the two.

        Args:
            similarity: a name of :mod:`multicontrast.similarity`.
            num_modalities: how many there are, N.
            dim: D, for ``"multilinear"`` alone.
            base: the temperature that would suit a cosine.
            min, max, learnable: as for the class; bounds are those of this temperature, not of ``base``.

        Example:
            >>> round(Temperature.for_similarity("eigenvalue")().item(), 4)
            0.14
        """
        operation = "Temperature.for_similarity"
        check_choice(operation, "similarity", similarity, _SPANS)
        _check_positive("base", base)
        for name, value, needed in (
            ("num_modalities", num_modalities, True),
            ("dim", dim, similarity == "multilinear"),
        ):
            if value is None and not needed:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < (2 if name == "num_modalities" else 1):
                error = ValueError if isinstance(value, int) else TypeError
                raise error(
                    three_beats(
                        f"`{operation}` needs `{name}` to be a count", describe(value), "Pass the number of them."
                    )
                )
        return cls(base * _SPANS[similarity](num_modalities, dim or 1), min, max, learnable)

    def forward(self) -> Tensor:
        """The temperature, a 0-dim float32 tensor inside the bounds."""
        self.clamp_()
        if self.learnable and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._unmoved.watch(self)
        tau = self.log_tau.float().exp()
        # exp(log(bound)) may miss the bound by a rounding; put it there without cutting the gradient.
        if self._lowest is not None:
            tau = torch.where(tau < self._lowest, self._lowest + (tau - tau.detach()), tau)
        if self._highest is not None:
            tau = torch.where(tau > self._highest, self._highest + (tau - tau.detach()), tau)
        return tau

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the stored value between the bounds."""
        if self.min is not None or self.max is not None:
            low = None if self.min is None else math.log(self.min)
            high = None if self.max is None else math.log(self.max)
            self.log_tau.clamp_(low, high)

    @property
    def tau(self) -> Tensor:
        """The temperature inside its bounds, detached, as a number to look at."""
        with torch.no_grad():
            return self()

    @property
    def logit_scale(self) -> Tensor:
        """``1 / tau``, what CLIP calls its scale; detached."""
        return self.tau.reciprocal()

    def check_optimizer(self, *optimizers: Optimizer) -> None:
        """Raise ``ValueError`` unless one of the optimizers holds the parameter, without weight decay.

        A constant temperature needs none.
        """
        if not self.learnable:
            return
        held = [
            group
            for optimizer in optimizers
            for group in optimizer.param_groups
            if any(parameter is self.log_tau for parameter in group["params"])
        ]
        remedy = 'Add {"params": loss.parameters(), "weight_decay": 0.0} to its parameter groups.'
        if not held:
            raise ValueError(
                three_beats("A learnable `Temperature` needs its parameter in the optimizer", "none there", remedy)
            )
        decay = max(group.get("weight_decay", 0.0) for group in held)
        if decay:
            raise ValueError(
                three_beats(
                    "A `Temperature` needs no weight decay, which would pull it towards 1",
                    f"weight_decay={decay}",
                    remedy,
                )
            )

    def extra_repr(self) -> str:
        return f"min={self.min}, max={self.max}, learnable={self.learnable}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Moves between devices, but keeps float32: bfloat16 has temperatures in steps of a per cent.
        def keep_type(x: Tensor) -> Tensor:
            moved = fn(x)
            return moved if moved.dtype == x.dtype else x.to(moved.device)

        return super()._apply(keep_type, recurse)


_SPANS: dict[str, Callable[[int, int], float]] = {
    "eigenvalue": lambda n, _: n - 1,
    "singular_value": lambda n, _: math.sqrt(n) - 1,
    "mean_cosine": lambda _n, _: 1.0,
    "volume": lambda _n, _: 1.0,
    "area": lambda n, _: math.sqrt(n) / math.factorial(n - 1),
    "multilinear": lambda n, dim: dim ** (-(n - 2) / 2),
}


def _clamp_before_saving(module: nn.Module, *_: object) -> None:
    assert isinstance(module, Temperature)
    module.clamp_()


# --- The guard against a parameter that no optimizer moves ---------------------------------------------------------


_PATIENCE = 3  # steps of one optimizer; others may come later, and some only every second time


class _Unmoved:
    """Notices a parameter that gets gradients, while optimizers step, and stays as it is.

    It looks at the version counter of the tensor, which every in-place change raises, and at no value: nothing waits
    for the device. What it knows is of this process: copies and pickles begin anew.
    """

    def __init__(self) -> None:
        self.version: int | None = None
        self.used = False  # since the last step: the steps of another training are not counted
        self.steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self.settled = False

    def watch(self, temperature: Temperature) -> None:
        """Called at each forward, after the clamp."""
        if self.settled:
            return
        version = temperature.log_tau._version
        if self.version is None:
            _watched.add(temperature)
            _listen()
        self.version, self.used = version, True

    def step(self, temperature: Temperature, optimizer: Optimizer) -> None:
        """Called after each step of any optimizer."""
        if temperature.log_tau.grad is None:
            return
        used, self.used = self.used, False
        # Fused optimizers move it without raising the counter: whoever holds it is trusted. Others are seen by it.
        held = any(p is temperature.log_tau for group in optimizer.param_groups for p in group["params"])
        if held or temperature.log_tau._version != self.version:  # somebody moved it: all is well, for good
            self.settled = True
        elif used:
            self.steps[optimizer] = self.steps.get(optimizer, 0) + 1
            if self.steps[optimizer] >= _PATIENCE:
                self.settled = True
                warnings.warn(
                    three_beats(
                        "A learnable `Temperature` needs its parameter in the optimizer",
                        f"{_PATIENCE} steps of {type(optimizer).__name__} that left it where it was",
                        'Add {"params": loss.parameters(), "weight_decay": 0.0} to the parameter groups, '
                        "or make it with learnable=False.",
                    ),
                    UserWarning,
                    stacklevel=2,
                )
        if self.settled:
            _watched.discard(temperature)

    def __deepcopy__(self, memo: object) -> _Unmoved:
        return _Unmoved()

    def __reduce__(self) -> tuple[type[_Unmoved], tuple[()]]:
        return _Unmoved, ()


_watched: weakref.WeakSet[Temperature] = weakref.WeakSet()
_listening: list[object] = []


def _listen() -> None:
    if not _listening:
        _listening.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, *_: object) -> None:
    for temperature in list(_watched):
        temperature._unmoved.step(temperature, optimizer)


# --- Bounds in float32 -------------------------------------------------------------------------------------------


def _nearest_float32(bound: float, upwards: bool) -> float:
    """The float32 nearest to a positive ``bound`` that is not below it, or with ``upwards=False`` not above it."""
    bits: int = struct.unpack("<i", struct.pack("<f", bound))[0]
    value: float = struct.unpack("<f", struct.pack("<f", bound))[0]
    if upwards and value < bound:
        bits += 1
    elif not upwards and value > bound:
        bits -= 1
    nearest: float = struct.unpack("<f", struct.pack("<i", bits))[0]
    return nearest


def _check_positive(name: str, value: object) -> None:
    remedy = "Temperatures divide the similarities: 0.07 is a usual start."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(three_beats(f"`Temperature` needs `{name}` to be a number", describe(value), remedy))
    if not (0 < as_float(value) < math.inf):
        raise ValueError(
            three_beats(f"`Temperature` needs `{name}` to be positive and finite", describe(value), remedy)
        )
    finfo = torch.finfo(torch.float32)
    if not (finfo.tiny <= value <= finfo.max):
        raise ValueError(
            three_beats(f"`Temperature` needs `{name}` in float32's range, 1.2e-38 to 3.4e38", repr(value), remedy)
        )
