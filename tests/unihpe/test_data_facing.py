"""A camera that faces the person: geometry and invariants."""

import pytest
import torch
from small import small_motion, small_source

from multicontrast.metrics import mpjpe, pa_mpjpe
from unihpe_ref.data import PoseSource, project
from unihpe_ref.data.facing import face_box, facing_rotation, turn_pixels


def batches():
    """One batch in both views."""
    source = small_source()
    indices = torch.arange(0, len(source), 37)
    plain = source.evaluation_batch(indices)
    return plain, face_box(plain)


def test_the_middle_of_the_box_comes_onto_the_optical_axis():
    plain, _ = batches()
    rotation = facing_rotation(plain.box, plain.focal, plain.principal)
    identity = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity, atol=1e-6, rtol=0)
    assert (torch.linalg.det(rotation) > 0.99).all()
    middle = turn_pixels(plain.box[:, None, :2], rotation, plain.focal, plain.principal)[:, 0]
    torch.testing.assert_close(middle, plain.principal, atol=1e-2, rtol=0)
    right = rotation[:, 0]  # no roll: what is level stays level
    torch.testing.assert_close(right[:, 1], torch.zeros(len(right)), atol=1e-6, rtol=0)


def test_turned_joints_project_onto_turned_pixels():
    _, turned = batches()
    projected = project(turned.joints_3d + turned.root[:, None], turned.focal, turned.principal)
    torch.testing.assert_close(projected, turned.joints_2d, atol=1e-2, rtol=0)
    assert turned.box_info()[:, :2].abs().max() < 0.2  # nothing is left to say of where the box stood


def test_pose_errors_do_not_depend_on_the_view():
    plain, turned = batches()
    rotation = facing_rotation(plain.box, plain.focal, plain.principal)
    guess = plain.joints_3d + 0.1 * torch.randn(plain.joints_3d.shape, generator=torch.Generator().manual_seed(0))
    for metric in (mpjpe, pa_mpjpe):
        there, here = (
            metric(guess @ rotation.mT, turned.joints_3d, reduction="none"),
            metric(guess, plain.joints_3d, reduction="none"),
        )
        torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-4)


def test_a_source_sees_people_that_way_in_training_and_evaluation():
    source = PoseSource(small_motion(seconds=2.0), view="box", augment=True).split("train")
    batch = source.batch(torch.arange(8), torch.Generator().manual_seed(0))
    assert (batch.box_info()[:, :2].abs() < 0.2).all()
    assert source.evaluation_batch(torch.arange(8)).box_info()[:, :2].abs().max() < 0.2


def test_pictures_are_refused():
    source = PoseSource(small_motion(seconds=2.0), image_size=(32, 32), view="box").split("train")
    with pytest.raises(ValueError, match=r"poses alone; got pictures"):
        source.evaluation_batch(torch.arange(2))
    with pytest.raises(ValueError, match="view"):
        PoseSource(small_motion(seconds=2.0), view="boxes")
