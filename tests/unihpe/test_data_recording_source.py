"""Real cameras and pictures: every augmentation reaches 3D, 2D, box, camera and picture alike."""

import dataclasses
from pathlib import Path

import formats
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unihpe_ref.data import (
    Augmentation,
    RecordingSource,
    crop_affine,
    crop_intrinsics,
    denormalise_image,
    flip_joints,
    flip_pixels,
    intrinsic_matrix,
    limb_lengths,
    project,
    read_data,
)
from unihpe_ref.data.pictures import decode, encode, warp
from unihpe_ref.data.prepared import prepare
from unihpe_ref.data.protocols import FAULTY_H36M, PROTOCOLS, protocol
from unihpe_ref.data.recording import Recording
from unihpe_ref.data.sampling import SpacedSampler

REAL = Path(__file__).resolve().parents[2] / "../shared/data/real_multiview"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("h36m")
    formats.write_mmpose_h36m(folder, pictures=True)
    return read_data(folder)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_projected(batch, atol: float = 5e-3) -> None:
    """project(3D, K) is 2D, and through K_crop it is 2D in the crop."""
    joints = batch.joints_3d + batch.root[:, None]
    torch.testing.assert_close(project(joints, batch.focal, batch.principal), batch.joints_2d, rtol=0, atol=atol)
    lens = crop_intrinsics(batch.crop_affine, intrinsic_matrix(batch.focal, batch.principal))
    homogeneous = joints @ lens.mT
    crop = homogeneous[..., :2] / homogeneous[..., 2:]
    torch.testing.assert_close(crop, batch.joints_2d_crop(), rtol=0, atol=atol)


@settings(max_examples=15)
@given(
    st.floats(0, 1), st.floats(0, 180), st.floats(0, 0.9), st.floats(0, 0.5),
    st.sampled_from(["aligned", "classic", "udp"]), st.integers(0, 1000),
)  # fmt: skip
def test_3d_2d_and_camera_stay_together(recording, flip, rotation, scale, shift, convention, seed):
    augment = Augmentation(flip=flip, rotation_degrees=rotation, scale=scale, shift=shift)
    source = RecordingSource(recording, augment=augment, convention=convention)
    batch = source.batch(torch.arange(0, len(source), 7), generator(seed))
    assert_projected(batch)
    torch.testing.assert_close(  # a pose is turned and mirrored, never bent
        limb_lengths(batch.joints_3d).sum(-1), limb_lengths(torch.from_numpy(recording.joints_3d[::7])).sum(-1)
    )


def test_without_augmentation_samples_are_as_recorded(recording):
    source = RecordingSource(recording)
    indices = torch.arange(len(source))
    batch = source.batch(indices, generator())
    assert torch.equal(batch.joints_2d, torch.from_numpy(recording.joints_2d))
    assert torch.equal(batch.joints_3d, torch.from_numpy(recording.joints_3d))
    assert_projected(batch)
    other = source.evaluation_batch(indices)
    assert torch.equal(batch.box, other.box)


def test_a_mirrored_sample_exchanges_left_and_right(recording):
    never, always = (RecordingSource(recording, augment=Augmentation(flip=flip)) for flip in (0.0, 1.0))
    indices = torch.arange(len(never))
    one, other = never.batch(indices, generator(3)), always.batch(indices, generator(3))
    assert torch.equal(other.joints_3d, flip_joints(one.joints_3d))
    torch.testing.assert_close(other.joints_2d, flip_pixels(one.joints_2d, one.image_size[:, 0]), rtol=0, atol=2e-3)
    torch.testing.assert_close(other.joints_2d_crop(), flip_pixels(one.joints_2d_crop(), 192.0), rtol=0, atol=2e-3)


def test_rows_of_a_batch_are_those_of_the_whole(recording):
    source = RecordingSource(recording, augment=True)
    indices = torch.arange(20)
    whole, part = source.batch(indices, generator(1)), source.batch(indices, generator(1), slice(5, 9))
    for name in ("joints_3d", "joints_2d", "box", "crop_affine", "principal"):
        assert torch.equal(getattr(whole, name)[5:9], getattr(part, name)), name


