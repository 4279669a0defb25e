"""`unihpe lift` from pictures, videos and keypoint files: output, warnings and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detections import people
from PIL import Image
from small import small_motion

from unihpe_ref.__main__ import main
from unihpe_ref.applications import detector as detection
from unihpe_ref.applications import lift_command
from unihpe_ref.applications.completion import seen_from, steeply_seen, turned_by
from unihpe_ref.applications.detector import Detected, Detector
from unihpe_ref.applications.frames import Frame, read_picture, read_video
from unihpe_ref.applications.keypoints import Keypoints
from unihpe_ref.applications.lift_command import DOUBTFUL, Found, followed, lift_found
from unihpe_ref.applications.poses import read_poses
from unihpe_ref.data import PoseSource
from unihpe_ref.lifter import load_lifter

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "real_multiview"


def poses_of(path):
    return json.loads(path.read_text())["poses"]


def keypoints(joints, **more):
    """Found poses ``(N, 17, 2)`` of a picture of 1000 x 1000, all seen."""
    return Keypoints(
        joints, torch.isfinite(joints).all(-1).float(), tuple(str(k) for k in range(len(joints))),
        torch.tensor([[1000.0, 1000.0]]).expand(len(joints), 2), **more,
    )  # fmt: skip


class FakeDetector:
    """Finds generated people wherever it looks: as many as the picture's left upper pixel is red."""

    def __init__(self, *_, **__):
        self.joints = people("blazepose33", 8).numpy().astype(float)
        self.looks = 0

    def find(self, picture, *, thorough=True):
        self.looks += 1
        count = picture.getpixel((0, 0))[0] // 10
        return [Detected(self.joints[k] + 300 * k * np.array([1, 0, 0]), 0.9) for k in range(count)]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(lift_command, "Detector", FakeDetector)


def picture(path, count, size=(1000, 1000), **options):
    Image.new("RGB", size, (10 * count, 0, 0)).save(path, quality=100, **options)


# --- what is written -------------------------------------------------------------------------------------------


def test_the_example_needs_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["lift", "--example"]) == 0
    out = capsys.readouterr().out
    assert "90 poses of 1 person in 90 frames" in out
    assert "12 joints of 6 poses were not seen and are estimated" in out
    poses = poses_of(tmp_path / "poses.json")
    assert [pose["frame"] for pose in poses] == list(range(90))
    assert poses[3]["time"] == pytest.approx(0.1)
    assert [sum(pose["estimated"]) for pose in poses[39:47]] == [0, 2, 2, 2, 2, 2, 2, 0]
    for name in ("confidence", "joint_reprojection_px"):
        assert np.array(poses[0][name]).shape == (17,)
    assert read_poses(tmp_path / "poses.json")[1].shape == (90, 17, 3)


def test_smoothing_is_on_for_a_video_and_can_be_switched_off(tmp_path):
    shakes = {}
    for options in ((), ("--no-smooth",)):
        assert main(["lift", "--example", "--out", str(tmp_path / "p.npz"), *options]) == 0
        joints = 1000 * np.load(tmp_path / "p.npz")["joints_3d"]
        shakes[options] = np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).mean()
    assert shakes[()] < 0.35 * shakes["--no-smooth",]
    assert shakes[()] < 20


