"""Writes the page ``docs/unihpe/studies.md`` and its figures from the results."""

from __future__ import annotations

import io
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from benchmarks.studies import tables
from benchmarks.studies.plan import RATES, SEEDS, TUNED_ROWS, Trial, rows
from benchmarks.studies.trials import RESULTS, chosen_rate, planned_trials, read_result
from unihpe_ref.files import write_whole

PAGE = ROOT / "docs" / "unihpe" / "studies.md"
CURVES = ROOT / "docs" / "_static" / "studies-cosines.svg"
MAP = ROOT / "docs" / "_static" / "studies-tsne.png"

_MODALITIES = {"img": "image", "2d": "2D", "3d": "3D"}

_Read = Callable[[dict[str, Any]], float]

_INTRODUCTION = """\
# The paper's claims on recorded motion

`python -m benchmarks.studies page` writes this page from one file for each run in `benchmarks/results/studies`. We
wrote the plan, `benchmarks/studies/plan.py`, before the runs: small networks, short runs, one recording of CMU motion
capture (57,169 frames for training, held-out takes for testing), and pictures rendered from it. In a study all rows
take the same number of steps on the same batches. Numbers are the mean over seeds ± half of their range, with the
number of seeds in brackets if it is less than three. Empty cells have not been run.

Compare rows only with each other: such short runs end far from convergence, and these data are not Human3.6M. The
paper's numbers are shown only for the order of the rows.

This command makes the missing runs, one after another. It skips finished runs and can be stopped at any time:

```console
$ python -m benchmarks.studies run --motion cmu17_60hz.npz --photographs real_multiview
```

`python -m benchmarks.studies list` says which are missing.
"""


def write_page(folder: Path = RESULTS) -> list[Path]:
    """Writes the page, and the figures that have data; returns the written paths."""
    write_whole(PAGE, page(folder).encode())
    write_whole(tables.PAGE, tables.page(folder).encode())
    written = [PAGE, tables.PAGE]
    for path, draw in ((CURVES, _draw_curves), (MAP, _draw_map)):
        content = draw(folder)
        if content is not None:
            write_whole(path, content)
            written.append(path)
    return written


def page(folder: Path = RESULTS) -> str:
    """The text of the page."""
    planned = planned_trials(folder)
    done = [result for trial in planned if (result := read_result(trial, folder)) is not None]
    seconds = sum(result["cpu_seconds"]["all"] for result in done)
    missing = Counter(trial.study for trial in planned if read_result(trial, folder) is None)
    made = f"{len(done)} of the {len(planned)} runs" if missing else f"All {len(planned)} runs"
    state = f"{made} have been made, in {seconds / 3600:.1f} hours of one CPU thread."
    if done and missing:
        state += f" Missing: {', '.join(f'{count} of `{study}`' for study, count in missing.items())}."
    sections = (_table4, _fair, _drawn, _table6, _fair6, _figures, _exact, _photos)
    parts = [_INTRODUCTION, state, *(section(folder) for section in sections)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _results(study: str, row: str, folder: Path) -> list[dict[str, Any]]:
    found = (read_result(Trial(study, row, seed), folder) for seed in SEEDS)
    return [result for result in found if result is not None]


def _spread(results: Sequence[dict[str, Any]], read: _Read, digits: int = 1) -> str:
    values = [read(result) for result in results]
    if not values:
        return ""
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {(max(values) - min(values)) / 2:.{digits}f}"
    return text if len(values) == len(SEEDS) else f"{text} ({len(values)})"


def _pose(path: str, metric: str) -> _Read:
    return lambda result: result["result"]["poses"]["paths"][path]["frame_mean"][metric]


def _pair(pair: str, name: str, factor: float = 1.0) -> _Read:
    return lambda result: factor * result["result"]["alignment"]["pairs"][pair][name]


def _cost(result: dict[str, Any]) -> float:
    return result["cpu_seconds"]["training"]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ruler, *lines))


_TABLE4 = {"mlp-mlp": 60.5, "transformer-mlp": 64.8, "mlp-diffusion": 71.4, "transformer-diffusion": 39.3}


