"""PA-MPJPE works in chunks and does not change its inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multicontrast import metrics
from multicontrast.metrics import procrustes

DTYPES = [torch.float32, torch.float64]


def poses(count: int, joints: int = 17, size: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(joints)
    target = torch.randn(count, joints, size, generator=generator, dtype=torch.float64)
    pred = target + 0.3 * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    return pred.to(dtype), target.to(dtype)


def weights(count: int, joints: int = 17) -> Tensor:
    """From 1e-3 to 1e3, a fifth of them 0, all of them for the second pose."""
    generator = torch.Generator().manual_seed(5)
    weight = 10 ** (6 * torch.rand(count, joints, generator=generator) - 3)
    weight[torch.rand(count, joints, generator=generator) < 0.2] = 0.0
    weight[1] = 0.0
    return weight


@pytest.mark.parametrize("joints", [1, 2, 17])
@pytest.mark.parametrize("masked", [False, True])
def test_a_piece_knows_nothing_of_its_neighbours(joints, masked, monkeypatch):
    """Pieces of three poses, the last of one; NaN, huge and collapsed poses beside others; values and gradients."""
    pred, target = poses(10, joints)
    mask = weights(10, joints) if masked else None
    pred[2] = float("nan")
    pred[3], target[4] = pred[3] * 1e30, target[4] * 1e-30
    pred[5] = 7.0

    def measure(*rows: int) -> tuple[Tensor, Tensor]:
        tracked = pred[list(rows)].requires_grad_()
        part = None if mask is None else mask[list(rows)]
        values = metrics.pa_mpjpe(tracked, target[list(rows)], mask=part, reduction="none")
        return values.detach(), torch.autograd.grad(values.nansum(), tracked)[0]

    whole, gradient = measure(*range(10))
    monkeypatch.setattr(procrustes, "_PIECE_BYTES", 3 * 3 * joints * target.element_size())
    assert [len(piece) for piece, *_ in procrustes._split(pred, target, mask)] == [3, 3, 3, 1]
    parts, pieces_gradient = measure(*range(10))
    alone = torch.cat([measure(row)[0] for row in range(10)])
    unit = torch.finfo(target.dtype).eps * target.abs().amax((-2, -1))
    for other in (whole, alone):
        assert torch.equal(parts.isnan(), other.isnan())
        assert ((parts - other).abs().nan_to_num() <= 16 * unit).all(), (parts - other) / unit
    torch.testing.assert_close(pieces_gradient, gradient, equal_nan=True)


def test_hidden_joints_may_hold_anything():
    pred, target = poses(20)
    mask = weights(20) > 0
    expected = metrics.pa_mpjpe(pred, target, mask=mask, reduction="none")
    for filler in (float("nan"), float("inf"), -float("inf"), 3e38):
        spoiled = pred.masked_fill(~mask[..., None], filler), target.masked_fill(~mask[..., None], -filler)
        tracked = spoiled[0].requires_grad_()
        found = metrics.pa_mpjpe(tracked, spoiled[1], mask=mask, reduction="none")
        assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))
        (gradient,) = torch.autograd.grad(found.nansum(), tracked)
        assert gradient.isfinite().all() and (gradient[~mask] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_read_is_left_alone_and_what_is_returned_is_kept(dtype):
    pred, target = poses(30, dtype=dtype)
    turned = pred.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # laid out as the pieces are
    for mask in (None, weights(30).to(dtype)):
        before = [tensor.clone() for tensor in (turned, target, mask) if tensor is not None]
        first = metrics.pa_mpjpe(turned, target, mask=mask, reduction="none")
        kept = first.clone()
        metrics.pa_mpjpe(target, 2 * turned.flip(0), mask=mask)
        assert all(torch.equal(a, b) for a, b in zip(before, (turned, target, mask)))
        assert torch.equal(first.nan_to_num(-1), kept.nan_to_num(-1))


def test_any_layout_of_the_input():
    pred, target = poses(24)
    mask = weights(24)
    expected = metrics.pa_mpjpe(pred, target, mask=mask, reduction="none")
    spread = torch.empty(24, 17, 3, 2)[..., 1].copy_(pred)
    turned = target.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not spread.is_contiguous() and not turned.is_contiguous()
    found = metrics.pa_mpjpe(spread, turned, mask=mask.mT.contiguous().mT, reduction="none")
    torch.testing.assert_close(found, expected, equal_nan=True)
    parts = [tensor.unflatten(0, (2, 3, 4)) for tensor in (spread, turned, mask)]
    batch = metrics.pa_mpjpe(*parts[:2], mask=parts[2], reduction="none")
    assert batch.shape == (2, 3, 4)
    torch.testing.assert_close(batch.flatten(), expected, equal_nan=True)
    # One target and one mask for all, by `expand`.
    one = metrics.pa_mpjpe(pred, target[:1].expand_as(pred), mask=mask[0], reduction="none")
    each = metrics.pa_mpjpe(pred, target[:1].repeat(24, 1, 1), mask=mask[:1].repeat(24, 1), reduction="none")
    assert torch.equal(one, each)
    assert metrics.pa_mpjpe(pred[0], target[0], mask=mask[0]).shape == ()


def test_a_gradient_for_the_weights():
    pred, target = poses(4, dtype=torch.float64)
    mask = torch.rand(4, 17, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: metrics.pa_mpjpe(pred, target, mask=w), mask)


def test_a_compiled_call_takes_any_number_of_poses():
    """One graph, without pieces in it, whatever the batch."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(metrics.pa_mpjpe, backend=counter, fullgraph=True, dynamic=True)
    for count in (5, 9, 20_000):
        pred, target = poses(count)
        torch.testing.assert_close(compiled(pred, target), metrics.pa_mpjpe(pred, target))
    assert counter.frame_count == 1
    assert counter.op_count < 400
