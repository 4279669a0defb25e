"""A killed run resumes with the same result; a checkpoint that cannot be used raises and says why."""

import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from crashing import contents
from rich.console import Console
from small import POSES_ONLY, weights

from unihpe_ref.applications.run import MODEL, run, run_folder
from unihpe_ref.checkpoint import load_model
from unihpe_ref.files import file_hash
from unihpe_ref.runs.resume import newest_checkpoint

# Long enough to be killed in the middle, in stage 3 as well; dropout and denoising noise draw at every step.
CONFIG = POSES_ONLY.override(
    **{
        "stage1.steps": 7,
        "stage3.steps": 30,
        "stage3.warmup_steps": 5,
        "stage3.final_learning_rate": 0.1,
        "checkpoint_every": 3,
        "data.subjects": 3,
        "data.seconds": 1.5,
        "stage1.batch_size": 6,
        "evaluation.stride": 60,
    }
)


def train(folder: Path, config=CONFIG, resume: bool = False):
    with run_folder(folder, resume=resume):
        return run(config, folder, Console(file=io.StringIO()), torch.device("cpu"), resume=resume)[0]


def steps(folder: Path) -> list[dict]:
    """The records of the steps, without the time of day."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records if record["event"] == "step"]


def train_in_a_process_of_its_own(folder: Path) -> None:
    torch.manual_seed(os.getpid())  # a new process inherits no state of the generator
    train(folder, resume=True)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = weights(train(whole))
    killed.mkdir()
    log = killed / "log.jsonl"
    ends = []
    # Of a server without threads: torch refuses a backward pass in a fork of a process with threads of autograd.
    context = multiprocessing.get_context("forkserver")
    for lines in (12, 25, None):  # of the log when the blow falls: anywhere between two checkpoints, or within one
        child = context.Process(target=train_in_a_process_of_its_own, args=(killed,))
        child.start()
        while lines is not None and child.is_alive() and not (log.exists() and log.read_bytes().count(b"\n") > lines):
            time.sleep(0.001)
        if lines is not None:
            child.kill()
        child.join()
        ends.append(child.exitcode)
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 0]
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
    config = POSES_ONLY.override(checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unihpe_ref.applications.run.save_model", _fail)
        with pytest.raises(OSError, match="no space"):
            train(folder, config)
    return folder / "checkpoints"


def _fail(*_):
    raise OSError("no space left on device")


def test_the_newest_two_checkpoints_are_kept_and_each_is_a_model(stopped):
    assert [folder.name for folder in sorted(stopped.iterdir())] == ["stage3-00000002", "stage3-00000003"]
    model, config = load_model(stopped / "stage3-00000003" / "model.safetensors")
    assert config.stage3 == POSES_ONLY.stage3
    last = weights(load_model(stopped / "stage3-00000003" / "last.safetensors")[0])
    assert any(
        not torch.equal(tensor, last[name]) for name, tensor in weights(model).items()
    )  # an average, and the last


def test_what_is_left_of_a_checkpoint_that_was_being_written_is_no_checkpoint(stopped):
    partial = stopped / ".stage3-00000009.1.tmp"
    partial.mkdir()
    found = newest_checkpoint(stopped, POSES_ONLY)
    assert (found.stage, found.step) == (3, 3)
    partial.rmdir()


def test_a_run_with_other_settings_does_not_go_on(stopped):
    message = r"a run needs its settings; got seed = 1 \(was 0\), stage3.alpha = 0.5 \(was 1.0\). Take those settings"
    with pytest.raises(ValueError, match=message):
        newest_checkpoint(stopped, POSES_ONLY.override(seed=1, **{"stage3.alpha": 0.5}))
    assert newest_checkpoint(stopped, POSES_ONLY.override(workers=2, log_every=5)) is not None


@pytest.fixture
def copied(stopped, tmp_path) -> Path:
    """The two checkpoints, to be spoilt."""
    return Path(shutil.copytree(stopped, tmp_path / "checkpoints"))


def enter_hashes(folder: Path) -> None:
    """As one who alters a file on purpose would."""
    files = [file for file in folder.iterdir() if file.name != "hashes.json"]
    (folder / "hashes.json").write_text(json.dumps({file.name: file_hash(file) for file in files}))


def state_with(folder: Path, change) -> None:
    """Alters what `state.pt` holds."""
    held = torch.load(folder / "state.pt", weights_only=True)
    change(held)
    torch.save(held, folder / "state.pt")
    enter_hashes(folder)


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors", "last.safetensors", "hashes.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "older", "gone"])
def test_a_damaged_checkpoint_is_named(copied, name, damage):
    newest, older = copied / "stage3-00000003", copied / "stage3-00000002"
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    spoilt = {"cut": content[:-1], "flipped": content, "emptied": b"", "older": (older / name).read_bytes()}
    (newest / name).unlink()
    if damage != "gone":
        (newest / name).write_bytes(spoilt[damage])
    with pytest.raises(ValueError, match=r"stage3-00000003` needs to be a whole checkpoint of this run; got .* Rem"):
        newest_checkpoint(copied, POSES_ONLY)


def test_a_checkpoint_under_another_name_is_not_taken_for_it(copied):
    (copied / "stage3-00000003").rename(copied / "stage3-00000009")
    with pytest.raises(ValueError, match="stage 3, step 3"):
        newest_checkpoint(copied, POSES_ONLY)


def _log(**values):
    return lambda held: held["log"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        _log(lengths={"../victim.txt": 0}),
        _log(lengths={"/tmp/victim.txt": 0}),
        _log(lengths={"steps-../../victim.csv": 0}),
        _log(lengths={"log.jsonl": -1}),
        _log(lengths={"log.jsonl": "0"}),
        _log(lengths=None),
        _log(seconds=math.nan),
        _log(seconds="0"),
        lambda held: held.pop("log"),
        lambda held: held.update(step=-3),
        lambda held: held.update(stage=9),
        lambda held: held.update(step=10**6),
        lambda held: held.update(step=True),
        lambda held: held.update(averaged="many"),
        lambda held: held.update(config={"seed": "x"}),
        lambda held: held.update(config={"unknown": 1}),
    ],
)
def test_what_a_state_says_is_checked_before_it_is_believed(copied, change):
    victim = copied.parent / "victim.txt"
    victim.write_text("mine")
    state_with(copied / "stage3-00000003", change)
    with pytest.raises(ValueError, match="needs to be a whole checkpoint of this run"):
        newest_checkpoint(copied, POSES_ONLY)
    assert victim.read_text() == "mine"


def _moment(change):
    def spoil(held):
        of_matrix = next(state for state in held["optimizer"]["state"].values() if state["exp_avg"].ndim == 2)
        of_matrix["exp_avg"] = change(of_matrix["exp_avg"])

    return spoil


@pytest.mark.parametrize(
    "change",
    [
        _moment(lambda moment: moment.flatten()[:1]),
        _moment(lambda _: torch.zeros(0)),
        _moment(lambda moment: moment.T.contiguous()),
        _moment(lambda moment: moment.double()),
        _moment(lambda moment: moment.to_sparse()),
        _moment(lambda _: 3.0),
        lambda held: held["optimizer"]["state"][0].pop("exp_avg_sq"),
        lambda held: held["optimizer"]["state"].update({10**6: {}}),
        lambda held: held["optimizer"].pop("state"),
        lambda held: held["temperature"].clear(),
        lambda held: held["temperature"].update(log_tau=torch.zeros(3)),
    ],
)
def test_an_optimizer_of_other_weights_is_refused(copied, change):
    """Fused AdamW reads and writes as many moments as there are weights, whatever the moments' shape."""
    state_with(copied / "stage3-00000003", change)
    with pytest.raises(ValueError, match="needs to be a whole checkpoint of this run"):
        train(copied.parent, POSES_ONLY.override(checkpoint_every=2), resume=True)


