"""The allowed imports, read from the sources; and what `import multicontrast` loads in a new interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import multicontrast

LIBRARY = Path(multicontrast.__file__).parent
REFERENCE = LIBRARY.parent / "unihpe_ref"

# Each room and the rooms below it that it may import. A new room needs a line here: that is the moment to decide
# what it rests on. Arrows go down only, so no two rooms can import each other.
_GROUND = {"_version", "_checks", "_backend", "_launch_triton", "_workspace"}
LIBRARY_ARROWS: dict[str, set[str]] = {
    "_version": set(),
    "_checks": set(),
    "_backend": {"_checks"},
    "_launch_triton": {"_checks", "_backend"},
    "_workspace": {"_checks"},
    "_lost_ranks": set(),
    "temperature": _GROUND,
    "linalg": _GROUND,
    "similarity": _GROUND | {"linalg"},
    "distributed": _GROUND | {"_lost_ranks"},
    "losses": _GROUND | {"linalg", "similarity", "distributed", "temperature"},
    "cached": _GROUND | {"losses"},
    "metrics": _GROUND | {"linalg"},
}
# The data know no model, and the paper knows no application.
_SMALL = {"files", "settings", "parts", "config", "unfit"}
_PAPER = _SMALL | {"data", "diffusion", "models", "flipping", "checkpoint", "evaluation", "training", "stages", "runs"}
REFERENCE_ARROWS: dict[str, set[str]] = {
    "files": set(),
    "unfit": set(),
    "settings": set(),
    "parts": set(),
    "weights": {"files"},
    "report": set(),
    "config": {"settings"},
    "presets": {"config"},
    "data": {"files", "unfit"},
    "diffusion": {"parts"},
    "models": _SMALL | {"diffusion"},
    "flipping": {"data", "models"},
    "checkpoint": _SMALL | {"models"},
    "evaluation": _SMALL | {"data", "models", "flipping"},
    "lifter": {"checkpoint", "config", "data", "flipping", "models", "weights"},
    "training": _SMALL | {"data", "diffusion", "models"},
    "stages": _SMALL | {"data", "diffusion", "models", "training"},
    "runs": _PAPER - {"runs"} | {"presets"},
    "applications": _PAPER | {"lifter", "presets", "report", "weights"},
}
LEVELS = 6


def imported(path: Path, package: Path) -> set[str]:
    """Dotted names of everything that a file imports, at any depth of nesting; relative imports made absolute."""
    names = set()
    home = (package.name, *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = home[: len(home) - node.level + 1] if node.level else ()
            module = ".".join((*start, *([node.module] if node.module else [])))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_every_test_module_has_a_name_of_its_own() -> None:
    """Two of one name are one module to pytest, and to a process that a test starts."""
    tests = Path(__file__).parent
    names = [path.name for path in tests.rglob("*.py") if path.parent.name != "browser" and path.name != "__init__.py"]
    names = [name for name in names if name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


def files(package: Path) -> list[Path]:
    """Every source file of a package."""
    return sorted(package.rglob("*.py"))


def room(path: Path, package: Path) -> str:
    """The first step below the package: a folder or a module."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def breaches(package: Path, arrows: dict[str, set[str]]) -> list[str]:
    """Imports that go against the arrows, in words. ``__init__`` and ``__main__`` are the front door: they see all."""
    found = []
    for path in files(package):
        here = room(path, package)
        if here in ("__init__", "__main__") or here not in arrows:
            continue
        for name in imported(path, package):
            parts = name.split(".")
            if parts[0] != package.name:
                continue
            there = parts[1] if len(parts) > 1 else "__init__"
            if there in arrows and there != here and there not in arrows[here]:
                found.append(f"{path.relative_to(package.parent)} imports {name}")
            if there == "__init__":
                found.append(f"{path.relative_to(package.parent)} imports its own front door")
    return found


BOTH = pytest.mark.parametrize(
    ("package", "arrows"), [(LIBRARY, LIBRARY_ARROWS), (REFERENCE, REFERENCE_ARROWS)], ids=["library", "reference"]
)


@BOTH
def test_every_room_has_its_place(package: Path, arrows: dict[str, set[str]]) -> None:
    rooms = {room(path, package) for path in files(package)} - {"__init__", "__main__"}
    assert rooms == set(arrows), "a new room: say above what it may import"


@BOTH
def test_imports_have_one_direction(package: Path, arrows: dict[str, set[str]]) -> None:
    assert breaches(package, arrows) == []


@pytest.mark.parametrize("arrows", [LIBRARY_ARROWS, REFERENCE_ARROWS], ids=["library", "reference"])
def test_the_allowed_imports_have_no_cycle(arrows: dict[str, set[str]]) -> None:
    open_rooms = {here: set(below) for here, below in arrows.items()}
    while open_rooms:
        free = [here for here, below in open_rooms.items() if not below & set(open_rooms)]
        assert free, f"a circle among {sorted(open_rooms)}"
        for here in free:
            del open_rooms[here]


