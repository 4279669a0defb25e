"""The accumulating classes equal their functions, whatever the batches; they merge, move, save and refuse."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from multicontrast import metrics
from multicontrast.metrics import _accumulate

ITEMS, JOINTS = 23, 17


def poses(items: int = ITEMS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = 300 * torch.randn(items, JOINTS, 3, generator=generator, dtype=torch.float64)
    noise = 100 * torch.rand(items, 1, 1, generator=generator, dtype=torch.float64)
    pred = target + noise * torch.randn(items, JOINTS, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(items, JOINTS, generator=generator) > 0.3
    mask[2] = False
    return pred, target, mask


# name: (class, function of (pred, target, mask=...), its data beside the poses by item)
CASES = {
    "MPJPE": (metrics.MPJPE(root=0), functools.partial(metrics.mpjpe, root=0)),
    "PAMPJPE": (metrics.PAMPJPE(), metrics.pa_mpjpe),
    "PAMPJPE, rigid": (metrics.PAMPJPE(scale=False), functools.partial(metrics.pa_mpjpe, scale=False)),
    "NMPJPE": (metrics.NMPJPE(root=0), functools.partial(metrics.n_mpjpe, root=0)),
    "EPE": (metrics.EPE(), metrics.epe),
    "PCK": (metrics.PCK(threshold=90.0), functools.partial(metrics.pck, threshold=90.0)),
    "PCK, macro": (
        metrics.PCK(threshold=90.0, average="macro"),
        functools.partial(metrics.pck, threshold=90.0, average="macro"),
    ),
    "PCK, by joint": (
        metrics.PCK(threshold=90.0, average="none", strict=False),
        functools.partial(metrics.pck, threshold=90.0, average="none", strict=False),
    ),
    "PCK3D": (metrics.PCK3D(), metrics.pck3d),
    "AUC3D": (metrics.AUC3D(), metrics.auc3d),
    "CPS": (metrics.CPS(joints=range(1, 17)), functools.partial(metrics.cps, joints=range(1, 17))),
}


def fresh(name: str):
    metric, function = CASES[name]
    return metric.clone(), function


def take(metric, pred, target, mask, sizes):
    start = 0
    for size in sizes:
        metric.update(pred[start : start + size], target[start : start + size], mask=mask[start : start + size])
        start += size
    assert start == len(pred)
    return metric


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sizes", [[23], [10, 10, 3], [1] * 23, [0, 20, 0, 3]], ids=str)
def test_batches_do_not_matter(name, sizes):
    metric, function = fresh(name)
    pred, target, mask = poses()
    value = take(metric, pred, target, mask, sizes).compute()
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, function(pred, target, mask=mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_what_a_class_reports(name):
    metric, _ = fresh(name)
    pred, target, mask = poses()
    report = take(metric, pred, target, mask, [23]).report()
    assert report.items == {"all": 22} and report.hidden == 1 and report.invalid == 0
    if name == "MPJPE":
        rooted = (pred - pred[:, :1] - target + target[:, :1]).norm(dim=-1)
        expected = torch.where(mask, rooted, 0).sum(0) / mask.sum(0)
        torch.testing.assert_close(report.per_joint, expected)
    assert len(report.per_joint) == (0 if name == "CPS" else JOINTS)


@given(st.permutations(range(4)), st.lists(st.integers(0, 23), min_size=3, max_size=3))
def test_merging_in_any_order_gives_the_same(order, cuts):
    pred, target, mask = poses()
    edges = [0, *sorted(cuts), ITEMS]
    parts = []
    for start, stop in itertools.pairwise(edges):
        part = metrics.MPJPE(groups=["a", "b"])
        part.update(
            pred[start:stop], target[start:stop], mask=mask[start:stop], group=["ab"[i % 2] for i in range(start, stop)]
        )
        parts.append(part)
    merged = metrics.MPJPE(groups=["a", "b"])
    for index in order:
        merged.merge(parts[index])
    whole = metrics.MPJPE(groups=["a", "b"])
    whole.update(pred, target, mask=mask, group=["ab"[i % 2] for i in range(ITEMS)])
    ours, theirs = merged.report(), whole.report()
    assert ours.items == theirs.items and ours.hidden == theirs.hidden
    for field in ("value", "frame_mean", "action_mean", "per_joint"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), rtol=1e-14, atol=0)


def test_groups_have_two_means():
    """Three walking frames and one sitting frame: the mean of frames is not the mean of actions."""
    target = torch.zeros(4, JOINTS, 3, dtype=torch.float64)
    pred = target + torch.tensor([3.0, 3.0, 3.0, 15.0])[:, None, None] / 3**0.5
    metric = metrics.MPJPE(groups=["Sitting", "Walking", "Eating"])
    metric.update(pred[:2], target[:2], group="Walking")
    metric.update(pred[2:], target[2:], group=torch.tensor([1, 0]))
    report = metric.report()
    assert report.frame_mean.item() == pytest.approx(6) and report.action_mean.item() == pytest.approx(9)
    assert metric.compute() == report.frame_mean
    assert list(report.per_group) == ["Sitting", "Walking", "Eating"]
    assert report.per_group["Sitting"].item() == pytest.approx(15) and report.per_group["Eating"].isnan()
    assert report.items == {"Sitting": 1, "Walking": 3, "Eating": 0}


def test_an_item_without_a_visible_joint_is_counted_and_left_out_and_nan_is_counted_and_kept():
    pred, target, mask = poses()
    metric = metrics.MPJPE()
    assert metric.compute().isnan()
    metric.update(pred, target, mask=torch.zeros_like(mask))
    assert metric.compute().isnan() and metric.report().hidden == ITEMS
    metric.update(pred, target)
    assert metric.compute().item() == pytest.approx(metrics.mpjpe(pred, target).item())
    pred[0, 0, 0] = float("nan")
    metric.update(pred, target)
    report = metric.report()
    assert report.value.isnan() and report.invalid == 1 and report.items == {"all": 2 * ITEMS}


@pytest.mark.parametrize("name", CASES)
def test_samples_count_once(name):
    """As with DistributedSampler, which repeats the first samples to fill the last batch."""
    metric, function = fresh(name)
    pred, target, mask = poses()
    order = torch.tensor([*range(ITEMS), 0, 1, 2, 2])
    for rows in order.split(9):
        metric.update(pred[rows], target[rows], mask=mask[rows], ids=rows)
    torch.testing.assert_close(metric.compute(), function(pred, target, mask=mask), rtol=1e-12, atol=1e-12)
    other = metric.clone()
    metric.merge(other)
    torch.testing.assert_close(metric.compute(), function(pred, target, mask=mask), rtol=1e-12, atol=1e-12)


def test_ids_may_be_names_and_are_for_all_or_for_none():
    pred, target, _ = poses()
    names = [f"S9/Directions/{i // 2}" for i in range(ITEMS)]
    metric = metrics.MPJPE()
    metric.update(pred, target, ids=names)
    assert metric.compute().item() == pytest.approx(metrics.mpjpe(pred[::2], target[::2]).item())
    with pytest.raises(ValueError, match="for all samples or for none"):
        metric.update(pred, target)
    metric.reset()
    metric.update(pred, target)
    with pytest.raises(ValueError, match="for all samples or for none"):
        metric.update(pred, target, ids=names)
    with pytest.raises(ValueError, match="23 integer `ids`"):
        metric.update(pred, target, ids=names[:3])


def test_clips():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(5, 8, JOINTS, 3, generator=generator, dtype=torch.float64)
    pred = target + 0.1 * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(target.shape[:3], generator=generator) > 0.1
    for metric, function in (
        (metrics.MPJVE(fps=50.0), functools.partial(metrics.mpjve, fps=50.0)),
        (metrics.AccelError(), metrics.accel_error),
    ):
        for rows in torch.arange(5).split(2):
            metric.update(pred[rows], target[rows], mask=mask[rows], ids=rows)
        metric.update(pred[:1], target[:1], mask=mask[:1], ids=[0])
        torch.testing.assert_close(metric.compute(), function(pred, target, mask=mask))
    single = metrics.MPJVE()
    single.update(pred[0], target[0])  # one clip (T, J, 3)
    torch.testing.assert_close(single.compute(), metrics.mpjve(pred[0], target[0]))


def test_hypotheses():
    pred, target, mask = poses()
    several = torch.stack((pred, pred.flip(0), target + 50), 1)
    for options in ({}, {"mode": "joint"}, {"procrustes": True}):
        metric = metrics.MinMPJPE(dim=1, **options)
        for rows in torch.arange(ITEMS).split(10):
            metric.update(several[rows], target[rows], mask=mask[rows])
        torch.testing.assert_close(metric.compute(), metrics.min_mpjpe(several, target, dim=1, mask=mask, **options))
    metric = metrics.CPS(dim=1)
    metric.update(several, target, mask=mask)
    torch.testing.assert_close(metric.compute(), metrics.cps(several, target, dim=1, mask=mask))


def test_norms_and_areas():
    pred, target, mask = poses()
    norm = 100 + torch.arange(ITEMS, dtype=torch.float64)
    metric, head = metrics.PCK(threshold=0.5), metrics.PCKh()
    similarity = metrics.OKS()
    for rows in torch.arange(ITEMS).split(9):
        metric.update(pred[rows], target[rows], norm[rows], mask=mask[rows])
        head.update(pred[rows], target[rows], norm[rows], mask=mask[rows])
        similarity.update(pred[rows], target[rows], 100 * norm[rows], mask=mask[rows])
    torch.testing.assert_close(metric.compute(), metrics.pck(pred, target, norm, threshold=0.5, mask=mask))
    torch.testing.assert_close(head.compute(), metrics.pckh(pred, target, norm, mask=mask))
    torch.testing.assert_close(similarity.compute(), metrics.oks(pred, target, 100 * norm, mask=mask))


def test_modalities_and_retrieval():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(29, 6, generator=generator, dtype=torch.float64) for _ in range(3)]
    agreement, search = metrics.ModalityAlignment(), metrics.RetrievalRecall(k=(1, 4))
    order = torch.tensor([*range(29), 0, 5])
    for rows in order[:29].split(10):
        agreement.update([part[rows] for part in parts])
    agreement.update([part[:0] for part in parts])
    once = metrics.ModalityAlignment()
    for rows in order.split(10):
        search.update(parts[0][rows], parts[1][rows], ids=rows)
        once.update([part[rows] for part in parts], ids=[f"frame {row}" for row in rows.tolist()])
    torch.testing.assert_close(once.compute(), agreement.compute())
    named = metrics.RetrievalRecall(k=(1, 4))
    named.update(parts[0][order], parts[1][order], ids=[str(row) for row in order.tolist()])
    torch.testing.assert_close(named.compute(), search.compute())
    found = agreement.compute()
    torch.testing.assert_close(found["cosine"], metrics.cosine_matrix(parts))
    torch.testing.assert_close(found["alignment"][0, 2], metrics.alignment(parts[0], parts[2]))
    torch.testing.assert_close(found["gap"][1, 2], metrics.modality_gap(parts[1], parts[2]))
    ranks = search.compute()
    assert ranks["recall@1"] == metrics.retrieval_recall(*parts[:2])
    assert ranks["recall@4"] == metrics.retrieval_recall(*parts[:2], k=4)
    assert ranks["median_rank"] == metrics.median_rank(*parts[:2])
    assert ranks["mean_reciprocal_rank"].item() == pytest.approx(metrics.mean_reciprocal_rank(*parts[:2]).item())
    assert metrics.RetrievalRecall().compute()["recall@1"].isnan()
    assert metrics.ModalityAlignment().compute()["gap"].shape == (0, 0)
    bare, without = metrics.RetrievalRecall(k=(1, 4)), metrics.ModalityAlignment()
    bare.update(*parts[:2])
    without.update(parts)
    for metric, other, data in ((search, bare, parts[:2]), (once, without, [parts])):
        with pytest.raises(ValueError, match="for all samples or for none"):
            metric.update(*data)
        metric.merge(other)  # what was taken in apart
        with pytest.raises(ValueError, match="for all samples or for none"):
            metric.compute()


@pytest.mark.parametrize("ids", [None, range(ITEMS)], ids=["sums", "rows"])
def test_states_are_saved_loaded_copied_pickled_and_reset(ids, tmp_path):
    pred, target, mask = poses()
    metric = metrics.PAMPJPE(groups=["a", "b"])
    metric.update(pred, target, mask=mask, group="a", ids=ids)
    value = metric.compute()
    torch.save(metric.state_dict(), tmp_path / "state.pt")
    again = metrics.PAMPJPE(groups=["a", "b"])
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.compute(), value) and again.update_count == 1
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert torch.equal(other.compute(), value)
        other.reset()
        assert other.compute().isnan() and not other.update_called
    assert torch.equal(metric.compute(), value)
    with pytest.raises(RuntimeError, match="options it was saved with"):
        metrics.PAMPJPE(scale=False).load_state_dict(metric.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({})


def test_a_metric_inside_a_module_is_part_of_its_state():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.error = metrics.MPJPE()
            self.root_error = metrics.MPJPE(root=0)

    pred, target, _ = poses()
    model, other = Model(), Model()
    model.error.update(pred, target)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.error.compute(), model.error.compute())
    assert other.root_error.compute().isnan()


def test_moves_between_devices_keep_the_types(monkeypatch):
    pred, target, _ = poses()
    metric = metrics.MPJPE()
    metric.update(pred.float(), target.float())
    for moved in (metric.half(), metric.to(torch.float16), metric.double(), metric.float()):
        assert moved.metric_state["sums"].dtype == torch.float64
        assert moved.metric_state["counts"].dtype == torch.int64
    away = metric.clone().to("meta")
    assert all(state.device.type == "meta" for state in away.metric_state.values())
    # a device without float64 keeps its states on the CPU
    monkeypatch.setattr(_accumulate, "state_device", lambda _: torch.device("cpu"))
    assert all(state.device.type == "cpu" for state in metric.clone().to("meta").metric_state.values())


def test_forward_gives_the_batch_and_keeps_the_whole():
    pred, target, mask = poses()
    metric = metrics.MPJPE()
    first = metric(pred[:5], target[:5], mask=mask[:5])
    second = metric(pred[5:], target[5:], mask=mask[5:])
    torch.testing.assert_close(first, metrics.mpjpe(pred[:5], target[:5], mask=mask[:5]))
    torch.testing.assert_close(second, metrics.mpjpe(pred[5:], target[5:], mask=mask[5:]))
    torch.testing.assert_close(metric.compute(), metrics.mpjpe(pred, target, mask=mask))


def test_metres_against_millimetres_are_noticed():
    pred, target, _ = poses()
    for scale in (1e-3, 1e3):
        metric = metrics.MPJPE()
        metric.update(scale * pred, target)
        with pytest.warns(UserWarning, match="in metres and the other in millimetres"):
            metric.compute()
    for kind in (metrics.PCK3D, metrics.AUC3D, metrics.CPS):
        metric = kind()
        metric.update(1e-3 * pred, 1e-3 * target)  # metres, and thresholds in millimetres
        with pytest.warns(UserWarning, match="thresholds in the unit of the poses") as caught:
            metric.compute()
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in (metrics.PAMPJPE(), metrics.PCK3D(), metrics.CPS(), metrics.PCK(threshold=1e-3)):
            metric.update(2 * pred, target)
            metric.compute()
        metric = metrics.MPJPE()
        metric(1e-3 * pred, target)  # a step of training is not the place either
        metrics.pa_mpjpe(1e-3 * pred, target)  # the functions never say it: they would have to look at the data


def test_mistakes_are_answered_in_words():
    pred, target, _ = poses()
    metric = metrics.MPJPE(groups=["Walking", "Sitting"])
    with pytest.raises(ValueError, match="needs the group of each row; got None"):
        metric.update(pred, target)
    with pytest.raises(ValueError, match="Did you mean 'Walking'"):
        metric.update(pred, target, group="Walkin")
    with pytest.raises(ValueError, match="needs 23 groups; got 2"):
        metric.update(pred, target, group=["Walking", "Sitting"])
    with pytest.raises(ValueError, match="indices under 2"):
        metric.update(pred, target, group=torch.full((ITEMS,), 2))
    with pytest.raises(ValueError, match="has no `groups`"):
        metrics.MPJPE().update(pred, target, group="Walking")
    with pytest.raises(ValueError, match="different names"):
        metrics.MPJPE(groups=["a", "a"])
    with pytest.raises(ValueError, match="another MPJPE"):
        metrics.MPJPE().merge(metrics.MPJPE(root=0))
    with pytest.raises(ValueError, match="another MPJPE"):
        metrics.MPJPE().merge(metrics.EPE())
    metric = metrics.MPJPE()
    metric.update(pred, target)
    with pytest.raises(ValueError, match="states of one shape"):
        metric.update(pred[:, :16], target[:, :16])


CLASSES = {
    metrics.MPJPE: metrics.mpjpe,
    metrics.PAMPJPE: metrics.pa_mpjpe,
    metrics.NMPJPE: metrics.n_mpjpe,
    metrics.MPJVE: metrics.mpjve,
    metrics.AccelError: metrics.accel_error,
    metrics.PCK: metrics.pck,
    metrics.PCKh: metrics.pckh,
    metrics.EPE: metrics.epe,
    metrics.PCK3D: metrics.pck3d,
    metrics.AUC3D: metrics.auc3d,
    metrics.CPS: metrics.cps,
    metrics.MinMPJPE: metrics.min_mpjpe,
    metrics.OKS: metrics.oks,
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_has_the_options_of_its_function_with_the_same_defaults(kind):
    """The data (poses, mask, norm, area) go to `update`; `reduction` is what `compute` does."""
    taken = inspect.signature(CLASSES[kind]).parameters
    made = inspect.signature(kind).parameters
    updated = inspect.signature(kind.update).parameters
    for name, parameter in taken.items():
        if name == "reduction":
            continue
        home = updated if name in ("pred", "target", "mask", "norm", "area") else made
        assert name in home, f"{kind.__name__} lacks {name}"
        assert home[name].default == parameter.default, name
    assert set(made) - {"accumulation"} <= set(taken)


def test_inside_a_metric_collection():
    torchmetrics = pytest.importorskip("torchmetrics")
    pred, target, mask = poses()
    collection = torchmetrics.MetricCollection(
        {"mpjpe": metrics.MPJPE(), "pa": metrics.PAMPJPE(), "near": metrics.PCK(threshold=1e9), "pck": metrics.PCK3D()},
        prefix="val_",
    )
    for rows in torch.arange(ITEMS).split(10):
        collection.update(pred[rows], target[rows], mask=mask[rows], unknown=1)
    found = collection.compute()
    torch.testing.assert_close(found["val_mpjpe"], metrics.mpjpe(pred, target, mask=mask))
    torch.testing.assert_close(found["val_pa"], metrics.pa_mpjpe(pred, target, mask=mask))
    torch.testing.assert_close(found["val_pck"], metrics.pck3d(pred, target, mask=mask))
    assert found["val_near"] == 1
    step = collection(pred[:3], target[:3], mask=mask[:3])
    torch.testing.assert_close(step["val_mpjpe"], metrics.mpjpe(pred[:3], target[:3], mask=mask[:3]))
    other = collection.clone(prefix="test_")
    other.reset()
    assert other.compute()["test_mpjpe"].isnan()
    listed = torchmetrics.MetricCollection([metrics.MPJPE(), metrics.EPE()])
    listed.update(pred, target)
    assert set(listed.compute()) == {"MPJPE", "EPE"}
    assert isinstance(metrics.MPJPE(), torchmetrics.Metric)


def test_metrics_that_look_alike_after_one_batch_do_not_share_a_state():
    """MetricCollection joins metrics with equal states: two thresholds that agree on the first batch are not one."""
    torchmetrics = pytest.importorskip("torchmetrics")
    _, target, _ = poses()
    collection = torchmetrics.MetricCollection({"a": metrics.PCK(threshold=1.0), "b": metrics.PCK(threshold=500.0)})
    collection.update(target, target)
    collection.update(target + 100, target)
    assert collection.compute() == {"a": 0.5, "b": 1.0}
