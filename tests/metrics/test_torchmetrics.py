"""The classes in torchmetrics' collections, wrappers and arithmetic, and in Lightning's logging."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import Tensor

from multicontrast import metrics

torchmetrics = pytest.importorskip("torchmetrics")
JOINTS = 17


def poses(items: int = 23, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = 300 * torch.randn(items, JOINTS, 3, generator=generator, dtype=torch.float64)
    pred = target + 60 * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    return pred, target, torch.rand(items, JOINTS, generator=generator) > 0.3


def test_a_collection():
    pred, target, mask = poses()
    made = {"mpjpe": metrics.MPJPE(), "pa": metrics.PAMPJPE(), "pck": metrics.PCK3D()}
    collection = torchmetrics.MetricCollection(made, prefix="val_")
    for rows in torch.arange(23).split(10):
        collection.update(pred[rows], target[rows], mask=mask[rows], unknown=1)
    found = collection.compute()
    for name, function in (("mpjpe", metrics.mpjpe), ("pa", metrics.pa_mpjpe), ("pck", metrics.pck3d)):
        torch.testing.assert_close(found[f"val_{name}"], function(pred, target, mask=mask))
    step = collection(pred[:3], target[:3], mask=mask[:3])
    torch.testing.assert_close(step["val_mpjpe"], metrics.mpjpe(pred[:3], target[:3], mask=mask[:3]))
    other = collection.clone(prefix="test_")
    other.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert other.compute()["test_mpjpe"].isnan()
    listed = torchmetrics.MetricCollection([metrics.MPJPE(), metrics.EPE()])
    listed.update(pred, target)
    assert set(listed.compute()) == {"MPJPE", "EPE"}


def test_metrics_that_look_alike_after_one_batch_do_not_share_a_state():
    """A collection joins metrics with equal states: two thresholds that agree on the first batch are not one."""
    _, target, _ = poses()
    made = {"a": metrics.PCK(threshold=1.0), "b": metrics.PCK(threshold=500.0), "c": metrics.PCK(threshold=1.0)}
    collection = torchmetrics.MetricCollection(made)
    collection.update(target, target)
    collection.update(target + 100, target)
    assert collection.compute() == {"a": 0.5, "b": 1.0, "c": 0.5}
    assert sorted(map(len, collection.compute_groups.values())) == [1, 2]  # what is one metric twice is measured once


@pytest.mark.parametrize("ids", [False, True])
def test_wrappers(ids):
    pred, target, _ = poses()
    batches = list(torch.arange(23).split(6))

    def more(rows):
        return {"ids": rows} if ids else {}

    running = torchmetrics.wrappers.Running(metrics.MPJPE(), window=2)
    tracker = torchmetrics.wrappers.MetricTracker(metrics.MPJPE())
    extremes = torchmetrics.wrappers.MinMaxMetric(metrics.MPJPE())
    assert not tracker.maximize
    values = []
    for rows in batches:
        running.update(pred[rows], target[rows], **more(rows))
        tracker.increment()
        tracker.update(pred[rows], target[rows], **more(rows))
        extremes.update(pred[rows], target[rows], **more(rows))
        seen = torch.cat(batches[: len(values) + 1])
        values.append(metrics.mpjpe(pred[seen], target[seen]))
        found = extremes.compute()
        torch.testing.assert_close(found["raw"], values[-1])
        torch.testing.assert_close(found["max"].double(), torch.stack(values).max())
        torch.testing.assert_close(found["min"].double(), torch.stack(values).min())
    each = torch.stack([metrics.mpjpe(pred[rows], target[rows]) for rows in batches])
    torch.testing.assert_close(tracker.compute_all(), each)
    assert tracker.best_metric() == pytest.approx(each.min().item())
    last = torch.cat(batches[-2:])
    torch.testing.assert_close(running.compute(), metrics.mpjpe(pred[last], target[last]))


def test_by_class_by_bootstrap_and_by_arithmetic():
    pred, target, mask = poses()
    labels = [f"joint {joint}" for joint in range(JOINTS)]
    apart = torchmetrics.wrappers.ClasswiseWrapper(metrics.PCK3D(average="none"), labels=labels)
    apart.update(pred, target, mask=mask)
    expected = metrics.pck3d(pred, target, mask=mask, average="none")
    torch.testing.assert_close(torch.stack(list(apart.compute().values())), expected)
    torch.manual_seed(0)
    bootstrap = torchmetrics.wrappers.BootStrapper(metrics.MPJPE(), num_bootstraps=50)
    bootstrap.update(pred, target, mask=mask)
    found = bootstrap.compute()
    each = metrics.mpjpe(pred, target, mask=mask, reduction="none")
    assert abs(found["mean"] - each.mean()) < 4 * found["std"]
    assert found["std"] == pytest.approx(each.std().item() / 23**0.5, rel=0.4)
    total = metrics.MPJPE() + 2 * metrics.PAMPJPE()
    total.update(pred, target)
    torch.testing.assert_close(total.compute(), metrics.mpjpe(pred, target) + 2 * metrics.pa_mpjpe(pred, target))


def test_plots():
    pytest.importorskip("matplotlib")
    pred, target, _ = poses()
    metric, search = metrics.MPJPE(), metrics.RetrievalRecall()
    several = [metric(pred[:k], target[:k]) for k in (3, 9)]
    search.update(pred[:, 0], target[:, 0])
    for figure, axes in (metric.plot(), metric.plot(several), search.plot()):
        assert axes.figure is figure
        assert axes.lines
    classes = metrics.PCK3D(average="none")
    classes.update(pred, target)
    assert len(classes.plot()[1].get_legend_handles_labels()[1]) == JOINTS


def test_retrieval_and_agreement_in_a_collection():
    pred, target, _ = poses()
    x, y = pred[:, :, 0], target[:, :, 0]
    collection = torchmetrics.MetricCollection({"strict": metrics.RetrievalRecall(k=1), "mpjpe": metrics.MPJPE()})
    for rows in torch.arange(23).split(10):
        collection.update(query=x[rows], gallery=y[rows], pred=pred[rows], target=target[rows])
    found = collection.compute()
    assert found["recall@1"] == metrics.retrieval_recall(x, y) and found["median_rank"] == metrics.median_rank(x, y)
    torch.testing.assert_close(found["mpjpe"], metrics.mpjpe(pred, target))
    agreement = metrics.ModalityAlignment()
    step = agreement([x, y])
    torch.testing.assert_close(step["cosine"], metrics.cosine_matrix([x, y]))


def test_lightning_logs_them():
    """Metric objects in `self.log` and `self.log_dict`: values of steps, and of epochs over ragged batches."""
    lightning = pytest.importorskip("lightning.pytorch")
    pred, target, _ = (part.float() if part.is_floating_point() else part for part in poses())

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.offset = torch.nn.Parameter(torch.zeros(3))
            self.train_error = metrics.MPJPE(root=0)
            self.errors = torchmetrics.MetricCollection(
                {"mpjpe": metrics.MPJPE(), "pck": metrics.PCK3D()}, prefix="val_"
            )

        def training_step(self, batch, index):
            pred, target = batch
            self.train_error(pred + self.offset, target)
            self.log("train_mpjpe", self.train_error, on_step=True, on_epoch=True)
            return metrics.mpjpe(pred + self.offset, target)

        def validation_step(self, batch, index):
            self.errors.update(*batch)
            self.log_dict(self.errors)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = torch.utils.data.TensorDataset(pred, target)
    model = Model()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, *(torch.utils.data.DataLoader(data, batch_size=10) for _ in range(2)))
    logged = {name: value.double() for name, value in trainer.logged_metrics.items() | trainer.callback_metrics.items()}
    root = metrics.mpjpe(pred.double(), target.double(), root=0)
    torch.testing.assert_close(logged["train_mpjpe_epoch"], root, rtol=1e-5, atol=0)
    last = metrics.mpjpe(pred[20:].double(), target[20:].double(), root=0)
    for name in ("val_mpjpe", "val_pck"):
        function = metrics.mpjpe if name == "val_mpjpe" else metrics.pck3d
        torch.testing.assert_close(logged[name], function(pred, target).double(), rtol=1e-5, atol=0)
    assert "train_mpjpe_step" in logged and last.isfinite()
    assert model.train_error.update_count == 0  # Lightning resets what it logs at the end of an epoch
