"""The study of when a tuple term pays: its data have the named structure, and its runs can be stopped and resumed."""

from __future__ import annotations

import definitions
import pytest
import torch
import torch.nn.functional as F

from benchmarks import pictures, which_loss, which_loss_data, which_loss_page
from benchmarks.environment import ROOT
from benchmarks.which_loss_data import WORLDS

UNIT = F.normalize(torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0)), dim=-1)


def world(name: str) -> which_loss_data.Description:
    (found,) = (candidate for candidate in WORLDS if candidate.name == name)
    return found


@pytest.mark.parametrize("description", WORLDS, ids=lambda description: description.name)
def test_a_world_is_complete_and_repeats_itself(description: which_loss_data.Description) -> None:
    if (needed := which_loss_data.missing_data(description)) is not None:
        pytest.skip(f"the world needs {needed}")
    first, again, other = (description.make(seed) for seed in (0, 0, 1))
    for part in ("train", "validation", "test"):
        one, two = getattr(first, part), getattr(again, part)
        assert len(one.x) == len(one.y) == len(one.z) == len(one.code) == len(one.label) >= 256
        assert all(
            torch.equal(a, b) and a.isfinite().all() for a, b in zip((one.x, one.y, one.z), (two.x, two.y, two.z))
        )
    if description.name != "digits":
        assert not torch.equal(first.test.x, other.test.x)


def test_no_pair_of_modalities_knows_anything_in_the_world_of_synergy() -> None:
    shown, code, _ = which_loss_data.synergy(200_000, torch.Generator().manual_seed(0))
    x, y, z = ((rows > 0).long() for rows in shown)
    assert torch.equal(x ^ y, z)
    assert code.max() == 15
    for a, b in ((x, y), (x, z), (y, z)):
        counts = torch.bincount(16 * which_loss_data.number(a) + which_loss_data.number(b), minlength=256)
        # 256 equally likely outcomes: chi squared has the mean 255 and the standard deviation 22.6
        assert ((counts - counts.float().mean()) ** 2 / counts.float().mean()).sum() < 255 + 5 * 22.6


@pytest.mark.parametrize("name", [name for name in which_loss.SCORES if name != "sum of cosines"])
def test_a_score_ranks_as_the_similarity_does(name: str) -> None:
    x, y, z = UNIT.double()
    tuples = torch.stack((x[:, None].expand(12, 12, -1), y[:, None].expand(12, 12, -1), z.expand(12, 12, -1)), 2)
    expected = definitions.tuple_similarity(tuples, name)
    assert torch.equal(which_loss.SCORES[name](x, y, z).argsort(1), expected.argsort(1))


@pytest.mark.parametrize("similarity", ["volume", "area"])
def test_tied_both_ways_is_the_transposed_logits_too(similarity: str) -> None:
    x, y, z = UNIT.double()
    tuples = torch.stack((z[:, None].expand(12, 12, -1), x.expand(12, 12, -1), y.expand(12, 12, -1)), 2)
    logits, target = definitions.tuple_similarity(tuples, similarity) / 0.1, torch.arange(12)
    expected = sum(F.cross_entropy(side, target, label_smoothing=0.1) for side in (logits, logits.T)) / 2
    loss = which_loss.tied_both_ways(similarity, label_smoothing=0.1)
    torch.testing.assert_close(loss(x, y, z, 0.1, None), expected)


def test_recall_counts_codes_and_a_tie_is_a_miss() -> None:
    right = torch.tensor([[True, False, False], [False, True, True]])
    assert which_loss.recalls(torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]]), right) == (1.0, 1.0)
    assert which_loss.recalls(torch.tensor([[2.0, 2.0, 0.0], [4.0, 0.0, 3.0]]), right)[0] == 0.0


def test_a_study_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(which_loss, "STEPS", 2)
    monkeypatch.setattr(which_loss, "SEEDS", (0,))
    monkeypatch.setattr(which_loss, "TEMPERATURES", which_loss.TEMPERATURES[:2])
    path = tmp_path / "rows.csv"
    only = [world("redundancy, missing")]
    planned = len(which_loss.CONTENDERS) - 1  # without the exact one
    which_loss.run(path, only, limit_seconds=0)
    assert not path.exists()
    which_loss.run(path, only, limit_seconds=1e9)
    whole = path.read_text()
    assert len(which_loss.read(path)) == planned * (len(which_loss.TEMPERATURES) + 1)
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:5]))
    which_loss.run(path, only, limit_seconds=1e9)
    assert len(which_loss.read(path)) == len(lines) - 1
    which_loss.run(path, only, limit_seconds=1e9)
    assert len(path.read_text().splitlines()) == len(lines), "nothing is run twice"
    for row in which_loss.read(path).values():
        assert 0 <= float(row["one_recall_1"]) <= float(row["one_recall_10"]) <= 1
        assert row["temperature"] in ("tuning", "fixed")
    capsys.readouterr()


def test_the_page_and_its_picture_are_those_of_the_rows_on_file() -> None:
    rows = list(which_loss.read(which_loss.ROWS).values())
    assert rows
    assert which_loss_page.page(rows) == which_loss_page.PAGE.read_text(), "run `python -m benchmarks.which_loss_page`"
    assert pictures.digest_in(which_loss_page.PICTURE) == pictures.digest(rows)


def test_a_mean_needs_every_seed() -> None:
    row = {"world": "w", "loss": "l", "temperature": "fixed", "two_recall_1": "0.5"}
    assert which_loss_page.chosen([row] * 2, "w", "l") == []
    assert which_loss_page.figure_of([row] * 3, "w", "l") == "50 %"
    assert which_loss_page.figure_of([row], "w", "l") == "(not run)"
    tuning = row | {"temperature": "tuning", "two_recall_1": "0.7"}
    assert which_loss_page.figure_of([row, tuning], "w", "l") == "70 % (validation, one seed)"


@pytest.mark.parametrize("page", ["README.md", "docs/choosing-a-loss.md", "docs/index.md"])
def test_figures_in_prose_are_those_of_the_rows(page: str) -> None:
    text = (ROOT / page).read_text()
    rows = list(which_loss.read(which_loss.ROWS).values())
    for name in ("body halves", "digits"):
        for loss in (which_loss_page.PAIRS, which_loss_page.VOLUME):
            assert which_loss_page.figure_of(rows, name, loss) in text


def test_steps_are_timed_in_turns_and_beside_pairs() -> None:
    times = which_loss.time_steps(rounds=2, steps=1)
    assert [time.loss for time in times] == [contender.name for contender in which_loss.CONTENDERS]
    assert times[0].over_pairs == times[0].over_pairs_p20 == times[0].over_pairs_p80 == 1
    assert all(time.over_pairs_p20 <= time.over_pairs <= time.over_pairs_p80 for time in times)
    assert which_loss_page.times_table([vars(time) for time in times]).count("\n") == len(times) + 2
