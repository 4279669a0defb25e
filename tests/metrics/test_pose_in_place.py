"""PA-MPJPE in place, for values alone, equals the differentiable form, and leaves what it reads alone."""

from __future__ import annotations

import pose_families
import pytest
import torch
from torch import Tensor

from multicontrast import metrics
from multicontrast.metrics import _procrustes_in_place, procrustes

DTYPES = [torch.float32, torch.float64]
OPTIONS = [{}, {"scale": False}, {"allow_reflection": True}]


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


@pytest.fixture
def in_place(monkeypatch):
    """How many chunks went in place."""
    chunks = []

    def measure(*arguments):
        for chunk in _procrustes_in_place.measure(*arguments):
            chunks.append(chunk.rows)
            yield chunk

    monkeypatch.setattr(procrustes, "measure", measure)
    return chunks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_both_forms_give_one_value(options, dtype, in_place):
    eps = torch.finfo(dtype).eps
    for size in (2, 3):
        pred, target = poses(200, size=size, dtype=dtype)
        for mask in (None, weights(200) > 0, weights(200)):
            in_place.clear()
            short = metrics.pa_mpjpe(pred, target, mask=mask, reduction="none", **options)
            assert len(in_place) == 1
            tracked = pred.clone().requires_grad_()
            long = metrics.pa_mpjpe(tracked, target, mask=mask, reduction="none", **options)
            assert len(in_place) == 1 and long.requires_grad
            torch.testing.assert_close(short, long.detach(), rtol=64 * eps, atol=16 * eps, equal_nan=True)
            assert short.isnan().sum() == (0 if mask is None else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distances_of_every_joint_by_both_forms(dtype):
    """What accumulating classes and the best of several hypotheses read; hidden joints have the distance 0 in both."""
    eps = torch.finfo(dtype).eps
    pred, target = poses(50, dtype=dtype)
    for mask in (None, weights(50)):
        short = procrustes.aligned_distances("test", pred, target, mask, None)
        long = procrustes.aligned_distances("test", pred.clone().requires_grad_(), target, mask, None)
        torch.testing.assert_close(short.errors, long.errors.detach(), rtol=64 * eps, atol=16 * eps)
        if mask is not None:
            assert (short.errors[mask == 0] == 0).all()


@pytest.mark.parametrize("joints", [1, 2, 17])
@pytest.mark.parametrize("masked", [False, True])
def test_a_chunk_knows_nothing_of_its_neighbours(joints, masked, monkeypatch, in_place):
    """Chunks of three poses, the last of one; NaN, huge and collapsed poses beside others."""
    pred, target = poses(10, joints)
    mask = weights(10, joints) if masked else None
    pred[2] = float("nan")
    pred[3], target[4] = pred[3] * 1e30, target[4] * 1e-30
    pred[5] = 7.0
    whole = metrics.pa_mpjpe(pred, target, mask=mask, reduction="none")
    in_place.clear()
    monkeypatch.setattr(
        _procrustes_in_place, "_BYTES", 3 * (7 * joints + _procrustes_in_place._ROTATION) * target.element_size()
    )
    parts = metrics.pa_mpjpe(pred, target, mask=mask, reduction="none")
    assert in_place == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    alone = torch.stack(
        [
            metrics.pa_mpjpe(p, t, mask=None if mask is None else mask[i], reduction="none")
            for i, (p, t) in enumerate(zip(pred, target))
        ]
    )
    unit = torch.finfo(target.dtype).eps * target.abs().amax((-2, -1))
    for other in (whole, alone):
        assert torch.equal(parts.isnan(), other.isnan())
        assert ((parts - other).abs().nan_to_num() <= 16 * unit).all(), (parts - other) / unit


def test_hidden_joints_may_hold_anything():
    pred, target = poses(20)
    mask = weights(20) > 0
    expected = metrics.pa_mpjpe(pred, target, mask=mask, reduction="none")
    for filler in (float("nan"), float("inf"), -float("inf"), 3e38):
        spoiled = pred.masked_fill(~mask[..., None], filler), target.masked_fill(~mask[..., None], -filler)
        found = metrics.pa_mpjpe(*spoiled, mask=mask, reduction="none")
        assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_read_is_left_alone_and_what_is_returned_is_kept(dtype):
    pred, target = poses(30, dtype=dtype)
    for mask in (None, weights(30).to(dtype)):
        before = [tensor.clone() for tensor in (pred, target, mask) if tensor is not None]
        first = metrics.pa_mpjpe(pred, target, mask=mask, reduction="none")
        joints = procrustes.aligned_distances("test", pred, target, mask, None).errors
        kept = first.clone(), joints.clone()
        metrics.pa_mpjpe(target, 2 * pred.flip(0), mask=mask)
        assert all(torch.equal(a, b) for a, b in zip(before, (pred, target, mask)))
        assert torch.equal(first.nan_to_num(-1), kept[0].nan_to_num(-1)) and torch.equal(joints, kept[1])


def test_any_layout_of_the_input():
    pred, target = poses(24)
    mask = weights(24)
    expected = metrics.pa_mpjpe(pred, target, mask=mask, reduction="none")
    spread = torch.empty(24, 17, 3, 2)[..., 1].copy_(pred)
    turned = target.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not spread.is_contiguous() and not turned.is_contiguous()
    found = metrics.pa_mpjpe(spread, turned, mask=mask.mT.contiguous().mT, reduction="none")
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    parts = [tensor.unflatten(0, (2, 3, 4)) for tensor in (spread, turned, mask)]
    batch = metrics.pa_mpjpe(*parts[:2], mask=parts[2], reduction="none")
    assert batch.shape == (2, 3, 4)
    torch.testing.assert_close(batch.flatten(), expected, rtol=0, atol=0, equal_nan=True)
    # One target and one mask for all, by `expand`.
    one = metrics.pa_mpjpe(pred, target[:1].expand_as(pred), mask=mask[0], reduction="none")
    each = metrics.pa_mpjpe(pred, target[:1].repeat(24, 1, 1), mask=mask[:1].repeat(24, 1), reduction="none")
    assert torch.equal(one, each)
    assert metrics.pa_mpjpe(pred[0], target[0], mask=mask[0]).shape == ()


def test_a_gradient_for_the_weights_and_one_forward_are_differentiable(in_place):
    pred, target = poses(4, dtype=torch.float64)
    mask = torch.ones(4, 17, dtype=torch.float64, requires_grad=True)
    assert metrics.pa_mpjpe(pred, target, mask=mask).requires_grad
    with torch.no_grad():
        metrics.pa_mpjpe(pred, target, mask=mask)
    assert len(in_place) == 1


@pytest.mark.parametrize("family", pose_families.FAMILIES)
def test_both_forms_on_hard_poses(family):
    """Each is held to its condition against the definition in `test_pose_accuracy`; here, both finite or neither."""
    for pred, target, mask in pose_families.items(family, torch.float32, count=2):
        short = metrics.pa_mpjpe(pred, target, mask=mask)
        long = metrics.pa_mpjpe(pred.clone().requires_grad_(), target, mask=mask)
        assert short.isfinite() and long.isfinite()


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