def _table4(folder: Path) -> str:
    lines = []
    for row in rows("table4"):
        results = _results("table4", row, folder)
        encoder, decoder = row.split("-")
        lines.append(
            [
                f"{encoder}, {decoder}",
                _spread(results, _pose("2D to 3D", "MPJPE")),
                _spread(results, _pose("2D to 3D", "PA-MPJPE")),
                "" if not results else f"{results[0]['parameters'] / 1e6:.2f}",
                _spread(results, _cost, 0),
                f"{_TABLE4[row]:.1f}",
            ]
        )
    anything = _results("table4", "mlp-mlp", folder)
    lines.append(
        ["mean pose", *(_spread(anything, _pose("mean pose, 3D", m)) for m in ("MPJPE", "PA-MPJPE")), "", "", ""]
    )
    head = ["2D encoder, 3D decoder", "MPJPE (mm)", "PA-MPJPE (mm)", "M parameters", "CPU s", "paper, MPJPE"]
    return (
        "## Table 4: encoder and decoder\n\nLifting ground-truth 2D joints, without images. The paper finds the "
        f"transformer with the diffusion decoder far ahead.\n\n{_markdown(head, lines)}\n\nThe order of these rows is "
        "not a property of the parts, because three other things differ. The MLP decoder's loss, a mean square, begins "
        "at about 1, and the score decoder's, half a sum, at about 25, beside the same contrastive loss. The "
        "transformer encoder has 0.085 million parameters and the MLP encoder 0.473. GFPose's parameterisation does "
        "not see errors at high noise ([the model](model.md)). The next table removes these differences."
    )


_FAIR_TITLES = {
    "mlp-spread": "mlp, diffusion, spread 0.2",
    "transformer-spread": "transformer, diffusion, spread 0.2",
    "transformer-gfpose": "transformer, diffusion as in GFPose",
}


def _tuned(study: str, row: str, folder: Path) -> list[dict[str, Any]]:
    """Results of a tuned row at its chosen rate."""
    return _results(study, f"{row}-{chosen_rate(study, row, folder)}", folder)


def _first_errors(study: str, row: str, paths: Sequence[str], folder: Path) -> list[str]:
    """The MPJPE at each rate, of each path, for the first seed, which chooses the rate."""
    found = (read_result(Trial(study, f"{row}-{rate}", SEEDS[0]), folder) for rate in RATES[study])
    return ["" if r is None else " + ".join(f"{_pose(path, 'MPJPE')(r):.1f}" for path in paths) for r in found]


def _rates_chosen(study: str, folder: Path) -> str:
    """A sentence on whether the list of rates was long enough."""
    chosen = [chosen_rate(study, row, folder) for row in TUNED_ROWS[study]]
    edges = {word: chosen.count(RATES[study][end]) for word, end in (("largest", -1), ("smallest", 0))}
    at_edge = [f"{count} of {len(chosen)} rows chose the {word} rate" for word, count in edges.items() if count]
    if not at_edge:
        return "No row chose the largest or the smallest rate."
    return f"{' and '.join(at_edge)}, so a rate beyond the list might be better."


def _apart(one: float, other: float) -> str:
    return f"{abs(one - other):.1f} mm {'more' if one > other else 'less'}"


