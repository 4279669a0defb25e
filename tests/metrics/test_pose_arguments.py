"""What the pose metrics refuse, and in which words; and what they never do: LAPACK, synchronising, raising on data."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multicontrast import metrics

POSE = torch.zeros(2, 17, 3)
EVERY = {
    "mpjpe": metrics.mpjpe,
    "pa_mpjpe": metrics.pa_mpjpe,
    "n_mpjpe": metrics.n_mpjpe,
    "epe": metrics.epe,
    "mpjve": lambda p, t, **o: metrics.mpjve(p[None], t[None], **o),
    "accel_error": lambda p, t, **o: metrics.accel_error(*(torch.stack([x] * 4, -3) for x in (p, t)), **o),
    "pck": lambda p, t, **o: metrics.pck(p, t, threshold=1.0, **o),
    "pckh": lambda p, t, **o: metrics.pckh(p, t, 2.0, **o),
    "pck3d": metrics.pck3d,
    "auc3d": metrics.auc3d,
    "cps": metrics.cps,
    "min_mpjpe": lambda p, t, **o: metrics.min_mpjpe(p[None], t, **o),
    "oks": lambda p, t, **o: metrics.oks(p, t, 1.0, **o),
}


@pytest.mark.parametrize("name", EVERY)
def test_mistakes_are_answered_in_words(name):
    function = EVERY[name]
    short = torch.zeros(2, 16, 3)
    with pytest.raises(ValueError, match=r"needs `pred` (of shape|with one axis more).*; got .*\. "):
        function(short, POSE)
    with pytest.raises(ValueError, match=r"one shape|one axis more"):
        function(POSE[:, None].expand(2, 2, 17, 3), POSE)  # would have been broadcast
    with pytest.raises(TypeError, match="floating-point numbers; got a int64"):
        function(POSE.long(), POSE)
    with pytest.raises(ValueError, match=r"\(\.\.\., J, 2\) or \(\.\.\., J, 3\)"):
        function(torch.zeros(2, 17, 4), torch.zeros(2, 17, 4))
    with pytest.raises(ValueError, match="at least one pose"):
        function(POSE[:0], POSE[:0]) if name not in ("mpjve", "accel_error") else function(POSE[:, :0], POSE[:, :0])
    with pytest.raises(
        ValueError, match=r"`reduction` to be one of 'mean', 'none', 'sum'; got 'maen'\. Did you mean 'mean'"
    ):
        function(POSE, POSE, reduction="maen")
    with pytest.raises(ValueError, match="`mask` to expand to"):
        function(POSE, POSE, mask=torch.ones(3, 17))
    with pytest.raises(TypeError, match="`mask` to be a tensor"):
        function(POSE, POSE, mask=[True] * 17)
    with pytest.raises(ValueError, match="weights of at least 0; got -1"):
        function(POSE, POSE, mask=-torch.ones(17))
    with pytest.raises(ValueError, match="one device"):
        function(POSE, POSE, mask=torch.ones(17, device="meta"))


def test_each_functions_own_mistakes():
    with pytest.raises(ValueError, match=r"needs `root` within 17 joints; got 17\."):
        metrics.mpjpe(POSE, POSE, root=17)
    with pytest.raises(ValueError, match="within 17 joints"):
        metrics.pa_mpjpe(POSE, POSE, root=())
    with pytest.raises(ValueError, match="at least 2 frames"):
        metrics.mpjve(POSE[:1], POSE[:1])
    with pytest.raises(ValueError, match="at least 3 frames"):
        metrics.accel_error(POSE, POSE)
    with pytest.raises(ValueError, match="positive `fps`; got 0"):
        metrics.mpjve(POSE, POSE, fps=0)
    with pytest.raises(ValueError, match="thresholds of at least 0"):
        metrics.pck(POSE, POSE, threshold=-1.0)
    with pytest.raises(ValueError, match=r"`norm` of shape \(2,\)"):
        metrics.pck(POSE, POSE, torch.ones(3), threshold=0.5)
    with pytest.raises(ValueError, match="positive lengths; got 0"):
        metrics.pck(POSE, POSE, torch.tensor([1.0, 0.0]), threshold=0.5)
    with pytest.raises(ValueError, match="Did you mean 'macro'"):
        metrics.pck3d(POSE, POSE, average="marco")
    with pytest.raises(ValueError, match="only in a mean"):
        metrics.pck3d(POSE, POSE, average="macro", reduction="sum")
    with pytest.raises(ValueError, match="ascending"):
        metrics.cps(POSE, POSE, thresholds=(2.0, 1.0))
    with pytest.raises(ValueError, match="`joints` within 17"):
        metrics.cps(POSE, POSE, joints=(17,))
    with pytest.raises(ValueError, match="'joint', 'pose'"):
        metrics.min_mpjpe(POSE[None], POSE, mode="best")
    with pytest.raises(ValueError, match="at least one hypothesis"):
        metrics.min_mpjpe(POSE[None][:0], POSE)
    with pytest.raises(ValueError, match="17 `sigmas`"):
        metrics.oks(POSE, POSE, 1.0, sigmas=(0.1,))
    with pytest.raises(ValueError, match=r"`area` of shape \(2,\)"):
        metrics.oks(POSE, POSE, torch.ones(3))
    with pytest.raises(ValueError, match="areas of at least 0; got -1"):
        metrics.oks(POSE, POSE, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="both image indices"):
        metrics.keypoint_ap(POSE, POSE, torch.ones(2), torch.ones(2), pred_image=torch.zeros(2))
    with pytest.raises(ValueError, match=r"`scores` of shape \(2,\)"):
        metrics.keypoint_ap(POSE, POSE, torch.ones(3), torch.ones(2))


def test_a_norm_of_a_hidden_pose_may_be_anything():
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[1] = False
    assert metrics.pck(POSE, POSE, torch.tensor([1.0, 0.0]), threshold=0.5, mask=mask) == 1


class Forbidden(TorchDispatchMode):
    """Raises on LAPACK, and on operators that ask a device for a value."""

    banned = ("linalg_svd", "linalg_eigh", "linalg_qr", "linalg_inv", "linalg_solve", "linalg_det", "_linalg")
    asking = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        assert not name.startswith(self.banned), f"{name} is LAPACK"
        assert name not in self.asking, f"{name} synchronises"
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_lapack_and_no_synchronisation(name, dtype):
    """On meta tensors, where a look at a value is impossible, under a mode that names whoever tries."""
    pred = torch.empty(4, 17, 3, dtype=dtype, device="meta", requires_grad=True)
    target = torch.empty(4, 17, 3, dtype=dtype, device="meta")
    for mask in (None, torch.empty(4, 17, dtype=torch.bool, device="meta"), torch.empty(17, device="meta")):
        for reduction in ("mean", "sum", "none"):
            with Forbidden():
                value = EVERY[name](pred, target, mask=mask, reduction=reduction)
                assert value.dtype == dtype
                if value.requires_grad:
                    value.sum().backward()


def test_no_lapack_in_the_alignment():
    pred = torch.empty(4, 17, 3, device="meta", requires_grad=True)
    with Forbidden():
        fit = metrics.procrustes_align(pred, pred.detach())
        sum(part.sum() for part in fit).backward()
    assert pred.grad.shape == pred.shape


def test_neither_where_buffers_are_reused():
    """Values alone, on a CPU, where a look would be free: results do not depend on one all the same."""
    for mask in (None, torch.ones(2, 17, dtype=torch.bool)):
        with Forbidden():
            metrics.pa_mpjpe(POSE, POSE + 1, mask=mask)


def test_the_mode_would_have_noticed():
    with pytest.raises(AssertionError, match="LAPACK"), Forbidden():
        torch.linalg.svd(torch.randn(3, 3))
    with pytest.raises(AssertionError, match="synchronises"), Forbidden():
        torch.randn(1).item()


def test_negative_weights_are_nan_where_a_look_would_cost():
    compiled = torch.compile(metrics.mpjpe, backend="eager", fullgraph=True)
    weight = torch.ones(2, 17)
    weight[1, 3] = -1.0
    assert compiled(POSE, POSE, mask=weight, reduction="none").isnan().tolist() == [False, True]


def test_the_functions_compile_without_a_break():
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 5, 17, 3, generator=generator).unbind(0)
    for function in (metrics.mpjpe, metrics.pa_mpjpe, metrics.n_mpjpe, metrics.pck3d):
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(pred, target), function(pred, target))


def test_importing_the_metrics_imports_torch_and_numpy_alone():
    code = (
        "import sys, multicontrast.metrics as m; m.MPJPE(); "
        "heavy = {'torchmetrics', 'matplotlib', 'scipy', 'sklearn', 'pandas', 'torchvision'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
