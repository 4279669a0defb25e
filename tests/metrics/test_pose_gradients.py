"""Derivatives of the pose metrics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multicontrast import metrics


def regular(seed: int = 0, size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(3, 6, size, generator=generator, dtype=torch.float64)
    pred = target + 0.3 * torch.randn(3, 6, size, generator=generator, dtype=torch.float64)
    return pred.requires_grad_(), target.requires_grad_()


WEIGHT = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.25], dtype=torch.float64)
FUNCTIONS = {
    "mpjpe": metrics.mpjpe,
    "mpjpe, root": lambda *a, **o: metrics.mpjpe(*a, root=0, **o),
    "epe": metrics.epe,
    "n_mpjpe": metrics.n_mpjpe,
    "pa_mpjpe": metrics.pa_mpjpe,
    "pa_mpjpe, rigid": lambda *a, **o: metrics.pa_mpjpe(*a, scale=False, **o),
    "pa_mpjpe, reflections": lambda *a, **o: metrics.pa_mpjpe(*a, allow_reflection=True, **o),
    "accel_error": metrics.accel_error,
    "mpjve": metrics.mpjve,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_gradcheck(name, weighted, size):
    mask = WEIGHT if weighted else None
    function = FUNCTIONS[name]
    assert torch.autograd.gradcheck(lambda p, t: function(p, t, mask=mask), regular(size=size), fast_mode=True)


def test_gradcheck_of_a_mirrored_pose():
    pred, target = regular()
    mirrored = (pred.detach() * torch.tensor([-1.0, 1.0, 1.0])).requires_grad_()
    assert torch.autograd.gradcheck(metrics.pa_mpjpe, (mirrored, target))


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"allow_reflection": True}], ids=str)
def test_gradcheck_of_the_alignment(options):
    for mask in (None, WEIGHT):

        def align(pred, target, mask=mask):
            aligned, rotation, scale, translation = metrics.procrustes_align(pred, target, mask=mask, **options)
            return (aligned, rotation, translation) if options.get("scale") is False else (aligned, rotation, scale)

        assert torch.autograd.gradcheck(align, regular(), fast_mode=True)


def test_the_gradient_is_that_through_the_singular_value_decomposition():
    pred, target = regular()
    (ours,) = torch.autograd.grad(metrics.pa_mpjpe(pred, target), pred)
    x, y = pred - pred.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    u, s, vh = torch.linalg.svd(y.mT @ x)
    sign = torch.ones_like(s)
    sign[:, 2] = torch.linalg.det(u @ vh).detach()
    scale = (s * sign).sum(-1) / x.square().sum((1, 2))
    aligned = scale[:, None, None] * x @ ((u * sign[:, None]) @ vh).mT
    (theirs,) = torch.autograd.grad((aligned - y).norm(dim=-1).mean(), pred)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_exact_pose_has_a_finite_gradient(name):
    target = regular()[1].detach()
    pred = target.clone().requires_grad_()
    FUNCTIONS[name](pred, target).backward()
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hidden_joints_and_hidden_poses_have_no_gradient(name):
    pred, target = regular()
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[1] = False
    with torch.no_grad():
        pred[~mask] = float("nan")
    FUNCTIONS[name](pred, target, mask=mask).backward()
    assert pred.grad.isfinite().all() and target.grad.isfinite().all()
    assert (pred.grad[~mask] == 0).all() and (target.grad[~mask] == 0).all()


def test_mpjpe_can_be_differentiated_twice():
    assert torch.autograd.gradgradcheck(metrics.mpjpe, regular())


def test_a_descent_on_pa_mpjpe_reaches_the_shape():
    """From random poses, degenerate ones among them, the loss falls and stays finite."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 9, 3, generator=generator)
    pred = torch.randn(4, 9, 3, generator=generator)
    pred[0] = 0.0  # collapsed
    pred[1, :, 1:] = 0.0  # on a line
    pred[2] = target[2] * torch.tensor([-1.0, 1.0, 1.0])  # mirrored
    pred.requires_grad_()
    optimizer = torch.optim.Adam([pred], lr=0.05)
    start = metrics.pa_mpjpe(pred, target, reduction="none").detach()
    for _ in range(150):
        optimizer.zero_grad()
        metrics.pa_mpjpe(pred, target).backward()
        assert pred.grad.isfinite().all()
        optimizer.step()
    end = metrics.pa_mpjpe(pred, target, reduction="none").detach()
    assert (end[1:] < 0.2 * start[1:]).all(), (start, end)
