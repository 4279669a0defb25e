"""The documentation: its Python runs, its links work, and its tables agree with the rows on file.

Every fenced block marked ``python`` in README, CONTRIBUTING and under ``docs/`` is executed, page by page, in one
namespace per page, like a notebook. A block that cannot run here stands below a comment ``<!-- not run: reason -->``
and must at least compile. Blocks of other kinds (``console``, ``text``) are not code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import importlib
import io
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

import multicontrast
from benchmarks import driver, table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
_FENCE = re.compile(
    r"(?P<skip><!-- not run: \S[^>]*-->\n+)?^(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = ("python", "{code-block} python", "{testcode}", "py", "python3")
_LINK = re.compile(r"(?<!!)!?\[[^\]]*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")


@dataclass(frozen=True)
class Block:
    """A piece of Python on a page."""

    page: Path
    line: int
    code: str
    skipped: bool


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        if match["info"].strip() in _PYTHON:
            line = text.count("\n", 0, match.start("body")) + 1
            found.append(Block(page, line, match["body"], match["skip"] is not None))
    return found


def name_of(path: Path) -> str:
    """For the test's id."""
    return str(path.relative_to(ROOT))


def run(found: list[Block]) -> dict[str, object]:
    """Execute the blocks of one page in one namespace; errors point at the page's own lines."""
    namespace: dict[str, object] = {"__name__": "__documentation__"}
    for block in found:
        # Blank lines in front make the line numbers of a traceback those of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
        if not block.skipped:
            exec(code, namespace)
    return namespace


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        run(blocks(page))


def test_a_wrong_page_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n```python\nx = 1\n```\n\n"
        "<!-- not run: a GPU -->\n\n```python\nx = 2\n```\n\n"
        "```python\n1 / (x - 1)\n```\n"
    )
    first, skipped, last = blocks(page)
    assert (first.line, skipped.skipped, last.skipped) == (4, True, False)
    with pytest.raises(ZeroDivisionError):
        run([first, skipped, last])


def test_the_front_page_is_short_and_its_snippet_trains_encoders() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 60
    first = blocks(ROOT / "README.md")[0]
    lines = [line for line in first.code.splitlines() if line.strip()]
    assert len(lines) <= 8
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        namespace = run([first])
    trained = [part for part in namespace.values() if isinstance(part, torch.nn.Module)]
    assert len(trained) == 2, "encoders and a loss"
    for part in trained:
        gradients = [parameter.grad for parameter in part.parameters()]
        assert gradients
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_readme_holds_the_two_commands_that_ci_reads_from_it() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line for line in lines if line.startswith("python3 -m venv .venv && ")]
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install -e '.[unihpe]' && .venv/bin/unihpe demo",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest",
    ]


# --- links ----------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make, as GitHub and MyST spell them, and explicit ``(label)=``."""
    prose = _FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+\s+(.+?)\s*$", prose, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return made | set(re.findall(r"^\(([\w-]+)\)=$", prose, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_project_work(page: Path) -> None:
    broken = []
    prose = _FENCE.sub("", page.read_text())
    for match in _LINK.finditer(prose):
        target = match["target"]
        if re.match(r"[a-z]+:", target):  # http:, https:, mailto:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() and file.with_suffix(".md").exists():
            file = file.with_suffix(".md")
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:multicontrast|unihpe_ref|tests|benchmarks|docs|examples)/[\w./-]*)`", page.read_text())
    kept = [path for path in named if (ROOT / path.split("/")[0]).is_dir()]  # the packages may be installed elsewhere
    assert [path for path in kept if not (ROOT / path).exists()] == []


# --- tables as they are written -------------------------------------------------------------------------------


def uneven_rows(text: str) -> list[str]:
    """Rows whose number of cells is not that of their table: what is too much is dropped without a word."""
    columns, uneven = 0, []
    for line in _FENCE.sub("", text).splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        if cells and columns and cells != columns:
            uneven.append(line)
        columns = columns or cells if cells else 0
    return uneven


def test_no_row_of_a_table_loses_cells() -> None:
    assert [(name_of(page), row) for page in PAGES for row in uneven_rows(page.read_text())] == []
    assert uneven_rows("| a | b |\n|---|---|\n| `|x|` | y |\n") == ["| `|x|` | y |"]
    assert uneven_rows("| a |\n|---|\n| 1 |\n\n| a | b |\n|---|---|\n") == []


# --- docstrings -----------------------------------------------------------------------------------------------


MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(multicontrast.__path__, "multicontrast.")
    if not module.name.endswith("_triton")
)


@pytest.mark.parametrize("name", ["multicontrast", *MODULES])
def test_examples_in_docstrings_are_true(name: str) -> None:
    torch.manual_seed(0)
    names = {"torch": torch, "multicontrast": multicontrast, "mc": multicontrast}
    outcome = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert outcome.failed == 0


ROOMS = ("multicontrast", "multicontrast.distributed", "multicontrast.linalg", "multicontrast.metrics",
         "multicontrast.losses.candidates", "multicontrast.similarity", "unihpe_ref")  # fmt: skip


def documented(room: str, api: str) -> set[str]:
    """The names of a room that the pages of the API show: one by one, or all by ``automodule`` with members."""
    module = importlib.import_module(room)
    # `sample_tuples` is of two rooms and stands under the shorter name.
    entry = rf"^\.\. (?:auto\w+|py:data):: (?:{re.escape(room)}|multicontrast)\.(\w+)$"
    named = set(re.findall(entry, api, re.MULTILINE))
    whole = re.search(rf"^\.\. automodule:: {re.escape(room)}\n((?:   :.*\n)*)", api, re.MULTILINE)
    if whole and ":members:" in whole[1]:
        named |= {name for name in module.__all__ if callable(getattr(module, name))}  # constants have no docstring
    return named


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_docstring_and_a_place_in_the_docs(room: str) -> None:
    module = importlib.import_module(room)
    api = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    things = {name: getattr(module, name) for name in module.__all__ if not name.startswith("__")}
    names = {name for name, thing in things.items() if not isinstance(thing, ModuleType)}
    assert names - documented(room, api) == set()
    assert [name for name in names if callable(things[name]) and not (things[name].__doc__ or "").strip()] == []


def test_the_settings_of_a_run_are_written_out_as_they_are() -> None:
    # By itself the page would show every default of every part, which fills two screens.
    written = re.search(r"config\.RunConfig\(\*, (.*)\)", (ROOT / "docs" / "api" / "unihpe.md").read_text())
    shown = dict(part.split("=") for part in written[1].split(", "))
    settings = importlib.import_module("unihpe_ref.config").RunConfig()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        expected = f"{type(value).__name__}()" if dataclasses.is_dataclass(value) else repr(value)
        assert shown.pop(field.name) == expected
    assert shown == {}


def test_an_undocumented_name_is_found() -> None:
    assert documented("multicontrast.linalg", "") == set()
    assert documented("multicontrast.linalg", ".. autofunction:: multicontrast.linalg.eigmax\n") == {"eigmax"}
    assert "eigh3" in documented("multicontrast.linalg", ".. automodule:: multicontrast.linalg\n   :members:\n")


# --- tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", table.PAGES, ids=name_of)
def test_the_tables_of_figures_are_those_of_the_rows_on_file(page: Path) -> None:
    assert table.render(page.read_text()) == page.read_text(), "run `python -m benchmarks.table`"


def test_committed_figures_come_from_committed_code() -> None:
    rows = [row for file in driver.RESULTS.glob("*.csv") for row in driver.read_rows(file)]
    assert rows
    assert all(re.fullmatch(r"[0-9a-f]{7,40}", row.commit) for row in rows)
