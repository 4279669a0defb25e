"""Batches in which 3D, pixels, box and picture agree, without near duplicates."""

from dataclasses import fields
from pathlib import Path

import camera_definitions as definitions
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unihpe_ref.data import (
    SKELETON,
    Augmentation,
    Motion,
    PoseBatch,
    PoseSource,
    flip_joints,
    flip_pixels,
    generate_motion,
    limb_lengths,
    read_mocap,
)

RECORDING = Path(__file__).resolve().parents[2] / "../shared/data/cmu17_60hz.npz"
FIELDS = (
    "joints_3d", "root", "joints_2d", "box", "focal", "principal", "image_size", "crop_affine",
    "action", "subject", "sequence", "index",
)  # fmt: skip


@pytest.fixture(scope="module")
def motion() -> Motion:
    return generate_motion(
        7, actions=("walk", "sit", "dance", "kick"), num_subjects=3, num_test_subjects=1, seconds=6.0
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(source: PoseSource, count: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randperm(len(source), generator=generator(seed))[:count]


def assert_same(one: PoseBatch, other: PoseBatch) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("cameras", ["random", "fixed"])
@pytest.mark.parametrize("augment", [True, False, Augmentation(flip=1.0, rotation_degrees=90.0, scale=0.5, shift=0.1)])
def test_pixels_are_the_projection_of_the_joints(motion, cameras, augment):
    source = PoseSource(motion, cameras=cameras, augment=augment)
    batch = source.batch(some(source), generator())
    joints = (batch.joints_3d.double() + batch.root[:, None].double()).tolist()
    for b in range(len(batch)):
        for j in range(17):
            expected = definitions.project(joints[b][j], batch.focal[b].tolist(), batch.principal[b].tolist())
            assert batch.joints_2d[b, j].tolist() == pytest.approx(expected, abs=2e-3)


def test_shapes_and_types(motion):
    source = PoseSource(motion, image_size=(64, 48), augment=True)
    batch = source.batch(some(source, 5), generator())
    shapes = {"joints_3d": (17, 3), "root": (3,), "joints_2d": (17, 2), "box": (3,), "focal": (2,), "principal": (2,),
              "image_size": (2,), "image": (3, 64, 48), "crop_affine": (2, 3)}  # fmt: skip
    for name, shape in shapes.items():
        value = getattr(batch, name)
        assert value.shape == (5, *shape), name
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value).all(), name
    for name in ("action", "subject", "sequence", "index"):
        assert getattr(batch, name).shape == (5,)
        assert getattr(batch, name).dtype == torch.int64
    assert len(batch) == 5
    assert batch.to("meta").image.device.type == "meta"
    assert PoseSource(motion).batch(some(source, 5), generator()).to("meta").image is None


def test_the_pose_is_the_recorded_one_turned(motion):
    """Limb lengths survive every augmentation, and the pelvis is the origin."""
    source = PoseSource(motion, augment=True)
    indices = some(source)
    batch = source.batch(indices, generator())
    mirrored = limb_lengths(flip_joints(motion.joints[indices]))  # left and right are alike in these bodies
    torch.testing.assert_close(limb_lengths(batch.joints_3d), mirrored, rtol=0, atol=1e-5)
    assert torch.equal(batch.joints_3d[:, 0], torch.zeros(32, 3))
    assert torch.equal(batch.index, indices)


@pytest.mark.parametrize("cameras", ["random", "fixed"])
@pytest.mark.parametrize("augment", [False, True])
def test_rows_of_a_batch_are_the_same_whoever_builds_them(motion, cameras, augment):
    source = PoseSource(motion, cameras=cameras, image_size=(64, 48), augment=augment)
    indices = some(source)
    whole = source.batch(indices, generator(3))
    for rows in (slice(0, 11), slice(11, 32)):
        part = source.batch(indices, generator(3), rows)
        for field in fields(part):
            torch.testing.assert_close(getattr(part, field.name), getattr(whole[rows], field.name))


@pytest.mark.parametrize("cameras", ["random", "fixed"])
def test_a_flipped_sample_is_the_mirror_of_the_unflipped_one(motion, cameras):
    never, always = (
        PoseSource(motion, cameras=cameras, image_size=(64, 48), augment=Augmentation(flip=flip)) for flip in (0.0, 1.0)
    )
    indices = some(never)
    one, other = never.batch(indices, generator(3)), always.batch(indices, generator(3))
    assert torch.equal(other.joints_3d, flip_joints(one.joints_3d))
    width = one.image_size[:, 0]
    torch.testing.assert_close(other.joints_2d, flip_pixels(one.joints_2d, width), rtol=0, atol=2e-3)
    torch.testing.assert_close(other.box[:, 0], width - 1 - one.box[:, 0], rtol=0, atol=2e-3)
    torch.testing.assert_close(other.box[:, 1:], one.box[:, 1:], rtol=0, atol=2e-3)
    torch.testing.assert_close(other.joints_2d_crop(), flip_pixels(one.joints_2d_crop(), 48.0), rtol=0, atol=2e-3)
    torch.testing.assert_close(other.joints_2d_normalised(), flip_joints(one.joints_2d_normalised()), rtol=0, atol=2e-4)
    information = one.box_info() * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(other.box_info(), information, rtol=0, atol=2e-4)


def test_pictures_are_flipped_with_the_pose(motion):
    """Painted on the same background, the mirrored sample's person stands where the mirror puts it."""
    never, always = (PoseSource(motion, image_size=(64, 48), augment=Augmentation(flip=flip)) for flip in (0.0, 1.0))
    indices = some(never, 64)
    one, other = never.batch(indices, generator(3)).image, always.batch(indices, generator(3)).image
    backdrop = (one == other).all(1)  # outside both silhouettes
    assert 0.3 < backdrop.float().mean() < 0.95
    outside = backdrop & backdrop.flip(-1)
    assert outside.float().mean() > 0.9 * backdrop.float().mean()  # a silhouette that did not mirror would not align


def test_rotation_turns_3d_and_2d_by_one_angle_about_the_optical_axis(motion):
    still = PoseSource(motion, augment=Augmentation(flip=0.0, scale=0.0, rotation_degrees=0.0))
    turned = PoseSource(motion, augment=Augmentation(flip=0.0, scale=0.0, rotation_degrees=30.0))
    indices = some(still, 200)
    one, other = still.batch(indices, generator(1)), turned.batch(indices, generator(1))
    torch.testing.assert_close(other.joints_3d[..., 2], one.joints_3d[..., 2], rtol=0, atol=1e-5)
    flat = torch.view_as_complex(
        torch.cat([one.root[:, None], one.joints_3d + one.root[:, None]], 1)[..., :2].contiguous()
    )
    spun = torch.view_as_complex(
        torch.cat([other.root[:, None], other.joints_3d + other.root[:, None]], 1)[..., :2].contiguous()
    )
    angle = (spun * flat.conj()).sum(1).angle()
    assert angle.abs().max() <= torch.pi / 6 + 1e-5
    assert angle.max() > 0.4
    assert angle.min() < -0.4
    rotor = torch.polar(torch.ones(200), angle)[:, None]
    torch.testing.assert_close(spun, flat * rotor, rtol=0, atol=2e-5)
    # In the picture: about the principal point, but for the 0.2% by which pixels are not square.
    rays = [
        torch.view_as_complex(((b.joints_2d - b.principal[:, None]) / b.focal[:, None]).contiguous())
        for b in (one, other)
    ]
    torch.testing.assert_close(rays[1], rays[0] * rotor, rtol=0, atol=2e-5)


def test_scale_and_shift_change_the_box_alone(motion):
    plain = PoseSource(motion, augment=Augmentation(flip=0.0, scale=0.0, rotation_degrees=10.0))
    scaled = PoseSource(motion, augment=Augmentation(flip=0.0, scale=0.25, rotation_degrees=10.0, shift=0.1))
    indices = some(plain, 300)
    one, other = plain.batch(indices, generator(1)), scaled.batch(indices, generator(1))
    for name in ("joints_3d", "root", "joints_2d", "focal", "principal"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    ratio = other.box[:, 2] / one.box[:, 2]
    assert 0.7499 < ratio.min() < 0.8
    assert 1.2 < ratio.max() < 1.2501
    shift = (other.box[:, :2] - one.box[:, :2]) / one.box[:, 2:]
    assert shift.abs().max() <= 0.1 + 1e-5
    assert shift.abs().amax(0).min() > 0.09


def test_half_of_the_samples_are_flipped(motion):
    source = PoseSource(motion, augment=True)
    indices = torch.full((2000,), 17)
    batch = source.batch(indices, generator())
    same = PoseSource(motion, augment=Augmentation(flip=0.0)).batch(indices, generator())
    share = (batch.joints_3d[..., 0] != same.joints_3d[..., 0]).any(-1).float().mean()
    assert 0.45 < share < 0.55


def test_every_draw_has_a_camera_of_its_own(motion):
    source = PoseSource(motion)
    batch = source.batch(torch.zeros(64, dtype=torch.int64), generator())
    assert len(batch.focal.unique(dim=0)) == 64
    assert len(batch.joints_3d.flatten(1).unique(dim=0)) == 64
    fixed = PoseSource(motion, cameras="fixed").batch(torch.zeros(64, dtype=torch.int64), generator())
    assert len(fixed.focal.unique(dim=0)) == 4


def test_the_generator_decides_a_training_batch(motion):
    source = PoseSource(motion, image_size=(32, 24), augment=True)
    one, again, other = (source.batch(some(source, 8), generator(seed)) for seed in (1, 1, 2))
    assert_same(one, again)
    assert torch.equal(one.image, again.image)
    assert not torch.equal(one.joints_2d, other.joints_2d)


def test_evaluation_batches_never_change(motion):
    source = PoseSource(motion, image_size=(32, 24), augment=True)
    plain = PoseSource(motion, image_size=(32, 24), cameras="fixed")
    indices = some(source, 12)
    whole = source.evaluation_batch(indices)
    source.batch(indices, generator())
    assert_same(whole, source.evaluation_batch(indices))
    assert_same(whole, plain.evaluation_batch(indices))
    assert torch.equal(whole.image, plain.evaluation_batch(indices).image)
    for k in (0, 5, 11):
        alone = source.evaluation_batch(indices[k : k + 1])
        torch.testing.assert_close(alone.joints_2d[0], whole.joints_2d[k], rtol=0, atol=1e-3)
        torch.testing.assert_close(alone.image[0], whole.image[k], rtol=0, atol=1e-2)
    other = PoseSource(motion, image_size=(32, 24), seed=1).evaluation_batch(indices)
    assert torch.equal(other.joints_2d, whole.joints_2d)  # the seed only dresses the pictures
    assert not torch.equal(other.image, whole.image)


def test_evaluation_uses_all_four_cameras_evenly_or_the_one_asked_for(motion):
    source = PoseSource(motion)
    for stride in (1, 4, 5):
        scattered = source.evaluation_batch(source.evaluation_indices(stride))
        kinds, counts = scattered.focal.unique(dim=0, return_counts=True)
        assert len(kinds) == 4
        assert counts.min() > 0.7 * counts.max()
    batches = [source.evaluation_batch(torch.arange(4), camera=camera) for camera in range(4)]
    assert len(torch.cat([batch.focal for batch in batches]).unique(dim=0)) == 4
    roots = [(batch.joints_3d + batch.root[:, None]) for batch in batches]
    spread = torch.cdist(roots[0], roots[0])
    for other in roots[1:]:
        torch.testing.assert_close(torch.cdist(other, other), spread, rtol=0, atol=1e-3)  # the same body, seen anew


def test_evaluation_indices_step_through_each_sequence(motion):
    source = PoseSource(motion)
    assert torch.equal(source.evaluation_indices(), torch.arange(len(source)))
    taken = source.evaluation_indices(40)
    assert taken.tolist() == [s * 150 + f for s in range(motion.num_sequences) for f in range(0, 150, 40)]


def test_people_are_in_the_picture_and_of_the_expected_size(motion):
    for source in (PoseSource(motion), PoseSource(motion, cameras="fixed")):
        batch = source.batch(torch.arange(len(source)), generator())
        inside = (batch.joints_2d >= 0) & (batch.joints_2d < batch.image_size[:, None])
        assert inside.float().mean() > 0.99
        assert 0.25 < batch.joints_3d.std() < 0.33
        assert 0.3 < batch.joints_2d_normalised().std() < 0.45
        assert batch.root[:, 2].min() > 2
        information = batch.box_info()
        assert information.mean(0).abs().max() < 0.8
        assert information.std(0).min() > 0.4
        assert information.std(0).max() < 2
        assert batch.joints_2d_normalised().abs().max() <= 0.8 + 1e-5


def test_the_picture_shows_the_person_at_the_joints(motion):
    source = PoseSource(motion, image_size=(128, 96), augment=Augmentation(scale=0.0))
    indices = some(source, 24)
    first = source.batch(indices, generator(1))
    u, v = first.joints_2d_crop().unbind(-1)
    assert u.min() >= 0
    assert u.max() <= 95
    assert v.min() >= 0
    assert v.max() <= 127
    expected = torch.tensor([(96 - 1) / 2, (128 - 1) / 2]) + first.joints_2d_normalised() * 64
    torch.testing.assert_close(first.joints_2d_crop(), expected, rtol=0, atol=2e-3)
    # The same looks, everybody moved elsewhere in the room: pixels at the joints change, the room does not.
    moved = PoseSource(motion, image_size=(128, 96), augment=Augmentation(scale=0.0, shift=0.5)).batch(
        indices, generator(1)
    )
    changed = (first.image != moved.image).any(1)
    picture = torch.arange(24)[:, None].expand(-1, 17)
    body = [k for k, name in enumerate(SKELETON.joint_names) if name != "head"]  # the very top: on the rim
    shown = changed[picture, v.round().long(), u.round().long()][:, body]
    assert shown.float().mean() > 0.97  # limbs of the two pictures may coincide
    assert changed.float().mean() < 0.7


def test_numbers_keep_their_names_in_a_split(motion):
    source = PoseSource(motion, image_size=(32, 24), augment=True, seed=3)
    test = source.split("test")
    batch = test.evaluation_batch(some(test, 20))
    assert test.action_names == source.action_names == ("dance", "kick", "sit", "walk")
    for frame, action, subject, sequence in zip(batch.index, batch.action, batch.subject, batch.sequence):
        name = test.motion.name[sequence]
        assert torch.equal(test.motion.sequence[frame], sequence)
        assert source.action_names[action] == name.split("_")[1]
        assert source.subject_names[subject] == name.split("_")[0]
    assert (test.seed, test.augment, test.image_size, test.cameras) == (3, source.augment, (32, 24), "random")


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 1.0, 2.0]), st.data())
@settings(max_examples=25)
def test_near_duplicates_never_meet(motion, seed, gap, data):
    source = PoseSource(motion)
    frames = max(1, round(gap * motion.fps))
    most = motion.num_sequences * (150 // frames)
    size = data.draw(st.integers(1, most))
    batches = source.sampler(size, generator(seed), min_gap_seconds=gap)
    for _ in range(3):
        indices = next(batches)
        assert indices.shape == (size,)
        ordered = indices.sort().values
        same = motion.sequence[ordered][1:] == motion.sequence[ordered][:-1]
        if same.any():
            assert ordered.diff()[same].min() >= frames


def test_the_sampler_repeats_from_a_seed_and_reaches_every_frame_equally(motion):
    source = PoseSource(motion)
    batches = [source.sampler(120, generator(seed), 0.5) for seed in (1, 1, 2)]
    first, again, other = (torch.stack([next(batch) for _ in range(300)]) for batch in batches)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    counts = torch.bincount(first.flatten(), minlength=len(source)).float()  # 20 on average
    assert counts.min() > 0
    by_place = counts.unflatten(0, (motion.num_sequences, 150)).mean(0)
    assert (by_place - by_place.mean()).abs().max() < 0.3 * by_place.mean()


def test_too_large_a_batch_is_refused_at_once(motion):
    source = PoseSource(motion)
    with pytest.raises(ValueError, match=r"`batch_size` from 1 to 72, the samples 1 s apart; got 100\. Lower"):
        source.sampler(100, generator())
    with pytest.raises(ValueError, match="got 0"):
        source.sampler(0, generator())


def test_bad_requests_are_refused_in_words(motion):
    source = PoseSource(motion)
    with pytest.raises(
        ValueError, match=r"`cameras` to be one of 'fixed', 'random', 'varied'; got 'fix'\. Did you mean 'fixed'\?"
    ):
        PoseSource(motion, cameras="fix")
    with pytest.raises(ValueError, match=r"\(height, width\).*Try \(64, 48\)"):
        PoseSource(motion, image_size=(64, 0))
    with pytest.raises(ValueError, match="hold every action of the data; got no 'dance'"):
        PoseSource(motion, action_names=("walk",))
    with pytest.raises(ValueError, match=r"indices` from 0 to \d+; got 0 \.\. 99999"):
        source.batch(torch.tensor([0, 99999]), generator())
    with pytest.raises(ValueError, match="from 0 to"):
        source.evaluation_batch(torch.tensor([-1]))
    for wrong in (torch.zeros(0, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"non-empty int64 tensor of shape \(B,\); got"):
            source.batch(wrong, generator())
    with pytest.raises(ValueError, match="`camera` <= 3; got 4"):
        source.evaluation_batch(torch.tensor([0]), camera=4)
    with pytest.raises(ValueError, match="`stride` >= 1; got 0"):
        source.evaluation_indices(0)
    with pytest.raises(ValueError, match=r"0 <= `flip` <= 1; got 1\.5"):
        Augmentation(flip=1.5)


@pytest.mark.skipif(not RECORDING.exists(), reason="the recorded motion is not beside this checkout")
def test_recorded_motion_is_seen_like_generated_motion():
    motion = read_mocap(RECORDING).every(30)
    for cameras in ("random", "fixed"):
        source = PoseSource(motion, cameras=cameras)
        batch = source.batch(torch.arange(len(source)), generator())
        assert 0.27 < batch.joints_3d.std() < 0.31
        assert batch.root[:, 2].min() > 2
        inside = (batch.joints_2d >= 0) & (batch.joints_2d < batch.image_size[:, None])
        assert inside.float().mean() > 0.97
        across = torch.linalg.cross(
            batch.joints_3d[:, 1] - batch.joints_3d[:, 2], batch.joints_3d[:, 4] - batch.joints_3d[:, 1]
        )
        bend = batch.joints_3d[:, SKELETON.index("rknee")] - (batch.joints_3d[:, 1] + batch.joints_3d[:, 3]) / 2
        assert ((bend * across).sum(-1) < 1e-4).float().mean() > 0.99  # right is right through the camera as well
