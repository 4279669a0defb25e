"""Pairs of poses that are hard for an alignment, each as ``(pred, target, weight or None)`` of one item.

All are drawn in float64 and rounded to the type under test; references take the rounded values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Item = tuple[Tensor, Tensor, Tensor | None]
JOINTS = 17


def items(family: str, dtype: torch.dtype, count: int = 4, seed: int = 0) -> Iterator[Item]:
    """``count`` items of the family, rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        pred, target, *weight = FAMILIES[family](generator)
        yield pred.to(dtype), target.to(dtype), weight[0] if weight else None


def _pose(g: torch.Generator, joints: int = JOINTS) -> Tensor:
    """A pose in millimetres, longer than wide, as people are."""
    return torch.randn(joints, 3, generator=g, dtype=torch.float64) * torch.tensor([150.0, 120.0, 400.0]).double()


def _noise(g: torch.Generator, like: Tensor, size: float = 30.0) -> Tensor:
    return size * torch.randn(like.shape, generator=g, dtype=torch.float64)


def _turn(g: torch.Generator) -> Tensor:
    """A random rotation, from a unit quaternion."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(4, generator=g, dtype=torch.float64), dim=0).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


def _moved(g: torch.Generator, pose: Tensor) -> Tensor:
    return 0.7 * pose @ _turn(g).mT + 300 * torch.randn(3, generator=g, dtype=torch.float64)


def _flat(pose: Tensor) -> Tensor:
    return pose * torch.tensor([1.0, 1.0, 0.0]).double()


def _line(pose: Tensor, width: float = 0.0) -> Tensor:
    return pose * torch.tensor([width, width, 1.0]).double()


def _noisy(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _pose(g)
    return _moved(g, target + _noise(g, target)), target


def _mirrored(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _pose(g)
    return _moved(g, target * torch.tensor([-1.0, 1.0, 1.0]).double()), target


def _mirrored_gap(gap: float) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    """A mirrored pose whose two smallest variances differ by ``gap``: its best rotation is about to jump."""

    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        axes = torch.linalg.qr(torch.randn(JOINTS, 3, generator=g, dtype=torch.float64))[0]
        axes = torch.linalg.qr(axes - axes.mean(0))[0]  # centred columns, orthonormal
        target = 100 * axes * torch.tensor([3.0, (1 + gap) ** 0.5, 1.0]).double()
        pred = target * torch.tensor([1.0, 1.0, -1.0]).double()
        return _moved(g, pred + _noise(g, pred, 1e-3 * gap)), target @ _turn(g).mT

    return draw


def _planar(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _flat(_pose(g))
    return _moved(g, target + _noise(g, target)), target


def _planar_both(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _flat(_pose(g))
    return _moved(g, _flat(target + _noise(g, target))), target @ _turn(g).mT


def _collinear(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _line(_pose(g))
    return _moved(g, target + _noise(g, target)), target @ _turn(g).mT


def _collinear_exactly(g: torch.Generator) -> tuple[Tensor, ...]:
    """Both on an axis: the covariance has rank 1 to the last bit."""
    target = _line(_pose(g)).round()
    return (_line(target + _noise(g, target))).round(), target


def _collinear_both(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _line(_pose(g))
    return _moved(g, _line(target + _noise(g, target))), target @ _turn(g).mT


def _near_line(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _line(_pose(g), 1e-4)
    return _moved(g, _pose(g)), target


def _collapsed(g: torch.Generator) -> tuple[Tensor, ...]:
    return torch.full((JOINTS, 3), 12.5, dtype=torch.float64), _pose(g)


def _collapsed_to_zero(g: torch.Generator) -> tuple[Tensor, ...]:
    return torch.zeros(JOINTS, 3, dtype=torch.float64), _pose(g)


def _collapsed_target(g: torch.Generator) -> tuple[Tensor, ...]:
    return _pose(g), torch.full((JOINTS, 3), -7.25, dtype=torch.float64)


def _coincident(g: torch.Generator) -> tuple[Tensor, ...]:
    point = torch.randn(2, 1, 3, generator=g, dtype=torch.float64)
    return point[0].expand(JOINTS, 3), point[1].expand(JOINTS, 3)


def _joints(count: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        return _pose(g, count), _pose(g, count)

    return draw


def _exact_similarity(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _pose(g)
    return _moved(g, target), target


def _identical(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _pose(g).float().double()
    return target, target


def _orthogonal(g: torch.Generator) -> tuple[Tensor, ...]:
    """Poses without any correlation: the covariance is exactly 0, and the best scale too."""
    pred, target = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    pred[0, 0], pred[1, 0], target[2, 1], target[3, 1] = 1.0, -1.0, 2.0, -2.0
    return pred * 2.0 ** torch.randint(-3, 4, (), generator=g), target


def _offset(g: torch.Generator) -> tuple[Tensor, ...]:
    target = _pose(g)
    return _moved(g, target + _noise(g, target)) - 1e6, target + 1e6


def _scaled(pred: float, target: float) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        x, y = _noisy(g)
        return x * pred, y * target

    return draw


def _masked(g: torch.Generator) -> tuple[Tensor, ...]:
    pred, target = _noisy(g)
    mask = torch.rand(JOINTS, generator=g) > 0.4
    mask[:4] = torch.tensor([False, True, True, True])
    pred = pred.masked_fill(~mask[:, None], torch.nan)
    return pred, target.masked_fill(~mask[:, None], torch.inf), mask


def _masked_to_one(g: torch.Generator) -> tuple[Tensor, ...]:
    pred, target = _noisy(g)
    mask = torch.zeros(JOINTS, dtype=torch.bool)
    mask[5] = True
    return pred, target, mask


def _weighted(g: torch.Generator) -> tuple[Tensor, ...]:
    weight = (1 + 7 * torch.rand(JOINTS, generator=g)).round() / 8
    weight[3] = 0.0
    return *_noisy(g), weight


def _heavy(g: torch.Generator) -> tuple[Tensor, ...]:
    """Weights whose sum is over float32's range."""
    return *_noisy(g), 1e37 * (6 + torch.rand(JOINTS, generator=g, dtype=torch.float64)).float()