def test_pictures_a_video_and_folders_go_into_one_file(fake, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "album"
    folder.mkdir()
    picture(folder / "b.png", 1)
    picture(folder / "a.jpg", 2)
    picture(tmp_path / "turned.jpg", 1, (800, 600), exif=_orientation(6))
    (tmp_path / "clip.mp4").write_bytes(b"")
    frames = [Frame(k, k / 25, Image.new("RGB", (1000, 1000), (10, 0, 0))) for k in range(10)]
    monkeypatch.setattr(lift_command, "read_video", lambda _: iter(frames))
    out = tmp_path / "p.json"
    given = [str(tmp_path / name) for name in ("clip.mp4", "album", "turned.jpg")]
    assert main(["lift", *given, "--out", str(out), str(tmp_path / "p.html")]) == 0
    poses = poses_of(out)
    assert [pose["image"] for pose in poses[:4]] == ["a.jpg", "a.jpg", "b.png", "turned.jpg"]
    assert [pose["image"] for pose in poses[4:]] == [f"clip.mp4 #{k}" for k in range(10)]
    assert [pose["time"] for pose in poses[4:]] == [pytest.approx(k / 25) for k in range(10)]
    numbers = [pose["person"] for pose in poses]
    assert len(set(numbers)) == 5 and len(set(numbers[4:])) == 1
    page = (tmp_path / "p.html").read_text()
    held = json.loads(page[page.index("const D = ") + 10 : page.index(";\nconst at")])
    sizes = {scene["title"]: scene["size"] for scene in held["scenes"]}
    assert sizes["turned.jpg"] == [600, 800]  # as a viewer shows it
    assert len(held["scenes"][0]["people"]) == 2


def test_sources_that_count_from_0_are_kept_apart(tmp_path):
    for k, name in enumerate("ab"):
        held = {"layout": "h36m17", "image_size": [1000, 1000], "keypoints": people("h36m17", 2 + k).tolist()}
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
    out = tmp_path / "p.json"
    assert main(["lift", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(out)]) == 0
    assert [pose["image"] for pose in poses_of(out)] == ["0", "1", "0 (2)", "1 (2)", "2 (2)"]


def test_pictures_beside_a_keypoint_file_say_how_large_they_are(tmp_path):
    pose = people("coco17", 1)
    (tmp_path / "images").mkdir()
    picture(tmp_path / "images" / "a.png", 1, (1000, 900))
    picture(tmp_path.parent / "outside.png", 1, (1000, 900))
    for name, status in (("a.png", 0), ("../../outside.png", 2), ("b.png", 2)):
        held = [{"image_id": name, "category_id": 1, "keypoints": pose.flatten().tolist(), "score": 1.0}]
        (tmp_path / "k.json").write_text(json.dumps(held))
        assert main(["lift", str(tmp_path / "k.json"), "--out", str(tmp_path / "p.html")]) == status
    assert '"size":[1000,900]' in (tmp_path / "p.html").read_text()


def _orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_seen_as_viewers_show_them(orientation, tmp_path):
    upright = Image.new("RGB", (40, 20))
    upright.paste((255, 0, 0), (0, 0, 20, 10))  # the left upper quarter is red
    back = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}[orientation]  # fmt: skip
    stored = upright if back is None else upright.transpose(back)
    stored.save(tmp_path / "a.png", exif=_orientation(orientation))
    seen = read_picture(tmp_path / "a.png")
    assert seen.size == (40, 20)
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(upright))


def test_a_portrait_gets_its_upper_body_and_says_what_is_a_guess(tmp_path, capsys):
    pose = people("coco17", 2)
    pose[1, 11:, 2] = 0.05  # no hips, no legs
    held = {"layout": "coco17", "image_size": [1000, 1000], "keypoints": pose.tolist()}
    (tmp_path / "k.json").write_text(json.dumps(held))
    assert main(["lift", str(tmp_path / "k.json"), "--out", str(tmp_path / "p.json")]) == 0
    assert "9 joints of 1 poses were not seen and are estimated" in " ".join(capsys.readouterr().out.split())
    poses = poses_of(tmp_path / "p.json")
    assert not any(poses[0]["estimated"])
    names = json.loads((tmp_path / "p.json").read_text())["joint_names"]
    guessed = {name for name, mark in zip(names, poses[1]["estimated"]) if mark}
    assert guessed == {"pelvis", "rhip", "rknee", "rankle", "lhip", "lknee", "lankle", "spine", "thorax"}
    assert all((value == 0) == mark for value, mark in zip(poses[1]["confidence"], poses[1]["estimated"]))


def test_a_png_says_how_many_poses_it_shows(tmp_path, capsys):
    assert main(["lift", "--example", "--out", str(tmp_path / "p.png")]) == 0
    assert "8 of 90 poses" in capsys.readouterr().out


