"""The temperature: learnable, within bounds, with a gradient also on a bound."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from multicontrast._checks import check_choice, check_count, check_flag, check_number, describe, three_beats

__all__ = ["PRESETS", "Temperature", "param_groups"]

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

    Stores :math:`\log \tau` in float32, also in a model converted by ``.half()`` or ``.double()``. Each forward and
    ``state_dict`` first clamp the stored value to the bounds, outside the graph, so that it always gets a gradient.
    Calling the module returns :math:`\tau` within the bounds.

    The parameter has to be in the optimizer, without weight decay (decay would pull :math:`\tau` towards 1)::

        optimizer = torch.optim.AdamW(mc.param_groups(nn.ModuleList([model, loss]), weight_decay=0.01))
        loss.temperature.check_optimizer(optimizer)

    Args:
        init: initial temperature, positive and inside the bounds; :meth:`for_similarity` has one for each similarity.
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
    _own: tuple[Tensor | None]  # the module's own `log_tau`, not one from `functional_call`; a tuple is not registered

    def __init__(self, init: float, min: float | None = None, max: float | None = None, learnable: bool = True) -> None:
        super().__init__()
        init = _check_positive("Temperature", "init", init)
        min = None if min is None else _check_positive("Temperature", "min", min)
        max = None if max is None else _check_positive("Temperature", "max", max)
        learnable = check_flag("Temperature", "learnable", learnable)
        low, high = min or 0.0, math.inf if max is None else max
        if not low <= init <= high:
            raise ValueError(
                three_beats(
                    "`Temperature` needs `min` <= `init` <= `max`",
                    f"min={min!r}, init={init!r}, max={max!r}",
                    "Move the initial value inside the bounds.",
                )
            )
        self.init, self.min, self.max, self.learnable = init, min, max, learnable
        # The bounds in float32, rounded inwards.
        self._lowest = None if min is None else _float32_from(min, math.inf)
        self._highest = None if max is None else _float32_from(max, 0.0)
        log_tau = torch.tensor(math.log(init), dtype=torch.float32)
        if learnable:
            self.log_tau = nn.Parameter(log_tau)
        else:
            self.register_buffer("log_tau", log_tau)
        self._own = (self.log_tau,)
        self.register_state_dict_pre_hook(_clamp_before_saving)

    if TYPE_CHECKING:

        def __call__(self) -> Tensor: ...

    @classmethod
    def preset(cls, name: str, learnable: bool = True) -> Temperature:
        """A temperature with published settings, by name.

        Args:
            name: ``"unihpe_stage_1"`` (1/14 in [1/100, 1e4]), ``"unihpe_stage_2"`` (1/5 in [1/10, 1e4]),
                ``"unihpe_stage_3"`` (1/5 in [1/5, 1e4]), or ``"clip"`` (0.07, at least 0.01).
            learnable: ``False`` keeps the value as a buffer.

        Example:
            >>> Temperature.preset("unihpe_stage_2")
            Temperature(tau=0.2, min=0.1, max=10000.0)
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
        r"""A temperature at which a similarity's logits differ as much as those of a cosine at ``base``.

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
        base = _check_positive(operation, "base", base)
        num_modalities = check_count(operation, "num_modalities", num_modalities, 2)
        if dim is not None or similarity == "multilinear":
            dim = check_count(operation, "dim", dim, 1, remedy="Pass the length of the embeddings.")
        return cls(base * _SPANS[similarity](num_modalities, dim or 1), min, max, learnable)

    def forward(self) -> Tensor:
        """The temperature, a 0-dim float32 tensor inside the bounds."""
        if self.log_tau is self._own[0]:
            self.clamp_()
        low, high = self._log_bounds()
        # exp(log(bound)) may miss the bound by a rounding, so tau is put inside as well.
        return _inside(_inside(self.log_tau.float(), low, high).exp(), self._lowest, self._highest)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the stored value between the bounds."""
        low, high = self._log_bounds()
        if low is not None or high is not None:
            self.log_tau.clamp_(low, high)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the temperature to its initial value, as after ``to_empty``."""
        self.log_tau.fill_(math.log(self.init))

    def _log_bounds(self) -> tuple[float | None, float | None]:
        return None if self.min is None else math.log(self.min), None if self.max is None else math.log(self.max)

    @property
    def tau(self) -> Tensor:
        """The temperature within its bounds, detached."""
        with torch.no_grad():
            return self()

    @property
    def logit_scale(self) -> Tensor:
        """``1 / tau``, CLIP's logit scale; detached."""
        return self.tau.reciprocal()

    def check_optimizer(self, *optimizers: Optimizer) -> None:
        """Raise ``ValueError`` unless one of the optimizers holds the parameter, without weight decay.

        A fixed temperature passes. :func:`multicontrast.param_groups` makes groups that pass.
        """
        remedy = "Make the optimizer with `multicontrast.param_groups(module, weight_decay)`, the loss in the module."
        for optimizer in optimizers:
            if not isinstance(getattr(optimizer, "param_groups", None), list):
                needed = "`check_optimizer` needs optimizers, each an argument of its own"
                raise TypeError(three_beats(needed, describe(optimizer), remedy))
        if not self.learnable:
            return
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        held = [group for group in groups if any(parameter is self.log_tau for parameter in group["params"])]
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
        tau = "meta" if self.log_tau.is_meta else f"{self.tau.item():.4g}"
        bounds = [f", {name}={value}" for name, value in (("min", self.min), ("max", self.max)) if value is not None]
        return f"tau={tau}" + "".join(bounds) + ("" if self.learnable else ", learnable=False")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._own = (param,)  # also for `load_state_dict(assign=True)`

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Follows moves between devices but stays float32: bfloat16 has temperatures in steps of a per cent.
        def move(x: Tensor) -> Tensor:
            moved = fn(x)
            if x.is_meta and not moved.is_meta:  # a meta tensor has no value to keep
                return torch.full_like(x, math.log(self.init), device=moved.device)
            return moved if moved.dtype == x.dtype else x.to(moved.device)

        module = super()._apply(move, recurse)
        self._own = (self.log_tau,)
        return module


