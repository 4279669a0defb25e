"""The report: its two means, its tables and its figure."""

from __future__ import annotations

import csv
import functools
import importlib
import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from multicontrast import metrics
from unihpe_ref.report import PoseReport, human36m

MOCAP = Path(__file__).resolve().parents[2] / "../shared/data/cmu17_60hz.npz"


def filled(examples: int = 8, **options) -> tuple[PoseReport, dict]:
    generator = torch.Generator().manual_seed(0)
    target = 0.3 * torch.randn(50, 17, 3, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.rand(50, 1, 1, generator=generator, dtype=torch.float64)
    pred = target + noise * torch.randn(50, 17, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(50, 17, generator=generator) > 0.1
    mask[7] = False
    action = [("Walking", "Eating", "Eating", "Posing")[i % 4] for i in range(50)]
    subject = [("S9", "S11")[i % 2] for i in range(50)]
    report = PoseReport(subjects=["S9", "S11"], unit_scale=1000.0, examples=examples, **options)
    for start in range(0, 50, 17):
        rows = slice(start, start + 17)
        report.update(pred[rows], target[rows], action=action[rows], subject=subject[rows], mask=mask[rows])
    return report, {"pred": pred, "target": target, "mask": mask, "action": action, "subject": subject}


def test_numbers_by_action_by_subject_and_by_joint():
    report, data = filled()
    result = report.compute()
    each = 1000 * metrics.mpjpe(data["pred"], data["target"], root=0, mask=data["mask"], reduction="none")
    action, subject = np.array(data["action"]), np.array(data["subject"])
    found = result["MPJPE"]
    assert found.unit == "mm" and list(found.per_action) == list(human36m.ACTIONS)
    means = {name: np.nanmean(each.numpy()[action == name]) for name in ("Eating", "Posing", "Walking")}
    for name, mean in means.items():
        assert found.per_action[name] == pytest.approx(mean)
    assert np.isnan(found.per_action["Smoking"]) and found.items["Smoking"] == 0
    assert found.frame_mean == pytest.approx(np.nanmean(each.numpy()))
    assert found.action_mean == pytest.approx(np.mean(list(means.values())))
    assert found.frame_mean != pytest.approx(found.action_mean)
    assert found.per_subject["S9"] == pytest.approx(np.nanmean(each.numpy()[subject == "S9"]))
    assert found.per_joint[0] == 0 and len(found.per_joint) == 17
    assert result.items == 49 and result.hidden == 1 and result.invalid == 0
    both = data["pred"], data["target"]
    assert result["3DPCK"].unit == "%"
    pck = metrics.pck3d(*both, mask=data["mask"], threshold=0.15)
    assert result["3DPCK"].frame_mean == pytest.approx(100 * pck.item())
    auc = metrics.auc3d(*both, mask=data["mask"], thresholds=[0.005 * step for step in range(31)])
    assert result["AUC"].frame_mean == pytest.approx(100 * auc.item())
    assert 100 * np.mean(result.curve) == pytest.approx(100 * auc.item())
    assert result.curve_thresholds[-1] == pytest.approx(150)
    pa = metrics.pa_mpjpe(*both, mask=data["mask"])
    assert result["PA-MPJPE"].frame_mean == pytest.approx(1000 * pa.item())


def test_markdown_has_the_columns_of_papers_in_their_order():
    result = filled()[0].compute()
    text = result.to_markdown()
    head, rule, first = text.splitlines()[:3]
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == ["metric", *human36m.SHORT_ACTIONS.values(), "action_mean", "frame_mean"]
    assert set(rule) <= set("|-:")
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[0] == "MPJPE (mm)" and cells[1] == "–"
    assert cells[columns.index("Eat")] == f"{result['MPJPE'].per_action['Eating']:.1f}"
    assert cells[-1] == f"{result['MPJPE'].frame_mean:.1f}" and cells[-2] == f"{result['MPJPE'].action_mean:.1f}"
    assert "| right wrist " in text and "| S11 " in text
    assert text.rstrip().endswith("49 poses; 1 more left out, without a visible joint.")


def test_latex_is_balanced_and_escaped():
    text = filled()[0].compute().to_latex(digits=2)
    body = [line for line in text.splitlines() if "&" in line]
    assert {line.count(" & ") for line in body} == {17}
    assert r"3DPCK (\%)" in text and text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert "action mean & frame mean" in text


def test_csv_can_be_read_back_to_the_last_digit():
    result = filled()[0].compute()
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    found = {(row["metric"], row["section"], row["name"]): row for row in rows}
    assert float(found["MPJPE", "mean", "frame_mean"]["value"]) == result["MPJPE"].frame_mean
    assert float(found["PA-MPJPE", "action", "Eating"]["value"]) == result["PA-MPJPE"].per_action["Eating"]
    assert found["MPJPE", "action", "Eating"]["items"] == str(result["MPJPE"].items["Eating"])
    assert float(found["N-MPJPE", "joint", "head"]["value"]) == result["N-MPJPE"].per_joint[10]


def test_examples_are_the_best_the_worst_and_one_between():
    for examples in (8, 500):
        report, data = filled(examples=examples)
        each = 1000 * metrics.mpjpe(data["pred"], data["target"], root=0, mask=data["mask"], reduction="none")
        chosen = report.compute().examples
        assert chosen.errors[0] == pytest.approx(np.nanmin(each)) and chosen.errors[2] == pytest.approx(np.nanmax(each))
        assert chosen.errors[0] <= chosen.errors[1] <= chosen.errors[2]
        if examples == 500:
            assert chosen.errors[1] == pytest.approx(np.nanmedian(each), rel=0.1)
        error = np.nanmean(np.linalg.norm(chosen.pred - chosen.target, axis=-1), -1)
        np.testing.assert_allclose(error, chosen.errors)
        assert len(report.examples) <= examples + 2
    assert filled(examples=0)[0].compute().examples is None


def test_the_figure_shows_the_numbers():
    pytest.importorskip("matplotlib")
    report, _ = filled()
    result = report.compute()
    figure = report.plot()
    bars, curve, *overlays = figure.axes
    assert [patch.get_height() for patch in bars.patches] == list(result["MPJPE"].per_joint)
    assert [label.get_text() for label in bars.get_xticklabels()] == list(human36m.JOINTS)
    np.testing.assert_allclose(curve.lines[0].get_ydata(), 100 * np.array(result.curve))
    assert f"AUC {result['AUC'].frame_mean:.1f}" in curve.get_title("left")
    assert [axes.get_title().split(":")[0] for axes in overlays] == ["best", "median", "worst"]
    bones = 16
    assert all(len(axes.lines) == 1 + 2 * (bones + 2) for axes in overlays)  # errors; bones, joints and a legend entry
    for place, axes in enumerate(overlays):  # what is drawn is as long as what was measured, seen from one side
        across, upward = axes.lines[1 + bones].get_data()
        target = result.examples.target[place]
        np.testing.assert_allclose(upward, -target[:, 1])
        shown = np.isfinite(across)
        seen = np.linalg.norm(target[shown][:, [0, 2]] - target[shown][:1, [0, 2]], axis=1)
        assert (np.abs(across[shown] - across[shown][0]) <= seen + 1e-9).all()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=50)
    assert len(buffer.getvalue()) > 10_000
    assert len(filled(examples=0)[0].plot("PA-MPJPE", up="z").axes) == 2
    with pytest.raises(ValueError, match="Did you mean 'MPJPE'"):
        report.plot("MPJP")


def drawn(target: np.ndarray, pred: np.ndarray, up: str) -> list[np.ndarray]:
    """The joints in the picture of one pose: the target's, and the prediction's."""
    names, parents = [f"joint {k}" for k in range(len(target))], [-1, *[0] * (len(target) - 1)]
    report = PoseReport(actions=None, root=None, joint_names=names, parents=parents)
    report.update(100 * torch.from_numpy(pred)[None], 100 * torch.from_numpy(target)[None])
    dots = [np.stack(line.get_data(), 1) / 100 for line in report.plot(up=up).axes[2].lines if line.get_marker() == "o"]
    return [points for points in dots if len(points)]  # the legend has none


def test_a_pose_is_drawn_from_where_it_is_widest_and_never_mirrored():
    pytest.importorskip("matplotlib")
    flat = np.array([[0.0, 0, 0], [3, 0, 4], [0, 2, 0], [-3, 0, -4]])  # y is up; widest along (3, 4)
    target, moved = drawn(flat, flat + np.array([0, 1, 0]), "y")
    np.testing.assert_allclose(target[:, 0] - target[0, 0], [0, 5, 0, -5], atol=1e-12)
    np.testing.assert_allclose(moved - target, [[0, 1]] * 4, atol=1e-12)
    person = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1]])  # z is up, x to the right, seen along y
    np.testing.assert_allclose(drawn(person, person, "z")[0], [[1, 0], [-1, 0], [0, 1]], atol=1e-12)
    pixels = np.array([[10.0, 20.0], [30.0, 60.0]])
    np.testing.assert_array_equal(drawn(pixels, pixels, "-y")[0], [[10, -20], [30, -60]])


