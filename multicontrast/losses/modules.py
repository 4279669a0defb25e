"""The losses as modules: a temperature and stored options over each function."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from multicontrast._checks import as_float, describe, three_beats
from multicontrast.losses import api
from multicontrast.losses import options as option_classes
from multicontrast.losses.options import check_options, with_documented_options, with_options
from multicontrast.temperature import Temperature

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from multicontrast.losses.options import (
        BatchOptions,
        StoredPairOptions,
        StoredSymmetricTupleOptions,
        StoredTrimodalOptions,
        TupleBatchOptions,
    )


class _Loss(nn.Module):
    """A temperature, and options that are attributes under their own names."""

    _kind: ClassVar[type]
    temperature: Temperature | nn.ModuleDict

    def __init__(self, temperature: Any, options: Mapping[str, Any]) -> None:
        super().__init__()
        name = type(self).__name__
        settled = check_options(name, self._kind, options)
        self._options = tuple(settled)
        for option, value in settled.items():
            setattr(self, option, value)
        self.temperature = as_temperature(name, temperature)

    def _with_stored(self, options: Mapping[str, Any]) -> Any:
        """The options of one call, which override the stored ones. An index sets the number of negatives."""
        stored = {name: getattr(self, name) for name in self._options}
        given = {name: value for name, value in options.items() if name != "negatives" or value is not None}
        if "negatives" in given:
            stored["num_negatives"] = None
        return stored | given

    def extra_repr(self) -> str:
        shown = [f"tau={_shown(self.temperature)}"]
        kinds = option_classes.options_of(self._kind)
        for name in self._options:
            value = getattr(self, name)
            always = name in ("alpha", "similarity", "negatives")
            if always or (value is not kinds[name][1].default and value != kinds[name][1].default):
                shown.append(f"{name}={value!r}" if isinstance(value, (str, int, float, tuple)) else f"{name}=...")
        return ", ".join(shown)


def as_temperature(operation: str, temperature: Any) -> Temperature:
    """A module's temperature: the given one, to share it, or a new learnable one."""
    if isinstance(temperature, Temperature):
        return temperature
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real):
        needed = f"`{operation}` needs `temperature` to be a number or a `Temperature`"
        remedy = "Pass an initial value such as 0.07, or `Temperature(0.07, min=0.01)`."
        raise TypeError(three_beats(needed, describe(temperature), remedy))
    return Temperature(as_float(temperature))


def _shown(temperature: Temperature | nn.ModuleDict) -> str:
    if isinstance(temperature, nn.ModuleDict):
        return "{" + ", ".join(f"{name}: {_shown(module)}" for name, module in temperature.items()) + "}"  # type: ignore[arg-type]
    tau = temperature.log_tau.detach()
    return "?" if tau.device.type == "meta" else f"{tau.exp().item():.4g}"


@with_documented_options
class PairwiseInfoNCE(_Loss):
    """:func:`multicontrast.pairwise_infonce` with its own or a shared temperature.

    Args:
        temperature: an initial value, for a learnable :class:`multicontrast.Temperature` without bounds, or a
            :class:`~multicontrast.Temperature`. Its parameter has to be in the optimizer, without weight decay: see
            :func:`multicontrast.param_groups`.
        {options}

    Example:
        >>> import torch
        >>> loss = PairwiseInfoNCE(0.07)
        >>> loss(torch.eye(4), torch.eye(4)).item() < 1e-5
        True
    """

    _kind = option_classes.StoredPairOptions
    temperature: Temperature

    @with_options(option_classes.StoredPairOptions)
    def __init__(self, temperature: float | Temperature = 0.07, **options: Unpack[StoredPairOptions]) -> None:
        super().__init__(temperature, options)

    @with_options(option_classes.BatchOptions)
    def forward(self, x: Tensor, y: Tensor, **options: Unpack[BatchOptions]) -> Tensor:
        """The loss of a batch.

        Args:
            x, y: ``(B, D)`` embeddings.
            {options}
        """
        return api.pairwise_infonce(x, y, self.temperature(), **self._with_stored(options))

    if TYPE_CHECKING:
        __call__ = forward


