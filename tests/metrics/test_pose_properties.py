"""Properties of the pose metrics, over random poses."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from multicontrast import metrics

SEEDS = st.integers(0, 2**31)


def draw(seed: int, items: int = 3, joints: int = 8) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    spread = 0.05 + torch.rand(items, 1, 3, generator=generator, dtype=torch.float64)  # flat and long ones too
    target = spread * torch.randn(items, joints, 3, generator=generator, dtype=torch.float64)
    noise = torch.rand(items, 1, 1, generator=generator, dtype=torch.float64)
    return target + noise * torch.randn(target.shape, generator=generator, dtype=torch.float64), target, generator


def rotations(items: int, generator: torch.Generator) -> Tensor:
    return metrics.procrustes_align(
        torch.randn(items, 5, 3, generator=generator, dtype=torch.float64),
        torch.randn(items, 5, 3, generator=generator, dtype=torch.float64),
    ).rotation


def well_conditioned(pred: Tensor, target: Tensor) -> bool:
    x, y = pred - pred.mean(-2, keepdim=True), target - target.mean(-2, keepdim=True)
    matrix = y.mT @ x
    s = torch.linalg.svdvals(matrix)
    gap = s[:, 1] + torch.linalg.det(matrix).sign() * s[:, 2]
    return bool((gap > 1e-4 * s[:, 0]).all())


@given(SEEDS, st.floats(0.01, 100.0))
def test_pa_mpjpe_does_not_see_similarities_of_the_prediction(seed, scale):
    pred, target, generator = draw(seed)
    assume(well_conditioned(pred, target))
    shift = 10 * torch.randn(3, 1, 3, generator=generator, dtype=torch.float64)
    moved = scale * pred @ rotations(3, generator).mT + shift
    torch.testing.assert_close(
        metrics.pa_mpjpe(moved, target, reduction="none"),
        metrics.pa_mpjpe(pred, target, reduction="none"),
        rtol=1e-8,
        atol=1e-10,
    )


@given(SEEDS)
def test_rigid_motions_of_both_poses_change_nothing(seed):
    pred, target, generator = draw(seed)
    assume(well_conditioned(pred, target))
    turn = rotations(3, generator)
    shift = torch.randn(3, 1, 3, generator=generator, dtype=torch.float64)
    moved = [pose @ turn.mT + shift for pose in (pred, target)]
    for metric in (metrics.mpjpe, metrics.pa_mpjpe):
        torch.testing.assert_close(metric(*moved), metric(pred, target), rtol=1e-8, atol=1e-10)


@given(SEEDS)
def test_the_order_of_the_joints_does_not_matter(seed):
    pred, target, generator = draw(seed)
    mask = torch.rand(3, 8, generator=generator) > 0.3
    mask[:, :3] = True
    assume(well_conditioned(pred * mask[..., None], target * mask[..., None]))
    order = torch.randperm(8, generator=generator)
    for metric in (metrics.mpjpe, metrics.pa_mpjpe, metrics.n_mpjpe, metrics.epe):
        torch.testing.assert_close(
            metric(pred[:, order], target[:, order], mask=mask[:, order]),
            metric(pred, target, mask=mask),
            rtol=1e-9,
            atol=1e-11,
        )


@given(SEEDS)
def test_hidden_joints_are_joints_that_are_not_there(seed):
    pred, target, _ = draw(seed)
    mask = torch.ones(8, dtype=torch.bool)
    mask[5:] = False
    hidden = pred.clone()
    hidden[:, 5:] = float("nan")
    for metric in (metrics.mpjpe, metrics.n_mpjpe, metrics.epe, metrics.pa_mpjpe):
        torch.testing.assert_close(
            metric(hidden, target, mask=mask), metric(pred[:, :5], target[:, :5]), rtol=1e-9, atol=1e-11
        )


@given(SEEDS)
def test_more_freedom_never_costs_squared_error(seed):
    """similarity <= rigid <= translation <= as it is, in the mean of squares, which is what alignment minimises."""
    pred, target, _ = draw(seed)

    def squared(pose):
        return (pose - target).square().sum((-2, -1))

    similar = squared(metrics.procrustes_align(pred, target).aligned)
    rigid = squared(metrics.procrustes_align(pred, target, scale=False).aligned)
    mirror = squared(metrics.procrustes_align(pred, target, allow_reflection=True).aligned)
    shifted = squared(pred - pred.mean(-2, keepdim=True) + target.mean(-2, keepdim=True))
    slack = 1e-12 * target.square().sum((-2, -1))
    assert (mirror <= similar + slack).all()
    assert (similar <= rigid + slack).all()
    assert (rigid <= shifted + slack).all()
    assert (shifted <= squared(pred) + slack).all()


@given(SEEDS, st.integers(-60, 60), st.integers(-60, 60), st.sampled_from([torch.float32, torch.float64]))
def test_scaling_by_powers_of_two_is_exact(seed, up, down, dtype):
    pred, target, _ = draw(seed)
    pred, target = pred.to(dtype), target.to(dtype)
    for metric in (metrics.mpjpe, metrics.pa_mpjpe, metrics.n_mpjpe):
        assert torch.equal(metric(pred * 2.0**up, target * 2.0**up), metric(pred, target) * 2.0**up)
    for metric in (metrics.pa_mpjpe, metrics.n_mpjpe):  # that scale the prediction themselves
        assert torch.equal(metric(pred * 2.0**down, target * 2.0**up), metric(pred, target) * 2.0**up)
    weight = torch.rand(3, 8, dtype=dtype) + 0.25
    assert torch.equal(metrics.pa_mpjpe(pred, target, mask=weight), metrics.pa_mpjpe(pred, target, mask=weight * 8))


@given(SEEDS)
def test_bounds_between_metrics(seed):
    pred, target, _ = draw(seed)
    joint = metrics.min_mpjpe(torch.stack((pred, pred.flip(0))), target, mode="joint", reduction="none")
    pose = metrics.min_mpjpe(torch.stack((pred, pred.flip(0))), target, reduction="none")
    single = metrics.mpjpe(pred, target, reduction="none")
    assert (joint <= pose + 1e-12).all() and (pose <= single + 1e-12).all()
    low, high = (metrics.pck(pred, target, threshold=t) for t in (0.2, 0.4))
    assert 0 <= low <= high <= 1
    assert metrics.cps(pred, target) <= 299
    similarity = metrics.oks(pred, target, 1.0, sigmas=(0.1,) * 8)
    assert 0 <= similarity <= 1


@given(SEEDS)
def test_scipy_agrees_where_conventions_coincide(seed):
    """Its disparity is the squared error of standardised poses, with reflections: 1 - (sum s)^2 over both sizes."""
    scipy_spatial = __import__("scipy.spatial", fromlist=["procrustes"])
    pred, target, _ = draw(seed, items=1)
    _, _, disparity = scipy_spatial.procrustes(target[0].numpy(), pred[0].numpy())
    aligned = metrics.procrustes_align(pred, target, allow_reflection=True).aligned
    residual = (aligned - target).square().sum()
    size = (target - target.mean(1, keepdim=True)).square().sum()
    np.testing.assert_allclose(float(residual / size), disparity, rtol=1e-8, atol=1e-12)
