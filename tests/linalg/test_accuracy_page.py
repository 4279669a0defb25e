"""The page of errors agrees with the rows on file, and our errors are within the bounds of the tests."""

import math

from benchmarks import accuracy

BARS = {
    "value": 1.0, "value - 1": 1.5, "gradient": 3.0, "values": 3.0, "deficit": 1.0, "angle x gap": 3.0,
}  # fmt: skip


def test_the_page_is_made_from_the_latest_rows():
    assert accuracy.PAGE.read_text() == accuracy.page(accuracy.read(accuracy.ROWS))


def test_ours_is_within_the_bars():
    rows = [row for row in accuracy.read(accuracy.ROWS) if row.implementation == "ours"]
    assert {row.operation for row in rows} == {accuracy.GRAM3, accuracy.SYMMETRIC3, accuracy.GRAM_N}
    for row in rows:
        bar = 4.0 if (row.operation, row.quantity) == (accuracy.GRAM_N, "value") else BARS[row.quantity]
        assert row.error <= bar, row


def test_a_run_measures_every_family_and_sees_a_wrong_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "gram3_excess", lambda a, b, c: accuracy.arc_cosine(a, b, c) + a * 1e-3)
    csv, page = tmp_path / "rows.csv", tmp_path / "page.md"
    assert accuracy.main(["--count", "1", "--csv", str(csv), "--page", str(page)]) == 0
    rows = accuracy.read(csv)
    worst = {row.operation: 0.0 for row in rows}
    for row in rows:
        if row.implementation == "ours":
            worst[row.operation] = max(worst[row.operation], row.error)
    assert worst[accuracy.GRAM3] > 1e3
    assert worst[accuracy.SYMMETRIC3] <= 3
    assert "| random d=512 |" in page.read_text()


def test_figures():
    assert [accuracy.figure(e) for e in (None, 0.123, 99.9, 1234.0, 3e15, math.inf)] == [
        "", "0.12", "99.90", "1e3", "3e15", "not finite",
    ]  # fmt: skip
