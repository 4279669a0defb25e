"""What the loss modules share: making a temperature out of what was passed."""

from __future__ import annotations

from multicontrast._checks import describe, three_beats
from multicontrast.temperature import Temperature


def as_temperature(operation: str, temperature: float | Temperature) -> Temperature:
    """A module's temperature: the one that was passed, to be shared, or a new learnable one."""
    if isinstance(temperature, Temperature):
        return temperature
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(
            three_beats(
                f"`{operation}` needs `temperature` to be a number or a `Temperature`",
                describe(temperature),
                "Pass an initial value such as 0.07, or `Temperature(0.07, min=0.01)`.",
            )
        )
    return Temperature(temperature)
