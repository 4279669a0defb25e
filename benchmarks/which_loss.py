"""When does a tuple term pay? Small encoders, one budget, every loss; run with ``python -m benchmarks.which_loss``.

The plan was written before the runs. Every loss trains the same encoders on the same batches from the same start in
each world of :mod:`benchmarks.which_loss_data`. Each loss tries the same four temperatures once, is judged on
validation samples by the sum of both recalls at 1, and keeps the best one for three further seeds: with that
temperature fixed and, in the six main worlds, learned from there. Only the test samples of those seeds are reported.
The exact eigenvalue, ten times as expensive, uses the temperature of the sampled one and is trained in three worlds. A
temperature divides a cosine; the multilinear product of D numbers is multiplied by sqrt(D) first, which gives random
unit rows the spread of a cosine.

Measured: recall at 1 and at 10 of z from x and from y (the mean of both, by cosine); recall of z from x and y together,
by the best of five scores, chosen on the validation samples like the temperature, so that ranking and training are not
confounded; alignment (mean over the pairs) and uniformity (mean over the modalities); a linear probe on all three
embeddings; CPU time of a step, all losses in turns (``--times``).

Before the plan, a pilot with another seed ran five worlds at one temperature each, to size the runs and to find faults.
Because of the pilot two modalities are matched by the best score instead of the trained one, and the volume and the
eigenvalue with tied negatives are added to pairs, to separate the effects of the similarity and of the candidates.

The order is by importance, so that a stopped study has complete tables: the first six losses with fixed temperatures in
every world, the six main worlds before those that vary one of them; then the other losses in the main worlds; then
learned temperatures and the exact eigenvalue; then the rest.

Runs are rows of ``results/which_loss/runs.csv``. Existing runs are skipped, so the study can be stopped at any
time. Rows reach that file only with ``--record``.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

import multicontrast as mc
from benchmarks import cli, records
from benchmarks.environment import describe_environment
from benchmarks.which_loss_data import WORLDS, Description, Samples, World, missing_data

ROWS = Path(__file__).parent / "results" / "which_loss" / "runs.csv"
TIMES = ROWS.with_name("times.csv")
TEMPERATURES = (0.03, 0.07, 0.15, 0.3)
SEEDS = (0, 1, 2)
TUNING_SEED = 10
DIMENSION, HIDDEN, BATCH, STEPS, LEARNING_RATE = 16, 64, 128, 200, 5e-3
EXACT_IN = ("redundancy", "uniqueness", "synergy")

Loss = Callable[[Tensor, Tensor, Tensor, "float | Tensor", "Tensor | None"], Tensor]
Score = Callable[[Tensor, Tensor, Tensor], Tensor]


# --- losses: z is the anchor of every loss that has one, because z is retrieved ------------------------------------


def pairs(x: Tensor, y: Tensor, z: Tensor, tau: float | Tensor, present: Tensor | None) -> Tensor:
    return mc.trimodal_infonce(z, x, y, tau, alpha=0.0, present=present)


def pairs_with(similarity: str, negatives: str = "cyclic") -> Loss:
    def loss(x: Tensor, y: Tensor, z: Tensor, tau: float | Tensor, present: Tensor | None) -> Tensor:
        taus = _pair_taus(tau) | {"triplet": tau / DIMENSION**0.5} if similarity == "multilinear" else tau
        return mc.trimodal_infonce(z, x, y, taus, similarity=similarity, negatives=negatives, present=present)

    return loss


def _pair_taus(tau: float | Tensor) -> dict[tuple[int, int] | str, float | Tensor]:
    return dict.fromkeys(((0, 1), (0, 2), (1, 2)), tau)


def tied_both_ways(similarity: str, label_smoothing: float = 0.0) -> Loss:
    """GRAM's and TRIANGLE's: z_i against the tuples (x_j, y_j), and the tuple (x_i, y_i) against all z_j."""

    def loss(x: Tensor, y: Tensor, z: Tensor, tau: float | Tensor, present: Tensor | None) -> Tensor:
        options = {"similarity": similarity, "label_smoothing": label_smoothing, "present": present}
        return mc.triplet_infonce(z, x, y, tau, negatives="tied", symmetric=True, **options)

    return loss


def symile(x: Tensor, y: Tensor, z: Tensor, tau: float | Tensor, present: Tensor | None) -> Tensor:
    """Each modality is the anchor in turn, against one permutation of each of the others."""
    options = {"similarity": "multilinear", "negatives": "shared", "present": present}
    turns = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    total = x.new_zeros(())
    for turn in turns:
        rows = [(x, y, z)[modality] for modality in turn]
        options["present"] = None if present is None else present[:, [(1, 2, 0)[modality] for modality in turn]]
        total = total + mc.triplet_infonce(*rows, tau / DIMENSION**0.5, **options)
    return total / len(turns)


@dataclass(frozen=True)
class Contender:
    """A loss and its name on the page."""

    name: str
    loss: Loss
    first: bool = True


SAMPLED, EXACT = "pairs + eigenvalue", "pairs + eigenvalue, exact"
CONTENDERS = (
    Contender("pairs", pairs),
    Contender(SAMPLED, pairs_with("eigenvalue")),
    Contender("pairs + volume, tied", pairs_with("volume", "tied")),
    Contender("pairs + multilinear", pairs_with("multilinear", "shared")),
    Contender("volume (GRAM)", tied_both_ways("volume", label_smoothing=0.1)),
    Contender("multilinear (Symile)", symile),
    Contender("area (TRIANGLE)", tied_both_ways("area", label_smoothing=0.1), first=False),
    Contender("pairs + eigenvalue, tied", pairs_with("eigenvalue", "tied"), first=False),
    Contender("pairs + mean cosine", pairs_with("mean_cosine"), first=False),
    Contender("pairs + singular value", pairs_with("singular_value"), first=False),
    Contender(EXACT, pairs_with("eigenvalue", "all"), first=False),
)


# --- scores that match x_i and y_i together with z_j: unit rows in, (queries, candidates) out ----------------------


def _cosines(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b = x @ z.T
    return (x * y).sum(1, keepdim=True).expand_as(b), b, y @ z.T


def _sum(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x + y) @ z.T


def _eigenvalue(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return mc.linalg.gram3_eigmax(*_cosines(x, y, z))


def _volume(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    a, b, c = _cosines(x, y, z)
    return a * a + b * b + c * c - 2 * a * b * c  # falls as the volume grows


def _area(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    d, e, f = (1 - cosine for cosine in _cosines(x, y, z))
    return (d + e - f) ** 2 - 4 * d * e  # falls as the area grows


def _multilinear(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * y) @ z.T


SCORES: dict[str, Score] = {
    "sum of cosines": _sum,
    "eigenvalue": _eigenvalue,
    "volume": _volume,
    "area": _area,
    "multilinear": _multilinear,
}


# --- one run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained set of encoders: a line of the file of rows."""

    world: str
    loss: str
    temperature: str  # "tuning", "fixed" or "learned"
    tau: float  # at the start
    seed: int
    one_recall_1: float
    one_recall_10: float
    two_recall_1: float
    two_recall_10: float
    score: str  # the score of z given x and y
    alignment: float
    uniformity: float
    probe: float
    final_tau: float
    step_ms: float  # encoders, loss and optimizer; process CPU time
    device: str
    torch: str
    commit: str
    date: str


