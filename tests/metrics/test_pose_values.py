"""Pose metrics against loops over joints: masks, weights, roots, averages, and each convention papers differ in."""

from __future__ import annotations

import math

import numpy as np
import pose_definitions as definitions
import pytest
import torch
from torch import Tensor

from multicontrast import metrics

ITEMS, JOINTS = 12, 17


def poses(seed: int = 0, size: int = 3, items: int = ITEMS, noise: float = 60.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = 300 * torch.randn(items, JOINTS, size, generator=generator, dtype=torch.float64)
    scale = noise * torch.rand(items, 1, 1, generator=generator, dtype=torch.float64)
    return target + scale * torch.randn(items, JOINTS, size, generator=generator, dtype=torch.float64), target


def masks(kind: str, items: int = ITEMS) -> Tensor | None:
    generator = torch.Generator().manual_seed(5)
    if kind == "none":
        return None
    if kind == "one for all":
        return torch.rand(JOINTS, generator=generator) > 0.3
    visible = torch.rand(items, JOINTS, generator=generator) > 0.3
    visible[3] = False
    if kind == "bool":
        return visible
    return visible * torch.rand(items, JOINTS, generator=generator, dtype=torch.float64)


MASKS = ["none", "one for all", "bool", "weights"]


def as_lists(mask: Tensor | None, items: int = ITEMS) -> list[list[float]]:
    return [[1.0] * JOINTS] * items if mask is None else mask.double().expand(items, JOINTS).tolist()


def check(function, expected, weights, pooled=None, **options):
    """All three reductions, from the items' values; NaN where nothing is visible."""
    each = function(reduction="none", **options)
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
    seen = [value for value, weight in zip(expected, weights) if any(weight)]
    mean, total = (sum(seen) / len(seen), sum(seen)) if pooled is None else pooled
    assert function(**options).item() == pytest.approx(mean)
    assert function(reduction="sum", **options).item() == pytest.approx(total)


@pytest.mark.parametrize("root", [None, 0, -1, (1, 4)], ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", [2, 3])
def test_mpjpe_and_epe(kind, root, size):
    pred, target = poses(size=size)
    mask = masks(kind)
    weights = as_lists(mask)
    joints = [definitions.distances(p, t, root) for p, t in zip(pred.numpy(), target.numpy())]
    expected = [definitions.weighted_mean(d, w) for d, w in zip(joints, weights)]
    check(lambda **o: metrics.mpjpe(pred, target, mask=mask, root=root, **o), expected, weights)
    total = sum(w * d for ds, ws in zip(joints, weights) for d, w in zip(ds, ws))
    pooled = total / sum(map(sum, weights)), total
    check(lambda **o: metrics.epe(pred, target, mask=mask, root=root, **o), expected, weights, pooled)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("root", [None, 0], ids=str)
def test_n_mpjpe(kind, root):
    pred, target = poses()
    mask = masks(kind)
    weights = as_lists(mask)
    expected = [
        float(definitions.n_mpjpe(definitions.rooted(p, root), definitions.rooted(t, root), w)) if any(w) else math.nan
        for p, t, w in zip(pred.numpy(), target.numpy(), weights)
    ]
    check(lambda **o: metrics.n_mpjpe(pred, target, mask=mask, root=root, **o), expected, weights)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"allow_reflection": True}], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_pa_mpjpe(kind, options, size):
    pred, target = poses(size=size, items=6)
    pred[1] = target[1] * torch.tensor([-1.0, 1.0, 1.0][-size:])
    mask = masks(kind)
    mask = mask[:6] if mask is not None and mask.dim() == 2 else mask
    weights = as_lists(mask, 6)
    expected = [
        float(definitions.pa_mpjpe(p, t, w, **options)) if any(w) else math.nan
        for p, t, w in zip(pred.numpy(), target.numpy(), weights)
    ]
    check(lambda **o: metrics.pa_mpjpe(pred, target, mask=mask, **options, **o), expected, weights)


