"""Boxes cover the joints, and the coordinates they define do not depend on where the person stands."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unihpe_ref.data import (
    apply_affine,
    box_information,
    crop_affine,
    denormalise_joints,
    flip_pixels,
    invert_affine,
    joint_box,
    normalise_joints,
    tight_box_size,
)

seeds = st.integers(0, 2**31)


def joints(seed: int, spread: tuple[float, float] = (120.0, 200.0)) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(3, 17, 2, generator=dice, dtype=torch.float64) * torch.tensor(spread) + 500


@given(seeds, st.sampled_from([(30.0, 200.0), (150.0, 150.0), (300.0, 20.0)]))
def test_a_box_is_the_smallest_of_its_aspect_around_the_padded_joints(seed, spread):
    points = joints(seed, spread)
    for pose, (cx, cy, side) in zip(points.tolist(), joint_box(points).tolist()):
        left, right = min(u for u, _ in pose), max(u for u, _ in pose)
        top, bottom = min(v for _, v in pose), max(v for _, v in pose)
        assert (cx, cy) == pytest.approx(((left + right) / 2, (top + bottom) / 2))
        assert side == pytest.approx(1.25 * max(bottom - top, (right - left) * 4 / 3))
    torch.testing.assert_close(tight_box_size(points), points.amax(1) - points.amin(1))


@given(seeds, st.integers(-3, 3), st.floats(-500, 500), st.floats(-500, 500))
def test_normalised_joints_know_neither_place_nor_size(seed, power, du, dv):
    points = joints(seed)
    moved = points * 2.0**power + torch.tensor([du, dv], dtype=torch.float64)
    expected = normalise_joints(points, joint_box(points))
    torch.testing.assert_close(normalise_joints(moved, joint_box(moved)), expected, rtol=1e-9, atol=1e-9)
    assert expected.abs().max() <= 0.8 + 1e-12  # 1 / 1.25


@given(seeds)
def test_normalising_round_trips_and_keeps_the_aspect(seed):
    points = joints(seed)
    box = joint_box(points)
    normal = normalise_joints(points, box)
    torch.testing.assert_close(denormalise_joints(normal, box), points)
    ratio = (points[:, 1] - points[:, 0]).norm(dim=-1) / (normal[:, 1] - normal[:, 0]).norm(dim=-1)
    torch.testing.assert_close(ratio, box[:, 2] / 2)


@given(seeds, st.sampled_from([(256, 192), (64, 48), (100, 100)]))
def test_the_crop_centres_the_box_and_fills_its_longer_side(seed, size):
    box = joint_box(joints(seed))
    affine = crop_affine(box, size)
    height, width = size
    centre = apply_affine(affine, box[:, None, :2])
    torch.testing.assert_close(centre, torch.tensor([(width - 1) / 2, (height - 1) / 2]).double().expand(3, 1, 2))
    top = apply_affine(affine, (box[:, :2] - box[:, 2:] * torch.tensor([0.0, 0.5]))[:, None])
    torch.testing.assert_close(top[..., 1], torch.full((3, 1), -0.5).double(), rtol=0, atol=1e-9)  # the pixel's edge


@given(seeds)
def test_mirroring_the_image_mirrors_the_crop(seed):
    points = joints(seed)
    mirrored = flip_pixels(points, 1000.0)
    crop = apply_affine(crop_affine(joint_box(points), (64, 48)), points)
    torch.testing.assert_close(
        apply_affine(crop_affine(joint_box(mirrored), (64, 48)), mirrored),
        flip_pixels(crop, 48.0),
        rtol=1e-9,
        atol=1e-9,
    )


@given(seeds)
def test_affine_maps_invert_whatever_they_are(seed):
    dice = torch.Generator().manual_seed(seed)
    affine = torch.randn(5, 2, 3, generator=dice, dtype=torch.float64)
    affine[..., :2] += 3 * torch.eye(2)
    points = torch.randn(5, 4, 2, generator=dice, dtype=torch.float64)
    torch.testing.assert_close(apply_affine(invert_affine(affine), apply_affine(affine, points)), points)


def test_box_information_follows_its_formula():
    box = torch.tensor([[600.0, 480.0, 400.0]], dtype=torch.float64)
    focal, principal = torch.tensor([[1000.0, 1210.0]]).double(), torch.tensor([[512.0, 515.0]]).double()
    expected = [88 / 1000 / 0.08, -35 / 1210 / 0.04, (400 / 1100 - 0.38) / 0.075]
    assert box_information(box, focal, principal)[0].tolist() == pytest.approx(expected)


def test_box_information_does_not_change_with_the_resolution():
    box = torch.tensor([[610.0, 470.0, 390.0]])
    focal, principal = torch.tensor([[1145.0, 1144.0]]), torch.tensor([[512.0, 515.0]])
    torch.testing.assert_close(
        box_information(2 * box, 2 * focal, 2 * principal), box_information(box, focal, principal)
    )
