"""``unihpe data check`` and ``unihpe data prepare``: checks and converts data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from multicontrast._checks import three_beats
from unihpe_ref.data import open_data, prepare
from unihpe_ref.data.checking import Report, check
from unihpe_ref.files import write_json

PROBLEMS_FOUND = 1
"""Exit code of ``check`` if something is wrong with data that can be read."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Report the contents of a data set, how well 2D and 3D agree, and what is wrong; exit code 1 if anything is."""

    path: tyro.conf.Positional[Path]
    """file or folder, as downloaded or as prepared"""
    form: str | None = None
    """the data set's format; recognised unless given"""
    joints: Annotated[tuple[str, ...], tyro.conf.arg(metavar="JOINT=NAME ...")] = ()
    """for BVH with its own joint names: which of its joints is lhip, rknee, ..."""
    json: Path | None = None
    """also write what was found to this file"""

    def execute(self, console: Console) -> None:
        report = check(open_data(self.path, self.form, verify=True, joints=_pairs(self.joints)))
        show(report, console, self.path)
        if self.json is not None:
            write_json(self.json, report.to_dict())
        if report.problems:
            raise SystemExit(PROBLEMS_FOUND)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Convert a data set once into memory-mapped arrays with a manifest and hashes; resumes after an interruption."""

    source: tyro.conf.Positional[Path]
    """file or folder as downloaded, or a zip or tar archive of one"""
    out: Path
    """folder for the arrays; empty, new, or left unfinished by the same command"""
    form: str | None = None
    """the data set's format; recognised unless given"""
    fps: Annotated[float | None, tyro.conf.arg(metavar="N")] = None
    """keep N frames per second; all unless given"""
    joints: Annotated[tuple[str, ...], tyro.conf.arg(metavar="JOINT=NAME ...")] = ()
    """for BVH with its own joint names: which of its joints is lhip, rknee, ..."""
    crops: bool = False
    """cut people out of the pictures and pack the crops"""

    def execute(self, console: Console) -> None:
        def say(words: str) -> None:
            console.print(f"  {words}", soft_wrap=True)

        data = prepare(
            self.source,
            self.out,
            form=self.form,
            fps=self.fps,
            crops=self.crops,
            joints=_pairs(self.joints),
            say=say,
        )
        show(check(data), console, self.out)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Check data sets as downloaded (check), and convert them once (prepare)."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Check, tyro.conf.subcommand("check")] | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    ]

    def execute(self, console: Console) -> None:
        self.command.execute(console)


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """``("lhip=Thigh_L",)`` as a dictionary."""
    pairs = [text.partition("=") for text in texts]
    for left, sign, right in pairs:
        if not (left and sign and right):
            needed = "`--joints` needs pairs JOINT=NAME"
            raise ValueError(three_beats(needed, repr(left + sign + right), "Write lhip=Thigh_L rhip=Thigh_R."))
    return {left: right for left, _, right in pairs}


def show(report: Report, console: Console, path: Path) -> None:
    """Prints a report: facts, frames by subject and action, numbers, and what is wrong."""
    console.print(f"{path}: {report.form}", soft_wrap=True)
    for name, value in report.facts.items():
        console.print(f"  {name}: {value}", soft_wrap=True)
    console.print(_counts(report))
    for name, number in report.measures.items():
        console.print(f"  {name}: {_number(name, number)}", soft_wrap=True)
    if report.limbs:
        lengths = ", ".join(f"{limb.name} {limb.millimetres:.0f} ({limb.spread:.1%})" for limb in report.limbs)
        console.print(f"  limbs, mm (spread within a sequence): {lengths}", soft_wrap=True)
    for note in report.notes:
        console.print(f"  note: {note}", soft_wrap=True)
    for problem in report.problems:
        console.print(f"  WRONG: {problem}", soft_wrap=True)
    wrong = len(report.problems)
    console.print(
        "Nothing is wrong." if not wrong else "One thing is wrong." if wrong == 1 else f"{wrong} things are wrong."
    )


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if "share" in name or "difference" in name or "spread" in name else f"{value:.2f}"


def _counts(report: Report) -> Table:
    """A table of subjects against actions if that is narrow enough, else one line for each pair."""
    subjects = list(dict.fromkeys(subject for subject, _ in report.counts))
    actions = sorted({action for _, action in report.counts})
    table = Table(title="samples by subject and action", title_justify="left", title_style="", box=None)
    wide = len(subjects) <= 8
    table.add_column("action")
    for subject in subjects if wide else ["subjects", "samples"]:
        table.add_column(subject, justify="right", no_wrap=True)
    for action in actions[:40]:
        own = {subject: report.counts.get((subject, action), 0) for subject in subjects}
        cells = [str(own[subject] or "") for subject in subjects]
        if not wide:
            cells = [str(sum(count > 0 for count in own.values())), str(sum(own.values()))]
        table.add_row(action, *cells)
    if len(actions) > 40:
        table.add_row(f"and {len(actions) - 40} more", *[""] * (len(subjects) if wide else 2))
    return table