def test_detected_joints_keep_their_distance_to_the_annotated_ones(tmp_path):
    """CPN's joints go through the same map as everything else."""
    formats.write_videopose3d(tmp_path / "data")
    data = read_data(tmp_path)
    augment = Augmentation(flip=0.5, rotation_degrees=60, bodies=0.5)
    one, other = (
        RecordingSource(data, augment=augment, joints_2d=kind).batch(torch.arange(9), generator(2))
        for kind in ("annotated", "detected")
    )
    assert torch.equal(one.joints_3d, other.joints_3d)
    assert torch.equal(torch.stack([one.joint_noise, other.joint_noise]), torch.tensor([[0.0], [0.015]]).expand(2, 9))
    distance = (one.joints_2d - other.joints_2d).norm(dim=-1)
    torch.testing.assert_close(distance, torch.full_like(distance, 8**0.5), rtol=1e-2, atol=0)


def test_poses_in_the_frame_of_a_facing_camera(recording):
    batch = RecordingSource(recording, view="box").evaluation_batch(torch.arange(8))
    assert_projected(batch, atol=2e-2)


# --- pictures -------------------------------------------------------------------------------------------------


def bilinear(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """The definition: pixel centres at whole numbers, black outside."""
    total = np.zeros(3)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * picture[row, column]
    return total


def test_warp_is_bilinear_interpolation():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 30, 3), np.uint8)
    affine = np.array([[1.3, -0.4, 2.5], [0.3, 1.1, -4.0]])
    found = warp(Image.fromarray(pixels), affine, (36, 44))
    back = np.linalg.inv(affine[:, :2])
    inside = 0
    for y in range(36):
        for x in range(44):
            u, v = back @ (np.array([x, y]) - affine[:, 2])
            if 1 <= u <= 28 and 1 <= v <= 38:
                inside += 1
                np.testing.assert_allclose(found[y, x], bilinear(pixels, u, v), atol=1.5)
            elif not (-1 < u < 30 and -1 < v < 40):
                assert (found[y, x] == 0).all()
    assert inside > 500
    np.testing.assert_array_equal(warp(Image.fromarray(pixels), np.eye(2, 3), (40, 30)), pixels)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("convention", ["aligned", "classic", "udp"])
def test_the_picture_shows_what_the_joints_say(recording, flip, convention):
    """In the written pictures, red is the column and green the row: what a joint's pixel shows is where it was."""
    augment = Augmentation(flip=flip, rotation_degrees=25, scale=0.2)
    source = RecordingSource(
        recording.take(np.array([row for row in range(len(recording)) if recording.picture_path(row).is_file()])),
        image_size=(256, 192), augment=augment, convention=convention,
    )  # fmt: skip
    indices = torch.arange(len(source))
    batch = source.batch(indices, generator(1))
    assert batch.image.shape == (len(source), 3, 256, 192)
    assert_projected(batch)
    plain = source.evaluation_batch(indices).joints_2d
    pictures = denormalise_image(batch.image)
    swap = [0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13]
    off = []
    for sample in range(len(source)):
        for joint, (x, y) in enumerate(batch.joints_2d_crop()[sample].round().int().tolist()):
            if 2 <= x < 190 and 2 <= y < 254:
                width, height = batch.image_size[sample].tolist()
                seen = pictures[sample, :2, y, x] * torch.tensor([width - 1, height - 1])
                expected = plain[sample, swap[joint] if flip else joint]
                off.append(seen - expected)
    off = torch.stack(off)
    assert len(off) > 40
    assert float(off.abs().max()) < 12  # a pixel of the crop is some 4 of the picture, one level of colour another 4
    assert float(off.mean(0).abs().max()) < 1.5  # and no shift: half a pixel of the crop would be 2


def test_conventions_put_known_pixels_where_their_code_does():
    """Centre and corners of a box of 300 x 400 at (500, 600), by hand."""
    box = torch.tensor([500.0, 600.0, 400.0], dtype=torch.float64)

    def at(convention: str, u: float, v: float) -> list[float]:
        affine = crop_affine(box, (256, 192), convention=convention)
        return (affine[:, :2] @ torch.tensor([u, v], dtype=torch.float64) + affine[:, 2]).tolist()

    assert at("aligned", 500, 600) == pytest.approx([95.5, 127.5])
    assert at("classic", 500, 600) == pytest.approx([96, 128])
    assert at("udp", 500, 600) == pytest.approx([95.5, 127.5])
    assert at("udp", 350, 400) == pytest.approx([0, 0])
    assert at("udp", 650, 800) == pytest.approx([191, 255])
    assert at("aligned", 350, 400) == pytest.approx([-0.5, -0.5])  # the outer edges of the corner pixels
    assert at("classic", 350, 400) == pytest.approx([0, 0])
    with pytest.raises(ValueError, match="Did you mean 'udp'"):
        crop_affine(box, (256, 192), convention="upd")


