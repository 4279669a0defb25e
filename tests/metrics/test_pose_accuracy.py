"""PA-MPJPE and its relatives against 60-digit arithmetic, on poses that break other implementations."""

from __future__ import annotations

import pose_definitions as definitions
import pose_families
import pytest
import torch

from multicontrast.metrics import mpjpe, n_mpjpe, pa_mpjpe, procrustes_align

DTYPES = [torch.float32, torch.float64]
BAR = 16  # eps x size x (1 + condition)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", pose_families.FAMILIES)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"allow_reflection": True}], ids=str)
def test_pa_mpjpe_is_exact_to_rounding(family, dtype, options):
    eps = torch.finfo(dtype).eps
    for pred, target, weight in pose_families.items(family, dtype, count=2 if options else 4):
        if options.get("scale") is False and family in ("unlike scales", "huge", "subnormal"):
            continue  # a rigid fit of a pose to one 1e30 times its size has no size of its own
        arrays = definitions.array(pred), definitions.array(target), None if weight is None else weight.tolist()
        truth = definitions.pa_mpjpe(*arrays, **options)
        size = definitions.extent(arrays[1], arrays[2])
        if options.get("scale") is False:
            size = max(size, definitions.extent(arrays[0], arrays[2]))
        for leaf in (pred, pred.clone().requires_grad_()):  # values alone are computed in place
            ours = pa_mpjpe(leaf, target, mask=weight, **options)
            assert ours.dtype == dtype
            error, unit = abs(ours.item() - truth), BAR * eps * size
            if error > unit:  # the condition costs six more references, and few poses need it
                unit *= 1 + definitions.pa_condition(*arrays, **options)
            assert error <= unit, (ours.item(), float(truth))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_nearly_collinear_poses_are_as_exact_as_their_covariance(dtype):
    """The one family whose condition is that of the 3x3 covariance: the turn about a line that both poses follow."""
    generator = torch.Generator().manual_seed(1)
    for width in (1e-2, 1e-3, 1e-4):
        target = torch.randn(17, 3, generator=generator, dtype=torch.float64) * torch.tensor([width, width, 1.0])
        target = target.to(dtype)
        arrays = definitions.array(target), definitions.array(target)
        singular = definitions.align(*arrays).singular
        condition = float(singular[0] / (singular[1] + singular[2]))  # of the turn, which moves joints by `width`
        size = definitions.extent(arrays[1])
        assert pa_mpjpe(target, target).item() <= BAR * torch.finfo(dtype).eps * size * (1 + condition * width)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", pose_families.FAMILIES)
def test_the_alignment_is_that_of_the_definition(family, dtype):
    eps = torch.finfo(dtype).eps
    for pred, target, weight in pose_families.items(family, dtype, count=1):
        arrays = definitions.array(pred), definitions.array(target), None if weight is None else weight.tolist()
        truth = definitions.align(*arrays)
        fit = procrustes_align(pred, target, mask=weight)
        identity = torch.eye(3, dtype=torch.float64)
        rotation = fit.rotation.double()
        torch.testing.assert_close(rotation @ rotation.mT, identity, atol=BAR * eps, rtol=0)
        assert torch.linalg.det(rotation).item() == pytest.approx(1.0, abs=BAR * eps)

        first, second, third = truth.singular
        gap = second + third
        if gap > 1e-3 * first:
            rows = [[float(v) for v in truth.rotation[a, :]] for a in range(3)]
            expected = torch.tensor(rows, dtype=torch.float64)
            tolerance = BAR * eps * float(first / gap)
            torch.testing.assert_close(rotation, expected, atol=tolerance, rtol=0)
        if torch.isfinite(fit.scale):  # a float32 scale of 1e30 / 1e-40 is not
            assert fit.scale.item() == pytest.approx(float(truth.scale), rel=2 * BAR * eps, abs=1e-44)
        size = definitions.extent(arrays[1], arrays[2])
        offset = abs(arrays[1][list(truth.joints)]).max()
        moved = fit.aligned.double()[list(truth.joints)].numpy()
        expected = [[float(v) for v in joint] for joint in truth.joints.values()]
        if gap > 1e-3 * first:
            slack = BAR * eps * (size * float(1 + first / gap) + offset)
            assert abs(moved - expected).max() <= slack


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", pose_families.FAMILIES)
def test_distances_without_alignment_are_exact_to_rounding(family, dtype):
    for pred, target, weight in pose_families.items(family, dtype, count=2):
        x, y = definitions.array(pred), definitions.array(target)
        weights = [1.0] * len(x) if weight is None else [float(w) for w in weight]
        used = [j for j, w in enumerate(weights) if w != 0]
        largest = max(abs(x[used]).max(), abs(y[used]).max())
        bar = BAR * torch.finfo(dtype).eps * largest
        assert abs(mpjpe(pred, target, mask=weight).item() - definitions.mpjpe(x, y, weights)) <= bar
        # One scale for a pose divides by its square: the error is relative to the target, whatever the prediction.
        bar = BAR * torch.finfo(dtype).eps * abs(y[used]).max()
        assert abs(n_mpjpe(pred, target, mask=weight).item() - definitions.n_mpjpe(x, y, weights)) <= bar


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", pose_families.FAMILIES)
def test_gradients_are_finite(family, dtype):
    for pred, target, weight in pose_families.items(family, dtype, count=2):
        for metric in (pa_mpjpe, mpjpe, n_mpjpe):
            pred, target = pred.detach().clone().requires_grad_(), target.detach().clone().requires_grad_()
            metric(pred, target, mask=weight).backward()
            assert pred.grad.isfinite().all(), metric
            assert target.grad.isfinite().all(), metric
