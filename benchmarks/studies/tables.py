"""The page ``docs/unihpe/reproducing-tables.md``: the paper's Tables 1 to 6 beside our own results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import unihpe_ref
from benchmarks.environment import ROOT
from benchmarks.studies.plan import RATES, SEEDS, STUDIES, TUNED_ROWS, Trial, rows
from benchmarks.studies.runs import FULL_SIZE, read_run
from benchmarks.studies.trials import RESULTS, chosen_rate, read_result

PAGE = ROOT / "docs" / "unihpe" / "reproducing-tables.md"
CARD = Path(unihpe_ref.__file__).with_name("assets") / "lifter.json"  # in the imported package, installed or not

_H36M, _3DPW = "Human3.6M", "3DPW"
_LIFTING = "`--protocol h36m_lifting`"
_DETECTED = f"{_LIFTING}, trained with `--data.joints-2d detected`"
_IMAGES = "`--protocol h36m_p1_image`, both metrics"
_BOTH = "Human3.6M, MPI-INF-3DHP"
_PW = "`--protocol 3dpw_14` and `3dpw_17`"

# Table -> (title, what the numbers are, [(row, paper, data, preset, how it is evaluated)])
_TABLES: dict[str, tuple[str, str, list[tuple[str, str, str, str, str]]]] = {
    "1": (
        "lifting",
        "MPJPE / PA-MPJPE (mm); 3DPW PA-MPJPE",
        [
            (
                "UniHPE, detected 2D (CPN)",
                "53.6 / 40.9",
                _H36M,
                "paper",
                f"{_LIFTING}, trained with `--data.joints-2d detected`",
            ),
            ("UniHPE, ground-truth 2D", "51.6 (PA)", _3DPW, "paper", _PW),
        ],
    ),
    "2": (
        "images",
        "MPJPE / PA-MPJPE (mm); 3DPW PA-MPJPE",
        [
            ("UniHPE-w32", "55.2 / 40.0", _BOTH, "table5-hrnet-w32", _IMAGES),
            ("UniHPE-w48", "50.5 / 36.2", _BOTH, "table5-hrnet-w48", _IMAGES),
            ("UniHPE-w32", "67.1 (PA)", _3DPW, "table5-hrnet-w32", _PW),
            ("UniHPE-w48", "65.7 (PA)", _3DPW, "table5-hrnet-w48", _PW),
        ],
    ),
    "3": (
        "2D pose of images",
        "PCK@0.05 (%) / EPE (px)",
        [("UniHPE-w32", "93.5 / 7.18", _BOTH, "table5-hrnet-w32", "`--protocol h36m_2d`")],
    ),
    "4": (
        "encoder and decoder, lifting ground-truth 2D",
        "MPJPE / PA-MPJPE (mm)",
        [
            ("MLP, MLP", "60.5 / 44.5", _H36M, "table4-mlp-mlp", _LIFTING),
            ("transformer, MLP", "64.8 / 48.1", _H36M, "table4-transformer-mlp", _LIFTING),
            ("MLP, diffusion", "71.4 / 45.6", _H36M, "table4-mlp-diffusion", _LIFTING),
            ("transformer, diffusion", "39.3 / 29.9", _H36M, "table4-transformer-diffusion", _LIFTING),
        ],
    ),
    "5": (
        "image encoder",
        "MPJPE / PA-MPJPE (mm)",
        [
            ("ViT-S", "151.6 / 93.8", _BOTH, "table5-vit-s", _IMAGES),
            ("ViT-B", "149.9 / 93.4", _BOTH, "table5-vit-b", _IMAGES),
            ("HRNet-w32", "55.2 / 40.0", _BOTH, "table5-hrnet-w32", _IMAGES),
            ("HRNet-w48", "50.5 / 36.2", _BOTH, "table5-hrnet-w48", _IMAGES),
        ],
    ),
    "6": (
        "what is aligned",
        "ground-truth 2D: MPJPE / PA; image: MPJPE / PA (mm)",
        [
            ("no contrast", "41.3 / 31.6; 91.8 / 68.7", _H36M, "table6-no-contrast", _LIFTING),
            ("pairs", "60.0 / 47.5; 65.5 / 51.8", _H36M, "table6-pairs", _LIFTING),
            ("pairs + triplet", "40.9 / 31.7; 58.7 / 44.4", _H36M, "table6-pairs-triplet", _LIFTING),
            ("+ modality token", "39.3 / 29.9; 57.5 / 42.9", _H36M, "table6-pairs-triplet-token", _LIFTING),
            (
                "+ MPI-INF-3DHP",
                "44.2 / 33.6; 55.1 / 40.0",
                _BOTH,
                "table6-pairs-triplet-token-3dhp",
                _LIFTING,
            ),
        ],
    ),
}

_TRAINED_ON_BOTH = (
    "The paper does not say what these rows were trained on. HRNet-w32's 55.2 / 40.0 is the last row of Table 6 (55.1 "
    "/ 40.0), so we assume both data sets (`--also`). PA-MPJPE is Protocol 2 as the paper defines it, the metric on "
    "all cameras; others call the frontal camera alone Protocol 2 (`--protocol h36m_p2_image`)."
)
_NOTES = {
    "2": _TRAINED_ON_BOTH,
    "3": "PCK's norm is the larger side of mmpose's box, 1.2 times the tight one, as in the HRNet rows of the paper's "
    "table. Those are mmpose's for inputs of 256 x 256; UniHPE's inputs are 192 x 256.",
    "5": _TRAINED_ON_BOTH + " Each encoder starts from pose weights of its own (`unihpe ablate --image-weights`).",
    "6": "The marks of the paper's table refer to the stages before the last, where the rows differ. Stage 3 follows "
    "equation (5), except in the first row, which has no contrastive loss at all. The last row needs "
    "`unihpe ablate --also`. The small rows here leave the triplet out of stage 3, too.",
}

_INTRODUCTION = """\
# The paper's tables