def _fair(folder: Path) -> str:
    study, pose, lines = "table4-fair", _pose("2D to 3D", "MPJPE"), []
    for pair in TUNED_ROWS[study]:
        results = _tuned(study, pair, folder)
        repeated = [_spread(results, _pose("2D to 3D", metric)) for metric in ("MPJPE", "PA-MPJPE")]
        first = _first_errors(study, pair, ("2D to 3D",), folder)
        title = _FAIR_TITLES.get(pair, pair.replace("-", ", "))
        lines.append([title, *first, chosen_rate(study, pair, folder) or "", *repeated, _spread(results, _cost, 0)])
    head = ["2D encoder, 3D decoder", *(f"at {rate}" for rate in RATES[study]), "chosen", "MPJPE (mm)"]
    head += ["PA-MPJPE", "CPU s"]
    text = (
        "## Table 4 with equal loss scales, equal parts and tuned learning rates\n\n"
        "Here every decoding loss is a mean square that begins at about 1, and L_cl has the weight 0.04. Encoders have "
        "0.085 million parameters, decoders 0.41 (MLP) and 0.45 (diffusion). The diffusion decoder is "
        "[preconditioned](model.md); in two rows its `posterior_spread`, how far poses spread about their "
        "embedding, is 0.2, and in the last it has GFPose's parameterisation. The first seed chooses the best of "
        f"{len(RATES[study])} learning rates, and the other seeds repeat it. Runs take half the steps of the table "
        f"above.\n\n{_markdown(head, lines)}"
    )
    tuned = {pair: _tuned(study, pair, folder) for pair in TUNED_ROWS[study]}
    if all(len(held) == len(SEEDS) for held in tuned.values()):
        mean = {pair: statistics.mean(map(pose, held)) for pair, held in tuned.items()}

        def apart(one: str, other: str) -> str:
            return _apart(mean[one], mean[other])

        text += (
            f"\n\nWith equal care the error of the diffusion decoder is {apart('mlp-diffusion', 'mlp-mlp')} than that "
            f"of the MLP decoder behind the MLP encoder, and {apart('transformer-diffusion', 'transformer-mlp')} "
            f"behind the transformer; with the spread of 0.2, {apart('mlp-spread', 'mlp-mlp')} and "
            f"{apart('transformer-spread', 'transformer-mlp')}. The order of the first table was that of its loss "
            f"scales. At these sizes the error of the transformer is {apart('transformer-mlp', 'mlp-mlp')}, "
            f"{apart('transformer-diffusion', 'mlp-diffusion')} and {apart('transformer-spread', 'mlp-spread')} than "
            "that of the MLP encoder, and the error with GFPose's parameterisation "
            f"{apart('transformer-gfpose', 'transformer-diffusion')} than with the preconditioned one. "
            f"{_rates_chosen(study, folder)} This says nothing about the paper's sizes."
        )
    return text


def _hypothesis(sampler: str, name: str = "") -> _Read:
    def read(result: dict[str, Any]) -> float:
        held = result["result"]["hypotheses"][sampler]
        return held[name] if name else held

    return read


def _one_draw(sampler: str) -> _Read:
    """Root mean square error of one draw over that of the mean of all. The mean square error of the mean of ten
    includes a tenth of the draws' variance."""

    def read(result: dict[str, Any]) -> float:
        spread, error = (_hypothesis(sampler, name)(result) for name in ("spread", "error of the mean"))
        best = error**2 - spread**2 / 10
        return ((best + spread**2) / best) ** 0.5

    return read


_SAMPLERS = (("sde", "SDE, 50 steps"), ("ode", "ODE, 25 steps of two"))


def _drawn(folder: Path) -> str:
    head = ["", "ten drawn by", "one pose (`gfpose`)", "first", "mean", "best, by an oracle", "spread", "error"]
    head += ["one draw / best answer"]

    def line(title: str, sampler: str, words: str, results: list[dict[str, Any]]) -> list[str]:
        names = ("first", "mean", "best, by an oracle", "spread", "error of the mean")
        numbers = [_spread(results, _hypothesis(sampler, name)) for name in names]
        return [
            title,
            words,
            _spread(results, _hypothesis("deterministic")),
            *numbers,
            _spread(results, _one_draw(sampler), 2),
        ]

    lines = []
    for pair in TUNED_ROWS["table4-fair"]:
        results = _tuned("table4-fair", pair, folder)
        if results and "hypotheses" in results[0]["result"]:
            title = _FAIR_TITLES.get(pair, pair.replace("-", ", "))
            lines += [line(title, sampler, words, results) for sampler, words in _SAMPLERS]
    if not lines:
        return ""
    text = (
        "## Poses drawn from the diffusion decoders\n\nThis table uses every other frame of the table above. It has "
        "the MPJPE in mm, then the root mean square of the ten poses' spread and that of their mean's error. If truth "
        "x and draw y come from the same distribution given the input, with mean μ, then E|y - x|² = 2 E|x - μ|². A "
        "calibrated decoder therefore has 1.41 in the last column, which is a ratio of root mean squares, and ten "
        "draws spread by 0.95 of their mean's error. Below 1.3 a single draw spreads too little; the mean of ten can "
        f"come down to 1.05.\n\n{_markdown(head, lines)}"
    )
    spreads = {
        "0.05": _results("spread", "mlp-0.05", folder),
        "0.1": _results("spread", "mlp-0.1", folder),
        "0.2": _results("table4-fair", "mlp-spread-4e-3", folder),
        "0.4": _results("spread", "mlp-0.4", folder),
        "1": _results("table4-fair", "mlp-diffusion-4e-3", folder),
    }
    lines = [line(spread, "ode", "ODE, 25 steps of two", results) for spread, results in spreads.items() if results]
    means = {}
    for encoder in ("mlp", "transformer"):
        if results := _tuned("table4-fair", f"{encoder}-spread", folder):
            mean, one = (_hypothesis("ode", "mean"), _hypothesis("deterministic"))
            means[encoder] = statistics.mean(map(mean, results)) / statistics.mean(map(one, results))
    if len(means) == 2:
        text += (
            f"\n\nWith a `posterior_spread` of 0.2 the MPJPE of the mean of ten ODE draws is {means['mlp']:.2f} times "
            f"that of the one pose with the MLP encoder, and {means['transformer']:.2f} times with the transformer."
        )
    if len(lines) > 2:
        head[0] = "`posterior_spread`"
        text += (
            "\n\nWith a `posterior_spread` below 1, draws spread by nearly 520 mm times that number: in so short a "
            "training the network adds little to the linear part, and all joints of all poses spread by the same "
            "amount. The next table is for the MLP encoder at 4e-3:"
            f"\n\n{_markdown(head, lines)}"
        )
    held = [*spreads.values(), *(_tuned("table4-fair", pair, folder) for pair in ("mlp-spread", "transformer-spread"))]
    best, one = _hypothesis("ode", "best, by an oracle"), _hypothesis("deterministic")
    gains = [statistics.mean(map(one, results)) - statistics.mean(map(best, results)) for results in held if results]
    return (
        f"{text}\n\nEven the best of ten, which an oracle chooses, gains at most {max(0.0, *gains):.1f} mm over the "
        "one pose in these rows: with the right spread, such decoders know how large their error is overall, but not "
        "which other poses the input allows."
    )


