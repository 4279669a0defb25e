"""Every format is read as it was written: joints within 1e-4 m, pixels within 0.5 px, left where left was."""

import json
import pickle

import formats
import numpy as np
import pytest
import torch

from unihpe_ref.__main__ import main
from unihpe_ref.data.camera import project
from unihpe_ref.data.checking import check
from unihpe_ref.data.layouts import LAYOUTS, LSP_14
from unihpe_ref.data.motion import Motion
from unihpe_ref.data.readers import FORMATS, acclaim, bvh, read_data, recognise, smpl
from unihpe_ref.data.recording import Recording
from unihpe_ref.data.safe_pickle import UnsafePickle, load_pickle
from unihpe_ref.data.skeleton import SKELETON


def views(recording: Recording) -> dict[tuple[str, str], np.ndarray]:
    """Samples of each (sequence, camera), in the order of frames."""
    found = {}
    for view in np.unique(recording.views):
        rows = np.flatnonzero(recording.views == view)
        assert (np.diff(recording.frame[rows]) > 0).all()
        key = (
            recording.sequence_name[recording.sequence[rows[0]]],
            str(recording.camera_name[recording.camera[rows[0]]]),
        )
        found[key] = rows
    return found


def reprojection(recording: Recording, rows: np.ndarray, *, distort: bool) -> float:
    """Largest distance in pixels between annotated joints and projected ones."""
    cameras = recording.cameras[torch.from_numpy(recording.camera[rows])]
    joints = torch.from_numpy(recording.joints_3d[rows] + recording.root[rows, None])
    pixels = cameras.project(joints, distort=distort).numpy()
    return float(np.nanmax(np.linalg.norm(pixels - recording.joints_2d[rows], axis=-1)))


def assert_found(
    recording: Recording, truth: formats.Truth, *, distort: bool = False, joints: slice = slice(None)
) -> None:
    found = views(recording)
    assert set(found) == set(truth.pixels)
    for key, rows in found.items():
        np.testing.assert_allclose(
            recording.joints_2d[rows][:, joints], truth.pixels[key][:, joints], atol=2e-3, rtol=0
        )
        if key in truth.joints:
            known = (recording.joints_3d[rows] + recording.root[rows, None])[:, joints]
            np.testing.assert_allclose(known, truth.joints[key][:, joints], atol=1e-4, rtol=0)
            assert reprojection(recording, rows, distort=distort) < 0.5


@pytest.mark.parametrize("cameras", ["source", "pickle"])
def test_videopose3d(tmp_path, cameras):
    truth = formats.write_videopose3d(tmp_path / "VideoPose3D" / "data", cameras=cameras)
    recording = read_data(tmp_path / "VideoPose3D" / "data")
    assert recording.format == "videopose3d"
    assert_found(recording, truth, distort=True)
    assert recording.detected_2d is not None
    np.testing.assert_allclose(recording.detected_2d, recording.joints_2d + 2, atol=1e-3)
    assert set(recording.subject) == {"S1", "S9", "S11"}
    assert set(recording.action) == {"WalkDog", "Sitting"}
    assert {s for s, p in zip(recording.split, recording.subject) if p == "S1"} == {"train"}
    assert {s for s, p in zip(recording.split, recording.subject) if p != "S1"} == {"test"}
    assert any("cut to the length" in note for note in recording.notes)
    assert any("S11 Directions is absent" in note for note in recording.notes)


def test_videopose3d_without_2d_projects_through_the_cameras(tmp_path):
    truth = formats.write_videopose3d(tmp_path / "data", truth=False, detected=False)
    recording = read_data(tmp_path)
    assert_found(recording, truth, distort=True)
    assert recording.detected_2d is None


def test_videopose3d_without_cameras_says_what_to_do(tmp_path):
    formats.write_videopose3d(tmp_path / "x" / "data", cameras="none")
    with pytest.raises(
        FileNotFoundError, match=r"which these npz files lack.*Put VideoPose3D's common/h36m_dataset\.py"
    ):
        read_data(tmp_path / "x" / "data")