def test_a_mirrored_pose_keeps_its_error_unless_reflections_are_allowed():
    _, target = poses()
    mirrored = target * torch.tensor([-1.0, 1.0, 1.0])
    assert metrics.pa_mpjpe(mirrored, target) > 50
    assert metrics.pa_mpjpe(mirrored, target, allow_reflection=True) < 1e-9


def test_weights_are_linear():
    """A joint of weight 2 is a joint that is there twice."""
    pred, target = poses()
    twice = torch.cat((pred, pred[:, :1]), 1), torch.cat((target, target[:, :1]), 1)
    weight = torch.ones(JOINTS, dtype=torch.float64)
    weight[0] = 2
    for metric in (metrics.mpjpe, metrics.pa_mpjpe, metrics.n_mpjpe):
        torch.testing.assert_close(metric(pred, target, mask=weight), metric(*twice))


def test_the_root_is_read_even_where_the_mask_leaves_it_out():
    """16 of 17 joints, as papers count them that leave the root's error of 0 out of the mean."""
    pred, target = poses()
    mask = torch.ones(JOINTS, dtype=torch.bool)
    mask[0] = False
    expected = metrics.mpjpe(pred, target, root=0) * 17 / 16
    torch.testing.assert_close(metrics.mpjpe(pred, target, root=0, mask=mask), expected)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", ["none", "bool", "weights"])
