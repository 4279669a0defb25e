"""The timing code: it measures right, never times wrong results, and only appends rows."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multicontrast
from benchmarks import cases, cli, driver, kernels, losses, table, timing
from benchmarks.environment import describe_environment

CPU = torch.device("cpu")
definitions = cases.definitions


def row(
    implementation: str = "ours", p50: float | None = 2.0, date: str = "2026-01-01T00:00:00Z", **changes: object
) -> driver.Row:
    """A row as a run would make it."""
    values = {"benchmark": "timing", "case": "step", "shape": "B=8 D=4", "dtype": "float32", "device": "a CPU"}
    status = "ok" if p50 else driver.OUT_OF_MEMORY
    times = {"p20_ms": p50, "p50_ms": p50, "p80_ms": p50, "status": status, "threads": 1, "date": date}
    return driver.Row(implementation=implementation, **{**values, **times, **changes})


# --- counting ---------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30), st.floats(0, 1))
def test_quantiles_are_those_of_numpy(seconds: list[float], share: float) -> None:
    assert driver.Samples(seconds).quantile(share) == pytest.approx(1e3 * np.quantile(seconds, share), rel=1e-12)


def test_peak_memory_is_counted_to_the_byte() -> None:
    million = 2**20

    def step() -> None:
        first = torch.zeros(million, dtype=torch.uint8)
        second = torch.zeros(2 * million, dtype=torch.uint8)
        del first
        third = torch.zeros(million // 2, dtype=torch.uint8)
        del second, third

    assert driver.peak_bytes(step, CPU) == 3 * million


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = driver.measure(contenders, CPU, rounds=4, memory=False)
    rounds = [calls[3 + 3 * k : 6 + 3 * k] for k in range(4)]  # after the warm-up
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1, "the order is shuffled"
    assert all(len(sample.seconds) == 4 for sample in samples.values())


def test_out_of_memory_is_a_row_and_the_others_go_on() -> None:
    def greedy() -> None:
        torch.empty(2**46, dtype=torch.uint8)  # 64 TiB

    samples = driver.measure({"greedy": greedy, "modest": lambda: torch.zeros(3)}, CPU, rounds=2)
    made = driver.make_row(
        samples["greedy"],
        describe_environment(CPU, "wall"),
        benchmark="timing",
        case="step",
        implementation="greedy",
        shape="",
        dtype="float32",
    )
    assert (made.status, made.p50_ms, made.peak_mb) == (driver.OUT_OF_MEMORY, None, None)
    assert len(samples["modest"].seconds) == 2
    assert "out of memory" in timing.table([made])


def test_an_allocation_beyond_the_limit_raises_instead_of_killing() -> None:
    with driver.memory_limit(extra_bytes=2**28), pytest.raises(RuntimeError) as caught:
        torch.empty(2**31, dtype=torch.uint8)
    assert driver.is_out_of_memory(caught.value)
    torch.empty(2**31, dtype=torch.uint8)  # the limit is gone


def test_other_errors_are_not_mistaken_for_memory() -> None:
    def broken() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        driver.measure({"broken": broken}, CPU, rounds=1)


# --- the check before the stopwatch -----------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["lapack", "arc cosine", "determinant", "area"])
def test_baselines_are_what_they_claim(baseline: str) -> None:
    inputs = cases.make_inputs(7, 5, torch.float64, CPU)
    xs, tau = inputs.xs, inputs.tau
    tied = multicontrast.sample_tuples(7, 3, scheme="tied")
    pairs = {
        "lapack": (
            lambda: cases.lapack_on_gathered_cosines(xs, inputs.index, tau),
            lambda: definitions.algorithm2_triplet(*xs, inputs.index, tau),
        ),
        "arc cosine": (
            lambda: cases.arccosine_on_gathered_cosines(xs, inputs.index, tau),
            lambda: definitions.algorithm2_triplet(*xs, inputs.index, tau),
        ),
        "determinant": (
            lambda: cases.direct_determinant(xs, tau),
            lambda: definitions.sampled_infonce(xs, tied, tau, "volume").mean(),
        ),
        "area": (
            lambda: cases.direct_area(xs, tau),
            lambda: definitions.sampled_infonce(xs, tied, tau, "area").mean(),
        ),
    }
    mine, definition = pairs[baseline]
    losses_by_name = {"definition": definition, baseline: mine}
    worst = cases.check_agreement(losses_by_name, inputs.leaves, value_tolerance=1e-12, gradient_tolerance=1e-10)
    assert worst < 1e-10


@pytest.mark.parametrize("wrong", [lambda x: 1.001 * x, lambda x: x + 1.01 * (x - x.detach()), lambda x: x * torch.nan])
def test_a_wrong_value_or_gradient_is_refused(wrong: object) -> None:
    inputs = cases.make_inputs(6, 4, torch.float64, CPU)

    def loss() -> torch.Tensor:
        return definitions.three_pairs(inputs.xs, inputs.tau)

    with pytest.raises(driver.BenchmarkError, match="Nothing was timed"):
        cases.check_agreement(
            {"definition": loss, "wrong": lambda: wrong(loss())},
            inputs.leaves,
            value_tolerance=1e-5,
            gradient_tolerance=1e-3,
        )


@pytest.mark.parametrize("benchmark", [timing, losses])
def test_nothing_is_printed_or_filed_when_the_library_is_wrong(
    benchmark: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = multicontrast.trimodal_infonce
    monkeypatch.setattr(multicontrast, "trimodal_infonce", lambda *args, **options: 1.01 * right(*args, **options))
    size = ["--batch", "8", "--dim", "16", "--rounds", "1", "--csv", str(tmp_path / "rows.csv")]
    assert benchmark.main(size + (["--loss-only"] if benchmark is timing else [])) == 1
    printed = capsys.readouterr()
    assert "Nothing was timed" in printed.err
    assert "p50" not in printed.out
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_kernel_is_refused() -> None:
    group = kernels.groups(50, 6, 4, CPU, 0)[0]
    assert kernels.check(group, 0) < group.gradient_tolerance
    spoiled = kernels.Group("spoiled", "", group.leaves, {**group.contenders, "bad": lambda a, b, c: a + b + c})
    with pytest.raises(driver.BenchmarkError, match="`bad`"):
        kernels.check(spoiled, 0)


# --- runs -------------------------------------------------------------------------------------------------------


def test_timing_makes_a_table_rows_json_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"run.{name}" for name in ("csv", "json", "png")}
    size = ["--loss-only", "--batch", "8", "--dim", "16", "--rounds", "2"]
    where = ["--csv", str(files["csv"]), "--json", str(files["json"]), "--plot", str(files["png"])]
    assert timing.main(size + where) == 0
    out = capsys.readouterr().out
    for expected in (*timing.losses(), "our reading", "commit", "tf32", "overhead"):
        assert expected in out
    rows = driver.read_rows(files["csv"])
    assert sorted(made.implementation for made in rows) == sorted(timing.losses())  # each the moment it was measured
    assert all(made.p20_ms <= made.p50_ms <= made.p80_ms and made.peak_mb > 0 for made in rows)
    assert json.loads(files["json"].read_text())["rows"][0]["rounds"] == 2
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_the_whole_step_trains_the_image_encoder_alone() -> None:
    pytest.importorskip("timm")
    preset = timing.Preset(batch=2, encoder="hrnet_w18_small", height=32, width=32, dim=8, rounds=1)
    seen: list[tuple[bool, ...]] = []

    def loss(xs: tuple[torch.Tensor, ...], tau: torch.Tensor) -> torch.Tensor:
        seen.append((*(x.requires_grad for x in xs), tau.requires_grad))
        return timing.losses()[timing.OURS](xs, tau)

    timing.step_with_encoder(preset, CPU, 0)(loss)()
    assert seen == [(True, False, False, True)]


def test_files_of_the_repository_are_written_only_when_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked, scratch = tmp_path / "results", tmp_path / "runs"
    monkeypatch.setattr(driver, "RESULTS", tracked)
    monkeypatch.setattr(cli, "SCRATCH", scratch)
    size = ["--loss-only", "--batch", "8", "--dim", "16", "--rounds", "1"]
    assert timing.main(size) == 0
    assert not tracked.exists()
    assert {path.name for path in scratch.iterdir()} == {"timing.csv", "timing.json"}
    assert timing.main([*size, "--record"]) == 0
    assert {path.name for path in tracked.iterdir()} == {"timing.csv", "timing.json"}


@pytest.mark.parametrize("path", sorted((cli.ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_no_benchmark_has_a_tracked_file_as_its_default(path: Path) -> None:
    defaults = re.findall(r"add_argument\([^\n]*default=([^,)]+)", path.read_text())
    assert [text for text in defaults if re.search(r"ROWS|PAGE|RESULTS|FOLDER|ACCURACY", text)] == []


def test_losses_prints_its_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--batch", "8", "--dim", "16", "--rounds", "1"]
    where = ["--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    assert losses.main(size + where) == 0
    assert "trimodal / three pairs" in capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())["ratios"]
    assert {"trimodal", "triplet"} <= {entry["numerator"] for entry in found}


def test_a_large_batch_is_timed_and_counted_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(losses, "LARGE", (9000, 4))  # above 8192 in tiles of its own accord
    files = ["--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json")]
    assert losses.main(["--large", *files]) == 0
    assert "checked: float32" in capsys.readouterr().out
    (made,) = driver.read_rows(tmp_path / "a.csv")
    assert (made.implementation, made.shape, made.rounds) == (losses.TILED, "B=9000 D=4", 1)
    assert made.p50_ms > 0
    assert 0 < made.peak_mb < 9000**2 * 4 / 2**20, "no B x B block"


# --- rows -------------------------------------------------------------------------------------------------------


def test_rows_survive_the_file() -> None:
    both = [row(), row("lost", None), row("other", load=1.5, peak_mb=3.25)]
    for name in ("rows.csv", "rows.json"):
        assert _written(name, both) == both


def _written(name: str, rows: list[driver.Row]) -> list[driver.Row]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        (driver.append_csv if name.endswith("csv") else driver.write_json)(path, rows)
        return driver.read_rows(path)


def test_rows_are_only_added(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    driver.append_csv(path, [row()])
    before = path.read_text()
    driver.append_csv(path, [row("other")])
    assert path.read_text().startswith(before)
    assert [made.implementation for made in driver.read_rows(path)] == ["ours", "other"]


def test_a_file_of_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerow(["time", "name"])
    before = path.read_bytes()
    with pytest.raises(driver.BenchmarkError, match="never rewritten"):
        driver.append_csv(path, [row()])
    assert path.read_bytes() == before


def test_a_slower_run_fails_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base.csv"
    size = ["--loss-only", "--batch", "8", "--dim", "16", "--rounds", "1", "--compare", str(base)]
    size += ["--csv", str(tmp_path / "rows.csv"), "--json", str(tmp_path / "rows.json")]
    environment = describe_environment(CPU, driver.clock_name(CPU))
    fast = driver.Samples([1e-6])
    where = {"benchmark": "timing", "case": "losses of one stage-2 step", "shape": "B=8 D=16", "dtype": "float32"}
    driver.append_csv(base, [driver.make_row(fast, environment, implementation=timing.OURS, **where)])
    assert timing.main(size) == 0
    assert timing.main([*size, "--fail-above", "1.5"]) == 1
    assert "times as long as before" in capsys.readouterr().err


def test_rows_of_another_machine_are_not_compared() -> None:
    with pytest.raises(driver.BenchmarkError, match="on this machine"):
        driver.compare([row()], [row(device="another CPU")])


def test_a_table_shows_the_newest_run_whole() -> None:
    old = [row(timing.PAIRS, 1000.0), row(timing.SVD, 3000.0), row(timing.OURS, 1100.0)]
    new = [
        row(timing.PAIRS, 2000.0, "2026-02-01T00:00:00Z"),
        row(timing.SVD, None, "2026-02-01T00:00:00Z"),
    ]
    made = table.timing_table(old + new)
    assert "out of memory" in made
    assert timing.OURS not in made
    assert "2.00 (2.00 to 2.00)" in made


def test_the_papers_figures_stand_beside_whole_steps_only() -> None:
    names = [timing.PAIRS, timing.SVD, timing.EIGENVALUE, timing.OURS]
    steps = [row(name, 1000.0 + 135 * k) for k, name in enumerate(names)]
    alone = [row(name, 1000.0, case=timing.LOSSES_ALONE) for name in names]
    for make in (timing.table, table.timing_table):
        text = make(steps)
        assert all(
            figure in text for figure in ("1.77 s", "2.64 s (+49.1 %)", "2.01 s (+13.5 %)", "+13.5 %", "+40.5 %")
        )
        assert "1.77 s" not in make(alone)


def test_the_run_for_a_gpu_is_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    """It ends in time whatever happens, and says what became of each part."""
    from benchmarks import on_a_gpu

    on_a_gpu.time_losses(tmp_path, on_gpu=False)
    rows = driver.read_rows(tmp_path / "rows.csv")
    assert {made.dtype for made in rows} == set(on_a_gpu.PRECISIONS)
    assert {"matrix products alone", "clip x3", "trimodal", "pairs"} == {made.implementation for made in rows}
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    hangs = on_a_gpu.Part("hangs", ("-c", code), 1.0)
    fails = on_a_gpu.Part("fails", ("-c", "raise SystemExit(3)"), 1.0)
    done = [(part, *on_a_gpu.run(part, tmp_path, 1.0)) for part in (hangs, fails)]
    assert done[0][1].startswith("out of time") and done[0][2] < 20
    (tmp_path / "environment.txt").write_text("device: a CPU")
    page = on_a_gpu.summary(tmp_path, done, on_gpu=False)
    assert "rehearsal" in page and "| fails | exit status 3 |" in page and "| trimodal |" in page
    names = [part.name for part in on_a_gpu.parts(tmp_path, on_gpu=True)]
    assert names == ["tests", "paper", "losses", "kernels"]