def test_a_checkpoint_cannot_run_code(copied):
    """`weights_only`: a pickle that asks for anything but tensors and plain values is refused."""
    torch.save({"stage": 3, "call": os.getcwd}, copied / "stage3-00000003" / "state.pt")
    enter_hashes(copied / "stage3-00000003")
    with pytest.raises(ValueError, match="UnpicklingError"):
        newest_checkpoint(copied, POSES_ONLY)


def test_a_folder_with_checkpoints_asks_what_to_do(stopped):
    message = r"without checkpoints; got .* Add `--resume` to continue that run"
    with pytest.raises(FileExistsError, match=message), run_folder(stopped.parent):
        pass
    with run_folder(stopped.parent, resume=True):
        assert stopped.exists()


def test_a_run_that_is_done_stays_as_it_is_and_gets_what_is_missing(tmp_path):
    console = Console(file=io.StringIO())
    expected = weights(train(tmp_path, POSES_ONLY))
    before = contents(tmp_path)
    for missing in ((), ("evaluation.json",), ("poses.png",), ("evaluation.json", "poses.png")):
        for name in missing:
            (tmp_path / name).unlink()
        with run_folder(tmp_path, resume=True):
            done = run(POSES_ONLY, tmp_path, console, torch.device("cpu"), resume=True)
        assert (done is None) == (not missing)
        after = contents(tmp_path)
        records = after.pop("log.jsonl")
        assert after == {name: content for name, content in before.items() if name != "log.jsonl"}
        assert records[: len(before["log.jsonl"])] == before["log.jsonl"]
        assert {record["event"] for record in records[len(before["log.jsonl"]) :]} <= {"evaluation"}
    assert "The run is done; nothing is missing." in console.file.getvalue()
    assert all(torch.equal(value, expected[name]) for name, value in weights(load_model(tmp_path / MODEL)[0]).items())
    with pytest.raises(ValueError, match="a run needs its settings; got seed = 1"), run_folder(tmp_path, resume=True):
        run(POSES_ONLY.override(seed=1), tmp_path, console, torch.device("cpu"), resume=True)
