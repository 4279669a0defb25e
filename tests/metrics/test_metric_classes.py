"""The accumulating classes equal their functions for any batches; they merge, move, save and check.

Every test holds on both bases: torchmetrics' ``Metric``, and our own where torchmetrics is missing.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metric_bases import CLASSES, on
from torch import Tensor, nn

from multicontrast import metrics

ITEMS, JOINTS = 23, 17
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")  # before any update


def poses(items: int = ITEMS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = 300 * torch.randn(items, JOINTS, 3, generator=generator, dtype=torch.float64)
    noise = 100 * torch.rand(items, 1, 1, generator=generator, dtype=torch.float64)
    pred = target + noise * torch.randn(items, JOINTS, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(items, JOINTS, generator=generator) > 0.3
    mask[2] = False
    return pred, target, mask


def data(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What a class and its function read, with the items along the first axis of all but the mask of joints."""
    pred, target, mask = poses()
    beside = {}
    if name in ("PCKh", "PCK, normed"):
        beside["norm"] = 100 + torch.arange(ITEMS, dtype=torch.float64)
    if name == "OKS":
        beside["area"] = 1e4 + torch.arange(ITEMS, dtype=torch.float64)
    if name in ("MPJVE", "AccelError"):
        pred, target, mask = (
            torch.stack([part, part.roll(1, 0), part.roll(3, 0), part], 1) for part in (pred, target, mask)
        )
    if name.startswith(("MinMPJPE", "CPS, best")):
        pred = torch.stack((pred, pred.flip(0), target + 50), 1)
    return {"pred": pred, "target": target, "mask": mask, **beside}


# name of the case, beginning with that of the class: options of class and function
CASES: dict[str, dict] = {
    "MPJPE": {"root": 0},
    "MPJPE, mid-hips": {"root": (1, 4)},
    "PAMPJPE": {},
    "PAMPJPE, rigid": {"scale": False},
    "NMPJPE": {"root": 0},
    "EPE": {},
    "MPJVE": {"fps": 50.0},
    "AccelError": {},
    "MinMPJPE": {"dim": 1},
    "MinMPJPE, joints": {"dim": 1, "mode": "joint"},
    "MinMPJPE, aligned": {"dim": 1, "procrustes": True},
    "PCK": {"threshold": 90.0},
    "PCK, normed": {"threshold": 0.5},
    "PCK, macro": {"threshold": 90.0, "average": "macro"},
    "PCK, by joint": {"threshold": 90.0, "average": "none", "strict": False},
    "PCKh": {},
    "PCK3D": {},
    "AUC3D": {"thresholds": range(0, 200, 5)},
    "CPS": {"joints": range(1, 17)},
    "CPS, best": {"dim": 1},
    "OKS": {},
}
FUNCTIONS = {
    "PAMPJPE": "pa_mpjpe", "NMPJPE": "n_mpjpe", "AccelError": "accel_error", "MinMPJPE": "min_mpjpe",
}  # fmt: skip


def case(classes, name):
    kind = name.split(",")[0]
    function = getattr(metrics, FUNCTIONS.get(kind, kind.lower()))
    expected = function(**data(name), **CASES[name])
    return getattr(classes, kind)(**CASES[name]), data(name), expected


def take(metric, given, rows, **more):
    metric.update(**{name: value[rows] for name, value in given.items()}, **more)