class _TupleLoss(_Loss):
    _kind = option_classes.StoredSymmetricTupleOptions
    temperature: Temperature

    @with_options(option_classes.StoredSymmetricTupleOptions)
    def __init__(self, temperature: float | Temperature = 0.07, **options: Unpack[StoredSymmetricTupleOptions]) -> None:
        super().__init__(temperature, options)


@with_documented_options
class MultimodalInfoNCE(_TupleLoss):
    """:func:`multicontrast.multimodal_infonce` with its own or a shared temperature.

    Args:
        temperature: as for :class:`multicontrast.PairwiseInfoNCE`.
        {options}
    """

    @with_options(option_classes.TupleBatchOptions)
    def forward(self, embeddings: Sequence[Tensor], **options: Unpack[TupleBatchOptions]) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: N = 2..8 tensors ``(B, D)``.
            {options}
        """
        return api.multimodal_infonce(embeddings, self.temperature(), **self._with_stored(options))

    if TYPE_CHECKING:
        __call__ = forward


@with_documented_options
class TripletInfoNCE(_TupleLoss):
    """:func:`multicontrast.triplet_infonce` with its own or a shared temperature.

    Args:
        temperature: as for :class:`multicontrast.PairwiseInfoNCE`.
        {options}
    """

    @with_options(option_classes.TupleBatchOptions)
    def forward(self, x_img: Tensor, x_2d: Tensor, x_3d: Tensor, **options: Unpack[TupleBatchOptions]) -> Tensor:
        """The loss of a batch.

        Args:
            x_img, x_2d, x_3d: ``(B, D)`` embeddings.
            {options}
        """
        return api.triplet_infonce(x_img, x_2d, x_3d, self.temperature(), **self._with_stored(options))

    if TYPE_CHECKING:
        __call__ = forward


@with_documented_options
class TrimodalInfoNCE(_Loss):
    """:func:`multicontrast.trimodal_infonce` with its own or a shared temperature.

    Args:
        temperature: as for :class:`multicontrast.PairwiseInfoNCE`; or a mapping with one for each term, by the names
            that the function takes.
        {options}
    """

    _kind = option_classes.StoredTrimodalOptions

    @with_options(option_classes.StoredTrimodalOptions)
    def __init__(
        self,
        temperature: float | Temperature | Mapping[tuple[int, int] | str, float | Temperature] = 0.07,
        **options: Unpack[StoredTrimodalOptions],
    ) -> None:
        by_name = isinstance(temperature, Mapping)
        super().__init__(1.0 if by_name else temperature, options)
        if isinstance(temperature, Mapping):
            made = {key: as_temperature("TrimodalInfoNCE", value) for key, value in temperature.items()}
            self._terms = tuple(made)
            self.temperature = nn.ModuleDict({_name(key): value for key, value in made.items()})

    @with_options(option_classes.TupleBatchOptions)
    def forward(self, x_img: Tensor, x_2d: Tensor, x_3d: Tensor, **options: Unpack[TupleBatchOptions]) -> Tensor:
        """The loss of a batch.

        Args:
            x_img, x_2d, x_3d: ``(B, D)`` embeddings.
            {options}
        """
        return api.trimodal_infonce(x_img, x_2d, x_3d, self._taus(), **self._with_stored(options))

    if TYPE_CHECKING:
        __call__ = forward

    def _taus(self) -> Tensor | dict[tuple[int, int] | str, Tensor]:
        if isinstance(self.temperature, nn.ModuleDict):
            return {key: self.temperature[_name(key)]() for key in self._terms}
        return self.temperature()


def _name(term: tuple[int, int] | str) -> str:
    """A term's name in the state_dict: ``pair_0_1`` or ``triplet``."""
    return term if isinstance(term, str) else "_".join(("pair", *map(str, term)))