def test_motion_never_crosses_clips_and_hidden_frames_take_their_neighbours(order, kind):
    pred, target = (pose.unflatten(0, (2, 6)) for pose in poses())
    mask = masks(kind)
    mask = None if mask is None else mask.unflatten(0, (2, 6))
    weight = torch.ones(2, 6, JOINTS, dtype=torch.float64) if mask is None else mask.double()
    function = metrics.mpjve if order == 1 else metrics.accel_error
    clips = [definitions.motion(*(x.numpy() for x in clip), order) for clip in zip(pred, target, weight)]
    expected, weights = [v for v, _ in clips], [w for _, ws in clips for w in ws]
    each = function(pred, target, mask=mask, reduction="none")
    torch.testing.assert_close(each, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
    mean = definitions.mean_of_items([v for values in expected for v in values], weights)
    assert function(pred, target, mask=mask).item() == pytest.approx(mean)
    per_second = function(pred, target, mask=mask, fps=50.0)
    assert per_second.item() == pytest.approx(mean * 50.0**order)


def test_constant_offsets_have_no_velocity_error():
    _, target = poses()
    assert metrics.mpjve(target + 5.0, target) < 1e-12
    assert metrics.mpjpe(target + 5.0, target) > 8


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("strict", [True, False])
def test_pck_by_each_average(kind, strict):
    pred, target = poses(size=2)
    norm = 50 + 100 * torch.rand(ITEMS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = masks(kind)
    weights = as_lists(mask)
    hits = [
        definitions.correct([d / n for d in definitions.distances(p, t)], 0.5, strict)
        for p, t, n in zip(pred.numpy(), target.numpy(), norm.tolist())
    ]
    options = {"threshold": 0.5, "strict": strict, "mask": mask}

    def pck(**more):
        return metrics.pck(pred, target, norm, **options, **more)

    expected = [definitions.weighted_mean(h, w) for h, w in zip(hits, weights)]
    total = sum(w * h for hs, ws in zip(hits, weights) for h, w in zip(hs, ws))
    check(pck, expected, weights, (total / sum(map(sum, weights)), total))
    each = [definitions.weighted_mean([h[j] for h in hits], [w[j] for w in weights]) for j in range(JOINTS)]
    torch.testing.assert_close(pck(average="none"), torch.tensor(each, dtype=torch.float64), equal_nan=True)
    assert pck(average="macro").item() == pytest.approx(np.nanmean(each))
    counts = [sum(w[j] * h[j] for h, w in zip(hits, weights)) for j in range(JOINTS)]
    torch.testing.assert_close(pck(average="none", reduction="sum"), torch.tensor(counts, dtype=torch.float64))


def test_a_joint_at_the_threshold_is_wrong_unless_the_comparison_is_not_strict():
    target = torch.zeros(1, 2, 3)
    pred = torch.tensor([[[0.0, 0, 0], [150.0, 0, 0]]])
    assert metrics.pck3d(pred, target) == 0.5
    assert metrics.pck3d(pred, target, strict=False) == 1.0
    assert metrics.pckh(pred, target, torch.tensor([300.0])) == 0.5
    assert metrics.pckh(pred, target, torch.tensor([300.0]), strict=False) == 1.0


def test_macro_leaves_out_joints_that_are_never_seen():
    target = torch.zeros(2, 3, 2)
    pred = torch.tensor([[[0.0, 0], [9.0, 0], [9.0, 0]]]).expand(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert metrics.pck(pred, target, threshold=1.0, mask=mask, average="macro") == 0.5
    assert metrics.pck(pred, target, threshold=1.0, mask=mask, average="micro").item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", MASKS)
def test_auc3d_is_the_mean_of_pck3d_over_31_thresholds(kind):
    pred, target = poses(noise=200.0)
    mask = masks(kind)
    curve = [metrics.pck3d(pred, target, threshold=5.0 * step, mask=mask) for step in range(31)]
    torch.testing.assert_close(metrics.auc3d(pred, target, mask=mask), torch.stack(curve).mean())
    forty = metrics.auc3d(pred, target, mask=mask, thresholds=range(0, 200, 5))
    assert forty > metrics.auc3d(pred, target, mask=mask)


def test_pck3d_lays_roots_together_unless_told_not_to():
    target = torch.zeros(1, 4, 3)
    assert metrics.pck3d(target + 1000.0, target) == 1.0
    assert metrics.pck3d(target + 1000.0, target, root=None) == 0.0


@pytest.mark.parametrize("kind", MASKS)
def test_cps_is_the_area_under_the_share_of_correct_poses(kind):
    pred, target = poses(noise=200.0, items=6)
    mask = masks(kind)
    mask = mask[:6] if mask is not None and mask.dim() == 2 else mask
    weights = as_lists(mask, 6)
    chosen = range(1, 17)
    expected = []
    for p, t, w in zip(pred.numpy(), target.numpy(), weights):
        if not any(w[j] for j in chosen):
            expected.append(math.nan)
            continue
        aligned = definitions.align(p, t, w).joints
        worst = max(math.dist([float(v) for v in aligned[j]], [float(v) for v in t[j]]) for j in chosen if w[j] != 0)
        expected.append(definitions.correct_poses_area(worst, range(1, 301)))
    check(lambda **o: metrics.cps(pred, target, mask=mask, joints=chosen, **o), expected, [w[1:] for w in weights])


def test_cps_of_a_perfect_pose_is_299_and_of_hypotheses_that_of_the_best():
    pred, target = poses(noise=200.0)
    assert metrics.cps(target, target) == 299
    both = torch.stack((pred, target), 1)
    assert metrics.cps(both, target, dim=1) == 299
    each = torch.stack([metrics.cps(pose, target, reduction="none") for pose in (pred, pred.flip(0))])
    best = metrics.cps(torch.stack((pred, pred.flip(0))), target, dim=0, reduction="none")
    torch.testing.assert_close(best, each.amax(0))


@pytest.mark.parametrize("procrustes", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_min_mpjpe_takes_the_best_pose_or_the_best_joints(kind, procrustes):
    target = poses()[1]
    hypotheses = torch.stack([target + 40 * torch.randn_like(target) for _ in range(5)])
    mask = masks(kind)
    single = metrics.pa_mpjpe if procrustes else metrics.mpjpe
    each = torch.stack([single(h, target, mask=mask, reduction="none") for h in hypotheses])
    best = metrics.min_mpjpe(hypotheses, target, mask=mask, procrustes=procrustes, reduction="none")
    torch.testing.assert_close(best, each.amin(0), equal_nan=True)
    moved = metrics.min_mpjpe(hypotheses.movedim(0, 1), target, dim=1, mask=mask, procrustes=procrustes)
    torch.testing.assert_close(moved, metrics.min_mpjpe(hypotheses, target, mask=mask, procrustes=procrustes))
    if procrustes:
        return
    weight = torch.tensor(as_lists(mask), dtype=torch.float64)
    joints = (hypotheses - target).norm(dim=-1).amin(0)
    expected = (joints * weight).sum(-1) / weight.sum(-1)
    values = metrics.min_mpjpe(hypotheses, target, mask=mask, mode="joint", reduction="none")
    torch.testing.assert_close(values, expected, equal_nan=True)


@pytest.mark.parametrize("kind", MASKS)
def test_oks(kind):
    pred, target = poses(size=2, noise=20.0)
    area = 1000 + 9000 * torch.rand(ITEMS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask = masks(kind)
    weights = as_lists(mask)
    expected = [
        definitions.oks(p, t, a, metrics.COCO_SIGMAS, w)
        for p, t, a, w in zip(pred.numpy(), target.numpy(), area.tolist(), weights)
    ]
    check(lambda **o: metrics.oks(pred, target, area, mask=mask, **o), expected, weights)


def test_keypoint_ap_of_three_images():
    """Matched by hand: a duplicate, a miss, a false alarm, and an object without a visible joint."""
    target = torch.zeros(5, 17, 2) + torch.tensor([0.0, 300.0, 0.0, 0.0, 600.0])[:, None, None]
    target_image = torch.tensor([0, 0, 1, 2, 2])
    area = torch.full((5,), 1e4)
    mask = torch.ones(5, 17, dtype=torch.bool)
    mask[4] = False  # not an object to find
    pred = torch.zeros(5, 17, 2) + torch.tensor([0.0, 3.0, 300.0, 5000.0, 0.0])[:, None, None]
    pred_image = torch.tensor([0, 0, 0, 1, 2])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95])
    # objects: 0 (image 0), 1 (image 0), 2 (image 1: missed), 3 (image 2)
    found = [(0.9, True), (0.8, False), (0.7, True), (0.6, False), (0.95, True)]
    expected = definitions.average_precision(found, objects=4)
    options = {"pred_image": pred_image, "target_image": target_image, "mask": mask}
    assert metrics.keypoint_ap(pred, target, scores, area, **options).item() == pytest.approx(expected)
    each = metrics.keypoint_ap(pred, target, scores, area, thresholds=(0.5, 0.95), reduction="none", **options)
    assert each.tolist() == pytest.approx([expected, expected])


def test_keypoint_ap_falls_with_the_threshold_and_is_nan_without_objects():
    pred, target = poses(size=2, noise=60.0)
    area, scores = torch.full((ITEMS,), 1e4).double(), torch.rand(ITEMS).double()
    image = torch.arange(ITEMS)
    options = {"pred_image": image, "target_image": image}
    each = metrics.keypoint_ap(pred, target, scores, area, reduction="none", **options)
    assert (each.diff() <= 0).all() and each[0] > each[-1]
    values = metrics.oks(pred, target, area, reduction="none")
    for threshold, precision in zip([0.5 + 0.05 * step for step in range(10)], each.tolist()):
        found = list(zip(scores.tolist(), (values >= threshold).tolist()))
        assert precision == pytest.approx(definitions.average_precision(found, ITEMS))
    nothing = torch.zeros(ITEMS, 17, dtype=torch.bool)
    assert metrics.keypoint_ap(pred, target, scores, area, mask=nothing, **options).isnan()
    none = metrics.keypoint_ap(pred[:0], target, scores[:0], area)
    assert none == 0


def test_the_default_device_does_not_matter():
    """It is where numbers would go of which a function makes tensors."""
    pred, target = poses()
    ones = torch.ones(ITEMS, dtype=torch.float64)
    calls = (
        lambda: metrics.cps(pred, target),
        lambda: metrics.oks(pred, target, 1e4),
        lambda: metrics.keypoint_ap(pred, target, ones, 1e4 * ones),
    )
    for call in calls:
        expected = call()
        with torch.device("meta"):
            assert torch.equal(call(), expected)


def test_norms():
    corners = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [50.0, 60.0]]])
    visible = torch.tensor([[True, True, False]])
    assert metrics.bbox_norm(corners, mask=visible) == 4
    assert metrics.bbox_norm(corners, mask=visible, kind="diagonal") == 5
    assert metrics.bbox_norm(corners, mask=torch.zeros(3, dtype=torch.bool)).isnan()
    assert metrics.torso_norm(corners, 0, 1) == 5
    assert metrics.head_norm(torch.tensor([1.0, 1.0, 4.0, 5.0])).item() == pytest.approx(3)
    box = torch.tensor([10.0, 20.0, 1001.0, 903.0])
    half = metrics.head_norm(box.half())  # 1001 is a half, 903 is one, and 796.4 is not
    assert half.dtype == torch.float32 and half == metrics.head_norm(box)