def test_poses_in_a_plane():
    generator = torch.Generator().manual_seed(0)
    target = 100 * torch.randn(6, 17, 2, generator=generator)
    report = PoseReport(actions=None, root=None, unit="px")
    report.update(target + 3.0, target)
    assert report.compute()["MPJPE"].frame_mean == pytest.approx(3 * 2**0.5, rel=1e-5)
    pytest.importorskip("matplotlib")
    assert len(report.plot().axes) == 5
    empty = PoseReport(actions=None)
    assert "nothing to show" in empty.plot().axes[0].get_title("left")


def test_without_matplotlib_the_figure_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith("unihpe_ref.report")]:
        monkeypatch.delitem(sys.modules, name)
    fresh = importlib.import_module("unihpe_ref.report")
    assert fresh.PoseReport is not PoseReport
    report = fresh.PoseReport(actions=None)
    report.update(torch.rand(2, 17, 3), torch.rand(2, 17, 3))
    report.to_markdown()
    with pytest.raises(ModuleNotFoundError, match=r"multicontrast\[plot\]"):
        report.plot()


def test_reports_merge_are_saved_and_forget():
    whole, data = filled()
    parts = [filled()[0] for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 20), slice(20, 50))):
        part.reset()
        part.update(
            data["pred"][rows],
            data["target"][rows],
            action=data["action"][rows],
            subject=data["subject"][rows],
            mask=data["mask"][rows],
        )
    parts[1].merge(parts[0])
    expected, ours = whole.compute(), parts[1].compute()
    assert ours["MPJPE"].action_mean == pytest.approx(expected["MPJPE"].action_mean)
    assert ours["PA-MPJPE"].per_joint == pytest.approx(expected["PA-MPJPE"].per_joint)
    again = PoseReport(subjects=["S9", "S11"], unit_scale=1000.0, examples=8)
    again.load_state_dict(whole.state_dict())
    assert again.compute()["MPJPE"] == expected["MPJPE"] or np.isnan(expected["MPJPE"].per_action["Smoking"])
    assert again.to_markdown() == whole.to_markdown()
    again.reset()
    assert np.isnan(again.compute()["MPJPE"].frame_mean) and again.compute().items == 0
    assert "–" in again.to_markdown()


