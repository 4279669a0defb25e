"""A sound data set passes the check; each known defect of data sets is reported."""

import dataclasses
from pathlib import Path

import formats
import numpy as np
import pytest
import torch

from unihpe_ref.data import generate_motion, read_data
from unihpe_ref.data.checking import Report, check, fitted_root
from unihpe_ref.data.recording import Recording
from unihpe_ref.data.skeleton import SKELETON

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
LEGS, ARMS = [1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]
TURN = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # a quarter about the vertical
SWAP = list(SKELETON.flip_permutation)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("h36m")
    formats.write_mmpose_h36m(folder)
    return read_data(folder)


def solid(recording: Recording, change) -> Recording:
    """The recording with altered 3D joints, and its pelvis with them."""
    joints = change(recording.joints_3d + recording.root[:, None]).astype(np.float32)
    return dataclasses.replace(recording, joints_3d=joints - joints[:, :1], root=joints[:, 0])


def exchanged(joints: np.ndarray, which: list[int]) -> np.ndarray:
    result = joints.copy()
    result[:, which] = joints[:, [SWAP[joint] for joint in which]]
    return result


def words(report: Report) -> str:
    return " ".join(report.problems)


def test_sound_data_pass_and_are_counted(recording):
    report = check(recording)
    assert report.problems == []
    assert report.counts["S1", "Walking"] == 16
    assert sum(report.counts.values()) == len(recording) == 96
    assert report.measures["reprojection, median px"] < 0.5
    assert report.measures["knees that bend forward, share"] > 0.95
    lengths = {limb.name: limb for limb in report.limbs}
    assert 380 < lengths["lhip-lknee"].millimetres < 520
    assert max(limb.spread for limb in report.limbs) < 1e-4
    assert any("not the whole of Human3.6M: no S5, S6, S7, S8" in note for note in report.notes)
    assert set(report.to_dict()) == {"format", "kind", "facts", "counts", "limbs_mm", "measures", "problems", "notes"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x * 1000, "They look like millimetres"),
        (lambda x: x * [1, -1, 1], "y does not point down"),
        (lambda x: exchanged(x, LEGS), "left and right of the legs are exchanged (the order of J_regressor_h36m.npy"),
        (lambda x: exchanged(x, ARMS), "left and right of the arms are exchanged:"),
        (lambda x: exchanged(x, LEGS + ARMS), "left and right are exchanged, or one axis is mirrored"),
        (lambda x: x * [-1, 1, 1], "one axis is mirrored"),
        (lambda x: (x - x[:, :1]) @ TURN + x[:, :1], "2D and 3D do not belong together"),
        (lambda x: x - [0, 0, 20], "stand behind the camera"),
        (lambda x: x + np.array([0.7, 0, 0]), "poses fit, the camera's position does not"),
        (lambda x: x[:, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 12, 14, 15, 16]], "differ by"),
        (lambda x: x * np.random.default_rng(0).uniform(0.6, 1.4, (len(x), 1, 1)), "change their length"),
    ],
)
def test_wrong_3d_joints_are_named(recording, change, expected):
    assert expected in words(check(solid(recording, change)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p[:, SWAP], "With left and right of the 2D exchanged"),
        (lambda p: np.stack([999 - p[..., 0], p[..., 1]], -1)[:, SWAP], "In the mirrored picture they are"),
        (lambda p: p / 500 - 1, "they are normalised; pixels are needed"),
        (lambda p: p + 700, "lie outside their pictures"),
        (lambda p: np.roll(p, 8, 0), "2D and 3D do not belong together"),
    ],
)
def test_wrong_2d_joints_are_named(recording, change, expected):
    wrong = dataclasses.replace(recording, joints_2d=change(recording.joints_2d).astype(np.float32))
    assert expected in words(check(wrong))


def test_the_trap_of_the_regressor_is_seen_in_a_file(tmp_path):
    """SPIN's file, its 3D written in the order of the regressor: left leg first."""
    formats.write_spin(tmp_path / "h36m_train.npz")
    assert check(read_data(tmp_path / "h36m_train.npz")).problems == []
    held = dict(np.load(tmp_path / "h36m_train.npz"))
    held["S"][:, [0, 1, 2, 3, 4, 5]] = held["S"][:, [5, 4, 3, 2, 1, 0]]
    np.savez(tmp_path / "h36m_train.npz", **held)
    assert "left and right of the legs are exchanged" in words(check(read_data(tmp_path / "h36m_train.npz")))


def test_unknown_distances_are_fitted():
    """Root-relative joints and pixels give back where the person stands."""
    motion = formats.small_motion()
    camera = formats.fixed_cameras()[0].to(torch.float64)
    joints = camera.world_to_camera(motion.joints[::7].double())
    pixels = camera.project(joints, distort=False)
    rig = formats.fixed_cameras().to(torch.float64)[torch.zeros(len(joints), dtype=torch.int64)]
    pixels[0, 3:] = torch.nan
    pixels[1, 2:] = torch.nan
    root = fitted_root(joints - joints[:, :1], pixels, rig)
    torch.testing.assert_close(root[2:], joints[2:, 0], rtol=0, atol=1e-8)
    torch.testing.assert_close(root[0], joints[0, 0], rtol=0, atol=1e-6)
    assert root[1].isnan().all()  # two joints do not say it


def test_pictures_that_are_not_there_or_have_another_size(tmp_path):
    formats.write_mmpose_h36m(tmp_path, pictures=True)
    data = read_data(tmp_path)
    report = check(data)
    assert "of 96 pictures looked at are missing or damaged" in words(report)
    row = next(row for row in range(len(data)) if data.picture_path(row).is_file())
    formats.picture(data.picture_path(row), 64, 48)
    assert "is 64 x 48 instead of 1000 x 1002" in words(check(data))


def test_motion_is_judged_by_its_anatomy():
    motion = generate_motion(1, actions=("walk", "squat"), num_subjects=2, num_test_subjects=1, seconds=4)
    assert check(motion).problems == []
    assert check(motion.select("train")).facts["sequences"] == "2 of 1 subject, 2 actions"
    turned = dataclasses.replace(motion, joints=motion.joints[..., [0, 2, 1]])  # y up, and mirrored by it
    found = words(check(turned))
    assert "z is not up" in found
    assert "(along y?)" in found
    assert "one axis is mirrored" in found
    inches = dataclasses.replace(motion, joints=motion.joints / 0.0254)
    assert "They look like inches" in words(check(inches))
    frozen = dataclasses.replace(motion, joints=motion.joints[(torch.arange(len(motion)) // 4) * 4])
    assert "repeat the one before" in words(check(frozen))
    torn = motion.joints.clone()
    torn[::50, 13] += 3
    assert "joints jump" in words(check(dataclasses.replace(motion, joints=torn)))


@pytest.mark.skipif(not SHARED.exists(), reason="the real recordings are not beside this checkout")
def test_real_recordings_pass():
    report = check(read_data(SHARED / "cmu17_60hz.npz"))
    assert report.problems == []
    assert sum(report.counts.values()) == 72_597
    assert report.measures["knees that bend forward, share"] > 0.99
    report = check(read_data(SHARED / "real_multiview"))
    assert report.problems == []
    assert sum(report.counts.values()) == 139
    assert report.measures["reprojection, 90% px"] < 0.5
    assert 5 < report.measures["detected to annotated, median px"] < 20
