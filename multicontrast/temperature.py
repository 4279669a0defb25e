"""The temperature: learnable, inside its bounds, and never stuck on one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from multicontrast._checks import describe, three_beats

__all__ = ["Temperature"]


class Temperature(nn.Module):
    r"""A learnable temperature :math:`\tau` that divides the similarities.

    Stores :math:`\log \tau` in float32. Each forward first clamps the stored value between the bounds, in place and
    outside the graph, so that the gradient always reaches it: one that points back inside moves it off the bound, and
    one that points outside is undone by the next clamp. Calling the module returns :math:`\tau`, inside the bounds.

    The parameter has to be in the optimizer, without weight decay (decay would pull :math:`\tau` towards 1)::

        optimizer = torch.optim.AdamW([
            {"params": model.parameters()},
            {"params": loss.parameters(), "weight_decay": 0.0},
        ])

    Args:
        init: initial temperature, positive and inside the bounds.
        min, max: bounds; ``None`` is no bound. UniHPE's stages use ``(1/14, 1/100, 1e4)``, ``(1/5, 1/10, 1e4)`` and
            ``(1/5, 1/5, 1e4)`` for ``(init, min, max)``.
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
        log_tau = torch.tensor(math.log(init), dtype=torch.float32)
        if learnable:
            self.log_tau = nn.Parameter(log_tau)
        else:
            self.register_buffer("log_tau", log_tau)

    def forward(self) -> Tensor:
        """The temperature, a 0-dim float32 tensor inside the bounds."""
        low = None if self.min is None else math.log(self.min)
        high = None if self.max is None else math.log(self.max)
        if low is not None or high is not None:
            with torch.no_grad():
                self.log_tau.clamp_(low, high)
        tau = self.log_tau.float().exp()
        # exp(log(bound)) may miss the bound by a rounding; put it there without cutting the gradient.
        if self.min is not None:
            lowest = _at_least(self.min)
            tau = torch.where(tau < lowest, lowest + (tau - tau.detach()), tau)
        if self.max is not None:
            highest = _at_most(self.max)
            tau = torch.where(tau > highest, highest + (tau - tau.detach()), tau)
        return tau

    def extra_repr(self) -> str:
        return f"min={self.min}, max={self.max}, learnable={self.learnable}"


def _at_least(bound: float) -> float:
    """The smallest float32 that is not below ``bound``."""
    value = torch.tensor(bound, dtype=torch.float32)
    return (value if value.item() >= bound else torch.nextafter(value, torch.tensor(math.inf))).item()


def _at_most(bound: float) -> float:
    """The largest float32 that is not above ``bound``."""
    value = torch.tensor(bound, dtype=torch.float32)
    return (value if value.item() <= bound else torch.nextafter(value, torch.tensor(-math.inf))).item()


def _check_positive(name: str, value: object) -> None:
    remedy = "Temperatures divide the similarities: 0.07 is a usual start."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(three_beats(f"`Temperature` needs `{name}` to be a number", describe(value), remedy))
    if not (0 < value < math.inf):
        raise ValueError(three_beats(f"`Temperature` needs `{name}` to be positive and finite", repr(value), remedy))