The tables show what the paper reports beside what we measured. Human3.6M, MPI-INF-3DHP and 3DPW may not be
redistributed and we do not have them, so the column *here* is empty in their rows: nobody has run them with this code
yet. If you have the data, prepare them with `unihpe data prepare`, train with `unihpe train --preset PRESET --motion
PREPARED`, and evaluate with `unihpe evaluate RUN --motion PREPARED --protocol ...`; `unihpe ablate --table 4` runs all
rows of a table.

The rows on CMU motion capture are the small runs of [the studies](studies.md), the shipped lifter, and the paper's
pair of Table 4 in its full size ([how it was trained](training-on-mocap.md)). Do not compare them with the paper's
numbers, because the data differ.

This page is written by `python -m benchmarks.studies page`.
"""
_HEAD = ("", "paper", "here", "data", "config", "log")


def page(folder: Path = RESULTS) -> str:
    """The text of the page."""
    parts = [_INTRODUCTION]
    for number, (title, unit, lines) in _TABLES.items():
        table = [(name, paper, "", data, f"`{preset}`; {how}", "") for name, paper, data, preset, how in lines]
        table += _measured(number, folder)
        note = f"\n\n{_NOTES[number]}" if number in _NOTES else ""
        parts.append(f"## Table {number}: {title}\n\n{unit}.\n\n{_markdown(table)}{note}")
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _measured(number: str, folder: Path) -> list[tuple[str, str, str, str, str, str]]:
    """Rows on motion capture, if there are any."""
    found = []
    if number == "1":
        paths = json.loads(CARD.read_text())["evaluation"]["paths"]
        for path, words in (("2D to 3D", "one pass"), ("2D to 3D, flip", "with its mirror image")):
            mean = paths[path]["frame_mean"]
            value = f"{mean['MPJPE']:.1f} / {mean['PA-MPJPE']:.1f}"
            log = "`unihpe_ref/assets/lifter.json`"
            found.append((f"shipped lifter with `joint_noise=0`, {words}", "", value, "CMU, exact 2D", "`lifter`", log))
    for name in (FULL_SIZE, f"{FULL_SIZE}-preconditioned") if number == "4" else ():
        if (run := read_run(name)) is not None:
            mean = run["evaluation"]["paths"]["2D to 3D"]["frame_mean"]
            what = f"{name.replace('-', ', ')}, in the paper's size ({run['steps']['taken']:,} steps)"
            found.append((what, "", f"{mean['MPJPE']:.1f} / {mean['PA-MPJPE']:.1f}", "CMU, exact 2D",
                          f"`{run['preset']}`", f"`benchmarks/results/training/{name}.csv`"))  # fmt: skip
    for study in (f"table{number}", f"table{number}-fair"):
        for row in rows(study) if study in STUDIES and study not in RATES else TUNED_ROWS.get(study, ()):
            made = f"{row}-{chosen_rate(study, row, folder)}" if study in RATES else row
            names = [Trial(study, made, seed) for seed in SEEDS]
            results = [result for trial in names if (result := read_result(trial, folder)) is not None]
            if not results:
                continue
            paths_of = [result["result"]["poses"]["paths"] for result in results]
            values = [
                " / ".join(
                    f"{sum(p[path]['frame_mean'][metric] for p in paths_of) / len(paths_of):.1f}"
                    for metric in ("MPJPE", "PA-MPJPE")
                )
                for path in (("2D to 3D",) if number == "4" else ("2D to 3D", "image to 3D"))
            ]
            seeds = f"{len(results)} seed{'s' if len(results) > 1 else ''}"
            how = "small, equal losses, tuned" if study in RATES else "small"
            data = "CMU, exact 2D" if number == "4" else "CMU, renders of 64 x 64"
            log = f"`benchmarks/results/studies/{study}-{made}-*.json`"
            found.append((f"{row.replace('-', ', ', 1 if number == '4' else 0)}, {how} ({seeds})", "",
                          "; ".join(values), data, "`benchmarks/studies/plan.py`", log))  # fmt: skip
    return found


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---", "---:", "---:", "---", "---", "---"]
    return "\n".join("| " + " | ".join(line) + " |" for line in (_HEAD, ruler, *lines))
