"""Public names and signatures are those recorded in `public_api.txt`.

After a change that is meant: ``python tests/test_public_api.py`` writes the record anew; the diff shows what users will
see.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import multicontrast
import multicontrast.distributed
import multicontrast.similarity

RECORD = Path(__file__).parent / "public_api.txt"
ROOMS = {
    "multicontrast": multicontrast,
    "multicontrast.distributed": multicontrast.distributed,
    "multicontrast.linalg": multicontrast.linalg,
    "multicontrast.metrics": multicontrast.metrics,
    "multicontrast.similarity": multicontrast.similarity,
}


def signature(value: object) -> str:
    """Parameters with their kinds and defaults; annotations may become finer without notice."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty, default=shortened(parameter.default))
        for parameter in parameters
        if parameter.name != "self"
    ]
    text = str(inspect.Signature(bare))
    return re.sub(r"<([\w.]+) object at 0x[0-9a-f]+>", r"<\1>", text)


class _Long:
    """Stands for a long tuple in a signature: its length and both ends."""

    def __init__(self, values: tuple[object, ...]) -> None:
        self.text = f"({values[0]}, ... {len(values)} values ..., {values[-1]})"

    def __repr__(self) -> str:
        return self.text


def shortened(default: object) -> object:
    """The default, or what stands for it where it is a long tuple."""
    return _Long(default) if isinstance(default, tuple) and len(default) > 8 else default


def described(name: str, value: object) -> list[str]:
    """A line for a function or a constant; for a class also its public methods, inherited ones of torch left out."""
    if not inspect.isclass(value):
        return [name + signature(value)] if callable(value) else [name]
    lines = [f"class {name}{signature(value)}"]
    for method in sorted(dir(value)):
        attribute = inspect.getattr_static(value, method)
        owner = next((kind for kind in value.__mro__ if method in vars(kind)), value)
        if method.startswith("_") or not owner.__module__.startswith(("multicontrast", "unihpe_ref")):
            continue
        if owner.__module__ == "multicontrast.metrics._standalone":  # torchmetrics' methods, where that is missing
            continue
        if isinstance(attribute, property):
            lines.append(f"    {method}")
        elif callable(getattr(value, method)):
            lines.append(f"    {method}{signature(getattr(value, method))}")
    return lines


def snapshot(rooms: dict[str, ModuleType] = ROOMS) -> str:
    """All public names, room by room."""
    lines = []
    for room, module in rooms.items():
        lines.append(f"# {room}")
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if not isinstance(value, ModuleType):
                lines += described(name, value)
        lines.append("")
    return "\n".join(lines)


def test_public_names_and_signatures_are_those_on_record() -> None:
    assert snapshot() == RECORD.read_text(), (
        "The public API differs from tests/public_api.txt. If that is meant, run `python tests/test_public_api.py`, "
        "say it in CHANGELOG.md, and keep the old name working as CONTRIBUTING.md promises."
    )


def test_a_changed_default_and_a_removed_method_are_found() -> None:
    class Room(ModuleType):
        __all__ = ("Thing",)

    class Thing:
        def __init__(self, size: int = 1) -> None: ...

        def act(self) -> None: ...

    class Changed:
        def __init__(self, size: int = 2) -> None: ...

    before, after = Room("room"), Room("room")
    Thing.__module__ = Changed.__module__ = "multicontrast.room"
    before.Thing, after.Thing = Thing, Changed
    assert "class Thing(size=1)" in snapshot({"room": before})
    assert "class Thing(size=2)" in snapshot({"room": after})
    assert "    act()" in snapshot({"room": before})
    assert "act" not in snapshot({"room": after})


if __name__ == "__main__":
    sys.path.insert(0, str(RECORD.parents[1]))
    RECORD.write_text(snapshot())
