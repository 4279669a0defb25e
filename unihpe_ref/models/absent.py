"""The module in the place of a part that a model lacks."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from multicontrast._checks import three_beats


class Absent(nn.Module):
    """Holds no weights; every use raises an error that names the missing part.

    Args:
        part: its name.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def forward(self, *arguments: Any) -> NoReturn:
        """Raises: ValueError, always."""
        needed = f"this needs a model with a {self.part}"
        remedy = "Choose another checkpoint; `load_lifter(whole=True)` is the shipped one with all parts."
        raise ValueError(three_beats(needed, "one that only lifts (`lifting_only`)", remedy))

    condition = loss = decode = forward
