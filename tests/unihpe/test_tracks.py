"""People through a video: stable numbers and sides, gaps, and smooth joints."""

import numpy as np
import pytest
import torch
from detections import people
from small import small_motion

from unihpe_ref.applications.completion import LEAST, complete
from unihpe_ref.applications.tracks import number_people, smooth
from unihpe_ref.data import SKELETON, PoseSource, fixed_cameras
from unihpe_ref.lifter import load_lifter

FPS = 30.0


def clip(frames=90, noise=0.0, seed=0):
    """Pixels ``(frames, 17, 2)`` of somebody who walks before one camera, and the size of the person."""
    motion = small_motion(seconds=frames / FPS + 0.1, fps=FPS)
    joints = motion.joints[motion.sequence == 0][:frames]
    camera = fixed_cameras()[0]
    pixels = camera.project(camera.world_to_camera(joints - torch.cat([joints[0, 0, :2], torch.zeros(1)])))
    size = float((pixels.amax(1) - pixels.amin(1)).amax(-1).mean())
    rng = np.random.default_rng(seed)
    return pixels.double().numpy() + noise * size * rng.normal(size=pixels.shape), size


def shake(joints):
    """Mean acceleration, per frame squared."""
    return float(np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).mean())


def test_people_keep_their_numbers_while_they_pass_each_other():
    track, size = clip()
    rng = np.random.default_rng(0)
    # one goes right, one left and further away; the order in a frame is drawn, and each is missing for some frames
    there = track + np.linspace(-1.5, 1.5, 90)[:, None, None] * size * np.array([1, 0])
    back = 0.8 * track + np.linspace(1.5, -1.5, 90)[:, None, None] * size * np.array([1, 0]) + np.array([0, 0.3 * size])
    joints, frame, truth = [], [], []
    for k in range(90):
        for person in rng.permutation(2):
            if not 20 + 40 * person <= k < 26 + 40 * person:
                joints.append((there, back)[person][k])
                frame.append(k)
                truth.append(person)
    number = number_people(np.stack(joints), frame, FPS)
    assert set(number) == {0, 1}
    first = truth[0]
    assert [int(value) for value in number] == [int(person != first) for person in truth]


def test_a_person_who_was_absent_for_long_gets_a_new_number():
    track, _ = clip()
    rows = [*range(10), *range(60, 70)]
    assert number_people(track[rows], rows, FPS).tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("limbs", [("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist")])
def test_sides_that_are_exchanged_for_some_frames_come_back(limbs):
    track, size = clip()
    swapped = track.copy()
    left, right = ([SKELETON.index(side + limb) for limb in limbs] for side in "lr")
    for first, last in ((30, 38), (60, 61)):
        swapped[first:last, left + right] = track[first:last, right + left]
    expected, _, none = smooth(track, range(90), FPS)
    found, _, count = smooth(swapped, range(90), FPS)
    assert none == 0
    assert count > 0
    assert np.abs(found - expected).max() < 0.05 * size


def test_what_most_frames_say_is_right():
    track, _ = clip()
    first = track.copy()
    first[:10] = track[:10][:, list(SKELETON.flip_permutation)]
    found, _, _ = smooth(first, range(90), FPS)
    np.testing.assert_allclose(found[20:], smooth(track, range(90), FPS)[0][20:], atol=1e-6)


def test_short_gaps_are_filled_and_marked_and_long_ones_are_not():
    track, size = clip()
    holed = track.copy()
    holed[20:28, 13] = np.nan
    holed[40:70, 16] = np.nan
    rows = [k for k in range(90) if not 75 <= k < 79]
    found, filled, _ = smooth(holed[rows], rows, FPS)
    assert filled[20:28, 13].all() and filled[75:79].all()
    assert filled.sum() == 8 + 4 * 17
    assert np.isnan(found[40:70, 16]).all() and np.isfinite(found[20:28, 13]).all()
    assert np.linalg.norm(found[75:79] - track[75:79], axis=-1).max() < 0.1 * size


def test_video_does_not_shake():
    """Ours: 90 frames with 1.5 % of noise and 1 % of joints far off; lifted, in millimetres a frame squared."""
    track, size = clip(noise=0.015)
    rng = np.random.default_rng(1)
    wild = rng.random(track.shape[:2]) < 0.01
    track[wild] += 0.1 * size * rng.normal(size=(int(wild.sum()), 2))
    exact, _ = clip()
    steady, _, _ = smooth(track, range(90), FPS)
    lifter, matrix = load_lifter(joints_2d="detected"), fixed_cameras()[0].intrinsics
    raw, smoothed, best = (
        1000 * lifter.lift(torch.from_numpy(pose).float(), intrinsics=matrix).joints_3d.numpy()
        for pose in (track, steady, exact)
    )
    assert shake(raw) > 60
    assert shake(smoothed) < 20
    assert shake(smoothed) < 2.5 * shake(best)
    error = [np.linalg.norm(pose - best, axis=-1).mean() for pose in (raw, smoothed)]
    assert error[1] < 0.7 * error[0]  # steadier and nearer


def test_smoothing_leaves_a_parabola_and_a_single_frame_alone():
    time = np.arange(40.0)[:, None, None]
    track = 3 * time**2 + 5 * time + np.arange(34.0).reshape(17, 2)
    found, filled, _ = smooth(track, range(40), FPS)
    np.testing.assert_allclose(found[1:-1], track[1:-1], atol=5)  # the median moves the ends alone
    assert not filled.any()
    np.testing.assert_array_equal(smooth(track[:1], [7], FPS)[0], track[:1])


# --- joints that are not seen ----------------------------------------------------------------------------------


def test_a_whole_pose_is_left_alone_and_too_little_stays_missing():
    poses = people("h36m17", 4)[..., :2]
    joints, estimated = complete(poses)
    assert torch.equal(joints, poses) and not estimated.any()
    few = poses.clone()
    few[:, LEAST - 1 :] = torch.nan
    joints, estimated = complete(few)
    assert torch.equal(joints.isnan(), few.isnan()) and not estimated.any()


@pytest.mark.parametrize("missing", [[3, 6], [2, 3, 5, 6], [15, 16], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
def test_estimates_are_better_than_the_mean_of_the_true_poses(missing):
    """On generated people; the mixture is fitted on recorded ones."""
    source = PoseSource(small_motion(seconds=2.0))
    poses = people("h36m17", 40, source=source)[..., :2]
    size = (poses.amax(1) - poses.amin(1)).amax(-1)[:, None]
    holed = poses.clone()
    holed[:, missing] = torch.nan
    joints, estimated = complete(holed)
    seen = [k for k in range(17) if k not in missing]
    assert torch.equal(joints[:, seen], poses[:, seen])
    assert estimated[:, missing].all() and not estimated[:, seen].any()
    error = ((joints - poses).norm(dim=-1) / size)[:, missing].mean()
    middle = holed[:, seen].mean(1, keepdim=True)
    mean_pose = middle + (poses - middle).mean(0)
    assert error < 0.85 * ((mean_pose - poses).norm(dim=-1) / size)[:, missing].mean()


def test_estimates_follow_the_size_and_the_place_of_a_person():
    poses = people("h36m17", 6)[..., :2].double()
    poses[:, [2, 3, 16]] = torch.nan
    joints, _ = complete(poses)
    moved, _ = complete(2.5 * poses + torch.tensor([300.0, -50.0]))
    torch.testing.assert_close(moved, 2.5 * joints + torch.tensor([300.0, -50.0]), atol=1e-6, rtol=1e-9)
