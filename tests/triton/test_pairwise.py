"""Eq. (1) in tiles: the kernels against float64, straight from the equation."""

from __future__ import annotations

import pytest
import torch
from executors import EVERYWHERE, device, emulated, on
from torch import Tensor
from torch.nn.functional import normalize


def _definition(x: Tensor, y: Tensor, tau: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    logits = x @ y.mT / tau
    return logits.logsumexp(1), logits.logsumexp(0), logits.diagonal(offset)


def _check(x: Tensor, y: Tensor, tau: float, offset: int = 0, columns: bool = True, slack: float = 4.0) -> None:
    """``x``, ``y`` on any device; tolerances in eps of float32, of the largest logit or gradient."""
    from multicontrast.losses.triton.pairwise_triton import pairwise_backward, pairwise_forward

    inputs = [x.double().cpu().requires_grad_(), y.double().cpu().requires_grad_()]
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    expected = _definition(*inputs, temperature, offset)
    t = torch.tensor(tau, device=device())
    rows, cols, match = pairwise_forward(x, y, t, offset=offset, columns=columns)
    cotangents = [torch.rand(len(x)), torch.rand(len(y)) if columns else torch.zeros(len(y)), torch.rand(len(x))]
    matched = (torch.arange(len(x)) + offset >= 0) & (torch.arange(len(x)) + offset < len(y))
    cotangents[2][~matched] = float("nan")  # a row without a match: what comes for it must not matter
    total = sum(
        (value * cotangent).sum()
        for value, cotangent in zip(expected, (cotangents[0], cotangents[1], cotangents[2][matched]))
    )
    grads = torch.autograd.grad(total, [*inputs, temperature])
    on_device = [cotangent.to(device()) for cotangent in cotangents]
    results = pairwise_backward(
        x, y, t, rows, cols, on_device[0], on_device[1] if columns else None, on_device[2], offset=offset
    )
    eps = torch.finfo(torch.float32).eps
    scale = max(1.0, 1 / tau)
    assert match[~matched.to(device())].isnan().all()
    pairs = [(rows, expected[0]), (match[matched.to(device())], expected[2])] + (
        [(cols, expected[1])] if columns else []
    )
    for result, reference in pairs:
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double().cpu(), reference.detach(), rtol=0, atol=slack * eps * scale)
    for result, reference in zip(results, grads):
        # A weight errs by an eps of its logit, 1 / tau; the gradient holds another 1 / tau.
        tolerance = slack * eps * scale * max(scale, float(reference.abs().max()))
        torch.testing.assert_close(result.double().cpu(), reference, rtol=0, atol=tolerance)


def _unit(rows: int, depth: int) -> Tensor:
    return normalize(torch.randn(rows, depth, dtype=torch.float64), dim=-1).float().to(device())


@on(*EVERYWHERE)
def test_logsumexp_and_gradients_at_ragged_sizes():
    emulated(noise=1.0)
    _check(_unit(100, 70), _unit(63, 70), 0.07)
    _check(_unit(1, 5), _unit(1, 5), 0.5)


@on("interpreter", "sm_90", "gpu")
def test_columns_in_parts():
    """More tiles of columns than the device has programs for them, and a last part that is shorter."""
    from multicontrast.losses.triton import pairwise_triton as kernels

    assert kernels._parts(100, 333, 333) == (6, 64)
    assert kernels._parts(40_000, 40_000, 8) == (1, 40_000)
    assert kernels._parts(8192, 8192, 8) == (5, 1664)
    programs, kernels._PROGRAMS = kernels._PROGRAMS, 4
    try:
        assert kernels._parts(130, 333, 333) == (2, 192)
        _check(_unit(130, 20), _unit(333, 20), 0.1, offset=150)
    finally:
        kernels._PROGRAMS = programs
    _check(_unit(30, 20), _unit(333, 20), 0.1, offset=3)


@pytest.mark.parametrize("offset", [-3, 9])
@on("interpreter", "sm_80", "gpu")
def test_matches_off_the_diagonal_and_one_direction(offset):
    _check(_unit(40, 16), _unit(45, 16), 0.1, offset=offset)
    _check(_unit(40, 16), _unit(45, 16), 0.1, offset=offset, columns=False)


@on("interpreter", "sm_80", "gpu")
def test_strided_inputs():
    x = torch.full((80, 50), float("nan"), device=device())
    x[::2, 1::2] = _unit(40, 25)
    _check(x[::2, 1::2], _unit(25, 40).mT.contiguous().mT.mT[:40], 0.1)


@on("interpreter", "gpu")
def test_half_precision_is_computed_in_float32():
    _check(_unit(30, 20).half(), _unit(35, 20).half(), 0.1)
    _check(_unit(30, 20).bfloat16(), _unit(35, 20).bfloat16(), 0.1)


@on("sm_80", "sm_90", "gpu")
def test_high_precision_has_six_digits_and_highest_seven():
    x, y = _unit(64, 64), _unit(64, 64)
    for name, slack in (("highest", 4.0), ("high", 40.0)):
        torch.set_float32_matmul_precision(name)
        try:
            _check(x, y, 0.05, slack=slack)
        finally:
            torch.set_float32_matmul_precision("highest")


@on("interpreter", "gpu")
def test_nan_rows_bad_temperatures_and_no_rows():
    from multicontrast.losses.triton.pairwise_triton import pairwise_forward

    x, y = _unit(20, 8), _unit(24, 8)
    for tau in (0.0, -1.0, float("nan")):
        rows, columns, _ = pairwise_forward(x, y, torch.tensor(tau, device=device()))
        assert rows.isnan().all() and columns.isnan().all()
    x[3, 2] = float("nan")
    rows, columns, match = pairwise_forward(x, y, torch.tensor(0.1, device=device()))
    assert rows.isnan().sum() == 1 and rows[3].isnan() and columns.isnan().all() and match[3].isnan()
    rows, columns, match = pairwise_forward(x[:0], y[:0], torch.tensor(0.1, device=device()))
    assert rows.shape == columns.shape == match.shape == (0,)
    rows, columns, match = pairwise_forward(x, y[:0], torch.tensor(0.1, device=device()))
    assert (rows == -float("inf")).all() and match.isnan().all()


@on("sm_80", "sm_100", "gpu")
def test_offsets_beyond_32_bits():
    from multicontrast.losses.triton.pairwise_triton import pairwise_forward

    depth = 2**25  # rows of 128 MiB of which one column is touched: the last starts at 2**31 elements
    x = torch.empty(65 * depth, device=device()).as_strided((65, 4), (depth, 1))
    near = _unit(65, 4)
    x.copy_(near)
    tau = torch.tensor(0.1, device=device())
    for result, expected in zip(pairwise_forward(x, near, tau), pairwise_forward(near, near, tau)):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