def test_videopose3d_with_short_2d_is_refused(tmp_path):
    formats.write_videopose3d(tmp_path / "data", extra=-2)
    with pytest.raises(ValueError, match=r"needs at least 20 frames.*made together"):
        read_data(tmp_path / "data")


@pytest.mark.parametrize("cameras", [True, False])
def test_mmpose_h36m(tmp_path, cameras):
    """With cameras.pkl, and with intrinsics fitted to the file's own joints."""
    truth = formats.write_mmpose_h36m(tmp_path, cameras=cameras, pictures=cameras)
    recording = read_data(tmp_path)
    assert_found(recording, truth)
    assert recording.calibrated.all()
    (rows,) = (rows for key, rows in views(recording).items() if key == ("S1 Walking 1", "54138969"))
    assert recording.frame[rows].tolist() == [0, 5, 10, 15]
    assert set(recording.fps) == {50.0}
    expected = formats.fixed_cameras()[0]
    lens = recording.cameras[int(recording.camera[rows[0]])]
    torch.testing.assert_close(lens.focal, expected.focal, rtol=0, atol=0.05)
    torch.testing.assert_close(lens.principal, expected.principal, rtol=0, atol=0.05)
    if cameras:
        torch.testing.assert_close(lens.rotation, expected.rotation, rtol=0, atol=1e-5)
        torch.testing.assert_close(lens.translation, expected.translation, rtol=0, atol=1e-5)
        assert all(recording.picture_path(row).is_file() for row in rows)  # this view has its pictures


def test_spin(tmp_path):
    truth = formats.write_spin(tmp_path / "h36m_train.npz")
    recording = read_data(tmp_path / "h36m_train.npz")
    for key, rows in views(recording).items():
        np.testing.assert_allclose(recording.joints_2d[rows], truth.pixels[key], atol=1e-3)
        np.testing.assert_allclose(recording.joints_3d[rows], truth.joints[key], atol=1e-4)
    assert set(views(recording)) == set(truth.pixels)
    assert np.isnan(recording.root).all()
    assert not recording.calibrated.any()
    assert recording.has_3d.all()
    formats.picture(tmp_path / str(recording.pictures[0]), 500, 400)  # beside the file, as the names say
    again = read_data(tmp_path / "h36m_train.npz")
    assert again.picture_path(0).is_file()
    assert again.cameras.image_size[again.camera[0]].tolist() == [500, 400]
    formats.write_spin(tmp_path / "no3d.npz", solid=False)
    assert not read_data(tmp_path / "no3d.npz").has_3d.any()


@pytest.mark.parametrize("calibration", [True, False])
def test_3dhp_train(tmp_path, calibration):
    truth = formats.write_3dhp_train(tmp_path, calibration=calibration)
    recording = read_data(tmp_path)
    assert_found(recording, truth)
    camera = recording.cameras[int(recording.camera[0])]
    torch.testing.assert_close(camera.focal, formats.hp_rig()[0].focal, rtol=0, atol=0.05)
    if calibration:
        torch.testing.assert_close(camera.translation, formats.hp_rig()[0].translation, rtol=0, atol=1e-5)
    assert {name for _, name in views(recording)} == set("01245678")


def test_3dhp_test(tmp_path):
    truth = formats.write_3dhp_test(tmp_path)
    recording = read_data(tmp_path)
    assert_found(recording, truth)
    assert set(recording.split) == {"test"}
    assert not (recording.frame % 3 == 0).any()  # those are not valid


@pytest.mark.parametrize("people", [1, 2])
@pytest.mark.parametrize("protocol", [0, 2])
def test_3dpw(tmp_path, people, protocol):
    truth = formats.write_3dpw(tmp_path, people=people, protocol=protocol)
    recording = read_data(tmp_path)
    head = SKELETON.index("head")
    assert_found(recording, truth, joints=slice(0, head))
    assert_found(recording, truth, joints=slice(head + 1, None))
    assert np.isnan(recording.joints_3d[:, head]).all()  # SMPL's joints have no top of the head
    assert any("no SMPL model files" in note for note in recording.notes)
    assert len(recording) == people * 10  # of 12 frames the last two have no camera
    assert np.isnan(recording.detected_2d[1]).all()


