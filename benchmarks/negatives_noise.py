"""The noise of a sampled loss's gradient, by scheme of negatives.

    python -m benchmarks.negatives_noise            # measures, about five minutes, and draws the picture
    python -m benchmarks.negatives_noise --draw     # draws the rows on file

It takes many draws of the triplet loss with the largest eigenvalue on a fixed batch of three noisy views.
``noise`` is the root mean square distance of a draw's gradient (w.r.t. all embeddings) from the mean of its scheme,
divided by the length of the mean of ``permutation``. ``bias`` is the distance of the two means divided by the same
length, minus ``chance``, the distance that remains after that many draws. ``weights`` is the noise of the gradient
w.r.t. the weights of linear encoders, in which anchors average. The scheme ``batch`` is for comparison: the noise of
other batches of the same size, each with one draw of ``cyclic``.

Rows are added to ``results/negatives/noise.csv``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

import multicontrast as mc
from benchmarks import cli, driver, pictures, records
from benchmarks.environment import describe_environment

ROWS = driver.RESULTS / "negatives" / "noise.csv"
SCHEMES = ("permutation", "cyclic", "shared")
TAU = 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scheme on one fixed batch; a line of the CSV."""

    along: str
    scheme: str
    batch: int
    dim: int
    negatives: int
    cosine: float  # mean of the matches
    noise: float
    bias: float
    chance: float
    weights: float
    draws: int
    torch: str
    commit: str
    date: str


@dataclass(frozen=True)
class Setting:
    along: str
    batch: int = 64
    dim: int = 64
    spread: float = 1.2  # of the views around their common part
    negatives: int | None = None


SETTINGS = (
    *(Setting("batch", batch=batch) for batch in (16, 32, 64, 128, 256)),
    *(Setting("dim", dim=dim) for dim in (8, 16, 32, 64, 256)),
    *(Setting("cosine", spread=spread) for spread in (0.3, 0.6, 1.2, 2.5, 10.0)),
    *(Setting("negatives", negatives=count) for count in (2, 4, 8, 16, 32, 63)),
)


def views(setting: Setting, generator: torch.Generator) -> Tensor:
    """``(3, B, D)``: noisy views of the same samples."""
    shared = torch.randn(setting.batch, setting.dim, generator=generator)
    return shared + setting.spread * torch.randn(3, setting.batch, setting.dim, generator=generator)


def gradient(rows: Tensor, index: Tensor) -> Tensor:
    """The gradient w.r.t. the embeddings, ``(3, B, D)``."""
    leaf = rows.clone().requires_grad_()
    (found,) = torch.autograd.grad(mc.triplet_infonce(*leaf.unbind(0), TAU, negatives=index), leaf)
    return found


def by_weights(found: Tensor, rows: Tensor) -> Tensor:
    """The gradient w.r.t. the weights ``(3, D, D)`` of linear encoders that are the identity, one for each modality."""
    return found.mT @ rows


class Moments:
    """Running mean and spread of gradients."""

    def __init__(self) -> None:
        self.count, self.total, self.square = 0, torch.zeros(()), 0.0

    def add(self, found: Tensor) -> None:
        self.count += 1
        self.total = self.total + found.double()
        self.square += float(found.double().square().sum())

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> float:
        """The mean square distance from the mean, estimated without bias."""
        return (self.square - self.count * float(self.mean.square().sum())) / (self.count - 1)


