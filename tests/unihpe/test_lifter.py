"""The shipped lifter and its output."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALL, small_source

from multicontrast.metrics import mpjpe, pa_mpjpe
from unihpe_ref import weights
from unihpe_ref.__main__ import main
from unihpe_ref.applications.poses import read_poses
from unihpe_ref.checkpoint import load_model, save_model
from unihpe_ref.data import JOINT_NOISE, PoseSource, project, read_mocap
from unihpe_ref.flipping import lift_flipped
from unihpe_ref.lifter import BOX_RANGE, LEAST_NOISE, load_lifter, place
from unihpe_ref.models import UniHPE
from unihpe_ref.runs import evaluate_model
from unihpe_ref.runs.assembly import open_training_source

RECORDING = Path(__file__).resolve().parents[3] / "shared" / "data" / "cmu17_60hz.npz"
needs_whole = pytest.mark.skipif(not (weights.ASSETS / weights.WHOLE).exists(), reason="in a checkout alone")


@pytest.fixture(scope="module")
def lifter():
    return load_lifter()


@pytest.fixture(scope="module")
def seen():
    """A batch of generated poses: not what the lifter was trained on."""
    source = small_source()
    return source.evaluation_batch(torch.arange(0, len(source), 31))


def intrinsics_of(batch):
    matrix = torch.diag_embed(torch.cat([batch.focal, torch.ones(len(batch), 1)], -1))
    matrix[:, :2, 2] = batch.principal
    return matrix


def test_it_lifts_pixels_to_metres_in_camera_axes(lifter, seen):
    lifted = lifter.lift(seen.joints_2d, intrinsics=intrinsics_of(seen))
    guess = seen.joints_3d.mean(0).expand_as(seen.joints_3d)
    # Bodies that it has never seen, of other proportions: better than a guess, far from what it does on its own.
    assert mpjpe(lifted.joints_3d, seen.joints_3d) < 0.8 * mpjpe(guess, seen.joints_3d)
    assert (lifted.joints_3d[:, 0] == 0).all()
    projected = project(lifted.joints_3d + lifted.root[:, None], seen.focal, seen.principal)
    error = (projected - seen.joints_2d).norm(dim=-1).mean(-1)
    torch.testing.assert_close(lifted.reprojection_px, error, atol=1e-2, rtol=1e-3)
    assert error.median() < 20


def test_a_mirrored_picture_gives_the_mirrored_pose(lifter, seen):
    from unihpe_ref.data import flip_joints, flip_pixels

    matrix = intrinsics_of(seen)
    other = matrix.clone()
    other[:, 0, 2] = 999 - matrix[:, 0, 2]
    lifted = lifter.lift(seen.joints_2d, intrinsics=matrix)
    mirrored = lifter.lift(flip_pixels(seen.joints_2d, 1000.0), intrinsics=other)
    torch.testing.assert_close(mirrored.joints_3d, flip_joints(lifted.joints_3d), atol=2e-4, rtol=0)


@pytest.mark.parametrize("power", [-3, 1, 4])
def test_the_size_of_a_pixel_does_not_matter(lifter, seen, power):
    """Twice the resolution: twice the pixels and twice the focal length, and the same pose to the last bit."""
    scale = torch.tensor([2.0**power, 2.0**power, 1.0])
    matrix = intrinsics_of(seen)
    there = lifter.lift(seen.joints_2d, intrinsics=matrix)
    here = lifter.lift(seen.joints_2d * 2.0**power, intrinsics=scale[:, None] * matrix)
    assert torch.equal(here.joints_3d, there.joints_3d)
    assert torch.equal(here.root, there.root)
    torch.testing.assert_close(here.reprojection_px, there.reprojection_px * 2.0**power)


@pytest.mark.parametrize(
    ("distance", "clamped"), [(1.2, True), (1.6, True), (1.9, False), (9.0, False), (17.0, False), (20.0, True)]
)
def test_people_nearer_or_further_than_in_training_are_marked(lifter, seen, distance, clamped):
    upright = seen.joints_3d[:1] + torch.tensor([0.0, 0.0, distance])
    focal, principal = torch.full((1, 2), 1000.0), torch.full((1, 2), 500.0)
    matrix = torch.tensor([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]])
    assert lifter.lift(project(upright, focal, principal), intrinsics=matrix[None]).clamped.tolist() == [clamped]


@pytest.mark.skipif(not RECORDING.exists(), reason="the recording is not beside this checkout")
def test_nearly_all_of_the_training_is_within_the_range(lifter):
    source = open_training_source(read_mocap(RECORDING), lifter.config, images=False)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(len(source), (1024,), generator=generator) for _ in range(6)]
    information = torch.cat([source.batch(some, generator).box_info() for some in rows])
    low, high = BOX_RANGE["varied"]
    assert ((information < low) | (information > high)).any(-1).double().mean() < 1e-3
    assert information.min() < low + 0.5
    assert information.max() > high - 3


def test_poses_do_not_see_each_other(lifter, seen):
    matrix = intrinsics_of(seen)
    together = lifter.lift(seen.joints_2d, intrinsics=matrix).joints_3d
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))
    shuffled = lifter.lift(seen.joints_2d[order], intrinsics=matrix[order]).joints_3d
    torch.testing.assert_close(shuffled, together[order], atol=1e-6, rtol=1e-5)


def test_flipping_is_the_mean_of_both_ways(seen):
    torch.manual_seed(0)
    config = SMALL.override(**{"model.image_encoder": "none", "model.pose_encoder": "mlp", "model.decoder": "mlp"})
    model = UniHPE(config.model).eval()
    kp2d, info = seen.joints_2d_normalised(), seen.box_info()
    mean = lift_flipped(model, kp2d, info)
    from unihpe_ref.data import flip_joints

    there = model.lift(flip_joints(kp2d), info * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(2 * mean, model.lift(kp2d, info) + flip_joints(there))


def test_the_place_of_a_pose_is_found_exactly_where_rays_are_exact(seen):
    root, error = place(seen.joints_3d, seen.joints_2d, seen.focal, seen.principal)
    torch.testing.assert_close(root, seen.root, atol=2e-3, rtol=0)
    assert error.max() < 0.1


def test_what_does_not_fit_is_refused_in_words(lifter):
    pose = torch.rand(1, 17, 2) * 100
    with pytest.raises(ValueError, match="`intrinsics`, or at least `image_size`; got neither"):
        lifter.lift(pose)
    with pytest.raises(ValueError, match=r"shape \(N, 17, 2\)"):
        lifter.lift(pose[0])
    size = torch.tensor([100.0, 100.0])
    holed = pose.clone()
    holed[0, 3] = torch.nan
    with pytest.raises(ValueError, match="no rankle in pose 0"):
        lifter.lift(holed, image_size=size)
    with pytest.raises(ValueError, match="single point"):
        lifter.lift(torch.ones(1, 17, 2), image_size=size)
    for wrong in (size * 0, -size, torch.tensor([100.0, torch.nan])):
        with pytest.raises(ValueError, match="`image_size` of a pixel at least; got "):
            lifter.lift(pose, image_size=wrong)
    with pytest.raises(ValueError, match="focal length"):
        lifter.lift(pose, intrinsics=torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"`joints_3d` of numbers, of shape \(N, 17, 3\)"):
        lifter.embed_3d(pose)
    with pytest.raises(TypeError, match=r"`path` to be text or a `pathlib\.Path`; got 3"):
        load_lifter(3)
    with pytest.raises(FileNotFoundError, match="needs to be a checkpoint"):
        load_lifter("missing.safetensors")


def keypoint_file(folder, seen):
    path = folder / "keypoints.json"
    content = {"layout": "h36m17", "image_size": [1000, 1000], "keypoints": seen.joints_2d[:3].tolist()}
    path.write_text(json.dumps(content))
    return path


def test_lift_writes_what_the_endings_ask_for(seen, tmp_path, capsys):
    names = ("poses.json", "poses.npz", "poses.html", "poses.gif", "poses.png")
    paths = [str(tmp_path / name) for name in names]
    assert main(["lift", str(keypoint_file(tmp_path, seen)), "--out", *paths]) == 0
    assert "3 poses lifted" in capsys.readouterr().out
    names, joints, root = read_poses(tmp_path / "poses.json")
    again = read_poses(tmp_path / "poses.npz")
    assert names == again[0] == ["0", "1", "2"]
    torch.testing.assert_close(joints, again[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(root, again[2], atol=1e-4, rtol=0)
    for name in ("poses.gif", "poses.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    page = (tmp_path / "poses.html").read_text()
    held = json.loads(re.search(r"const D = (\{.*\});", page).group(1))
    solid = [person["solid"] for scene in held["scenes"] for person in scene["people"]]
    np.testing.assert_allclose(solid, joints.numpy(), atol=6e-4)
    assert "http" not in page  # nothing is asked of the network


@needs_whole
def test_poses_find_each_other_across_modalities(seen, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    keypoints = keypoint_file(tmp_path, seen)
    assert main(["lift", str(keypoints), "--out", str(tmp_path / "poses.json")]) == 0
    asked = ["retrieve", str(keypoints), str(tmp_path / "poses.json"), "--top", "2"]
    assert main([*asked, "--out", str(tmp_path / "matches.json")]) == 0
    assert "2D to 3D" in capsys.readouterr().out
    held = json.loads((tmp_path / "matches.json").read_text())
    assert (held["query"], held["gallery"]) == ("2D", "3D")
    assert [match["query"] for match in held["top"]] == ["0", "1", "2"]
    assert all(len(match["matches"]) == 2 for match in held["top"])
    assert main([*asked, "--out", str(tmp_path / "nowhere" / "matches.json")]) == 2


def test_long_names_are_whole_in_a_narrow_pipe(seen, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    keypoints = keypoint_file(tmp_path, seen)
    content = json.loads(keypoints.read_text())
    names = [f"a-rather-long-name-of-a-picture-number-{k}.jpg" for k in range(3)]
    keypoints.write_text(json.dumps(content | {"images": names}))
    assert main(["retrieve", str(keypoints), str(keypoints), "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    letters = "".join(line.split("│")[1].strip() for line in out.splitlines() if line.count("│") > 2)
    assert all(name in letters for name in names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lift", "missing.json"], "needs a file or a folder"),
        (["lift", "k.json", "--out", "poses.obj"], "Change the ending"),
        (["lift", "k.json", "--out", "nowhere/poses.json"], "Make the folder first"),
        (["lift", "k.json"], "Add `--image-size WIDTH HEIGHT`"),
        (["lift", "few.json"], "poses with at least 6 joints"),
        (["lift"], "needs pictures, videos or keypoints, or `--example`"),
        (["lift", "k.json", "--example"], "needs pictures, videos or keypoints, or `--example`"),
        (["lift", "k.txt"], "keypoints (.json), pictures"),
        (["lift", "k.json", "--image-size", "9", "9", "--hypotheses", "0"], "needs to be positive"),
        (["estimate", "photo.png", "--checkpoint", "missing.safetensors"], "needs to be a checkpoint"),
        (["lift", "k.json", "--image-size", "9", "9", "--fps", "inf"], "`--fps` needs to be positive"),
        (["retrieve", "nan.json", "nan.json"], "needs finite joints"),
        (["retrieve", "missing.json", "k.json"], "needs to be a file or a folder"),
        (["export", "lifter.txt"], "ends in .pt2 or .onnx"),
        (["export", "x.pt2", "--part", "image-encoder"], "a model of poses alone"),
    ],
)
def test_the_commands_refuse_in_words(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pose = [[float(k), float(k % 5), 1.0] for k in range(17)]
    (tmp_path / "k.json").write_text(json.dumps({"layout": "h36m17", "keypoints": pose}))
    (tmp_path / "k.txt").write_text("no pose")
    nowhere = {"image": "a", "joints_3d": [[0.0] * 3] * 17, "root": [0.0, 0.0, float("nan")]}
    (tmp_path / "nan.json").write_text(json.dumps({"format": "unihpe-poses/1", "poses": [nowhere]}))
    pose[5:] = [[0.0, 0.0, 0.0]] * 12
    (tmp_path / "few.json").write_text(json.dumps({"layout": "h36m17", "image_size": [10, 10], "keypoints": pose}))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in " ".join((captured.err + captured.out).split())
    assert "Traceback" not in captured.err
    assert not list(tmp_path.glob("poses.*"))


def test_a_photograph_goes_through_a_model_with_images(tmp_path, capsys):
    torch.manual_seed(0)
    config = SMALL.override(**{"model.decoder_width": 64})  # a group of one channel has no deviation
    save_model(UniHPE(config.model, config.sampler).eval(), config, tmp_path / "model.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    checkpoint = ["--checkpoint", str(tmp_path / "model.safetensors")]
    out = str(tmp_path / "poses.json")
    photo = str(tmp_path / "photo.png")
    assert main(["estimate", photo, *checkpoint, "--box", "10", "5", "40", "80", "--out", out]) == 0
    assert read_poses(tmp_path / "poses.json")[1].isfinite().all()
    for box in (["nan", "5", "40", "80"], ["0", "0", "inf", "9"], ["-50", "5", "40", "80"], ["70", "5", "40", "80"]):
        assert main(["estimate", photo, *checkpoint, "--box", *box, "--out", str(tmp_path / "none.json")]) == 2
        assert "a part of the 60 x 90 pixels" in " ".join(capsys.readouterr().err.split())
    assert main(["retrieve", photo, out, *checkpoint]) == 0
    assert "image to 3D" in capsys.readouterr().out
    (tmp_path / "text.jpg").write_text("no picture")
    assert main(["estimate", str(tmp_path / "text.jpg"), *checkpoint]) == 2
    assert "needs a picture that can be read" in capsys.readouterr().err


def test_an_exported_lifter_gives_the_same_numbers(tmp_path, capsys, lifter):
    assert main(["export", str(tmp_path / "lifter.pt2")]) == 0
    assert "largest difference" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "lifter.pt2").module()
    kp2d, info = torch.randn(7, 17, 2) * 0.3, torch.randn(7, 3)
    with torch.no_grad():
        torch.testing.assert_close(program(kp2d, info), lifter.model.lift(kp2d, info), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@needs_whole
@pytest.mark.parametrize("part", ["lifter", "encoder-2d", "encoder-3d"])
def test_onnx_gives_the_same_numbers(part, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    assert main(["export", str(tmp_path / "part.onnx"), "--part", part]) == 0
    assert "largest difference" in capsys.readouterr().out


def test_a_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch, lifter):
    from unihpe_ref.applications import export

    monkeypatch.setattr(export, "_compare", lambda *_: (0.5, "a test"))
    monkeypatch.setattr(export, "_torch_bytes", lambda _: b"")
    with pytest.raises(ValueError, match=r"agree with PyTorch within 0.0001; got 0.5"):
        export.export_model(lifter, "encoder-2d", tmp_path / "e.pt2")
    assert not list(tmp_path.iterdir())


def test_the_doctor_finds_nothing_wrong_here_and_says_what_is(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    assert "Nothing is wrong" in capsys.readouterr().out
    from unihpe_ref.applications import doctor

    monkeypatch.setenv("MULTICONTRAST_BACKEND", "cuda")
    monkeypatch.setattr(doctor, "load_lifter", lambda **_: (_ for _ in ()).throw(ValueError("a damaged file")))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "a damaged file" in out
    assert "Unset it" in out


def test_it_is_as_good_as_its_card_says():
    """On the held-out takes of the recording that it was trained on, with the settings of the card."""
    if not RECORDING.exists():
        pytest.skip(f"the recording is not at {RECORDING}")
    (model, config), motion = load_model(weights.lifter_path()), read_mocap(RECORDING)
    card = json.loads((weights.ASSETS / weights.CARD).read_text())
    evaluation = evaluate_model(model, config, motion)
    for path in ("2D to 3D", "2D to 3D, flip", "mean pose, 3D"):
        for metric, value in card["evaluation"]["paths"][path]["frame_mean"].items():
            assert evaluation.path(path).frame_mean[metric] == pytest.approx(value, abs=0.1), (path, metric)


def test_a_lifter_is_never_told_that_its_joints_are_exact() -> None:
    model, _ = load_model(weights.lifter_path())
    expected = model.with_joint_noise(LEAST_NOISE).state_dict()
    for name, value in load_lifter(joints_2d="annotated").model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_what_the_lifter_is_told_of_its_joints_helps_where_it_is_true():
    """On takes that it has not seen; exact joints of generated people lie elsewhere, and it does not help there."""
    if not RECORDING.exists():
        pytest.skip(f"the recording is not at {RECORDING}")
    errors, motion = {}, read_mocap(RECORDING).select("test").every(60)
    for joints_2d in JOINT_NOISE:
        lifter = load_lifter(joints_2d=joints_2d)
        for noise in (0.0, 0.02):
            source = PoseSource(motion, joint_noise=noise)
            seen = source.evaluation_batch(torch.arange(0, len(source), 5))
            lifted = lifter.lift(seen.joints_2d, intrinsics=intrinsics_of(seen))
            errors[joints_2d, noise] = float(pa_mpjpe(lifted.joints_3d, seen.joints_3d))
    assert errors["detected", 0.02] < errors["annotated", 0.02]
    assert errors["annotated", 0.0] < errors["detected", 0.0]


def test_a_lifter_without_a_3d_encoder_says_so(lifter, seen):
    with pytest.raises(ValueError, match="a model with a 3D encoder; got one that only lifts"):
        lifter.embed_3d(seen.joints_3d)
    assert lifter.embed_2d(seen.joints_2d, intrinsics=intrinsics_of(seen)).shape == (len(seen), 480)


def test_heavier_parts_are_found_by_their_bytes_or_named_as_missing(tmp_path, monkeypatch):
    """As from a wheel: the lifter and its card are there, the whole is not."""
    assets, folder = tmp_path / "assets", tmp_path / "weights"
    assets.mkdir()
    folder.mkdir()
    content = b"the whole lifter"
    (assets / weights.CARD).write_text(json.dumps({"whole_sha256": hashlib.sha256(content).hexdigest()}))
    monkeypatch.setattr(weights, "ASSETS", assets)
    monkeypatch.delenv(weights.FOLDER, raising=False)
    with pytest.raises(FileNotFoundError, match=r"got none beside the package.*UNIHPE_WEIGHTS.*Lifting works without"):
        weights.whole_path()
    monkeypatch.setenv(weights.FOLDER, str(folder))
    with pytest.raises(FileNotFoundError, match=r"got no such file in .*weights"):
        load_lifter(whole=True)
    (folder / weights.WHOLE).write_bytes(b"of another version")
    with pytest.raises(ValueError, match=r"got other bytes in .*lifter-whole"):
        weights.whole_path()
    (folder / weights.WHOLE).write_bytes(content)
    assert weights.whole_path() == folder / weights.WHOLE
    (assets / weights.WHOLE).write_bytes(b"of another version")
    assert weights.whole_path() == folder / weights.WHOLE


def test_the_command_takes_a_detectors_joints_unless_told_otherwise(tmp_path, seen):
    keypoints, size = keypoint_file(tmp_path, seen), torch.tensor([1000.0, 1000.0])
    poses = {}
    for options in ((), ("--joints-2d", "annotated")):
        assert main(["lift", str(keypoints), "--out", str(tmp_path / "poses.npz"), *options]) == 0
        poses[options] = np.load(tmp_path / "poses.npz")["joints_3d"]
    for options, joints_2d in zip(poses, ("detected", "annotated")):
        expected = load_lifter(joints_2d=joints_2d).lift(seen.joints_2d[:3], image_size=size).joints_3d
        np.testing.assert_allclose(poses[options], expected.numpy(), atol=2e-3)


def test_a_transformer_keeps_its_free_batch_when_it_is_exported(tmp_path):
    from unihpe_ref.applications.export import export_model
    from unihpe_ref.lifter import Lifter

    torch.manual_seed(0)
    small = Lifter(UniHPE(SMALL.model).eval(), SMALL)
    for part in ("encoder-2d", "encoder-3d"):
        assert export_model(small, part, tmp_path / f"{part}.pt2").difference < 1e-5
    with pytest.raises(ValueError, match="a score-based decoder, which is a loop"):
        export_model(small, "lifter", tmp_path / "lifter.pt2")
