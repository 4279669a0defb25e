"""2D joints that err as a detector's do: their size, what depends on them, and what does not."""

import formats
import pytest
import torch
from scipy import stats

from unihpe_ref.data import Augmentation, PoseBatch, PoseSource, RecordingSource, generate_motion, joint_box, read_data
from unihpe_ref.data.hashing import hashed_normal

NOISE = 0.02


@pytest.fixture(scope="module", params=["motion", "recording"])
def make_source(request, tmp_path_factory):
    """``make_source(**options)`` of either kind of source, for poses alone."""
    if request.param == "motion":
        motion = generate_motion(3, actions=("walk", "sit"), num_subjects=3, num_test_subjects=1, seconds=4.0)
        return lambda **options: PoseSource(motion, **options)
    folder = tmp_path_factory.mktemp("h36m")
    formats.write_mmpose_h36m(folder)
    recording = read_data(folder)
    return lambda **options: RecordingSource(recording, **options)


def drawn(source, rows: slice = slice(None)) -> PoseBatch:
    indices = torch.arange(400) % len(source)
    return source.batch(indices, torch.Generator().manual_seed(1), rows)


def errors(clean: PoseBatch, noisy: PoseBatch) -> torch.Tensor:
    """In shares of the box around the true joints."""
    return (noisy.joints_2d - clean.joints_2d) / joint_box(clean.joints_2d)[:, None, 2:]


def test_errors_of_training_have_a_deviation_drawn_for_each_sample(make_source):
    clean, noisy = (drawn(make_source(augment=Augmentation(joint_noise=noise))) for noise in (0.0, NOISE))
    found = errors(clean, noisy)
    deviation = found.flatten(1).std(-1)  # 34 numbers tell a deviation to about an eighth
    assert stats.kstest((deviation / noisy.joint_noise).log().numpy(), "norm", (-0.015, 0.125)).statistic < 0.1
    root = (noisy.joint_noise / NOISE).sqrt()
    assert stats.kstest(root.numpy(), "uniform").pvalue > 1e-3
    assert abs(float(found.square().mean()) / (NOISE**2 / 5) - 1) < 0.15
    assert abs(float(found.mean())) < 0.05 * NOISE


def test_pose_and_camera_do_not_move_with_the_noise(make_source):
    clean, noisy = (drawn(make_source(augment=Augmentation(joint_noise=noise))) for noise in (0.0, NOISE))
    for name in ("joints_3d", "root", "focal", "principal"):
        assert torch.equal(getattr(clean, name), getattr(noisy, name)), name


def test_the_box_is_laid_around_the_joints_that_are_seen(make_source):
    noisy = drawn(make_source(augment=Augmentation(scale=0.0, joint_noise=NOISE)))
    assert torch.equal(noisy.box, joint_box(noisy.joints_2d))


def test_rows_of_a_noisy_batch_are_those_of_the_whole(make_source):
    source = make_source(augment=Augmentation(joint_noise=NOISE))
    assert torch.equal(drawn(source).joints_2d[5:9], drawn(source, slice(5, 9)).joints_2d)


def test_a_facing_camera_sees_the_noise_too(make_source):
    clean, noisy = (
        drawn(make_source(view="box", augment=Augmentation(flip=0.0, scale=0.0, rotation_degrees=0.0, joint_noise=n)))
        for n in (0.0, NOISE)
    )
    assert 0.5 < float(errors(clean, noisy).square().mean()) / (NOISE**2 / 5) < 1.6


@pytest.mark.parametrize("noise", [0.004, 0.02])
def test_evaluation_errs_by_what_is_asked_the_same_at_every_call(make_source, noise):
    clean, source = make_source(), make_source(joint_noise=noise)
    indices = torch.arange(len(source))
    noisy = source.evaluation_batch(indices)
    found = errors(clean.evaluation_batch(indices), noisy)
    assert abs(float(found.std()) / noise - 1) < 0.1
    assert torch.equal(source.evaluation_batch(indices[3:7].flip(0)).joints_2d, noisy.joints_2d[3:7].flip(0))
    assert source.split("train").joint_noise == noise


def test_hashed_numbers_are_normal():
    values = hashed_normal(torch.arange(20_000), 4, seed=2)
    assert stats.kstest(values.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert float(values.abs().max()) < 5.4
    correlation = torch.corrcoef(values.T) - torch.eye(4)
    assert correlation.abs().max() < 0.03


def test_noise_outside_its_range_raises():
    with pytest.raises(ValueError, match=r"0 <= `joint_noise` <= 0\.5; got -0\.1"):
        Augmentation(joint_noise=-0.1)
