"""A command that is stopped at any file operation and repeated gives the result of one that is not stopped."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import IO

import formats
import pytest
from crashing import FileOperations, contents, kills
from rich.console import Console
from small import POSES_ONLY

from unihpe_ref.applications import ablation, run
from unihpe_ref.applications.commands import Train
from unihpe_ref.applications.export import export_model
from unihpe_ref.data import generate_motion
from unihpe_ref.data.prepared import prepare
from unihpe_ref.files import LOCK, locked, write_whole
from unihpe_ref.lifter import Lifter
from unihpe_ref.models import UniHPE

CONFIG = POSES_ONLY.override(
    **{
        "model.pose_encoder": "mlp",  # few tensors, which are most of the time of so short a run
        "model.decoder": "mlp",
        "data.seconds": 1.1,
        "data.subjects": 3,
        "data.min_gap_seconds": 0.5,
        "stage1.steps": 1,
        "stage3.steps": 2,
        "stage1.batch_size": 4,
        "stage3.batch_size": 4,
        "sampler.steps": 1,
        "checkpoint_every": 1,
        "evaluation.stride": 20,
    }
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files, without drawing them and without making the same motion each time."""
    monkeypatch.setattr(
        run,
        "open_motion",
        functools.cache(
            lambda config: generate_motion(
                config.seed, num_subjects=config.data.subjects, takes=config.data.takes, seconds=config.data.seconds
            )
        ),
    )
    monkeypatch.setattr(run, "save_pose_sheet", lambda _model, _source, path, **_: write_whole(path, b"drawn"))


def train(folder: Path, **options: bool) -> None:
    Train(config=CONFIG, out=folder, device="cpu", **options).execute(Console(file=io.StringIO()))


def check(states: list[tuple[str, Path]], again: Callable[[Path], object], place: Path) -> None:
    """Goes on from each state, and compares every file with those of the run that nothing stopped, at ``place``."""
    expected = contents(place)
    wrong = {}
    for operation, copied in states:
        shutil.rmtree(place)
        if copied.exists():
            copied.rename(place)
        try:
            again(place)
        except Exception as error:
            wrong[operation] = repr(error)
            continue
        found = contents(place)
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        if differing:
            wrong[operation] = str(differing)
    assert not wrong, "\n".join(f"{operation}: {what}" for operation, what in wrong.items())


@pytest.mark.usefixtures("quick")
def test_train(tmp_path: Path) -> None:
    states = list(kills(tmp_path, train))
    assert len(states) > 45
    check(states, lambda folder: train(folder, resume=True), tmp_path / "run")


def every_or(step: int) -> pytest.MarkDecorator:
    """Every state where minutes are at hand, and every few of them otherwise."""
    return pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), step])


@pytest.mark.usefixtures("quick")
@every_or(5)
def test_train_again_over_an_older_run(tmp_path: Path, step: int) -> None:
    """With `--overwrite`, and then `--resume`: the older model is there until the new one is."""
    train(tmp_path / "run")
    states = list(kills(tmp_path, lambda folder: train(folder, overwrite=True), tmp_path / "run"))
    assert all((folder / run.MODEL).exists() for _, folder in states)
    check(states[::step], lambda folder: train(folder, resume=True), tmp_path / "run")


ROW = {
    **{f"data.{name}": value for name, value in {"seconds": 1.1, "subjects": 3, "min_gap_seconds": 0.5}.items()},
    "model.image_encoder": "none", "model.encoder_width": 16, "model.encoder_layers": 1, "model.encoder_heads": 2,
    "model.encoder_feedforward": 16, "model.embedding_dim": 32, "model.mlp_width": 16, "model.mlp_blocks": 1,
    "model.decoder_width": 32, "sampler.steps": 1, "stage1.steps": 1, "stage1.batch_size": 4, "stage3.steps": 1,
    "stage3.batch_size": 4, "evaluation.stride": 20,
}  # fmt: skip


def ablate(folder: Path) -> None:
    ablation.Ablate(
        table="4", out=folder, device="cpu", set=tuple(f"{name}={value}" for name, value in ROW.items())
    ).execute(Console(file=io.StringIO(), width=200))


@pytest.mark.usefixtures("quick")
@every_or(5)
def test_ablate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    names = [name for name in ablation.PRESETS if name.startswith("table4-")]
    monkeypatch.setattr(ablation, "PRESETS", names[:2])
    states = list(kills(tmp_path, ablate))
    assert len(states) > 60
    check(states[::step], ablate, tmp_path / "run")


