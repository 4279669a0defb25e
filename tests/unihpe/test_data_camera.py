"""Cameras project as the equations say, and their frames are what they claim."""

import math
from dataclasses import replace

import camera_definitions as definitions
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unihpe_ref.data import (
    Camera,
    apply_affine,
    crop_affine,
    crop_intrinsics,
    fixed_cameras,
    flip_joints,
    intrinsic_matrix,
    invert_affine,
    look_at,
    project,
    random_camera,
)

seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cameras(seed: int, count: int = 3) -> Camera:
    """Random poses with strong random distortion, float64."""
    dice = generator(seed)
    drawn = random_camera(dice, count).to(torch.float64)
    rotation, translation = look_at(drawn.position, torch.randn(count, 3, generator=dice, dtype=torch.float64) * 0.3)
    return replace(
        drawn,
        rotation=rotation,
        translation=translation,
        radial=0.3 * torch.randn(count, 3, generator=dice, dtype=torch.float64),
        tangential=0.01 * torch.randn(count, 2, generator=dice, dtype=torch.float64),
    )


@given(seeds)
def test_projection_is_the_definition(seed):
    camera = cameras(seed)
    points = torch.randn(3, 5, 3, generator=generator(seed + 1), dtype=torch.float64)
    seen = camera.world_to_camera(points)
    pixels, pinhole = camera.project(seen), camera.project(seen, distort=False)
    for c in range(3):
        one = [value[c].tolist() for value in (camera.rotation, camera.translation, camera.focal, camera.principal)]
        lens = camera.radial[c].tolist(), camera.tangential[c].tolist()
        for p in range(5):
            expected = definitions.world_to_camera(points[c, p].tolist(), one[0], one[1])
            assert seen[c, p].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
            assert pixels[c, p].tolist() == pytest.approx(definitions.project(expected, *one[2:], *lens), rel=1e-10)
            assert pinhole[c, p].tolist() == pytest.approx(definitions.project(expected, *one[2:]), rel=1e-10)


def test_single_precision_projects_to_a_thousandth_of_a_pixel():
    fixed = fixed_cameras()
    points = torch.randn(4, 200, 3, generator=generator(0)) * 0.6 + torch.tensor([0.0, 0.0, 1.0])
    exact = fixed.to(torch.float64)
    expected = exact.project(exact.world_to_camera(points.double()))
    assert (fixed.project(fixed.world_to_camera(points)).double() - expected).abs().max() < 2e-3


def test_the_fixed_lenses_bend_a_picture_by_a_pixel_or_a_few():
    fixed = fixed_cameras()
    points = fixed.world_to_camera(torch.tensor([[0.0, 0.0, 0.1], [0.8, 0.8, 1.7], [-0.9, 0.4, 1.0]]).expand(4, 3, 3))
    bend = (fixed.project(points) - fixed.project(points, distort=False)).norm(dim=-1)
    assert 0.5 < bend.max() < 10


@given(seeds)
def test_world_and_camera_frames_round_trip(seed):
    camera = cameras(seed)
    points = torch.randn(3, 6, 3, generator=generator(seed), dtype=torch.float64) * 3
    torch.testing.assert_close(camera.camera_to_world(camera.world_to_camera(points)), points)
    origin = camera.world_to_camera(camera.position[:, None])
    torch.testing.assert_close(origin, torch.zeros_like(origin), rtol=0, atol=1e-12)


def test_behind_the_lens_there_is_no_picture():
    points = torch.tensor([[0.1, 0.2, 3.0], [0.1, 0.2, -3.0], [0.1, 0.2, 0.0]])
    pixels = project(points, torch.tensor([1000.0, 1000.0]), torch.tensor([500.0, 500.0]))
    assert torch.isfinite(pixels[0]).all()
    assert torch.isnan(pixels[1:]).all()


@given(seeds)
def test_look_at_is_upright_and_puts_the_target_in_the_middle(seed):
    dice = generator(seed)
    eye = torch.randn(4, 3, generator=dice, dtype=torch.float64) + torch.tensor([5.0, 0, 1])
    target = torch.randn(4, 3, generator=dice, dtype=torch.float64) * 0.5
    rotation, translation = look_at(eye, target)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4, dtype=torch.float64))
    seen = (rotation @ target[..., None])[..., 0] + translation
    torch.testing.assert_close(seen, torch.stack([0 * seen[:, 2], 0 * seen[:, 2], (target - eye).norm(dim=-1)], -1))
    assert (rotation[:, 0, 2].abs() < 1e-12).all()  # the horizon is level: x stays in the horizontal plane
    assert (rotation[:, 1, 2] < 0).all()  # and y points down


def test_looking_straight_down_is_refused():
    with pytest.raises(ValueError, match=r"not vertical; got .*Move one of them sideways\."):
        look_at(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 0.0]))


