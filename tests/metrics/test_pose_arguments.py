"""The errors of the pose metrics; and that they never call LAPACK, synchronise or raise on data."""

from __future__ import annotations

import inspect
import re

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
def test_mistakes_get_worded_errors(name):
    function = EVERY[name]
    short = torch.zeros(2, 16, 3)
    with pytest.raises(ValueError, match=r"needs `pred` (of shape|with one axis more).*; got .*\. "):
        function(short, POSE)
    with pytest.raises(ValueError, match=r"one shape|one axis more"):
        function(POSE[:, None].expand(2, 2, 17, 3), POSE)  # would have been broadcast
    with pytest.raises(TypeError, match=r"floating-point numbers.*; got a int64"):
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
    with pytest.raises(ValueError, match=r"weights (of at least 0|from 0 to 1); got -1"):
        function(POSE, POSE, mask=-torch.ones(17))
    with pytest.raises(ValueError, match="one device"):
        function(POSE, POSE, mask=torch.ones(17, device="meta"))


ODD = {"pose": POSE, "flags": torch.full((2, 17), 2.0), "corner": torch.tensor([0, 0, 3, 4]), "ones": torch.ones(2)}
MISTAKES = [
    ("mpjpe(pose, pose, root=17)", r"needs `root` within 17 joints; got 17\."),
    ("pa_mpjpe(pose, pose, root=())", "`root` to hold an int"),
    ("mpjve(pose[:1], pose[:1])", "at least 2 frames"),
    ("accel_error(pose, pose)", "at least 3 frames"),
    ("mpjve(pose, pose, fps=0)", "`fps`.* > 0 and < 1e.09; got 0"),
    ("mpjve(pose, pose, fps=-25)", "`fps`.* > 0 and < 1e.09; got -25"),
    ("mpjve(pose, pose, fps=10**400)", "`fps` to be a finite number.*an int of 1329 bits"),
    ("pck(pose, pose, threshold=-1.0)", "`threshold`.* >= 0; got -1"),
    ("pck(pose, pose, ones[:1].expand(3), threshold=0.5)", r"`norm` of shape \(2,\)"),
    ("pck(pose, pose, torch.tensor([1.0, 0.0]), threshold=0.5)", "positive lengths; got 0"),
    ("pck3d(pose, pose, average='marco')", "Did you mean 'macro'"),
    ("pck3d(pose, pose, average='macro', reduction='sum')", "only in a mean"),
    ("pck3d(pose, pose, threshold=[150.0])", "`threshold` to be a finite number; got a list"),
    ("auc3d(pose, pose, thresholds=150.0)", "`thresholds` to be a list"),
    ("auc3d(pose, pose, thresholds='150')", "`thresholds` to be a list"),
    ("cps(pose, pose, thresholds=(2.0, 1.0))", "ascending"),
    ("cps(pose, pose, joints=(17,))", "`joints` within 17"),
    ("pa_mpjpe(pose, pose, scale='false')", "True or False; got 'false'"),
    ("pck3d(pose, pose, strict='no')", "True or False; got 'no'"),
    ("min_mpjpe(pose[None], pose, mode='best')", "'joint', 'pose'"),
    ("min_mpjpe(pose[None][:0], pose)", "at least one hypothesis"),
    ("min_mpjpe(pose[None], pose, dim=True)", "`dim` to be an int; got True"),
    ("oks(pose, pose, 1.0, sigmas=(0.1,))", "17 `sigmas`"),
    ("oks(pose, pose, 1.0, sigmas=(0.0,) * 17)", r"`sigmas\[0\]`.* > 0"),
    ("oks(pose, pose, 1.0, sigmas=torch.zeros(17))", r"`sigmas\[0\]`.* > 0; got 0"),
    ("oks(pose, pose, torch.ones(3))", r"`area` of shape \(2,\)"),
    ("oks(pose, pose, torch.tensor([1.0, -1.0]))", "areas of at least 0; got -1"),
    ("oks(pose, pose, 1.0, mask=flags)", "weights from 0 to 1; got 2.*flags as integers"),
    ("oks(pose, pose, 1.0, mask=3 * flags.long())", "flags 0, 1 or 2 if it is integer; got 6"),
    ("keypoint_ap(pose, pose, ones, ones, mask=flags)", "weights from 0 to 1; got 2"),
    ("keypoint_ap(pose, pose, ones, ones, pred_image=ones.long())", "both image indices"),
    ("keypoint_ap(pose, pose, ones, ones, pred_image=[0, 0], target_image=[0, 0])", "`pred_image` to be a tensor"),
    ("keypoint_ap(pose, pose, ones, ones, reduction='sum')", "averages over thresholds"),
    ("keypoint_ap(pose, pose, torch.ones(3), ones)", r"`scores` of shape \(2,\)"),
    ("head_norm(corner)", "real floating-point numbers.*; got a int64"),
    ("head_norm(ones)", r"`box` of shape \(\.\.\., 4\)"),
    ("torso_norm(pose, True, 1)", "`first` to be an int; got True"),
    ("mpjpe([pose], pose)", "`pred` to be a tensor; got a list"),
    ("min_mpjpe([pose], pose)", "`pred` to be a tensor; got a list"),
    ("mpjpe(torch.nested.nested_tensor([pose[0]]), pose)", "`pred` to be dense; got a nested tensor"),
    ("cosine_matrix(3)", "`embeddings` to be a list"),
    ("retrieval_recall(ones[None], ones[None], k=1.5)", "`k` to be a list|`k` to be an int"),
    ("uniformity(torch.eye(3), t='2')", "`t` to be a finite number"),
    ("alignment(torch.eye(3), torch.eye(3), normalize=1)", "`normalize` to be True or False; got 1"),
]