def param_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of a module for an optimizer: temperatures without weight decay, all others with it.

    Weight decay pulls the logarithm of a temperature towards 0, so the temperature towards 1.

    Args:
        module: anything with :class:`Temperature` in it: a loss, or ``nn.ModuleList([encoder, loss])``.
        weight_decay: of the other parameters, not negative.

    Returns:
        The groups that are not empty, in the order of ``module.parameters()``.

    Raises:
        TypeError, ValueError: for anything but a module, or a decay that is negative or not a number.

    Example:
        >>> import multicontrast as mc
        >>> model = nn.ModuleList([nn.Linear(8, 4), mc.PairwiseInfoNCE(0.07)])
        >>> optimizer = torch.optim.AdamW(mc.param_groups(model, weight_decay=0.01))
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(2, 0.01), (1, 0.0)]
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            three_beats(
                "`param_groups` needs a module", describe(module), "Pass several as nn.ModuleList([encoder, loss])."
            )
        )
    weight_decay = check_number(
        "param_groups", "weight_decay", weight_decay, least=0.0, remedy="0.01 is the default of `torch.optim.AdamW`."
    )
    temperatures = {id(part.log_tau) for part in module.modules() if isinstance(part, Temperature)}
    apart: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in module.parameters():
        apart[id(parameter) in temperatures].append(parameter)
    groups = ({"params": apart[0], "weight_decay": weight_decay}, {"params": apart[1], "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


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


def _inside(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """``x`` between the bounds, with the gradient of ``x`` also beyond them."""
    if low is not None:
        x = torch.where(x < low, low + (x - x.detach()), x)
    if high is not None:
        x = torch.where(x > high, high + (x - x.detach()), x)
    return x


def _float32_from(bound: float, towards: float) -> float:
    """``bound`` rounded to float32 in the direction of ``towards``, 0 or infinity."""
    nearest = np.float32(bound)
    if (float(nearest) < bound) if towards > bound else (float(nearest) > bound):
        nearest = np.nextafter(nearest, np.float32(towards))
    return float(nearest)


def _check_positive(operation: str, name: str, value: object) -> float:
    """``value`` as a positive number in the range of float32."""
    finfo = torch.finfo(torch.float32)
    remedy = "Temperatures divide the similarities: 0.07 is a usual start."
    return check_number(operation, name, value, least=finfo.tiny, below=finfo.max, remedy=remedy)