def test_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    """They are no markup: `[detect]` was swallowed from the command to install it."""
    folder = tmp_path / "a [red] b"
    folder.mkdir()
    assert main(["lift", "--example", "--out", str(folder / "p.json")]) == 0
    assert "a [red] b" in capsys.readouterr().out.replace("\n", "")
    main(["doctor"])
    out = capsys.readouterr().out
    assert "not installed" not in out or "multicontrast[" in out


# --- what is doubted -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def level():
    recording = PHOTOGRAPHS.parent / "cmu17_60hz.npz"
    if not recording.exists():
        pytest.skip(f"the recording is not at {recording}")
    from unihpe_ref.data import read_mocap

    source = PoseSource(read_mocap(recording)).split("test")
    batch = source.evaluation_batch(torch.arange(0, len(source), 151), camera=0)
    matrix = torch.diag_embed(torch.cat([batch.focal, torch.ones(len(batch), 1)], -1))
    matrix[:, :2, 2] = batch.principal
    return batch.joints_2d, matrix


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_pictures_are_named(degrees, level):
    joints, matrix = level
    centre = matrix[:, None, :2, 2]
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])  # clockwise, y down
    turned = (joints - centre) @ turn.mT + centre
    lifter = load_lifter(joints_2d="detected")
    _, words = lift_found(Found(keypoints(turned, intrinsics=matrix)), lifter)
    warning = [sentence for sentence in words if "WARNING" in sentence]
    if degrees:
        assert f"poses look turned by {degrees} degrees" in warning[0]
        assert int(warning[0].split()[1]) > 0.95 * len(joints)
    else:
        assert not any("turned" in sentence for sentence in warning)
        assert not warning or int(warning[0].split()[1]) < 0.06 * len(joints)


@pytest.fixture(scope="module")
def held_out():
    recording = PHOTOGRAPHS.parent / "cmu17_60hz.npz"
    if not recording.exists():
        pytest.skip(f"the recording is not at {recording}")
    from unihpe_ref.data import read_mocap

    return read_mocap(recording).select("test").joints[::37]


@pytest.mark.parametrize(("degrees", "share"), [(-45, 0.85), (-30, 0.7), (0, 0.04), (45, 0.75), (60, 0.9)])
def test_poses_seen_steeply_are_noticed(degrees, share, held_out):
    generator = torch.Generator().manual_seed(0)
    seen, _ = seen_from(held_out, (degrees, degrees), generator)
    extent = (seen.amax(1) - seen.amin(1)).amax(-1)[:, None, None]
    found = steeply_seen(seen + 0.015 * extent * torch.randn(seen.shape, generator=generator))
    if degrees:
        assert (found == (1 if degrees > 0 else -1)).float().mean() > share
    else:
        assert (found != 0).float().mean() < share