def test_code_in_a_3dpw_file_does_not_run(tmp_path):
    formats.write_3dpw(tmp_path)
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self):
            return open, (str(mark), "w")

    file = tmp_path / "sequenceFiles" / "test" / "downtown_walk_00.pkl"
    held = load_pickle(file) | {"jointPositions": [np.array([Evil(), 1], dtype=object)]}
    file.write_bytes(pickle.dumps(held, 2))
    with pytest.raises(UnsafePickle, match="downtown_walk_00"):
        read_data(tmp_path)
    assert not mark.exists()


# --- motion capture -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "prefix"), [(0.01, ""), (0.0254 / 0.45, ""), (0.01, "mixamorig:"), (0.001, "")])
def test_bvh(tmp_path, unit, prefix):
    expected = formats.write_bvh(tmp_path / "walk.bvh", unit=unit, prefix=prefix)
    take = bvh.read_bvh(tmp_path / "walk.bvh")
    np.testing.assert_allclose(take.joints, expected, atol=2e-5)
    assert take.fps == pytest.approx(60, abs=0.1)


@pytest.mark.parametrize("rig", sorted(formats.RIGS))
def test_bvh_knows_the_names_of_every_usual_rig(rig, tmp_path):
    expected = formats.write_bvh(tmp_path / "walk.bvh", rig=rig)
    np.testing.assert_allclose(bvh.read_bvh(tmp_path / "walk.bvh").joints, expected, atol=2e-5)


def bone(name, offset, *children, end=None):
    """A part of a BVH hierarchy; offsets in centimetres."""
    inside = "".join(children) or (f"End Site {{ OFFSET {end or '0 0 0'} }}")
    return f"JOINT {name} {{ OFFSET {offset} CHANNELS 3 Zrotation Xrotation Yrotation {inside} }} "


def write_body(
    path, *spines, frames=((0,),) * 2, top="0 15 0", names=("UpLeg", "Leg", "Foot", "Arm", "ForeArm", "Hand")
):
    """A person whose trunk has these joints, at these heights above the hips in centimetres; shoulders at 50."""
    leg, shin, foot, arm, fore, hand = names
    legs = "".join(
        bone(f"{side}{leg}", f"{sign}10 0 0", bone(f"{side}{shin}", "0 -42 0", bone(f"{side}{foot}", "0 -43 0")))
        for side, sign in (("Left", ""), ("Right", "-"))
    )
    at = spines[-1][1]
    trunk = bone("Neck", f"0 {58 - at} 0", bone("Head", "0 8 0", end=top))
    for side, sign in (("Left", ""), ("Right", "-")):
        below = bone(f"{side}{fore}", f"{sign}28 0 0", bone(f"{side}{hand}", f"{sign}25 0 0"))
        trunk += bone(f"{side}{arm}", f"{sign}17 {50 - at} 0", below)
    for k in reversed(range(len(spines))):
        name, height = spines[k]
        trunk = bone(name, f"0 {height - (spines[k - 1][1] if k else 0)} 0", trunk)
    root = "ROOT Hips { OFFSET 0 0 0 CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation "
    text = f"HIERARCHY {root}{legs}{trunk}}} MOTION Frames: {len(frames)} Frame Time: 0.02 "
    width = 6 + 3 * text.count("JOINT")
    rows = [" ".join(map(str, [*row, *[0] * (width - len(row))])) for row in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + " ".join(rows))