def close(value, expected):
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_neither_batches_nor_repeats_nor_the_order_matter(classes, name):
    """Sizes of batches, empty ones, ids that repeat as DistributedSampler's do, merging, and a batch's own result."""
    metric, given, expected = case(classes, name)
    for sizes in ([23], [10, 10, 3], [1] * 23, [0, 20, 0, 3]):
        for start, size in zip(itertools.accumulate([0, *sizes]), sizes):
            take(metric, given, slice(start, start + size))
        close(metric.compute(), expected)
        metric.reset()
    for rows in torch.tensor([*range(ITEMS), 0, 1, 2, 2]).split(9):
        take(metric, given, rows, ids=rows)
    close(metric.compute(), expected)
    metric.merge(metric.clone())
    close(metric.compute(), expected)
    metric.reset()
    parts = [metric.clone() for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 5), slice(5, 23))):
        step = part(**{key: value[rows] for key, value in given.items()})
        function = type(metric).function
        close(step, function(**{key: value[rows] for key, value in given.items()}, **CASES[name]))
        close(part.compute(), step)
    parts[1].merge(parts[0])
    close(parts[1].compute(), expected)
    report = parts[1].report()
    assert report.hidden == 1 or type(metric).item_axes == 3  # of a clip, differences are the items
    assert len(report.per_joint) == (0 if name.startswith("CPS") else JOINTS) and report.invalid == 0


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_has_the_options_of_its_function_with_the_same_defaults(classes, kind):
    """The data (poses, mask, norm, area) go to `update`; `reduction` is what `compute` does."""
    kind = getattr(classes, kind)
    taken = inspect.signature(kind.function).parameters
    made, updated = inspect.signature(kind).parameters, inspect.signature(kind.update).parameters
    for name, parameter in taken.items():
        if name != "reduction":
            home = updated if name in ("pred", "target", "mask", "norm", "area") else made
            assert home[name].default == parameter.default, name
    assert set(made) - {"groups", "sync_on_compute", "process_group"} <= set(taken)
    assert isinstance(kind.higher_is_better, bool)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(4)), st.lists(st.integers(0, 23), min_size=3, max_size=3))
def test_merging_in_any_order_gives_the_same(classes, order, cuts):
    pred, target, mask = poses()
    names = ["ab"[i % 2] for i in range(ITEMS)]
    parts = []
    for start, stop in itertools.pairwise([0, *sorted(cuts), ITEMS]):
        rows = slice(start, stop)
        parts.append(classes.MPJPE(groups=["a", "b"]))
        parts[-1].update(pred[rows], target[rows], mask=mask[rows], group=names[rows])
    merged, whole = classes.MPJPE(groups=["a", "b"]), classes.MPJPE(groups=["a", "b"])
    for index in order:
        merged.merge_state(parts[index])
    whole.update(pred, target, mask=mask, group=names)
    ours, theirs = merged.report(), whole.report()
    assert ours.items == theirs.items and ours.hidden == theirs.hidden == 1
    for field in ("value", "frame_mean", "action_mean", "per_joint"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), rtol=1e-14, atol=0)


def test_groups_have_two_means(classes):
    """Three walking frames and one sitting frame: the mean of frames is not the mean of actions."""
    target = torch.zeros(4, JOINTS, 3, dtype=torch.float64)
    pred = target + torch.tensor([3.0, 3.0, 3.0, 15.0])[:, None, None] / 3**0.5
    metric = classes.MPJPE(groups=["Sitting", "Walking", "Eating"])
    metric.update(pred[:2], target[:2], group="Walking")
    metric.update(pred[2:], target[2:], group=torch.tensor([1, 0]))
    report = metric.report()
    assert report.frame_mean.item() == pytest.approx(6) and report.action_mean.item() == pytest.approx(9)
    assert metric.compute() == report.frame_mean
    assert list(report.per_group) == ["Sitting", "Walking", "Eating"]
    assert report.per_group["Sitting"].item() == pytest.approx(15) and report.per_group["Eating"].isnan()
    assert report.items == {"Sitting": 1, "Walking": 3, "Eating": 0}


def test_what_a_class_reports_of_joints_of_hidden_items_and_of_nan(classes):
    pred, target, mask = poses()
    metric = classes.MPJPE(root=0)
    assert metric.compute().isnan()
    metric.update(pred, target, mask=torch.zeros_like(mask))
    assert metric.compute().isnan() and metric.report().hidden == ITEMS
    metric.update(pred, target, mask=mask)
    rooted = (pred - pred[:, :1] - target + target[:, :1]).norm(dim=-1)
    torch.testing.assert_close(metric.report().per_joint, torch.where(mask, rooted, 0).sum(0) / mask.sum(0))
    pred[0, 0, 0] = float("nan")
    metric.update(pred, target)
    report = metric.report()
    assert report.value.isnan() and report.invalid == 1 and report.items == {"all": 2 * ITEMS - 1}


