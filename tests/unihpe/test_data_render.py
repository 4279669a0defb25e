"""Pictures show the pose where its joints are, nearer limbs in front, and are functions of their inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unihpe_ref.data import (
    SKELETON,
    crop_affine,
    crop_intrinsics,
    denormalise_image,
    fixed_cameras,
    flip_joints,
    generate_motion,
    joint_box,
    normalise_image,
    render_poses,
)
from unihpe_ref.data import render as renderer
from unihpe_ref.data.hashing import hashed_uniform
from unihpe_ref.data.render import NOISE_CHANNELS
from unihpe_ref.data.scenery import LOOK_CHANNELS, backgrounds

SIZE = (128, 96)


@pytest.fixture(scope="module")
def seen() -> tuple[torch.Tensor, torch.Tensor]:
    """Twenty poses in the frame of a camera, and the crop's intrinsics."""
    motion = generate_motion(2, actions=("walk", "sit", "wave", "bend", "kick"), num_subjects=2, num_test_subjects=0)
    camera = fixed_cameras()[torch.arange(20) % 4]
    world = motion.joints[torch.arange(20) * 100 + 50]
    world = world - world[:, :1] * torch.tensor([1.0, 1.0, 0.0])
    joints = camera.world_to_camera(world)
    affine = crop_affine(joint_box(camera.project(joints, distort=False)), SIZE)
    return joints, crop_intrinsics(affine, camera.intrinsics)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, NOISE_CHANNELS, generator=torch.Generator().manual_seed(seed))


def person(joints: torch.Tensor, intrinsics: torch.Tensor, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Where the picture differs from its background, (B, H, W)."""
    looks = noise(len(joints))
    picture = render_poses(joints, intrinsics, size, noise=looks, normalise=False)
    return (picture != backgrounds(looks[:, LOOK_CHANNELS:], size)).any(1)


def pixels(joints: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    points = joints @ intrinsics.mT
    return points[..., :2] / points[..., 2:]


def ray_cast(joints: torch.Tensor, intrinsics: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The definition, float64, one picture: a ray through each pixel's centre against 24 balls along each capsule.

    Returns the depth at which the ray meets each capsule, (capsules, H, W) metres; infinity where it passes by.
    """
    points, scale = renderer.landmarks(joints[None].double())
    height, width = size
    v, u = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1) @ torch.linalg.inv(intrinsics.double()).T
    rays = torch.nn.functional.normalize(rays, dim=-1)
    depths = []
    for start, end, r0, r1, _ in renderer.CAPSULES:
        a, b = (points[0, renderer.POINTS.index(name)] for name in (start, end))
        nearest = torch.full(size, torch.inf).double()
        for share in torch.linspace(0, 1, 24 if start != end else 1).tolist():
            centre, radius = a + share * (b - a), scale[0] * (r0 + share * (r1 - r0))
            along = rays @ centre
            under = radius**2 - (centre.square().sum() - along**2)
            depth = torch.where(under > 0, along - under.clamp(min=0).sqrt(), torch.inf) * rays[..., 2]
            nearest = torch.minimum(depth, nearest)
        depths.append(nearest)
    return torch.stack(depths)


def test_the_silhouette_is_that_of_a_ray_caster(seen):
    joints, intrinsics = seen
    drawn = person(joints, intrinsics)
    for k in range(0, 20, 6):
        cast = ray_cast(joints[k], intrinsics[k], SIZE).isfinite().any(0)
        both, either = (cast & drawn[k]).sum(), (cast | drawn[k]).sum()
        assert (cast & ~drawn[k]).sum() <= 0.01 * cast.sum()
        assert both / either > 0.85  # the drawn one is up to a pixel wider: its rim is soft
        grown = torch.nn.functional.max_pool2d(cast[None, None].float(), 3, 1, 1)[0, 0] > 0
        assert (drawn[k] & ~grown).sum() <= 0.01 * cast.sum()