@pytest.mark.parametrize(
    ("spines", "height"),
    [
        ([("Spine", 10), ("Spine1", 22), ("Spine2", 36)], 0.22),  # the middle one
        ([("Spine", 10), ("Chest", 25)], 0.25),
        ([("Spine", 8)], 0.21),  # none near the middle: the point there
    ],
)
def test_of_several_spines_the_one_in_the_middle_is_taken(spines, height, tmp_path):
    write_body(tmp_path / "a.bvh", *spines)
    joints = bvh.read_bvh(tmp_path / "a.bvh").joints[0]
    rise = joints[:, 2] - joints[SKELETON.index("pelvis"), 2]
    assert rise[SKELETON.index("spine")] == pytest.approx(height, abs=1e-6)
    assert rise[SKELETON.index("thorax")] == pytest.approx(0.5, abs=1e-6)
    assert rise[SKELETON.index("neck_nose")] == pytest.approx(0.58, abs=1e-6)
    assert rise[SKELETON.index("head")] == pytest.approx(0.81, abs=1e-6)


def test_a_head_without_an_end_is_as_high_as_peoples(tmp_path):
    """An end site of length 0 left the top of the head at the joint of the head, 80 mm above the neck; Human3.6M's is
    115 mm above its neck/nose, and 0.26 of a leg above the shoulders."""
    turn = (0, 95, 0, 90, 0, 0)  # all of the body about z: the head carries on along its own axis
    write_body(tmp_path / "a.bvh", ("Spine", 20), top="0 0 0", frames=[(0, 95, 0), turn])
    joints = bvh.read_bvh(tmp_path / "a.bvh").joints
    head, neck, thorax = (joints[:, SKELETON.index(name)] for name in ("head", "neck_nose", "thorax"))
    np.testing.assert_allclose(np.linalg.norm(head - thorax, axis=-1), 0.26 * 0.85, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(head - neck, axis=-1), 0.26 * 0.85 - 0.08, atol=1e-6)


def test_a_first_frame_of_another_motion_is_left_out_and_noted(tmp_path):
    spines = [("Spine", 20)]
    moving = [(300 + k, 95, 0) for k in range(6)]
    write_body(tmp_path / "t" / "walk.bvh", *spines, frames=[(0, 95, 0), *moving])
    write_body(tmp_path / "u" / "walk.bvh", *spines, frames=moving)
    with_pose, without = read_data(tmp_path / "t"), read_data(tmp_path / "u")
    assert torch.equal(with_pose.joints, without.joints)
    assert "first frame" in with_pose.notes[0] and without.notes == ()
    assert "first frame" in check(with_pose).notes[0]


def test_names_of_ones_own_are_mapped(tmp_path, capsys):
    own = ("Thi", "Shi", "Foo", "Arm", "ForeArm", "Hand")
    write_body(tmp_path / "a.bvh", ("Spine", 20), names=own)
    write_body(tmp_path / "b" / "a.bvh", ("Spine", 20))
    with pytest.raises(ValueError, match=r"joints for lhip, lknee, lankle, rhip.*`--joints lhip=NAME"):
        bvh.read_bvh(tmp_path / "a.bvh")
    pairs = {f"{s[0].lower()}{joint}": f"{s}{name}" for s in ("Left", "Right")
             for joint, name in zip(("hip", "knee", "ankle"), own)}  # fmt: skip
    np.testing.assert_array_equal(
        bvh.read_bvh(tmp_path / "a.bvh", pairs).joints, bvh.read_bvh(tmp_path / "b" / "a.bvh").joints
    )
    with pytest.raises(ValueError, match="Did you mean LeftThi"):
        bvh.read_bvh(tmp_path / "a.bvh", pairs | {"lhip": "LeftThigh"})
    asked = ["data", "check", str(tmp_path / "a.bvh"), "--joints"]
    assert main([*asked, *(f"{joint}={name}" for joint, name in pairs.items())]) in (0, 1)
    assert main([*asked, "lhip"]) == 2
    assert "needs pairs JOINT=NAME" in capsys.readouterr().err