@pytest.mark.skipif(not REAL.exists(), reason="the real crops are not beside this checkout")
def test_real_photographs_go_through(tmp_path):
    """The stored crop, cut again, is the stored crop; and packed crops show the same people."""
    data = read_data(REAL)
    source = RecordingSource(data, image_size=(256, 192))
    batch = source.evaluation_batch(torch.arange(0, 139, 20))
    assert_projected(batch, atol=2e-2)
    assert 0.05 < float(denormalise_image(batch.image).std()) < 0.5
    stored = np.asarray(decode(data.picture_bytes(0), "crop"))
    assert stored.shape == (512, 384, 3)
    half = warp(
        Image.fromarray(stored), crop_affine(torch.tensor([191.5, 255.5, 512.0]), (256, 192)).numpy(), (256, 192)
    )
    own = (denormalise_image(batch.image[0]).permute(1, 2, 0).numpy() * 255).round()
    centre = (batch.box[0, :2] - torch.from_numpy(data.box[0, :2])).abs().max()
    assert float(centre) < 1e-3
    assert abs(own.mean() - half.mean()) < 12
    packed = prepare(REAL, tmp_path / "packed", crops=True)
    again = RecordingSource(packed, image_size=(256, 192)).evaluation_batch(torch.arange(0, 139, 20))
    difference = (denormalise_image(again.image) - denormalise_image(batch.image)).abs()
    assert float(difference.mean()) < 0.02
    augmented = RecordingSource(data, image_size=(64, 48), augment=True).batch(torch.arange(6), generator())
    assert_projected(augmented, atol=2e-2)


def test_a_damaged_picture_is_named(recording, tmp_path):
    rows = np.array([row for row in range(len(recording)) if recording.picture_path(row).is_file()])[:1]
    path = tmp_path / recording.pictures[recording.picture[rows[0]]]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xd8 no picture")
    source = RecordingSource(dataclasses.replace(recording.take(rows), folder=tmp_path), image_size=(64, 48))
    with pytest.raises(ValueError, match=r"can be read at .*S1_Walking_1.*Copy or download it again"):
        source.evaluation_batch(torch.tensor([0]))
    assert decode(encode(np.zeros((4, 5, 3), np.uint8)), "x").size == (5, 4)


def test_what_is_not_there_is_said(tmp_path):
    formats.write_spin(tmp_path / "plain.npz", solid=False)
    data = read_data(tmp_path / "plain.npz")
    with pytest.raises(ValueError, match=r"17 annotated 2D joints, 17 3D joints; got none of 24"):
        RecordingSource(data)
    with pytest.raises(ValueError, match="needs detected joints in the recording"):
        RecordingSource(data, joints_2d="detected")
    with pytest.raises(ValueError, match="Did you mean 'annotated'"):
        RecordingSource(data, joints_2d="anotated")
    source = RecordingSource(data, need_3d=False)
    assert source.evaluation_batch(torch.tensor([0])).joints_3d.isnan().all()
    with pytest.raises(ValueError, match="from 0 to 23"):
        source.evaluation_batch(torch.tensor([24]))


# --- which samples meet ---------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.data())
def test_samples_of_a_batch_keep_their_gap(data):
    """Groups with holes, of different rates; every draw keeps every gap, and as many as promised are there."""
    groups = data.draw(st.integers(1, 4))
    times = [sorted(data.draw(st.sets(st.integers(0, 60), min_size=1, max_size=25))) for _ in range(groups)]
    gap = torch.tensor([data.draw(st.integers(1, 12)) for _ in range(groups)])
    group = torch.tensor([g for g, own in enumerate(times) for _ in own])
    time = torch.tensor([t for own in times for t in own])
    shuffled = torch.randperm(len(group), generator=generator(data.draw(st.integers(0, 99))))
    group, time = group[shuffled], time[shuffled]
    sampler = SpacedSampler(group, time, gap)
    size = max(1, sampler.available)
    batches = sampler.batches(size, generator(data.draw(st.integers(0, 99))))
    for _ in range(5):
        batch = next(batches)
        if sampler.available:
            assert len(batch) == size
        for g in range(groups):
            own = time[batch][group[batch] == g].sort().values
            assert (own.diff() >= gap[g]).all()