def test_samples_count_once():
    report, data = filled()
    expected = report.compute()
    report.reset()
    order = torch.tensor([*range(50), 0, 1])
    report.update(
        data["pred"][order],
        data["target"][order],
        action=[data["action"][i] for i in order],
        subject=[data["subject"][i] for i in order],
        mask=data["mask"][order],
        ids=[f"frame {int(i)}" for i in order],
    )
    assert report.compute().curve == pytest.approx(expected.curve)
    assert report.compute()["AUC"].frame_mean == pytest.approx(expected["AUC"].frame_mean)


def test_other_metrics_other_skeletons_no_actions():
    target = 300 * torch.rand(6, 5, 3)
    report = PoseReport(
        actions=None,
        joint_names=["a", "b", "c", "d", "e"],
        parents=[-1, 0, 1, 2, 3],
        metrics={"rigid": functools.partial(metrics.PAMPJPE, scale=False), "CPS": metrics.CPS},
    )
    report.update(target + 30 * torch.rand(6, 5, 3), target)
    result = report.compute()
    assert list(result.metrics) == ["rigid", "CPS"] and result["rigid"].per_action == {}
    assert result["rigid"].action_mean == result["rigid"].frame_mean
    assert result.to_markdown().startswith("| metric")
    assert report.plot().axes[2].lines


def test_the_average_of_a_metric_holds_in_every_action():
    """Macro averages the joints' shares; its action mean is over such averages."""
    report, data = filled(metrics={"PCK": functools.partial(metrics.PCK, threshold=0.15, average="macro")})
    found = report.compute()["PCK"]
    rows = torch.tensor([name == "Eating" for name in data["action"]])
    each = [
        100 * metrics.pck(data["pred"][r], data["target"][r], mask=data["mask"][r], threshold=0.15, average="macro")
        for r in (rows, slice(None))
    ]
    assert found.per_action["Eating"] == pytest.approx(each[0].item())
    assert found.frame_mean == pytest.approx(each[1].item())