_TABLE6 = {
    "no-contrast": ("no contrast", 41.3, 91.8),
    "pairs": ("pairs", 60.0, 65.5),
    "pairs-triplet": ("pairs + triplet", 40.9, 58.7),
    "pairs-triplet-token": ("pairs + triplet + modality token", 39.3, 57.5),
}


def _table6(folder: Path) -> str:
    lines = []
    for row, (title, lifting, image) in _TABLE6.items():
        results = _results("table6", row, folder)
        numbers = [
            _spread(results, _pose(path, m)) for path in ("2D to 3D", "image to 3D") for m in ("MPJPE", "PA-MPJPE")
        ]
        cosine = _spread(results, _pair("img-3d", "cosine"), 2)
        lines.append([title, *numbers, cosine, f"{lifting:.1f}", f"{image:.1f}"])
    anything = _results("table6", "no-contrast", folder)
    guess = [_spread(anything, _pose("mean pose, 3D", m)) for m in ("MPJPE", "PA-MPJPE")]
    lines.append(["mean pose", *guess, *guess, "", "", ""])
    head = ["aligned by", "GT 2D: MPJPE", "PA", "image: MPJPE", "PA", "cosine img-3D", "paper, GT 2D", "paper, image"]
    return (
        "## Table 6: what alignment changes\n\nAll three modalities are used, with pictures of 64 x 64. The row "
        "without contrast trains stage 3 for as many steps as the others take with pictures in total. The paper finds "
        "that pairs alone help images and harm lifting, that the triplet term restores lifting, and that the token "
        f"helps both.\n\n{_markdown(head, lines)}\n\nThese rows do not show what alignment is worth: their decoders "
        "have GFPose's parameterisation, which does not see errors at high noise, and all rows share one learning "
        "rate, which was not tuned. The next table removes both problems."
    )


_STEPS = (
    ("pairs", "no-contrast", "pairs, instead of no contrast"),
    ("pairs-triplet", "pairs", "the triplet term beside pairs"),
    ("pairs-triplet-token", "pairs-triplet", "the modality token"),
)