def test_bones_of_the_face_are_not_listed(tmp_path):
    write_body(tmp_path / "a.bvh", ("Spine", 20), names=("Thi", "Leg", "Foot", "Arm", "ForeArm", "Hand"))
    path = tmp_path / "a.bvh"
    path.write_text(path.read_text().replace("JOINT Neck", "JOINT orbicularis03.L").replace("Head", "Skull"))
    with pytest.raises(ValueError, match="for lhip, rhip, head") as raised:
        bvh.read_bvh(path)
    assert "orbicularis" not in str(raised.value) and "LeftThi" in str(raised.value)


def test_takes_are_found_at_any_depth_and_say_what_is_done(tmp_path):
    names = ["walk1_subject1", "Run_Fast 03", "01_02", "dataset-1_dance_001"]
    for k, name in enumerate(names):
        write_body(tmp_path / "a" / "b" / "c" / f"{name}.{'BVH' if k else 'bvh'}", ("Spine", 20))
    motion = read_data(tmp_path)
    assert set(motion.action) == {"walk", "run_fast", "motion", "dance"}


def test_amc_follows_scipys_rotations(tmp_path):
    expected = formats.write_amc(tmp_path)
    skeleton = acclaim.read_asf(tmp_path / "01.asf")
    joints = acclaim.joints_of(skeleton, acclaim.read_amc(tmp_path / "01_01.amc", skeleton))
    np.testing.assert_allclose(joints, expected, atol=2e-6)


def test_a_folder_of_takes_is_one_motion(tmp_path):
    formats.write_amc(tmp_path, takes=6)
    (tmp_path / "actions.csv").write_text("01_01,walk\n01_02,climb\n")
    motion = read_data(tmp_path)
    assert isinstance(motion, Motion)
    assert motion.name == tuple(f"01_{take:02d}" for take in range(1, 7))
    assert motion.action[:3] == ("walk", "climb", "motion")
    assert motion.split == ("train",) * 4 + ("test", "train")
    assert set(motion.subject) == {"01"}
    assert motion.fps == 120
    for sequence in range(6):  # every take stands on the floor
        ankles = motion.joints[motion.sequence == sequence][:, [3, 6], 2].amin(1)
        assert float(ankles.quantile(0.02)) == pytest.approx(0.08, abs=0.01)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rfemur ", "rfemr ", "another file or a damaged one"),
        (":bonedata", ":bonedta", "another file or a damaged one"),
        ("length 0.45", "length zero", "another file or a damaged one"),
        ("order TX", "order QX", "whole data of the form amc"),
        ("lfemur ltibia", "lfemur ltibia ghost", "whole data of the form amc"),
    ],
)
def test_a_damaged_skeleton_is_refused(tmp_path, old, new, words):
    formats.write_amc(tmp_path)
    file = tmp_path / "01.asf"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=words):
        read_data(tmp_path)


@pytest.mark.parametrize("suffix", ["amc", "bvh"])
def test_a_truncated_take_is_refused(tmp_path, suffix):
    formats.write_amc(tmp_path) if suffix == "amc" else formats.write_bvh(tmp_path / "01_01.bvh")
    file = tmp_path / f"01_01.{suffix}"
    file.write_text(file.read_text()[:-200])
    with pytest.raises(ValueError, match=rf"01_01\.{suffix} needs to be"):
        read_data(tmp_path)


def test_an_unknown_skeleton_is_named(tmp_path):
    formats.write_bvh(tmp_path / "a.bvh")
    file = tmp_path / "a.bvh"
    file.write_text(file.read_text().replace("LeftLeg", "Gauche"))
    with pytest.raises(ValueError, match=r"needs joints for lknee.*--joints lknee=NAME"):
        read_data(file)


# --- pictures and keypoints -----------------------------------------------------------------------------------