def test_ids_may_be_names_and_are_for_all_or_for_none(classes):
    pred, target, _ = poses()
    names = [f"S9/Directions/{i // 2}" for i in range(ITEMS)]
    metric = classes.MPJPE()
    metric.update(pred, target, ids=names)
    close(metric.compute(), metrics.mpjpe(pred[::2], target[::2]))
    with pytest.raises(ValueError, match="for all samples or for none"):
        metric.update(pred, target)
    other = classes.MPJPE()
    other.update(pred, target)
    with pytest.raises(ValueError, match="for all samples or for none"):
        other.update(pred, target, ids=names)
    metric.merge(other)  # what was taken in apart
    with pytest.raises(ValueError, match="for all samples or for none"):
        metric.compute()
    for wrong in (names[:3], torch.zeros(ITEMS), [1.5] * ITEMS, 7, [True] * ITEMS):
        with pytest.raises((ValueError, TypeError), match="`ids`"):
            classes.MPJPE().update(pred, target, ids=wrong)


def test_one_clip(classes):
    pred, target, _ = poses()
    single = classes.MPJVE()
    single.update(pred, target)  # (T, J, 3)
    close(single.compute(), metrics.mpjve(pred, target))


def test_modalities_and_retrieval(classes):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(29, 6, generator=generator, dtype=torch.float64) for _ in range(3)]
    agreement, search = classes.ModalityAlignment(), classes.RetrievalRecall(k=(1, 4))
    order = torch.tensor([*range(29), 0, 5])
    for rows in order[:29].split(10):
        agreement.update([part[rows] for part in parts])
    agreement.update([part[:0] for part in parts])
    once = classes.ModalityAlignment()
    for rows in order.split(10):
        search.update(parts[0][rows], parts[1][rows], ids=rows)
        once.update([part[rows] for part in parts], ids=[f"frame {row}" for row in rows.tolist()])
    torch.testing.assert_close(once.compute(), agreement.compute())
    named = classes.RetrievalRecall(k=(1, 4))
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
    assert classes.RetrievalRecall().compute()["recall@1"].isnan()
    assert classes.ModalityAlignment().compute()["gap"].shape == (0, 0)
    bare, without = classes.RetrievalRecall(k=(1, 4)), classes.ModalityAlignment()
    bare.update(*parts[:2])
    without.update(parts)
    for metric, other, taken in ((search, bare, parts[:2]), (once, without, [parts])):
        with pytest.raises(ValueError, match="for all samples or for none"):
            metric.update(*taken)
        metric.merge(other)  # what was taken in apart
        with pytest.raises(ValueError, match="for all samples or for none"):
            metric.compute()
    with pytest.raises(ValueError, match="as many modalities, of one width"):
        agreement.update(parts[:2])


@pytest.mark.parametrize("ids", [None, range(ITEMS)], ids=["sums", "rows"])
def test_states_are_saved_loaded_copied_pickled_and_reset(classes, ids, tmp_path):
    pred, target, mask = poses()
    metric = classes.PAMPJPE(groups=["a", "b"])
    metric.update(pred, target, mask=mask, group="a", ids=ids)
    value = metric.compute()
    torch.save(metric.state_dict(), tmp_path / "state.pt")
    again = classes.PAMPJPE(groups=["a", "b"])
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.compute(), value) and again.update_count == 1
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert torch.equal(other.compute(), value)
        other.reset()
        assert other.compute().isnan() and not other.update_called
    assert torch.equal(metric.compute(), value)
    with pytest.raises(ValueError, match="options it was saved with"):
        classes.PAMPJPE(scale=False).load_state_dict(metric.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({})


def test_a_metric_inside_a_module_is_part_of_its_state(classes):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.error = classes.MPJPE()
            self.root_error = classes.MPJPE(root=0)

    pred, target, _ = poses()
    model, other = Model(), Model()
    model.error.update(pred, target)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.error.compute(), model.error.compute())
    assert other.root_error.compute().isnan()


def test_moves_between_devices_keep_the_types(classes, monkeypatch):
    pred, target, _ = poses()
    metric = classes.MPJPE()
    metric.update(pred.float(), target.float())
    model = nn.ModuleList([metric])
    for move in (model.half, lambda: model.to(torch.float16), model.double, lambda: metric.set_dtype(torch.float16)):
        move()
        assert metric.metric_state["sums"].dtype == torch.float64
    assert metric.clone().to("meta").metric_state["sums"].device.type == "meta"
    # a device without float64 keeps its states on the CPU
    monkeypatch.setattr(classes.accumulate, "state_device", lambda _: torch.device("cpu"))
    assert metric.clone().to("meta").metric_state["sums"].device.type == "cpu"


