"""The log of a run: JSONL, CSV and event files that agree, and the display."""

import csv
import io
import json
import sys

import pytest
from rich.console import Console

from unihpe_ref.training.logs import RunLog, clock


def record(step: int) -> dict[str, float]:
    return {"loss": 1 / step, "tau": 0.2, "cosine_2d_3d": 0.5}


def play(folder, steps, *, terminal=False, resume=None, done=0, **options):
    """Two stages, the second with one column more; returns what was shown."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
    with RunLog(folder / "log.jsonl", console, resume=resume, **options) as log:
        for name in ("1 poses", "3 everything"):
            log.begin_stage(name, 4, done)
            for step in range(done + 1, steps + 1):
                extra = {"decoding_3d": 2.0} if name[0] == "3" else {}
                log.step(step, record(step) | extra)
            state = log.state()
    return console.file.getvalue(), state


def test_csv_and_jsonl_hold_the_same_numbers(tmp_path):
    play(tmp_path, 4)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for slug, stage in (("1-poses", "1 poses"), ("3-everything", "3 everything")):
        rows = list(csv.DictReader((tmp_path / f"steps-{slug}.csv").open()))
        expected = [{k: str(v) for k, v in line.items() if k not in ("event", "seconds", "stage")}
                    for line in lines if line["stage"] == stage]  # fmt: skip
        assert rows == expected
        assert len(rows) == 4


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path):
    folder, other = tmp_path / "cut", tmp_path / "whole"
    folder.mkdir(), other.mkdir()
    console = Console(file=io.StringIO())
    with RunLog(folder / "log.jsonl", console) as log:
        log.begin_stage("1 poses", 6)
        for step in range(1, 6):
            log.step(step, record(step))
            if step == 3:
                state = log.state()
        log.begin_stage("3 everything", 6)  # of which the checkpoint knows nothing
        log.step(1, record(1))
    with RunLog(folder / "log.jsonl", console, resume=state) as log:
        log.begin_stage("1 poses", 6, 3)
        for step in range(4, 7):
            log.step(step, record(step))
    with RunLog(other / "log.jsonl", console) as log:
        log.begin_stage("1 poses", 6)
        for step in range(1, 7):
            log.step(step, record(step))
    assert (folder / "steps-1-poses.csv").read_text() == (other / "steps-1-poses.csv").read_text()
    assert not (folder / "steps-3-everything.csv").exists()
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_new_log_removes_the_tables_of_an_old_one(tmp_path):
    (tmp_path / "steps-2-images.csv").write_text("old")
    play(tmp_path, 1)
    assert not (tmp_path / "steps-2-images.csv").exists()


def test_a_terminal_sees_a_table_and_a_file_plain_lines(tmp_path):
    live, _ = play(tmp_path, 4, terminal=True)
    for word in ("loss", "L_3D", "cos 2d-3d", "steps/s", "left", "3 everything", "4/4"):
        assert word in live
    plain, _ = play(tmp_path, 4)
    assert "\x1b" not in plain
    assert "3 everything           4/4  loss 0.250  tau 0.200" in plain
    assert "left" in plain


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"needs the package of that name; got no such package. Run `pip install"):
        RunLog(tmp_path / "log.jsonl", Console(file=io.StringIO()), tensorboard=True)


def test_event_files_hold_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    play(tmp_path, 4, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "3-everything")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Scalars("loss")[3].value == 0.25


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (74.2, "1:15"), (3700, "1:01:40")])
def test_clock(seconds, words):
    assert clock(seconds) == words