def test_coco(tmp_path):
    truth = formats.write_coco(tmp_path)
    recording = read_data(tmp_path)
    (pixels,) = truth.pixels.values()
    assert len(recording) == 3
    direct = [1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16]  # joints that COCO has itself
    np.testing.assert_allclose(recording.joints_2d[:, direct], pixels[:, direct], atol=1e-3)
    np.testing.assert_allclose(recording.joints_2d[:, 0], pixels[:, [1, 4]].mean(1), atol=1e-3)
    assert np.isnan(recording.joints_2d[2, 6]).all()
    assert recording.has_2d.tolist() == [True, True, False]
    assert not recording.calibrated.any()
    assert all(recording.picture_path(row).is_file() for row in range(3))
    assert any("2 crowds or people" in note for note in recording.notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.pop("width"), "COCO's JSON"),
        (lambda image: image.update(width=0), "the width and height of each image"),
        (lambda image: image.update(file_name=image["away"]), "pictures below"),
    ],
)
def test_coco_with_an_image_that_cannot_be_used_is_refused(tmp_path, change, words):
    formats.write_coco(tmp_path / "coco")
    formats.picture(tmp_path / "away.jpg", 64, 64)
    file = next((tmp_path / "coco").rglob("*.json"))
    held = json.loads(file.read_text())
    for image in held["images"]:
        image["away"] = str(tmp_path / "away.jpg")
        change(image)
    file.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=words):
        read_data(tmp_path / "coco")


def test_names_of_pictures_may_be_bytes(tmp_path):
    formats.write_spin(tmp_path / "data.npz")
    held = dict(np.load(tmp_path / "data.npz"))
    texts = read_data(tmp_path / "data.npz")
    np.savez(tmp_path / "data.npz", **held | {"imgname": held["imgname"].astype("S")})
    assert read_data(tmp_path / "data.npz").pictures.tolist() == texts.pictures.tolist()


def test_coco_without_its_pictures_says_so(tmp_path):
    formats.write_coco(tmp_path, pictures=False)
    recording = read_data(tmp_path / "annotations" / "person_keypoints_val2017.json")
    assert any("3 pictures of person_keypoints_val2017.json are not there" in note for note in recording.notes)
    assert recording.picture_path(0) is None


# --- the door -------------------------------------------------------------------------------------------------


def test_what_nobody_knows_is_refused_in_words(tmp_path):
    (tmp_path / "holiday.txt").write_text("sun")
    with pytest.raises(ValueError, match=r"known forms .*videopose3d.*got holiday\.txt"):
        recognise(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Did you mean '3dpw'"):
        read_data(tmp_path, "3dwp")
    for form in FORMATS:
        with pytest.raises((OSError, ValueError), match=";"):
            read_data(tmp_path, form)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"{", b"[]", b"\x80\x04."])
def test_damaged_files_are_refused_in_words(tmp_path, content):
    places = {
        "videopose3d": "data_3d_h36m.npz", "imgname_npz": "annotation_body3d/fps10/h36m_test.npz",
        "mpi_inf_3dhp": "S1/Seq1/annot.mat", "3dpw": "sequenceFiles/test/x.pkl", "multiview_crops": "annot.npz",
        "coco": "person_keypoints_x.json", "bvh": "x.bvh",
    }  # fmt: skip
    for form, place in places.items():
        file = tmp_path / form / place
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        if form == "videopose3d":
            formats.write_h36m_source(file.parent / "h36m_dataset.py", formats.fixed_cameras(), ["S1"])
        with pytest.raises((OSError, ValueError), match="needs"):
            read_data(tmp_path / form)
    file = tmp_path / "mpi_inf_3dhp" / "TS1" / "annot_data.mat"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ValueError, match="HDF5"):
        read_data(file.parent)


def test_two_files_of_the_same_pictures_count_once(tmp_path):
    formats.write_spin(tmp_path / "h36m_train.npz")
    once = read_data(tmp_path)
    (tmp_path / "h36m_train_again.npz").write_bytes((tmp_path / "h36m_train.npz").read_bytes())
    twice = read_data(tmp_path)
    assert len(twice) == len(once)
    assert any("another file has their pictures" in note for note in twice.notes)


# --- layouts --------------------------------------------------------------------------------------------------