def test_what_is_in_front_is_drawn_in_front(seen, monkeypatch):
    """One capsule after the other is marked red; what shows must be what the ray caster meets first, to 3 cm."""
    joints, intrinsics = seen
    count = len(renderer.CAPSULES)
    names = tuple((*capsule[:4], str(index)) for index, capsule in enumerate(renderer.CAPSULES))
    monkeypatch.setattr(renderer, "CAPSULES", names)
    ambient = torch.zeros(1, 3)  # no lamp: what is red shows at about half of its brightness, the rest is black
    for k in range(2, 20, 5):
        depth = ray_cast(joints[k], intrinsics[k], SIZE)
        nearest, body = depth.amin(0), depth.isfinite().any(0)
        wrong = torch.zeros(SIZE, dtype=torch.bool)
        for index in range(count):
            marked = {str(other): torch.tensor([[float(other == index), 0.0, 0.0]]) for other in range(count)}
            image = torch.zeros(1, 3, *SIZE)
            renderer.paint(image, joints[k : k + 1], intrinsics[k : k + 1], marked, ambient)
            wrong |= (image[0, 0] > 0.23) & (depth[index] > nearest + 0.03)
        assert (wrong & body).sum() < 0.03 * body.sum()  # rims, where the flat drawing is a pixel wider


def test_every_joint_inside_the_crop_is_covered_by_the_body(seen):
    joints, intrinsics = seen
    drawn = person(joints, intrinsics)
    u, v = pixels(joints, intrinsics).round().long().unbind(-1)
    picture = torch.arange(20)[:, None].expand_as(u)
    inner = [k for k, name in enumerate(SKELETON.joint_names) if name != "head"]  # the very top: on the rim
    assert drawn[picture, v, u][:, inner].all()


def test_a_joint_moved_by_a_pixel_moves_its_picture_by_a_pixel(seen):
    joints, intrinsics = seen
    moved = intrinsics.clone()
    moved[:, 0, 2] += 3
    moved[:, 1, 2] -= 2
    first, second = person(joints, intrinsics), person(joints, moved)
    assert torch.equal(first[:, 2:, :-3], second[:, :-2, 3:])


def test_the_mirrored_pose_has_the_mirrored_silhouette(seen):
    joints, intrinsics = seen
    mirrored = intrinsics.clone()
    mirrored[:, 0, 2] = SIZE[1] - 1 - intrinsics[:, 0, 2]
    drawn, other = person(joints, intrinsics), person(flip_joints(joints), mirrored)
    assert (drawn.flip(-1) != other).float().mean() < 2e-4


def test_twice_the_pixels_show_the_same_person(seen):
    joints, intrinsics = seen
    finer = intrinsics.clone()
    finer[:, :2] *= 2
    finer[:, :2, 2] += 0.5  # pixel centres are integers
    small = person(joints, intrinsics).float()
    large = torch.nn.functional.avg_pool2d(person(joints, finer, (256, 192)).float()[:, None], 2)[:, 0]
    assert (small - large).abs().mean() < 0.02


def test_edges_are_soft(seen):
    """Anti-aliased: along the rim there are pixels between the person's colour and the background's."""
    joints, intrinsics = seen
    white = noise(20)
    white[:, LOOK_CHANNELS:] = 0.5
    picture = render_poses(joints, intrinsics, SIZE, noise=white, normalise=False)
    plain = backgrounds(white[:, LOOK_CHANNELS:], SIZE)
    change = (picture - plain).norm(dim=1)
    drawn = change > 0
    inside = -torch.nn.functional.max_pool2d(-drawn[:, None].float(), 3, 1, 1)[:, 0] > 0
    rim = drawn & ~inside
    assert change[rim].mean() < 0.75 * change[inside].mean()