@pytest.mark.parametrize(("call", "words"), MISTAKES, ids=[call for call, _ in MISTAKES])
def test_errors_of_each_function(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        eval(call, {**vars(metrics), **ODD, "torch": torch})
    assert re.fullmatch(r"(?s)`\w+` .+; got .+\. .+[.?]", str(caught.value)), caught.value  # needed, came, what to do


@pytest.mark.parametrize("name", EVERY)
def test_the_signature_is_that_of_a_call(name):
    """Options come from a table; so may mistakes in their names."""
    signature = inspect.signature(getattr(metrics, name))
    assert signature.return_annotation in ("Tensor", torch.Tensor)
    assert {"mask", "reduction"} <= set(signature.parameters) and "options" not in signature.parameters
    with pytest.raises(TypeError, match=rf"`{name}` takes the options .*; got `msk`\. Did you mean `mask`\?"):
        getattr(metrics, name)(POSE, POSE, msk=None)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "oks"])
@pytest.mark.parametrize("root", [True, False, (0, True), "0", 0.0, {0: 1}], ids=str)
def test_a_root_is_a_joint(name, root):
    """``root=False`` is not joint 0."""
    with pytest.raises(TypeError, match=r"`root(\[1\])?` to be (an int|a list)"):
        EVERY[name](POSE, POSE, root=root)


@pytest.mark.parametrize("name", EVERY)
def test_visibility_flags_count_once(name):
    """COCO's 2 (labelled and visible) is as good as 1, and 0 is hidden."""
    generator = torch.Generator().manual_seed(0)
    pred, target = 5 * torch.rand(2, 2, 17, 3, generator=generator)
    flags = torch.randint(0, 3, (17,), generator=generator)
    for kind in (torch.int64, torch.uint8):
        for reduction in ("mean", "none"):
            found = EVERY[name](pred, target, mask=flags.to(kind), reduction=reduction)
            assert torch.equal(found, EVERY[name](pred, target, mask=flags > 0, reduction=reduction))


def test_flags_where_a_look_would_cost_spoil_their_item():
    compiled = torch.compile(metrics.oks, backend="eager", fullgraph=True)
    weight = torch.ones(2, 17)
    weight[1, 3] = 2.0
    for mask in (weight, 3 * weight.long()):
        assert compiled(POSE, POSE, 1.0, mask=mask, reduction="none")[1].isnan()


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


def test_values_alone_do_not_depend_on_reading_data():
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