def test_prepare(tmp_path: Path) -> None:
    formats.write_videopose3d(tmp_path / "VideoPose3D" / "data")
    source = Path(shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "VideoPose3D"))

    def again(folder: Path) -> None:
        with contextlib.suppress(FileExistsError):  # finished data
            prepare(source, folder)

    states = list(kills(tmp_path, lambda folder: prepare(source, folder)))
    assert len(states) > 30
    check(states, again, tmp_path / "run")


def test_an_archive_that_is_not_the_one_from_before_is_unpacked_anew(tmp_path: Path) -> None:
    """Killed after the first was unpacked: its arrays must not stand under the name of the second."""
    archives = []
    for name, detected in (("a", True), ("b", False)):
        formats.write_videopose3d(tmp_path / name / "data", detected=detected)
        archives.append(Path(shutil.make_archive(str(tmp_path / name), "zip", tmp_path / name)))
    states = [folder for _, folder in kills(tmp_path, lambda folder: prepare(archives[0], folder))]
    states = [folder for folder in states if (folder / "progress.json").exists()]
    prepare(archives[1], tmp_path / "expected")
    for folder in (states[len(states) // 3], states[-1]):
        (folder / "manifest.json").unlink(missing_ok=True)
        prepare(archives[1], folder)
        assert contents(folder) == contents(tmp_path / "expected")


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.write(telling, b"x")
            signal.pause()
    os.read(told, 1)
    message = f"process {child} at work there. Wait until it is done"
    with pytest.raises(FileExistsError, match=message), locked(tmp_path):
        pass
    with pytest.raises(FileExistsError, match=message):
        train(tmp_path)
    with pytest.raises(FileExistsError, match=message):
        prepare(tmp_path / "source", tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).exists()  # which says nothing: the system has taken the lock back
    with locked(tmp_path), pytest.raises(FileExistsError, match=f"process {os.getpid()} at work"), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_and_its_file_do_not_outlive_an_error(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with contextlib.suppress(error), locked(tmp_path):
            (tmp_path / ".model.tmp").touch()
            raise error
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_at(number: int) -> Callable[[int, str], None]:
    """A disk that is full for one operation; what is removed afterwards makes room."""

    def hear(now: int, _: str) -> None:
        if now == number:
            raise FULL

    return hear


@pytest.mark.usefixtures("quick")
@every_or(9)
def test_a_disk_that_is_full_at_any_operation_harms_nothing(tmp_path: Path, step: int) -> None:
    with FileOperations(tmp_path / "whole") as operations:
        train(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    number = 0
    for number in range(1, len(operations.names), step):
        folder = tmp_path / f"full-{number}"
        with FileOperations(folder, fail_at(number)), contextlib.suppress(OSError):
            train(folder)
        train(folder, resume=True)
        assert contents(folder) == expected, operations.names[number]


@pytest.mark.parametrize("error", [FULL, PermissionError(errno.EACCES, "Permission denied")])
def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(tmp_path: Path, error: OSError) -> None:
    path = tmp_path / "poses.png"
    path.write_bytes(b"before")
    with FileOperations(tmp_path) as operations:
        write_whole(path, b"after")
    for number in range(len(operations.names)):
        path.write_bytes(b"before")

        def hear(now: int, _: str, number: int = number) -> None:
            if now == number:
                raise error

        with (
            FileOperations(tmp_path, hear),
            pytest.raises(type(error), match=rf"{path}` needs space and .*; got {error.strerror}"),
        ):
            write_whole(path, b"after")
        assert contents(tmp_path) == {path.name: b"before"}


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    """The second is refused, and the first one's file is whole."""
    path = tmp_path / "model.pt2"
    told, telling = os.pipe()
    go, going = os.pipe()
    child = os.fork()
    if child == 0:

        def slowly(file: IO[bytes]) -> None:
            file.write(b"first")
            os.write(telling, b"x")
            os.read(go, 1)

        write_whole(path, slowly)
        os._exit(0)
    os.read(told, 1)
    with pytest.raises(FileExistsError, match="needs it for one process alone; got another process at work"):
        write_whole(path, b"second")
    os.write(going, b"x")
    os.waitpid(child, 0)
    assert contents(tmp_path) == {path.name: b"first"}
    write_whole(path, b"second")
    assert contents(tmp_path) == {path.name: b"second"}


def test_export(tmp_path: Path) -> None:
    """The older file stays until the new one is whole."""
    lifter = Lifter(UniHPE(POSES_ONLY.model).eval(), POSES_ONLY)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "encoder.pt2").write_bytes(b"before")
    states = list(kills(tmp_path, lambda folder: export_model(lifter, "encoder-2d", folder / "encoder.pt2"), folder))
    assert len(states) >= 2
    for _, copied in states:
        assert (copied / "encoder.pt2").read_bytes() == b"before"
        write_whole(copied / "encoder.pt2", b"again")
        assert contents(copied) == {"encoder.pt2": b"again"}
