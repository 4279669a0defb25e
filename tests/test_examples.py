"""The recipes run, and over ranks they end where one process ends."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_losses_of_other_libraries_are_ours():
    import coming_from

    missing = []
    for name, make in coming_from.PEERS.items():
        try:
            value, gradient = coming_from.differences(make)
        except ImportError as error:
            missing.append(f"{name}: {error}")
            continue
        assert value < 1e-12, name
        assert gradient < 1e-12, name
    if missing:
        pytest.skip("; ".join(missing))


def test_every_recipe_is_named_in_the_list():
    listed = set(re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
