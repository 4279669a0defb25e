"""Pose and embedding metrics under `torch.func`, on fake tensors, and compiled with their gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from multicontrast import metrics

ITEMS, JOINTS = 4, 6
POSES = {
    "mpjpe": lambda p, t, **o: metrics.mpjpe(p, t, root=(0, 2), **o),
    "pa_mpjpe": metrics.pa_mpjpe,
    "n_mpjpe": metrics.n_mpjpe,
    "epe": metrics.epe,
    "pck": lambda p, t, **o: metrics.pck(p, t, torch.ones(p.shape[:-2]), threshold=0.5, **o),
    "pck3d": lambda p, t, **o: metrics.pck3d(p, t, threshold=0.5, **o),
    "cps": lambda p, t, **o: metrics.cps(p, t, joints=range(1, 5), thresholds=(0.1, 0.5, 1.0), **o),
    "min_mpjpe": lambda p, t, **o: metrics.min_mpjpe(torch.stack((p, p + 0.1)), t, **o),
    "oks": lambda p, t, **o: metrics.oks(p, t, 1.0, sigmas=(0.1,) * JOINTS, **o),
    "procrustes_align": lambda p, t, **o: metrics.procrustes_align(p, t, **o).aligned.sum((-2, -1)).mean(),
    "mpjve": lambda p, t, mask=None: metrics.mpjve(
        *(torch.stack([x, 2 * x], -3) for x in (p, t)), mask=None if mask is None else mask.unsqueeze(-2)
    ),
}
DIFFERENTIABLE = ("mpjpe", "pa_mpjpe", "n_mpjpe", "epe", "min_mpjpe", "procrustes_align", "mpjve")
EMBEDDINGS = {
    "cosine_alignment": metrics.cosine_alignment,
    "cosine_matrix": lambda x, y: metrics.cosine_matrix([x, y]),
    "alignment": metrics.alignment,
    "uniformity": lambda x, _: metrics.uniformity(x),
    "modality_gap": metrics.modality_gap,
    "sign_flipped_share": lambda x, y: metrics.sign_flipped_share([x, y, x + y]),
    "effective_rank": lambda x, _: metrics.effective_rank(x),
    "retrieval_recall": metrics.retrieval_recall,
    "median_rank": metrics.median_rank,
    "mean_reciprocal_rank": metrics.mean_reciprocal_rank,
}


def poses(size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(ITEMS, JOINTS, size, generator=generator, dtype=torch.float64)
    return target + 0.3 * torch.randn(target.shape, generator=generator, dtype=torch.float64), target


def masks() -> dict[str, Tensor | None]:
    weights = torch.rand(ITEMS, JOINTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"none": None, "bool": weights > 0.3, "weights": weights.masked_fill(weights < 0.2, 0.0)}


@pytest.fixture(autouse=True)
def _no_slow_fallback():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")
        yield


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("name", POSES)
def test_vmap_is_a_loop(name, kind):
    if name == "cps":
        warnings.filterwarnings("ignore", message=".*performance drop.*searchsorted")
    function, mask = POSES[name], masks()[kind]
    for size in (2, 3):
        pred, target = poses(size)
        if mask is None:
            mapped = torch.vmap(function)(pred, target)
            single = [function(p, t) for p, t in zip(pred, target)]
        else:
            mapped = torch.vmap(lambda p, t, m: function(p, t, mask=m))(pred, target, mask)
            single = [function(p, t, mask=m) for p, t, m in zip(pred, target, mask)]
        torch.testing.assert_close(mapped, torch.stack(single))


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_functional_gradients_are_those_of_autograd(name, kind):
    function, mask = POSES[name], masks()[kind]
    pred, target = poses()
    pred.requires_grad_()
    shown = {} if mask is None else {"mask": mask}
    (expected,) = torch.autograd.grad(function(pred, target, **shown), pred)
    torch.testing.assert_close(torch.func.grad(lambda p: function(p, target, **shown))(pred.detach()), expected)
    if mask is None:
        each = torch.vmap(torch.func.grad(function), in_dims=(0, None))(pred.detach(), target[0])
        single = [torch.autograd.grad(function(p, target[0]), p)[0] for p in pred.detach().requires_grad_()]
        torch.testing.assert_close(each, torch.stack(single))


def test_a_batch_beside_the_mapped_axis():
    """Also where one of pose, target and mask is not mapped, and where the mapped axis is not the first."""
    generator = torch.Generator().manual_seed(2)
    pred = torch.randn(5, 2, JOINTS, 3, generator=generator)
    target, mask = torch.randn(2, JOINTS, 3, generator=generator), torch.rand(5, 2, JOINTS, generator=generator) > 0.3
    for shown, dims in ((mask, 0), (mask[0], None)):
        mapped = torch.vmap(lambda p, m: metrics.pa_mpjpe(p, target, mask=m, reduction="none"), in_dims=(2, dims))(
            pred.movedim(0, 2), shown
        )
        weights = shown if dims == 0 else [shown] * 5
        single = [metrics.pa_mpjpe(p, target, mask=m, reduction="none") for p, m in zip(pred, weights)]
        torch.testing.assert_close(mapped, torch.stack(single))


@pytest.mark.parametrize("name", [*POSES, *EMBEDDINGS])
def test_no_value_is_looked_at_on_fake_tensors(name):
    """A fake tensor has none: any look raises."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        pred, target = (mode.from_tensor(pose) for pose in poses())
        if name in EMBEDDINGS:
            EMBEDDINGS[name](pred[..., 0], target[..., 0])
            return
        for mask in masks().values():
            shown = {} if mask is None else {"mask": mode.from_tensor(mask)}
            POSES[name](pred, target, **shown)


@pytest.mark.parametrize(
    "name", ["mpjpe", "pa_mpjpe", *(pytest.param(n, marks=pytest.mark.slow) for n in ("n_mpjpe", "procrustes_align"))]
)
def test_compiled_without_a_break_forwards_and_backwards(name):
    torch._dynamo.reset()
    compiled = torch.compile(POSES[name], backend="aot_eager", fullgraph=True)
    found = []
    for function in (compiled, POSES[name]):
        pred, target = poses()
        value = function(pred.requires_grad_(), target, mask=masks()["weights"])
        found.append((value, *torch.autograd.grad(value, pred)))
    torch.testing.assert_close(*found)


def test_functional_gradients_of_embedding_metrics():
    x, y = (pose[..., 0] for pose in poses())
    for name in ("cosine_alignment", "cosine_matrix", "alignment", "uniformity", "modality_gap", "effective_rank"):
        function = EMBEDDINGS[name]
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(function(leaf, y).sum(), leaf)
        torch.testing.assert_close(torch.func.grad(lambda a, f=function: f(a, y).sum())(x), expected)
        mapped = torch.vmap(function)(torch.stack((x, y)), torch.stack((y, x)))
        torch.testing.assert_close(mapped, torch.stack((function(x, y), function(y, x))))
