"""Killed at any moment, a run goes on as if nothing had happened; and a checkpoint that cannot be used says why."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small import POSES_ONLY, SMALL, weights

from unihpe_ref.checkpoint import load_model
from unihpe_ref.resume import newest_checkpoint
from unihpe_ref.runs import prepare_folder, run

# Long enough to be killed in the middle, in stage 3 as well; dropout and denoising noise draw at every step.
CONFIG = POSES_ONLY.override(
    **{
        "stage1.steps": 7,
        "stage3.steps": 60,
        "stage3.warmup_steps": 5,
        "stage3.final_learning_rate": 0.1,
        "checkpoint_every": 3,
        "data.subjects": 3,
        "data.seconds": 1.5,
        "stage1.batch_size": 6,
        "evaluation.stride": 60,
    }
)
PROGRAM = """
import io, json, sys, torch
from pathlib import Path
from rich.console import Console
from unihpe_ref.config import RunConfig
from unihpe_ref.runs import prepare_folder, run
torch.set_num_threads(1)
folder = Path(sys.argv[1])
prepare_folder(folder, overwrite=False, resume=True)
run(RunConfig.from_dict(json.loads(sys.argv[2])), folder, Console(file=io.StringIO()), torch.device("cpu"), resume=True)
"""


def train(folder: Path, config=CONFIG, resume: bool = False):
    prepare_folder(folder, overwrite=False, resume=resume)
    return run(config, folder, Console(file=io.StringIO()), torch.device("cpu"), resume=resume)[0]


def steps(folder: Path) -> list[dict]:
    """The records of the steps, without the time of day."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records if record["event"] == "step"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = weights(train(whole))
    killed.mkdir()
    log = killed / "log.jsonl"
    command = [sys.executable, "-c", PROGRAM, str(killed), json.dumps(CONFIG.to_dict())]
    kills = 0
    for lines in (15, 45, None):  # of the log when the blow falls: anywhere between two checkpoints, or within one
        process = subprocess.Popen(command)
        while (
            lines is not None
            and process.poll() is None
            and not (log.exists() and log.read_bytes().count(b"\n") > lines)
        ):
            time.sleep(0.001)
        if lines is not None:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert process.wait() == 0
    assert kills == 2
    assert steps(killed) == steps(whole)
    for name in ("steps-1-poses.csv", "steps-3-everything.csv", "evaluation.json", "config.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    actual = weights(load_model(killed / "model.safetensors")[0])
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not (killed / "checkpoints").exists()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that failed after its checkpoints: nothing but the evaluation was missing."""
    folder = tmp_path_factory.mktemp("run")
    config = SMALL.override(checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unihpe_ref.runs.save_model", _fail)
        with pytest.raises(OSError, match="no space"):
            train(folder, config)
    return folder / "checkpoints"


def _fail(*_):
    raise OSError("no space left on device")


def test_the_newest_two_checkpoints_are_kept_and_each_is_a_model(stopped):
    assert [folder.name for folder in sorted(stopped.iterdir())] == ["stage3-00000002", "stage3-00000003"]
    model, config = load_model(stopped / "stage3-00000003" / "model.safetensors")
    assert config.stage3 == SMALL.stage3
    last = weights(load_model(stopped / "stage3-00000003" / "last.safetensors")[0])
    assert any(
        not torch.equal(tensor, last[name]) for name, tensor in weights(model).items()
    )  # an average, and the last


def test_what_is_left_of_a_checkpoint_that_was_being_written_is_no_checkpoint(stopped):
    partial = stopped / ".stage3-00000009.1.tmp"
    partial.mkdir()
    found = newest_checkpoint(stopped, SMALL)
    assert (found.stage, found.step) == (3, 3)
    partial.rmdir()


def test_a_run_with_other_settings_does_not_go_on(stopped):
    message = r"a run needs its settings; got seed = 1 \(was 0\), stage3.alpha = 0.5 \(was 1.0\). Take those settings"
    with pytest.raises(ValueError, match=message):
        newest_checkpoint(stopped, SMALL.override(seed=1, **{"stage3.alpha": 0.5}))
    assert newest_checkpoint(stopped, SMALL.override(workers=2, log_every=5)) is not None


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_damaged_checkpoint_is_named(stopped, cut, tmp_path):
    whole = (stopped / "stage3-00000003" / "state.pt").read_bytes()
    (tmp_path / "stage3-00000003").mkdir()
    (tmp_path / "stage3-00000003" / "state.pt").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"stage3-00000003` needs a whole `state.pt`; got .* Remove this folder"):
        newest_checkpoint(tmp_path, SMALL)


def test_a_checkpoint_cannot_run_code(tmp_path):
    """`weights_only`: a pickle that asks for anything but tensors and plain values is refused."""
    (tmp_path / "stage1-00000003").mkdir()
    torch.save({"stage": 1, "call": os.getcwd}, tmp_path / "stage1-00000003" / "state.pt")
    with pytest.raises(ValueError, match="UnpicklingError"):
        newest_checkpoint(tmp_path, SMALL)


def test_a_folder_with_checkpoints_asks_what_to_do(stopped):
    with pytest.raises(FileExistsError, match=r"without checkpoints; got .* Add `--resume` to go on from them"):
        prepare_folder(stopped.parent, overwrite=False)
    prepare_folder(stopped.parent, overwrite=False, resume=True)
    assert stopped.exists()
