"""Eq. (1) in tiles: the kernels against float64, straight from the equation, and the properties of tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from executors import EVERYWHERE, device, emulated, kind, on
from test_fused import PAIRS, _check, _embeddings, _terms
from torch import Tensor


def _tiled(pairs=PAIRS, symmetric=True, **options):
    return _terms(pairs, 0.0, "", symmetric)._replace(tiled=True, **options)


@contextmanager
def _with(**values: object) -> Iterator[None]:
    """Other constants of the module."""
    from multicontrast.losses.triton import pairs_triton

    before = {name: getattr(pairs_triton, name) for name in values}
    for name, value in values.items():
        setattr(pairs_triton, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(pairs_triton, name, value)


@contextmanager
def _in_tiles(**values: object) -> Iterator[int]:
    """Tiles as they are, and the 64 rows of the gradient's; the interpreter, which is as slow as there are rows, has
    tiles of a quarter of that, all proportions the same."""
    from multicontrast.losses.triton import pairs_triton as kernels

    if kind() != "interpreter":
        with _with(**values):
            yield 64
        return
    small = kernels.Tuning(kernels._tile(16))
    sizes = dict.fromkeys(("_TILE_SUMS", "_TILE_GRADIENT", "_MASKED_GRADIENT"), small)
    rows = {"_tile_rows": lambda gradient: 16 if gradient else 32, "_TILES": [kernels._tile(32)]}
    with _with(**values, **sizes, **rows):
        yield 16


@contextmanager
def _deterministically() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@on(*EVERYWHERE, slow=("sm_80", "sm_100"))
def test_values_and_gradients_at_ragged_sizes():
    emulated(noise=1.0)
    with _in_tiles() as rows:
        _check(_embeddings(rows + 6, 37), 0.1, _tiled(PAIRS[:2]))
    _check(_embeddings(2, 5, 2), 0.5, _tiled(PAIRS[:1]))


@on("interpreter", "sm_90", "gpu", slow=("sm_90",))
def test_parts_groups_and_slabs():
    """Several parts of the columns, groups of strips of which the last is short, and slabs of rows."""
    from multicontrast.losses.triton import pairs_triton as kernels

    assert kernels._parts(512, 65_536) == (16, 4096)
    assert kernels._parts(1, 100) == (1, 128)
    assert kernels._parts(3, 333) == (3, 128)
    with _in_tiles(_GROUP=2) as rows, _with(_PARTIAL=5 * rows):
        _check(_embeddings(4 * rows + rows // 2 + 2, 11, 2), 0.2, _tiled(PAIRS[:1]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@on("interpreter", "sm_80", "gpu", slow=("sm_80",))
def test_masks_weights_and_one_direction(reduction):
    with _in_tiles() as rows:
        size = 30 if rows == 64 else 18  # one tile, or two
        present = torch.rand(size, 3) < 0.7
        ids, weight = torch.randint(9, (size,)), torch.rand(size)
        _check(_embeddings(size, 7), 0.3, _tiled(), None, present, ids, weight, reduction)
        _check(_embeddings(size, 7, 2), 0.3, _tiled(PAIRS[:1], symmetric=False), reduction=reduction)
        with _deterministically():
            _check(_embeddings(size, 7), 0.3, _tiled(PAIRS[1:]), None, present, ids, weight, reduction)
            _check(_embeddings(size, 7, 2), 0.3, _tiled(PAIRS[:1], symmetric=False), reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@on("interpreter", "sm_80", "sm_90", "gpu", slow=("sm_80",))
def test_half_precision(dtype):
    with _in_tiles() as rows:
        size = 40 if rows == 64 else 18
        _check([x.to(dtype) for x in _embeddings(size, 20)], 0.1, _tiled(PAIRS[:2]))


@on("interpreter", "gpu")
def test_strided_rows_and_rows_of_any_scale():
    x = torch.full((40, 50), float("nan"), device=device())
    x[::2, 1::2] = _embeddings(20, 25)[0]
    _check([x[::2, 1::2], _embeddings(25, 20)[0].mT], 0.1, _tiled(PAIRS[:1]))
    scales = torch.logspace(-15, 15, 20).to(device())[:, None]
    xs = _embeddings(20, 25, 2)
    results = []
    for factor in (1, scales):
        points = [(x * factor).bfloat16().float().requires_grad_() for x in xs]
        import multicontrast as mc

        loss = mc.pairwise_infonce(*points, 0.1, tiled=True)
        results.append((loss, *(grad * factor for grad in torch.autograd.grad(loss, points))))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(one.detach().abs().max()))


@on("sm_80", "sm_90", "gpu", slow=("sm_90",))
def test_high_precision_has_six_digits_and_highest_seven():
    _check(_embeddings(64, 64, 2), 0.05, _tiled(PAIRS[:1]), slack=4.0)
    _check(_embeddings(64, 64, 2), 0.05, _tiled(PAIRS[:1], tf32=True), slack=40.0)


def _run(xs: list[Tensor], tau: float, **options: object) -> tuple[Tensor, ...]:
    """Loss, and gradients by the embeddings and by tau."""
    import multicontrast as mc

    xs, t = [x.detach().requires_grad_() for x in xs], torch.tensor(tau, device=device(), requires_grad=True)
    loss = mc.pairwise_infonce(*xs, t, tiled=True, reduction="sum", **options)
    return loss.detach(), *torch.autograd.grad(loss, [*xs, t])


@on("interpreter", "sm_80", "gpu", slow=("sm_80",))
def test_negligible_tiles_are_left_out_and_nothing_is_missed():
    """Clusters of a tile each, far apart at this temperature."""
    with _in_tiles() as rows:
        centres = torch.linalg.qr(torch.randn(8, 8))[0][:2].repeat_interleave(rows, 0)
        xs = [(centres + 0.03 * torch.randn(2 * rows, 8)).to(device()) for _ in range(2)]
        for tau in (0.12, 0.01):  # the other cluster's weights are e^-8 of the own, and e^-100
            found = _run(xs, tau)
            with _deterministically():
                whole = _run(xs, tau)
            for result, expected in zip(found, whole):
                scale = float(expected.abs().max())
                torch.testing.assert_close(result, expected, rtol=0, atol=2e-6 * scale)
        # What is left out is seen where too much is: every tile that has no positive.
        with _with(_NEGLIGIBLE=float("inf")):
            wrong = _run(xs, 0.5)
            missed = _run(xs, 0.01)
        right = _run(xs, 0.5)
    assert float((wrong[1] - right[1]).abs().max()) > 1e-2 * float(right[1].abs().max())
    torch.testing.assert_close(wrong[3], right[3])  # the gradient of tau is whole all the same
    torch.testing.assert_close(missed[1], found[1], rtol=0, atol=2e-6 * float(found[1].abs().max()))


@on("sm_80", "gpu")
def test_deterministic_algorithms_repeat_themselves_to_the_bit():
    xs = _embeddings(70, 5, 2)
    runs = []
    for seed in (1, 2):
        emulated(atomic_seed=seed, sched_seed=seed)
        with _deterministically():
            runs.append(_run(xs, 0.1))
    emulated()
    assert all(torch.equal(one, other) for one, other in zip(*runs))


@on("interpreter", "sm_80", "gpu", slow=("sm_80",))
def test_a_tiny_temperature():
    """At tau = 1e-8 a softmax has one entry: its gradient is that of the nearest, not a multiple of it."""
    xs = _embeddings(40, 16, 2)
    units = [torch.nn.functional.normalize(x.double().cpu(), dim=1) for x in xs]
    cosines = units[0] @ units[1].mT
    _, dx, _, _ = _run(xs, 1e-8)
    own = torch.eye(40, dtype=torch.float64)
    by_row = torch.nn.functional.one_hot(cosines.argmax(1), 40) - own
    by_column = torch.nn.functional.one_hot(cosines.argmax(0), 40).mT - own
    raw = (by_row + by_column) / 2 @ units[1] / 1e-8
    expected = (raw - (raw * units[0]).sum(1, keepdim=True) * units[0]) / xs[0].double().cpu().norm(dim=1, keepdim=True)
    torch.testing.assert_close(dx.double().cpu(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@on("interpreter", "gpu")
def test_nan_rows_and_bad_temperatures():
    xs = _embeddings(70 if kind() == "gpu" else 18, 8, 2)
    tau = torch.tensor(-0.1, device=device())
    import multicontrast as mc

    compiled = torch.compile(lambda tau: mc.pairwise_infonce(*xs, tau, tiled=True), backend="eager")
    assert compiled(tau).isnan()  # in eager mode on a CPU it raises
    xs[0][3, 2] = float("nan")
    loss, dx, dy, dtau = _run(xs, 0.1)
    assert loss.isnan() and dtau.isnan() and dy.isnan().all() and dx[3].isnan().all()


@on("sm_80", "gpu")
def test_offsets_beyond_32_bits():
    from multicontrast._launch_triton import launch
    from multicontrast.losses.triton import pairs_triton as kernels

    depth, first = 8, 2**28  # the rows touched begin at 2**31 elements; the rest is never looked at
    size = first + 64
    near = torch.randn(64, depth).to(device())
    x = torch.empty(size, depth, device=device())
    scale = torch.empty(2, size, device=device())
    x[first:], scale[0, first:], scale[1, :64] = near, 1, 1
    tau = torch.tensor(0.5, device=device())
    rows = [torch.empty(size, device=device()) for _ in range(3)]
    columns = [torch.empty(1, 64, device=device()) for _ in range(2)]
    launch(
        kernels._tile_sums_kernel, lambda _: (1,), kernels._TILE_SUMS,
        x, near, scale, tau, tau, tau, *rows, *columns, 0, 1, first, size, depth, 1, 1, 64,
        MODALITIES=2, HAS_PRESENT=False, HAS_IDS=False, GROUP=1, BLOCK_ROWS=64, PRECISION=_precision(),
    )  # fmt: skip
    expected = (near @ near.mT / 0.5).logsumexp(1)
    torch.testing.assert_close(rows[0][first:] + rows[1][first:].log(), expected, rtol=1e-5, atol=1e-4)


def _precision() -> str:
    from multicontrast._launch_triton import dot_precision

    return dot_precision(False)