def test_recordings_are_known_by_any_of_their_names():
    names = ["WalkingDog 1", "TakingPhoto", "Sitting 2", "SittingDown", "WalkTogether 1", "Walking 1", "Purchases"]
    expected = ["WalkDog", "Photo", "Sitting", "SittingDown", "WalkTogether", "Walking", "Purchases"]
    assert [human36m.action_name(name) for name in names] == expected
    with pytest.raises(ValueError, match="Its actions are Directions"):
        human36m.action_name("Swimming")
    report = PoseReport()
    report.update(300 * torch.rand(1, 17, 3), 300 * torch.rand(1, 17, 3), action="WalkingDog 1")
    assert report.compute()["MPJPE"].items["WalkDog"] == 1


def test_a_mistaken_unit_is_noticed():
    target = 1000 * torch.rand(5, 17, 3)
    report = PoseReport(actions=None)
    report.update(target / 1000, target)
    with pytest.warns(UserWarning, match="metres") as caught:
        report.compute()
    assert len(caught) == 1 and caught[0].filename == __file__  # once, and not for every metric
    report.reset()
    report.update(target / 1000, target / 1000)
    with pytest.warns(UserWarning, match="thresholds in the unit of the poses; got thresholds up to 150"):
        report.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.reset()
        report.update(target + 1, target)
        report.compute()


def test_mistakes_get_worded_errors():
    pose = 300 * torch.rand(2, 17, 3)
    with pytest.raises(ValueError, match="needs the action of each pose; got None"):
        PoseReport().update(pose, pose)
    with pytest.raises(ValueError, match="has no subjects"):
        PoseReport(actions=None).update(pose, pose, subject="S9")
    with pytest.raises(ValueError, match="needs 2 actions; got 3"):
        PoseReport().update(pose, pose, action=["Eating"] * 3)
    with pytest.raises(ValueError, match="Did you mean 'jump'"):
        PoseReport(actions=["jump", "run"]).update(pose, pose, action="jum")
    with pytest.raises(ValueError, match=r"shape \(N, J, 3\) or \(N, J, 2\)"):
        PoseReport(actions=None).update(pose[None], pose[None])
    with pytest.raises(ValueError, match=r"`unit_scale`.* > 0; got 0"):
        PoseReport(unit_scale=0)
    report = PoseReport(actions=None, joint_names=["a"])
    report.update(pose, pose)
    with pytest.raises(ValueError, match="17 `joint_names`; got 1"):
        report.compute()


def test_real_motion():
    """Standing people turned and scaled, in metres and z up: PA sees only the noise that was added."""
    if not MOCAP.exists():
        pytest.skip(f"{MOCAP} is not on this machine")
    target = torch.from_numpy(np.load(MOCAP)["joints_3d"][::500]).float()
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(target.shape, generator=generator)
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    report = PoseReport(actions=None, unit_scale=1000.0)
    report.update(1.1 * (target + noise) @ turn.mT + 2.0, target)
    result = report.compute()
    assert 25 < result["PA-MPJPE"].frame_mean < 35  # 0.02 m in each of three axes is 32 mm, less what alignment takes
    assert result["MPJPE"].frame_mean > 100


def test_names_never_become_markup():
    names = ["=1+1", "<script>", "a|b", r"\input{x}", "50%_^~", "line\nbreak", "*bold*", "_it_"]
    pose = 300 * torch.rand(len(names), 17, 3)
    report = PoseReport(actions=names, joint_names=[names[i % 8] for i in range(17)], examples=0)
    report.update(pose + 30, pose, action=names)
    result = report.compute()
    text = result.to_markdown()
    assert (
        "<script>" not in text
        and "&lt;script&gt;" in text
        and r"a\|b" in text
        and r"\*bold\*" in text
        and r"\_it\_" in text
    )
    widths = {line.replace(r"\|", "").count("|") for line in text.split("\n\n")[0].splitlines()}
    assert widths == {len(names) + 4}  # every row has every column
    latex = result.to_latex()
    assert (
        r"\input" not in latex
        and r"\textbackslash{}" in latex
        and r"50\%\_\textasciicircum{}\textasciitilde{}" in latex
    )
    rows = list(csv.reader(io.StringIO(result.to_csv())))
    assert all(len(row) == 6 for row in rows)
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)
    assert ["MPJPE", "mm", "action", "'=1+1"] in [row[:4] for row in rows]
