"""Other bodies and poses for recorded motion, and varied cameras: what changes and what stays."""

from dataclasses import replace

import formats
import pytest
import torch
from torch.testing import assert_close

from unihpe_ref.data import (
    SKELETON,
    Augmentation,
    PoseBatch,
    PoseSource,
    RecordingSource,
    generate_motion,
    limb_lengths,
    read_data,
)
from unihpe_ref.data.bodies import random_lengths, random_turns, with_lengths, with_turns

BARE = Augmentation(flip=0.0, scale=0.0, rotation_degrees=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def motion():
    return generate_motion(3, actions=("walk", "sit"), num_subjects=3, num_test_subjects=1, seconds=4.0)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h36m")
    formats.write_mmpose_h36m(folder)
    return read_data(folder)


def directions(joints: torch.Tensor) -> torch.Tensor:
    parents, children = zip(*SKELETON.limbs)
    return torch.nn.functional.normalize(joints[..., list(children), :] - joints[..., list(parents), :], dim=-1)


def test_another_body_has_the_lengths_that_are_asked_for_in_the_old_directions(motion):
    joints = motion.joints[::10].double()
    lengths = random_lengths(generator(), len(joints)).double()
    other = with_lengths(joints, lengths)
    assert_close(limb_lengths(other), lengths)
    assert_close(directions(other), directions(joints))
    assert_close(other[:, 0], joints[:, 0], rtol=0, atol=0)
    assert_close(with_lengths(joints, limb_lengths(joints)), joints)


def test_a_turned_limb_carries_those_beyond_it_and_keeps_lengths_and_the_rest(motion):
    joints = motion.joints[::10].double()
    turns = torch.zeros(len(joints), 16, 3, dtype=torch.float64)
    arm, elbow, wrist = 11, SKELETON.index("lelbow"), SKELETON.index("lwrist")
    assert SKELETON.limbs[arm][1] == elbow
    turns[:, arm, 2] = torch.pi / 2  # z is up: forward becomes left
    turned, shoulder = with_turns(joints, turns), joints[:, [SKELETON.index("lshoulder")]]
    before, after = (pose[:, [elbow, wrist]] - shoulder for pose in (joints, turned))
    assert_close(after, torch.stack((-before[..., 1], before[..., 0], before[..., 2]), -1))
    others = [joint for joint in range(17) if joint not in (elbow, wrist)]
    assert_close(turned[:, others], joints[:, others])
    drawn = random_turns(generator(), len(joints), 20.0).double()
    assert_close(limb_lengths(with_turns(joints, drawn)), limb_lengths(joints))


def test_half_of_the_samples_turn_and_by_what_is_asked_for():
    turns = random_turns(generator(), 4000, 20.0)
    turning = turns.abs().amax((1, 2)) > 0
    assert abs(float(turning.float().mean()) - 0.5) < 0.04
    knees = turns[turning][:, [2, 5]]
    assert abs(float(knees.square().mean().sqrt().rad2deg()) - 20 / 3**0.5) < 0.5  # of a uniform deviation
    assert not turns[:, [0, 3]].any()  # hips are one bone


def test_a_limb_without_a_length_stays_without_and_gives_no_nan(motion):
    joints = motion.joints[:5].clone()
    joints[:, 10] = joints[:, 9]
    other = with_lengths(joints, random_lengths(generator(), 5))
    assert other.isfinite().all()
    assert_close(other[:, 10], other[:, 9])


def test_random_people_are_of_human_size_and_symmetric():
    lengths = random_lengths(generator(), 4000)
    assert torch.equal(lengths[:, 0:3], lengths[:, 3:6])
    assert torch.equal(lengths[:, 10:13], lengths[:, 13:16])
    legs, trunk = lengths[:, 1] + lengths[:, 2], lengths[:, 6] + lengths[:, 7]
    assert 0.6 < legs.min() < 0.72
    assert 1.0 < legs.max() < 1.2
    assert abs(float(legs.mean()) - 0.87) < 0.01
    assert 0.2 < float((lengths[:, 6] / trunk).min()) < 0.23
    assert 0.59 < float((lengths[:, 6] / trunk).max()) < 0.61
    proportion = torch.corrcoef(torch.stack([legs, trunk]))[0, 1]
    assert 0.5 < float(proportion) < 0.9  # the size of the body ties them, proportions part them


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_asked_share_of_samples_gets_another_body_and_the_others_stay(motion, share):
    source = PoseSource(motion, augment=replace(BARE, bodies=share))
    plain = PoseSource(motion, augment=BARE)
    indices = torch.arange(0, len(motion), 2)
    here, there = source.batch(indices, generator(1)), plain.batch(indices, generator(1))
    same = torch.isclose(limb_lengths(here.joints_3d), limb_lengths(there.joints_3d), atol=1e-5).all(-1)
    assert abs(float((~same).float().mean()) - share) < 4 * (share * (1 - share) / len(indices)) ** 0.5 + 1e-9
    assert_close(here.joints_3d[same], there.joints_3d[same])
    assert_close(directions(here.joints_3d), directions(there.joints_3d), atol=1e-4, rtol=0)
    assert torch.equal(here.root, there.root)


def projected(batch: PoseBatch) -> torch.Tensor:
    seen = batch.joints_3d + batch.root[:, None]
    return seen[..., :2] / seen[..., 2:] * batch.focal[:, None] + batch.principal[:, None]


def test_pixels_are_those_of_the_other_body_and_pose(motion):
    source = PoseSource(motion, augment=Augmentation(bodies=0.5, limb_degrees=20.0), cameras="varied")
    batch = source.batch(torch.arange(0, len(motion), 3), generator())
    assert_close(batch.joints_2d, projected(batch), atol=2e-2, rtol=1e-4)
    rows = slice(5, 40)
    assert torch.equal(
        batch.joints_2d[rows], source.batch(torch.arange(0, len(motion), 3), generator(), rows).joints_2d
    )


@pytest.mark.parametrize("option", [{"bodies": 1.0}, {"limb_degrees": 20.0}])
def test_pixels_of_a_recording_move_by_as_much_as_the_joints_do(recording, option):
    bare, other = (RecordingSource(recording, augment=augment) for augment in (BARE, replace(BARE, **option)))
    indices = torch.arange(len(bare))
    before, after = bare.batch(indices, generator()), other.batch(indices, generator())
    assert not torch.allclose(before.joints_3d, after.joints_3d, atol=1e-3)
    camera = recording.cameras[torch.from_numpy(recording.camera[other.rows])]
    moved = [camera.project(batch.joints_3d + batch.root[:, None]) for batch in (before, after)]
    assert_close(after.joints_2d - before.joints_2d, moved[1] - moved[0], atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("option", ["bodies", "limb_degrees"])
def test_other_bodies_and_poses_are_for_poses_alone(motion, recording, option):
    for make, data in ((PoseSource, motion), (RecordingSource, recording)):
        with pytest.raises(ValueError, match=f"`{option}` needs poses alone; got pictures"):
            make(data, augment=Augmentation(**{option: 0.5}), image_size=(32, 32))
    with pytest.raises(ValueError, match=r"0 <= `bodies` <= 1; got 1\.5"):
        Augmentation(bodies=1.5)


def test_evaluation_sees_the_recorded_bodies(motion):
    indices = torch.arange(0, len(motion), 9)
    source = PoseSource(motion, augment=Augmentation(bodies=1.0, limb_degrees=20.0))
    assert torch.equal(
        source.evaluation_batch(indices).joints_3d, PoseSource(motion).evaluation_batch(indices).joints_3d
    )


def test_varied_cameras_stand_anywhere_and_everybody_is_in_front(motion):
    source = PoseSource(motion, cameras="varied", augment=Augmentation(bodies=0.5))
    batch = source.batch(torch.arange(len(motion)), generator())
    depth = (batch.joints_3d + batch.root[:, None])[..., 2]
    assert depth.min() > 0.3
    distance = batch.root.norm(dim=-1)
    assert distance.min() < 2.5
    assert distance.max() > 7.5
    like_h36m = PoseSource(motion, cameras="random").batch(torch.arange(len(motion)), generator())
    height = [(b.box[:, 2] / b.focal[:, 0]) for b in (batch, like_h36m)]
    assert height[0].std() > 1.5 * height[1].std()


def test_a_batch_says_how_much_its_joints_err(motion, recording):
    noisy = PoseSource(motion, augment=Augmentation(joint_noise=0.02))
    batch = noisy.batch(torch.arange(0, len(motion), 2), generator())
    assert 0 <= batch.joint_noise.min() < 1e-4
    assert 0.018 < batch.joint_noise.max() <= 0.02
    assert torch.equal(PoseSource(motion).batch(torch.arange(4), generator()).joint_noise, torch.zeros(4))
    told = PoseSource(motion, joint_noise=0.01).evaluation_batch(torch.arange(4)).joint_noise
    assert_close(told, torch.full((4,), 0.01))
    assert torch.equal(RecordingSource(recording).evaluation_batch(torch.arange(2)).joint_noise, torch.zeros(2))