def test_a_picture_is_a_function_of_its_row(seen):
    joints, intrinsics = seen
    looks = noise(20)
    together = render_poses(joints, intrinsics, SIZE, noise=looks)
    for k in (0, 7, 19):
        alone = render_poses(joints[k : k + 1], intrinsics[k : k + 1], SIZE, noise=looks[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=1e-5)
    drawn = [render_poses(joints, intrinsics, SIZE, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert (drawn[0] - together).abs().mean() > 0.1


def test_groups_of_pictures_do_not_show(seen, monkeypatch):
    joints, intrinsics = seen
    looks = noise(20)
    whole = render_poses(joints, intrinsics, SIZE, noise=looks)
    monkeypatch.setattr(renderer, "_PIXELS_AT_ONCE", 3 * SIZE[0] * SIZE[1])
    torch.testing.assert_close(render_poses(joints, intrinsics, SIZE, noise=looks), whole, rtol=0, atol=1e-5)


def test_looks_vary(seen):
    joints, intrinsics = seen
    pictures = render_poses(
        joints[:1].expand(64, -1, -1), intrinsics[:1].expand(64, -1, -1), SIZE, noise=noise(64), normalise=False
    )
    assert pictures.std(0).mean() > 0.15
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_nobody_in_sight_leaves_the_background(seen):
    joints, intrinsics = seen
    away = intrinsics.clone()
    away[:, 0, 2] += 1e4
    assert not person(joints, away).any()


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.6, 30))
@settings(max_examples=20)
def test_any_place_in_front_of_the_camera_renders(x, y, z):
    joints = torch.randn(2, 17, 3, generator=torch.Generator().manual_seed(0)) * 0.15 + torch.tensor([x, y, z])
    intrinsics = torch.tensor([[60.0, 0, 24], [0, 60, 32], [0, 0, 1]]).expand(2, 3, 3)
    picture = render_poses(joints, intrinsics, (64, 48), noise=noise(2))
    assert picture.shape == (2, 3, 64, 48)
    assert torch.isfinite(picture).all()


def test_normalised_pictures_come_back():
    picture = torch.rand(2, 3, 8, 6)
    torch.testing.assert_close(denormalise_image(normalise_image(picture)), picture)
    assert denormalise_image(torch.full((1, 3, 2, 2), 99.0)).max() == 1


def test_wrong_shapes_are_refused():
    eye = torch.eye(3).expand(2, 3, 3)
    with pytest.raises(ValueError, match=r"joints \(B, 17, 3\) and intrinsics \(B, 3, 3\); got .*Give one camera"):
        render_poses(torch.zeros(2, 16, 3), eye, SIZE)
    with pytest.raises(ValueError, match="Give one camera matrix"):
        render_poses(torch.zeros(3, 17, 3), eye, SIZE)
    with pytest.raises(ValueError, match=r"`noise` of shape \(2, \d+\); got"):
        render_poses(torch.ones(2, 17, 3), eye, SIZE, noise=torch.zeros(2, 3))


def test_hashed_numbers_are_uniform_and_belong_to_their_key():
    keys = torch.arange(20_000) * 3 - 500
    values = hashed_uniform(keys, 8, seed=5)
    assert values.min() >= 0
    assert values.max() < 1
    share = torch.histc(values, 20, 0, 1) / values.numel()
    assert ((share - 1 / 20).abs() < 0.002).all()
    assert (torch.corrcoef(values.T) - torch.eye(8)).abs().max() < 0.04
    assert torch.corrcoef(torch.stack([values[1:, 0], values[:-1, 0]]))[0, 1].abs() < 0.04
    assert torch.equal(hashed_uniform(keys[[7, 3]], 8, seed=5), values[[7, 3]])
    assert not torch.equal(hashed_uniform(keys[:4], 8, seed=6), values[:4])


def test_hashed_numbers_follow_splitmix64():
    """The definition in Python's unbounded integers."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    for key, seed in ((0, 0), (12345, 7), (-3, 2)):
        start = mix((key + seed * 0x632BE59BD9B4E019) & mask)
        expected = [(mix((start + n * 0x9E3779B97F4A7C15) & mask) >> 40) / 2**24 for n in range(1, 5)]
        assert hashed_uniform(torch.tensor([key]), 4, seed=seed)[0].tolist() == expected