def test_layouts_keep_left_and_right():
    """The known names of each order, by hand, against its way to the 17 joints."""
    names = {
        "3dhp17": "head neck rsho relb rwri lsho lelb lwri rhip rkne rank lhip lkne lank pelvis spine nose",
        "coco17": "nose leye reye lear rear lsho rsho lelb relb lwri rwri lhip rhip lkne rkne lank rank",
        "coco18": "nose neck rsho relb rwri lsho lelb lwri rhip rkne rank lhip lkne lank reye leye rear lear",
        "spin24": "rank rkne rhip lhip lkne lank rwri relb rsho lsho lelb lwri neck top pelvis thorax spine jaw head "
        "nose leye reye lear rear",
        "smpl24": "pelvis lhip rhip spine1 lkne rkne spine2 lank rank spine3 lfoot rfoot neck lcol rcol head lsho "
        "rsho lelb relb lwri rwri lhan rhan",
        "body25": "nose neck rsho relb rwri lsho lelb lwri pelvis rhip rkne rank lhip lkne lank reye leye rear lear "
        "ltoe lsma lhee rtoe rsma rhee",
        "j_regressor_h36m": "pelvis lhip lkne lank rhip rkne rank spine thorax nose head lsho lelb lwri rsho relb rwri",
    }  # fmt: skip
    limbs = ["-", "rhip", "rkne", "rank", "lhip", "lkne", "lank", *"----"]
    limbs += ["lsho", "lelb", "lwri", "rsho", "relb", "rwri"]
    for layout, own in names.items():
        order = LAYOUTS[layout]
        assert order.num_joints == len(own.split())
        for joint, name in enumerate(limbs):
            if name != "-":
                ((index, _),) = order.sources[joint]
                assert [own.split()[k] for k in index] == [name], (layout, name)
    assert [limbs[index] for index in LSP_14[:12]] == (
        ["rank", "rkne", "rhip", "lhip", "lkne", "lank", "rwri", "relb", "rsho", "lsho", "lelb", "lwri"]
    )
    for layout in LAYOUTS.values():
        for joint, mirrored in enumerate(SKELETON.flip_permutation):
            assert len(layout.sources[joint]) == len(layout.sources[mirrored])


def test_a_wrong_number_of_joints_names_the_layouts_that_fit():
    with pytest.raises(ValueError, match=r"'coco17' needs 17 joints; got 25\. Of that many: body25"):
        LAYOUTS["coco17"].to_h36m(np.zeros((2, 25, 2)))


# --- SMPL -----------------------------------------------------------------------------------------------------


def tiny_smpl(vertices: int = 60) -> dict[str, np.ndarray]:
    """A model file's arrays, with few vertices."""
    rng = np.random.default_rng(1)
    parents = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]
    weights = rng.random((vertices, 24)) ** 8
    regressor = rng.random((24, vertices)) ** 8
    return {
        "v_template": rng.normal(0, 0.5, (vertices, 3)), "shapedirs": rng.normal(0, 0.02, (vertices, 3, 10)),
        "posedirs": rng.normal(0, 0.01, (vertices, 3, 207)), "weights": weights / weights.sum(1, keepdims=True),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "kintree_table": np.array([[2**32 - 1, *parents[1:]], range(24)], dtype=np.int64),
        "f": np.zeros((4, 3), np.uint32),
    }  # fmt: skip


def test_smpl_is_its_equations(tmp_path):
    """Vertex by vertex with 4x4 matrices and scipy's rotations."""
    from scipy.spatial.transform import Rotation

    held = tiny_smpl()
    np.savez(tmp_path / "SMPL_MALE.npz", **held)
    model = smpl.read_model(tmp_path / "SMPL_MALE.npz")
    rng = np.random.default_rng(2)
    pose, beta = rng.normal(0, 0.5, (2, 72)), rng.normal(0, 1, 10)
    pose[1, :9] = 0  # angles that are exactly zero
    found = smpl.posed_vertices(model, pose, beta)
    for frame in range(2):
        turns = Rotation.from_rotvec(pose[frame].reshape(24, 3)).as_matrix()
        shaped = held["v_template"] + np.einsum("vck,k->vc", held["shapedirs"], beta)
        rest = held["J_regressor"] @ shaped
        bent = shaped + held["posedirs"] @ (turns[1:] - np.eye(3)).ravel()
        chain, from_rest = [], []
        for joint in range(24):
            own = np.eye(4)
            parent = int(model["parents"][joint])
            own[:3, :3], own[:3, 3] = turns[joint], rest[joint] - (rest[parent] if joint else 0)
            chain.append(chain[parent] @ own if joint else own)
            back = np.eye(4)
            back[:3, 3] = -rest[joint]
            from_rest.append(chain[-1] @ back)
        for vertex in range(60):
            blend = sum(w * m for w, m in zip(held["weights"][vertex], from_rest))
            expected = (blend @ np.append(bent[vertex], 1))[:3]
            np.testing.assert_allclose(found[frame, vertex], expected, atol=1e-12)