def test_a_batch_that_raises_changes_nothing(classes):
    """Not in `forward` either, which sets the states aside while it measures the batch."""
    pred, target, mask = poses()
    metric = classes.MPJPE()
    metric(pred, target)
    kept = metric.compute()
    for call in (metric, metric.update):
        with pytest.raises(ValueError, match="broadcasting could pair"):
            call(pred, target[:3])
        with pytest.raises(ValueError, match="states of one shape"):
            call(pred[:, :16], target[:, :16])
    torch.testing.assert_close(metric.compute(), kept)
    metric(pred[:3], target[:3], mask=mask[:3])
    both = torch.cat((pred, pred[:3])), torch.cat((target, target[:3]))
    close(metric.compute(), metrics.mpjpe(*both, mask=torch.cat((torch.ones_like(mask), mask[:3]))))


def test_mistaken_units_are_noticed_on_both_sides(classes):
    pred, target, _ = poses()

    def made(kind, scale, **options):
        metric = kind(**options)
        metric.update(scale * pred, (1 if kind is classes.MPJPE else scale) * target)
        return metric

    for scale in (1e-3, 1e3):
        with pytest.warns(UserWarning, match="in metres and the other in millimetres"):
            made(classes.MPJPE, scale).compute()
    for kind in (classes.PCK3D, classes.AUC3D, classes.CPS):
        for scale in (1e-3, 1 / 300, 1e4):  # metres, and poses in [-1, 1], against millimetres; and the other side
            with pytest.warns(UserWarning, match="thresholds in the unit of the poses") as caught:
                made(kind, scale).compute()
            assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, options in (
            (classes.PAMPJPE, {}),
            (classes.PCK3D, {}),
            (classes.CPS, {}),
            (classes.PCK, {"threshold": 1e-3}),
        ):
            made(kind, 1.0, **options).compute()
        made(classes.PCK3D, 1e-3, threshold=0.15).compute()
        classes.MPJPE()(1e-3 * pred, target)  # a step of training is not the place either
        metrics.pa_mpjpe(1e-3 * pred, target)  # the functions never say it: they would have to look at the data


def test_mistakes_get_worded_errors(classes):
    pred, target, _ = poses()
    metric = classes.MPJPE(groups=["Walking", "Sitting"])
    for group, words in (
        (None, "needs the group of each row; got None"),
        ("Walkin", "Did you mean 'Walking'"),
        (["Walking", "Sitting"], "needs 23 groups; got 2"),
        (torch.full((ITEMS,), 2), "indices under 2; got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            metric.update(pred, target, group=group)
    with pytest.raises(ValueError, match="has no `groups`"):
        classes.MPJPE().update(pred, target, group="Walking")
    for make, words in (
        (lambda: classes.MPJPE(groups=["a", "a"]), "different names"),
        (lambda: classes.MPJPE(groups="ab"), "`groups` to be a list"),
        (lambda: classes.MPJPE(groups=["a", 1]), r"`groups\[1\]` to be text"),
        (lambda: classes.MPJPE(roots=0), "Did you mean `root`"),
        (lambda: classes.PCK(), r"needs `threshold`; got no value\. Make it with `PCK\(threshold=...\)`"),
        (lambda: classes.PAMPJPE(scale="false"), "True or False; got 'false'"),
        (lambda: classes.MPJVE(fps=-25), "`fps`.* > 0 and < 1e.09; got -25"),
        (lambda: classes.AUC3D(thresholds=150.0), "`thresholds` to be a list"),
        (lambda: classes.RetrievalRecall(k=0), "`k` >= 1"),
        (lambda: classes.MPJPE().merge(classes.MPJPE(root=0)), "another MPJPE"),
        (lambda: classes.MPJPE().merge(classes.EPE()), "another MPJPE"),
        (lambda: classes.MPJPE().update(pred.numpy(), target), "`pred` to be a tensor; got a ndarray"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            make()
    metric = classes.MPJPE()
    metric.update(pred, target)
    with pytest.raises(ValueError, match="states of one shape"):
        metric.update(pred[:, :16], target[:, :16])


def test_classes_are_metrics_whatever_was_imported_first():
    torchmetrics = pytest.importorskip("torchmetrics")
    assert issubclass(on("torchmetrics").MPJPE, torchmetrics.Metric)
    assert not issubclass(on("standalone").MPJPE, torchmetrics.Metric)