def test_fields_of_one_camera_must_fit():
    good = fixed_cameras()
    with pytest.raises(ValueError, match=r"`focal` of shape \(4, 2\); got .*\(3, 2\).*same leading shape"):
        replace(good, focal=good.focal[:3])
    with pytest.raises(ValueError, match="`count` >= 1; got 0"):
        random_camera(generator(0), 0)


def test_the_four_cameras_stand_like_those_of_human36m():
    fixed = fixed_cameras()
    assert len(fixed) == 4
    position = fixed.position
    assert ((position[:, 2] > 1.4) & (position[:, 2] < 1.7)).all()
    assert ((position[:, :2].norm(dim=-1) > 4) & (position[:, :2].norm(dim=-1) < 6)).all()
    assert ((fixed.focal > 1143) & (fixed.focal < 1151)).all()
    middle = fixed.project(fixed.world_to_camera(torch.tensor([[0.0, 0.0, 0.9]]).expand(4, 1, 3)))
    assert ((middle[:, 0] - fixed.image_size / 2).abs() < 60).all()


def test_random_cameras_surround_the_fixed_ones_and_repeat_from_a_seed():
    drawn = random_camera(generator(5), 4000)
    again = random_camera(generator(5), 4000)
    assert torch.equal(drawn.rotation, again.rotation)
    assert torch.equal(drawn.principal, again.principal)
    assert not torch.equal(drawn.rotation, random_camera(generator(6), 4000).rotation)
    azimuth = torch.atan2(drawn.position[:, 1], drawn.position[:, 0])
    share = torch.histc(azimuth, 8, -math.pi, math.pi) / 4000
    assert ((share - 1 / 8).abs() < 0.03).all()
    for name in ("focal", "principal"):
        values, views = getattr(drawn, name), getattr(fixed_cameras(), name)
        assert (values.amin(0) < views.amin(0)).all()
        assert (values.amax(0) > views.amax(0)).all()
    for measure in (lambda camera: camera.position[:, 2], lambda camera: camera.position[:, :2].norm(dim=-1)):
        assert measure(drawn).min() < measure(fixed_cameras()).min()
        assert measure(drawn).max() > measure(fixed_cameras()).max()


@given(seeds)
def test_the_mirrored_lens_sees_the_mirrored_pose_at_the_mirrored_column(seed):
    camera = cameras(seed)
    points = camera.world_to_camera(torch.randn(3, 17, 3, generator=generator(seed), dtype=torch.float64))
    for distort in (True, False):
        pixels = camera.project(points, distort=distort)
        mirrored = camera.mirrored().project(flip_joints(points), distort=distort)
        expected = pixels[:, list(flip_order())]
        expected[..., 0] = camera.image_size[:, None, 0] - 1 - expected[..., 0]
        torch.testing.assert_close(mirrored, expected, rtol=1e-9, atol=1e-9)


def flip_order() -> tuple[int, ...]:
    return (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13)


@given(seeds, st.floats(-3.2, 3.2))
def test_rolling_turns_the_pose_and_its_picture_by_the_same_angle(seed, angle):
    camera = cameras(seed)
    camera = replace(camera, focal=camera.focal[:, :1].expand(3, 2))
    points = torch.randn(3, 17, 3, generator=generator(seed), dtype=torch.float64) * 0.5
    turn = torch.full((3,), angle, dtype=torch.float64)
    rolled = camera.rolled(turn)
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
    seen = camera.world_to_camera(points)
    torch.testing.assert_close(rolled.world_to_camera(points), seen @ matrix.T)
    about = camera.principal[:, None]
    turned = (camera.project(seen, distort=False) - about) @ matrix[:2, :2].T + about
    torch.testing.assert_close(
        rolled.project(rolled.world_to_camera(points), distort=False), turned, rtol=1e-9, atol=1e-7
    )
    torch.testing.assert_close(rolled.position, camera.position)


@given(seeds)
def test_crop_intrinsics_project_straight_into_the_crop(seed):
    camera, dice = cameras(seed), generator(seed)
    box = torch.rand(3, 3, generator=dice, dtype=torch.float64) * 400 + 200
    affine = crop_affine(box, (256, 192))
    seen = camera.world_to_camera(torch.randn(3, 17, 3, generator=dice, dtype=torch.float64) * 0.5)
    matrix = crop_intrinsics(affine, camera.intrinsics)
    direct = seen @ matrix.mT
    direct = direct[..., :2] / direct[..., 2:]
    through = apply_affine(affine, camera.project(seen, distort=False))
    torch.testing.assert_close(direct, through, rtol=1e-9, atol=1e-9)
    back = apply_affine(invert_affine(affine), through)
    torch.testing.assert_close(back, camera.project(seen, distort=False), rtol=1e-9, atol=1e-9)


def test_the_intrinsic_matrix_holds_what_it_was_made_of():
    matrix = intrinsic_matrix(torch.tensor([1000.0, 1001.0]), torch.tensor([500.0, 480.0]))
    assert torch.equal(matrix, torch.tensor([[1000.0, 0, 500], [0, 1001, 480], [0, 0, 1]]))