def _unlike_weights(g: torch.Generator) -> tuple[Tensor, ...]:
    """A joint of next to no weight comes first and lies far away; the other weights span twelve powers of ten."""
    pred, target = _noisy(g)
    pred[0], target[0] = pred[0] - 1e5, target[0] + 1e5
    weight = 10 ** (12 * torch.rand(JOINTS, generator=g) - 6)
    weight[0] = 1e-12
    return pred, target, weight


def _symmetric(g: torch.Generator) -> tuple[Tensor, ...]:
    """A cube, turned: all singular values are equal, and any frame of the three axes is as good as another."""
    cube = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)]).double()
    return _moved(g, 300 * cube), 300 * cube


FAMILIES: dict[str, Callable[[torch.Generator], tuple[Tensor, ...]]] = {
    "noisy": _noisy,
    "mirrored": _mirrored,
    "mirrored, gap 1e-1": _mirrored_gap(1e-1),
    "mirrored, gap 1e-3": _mirrored_gap(1e-3),
    "mirrored, gap 1e-5": _mirrored_gap(1e-5),
    "planar target": _planar,
    "planar": _planar_both,
    "collinear target": _collinear,
    "collinear on an axis": _collinear_exactly,
    "collinear": _collinear_both,
    "nearly collinear target": _near_line,
    "collapsed prediction": _collapsed,
    "prediction all zero": _collapsed_to_zero,
    "collapsed target": _collapsed_target,
    "coincident joints": _coincident,
    "one joint": _joints(1),
    "two joints": _joints(2),
    "three joints": _joints(3),
    "exact similarity": _exact_similarity,
    "identical": _identical,
    "uncorrelated": _orthogonal,
    "offset 1e6 mm": _offset,
    "tiny": _scaled(1e-12, 1e-12),
    "subnormal": _scaled(1e-40, 1e-30),
    "huge": _scaled(1e28, 1e25),
    "unlike scales": _scaled(1e-20, 1e10),
    "masked": _masked,
    "one visible joint": _masked_to_one,
    "weighted": _weighted,
    "weights of 1e37": _heavy,
    "unlike weights": _unlike_weights,
    "joints of a cube": _symmetric,
}
