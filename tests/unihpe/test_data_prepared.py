"""Conversion is complete or absent, resumes after an interruption, and preserves the data."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import formats
import numpy as np
import pytest
import torch

from unihpe_ref.__main__ import main
from unihpe_ref.data import Motion, read_data
from unihpe_ref.data import prepared as module
from unihpe_ref.data.camera import Camera
from unihpe_ref.data.pictures import SHARD, Shards, decode
from unihpe_ref.data.prepared import MANIFEST, PROGRESS, open_prepared, prepare
from unihpe_ref.data.recording import Recording, row_fields

TABLES = ("sequence_name", "subject", "action", "split", "fps", "notes", "format")


def assert_same(one: Recording, other: Recording) -> None:
    assert [getattr(one, name) for name in TABLES] == [getattr(other, name) for name in TABLES]
    assert list(row_fields(one)) == list(row_fields(other))
    for name, array in row_fields(one).items():
        np.testing.assert_array_equal(array, row_fields(other)[name], err_msg=name)
    for field in dataclasses.fields(Camera):
        assert torch.equal(getattr(one.cameras, field.name), getattr(other.cameras, field.name))
    assert one.camera_name.tolist() == other.camera_name.tolist()
    assert one.calibrated.tolist() == other.calibrated.tolist()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_recording_comes_back_memory_mapped(tmp_path):
    formats.write_videopose3d(tmp_path / "data")
    data = prepare(tmp_path / "data", tmp_path / "out")
    assert_same(data, read_data(tmp_path / "data"))
    assert isinstance(data.joints_3d, np.memmap)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert {Path(name).name for name in manifest["sources"]} == {
        "data_3d_h36m.npz", "data_2d_h36m_gt.npz", "data_2d_h36m_cpn_ft_h36m_dbb.npz", "h36m_dataset.py",
    }  # fmt: skip
    assert "Human3.6M" in manifest["licence"]
    assert not (tmp_path / "out" / PROGRESS).exists()
    assert_same(open_prepared(tmp_path / "out", verify=True), data)


def test_thinned_to_a_frame_rate(tmp_path):
    formats.write_videopose3d(tmp_path / "data")
    data = prepare(tmp_path / "data", tmp_path / "out", fps=10)
    assert set(data.frame.tolist()) == {0, 5, 10, 15}
    with pytest.raises(ValueError, match=r"multiples of 7.*got \[50\.0\]"):
        prepare(tmp_path / "data", tmp_path / "other", fps=7)
    formats.write_bvh(tmp_path / "walk.bvh")
    with pytest.raises(ValueError, match=r"of which 59\.9988 is a multiple; got 50"):
        prepare(tmp_path / "walk.bvh", tmp_path / "another", fps=50)
    for fps in (0.0, -10.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`fps` to be a finite number and > 0"):
            prepare(tmp_path / "walk.bvh", tmp_path / "last", fps=fps)
    assert not (tmp_path / "last").exists()


def test_motion_comes_back(tmp_path):
    formats.write_amc(tmp_path / "mocap", takes=2)
    motion = prepare(tmp_path / "mocap", tmp_path / "out")
    assert isinstance(motion, Motion)
    direct = read_data(tmp_path / "mocap")
    assert torch.equal(motion.joints, direct.joints)
    assert torch.equal(motion.sequence, direct.sequence)
    assert (motion.name, motion.split, motion.fps) == (direct.name, direct.split, direct.fps)
    assert len(json.loads((tmp_path / "out" / MANIFEST).read_text())["sources"]) == 3  # two takes and the skeleton


def test_crops_hold_the_person(tmp_path):
    """The map that is stored leads from pixels of the full picture to those of the crop."""
    formats.write_coco(tmp_path / "coco")
    data = prepare(tmp_path / "coco", tmp_path / "out", crops=True)
    assert isinstance(data, Recording)
    crop = np.asarray(decode(data.picture_bytes(0), "crop")).astype(float)
    assert crop.shape == (384, 288, 3)
    for joint in (1, 6, 13, 16):
        full = data.joints_2d[0, joint]
        x, y = (data.picture_affine[0, :, :2] @ full + data.picture_affine[0, :, 2]).round().astype(int)
        back = np.linalg.inv(data.picture_affine[0, :, :2]) @ (np.array([x, y]) - data.picture_affine[0, :, 2])
        # the picture's red and green are its coordinates, 255 to 499 pixels
        np.testing.assert_allclose(crop[y, x, :2] * 499 / 255, back, atol=6)
    assert_same(open_prepared(tmp_path / "out", verify=True), data)


@pytest.mark.parametrize("fatal", range(0, 26, 5))
def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch, fatal):
    """Killed at any piece: nothing can be opened, and the same call ends as if nothing had happened."""
    formats.write_coco(tmp_path / "coco")
    prepare(tmp_path / "coco", tmp_path / "whole", crops=True)
    written, original = [], module.Pieces.put

    def put(self, name, content):
        if len(written) == fatal:
            (self.folder / name).with_name(".half.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        original(self, name, content)
        written.append(name)

    monkeypatch.setattr(module.Pieces, "put", put)
    try:
        prepare(tmp_path / "coco", tmp_path / "out", crops=True)
    except KeyboardInterrupt:
        with pytest.raises(FileNotFoundError, match=r"an unfinished one.*Run the same .* again"):
            open_prepared(tmp_path / "out")
    monkeypatch.setattr(
        module.Pieces, "put", lambda self, name, content: (written.append(name), original(self, name, content))
    )
    if not (tmp_path / "out" / MANIFEST).exists():
        prepare(tmp_path / "coco", tmp_path / "out", crops=True)
    assert len(written) == len(set(written))  # no piece twice
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_piece_that_changed_meanwhile_is_written_again(tmp_path, monkeypatch):
    formats.write_coco(tmp_path / "coco")
    prepare(tmp_path / "coco", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    (tmp_path / "out" / MANIFEST).unlink()
    (tmp_path / "out" / PROGRESS).write_text(json.dumps({"key": manifest["key"], "pieces": manifest["pieces"]}))
    piece = tmp_path / "out" / "arrays" / "joints_2d.npy"
    piece.write_bytes(piece.read_bytes()[:-1] + b"\x7f")
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    prepare(Path("coco"), tmp_path / "out", say=said.append)  # another spelling of the same place
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sum("kept from before" in words for words in said) == len(manifest["pieces"]) - 1


def test_other_options_do_not_reuse_pieces(tmp_path):
    """An unfinished folder of other data is written anew, and nothing of it stays."""
    formats.write_coco(tmp_path / "coco")
    formats.write_mmpose_h36m(tmp_path / "h36m")
    prepare(tmp_path / "coco", tmp_path / "out", crops=True)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    (tmp_path / "out" / MANIFEST).rename(tmp_path / "out" / PROGRESS)
    assert manifest["pieces"]
    prepare(tmp_path / "h36m", tmp_path / "out")
    prepare(tmp_path / "h36m", tmp_path / "clean")
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "arrays/box.npy").unlink(), r"arrays/box\.npy', which is missing"),
        (lambda f: (f / "arrays/box.npy").write_bytes(b"short"), r"arrays/box\.npy', of 5 bytes instead"),
        (lambda f: (f / "arrays/box.npy").write_bytes(bytes((f / "arrays/box.npy").stat().st_size)), "have changed"),
        (lambda f: (f / MANIFEST).write_text("{"), "another file or a damaged one"),
        (lambda f: (f / MANIFEST).write_text("[]"), "another file or a damaged one"),
        (lambda f: (f / MANIFEST).write_text('{"format": "unihpe_data/9"}'), "format 'unihpe_data/9'"),
        (lambda f: _rename(f, "../../etc/passwd"), "a name that no piece has"),
        (lambda f: _rename(f, "/etc/passwd"), "a name that no piece has"),
        (lambda f: _cut_table(f, "subject"), "parts that do not fit .*a name, subject, action"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage, message):
    formats.write_coco(tmp_path / "coco", pictures=False)
    prepare(tmp_path / "coco", tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ValueError, match=rf"needs a folder of format.*{message}.*Prepare it again"):
        open_prepared(tmp_path / "out", verify=True)


def _cut_table(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["tables"][name] = []
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _rename(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["pieces"][name] = manifest["pieces"].pop("arrays/box.npy")
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_folders_of_others_are_left_alone(tmp_path):
    formats.write_coco(tmp_path / "coco", pictures=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match=r"one with other files\. Choose another name"):
        prepare(tmp_path / "coco", tmp_path / "mine")
    prepare(tmp_path / "coco", tmp_path / "out")
    with pytest.raises(FileExistsError, match="finished data"):
        prepare(tmp_path / "coco", tmp_path / "out")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years"}


def test_an_archive_is_unpacked_and_read(tmp_path):
    formats.write_coco(tmp_path / "coco")
    with zipfile.ZipFile(tmp_path / "coco.zip", "w") as archive:
        for name, content in contents(tmp_path / "coco").items():
            archive.writestr(f"coco/{name}", content)
    data = prepare(tmp_path / "coco.zip", tmp_path / "out")
    assert data.picture_path(0).is_file()  # the pictures stay in source/
    packed = prepare(tmp_path / "coco.zip", tmp_path / "packed", crops=True)
    assert len(packed) == len(data)
    assert not (tmp_path / "packed" / "source").exists()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", b"")
    with pytest.raises(ValueError, match="would land outside"):
        prepare(tmp_path / "evil.zip", tmp_path / "evil")
    assert not (tmp_path / "evil.txt").exists()


def test_shards_number_pictures_across_files(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.bytes(int(size)) for size in rng.integers(1, 9, 2 * SHARD + 3)]
    files, offsets = [], []
    for start in range(0, len(pictures), SHARD):
        own = pictures[start : start + SHARD]
        files.append(tmp_path / f"{len(files)}.bin")
        files[-1].write_bytes(b"".join(own))
        offsets.append(np.concatenate([[0], np.cumsum([len(content) for content in own])]))
    pack = Shards(files, np.concatenate(offsets))
    for number in (0, 1, SHARD - 1, SHARD, 2 * SHARD - 1, 2 * SHARD, 2 * SHARD + 2):
        assert pack[number] == pictures[number]


# --- the commands ---------------------------------------------------------------------------------------------


def test_prepare_and_check_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    formats.write_3dhp_train(tmp_path / "3dhp")
    assert main(["data", "check", str(tmp_path / "3dhp"), "--json", str(tmp_path / "report.json")]) == 0
    out = capsys.readouterr().out
    for words in ("mpi_inf_3dhp", "320 in 2 sequences", "reprojection, median px: 0.00", "Nothing is wrong."):
        assert words in out
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == {"S1": {"Seq1": 160}, "S2": {"Seq1": 160}}
    assert main(["data", "prepare", str(tmp_path / "3dhp"), "--out", str(tmp_path / "out"), "--fps", "5"]) == 0
    assert "64 in 2 sequences" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["data", "prepare", str(tmp_path / "3dhp"), "--out", str(tmp_path / "out")]) == 2
    assert "unihpe: `prepare` needs a folder that is empty or unfinished" in capsys.readouterr().err


def test_exit_codes_tell_wrong_data_from_no_data(tmp_path, capsys):
    formats.write_spin(tmp_path / "h36m_train.npz")
    held = dict(np.load(tmp_path / "h36m_train.npz"))
    held["S"][..., :3] *= 1000
    np.savez(tmp_path / "h36m_train.npz", **held)
    assert main(["data", "check", str(tmp_path / "h36m_train.npz")]) == 1
    assert "WRONG: a leg is" in capsys.readouterr().out
    (tmp_path / "data_3d_h36m.npz").write_bytes(b"PK\x03\x04")
    for arguments in (
        ["check", "nowhere"],
        ["check", str(tmp_path)],
        ["check", str(tmp_path / "h36m_train.npz"), "--form", "x"],
    ):
        assert main(["data", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("unihpe: ")
        assert "Traceback" not in captured.err + captured.out


def test_crops_of_a_picture_that_is_gone_are_refused_with_its_name(tmp_path):
    formats.write_coco(tmp_path / "coco")
    recording = read_data(tmp_path / "coco")
    recording.picture_path(1).unlink()
    with pytest.raises(FileNotFoundError, match=r"needs the picture .*000000000002\.jpg; got .*Put it there"):
        recording.picture_bytes(1)