def imports_by_file(package: Path) -> dict[str, set[str]]:
    """Each file of a package, by its dotted name, and those it imports, be it for a type alone. No front doors."""
    modules = {
        ".".join((package.name, *path.relative_to(package).with_suffix("").parts)): path
        for path in files(package)
        if path.name not in ("__init__.py", "__main__.py")
    }
    return {
        here: {there for name in imported(path, package) for there in modules if f"{name}.".startswith(f"{there}.")}
        for here, path in modules.items()
    }


def levels(package: Path) -> dict[str, int]:
    """Each folder, and how many of its files the longest chain of imports inside it passes."""
    below = imports_by_file(package)

    def level(here: str) -> int:
        folder = here.rpartition(".")[0]
        return 1 + max((level(there) for there in below[here] if there.rpartition(".")[0] == folder), default=0)

    found: dict[str, int] = {}
    for here in below:
        folder = here.rpartition(".")[0].replace(".", "/")
        found[folder] = max(found.get(folder, 0), level(here))
    return found


def circles(package: Path) -> list[str]:
    """Files that import themselves by way of others, be it for a type alone. The front door apart."""
    below = imports_by_file(package)
    while free := [here for here, others in below.items() if not others & set(below)]:
        for here in free:
            del below[here]
    return sorted(below)


@pytest.mark.parametrize("package", [LIBRARY, REFERENCE], ids=["library", "reference"])
def test_no_file_imports_itself_by_way_of_others(package: Path) -> None:
    assert circles(package) == []


@pytest.mark.parametrize("package", [LIBRARY, REFERENCE], ids=["library", "reference"])
def test_no_folder_is_more_than_six_levels_deep(package: Path) -> None:
    assert {folder: deep for folder, deep in levels(package).items() if deep > LEVELS} == {}


def test_levels_are_counted(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "cellar").mkdir(parents=True)
    (package / "attic.py").write_text("from house.hall import door\nfrom house.cellar import wine\n")
    (package / "hall.py").write_text("def f():\n    from house import stairs\n")
    (package / "stairs.py").write_text("")
    (package / "cellar" / "wine.py").write_text("from .. import stairs\n")
    assert levels(package) == {"house": 3, "house/cellar": 1}


def test_a_cycle_of_imports_for_types_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    package.mkdir()
    (package / "hen.py").write_text("if TYPE_CHECKING:\n    from house.egg import Egg\n")
    (package / "egg.py").write_text("from house import hen\n")
    (package / "nest.py").write_text("import os\n")
    assert circles(package) == ["house.egg", "house.hen"]


def test_the_library_never_imports_the_reference() -> None:
    guilty = [path.name for path in files(LIBRARY) for name in imported(path, LIBRARY) if "unihpe_ref" in name]
    assert guilty == []


def test_only_kernel_files_import_triton() -> None:
    guilty = [
        str(path.relative_to(LIBRARY.parent))
        for package in (LIBRARY, REFERENCE)
        for path in files(package)
        for name in imported(path, package)
        if name.split(".")[0] == "triton" and not path.name.endswith("_triton.py")
    ]
    assert guilty == []


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "cellar").mkdir(parents=True)
    (package / "cellar" / "wine.py").write_text("def f():\n    from house.attic import dust\n")
    (package / "cellar" / "beer.py").write_text("from .. import attic\n")
    found = breaches(package, {"cellar": set(), "attic": {"cellar"}})
    assert found == ["house/cellar/beer.py imports house.attic", "house/cellar/wine.py imports house.attic.dust"]


PROBE = """
import sys
import numpy, torch
before = set(sys.modules)
import multicontrast
x = torch.zeros(1, 3, 3)
multicontrast.metrics.mpjpe(x, x), multicontrast.metrics.pa_mpjpe(x, x)
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names) - {"multicontrast", "torch", "numpy"}))
print(*sorted(name for name in set(sys.modules) - before if name.split(".")[0] == "triton" or "_triton" in name))
metric = multicontrast.metrics.MPJPE()
try:  # the classes are torchmetrics' own, though it comes later
    import torchmetrics
except ImportError:
    sys.exit()
assert isinstance(metric, torchmetrics.Metric) and type(metric).__mro__[3] is torchmetrics.Metric
"""


def test_the_library_and_its_metrics_load_nothing_but_torch_and_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == []


def test_the_library_imports_and_runs_without_triton() -> None:
    """In a process of its own: one with threads, as NumPy has, had better not fork."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, multicontrast\n"
        "x = torch.eye(3); print(float(multicontrast.pairwise_infonce(x, x, 0.5)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 1