def test_norms_of_large_boxes_are_finite():
    far = torch.tensor([[[0.0, 0.0], [3e20, 4e20]]])
    for norm in (metrics.bbox_norm(far, kind="diagonal"), metrics.torso_norm(far, 0, 1)):
        assert norm.item() == pytest.approx(5e20)
    assert metrics.head_norm(far.flatten()).item() == pytest.approx(3e20)


@pytest.mark.parametrize("metric", [metrics.mpjpe, metrics.n_mpjpe, metrics.pa_mpjpe, metrics.epe])
def test_a_mask_that_hides_nothing_does_not_make_large_errors_infinite(metric):
    pred, target = (1.5e37 * pose.sign().float() for pose in poses())
    everything = torch.ones(target.shape[:-1], dtype=torch.bool)
    expected = metric(pred, target)
    assert expected.isfinite()
    torch.testing.assert_close(metric(pred, target, mask=everything), expected)
    torch.testing.assert_close(metric(pred, target, mask=1e30 * everything), expected)


def test_nan_stays_in_its_sample():
    pred, target = poses(size=3)
    pred[4, 2, 1] = math.nan
    both = torch.stack((pred, pred))
    calls = {
        "mpjpe": lambda **o: metrics.mpjpe(pred, target, **o),
        "pa_mpjpe": lambda **o: metrics.pa_mpjpe(pred, target, **o),
        "n_mpjpe": lambda **o: metrics.n_mpjpe(pred, target, **o),
        "epe": lambda **o: metrics.epe(pred, target, **o),
        "pck3d": lambda **o: metrics.pck3d(pred, target, **o),
        "auc3d": lambda **o: metrics.auc3d(pred, target, **o),
        "cps": lambda **o: metrics.cps(pred, target, **o),
        "min_mpjpe": lambda **o: metrics.min_mpjpe(both, target, **o),
        "oks": lambda **o: metrics.oks(pred, target, 1e4, **o),
    }
    for name, call in calls.items():
        each = call(reduction="none")
        assert each[4].isnan(), name
        assert each[torch.arange(ITEMS) != 4].isfinite().all(), name
        assert call().isnan(), name  # it is not turned into a good number either
        pred[4, 2, 1] = math.inf
        assert call(reduction="none")[torch.arange(ITEMS) != 4].isfinite().all(), name
        pred[4, 2, 1] = math.nan


def test_half_precision_is_computed_in_float32():
    pred, target = (pose / 100 for pose in poses())
    for dtype in (torch.float16, torch.bfloat16):
        low = pred.to(dtype), target.to(dtype)
        for metric in (metrics.mpjpe, metrics.pa_mpjpe, metrics.n_mpjpe):
            value = metric(*low)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, metric(low[0].float(), low[1].float()), rtol=0, atol=0)
        assert metrics.mpjpe(low[0], target.float()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = metrics.pa_mpjpe(pred.float(), target.float()), metrics.procrustes_align(pred.float(), target.float())
    torch.testing.assert_close(inside[0], metrics.pa_mpjpe(pred.float(), target.float()), rtol=0, atol=0)
    torch.testing.assert_close(inside[1], metrics.procrustes_align(pred.float(), target.float()), rtol=0, atol=0)
