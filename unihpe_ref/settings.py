"""Base of the settings: frozen dataclasses with checked values, overrides by dotted name, and JSON.

``config.py`` defines the settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from multicontrast._checks import check_choice, describe, three_beats

_Settings = TypeVar("_Settings", bound="Settings")


def option(
    default: Any,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field with a default and the range of its numbers."""
    return dataclasses.field(
        default=default, metadata={"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    )


class Settings:
    """Base of the configuration's frozen dataclasses. Creating one checks every value."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _convert(hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            _check_type(type(self).__name__, field.name, hints[field.name], value)
            _check_range(type(self).__name__, field, value)

    def override(self: _Settings, **changes: Any) -> _Settings:
        """A copy with some options changed; ``override(**{"stage3.steps": 100})`` reaches into nested settings.

        Raises: ValueError for an unknown name, with the nearest one; ValueError or TypeError for an unfit value.
        """
        flat: dict[str, Any] = {}
        nested: dict[str, dict[str, Any]] = {}
        for dotted, value in changes.items():
            name, _, rest = dotted.partition(".")
            _check_name(type(self), name)
            if rest:
                nested.setdefault(name, {})[rest] = value
            else:
                flat[name] = value
        for name, inner in nested.items():
            current = flat.get(name, getattr(self, name))
            if not isinstance(current, Settings):
                needed = f"`{type(self).__name__}.{name}` is a single value"
                raise ValueError(three_beats(needed, f"options {sorted(inner)} inside it", f"Set `{name}` itself."))
            flat[name] = current.override(**inner)
        return dataclasses.replace(self, **flat)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, ready for JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def flat(self) -> dict[str, Any]:
        """Plain values by dotted names, as :meth:`override` takes them."""
        found: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            inner = getattr(self, name)
            nested = inner.flat() if isinstance(inner, Settings) else None
            found |= {name: value} if nested is None else {f"{name}.{key}": held for key, held in nested.items()}
        return found

    def differences(self: _Settings, other: _Settings) -> dict[str, tuple[Any, Any]]:
        """The options that differ: dotted name to (value here, value there).

        Example:
            >>> from unihpe_ref.config import RunConfig
            >>> RunConfig(seed=3).differences(RunConfig())
            {'seed': (3, 0)}
        """
        theirs = other.flat()
        return {name: (value, theirs[name]) for name, value in self.flat().items() if value != theirs[name]}

    @classmethod
    def from_dict(cls: type[_Settings], values: Any) -> _Settings:
        """The inverse of :meth:`to_dict`; options that are missing take their defaults.

        Raises: as :meth:`override`.
        """
        if not isinstance(values, dict):
            needed = f"`{cls.__name__}` is read from a JSON object"
            raise TypeError(three_beats(needed, describe(values), "Write it with `to_dict`."))
        hints = typing.get_type_hints(cls)
        read: dict[str, Any] = {}
        for name, value in values.items():
            _check_name(cls, name)
            inner = hints[name]
            read[name] = inner.from_dict(value) if isinstance(inner, type) and issubclass(inner, Settings) else value
        return cls(**read)


def _check_name(cls: type[Settings], name: str) -> None:
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        remedy = f"Did you mean `{near[0]}`?" if near else f"It has {', '.join(f'`{known}`' for known in names)}."
        raise ValueError(f"`{cls.__name__}` has no option `{name}`. {remedy}")


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _convert(hint: Any, value: Any) -> Any:
    """Converts from JSON, which has no tuples and no paths, and may hold an int for a float."""
    if hint is float and type(value) is int:
        return float(value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    if Path in typing.get_args(hint) and isinstance(value, str):
        return Path(value)
    return value


def _check_type(owner: str, name: str, hint: Any, value: Any) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        check_choice(owner, name, value, arguments)
        return
    if origin is tuple:
        fits = isinstance(value, tuple) and len(value) == len(arguments)
        fits = fits and all(type(item) is kind for item, kind in zip(value, arguments))
    elif origin in (typing.Union, types.UnionType):
        fits = any(isinstance(value, kind) for kind in arguments)
    else:
        fits = isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)
    if not fits:
        wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint).replace("pathlib.", "")
        raise TypeError(three_beats(f"`{owner}.{name}` needs {wanted}", describe(value), "Correct the value."))


def _check_range(owner: str, field: dataclasses.Field[Any], value: Any) -> None:
    words = {"at_least": "at least", "at_most": "at most", "above": "greater than", "below": "less than"}
    holds = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt, "below": operator.lt}
    for kind, bound in field.metadata.items():
        for number in value if isinstance(value, tuple) else (value,):
            if kind in holds and bound is not None and not holds[kind](number, bound):
                needed = f"`{owner}.{field.name}` needs to be {words[kind]} {bound:g}"
                raise ValueError(three_beats(needed, f"{number}", f"Its default is {_plain(field.default)}."))
