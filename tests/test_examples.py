"""The recipes run, and over ranks they give the result of one process."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RECIPES = Path(__file__).parent / "distributed" / "recipes.py"


@pytest.fixture(autouse=True)
def _examples_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def result(printed: str) -> str:
    (line,) = re.findall(r"loss ([\d.]+, tau [\d.]+)", printed)
    return line


def test_plain_pytorch(capsys):
    import plain

    assert plain.main() < 6  # from 19
    assert "recall at 1 from the first view to the second" in capsys.readouterr().out


def test_two_ranks_end_where_one_process_ends(capsys):
    """By ``torchrun --nproc-per-node 2``, all recipes in one start of it."""
    import ddp

    names = ["ddp", "fsdp2", "large_batches"]
    if importlib.util.find_spec("accelerate") is not None:
        names.append("with_accelerate")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RECIPES), *names],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ddp.main()  # without torchrun: one process
    alone = result(capsys.readouterr().out)
    printed = dict(re.findall(r"^(\w+):\n(2 ranks: .*)$", done.stdout, re.MULTILINE))
    assert list(printed) == names
    for name in set(names) - {"large_batches"}:
        assert result(printed[name]) == alone, name
    if "with_accelerate" not in names:
        pytest.skip("the recipe for Accelerate was left out: the extra `accelerate` is not installed")


def peers() -> list[str]:
    """The functions of `coming_from`, by name; its imports of other libraries are inside them."""
    return re.findall(r"^def (\w+)\(\) -> tuple\[Loss, Loss\]", (EXAMPLES / "coming_from.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", peers())
def test_the_loss_of_another_library_is_ours(name):
    import coming_from

    make = getattr(coming_from, name)
    assert make in coming_from.PEERS
    try:
        value, gradient = coming_from.differences(make)
    except ImportError as error:
        pytest.skip(f"the other library is not installed: {error}")
    assert value < 1e-12
    assert gradient < 1e-12


def test_a_loss_of_zero_agrees_with_nothing():
    import coming_from

    def nothing(x, y, z):
        return 0 * (x.sum() + y.sum() + z.sum())

    with pytest.raises(AssertionError, match="agree with anything"):
        coming_from.differences(lambda: (nothing, nothing))


def test_the_page_for_movers_shows_every_loss_that_is_compared():
    page = (EXAMPLES.parent / "docs" / "moving.md").read_text()
    assert set(re.findall(r"^:pyobject: (\w+)$", page, re.MULTILINE)) >= set(peers())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_logs_and_restores_the_temperature(precision, tmp_path, capsys):
    pytest.importorskip("lightning", reason="comes with the extra `integrations`")
    import with_lightning

    module, recall = with_lightning.main(precision)
    assert recall > 0.1  # one in 128 by chance
    assert module.loss.temperature.tau.item() != pytest.approx(0.07, abs=1e-4)
    trainer = with_lightning.trainer(precision=precision)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    restored = with_lightning.Alignment.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(restored.loss.temperature.tau, module.loss.temperature.tau)
    assert f"precision {precision}" in capsys.readouterr().out


def test_torchmetrics_wraps_and_lightning_logs_our_metrics(capsys):
    pytest.importorskip("torchmetrics", reason="comes with the extra `dev`")
    import with_torchmetrics

    from multicontrast import metrics

    pred, target = with_torchmetrics.poses()
    torch.manual_seed(0)
    results = with_torchmetrics.main()
    whole = {
        "val_mpjpe": metrics.mpjpe(pred, target, root=0).item(),
        "val_pa_mpjpe": metrics.pa_mpjpe(pred, target).item(),
        "val_pck": metrics.pck3d(pred, target).item(),
    }
    found = results["wrappers"]
    assert {name: found[name].item() for name in whole} == pytest.approx(whole, rel=1e-5)
    assert found["latest"] == pytest.approx(metrics.mpjpe(pred[64:], target[64:], root=0).item(), rel=1e-5)
    assert abs(found["mean"] - whole["val_mpjpe"]) < 4 * found["std"] < 8
    assert "val_pck" in capsys.readouterr().out
    if "lightning" not in results:
        pytest.skip("the part for Lightning was left out: the extra `integrations` is not installed")
    assert results["lightning"] == pytest.approx(whole, rel=1e-5)


def test_hugging_face_trainer_keeps_the_temperature_out_of_the_decay(capsys):
    pytest.importorskip("transformers", reason="comes with the extra `integrations`")
    import with_trainer

    model, value = with_trainer.main()
    assert value < 14  # from 19
    groups = with_trainer.optimizer(model).param_groups
    (tau,) = model.loss.parameters()
    assert [group["weight_decay"] for group in groups if any(p is tau for p in group["params"])] == [0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert "tau" in capsys.readouterr().out


def test_the_loop_of_open_clip_trains_alike_with_either_loss(capsys):
    pytest.importorskip("open_clip", reason="comes with the extra `peers`")
    import with_open_clip
    from open_clip.loss import ClipLoss

    assert with_open_clip.main() == pytest.approx(with_open_clip.main(ClipLoss()), rel=1e-4)
    assert capsys.readouterr().out.count("losses") == 2


def test_sentence_transformers_trains_three_columns(capsys, monkeypatch):
    for name in ("sentence_transformers", "datasets"):
        pytest.importorskip(name, reason="comes with the extra `integrations`")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import with_sentence_transformers

    before, after = with_sentence_transformers.main()
    assert after > before + 0.5
    assert "keywords" in capsys.readouterr().out


def test_every_recipe_is_named_in_the_list():
    listed = set(re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