def measure_setting(setting: Setting, draws: int, seed: int) -> Iterator[dict[str, float | str]]:
    """The rows of every scheme on one batch."""
    generator = torch.Generator().manual_seed(seed)
    rows = views(setting, generator)
    unit = torch.nn.functional.normalize(rows, dim=-1)
    cosine = sum(float((unit[m] * unit[n]).sum(-1).mean()) for m, n in ((0, 1), (0, 2), (1, 2))) / 3
    options = {"num_negatives": setting.negatives, "generator": generator}
    moments = {scheme: (Moments(), Moments()) for scheme in (*SCHEMES, "batch")}
    for _ in range(draws):
        for scheme in SCHEMES:
            found = gradient(rows, mc.sample_tuples(setting.batch, scheme=scheme, **options))  # type: ignore[arg-type]
            moments[scheme][0].add(found)
            moments[scheme][1].add(by_weights(found, rows))
        other = views(setting, generator)
        found = gradient(other, mc.sample_tuples(setting.batch, scheme="cyclic", **options))  # type: ignore[arg-type]
        moments["batch"][1].add(by_weights(found, other))
    first = moments["permutation"]
    length, length_by_weights = (float(first[k].mean.norm()) for k in (0, 1))
    for scheme, (embeddings, weights) in moments.items():
        row = {"scheme": scheme, "cosine": cosine, "weights": math.sqrt(weights.variance) / length_by_weights}
        if scheme != "batch":
            chance = (embeddings.variance + first[0].variance) / draws
            apart = float((embeddings.mean - first[0].mean).square().sum())
            row |= {
                "noise": math.sqrt(embeddings.variance) / length,
                "bias": math.sqrt(max(0.0, apart - chance)) / length,
                "chance": math.sqrt(chance) / length,
            }
        yield row


# The law of a single tuple ------------------------------------------------------------------------------------------


def cyclic_law(batch: int) -> dict[tuple[int, int], Fraction]:
    """Probability of each pair of shifts of a negative of three modalities under ``cyclic``, by enumeration.

    A round is a one-to-one map from the shifts of one modality to those of the other, in a random order. The pair
    (0, 0) is the positive. If the map has it, it is left out; otherwise the last pair is left out.
    """
    counted: Counter[tuple[int, int]] = Counter()
    for image in itertools.permutations(range(batch)):
        pairs = list(enumerate(image))
        if image[0] == 0:
            counted.update(dict.fromkeys(pairs[1:], batch))  # each with probability 1 / (B - 1)
        else:
            counted.update(dict.fromkeys(pairs, batch - 1))  # each with probability 1 / B
    total = sum(counted.values())
    return {pair: Fraction(count, total) for pair, count in counted.items()}


def total_variation(batch: int) -> Fraction:
    """The distance of that law from Algorithm 1 without the positive, where all B^2 - 1 pairs are equally likely."""
    alike = Fraction(1, batch**2 - 1)
    return sum((abs(probability - alike) for probability in cyclic_law(batch).values()), Fraction(0)) / 2


# Running --------------------------------------------------------------------------------------------------------------


def measure(draws: int, seed: int, report: Callable[[str], object] = str) -> list[Row]:
    """Every scheme at every setting."""
    environment = describe_environment(torch.device("cpu"), "")
    rows = []
    for setting in SETTINGS:
        report(str(setting))
        for found in measure_setting(setting, draws, seed):
            figures = {key: float(f"{value:.4g}") for key, value in found.items() if not isinstance(value, str)}
            rows.append(
                Row(
                    along=setting.along, scheme=str(found["scheme"]), batch=setting.batch, dim=setting.dim,
                    negatives=setting.negatives or setting.batch - 1, draws=draws, torch=environment.torch,
                    commit=environment.commit, date=environment.date,
                    **{"noise": math.nan, "bias": math.nan, "chance": math.nan} | figures,
                )
            )  # fmt: skip
    return rows


def read(path: Path = ROWS) -> list[Row]:
    """The rows of the latest run on file."""
    convert = {column.name: {"float": float, "int": int}.get(str(column.type), str) for column in fields(Row)}
    return [Row(**{name: convert[name](text) for name, text in record.items()}) for record in records.latest(path)]


def main(arguments: list[str] | None = None) -> int:
    """Measure, record the rows, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.negatives_noise", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--folder", type=Path, help="folder for the picture")
    parser.add_argument("--draw", action="store_true", help="measure nothing; draw the rows on file")
    cli.add_record(parser)
    options = parser.parse_args(arguments)
    options.csv = options.csv or cli.place(ROWS, options.record or options.draw)
    options.folder = options.folder or cli.place(pictures.FOLDER, options.record)
    torch.set_num_threads(1)
    if not options.draw:
        records.append(options.csv, measure(options.draws, options.seed, lambda text: print(text, flush=True)))
    rows = read(options.csv)
    print(f"{pictures.save(pictures.noise(rows), rows, options.folder / pictures.NOISE)} drawn")
    for batch in (2, 3, 4, 8):
        print(f"total variation at B = {batch}: {total_variation(batch)} = {float(total_variation(batch)):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