def _fair6(folder: Path) -> str:
    study, paths, lines = "table6-fair", ("2D to 3D", "image to 3D"), []
    tuned = {row: _tuned(study, row, folder) for row in TUNED_ROWS[study]}
    for row, results in tuned.items():
        numbers = [_spread(results, _pose(path, metric)) for path in paths for metric in ("MPJPE", "PA-MPJPE")]
        numbers += [_spread(results, _pair("img-3d", "cosine"), 2)]
        numbers += ["" if not results else f"{results[0]['parameters'] / 1e6:.3f}", _spread(results, _cost, 0)]
        first = _first_errors(study, row, paths, folder)
        lines.append([_TABLE6[row][0], *first, chosen_rate(study, row, folder) or "", *numbers])
    head = ["aligned by", *(f"at {rate}" for rate in RATES[study]), "chosen", "GT 2D: MPJPE", "PA"]
    head += ["image: MPJPE", "PA", "cosine img-3D", "M parameters", "CPU s"]
    text = (
        "## Table 6 with equal losses and care\n\nThe steps and batches are the same. Decoders are "
        "[preconditioned](model.md), decoding losses are mean squares that begin at about 1, and L_cl has the weight "
        f"0.04. For each row the first seed chooses the best of {len(RATES[study])} learning rates of stage 3, by the "
        "sum of both errors, from 2D and from pictures (the first columns); the other seeds repeat it. The row without "
        "contrast spends the pictures of stage 2 on stage 3, with 550 steps instead of 400."
        f"\n\n{_markdown(head, lines)}"
    )
    if not all(len(results) == len(SEEDS) for results in tuned.values()):
        return text

    def change(row: str, other: str, path: str) -> tuple[str, bool]:
        values, others = ([_pose(path, "MPJPE")(trial) for trial in tuned[name]] for name in (row, other))
        certain = max(values) < min(others) or min(values) > max(others)
        number = f"{statistics.mean(values) - statistics.mean(others):+.1f}"
        return (number if certain else f"({number})"), certain

    changes = [[words, *(change(row, other, path) for path in paths)] for row, other, words in _STEPS]
    rows_of = [[words, *(number for number, _ in found)] for words, *found in changes]
    certain = [
        f"{words} ({where})" for words, *found in changes for where, (_, sure) in zip(("2D", "pictures"), found) if sure
    ]
    shown = f"Outside the seeds' ranges: {'; '.join(certain)}." if certain else "All lie within the seeds' ranges."
    return (
        f"{text}\n\nThis is how each step changes the MPJPE in mm, in brackets if the seeds' ranges overlap:\n\n"
        f"{_markdown(['step', 'from GT 2D', 'from pictures'], rows_of)}\n\n{shown} {_rates_chosen(study, folder)} This "
        "says nothing about the paper's sizes, about training to convergence, or about batches of 180, which have more "
        "triplets. Rates of stages 1 and 2 are the same in all rows and were not tuned. "
        "[When does a tuple term pay?](../when-a-tuple-term-pays.md) says where one does."
    )


def _figures(folder: Path) -> str:
    lines = []
    for row, title in (("pairs", "pairs"), ("pairs-triplet", "pairs + triplet")):
        results = _results("fig5", row, folder)
        lines.append(
            [
                title,
                *(_spread(results, _pair(pair, "cosine"), 3) for pair in ("img-2d", "img-3d", "2d-3d")),
                *(_spread(results, _pair(pair, "recall@10", 100.0)) for pair in ("img-2d", "img-3d")),
            ]
        )
    head = ["aligned by", "cosine img-2D", "img-3D", "2D-3D", "recall@10 img-2D (%)", "img-3D (%)"]
    text = (
        "## Figures 5 and 6: the shared space\n\nStage 2 runs for 800 steps with batches of 32. The table shows "
        "held-out frames at its end; the curves show the training batches. The paper finds that the triplet term "
        "raises the cosines of matching embeddings to about 0.95, while with pairs alone they "
        f"fall.\n\n{_markdown(head, lines)}"
    )
    if lines[0][1] and lines[1][1]:
        text += (
            f"\n\nHere, too, it raises cosines with images, from {lines[0][1]} to {lines[1][1]}, but not retrieval: "
            f"recall@10 is {lines[1][4]} % with it and {lines[0][4]} % without."
        )
    if _results("fig5", "pairs", folder) or _results("fig5", "pairs-triplet", folder):
        text += (
            "\n\n![Cosine of matching embeddings over the steps of stage 2](../_static/studies-cosines.svg)"
            "\n\n![t-SNE of held-out embeddings](../_static/studies-tsne.png)"
        )
    return text