def test_views_of_a_recording_keep_a_second(tmp_path):
    formats.write_3dhp_train(tmp_path)
    source = RecordingSource(read_data(tmp_path))
    batches = source.sampler(16, generator(), min_gap_seconds=0.2)
    met = torch.zeros(len(source), dtype=torch.bool)
    for _ in range(60):
        batch = next(batches)
        met[batch] = True
        views = source.recording.views[batch.numpy()]
        for view in np.unique(views):
            frames = np.sort(source.recording.frame[batch.numpy()][views == view])
            assert (np.diff(frames) >= 5).all()
    assert met.float().mean() > 0.9  # over time, every sample has its turn
    with pytest.raises(ValueError, match=r"`batch_size` from 1 to 64, the samples 0\.2 s apart"):
        source.sampler(65, generator(), min_gap_seconds=0.2)


def test_poses_of_a_batch_keep_their_distance(recording):
    """The same moment copied into another sequence would be a false negative; a distance keeps it out."""
    double = dataclasses.replace(
        recording.take(np.concatenate([np.arange(96), np.arange(96)])),
        sequence=np.concatenate([recording.sequence, recording.sequence + 6]),
        sequence_name=recording.sequence_name + tuple(f"{name} copy" for name in recording.sequence_name),
        subject=recording.subject * 2, action=recording.action * 2, split=recording.split * 2, fps=recording.fps * 2,
    )  # fmt: skip
    loose, strict = (
        next(RecordingSource(double, min_distance=distance).sampler(24, generator(1), min_gap_seconds=0.2))
        for distance in (0.0, 0.02)
    )
    poses = torch.from_numpy(double.joints_3d)

    def nearest(batch: torch.Tensor) -> float:
        distance = (poses[batch][:, None] - poses[batch][None]).square().sum(-1).mean(-1).sqrt()
        return float(distance[~torch.eye(len(batch), dtype=torch.bool)].min())

    assert nearest(loose) == 0
    assert nearest(strict) >= 0.02
    assert len(strict.unique()) == 24
    with pytest.raises(ValueError, match=r"24 poses that differ by 9; got 1"):
        next(RecordingSource(double, min_distance=9.0).sampler(24, generator(), min_gap_seconds=0.2))


# --- protocols ------------------------------------------------------------------------------------------------


def test_protocols_choose_their_samples(tmp_path):
    formats.write_videopose3d(tmp_path / "data")
    data = read_data(tmp_path)
    subject = np.array(data.subject)[data.sequence]
    rows = protocol("h36m_lifting").select(data)
    assert set(subject[rows]) == {"S9", "S11"}
    assert len(rows) == 2 * 2 * 4 * 20
    rows = protocol("h36m_p2_image").select(data)
    assert set(data.camera_name[data.camera[rows]]) == {"60457274"}
    assert set(data.frame[rows].tolist()) == {0, 5, 10, 15}
    assert set(data.frame[protocol("h36m_every_64th").select(data)].tolist()) == {0}
    assert len(protocol("h36m_every_640th").select(data)) == 1
    renamed = dataclasses.replace(data, sequence_name=("S1 a", "S1 b", FAULTY_H36M[0], "S9 b", "S11 a", "S11 b"))
    kept = protocol("h36m_lifting_sound").select(renamed)
    assert set(renamed.sequence[kept].tolist()) == {3, 4, 5}
    with pytest.raises(ValueError, match=r"3dpw_14 needs test samples.*got none"):
        protocol("3dpw_14").select(data.select("train"))
    with pytest.raises(ValueError, match="Did you mean 'h36m_lifting'"):
        protocol("h36m_liftin")
    assert all(own.name == name and own.mean in ("actions", "frames") for name, own in PROTOCOLS.items())
    source = RecordingSource(data, protocol=protocol("h36m_p2_image")).split("test")
    indices = source.evaluation_indices()
    assert len(indices) == 16
    assert len(source.evaluation_indices(2)) == 8


def test_14_joints_are_those_of_the_paper():
    names = ["rank", "rkne", "rhip", "lhip", "lkne", "lank", "rwri", "relb", "rsho", "lsho", "lelb", "lwri"]
    ours = ["pelvis", "rhip", "rkne", "rank", "lhip", "lkne", "lank", "spine", "thorax", "nose", "head"]
    ours += ["lsho", "lelb", "lwri", "rsho", "relb", "rwri"]
    assert [ours[joint] for joint in protocol("3dpw_14").joints] == [*names, "thorax", "head"]


