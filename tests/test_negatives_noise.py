"""The page of the denominators agrees with the rows on file about the schemes' noise."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from benchmarks import negatives_noise, pictures
from benchmarks.accuracy import PAGE

DENOMINATORS = PAGE.parent / "denominators.md"


def test_the_picture_shows_the_latest_rows():
    rows = negatives_noise.read()
    drawn = pictures.FOLDER / pictures.NOISE
    assert pictures.digest_in(drawn) == pictures.digest(rows), "run `python -m benchmarks.negatives_noise --draw`"


def test_the_noise_is_as_the_page_says():
    settings: dict[tuple, dict[str, negatives_noise.Row]] = {}
    for row in negatives_noise.read():
        settings.setdefault((row.along, row.batch, row.dim, row.cosine, row.negatives), {})[row.scheme] = row
    assert len(settings) == len(negatives_noise.SETTINGS)
    for found in settings.values():
        cyclic, permutation, shared = (found[scheme] for scheme in ("cyclic", "permutation", "shared"))
        assert cyclic.noise < 1.05 * permutation.noise
        assert permutation.noise < shared.noise
        assert cyclic.bias < 2 * cyclic.chance
        if cyclic.along == "batch":
            assert 0.67 <= round(cyclic.noise / permutation.noise, 2) <= 0.70
            assert 0.53 <= round(shared.noise, 2) <= 0.57
            assert permutation.noise * permutation.batch**0.5 == pytest.approx(1.2, rel=0.16)  # 1.38 down to 1.11


@pytest.mark.parametrize("batch", [2, 3, 4, 6])
def test_the_law_of_a_single_tuple(batch):
    law = negatives_noise.cyclic_law(batch)
    assert sum(law.values()) == 1
    assert (0, 0) not in law
    assert negatives_noise.total_variation(batch) == Fraction(2, batch**2 * (batch + 1))


def test_the_page_has_the_total_variation():
    said = re.search(r"that is ([\d., and]+) at B = 2, 3, 4 and 8", DENOMINATORS.read_text().replace("\n", " "))
    assert said is not None
    figures = [float(text) for text in re.findall(r"0\.\d+", said[1])]
    assert figures == [float(f"{float(negatives_noise.total_variation(batch)):.2g}") for batch in (2, 3, 4, 8)]


def test_a_run_measures_and_draws(tmp_path, monkeypatch):
    small = [negatives_noise.Setting(along, batch=4, dim=3, negatives=2) for along in ("batch", "negatives")]
    monkeypatch.setattr(negatives_noise, "SETTINGS", small)
    arguments = ["--draws", "3", "--csv", str(tmp_path / "rows.csv"), "--folder", str(tmp_path)]
    assert negatives_noise.main(arguments) == 0
    rows = negatives_noise.read(tmp_path / "rows.csv")
    assert [row.scheme for row in rows] == ["permutation", "cyclic", "shared", "batch"] * 2
    assert pictures.digest_in(tmp_path / pictures.NOISE) == pictures.digest(rows)