def _exact(folder: Path) -> str:
    titles = {
        "sampled": "B - 1 sampled negatives (paper)",
        "exact": "all B² - 1 with the anchor's image, same steps",
        "sampled-equal-time": "sampled, in the exact loss's time",
    }
    lines = []
    for row in rows("exact"):
        results = _results("exact", row, folder)
        lines.append(
            [
                titles[row],
                *(_spread(results, _pair(pair, "recall@1", 100.0)) for pair in ("img-2d", "img-3d")),
                *(_spread(results, _pair(pair, "recall@10", 100.0)) for pair in ("img-2d", "img-3d")),
                *(_spread(results, _pair(pair, "cosine"), 3) for pair in ("img-2d", "img-3d")),
                _spread(results, lambda result: result["config"]["stage2"]["steps"], 0),
                _spread(results, _cost, 0),
            ]
        )
    head = ["negatives of the triplet term", "R@1 img-2D (%)", "img-3D", "R@10 img-2D (%)", "img-3D", "cosine img-2D"]
    head += ["img-3D", "steps", "CPU s"]
    return (
        "## Does the exact denominator train better?\n\nThe paper does not ask this. We train stage 2 with batches of "
        "64 and measure retrieval among held-out frames. A step takes 0.19 s with the sampled and 0.17 s with the "
        "exact loss, nearly all of it in the image encoder, so equal steps take nearly equal time. Processor time "
        "varies by a quarter between runs because other work ran beside them, and so do the steps of the last row, "
        f"which are computed from it.\n\n{_markdown(head, lines)}"
    )


def _photos(folder: Path) -> str:
    results = [c for c in _results("table6", "pairs-triplet-token", folder) if "photographs" in c["result"]]

    def read(path: str, metric: str) -> _Read:
        return lambda result: result["result"]["photographs"]["paths"][path][metric]

    lines = [
        [path, *(_spread(results, read(path, metric)) for metric in ("MPJPE", "PA-MPJPE"))]
        for path in ("mean pose, 3D", "2D to 3D", "image to 3D")
    ]
    count = f"{results[0]['result']['photographs']['photographs']} crops" if results else "crops"
    return (
        f"## Real photographs\n\nWe test on {count} of one person on a treadmill, filmed by four calibrated cameras "
        "(Pose2Sim's demonstration, BSD-3-Clause, © 2022 perfanalytics); joints are pseudo-labels. The networks of "
        "Table 6's last row were trained on renders alone, so this shows how well they transfer to photographs."
        f"\n\n{_markdown(['path', 'MPJPE (mm)', 'PA-MPJPE (mm)'], lines)}"
    )


def _draw_curves(folder: Path) -> bytes | None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not any(_results("fig5", row, folder) for row in rows("fig5")):
        return None
    figure = Figure(figsize=(9, 2.9), facecolor="white")
    FigureCanvasAgg(figure)
    for axis, (pair, title) in zip(
        figure.subplots(1, 3, sharey=True), (("img_2d", "image - 2D"), ("img_3d", "image - 3D"), ("2d_3d", "2D - 3D"))
    ):
        for row, colour, label in (("pairs", "#d55e00", "pairs"), ("pairs-triplet", "#0072b2", "pairs + triplet")):
            for k, result in enumerate(_results("fig5", row, folder)):
                curve = result["result"]["curve"]
                axis.plot(
                    curve["step"],
                    curve[f"cosine_{pair}"],
                    color=colour,
                    linewidth=1.1,
                    alpha=0.75,
                    label=label if k == 0 else None,
                )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step of stage 2")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("cosine of matches")
    figure.axes[0].legend(fontsize=8)
    figure.tight_layout()
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "studies"}):  # gives the file the same names at every call
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _draw_map(folder: Path) -> bytes | None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {row: _results("fig5", row, folder)[:1] for row in rows("fig5")}
    if not any(shown.values()):
        return None
    figure = Figure(figsize=(9, 4.3), facecolor="white")
    FigureCanvasAgg(figure)
    for axis, (row, results) in zip(figure.subplots(1, 2), shown.items()):
        axis.set_title(row.replace("-", " + "), fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        for result in results:
            points = result["result"]["map"]
            for name, colour, marker in (("img", "#009e73", "s"), ("2d", "#d55e00", "o"), ("3d", "#0072b2", "^")):
                axis.scatter(
                    *zip(*points[name]),
                    s=9,
                    color=colour,
                    marker=marker,
                    alpha=0.7,
                    label=_MODALITIES[name],
                )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="lower center",
        ncols=3,
        fontsize=9,
        frameon=False,
        markerscale=2,
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
