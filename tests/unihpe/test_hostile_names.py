"""Paths and names of joints, actions and files are shown literally, never as markup, code or formulas."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
from pathlib import Path

import formats
import pytest
import torch
from rich.table import Table

from unihpe_ref.__main__ import main
from unihpe_ref.applications import commands
from unihpe_ref.applications.escaping import PlainConsole, printable
from unihpe_ref.applications.poses import PoseSet
from unihpe_ref.applications.turntable import save_pose_view
from unihpe_ref.lifter import LiftedPoses
from unihpe_ref.report import PoseReport

HOSTILE = [
    "x[/red]y",
    "[bold]x[/bold]",
    "[link=https://example.org]x[/link]",
    ":smile:",
    "a\x1b[31mred\x1b[0m",
    "a\x1b]0;title\x07b",
    "\u202eevil",
    "<!--<script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "__DATA__",
    "__TITLE__",
    "a|b",
    "[a](javascript:alert(1))",
    "![a](https://example.org/a.png)",
    "`code`",
    "**bold**",
    "_it_",
    "$\\frac{1$",
    r"\input{/etc/passwd}",
    "100%_&#{}~^",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_terminal_shows_text_as_it_is(name):
    console = PlainConsole(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    console.print(name, highlight=False)
    table = Table(name, title=name)
    table.add_row(name)
    console.print(table)
    printed = console.file.getvalue()
    assert printed.splitlines()[0].rstrip() == printable(name)
    assert len([line for line in printed.splitlines() if printable(name).strip() in line]) >= 3
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", re.sub(r"\x1b\[[\d;]*m", "", printed))


@pytest.mark.parametrize("name", [name for name in HOSTILE if "/" not in name or "red" in name])
def test_a_folder_of_any_name_can_be_written_and_named(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    folder = tmp_path / name
    formats.write_coco(folder)
    code = main(["data", "check", str(folder)])
    printed = capsys.readouterr()
    assert code in (0, 1)
    assert printable(str(folder)) in printed.out
    assert main(["evaluate", str(folder / "model.safetensors")]) == 2
    assert printable(str(folder)) in capsys.readouterr().err
    console = PlainConsole(file=io.StringIO(), width=300)
    commands.say_where(console, folder, (commands.MODEL,))
    assert printable(str(folder)) in console.file.getvalue()


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.title = self.script = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") and "alert" in (value or "") for name, value in attrs)

    def handle_data(self, data):
        if self.tags[-1:] == ["title"] and not self.title:
            self.title = data
        if self.tags[-1:] == ["script"]:
            self.script += data


def pose_of(title):
    nowhere = LiftedPoses(torch.rand(1, 17, 3), torch.ones(1, 3), torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    return PoseSet(image=[title], joints_2d=torch.rand(1, 17, 2), lifted=nowhere)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_shows_a_title_as_it_is(name, tmp_path):
    pages = []
    for title in ("plain", name):
        save_pose_view(tmp_path / "pose.html", pose_of(title))
        page = _Page()
        page.feed((tmp_path / "pose.html").read_text(encoding="utf-8"))
        pages.append(page)
    assert pages[0].tags == pages[1].tags
    assert pages[1].title.endswith(name.replace("\r", "\n"))
    data = re.search(r"const D = (\{.*?\});?\n", pages[1].script)[1]
    assert "<" not in data
    assert json.loads(data)["scenes"][0]["title"] == name


@pytest.mark.parametrize("name", ["$\\frac{1$", "<!--<script>", "100%_&#{}~^"])
def test_a_picture_shows_a_title_as_it_is(name, tmp_path):
    save_pose_view(tmp_path / "pose.png", pose_of(name))
    assert (tmp_path / "pose.png").stat().st_size


@pytest.fixture(scope="module")
def report():
    joints = (HOSTILE * 2)[:17]
    made = PoseReport(actions=HOSTILE, subjects=HOSTILE, joint_names=joints, root=0)
    count = len(HOSTILE)
    target = torch.rand(count, 17, 3, generator=torch.Generator().manual_seed(0))
    made.update(target + 0.01, target, action=HOSTILE, subject=HOSTILE)
    return made


def test_no_cell_of_a_csv_is_a_formula(report):
    for row in csv.reader(io.StringIO(report.to_csv())):
        name = row[3]
        assert not name.startswith(("=", "+", "-", "@", "\t", "\r"))
    names = {row[3].removeprefix("'") for row in csv.reader(io.StringIO(report.to_csv()))}
    assert names >= set(HOSTILE)


def test_markdown_has_as_many_cells_as_columns_and_no_markup(report):
    text = report.to_markdown()
    for block in text.strip().split("\n\n")[:-1]:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    bare = re.sub(r"\\[^\w\s]", "", text)
    assert not re.search(r"[<>`*\[\]$]|!\[", bare)


def test_latex_has_as_many_cells_as_columns_and_no_commands_of_others(report):
    lines = [line for line in report.to_latex().splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
    commands_in = set(re.findall(r"\\([a-zA-Z]+)", report.to_latex()))
    assert commands_in <= {
        "begin", "end", "toprule", "midrule", "bottomrule", "textbackslash", "textasciitilde", "textasciicircum",
    }  # fmt: skip
    assert r"\input" not in report.to_latex()


def test_a_figure_shows_names_as_they_are(report):
    pytest.importorskip("matplotlib")
    figure = report.plot()
    figure.savefig(io.BytesIO(), format="png")


def test_an_error_of_the_file_system_is_in_three_beats_and_without_control_characters(tmp_path, capsys):
    missing = Path(tmp_path / "a\x1b[31mb" / "pose.json")
    assert main(["data", "check", str(missing)]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert re.search(r"; got .+\. \S", error)