class Ch:
    """Pickles as chumpy's arrays do."""


Ch.__module__ = "chumpy.ch"


def test_smpl_pickles_are_read_as_data(tmp_path, monkeypatch):
    """chumpy's arrays and scipy's sparse matrices come as their state; neither package is asked."""
    import sys
    import types

    from scipy.sparse import csc_matrix

    module = types.ModuleType("chumpy.ch")
    module.Ch = Ch
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)
    held = tiny_smpl()
    shapes = Ch()
    shapes.x = held["shapedirs"]
    stored = held | {"J_regressor": csc_matrix(held["J_regressor"]), "shapedirs": shapes}
    (tmp_path / "SMPL_MALE.pkl").write_bytes(pickle.dumps(stored, 2))
    monkeypatch.delitem(sys.modules, "chumpy.ch")
    monkeypatch.delitem(sys.modules, "chumpy")
    model = smpl.read_model(tmp_path / "SMPL_MALE.pkl")
    np.testing.assert_allclose(model["J_regressor"], held["J_regressor"])
    np.testing.assert_array_equal(model["shapedirs"], held["shapedirs"])
    with pytest.raises(UnsafePickle):
        load_pickle(tmp_path / "SMPL_MALE.pkl")  # elsewhere nobody may bring such objects


def test_3dpw_with_smpl_has_all_17_joints_the_right_way_round(tmp_path):
    """The regressor has the left leg first: what it puts at 1 is the left hip, joint 4 here."""
    formats.write_3dpw(tmp_path)
    (tmp_path / "smpl").mkdir()
    held = tiny_smpl()
    np.savez(tmp_path / "smpl" / "SMPL_MALE.npz", **held)
    regressor = np.eye(17, 60)
    np.save(tmp_path / "smpl" / "J_regressor_h36m.npy", regressor)
    recording = read_data(tmp_path)
    assert recording.has_3d.all()
    assert recording.has_2d.all()
    rest = held["v_template"][:17]  # pose, shape and translation are zero in the file
    camera = recording.cameras[int(recording.camera[0])]
    world = camera.camera_to_world(torch.from_numpy(recording.joints_3d[0] + recording.root[0])).numpy()
    np.testing.assert_allclose(world[[4, 5, 6]], rest[[1, 2, 3]], atol=1e-5)
    np.testing.assert_allclose(world[[1, 2, 3]], rest[[4, 5, 6]], atol=1e-5)
    np.testing.assert_allclose(world[7:], rest[7:], atol=1e-5)
    (tmp_path / "smpl" / "SMPL_MALE.npz").unlink()
    with pytest.raises(FileNotFoundError, match="Get it from the SMPL site"):
        read_data(tmp_path)


def test_projection_of_a_file_is_that_of_the_camera():
    """The helper of these tests agrees with the package on a point."""
    joints, pixels = formats.seen(np.array([[[0.1, 0.2, 1.0]]]), formats.fixed_cameras()[0], distort=False)
    camera = formats.fixed_cameras()[0]
    direct = project(torch.from_numpy(joints).float(), camera.focal[None], camera.principal[None])
    np.testing.assert_allclose(direct.numpy(), pixels, atol=1e-3)
    assert json.dumps(pixels.tolist())
