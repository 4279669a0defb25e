"""Recordings are read as stored, and other files raise worded errors."""

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unihpe_ref.data import SKELETON, limb_lengths, read_mocap

RECORDING = Path(__file__).resolve().parents[2] / "../shared/data/cmu17_60hz.npz"


def contents() -> dict[str, np.ndarray]:
    return {
        "joints_3d": np.random.default_rng(0).normal(size=(10, 17, 3)).astype(np.float32),
        "seq_start": np.array([0, 4]),
        "seq_end": np.array([4, 10]),
        "seq_name": np.array(["one", "two"]),
        "subject": np.array(["A", "B"]),
        "action": np.array(["walk", "run"]),
        "split": np.array(["train", "test"]),
        "fps": np.array(60.0),
    }


def write(path: Path, **changes: object) -> Path:
    entries = contents() | changes
    np.savez_compressed(path, **{name: value for name, value in entries.items() if value is not None})
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recording.npz"


def test_what_was_written_is_read(path):
    motion = read_mocap(write(path))
    assert torch.equal(motion.joints, torch.from_numpy(contents()["joints_3d"]))
    assert motion.sequence.tolist() == [0] * 4 + [1] * 6
    assert (motion.name, motion.subject, motion.action, motion.split) == (
        ("one", "two"), ("A", "B"), ("walk", "run"), ("train", "test"),
    )  # fmt: skip
    assert motion.fps == 60.0
    assert len(motion.select("test")) == 6


def test_a_stated_skeleton_unit_and_axis_may_agree(path):
    names = np.array(SKELETON.joint_names)
    parents = np.array(SKELETON.parents)
    motion = read_mocap(write(path, joint_names=names, parents=parents, unit=np.array("metre"), up=np.array("z")))
    assert len(motion) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": None}, r"needs the entries .*; got no fps\. Write all of them\."),
        ({"joints_3d": np.zeros((10, 14, 3), np.float32)}, r"floats of shape \(N, 17, 3\).*\(10, 14, 3\)"),
        ({"joints_3d": np.zeros((0, 17, 3), np.float32)}, "N > 0"),
        ({"joints_3d": np.zeros((10, 17, 3), np.int64)}, "floats of shape"),
        ({"joints_3d": np.full((10, 17, 3), np.nan, np.float32)}, "NaN or infinity in frame 0"),
        ({"seq_end": np.array([4, 11])}, "cover all frames in order"),
        ({"seq_end": np.array([3, 10])}, "cover all frames in order"),
        ({"seq_start": np.array([0, 10])}, "cover all frames in order"),
        ({"seq_start": np.array([0.0, 4.0])}, "one integer for each of 2 sequences"),
        ({"action": np.array(["walk"])}, "one string for each of 2 sequences"),
        ({"action": np.array([1, 2])}, "one string for each of 2 sequences"),
        ({"split": np.array(["train", "validation"])}, "splits 'train' and 'test'.*got 'validation'"),
        ({"fps": np.array(0.0)}, "one positive number"),
        ({"fps": np.array([25.0, 50.0])}, "one positive number"),
        ({"unit": np.array("millimetre")}, "`unit` = metre.*got `unit` = millimetre.*Convert"),
        ({"up": np.array("y")}, "`up` = z"),
        ({"parents": np.arange(17) - 1}, "`parents`"),
    ],
)
def test_a_file_that_breaks_its_promise_is_refused(path, change, message):
    with pytest.raises(ValueError, match=message):
        read_mocap(write(path, **change))


def test_objects_are_no_texts(path):
    write(path, action=np.array(["walk", None], dtype=object))
    with pytest.raises(ValueError, match=r"one string for each of 2 sequences .*; got `action`: object"):
        read_mocap(path)


def test_a_missing_file_is_an_oserror_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        read_mocap(tmp_path / "nowhere.npz")
    with pytest.raises(OSError, match=tmp_path.name):
        read_mocap(tmp_path)


def test_a_single_array_is_not_a_recording(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros((2, 17, 3)))
    with pytest.raises(ValueError, match=r"array\.npy needs to be a whole npz archive; got another file"):
        read_mocap(tmp_path / "array.npy")


@given(st.floats(0, 0.999))
def test_a_truncated_file_is_refused_wherever_it_ends(share):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **contents())
    whole = buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.npz"
        part.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"part\.npz needs to be a whole npz archive"):
            read_mocap(part)


def test_a_damaged_entry_is_refused(path):
    write(path)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("joints_3d.npy")
    middle = entry.header_offset + entry.compress_size // 2
    raw[middle : middle + 64] = bytes(64)
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="another file or a damaged one"):
        read_mocap(path)


@pytest.mark.skipif(not RECORDING.exists(), reason="the recorded motion is not beside this checkout")
def test_the_recorded_motion_is_human():
    motion = read_mocap(RECORDING)
    assert (len(motion), motion.num_sequences, motion.fps) == (72_597, 137, 60.0)
    assert len(motion.select("train")) == 57_169
    assert len(motion.select("test")) == 15_428
    lengths = limb_lengths(motion.joints)
    rigid = [
        k
        for k, (_, child) in enumerate(SKELETON.limbs)
        if SKELETON.joint_names[child][1:] in ("knee", "ankle", "elbow", "wrist")
    ]
    for index in range(0, motion.num_sequences, 10):
        own = lengths[motion.sequence == index][:, rigid]
        assert (own - own[:1]).abs().max() < 5e-5
    left, up = motion.joints[:, 4] - motion.joints[:, 1], motion.joints[:, 8] - motion.joints[:, 0]
    across = torch.linalg.cross(motion.joints[:, 1] - motion.joints[:, 2], left)  # thigh x left: behind the knee
    bend = motion.joints[:, 2] - (motion.joints[:, 1] + motion.joints[:, 3]) / 2
    assert ((bend * across).sum(-1) < 1e-4).float().mean() > 0.99  # knees bend forward: right is right
    assert (up[:, 2] > 0).float().mean() > 0.95  # z is up