def test_a_steep_camera_is_named(held_out):
    seen = 500 + seen_from(held_out[::10], (-40, -40), torch.Generator().manual_seed(0))[0]
    matrix = torch.tensor([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]]).expand(len(seen), 3, 3)
    _, words = lift_found(Found(keypoints(seen, intrinsics=matrix)), load_lifter(joints_2d="annotated"))
    assert any("poses look seen from steeply below: expect 2 times the error" in sentence for sentence in words)


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"the photographs are not at {PHOTOGRAPHS}")
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_photographs_are_noticed_and_no_other(degrees):
    held = np.load(PHOTOGRAPHS / "annot.npz")
    joints = torch.from_numpy(held["kp2d_det_full"][held["ok"]][..., :2]).float()
    clockwise = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    for _ in range(degrees // 90):
        joints = joints @ clockwise.mT
    noticed = (turned_by(joints) == degrees).float().mean()
    assert noticed == 1 if degrees == 0 else noticed > 0.8
    assert degrees or not steeply_seen(joints).any()


def test_the_bound_of_doubt_parts_level_poses_from_turned_ones(level):
    """With a detector's errors; poses without any are further apart, and nearer to their joints."""
    joints, matrix = level
    lifter = load_lifter(joints_2d="detected")
    shares = {}
    for noise in (0.0, 0.015):
        for name, points in {"level": joints, "turned": 2 * matrix[:, None, :2, 2] - joints}.items():
            extent = (points.amax(1) - points.amin(1)).amax(-1)
            errors = torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
            seen = points + noise * extent[:, None, None] * errors
            shares[name, noise] = lifter.lift(seen, intrinsics=matrix).reprojection_px / extent
    assert shares["level", 0.0].quantile(0.95) < shares["turned", 0.0].quantile(0.05)
    assert shares["level", 0.015].quantile(0.95) < DOUBTFUL < shares["turned", 0.015].quantile(0.25)


def test_distances_without_intrinsics_are_called_a_guess(tmp_path, capsys):
    pose = people("h36m17", 1)
    for more, word in (({}, True), ({"intrinsics": [1100, 1100, 500, 500]}, False)):
        held = {"layout": "h36m17", "image_size": [1000, 1000], "keypoints": pose.tolist(), **more}
        (tmp_path / "k.json").write_text(json.dumps(held))
        assert main(["lift", str(tmp_path / "k.json"), "--out", str(tmp_path / "p.json")]) == 0
        assert ("distances are a guess" in capsys.readouterr().out) is word
        assert json.loads((tmp_path / "p.json").read_text())["assumed_focal"] is word


def test_hypotheses_come_with_their_spread(tmp_path, capsys):
    from small import POSES_ONLY

    from unihpe_ref.checkpoint import save_model
    from unihpe_ref.models import UniHPE

    torch.manual_seed(0)
    config = POSES_ONLY.override(**{"model.decoder_width": 64})  # a score-based decoder
    save_model(UniHPE(config.model, config.sampler).eval(), config, tmp_path / "model.safetensors")
    held = {"layout": "h36m17", "image_size": [1000, 1000], "keypoints": people("h36m17", 2).tolist()}
    (tmp_path / "k.json").write_text(json.dumps(held))
    asked = ["lift", str(tmp_path / "k.json"), "--hypotheses", "3", "--out", str(tmp_path / "p.json")]
    assert main([*asked, "--checkpoint", str(tmp_path / "model.safetensors")]) == 0
    spread = np.array([pose["spread"] for pose in poses_of(tmp_path / "p.json")])
    assert spread.shape == (2, 17)
    assert (spread[:, 1:] > 0).all() and (spread[:, 0] == 0).all()  # the pelvis is the origin
    capsys.readouterr()
    assert main(asked) == 2
    assert "needs a lifter with a score-based decoder" in capsys.readouterr().err


def test_people_of_a_video_are_followed_one_by_one():
    motion = small_motion(seconds=1.1, fps=30.0)
    source = PoseSource(motion)
    one = source.evaluation_batch(torch.arange(30), camera=0).joints_2d
    both = torch.stack([one, one + 600], 1).flatten(0, 1)
    frames = tuple(int(k) for k in torch.arange(30).repeat_interleave(2))
    found, filled, words = followed(Found(keypoints(both, frame=frames)))
    assert found.keypoints.frame == frames and not words and not filled.any()
    person = np.array(found.keypoints.person)
    assert set(person[::2]) == {0} and set(person[1::2]) == {1}
    torch.testing.assert_close(found.keypoints.joints_px[1::2] - 600, found.keypoints.joints_px[::2], atol=1e-2, rtol=0)


def test_a_few_frames_may_come_in_any_order():
    poses = PoseSource(small_motion()).evaluation_batch(torch.arange(3), camera=0).joints_2d
    found, _, _ = followed(Found(keypoints(poses, frame=(9, 3, 5), person=(0, 0, 0))))
    assert found.keypoints.frame == (3, 5, 9)
    assert torch.equal(found.keypoints.joints_px, poses[[1, 2, 0]])
    with pytest.raises(ValueError, match="frames of one video"):
        followed(Found(keypoints(poses, frame=(0, 1, 10**11))))


# --- what is missing -------------------------------------------------------------------------------------------


def test_without_the_extra_the_command_to_install_it_is_said(tmp_path, monkeypatch, capsys):
    picture(tmp_path / "a.jpg", 1)
    find = detection.importlib.util.find_spec
    for missing in ("ai_edge_litert", "mediapipe"):
        monkeypatch.delenv(detection.FOLDER, raising=False)
        monkeypatch.setattr(
            detection.importlib.util, "find_spec",
            lambda name, missing=missing: None if name in (missing, "mediapipe") else find("json"),
        )  # fmt: skip
        assert main(["lift", str(tmp_path / "a.jpg"), "--out", str(tmp_path / "p.json")]) == 2
        error = capsys.readouterr().err
        assert "pip install 'multicontrast[detect]'" in error and "Traceback" not in error
    monkeypatch.setattr("unihpe_ref.applications.frames.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"reading a video needs the extra `detect`"):
        next(read_video(tmp_path / "a.mp4"))


def test_pictures_without_people_are_refused(fake, tmp_path, capsys):
    picture(tmp_path / "a.jpg", 0)
    assert main(["lift", str(tmp_path / "a.jpg"), "--out", str(tmp_path / "p.json")]) == 2
    assert "people that its detector can see; got nobody" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


# --- with the extra --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    try:
        return Detector()
    except ValueError as error:
        pytest.skip(f"needs the extra `detect`: {error}")


@pytest.fixture(scope="module")
def photographs():
    from unihpe_ref.data import read_data

    if not PHOTOGRAPHS.exists():
        pytest.skip(f"the photographs are not at {PHOTOGRAPHS}")
    return read_data(PHOTOGRAPHS)


def test_the_detector_finds_the_joints_of_photographs(real, photographs):
    """Within 3 % of the person, as triangulated from four views; the median is 1.7 %."""
    from unihpe_ref.applications.keypoints import to_h36m
    from unihpe_ref.data import apply_affine

    limbs, shares = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16], []
    for row in range(0, len(photographs), 15):
        affine = torch.from_numpy(photographs.picture_affine[row : row + 1]).double()
        truth = apply_affine(affine, torch.from_numpy(photographs.joints_2d[row : row + 1]).double())[0]
        found = real.find(read_picture(photographs.picture_path(row)), thorough=False)
        if found:
            joints, _ = to_h36m(torch.from_numpy(found[0].joints)[None], "blazepose33")
            size = (truth.amax(0) - truth.amin(0)).amax()
            shares.append((joints[0] - truth).norm(dim=-1)[limbs] / size)
    assert len(shares) >= 8
    assert torch.stack(shares).median() < 0.03


def test_the_detector_finds_several_small_people(real, photographs):
    rows = (0, 40, 80, 120)
    crops = [read_picture(photographs.picture_path(row)).resize((300, 400)) for row in rows]
    group = Image.new("RGB", (1200, 400))
    for k, crop in enumerate(crops):
        group.paste(crop, (300 * k, 0))
    found = real.find(group)
    assert sorted(int(np.median(person.joints[:, 0])) // 300 for person in found) == [0, 1, 2, 3]


def test_a_video_is_read_with_its_times_and_lifted(real, photographs, tmp_path):
    av = pytest.importorskip("av", reason="needs the extra `detect`")
    crop = read_picture(photographs.picture_path(0)).resize((384, 512))
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 384, 512, "yuv420p", 4_000_000
        for k in range(8):
            moved = Image.new("RGB", crop.size)
            moved.paste(crop, (2 * k, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(moved)))
        container.mux(stream.encode())
    frames = list(read_video(tmp_path / "clip.mp4"))
    assert [frame.number for frame in frames] == list(range(8))
    assert [frame.time for frame in frames] == [pytest.approx(k / 20) for k in range(8)]
    assert main(["lift", str(tmp_path / "clip.mp4"), "--out", str(tmp_path / "p.json")]) == 0
    poses = poses_of(tmp_path / "p.json")
    assert len(poses) == 8 and {pose["person"] for pose in poses} == {0}
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="needs a video that can be read"):
        list(read_video(tmp_path / "no.mp4"))