def key(row: Mapping[str, object]) -> tuple[str, ...]:
    """The key of a run in the plan."""
    return tuple(str(row[name]) for name in ("world", "loss", "temperature", "tau", "seed"))


class Training:
    """Encoders in training: the same start and the same batches for every loss of a seed."""

    def __init__(self, world: World, loss: Loss, tau: float, learned: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.part, self.loss = world.train, loss
        widths = [part.shape[1] for part in (self.part.x, self.part.y, self.part.z)]
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIMENSION)) for width in widths
        )
        self.temperature = mc.Temperature(tau, min=0.01, max=1.0, learnable=learned)
        parameters = [*self.encoders.parameters(), *self.temperature.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.batches = torch.Generator().manual_seed(seed)

    def steps(self, count: int) -> float:
        """Takes ``count`` steps; returns the milliseconds of CPU time for each."""
        began = time.process_time()
        part = self.part
        for _ in range(count):
            rows = torch.randperm(len(part), generator=self.batches)[:BATCH]
            present = None if part.present is None else part.present[rows][:, [2, 0, 1]]
            x, y, z = (encode(view[rows]) for encode, view in zip(self.encoders, (part.x, part.y, part.z)))
            self.optimizer.zero_grad()
            self.loss(x, y, z, self.temperature(), present).backward()
            self.optimizer.step()
            self.schedule.step()
        return 1e3 * (time.process_time() - began) / count


def train(world: World, loss: Loss, tau: float, learned: bool, seed: int) -> tuple[nn.ModuleList, float, float]:
    """Trained encoders, the temperature at the end, and milliseconds of CPU time for each step."""
    training = Training(world, loss, tau, learned, seed)
    milliseconds = training.steps(STEPS)
    return training.encoders, training.temperature.tau.item(), milliseconds


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The time of a step of one loss relative to one of pairs: a line of the file of times."""

    loss: str
    step_ms: float  # encoders, loss and optimizer; median, process CPU time
    over_pairs: float  # median of the ratios within a round
    over_pairs_p20: float
    over_pairs_p80: float
    rounds: int
    device: str
    torch: str
    commit: str
    date: str


def time_steps(rounds: int = 60, steps: int = 5) -> list[StepTime]:
    """Times steps of all losses in turns, in one process, because times from different days cannot be compared."""
    environment = describe_environment(torch.device("cpu"), "process CPU time")
    world = WORLDS[0].make(0)
    trainings = {contender.name: Training(world, contender.loss, 0.15, False, 0) for contender in CONTENDERS}
    for training in trainings.values():
        training.steps(2)
    taken: dict[str, list[float]] = {name: [] for name in trainings}
    order = list(trainings)
    shuffle = random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            taken[name].append(trainings[name].steps(steps))
    found = []
    for name, times in taken.items():
        ratios = torch.tensor(times) / torch.tensor(taken["pairs"])
        low, middle, high = ratios.quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
        found.append(
            StepTime(
                loss=name,
                step_ms=round(torch.tensor(times).median().item(), 3),
                over_pairs=round(middle, 3),
                over_pairs_p20=round(low, 3),
                over_pairs_p80=round(high, 3),
                rounds=rounds,
                device=environment.device,
                torch=environment.torch,
                commit=environment.commit,
                date=environment.date,
            )
        )
    return found


@torch.no_grad()
def judge(encoders: nn.ModuleList, world: World, samples: Samples, score: str | None) -> dict[str, float | str]:
    """The measures of the plan; without a ``score`` the best one is chosen, and named in the result."""
    x, y, z = _embed(encoders, samples)
    gallery = _one_of_each(samples.code)
    right = samples.code[:, None] == samples.code[gallery]
    one = [recalls(query @ z[gallery].T, right) for query in (x, y)]
    two = {name: recalls(SCORES[name](x, y, z[gallery]), right) for name in ((score,) if score else SCORES)}
    best = max(two, key=lambda name: two[name][0])
    couples = ((x, y), (x, z), (y, z))
    measured = {
        "one_recall_1": (one[0][0] + one[1][0]) / 2,
        "one_recall_10": (one[0][1] + one[1][1]) / 2,
        "two_recall_1": two[best][0],
        "two_recall_10": two[best][1],
        "alignment": sum(float(mc.metrics.alignment(*couple)) for couple in couples) / 3,
        "uniformity": sum(float(mc.metrics.uniformity(rows)) for rows in (x, y, z)) / 3,
        "probe": _probe(_embed(encoders, world.train), world.train.label, (x, y, z), samples.label),
    }
    return {name: round(value, 4) for name, value in measured.items()} | {"score": best}


def _one_of_each(code: Tensor) -> Tensor:
    """The gallery: the first row of each code."""
    number = torch.unique(code, return_inverse=True)[1]
    rows = torch.full((int(number.max()) + 1,), len(code))
    return rows.scatter_reduce_(0, number, torch.arange(len(code)), "amin")


def _embed(encoders: nn.ModuleList, samples: Samples) -> list[Tensor]:
    views = (samples.x, samples.y, samples.z)
    return [nn.functional.normalize(encode(view), dim=1) for encode, view in zip(encoders, views)]


def recalls(score: Tensor, right: Tensor) -> tuple[float, float]:
    """Recall at 1 and at 10; a tie is a miss."""
    best = score.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    above = ((score >= best) & ~right).sum(1)
    return float((above < 1).float().mean()), float((above < 10).float().mean())


def _probe(train: Sequence[Tensor], label: Tensor, test: Sequence[Tensor], expected: Tensor) -> float:
    """Accuracy on test labels of least squares on one-hot labels, with a ridge of 1e-3 times the samples."""
    classes = int(torch.maximum(label.max(), expected.max())) + 1
    features, held_out = (torch.cat((*part, torch.ones(len(part[0]), 1)), 1).double() for part in (train, test))
    target = nn.functional.one_hot(label, classes).double()
    ridge = 1e-3 * len(features) * torch.eye(features.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(features.T @ features + ridge, features.T @ target)
    return float(((held_out @ weights).argmax(1) == expected).double().mean())


# --- the plan and its runs -----------------------------------------------------------------------------------------


def read(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Runs on file, by their key."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {key(row): row for row in csv.DictReader(file)}


def tuned(done: Mapping[tuple[str, ...], Mapping[str, str]], world: str, loss: str) -> tuple[float, str]:
    """Temperature and score with the best sum of both recalls at 1 on validation samples."""
    name = SAMPLED if loss == EXACT else loss
    tried = [done[world, name, "tuning", str(tau), str(TUNING_SEED)] for tau in TEMPERATURES]
    best = max(tried, key=lambda row: float(row["one_recall_1"]) + float(row["two_recall_1"]))
    return float(best["tau"]), best["score"]


def missing_runs(path: Path, worlds: Sequence[Description]) -> Iterator[tuple[Description, Contender, str, float, int]]:
    """World, loss, kind of temperature, temperature and seed of each missing run, in the order of the plan."""
    main = [world for world in worlds if world.main]
    others = [world for world in worlds if not world.main]
    first = [contender for contender in CONTENDERS if contender.first]
    later = [contender for contender in CONTENDERS if not contender.first and contender.name != EXACT]
    exact = [contender for contender in CONTENDERS if contender.name == EXACT]
    stages = [([world], first, kind) for world in main + others for kind in ("tuning", "fixed")]
    stages += [([world], later, kind) for world in main for kind in ("tuning", "fixed")]
    stages += [(main, first, "learned"), ([world for world in main if world.name in EXACT_IN], exact, "fixed")]
    stages += [(main, later, "learned"), (others, later, "tuning"), (others, later, "fixed")]
    for chosen, contenders, kind in stages:
        for seed in (TUNING_SEED,) if kind == "tuning" else SEEDS:
            for world in chosen:
                for contender in contenders:
                    done = read(path)
                    taus = TEMPERATURES if kind == "tuning" else tuned(done, world.name, contender.name)[:1]
                    for tau in taus:
                        if (world.name, contender.name, kind, str(tau), str(seed)) not in done:
                            yield world, contender, kind, tau, seed


def run(path: Path, worlds: Sequence[Description], limit_seconds: float) -> None:
    """Does every missing run of the plan; stops after ``limit_seconds`` of CPU time."""
    environment = describe_environment(torch.device("cpu"), "process CPU time")
    began = time.process_time()
    make = lru_cache(maxsize=1)(lambda world, seed: world.make(seed))
    for world, contender, kind, tau, seed in missing_runs(path, worlds):
        if time.process_time() - began > limit_seconds:
            print("Time is up; run the same command to continue.")
            return
        made = make(world, seed)
        encoders, final, step = train(made, contender.loss, tau, kind == "learned", seed)
        score = None if kind == "tuning" else tuned(read(path), world.name, contender.name)[1]
        row = Run(
            world=world.name,
            loss=contender.name,
            temperature=kind,
            tau=tau,
            seed=seed,
            final_tau=round(final, 4),
            step_ms=round(step, 3),
            device=environment.device,
            torch=environment.torch,
            commit=environment.commit,
            date=environment.date,
            **judge(encoders, made, made.validation if kind == "tuning" else made.test, score),
        )
        records.append(path, [row])
        print(
            f"{world.name:20} {contender.name:26} {kind:8} {tau:5} {seed:3}: from one {row.one_recall_1:.3f}, "
            f"from two {row.two_recall_1:.3f} by {row.score}, {step:.1f} ms",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.which_loss", description=__doc__.split("\n")[0])
    parser.add_argument("--csv", type=Path, help="the file of rows; runs that it holds are skipped")
    cli.add_record(parser)
    parser.add_argument("--only", nargs="*", default=[], choices=[world.name for world in WORLDS], help="these worlds")
    parser.add_argument("--times", action="store_true", help="only time a step of every loss, all in turns")
    parser.add_argument("--cpu-minutes", type=float, default=90.0, help="stop after this much CPU time")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.times:
        records.append(cli.place(TIMES, options.record), time_steps())
        return 0
    worlds = []
    for world in WORLDS:
        if (needed := missing_data(world)) is not None:
            print(f"{world.name}: skipped; it needs {needed}", file=sys.stderr)
        elif not options.only or world.name in options.only:
            worlds.append(world)
    run(options.csv or cli.place(ROWS, options.record), worlds, 60 * options.cpu_minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
