"""A report's numbers as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv as csv_module
import io
import math
import re

from unihpe_ref.report.human36m import SHORT_ACTIONS
from unihpe_ref.report.numbers import MetricResult, ReportNumbers


def markdown(result: ReportNumbers, digits: int) -> str:
    metrics = result.metrics
    labels = [_label(name, metric) for name, metric in metrics.items()]
    parts = []
    actions = list(next(iter(metrics.values())).per_action)
    head = ["metric", *(SHORT_ACTIONS.get(action, action) for action in actions), "action_mean", "frame_mean"]
    rows = [
        [label, *_numbers([*metric.per_action.values(), metric.action_mean, metric.frame_mean], digits)]
        for label, metric in zip(labels, metrics.values())
    ]
    if not actions:
        head = ["metric", "frame_mean"]
        rows = [[row[0], row[-1]] for row in rows]
    parts.append(_markdown_table(head, rows))
    subjects = list(next(iter(metrics.values())).per_subject)
    if subjects:
        body = [
            [subject, *_numbers([metric.per_subject[subject] for metric in metrics.values()], digits)]
            for subject in subjects
        ]
        parts.append(_markdown_table(["subject", *labels], body))
    jointed = [(label, metric) for label, metric in zip(labels, metrics.values()) if metric.per_joint]
    if jointed:
        body = [
            [joint, *_numbers([metric.per_joint[index] for _, metric in jointed], digits)]
            for index, joint in enumerate(result.joint_names)
        ]
        parts.append(_markdown_table(["joint", *(label for label, _ in jointed)], body))
    parts.append(counts(result))
    return "\n\n".join(parts) + "\n"


def latex(result: ReportNumbers, digits: int) -> str:
    metrics = result.metrics
    actions = list(next(iter(metrics.values())).per_action)
    means = ["action mean", "frame mean"] if actions else ["frame mean"]
    head = ["", *(SHORT_ACTIONS.get(action, action) for action in actions), *means]
    lines = [
        f"% {counts(result)}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(_escape(cell) for cell in head) + r" \\",
        r"\midrule",
    ]
    for name, metric in metrics.items():
        values = (
            [*metric.per_action.values(), metric.action_mean, metric.frame_mean] if actions else [metric.frame_mean]
        )
        cells = [_escape(_label(name, metric)), *_numbers(values, digits, missing="--")]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv(result: ReportNumbers) -> str:
    buffer = io.StringIO()
    writer = csv_module.writer(buffer, lineterminator="\n")
    writer.writerow(["metric", "unit", "section", "name", "value", "items"])
    for name, metric in result.metrics.items():

        def write(section: str, what: str, value: float, items: int | str = "") -> None:
            cells = map(_cell, (name, metric.unit, section, what))  # noqa: B023
            writer.writerow([*cells, repr(value), items])

        write("mean", "frame_mean", metric.frame_mean, result.items)
        write("mean", "action_mean", metric.action_mean, result.items)
        for action, value in metric.per_action.items():
            write("action", action, value, metric.items[action])
        for subject, value in metric.per_subject.items():
            write("subject", subject, value)
        for joint, value in zip(result.joint_names, metric.per_joint):
            write("joint", joint, value)
    return buffer.getvalue()


def counts(result: ReportNumbers) -> str:
    """The numbers of poses in the means and outside them."""
    text = f"{result.items} poses"
    if result.hidden:
        text += f"; {result.hidden} more left out, without a visible joint"
    if result.invalid:
        text += f"; {result.invalid} NaN, and so are the means they enter"
    return text + "."


def _label(name: str, metric: MetricResult) -> str:
    return f"{name} ({metric.unit})" if metric.unit else name


def _numbers(values: list[float], digits: int, missing: str = "–") -> list[str]:
    return [missing if math.isnan(value) else f"{value:.{digits}f}" for value in values]


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    head, *rows = ([_plain(cell) for cell in row] for row in (head, *rows))
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *rest = cells
        return "| " + " | ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:]))]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


_LATEX = {
    **{character: f"\\{character}" for character in "%&_#${}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _escape(text: str) -> str:
    """Escapes a name for LaTeX, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _plain(text: str) -> str:
    """Escapes a name for a cell of Markdown, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|~$!]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def _cell(text: str) -> str:
    """Escapes a name for a cell of CSV, so that spreadsheets do not read a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
