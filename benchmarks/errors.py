"""The line types of the error files under ``results/accuracy``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """The largest error of one implementation on one family; one line of the CSV."""

    operation: str
    family: str
    dtype: str
    implementation: str
    quantity: str
    error: float  # in eps; inf where something was not finite
    count: int
    torch: str
    commit: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """One implementation at one place of one line; a line of the CSV."""

    operation: str
    along: str
    at: float
    dtype: str
    implementation: str
    quantity: str
    value: float  # an error in eps, inf where something was not finite; for the denominators a loss or a cosine
    count: int
    torch: str
    commit: str
    date: str