# --- the whole way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [False, True])
def test_a_prepared_recording_trains_and_is_evaluated_by_its_protocol(tmp_path, images):
    """From files as they are downloaded, through `prepare`, to the errors of a protocol's frames and 14 joints."""
    from small import POSES_ONLY, SMALL, quiet_log

    from unihpe_ref.runs import evaluate_model, open_motion, train_model

    formats.write_mmpose_h36m(tmp_path / "h36m", pictures=images)
    if images:  # train and test both need pictures
        for name in read_data(tmp_path / "h36m").pictures[::3]:
            formats.picture(tmp_path / "h36m" / "images" / name, 100, 100)
    data = read_data(tmp_path / "h36m")
    assert isinstance(data, Recording)
    prepare(tmp_path / "h36m", tmp_path / "data")
    config = (SMALL if images else POSES_ONLY).override(
        **{
            "motion": tmp_path / "data", "data.min_gap_seconds": 0.1, "evaluation.stride": 1,
            "evaluation.protocol": "h36m_p1_image", "stage1.steps": 2, "stage2.batch_size": 4, "stage3.steps": 2,
            "stage3.batch_size": 4,
        }
    )  # fmt: skip
    motion = open_motion(config)
    if images:
        there = np.array([data.picture_path(row).is_file() for row in range(len(data))])
        motion = dataclasses.replace(motion, picture=np.where(there, motion.picture, -1))
    model = train_model(config, motion, quiet_log(tmp_path), torch.device("cpu"))
    result = evaluate_model(model, config, motion)
    assert result.frames == (sum(there & (data.splits == "test")) if images else 64)
    assert set(result.actions) == {"Walking", "Sitting"}
    source = RecordingSource(motion, protocol=protocol("h36m_p1_image")).split("test")
    assert source.evaluated_joints == protocol("3dpw_14").joints
    for path in result.paths:
        assert all(np.isfinite(value) for value in path.frame_mean.values()), path
    # another data set, which has neither a training split nor pictures
    formats.write_3dhp_test(tmp_path / "3dhp")
    other = config.override(**{"motion": tmp_path / "3dhp", "evaluation.protocol": "3dhp"})
    result = evaluate_model(model, other, open_motion(other))
    assert [path.name for path in result.paths] == ["2D to 3D"]
    assert {"3DPCK@150", "AUC"} <= set(result.paths[0].frame_mean)
    assert result.frames == 13  # of 20, those that are valid
    assert set(result.actions) == {"standing/walking", "on the floor"}


def test_mpi_inf_3dhp_is_evaluated_as_by_its_own_script(tmp_path):
    """The first 14 of its 17 joints; strictly under 150 mm; 31 thresholds; from its joint 15, the pelvis."""
    from small import POSES_ONLY

    from unihpe_ref.evaluation import MeanPose, evaluate
    from unihpe_ref.models import UniHPE

    formats.write_3dhp_test(tmp_path)
    data = read_data(tmp_path)
    assert isinstance(data, Recording)
    source = RecordingSource(data, protocol=protocol("3dhp")).split("test")
    truth = source.evaluation_batch(source.evaluation_indices()).joints_3d
    spread = torch.linspace(0.0, 0.213, 17)[:, None] * torch.tensor([[0.6, 0.0, 0.8]])
    guess = truth[0] + spread - spread[:1]
    model, config = UniHPE(POSES_ONLY.model).eval(), POSES_ONLY.override(**{"evaluation.stride": 1}).evaluation
    found = evaluate(model, source, MeanPose(guess, torch.zeros(17, 2)), config).path("mean pose, 3D")

    places = (14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)  # in its order, of Human3.6M's joints
    counted = [joint for joint, place in enumerate(places) if place < 14]
    distances = 1000 * (guess - truth).norm(dim=-1)[:, counted].double().numpy()
    shares = [(distances < threshold).mean() for threshold in range(0, 151, 5)]
    assert found.frame_mean["3DPCK@150"] == pytest.approx(100 * shares[-1], abs=1e-4)
    assert found.frame_mean["AUC"] == pytest.approx(100 * sum(shares) / 31, abs=1e-4)
    assert 10 < found.frame_mean["AUC"] < found.frame_mean["3DPCK@150"] < 90
