"""The pictures on the pages of the maths show the rows on file, and our errors stay within their bounds."""

import math
import re

import pytest

from benchmarks import accuracy, curves, pictures

# In eps, as in `linalg/test_accuracy_page.py`.
BARS = {
    (accuracy.GRAM3, "value"): 1.0, (accuracy.GRAM3, "value - 1"): 1.5, (accuracy.GRAM3, "gradient"): 3.0,
    (accuracy.SYMMETRIC3, "values"): 3.0, (accuracy.SYMMETRIC3, "deficit"): 1.0,
    (accuracy.SYMMETRIC3, "angle x gap"): 3.0,
    (accuracy.GRAM_N, "value"): 4.0, (accuracy.GRAM_N, "deficit"): 4.0,
}  # fmt: skip


def test_the_pictures_show_the_latest_rows():
    stale = [
        name for name in pictures.CURVES if pictures.digest_in(pictures.FOLDER / name) != pictures.digest(points())
    ]
    if pictures.digest_in(pictures.FOLDER / pictures.FAMILIES) != pictures.digest(accuracy.read(accuracy.ROWS)):
        stale.append(pictures.FAMILIES)
    assert stale == [], "run `python -m benchmarks.curves --draw`"


def test_every_picture_is_on_a_page_of_the_maths():
    pages = "".join(page.read_text() for page in accuracy.PAGE.parent.glob("*.md"))
    drawn = {path.name for path in pictures.FOLDER.glob("*")}
    assert (
        drawn
        == set(pictures.CURVES) | {pictures.FAMILIES, pictures.NOISE}
        == set(re.findall(r"_static/math/([\w-]+\.svg)", pages))
    )


def points():
    return curves.read()


def test_ours_is_within_the_bars_along_every_line():
    ours = [point for point in points() if point.implementation == "ours"]
    assert {(point.operation, point.along) for point in ours} == {(line.operation, line.along) for line in curves.LINES}
    for point in ours:
        assert point.value <= BARS[point.operation, point.quantity], point


def test_sampled_denominators_are_as_the_page_says():
    found = {
        (p.along, p.at, p.implementation, p.quantity): p.value for p in points() if p.operation == curves.DENOMINATOR
    }
    for along, at, *_ in found:
        exact, scaled, sampled = (found[along, at, name, "loss"] for name in ("exact", "scaled", "sampled"))
        # An estimate through the logarithm is too small by about half the relative variance of the sum.
        assert abs(scaled - exact) < 0.5
        assert sampled < exact
        if along == curves.NEGATIVES and at >= 63:
            assert found[along, at, "sampled", "gradient"] > 0.95


def test_a_run_measures_every_line_and_draws_it(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "places", lambda *_: [1e-3])
    monkeypatch.setattr(curves, "denominators", lambda *_: {("exact", "loss"): 1.0, ("sampled", "loss"): math.inf})
    rows, folder = tmp_path / "rows.csv", tmp_path / "pictures"
    assert curves.main(["--count", "2", "--csv", str(rows), "--folder", str(folder)]) == 0
    drawn = {*pictures.CURVES, pictures.FAMILIES}
    assert {path.name for path in folder.iterdir()} == drawn
    first = (folder / "jacobi.svg").read_bytes()
    monkeypatch.setattr(pictures, "CURVES", {"jacobi.svg": pictures.CURVES["jacobi.svg"]})
    assert curves.main(["--draw", "--csv", str(rows), "--folder", str(folder)]) == 0
    assert (folder / "jacobi.svg").read_bytes() == first
    assert pictures.digest_in(folder / "jacobi.svg") == pictures.digest(curves.read(rows)) != pictures.digest([])
    measured = {point.operation for point in curves.read(rows)}
    assert measured == {line.operation for line in curves.LINES} | {
        curves.DENOMINATOR, curves.SIMILARITY, curves.GATHERING,
    }  # fmt: skip


@pytest.mark.parametrize("spread", [1e-2, 1e-5])
def test_two_groups_nearly_have_a_double_eigenvalue(spread):
    import torch

    values = torch.linalg.eigvalsh(curves.two_groups(spread)(8, torch.float64, 0))
    assert (values[:, -1] - values[:, -2]).max() < 60 * spread
    assert (values[:, -2] - values[:, -3]).min() > 3


def test_only_gathering_with_its_gradient_is_one_process():
    found = {(p.at, p.implementation, p.quantity): p.value for p in points() if p.operation == curves.GATHERING}
    for ranks in {at for at, *_ in found} - {1.0}:
        assert found[ranks, "with gradient", "length"] == found[ranks, "with gradient", "cosine"] == 1
        assert found[ranks, "without, all anchors", "length"] == pytest.approx(1 / ranks, rel=1e-3)
        assert found[ranks, "without, all anchors", "cosine"] == 1
        assert found[ranks, "without, own anchors", "cosine"] < 0.995


def test_the_eigenvalue_does_not_see_a_turned_embedding_and_is_near_the_mean_cosine():
    turn = {
        (p.at, p.implementation): p.value for p in points() if (p.operation, p.along) == (curves.SIMILARITY, "turn")
    }
    assert turn[0, "eigenvalue"] == turn[180, "eigenvalue"] == 3
    assert turn[90, "eigenvalue"] == 2
    assert turn[180, "1 + 2 mean cosine"] < 1
    for point in points():
        if (point.operation, point.along) == (curves.SIMILARITY, curves.SPREAD):
            assert 0 < point.value < 0.1 * point.at**2
