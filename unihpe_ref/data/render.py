"""Pictures of poses: a body of shaded, tapered capsules in front of a plain background.

They show a person, the pose and depth, and are not meant to look real. A picture is rendered directly in the
crop, through the crop's intrinsics, so that joints and pixels agree. Everything that varies (clothes, skin, light,
background) comes from a row of uniform numbers, so a picture is a function of its pose, camera and row.

One flat list holds the pixels of the bounding rectangles of all capsules of all pictures. Each entry gets a coverage, a
depth and a shade; the two nearest entries of each pixel are blended over the background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast._checks import check_shape, describe, three_beats

from .scenery import LOOK_CHANNELS, SCENE_CHANNELS, backgrounds, looks
from .skeleton import SKELETON

NOISE_CHANNELS = LOOK_CHANNELS + SCENE_CHANNELS
"""How many uniform numbers decide the looks of one picture."""

_PIXELS_AT_ONCE = 1 << 19  # of pictures painted together: bounds the working memory to some 200 MB
_IMAGE_MEAN = (0.485, 0.456, 0.406)
_IMAGE_STD = (0.229, 0.224, 0.225)

# Where a capsule ends: a joint, or one of the points that landmarks adds.
POINTS = (
    *SKELETON.joint_names, "crown", "nape", "nose", "lchest", "rchest", "lwaist", "rwaist",
    "lhand", "rhand", "lheel", "rheel", "ltoe", "rtoe",
)  # fmt: skip
# From, to, radii in metres at both ends for a leg of 0.88 m, and which colour.
CAPSULES: tuple[tuple[str, str, float, float, str], ...] = (
    ("rhip", "lhip", 0.095, 0.095, "trousers"),
    ("pelvis", "spine", 0.106, 0.110, "shirt"),
    ("spine", "thorax", 0.110, 0.094, "shirt"),
    ("lchest", "lwaist", 0.094, 0.102, "shirt"),
    ("rchest", "rwaist", 0.094, 0.102, "shirt"),
    ("lshoulder", "lhip", 0.068, 0.082, "shirt"),
    ("rshoulder", "rhip", 0.068, 0.082, "shirt"),
    ("rshoulder", "lshoulder", 0.064, 0.064, "shirt"),
    ("thorax", "neck_nose", 0.056, 0.052, "skin"),
    ("neck_nose", "crown", 0.078, 0.092, "skin"),
    ("nape", "nape", 0.102, 0.102, "hair"),
    ("nose", "nose", 0.022, 0.022, "skin"),
    *(
        (f"{side}{start}", f"{side}{end}", r0, r1, colour)
        for side in "lr"
        for start, end, r0, r1, colour in (
            ("shoulder", "elbow", 0.060, 0.044, "sleeve"),
            ("elbow", "wrist", 0.044, 0.031, "cuff"),
            ("wrist", "hand", 0.034, 0.034, "skin"),
            ("hip", "knee", 0.090, 0.060, "trousers"),
            ("knee", "ankle", 0.058, 0.042, "leg"),
            ("heel", "toe", 0.042, 0.034, "shoes"),
        )
    ),
)
_START = [POINTS.index(capsule[0]) for capsule in CAPSULES]
# The capsules of the trunk are shaded as parts of one broad surface.
_ROUNDNESS = torch.tensor([0.35 if capsule[4] == "shirt" else 1.0 for capsule in CAPSULES])
_END = [POINTS.index(capsule[1]) for capsule in CAPSULES]


def render_poses(
    joints_cam: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    normalise: bool = True,
) -> Tensor:
    """Renders one person per picture.

    Args:
        joints_cam: ``(B, 17, 3)`` camera metres, all in front of the camera.
        intrinsics: ``(B, 3, 3)`` of the picture (see :func:`.camera.crop_intrinsics`); square pixels, no skew.
        size: (height, width).
        noise: ``(B, NOISE_CHANNELS)`` in [0, 1), which sets the pictures' looks; drawn from ``generator`` if left out.
        normalise: by ImageNet's mean and deviation; otherwise RGB in [0, 1].
    Returns: ``(B, 3, H, W)`` float32.
    Raises: ValueError for shapes that do not fit.
    """
    count = len(joints_cam)
    if tuple(joints_cam.shape[1:]) != (SKELETON.num_joints, 3) or tuple(intrinsics.shape) != (count, 3, 3):
        came = f"{describe(joints_cam)} and {describe(intrinsics)}"
        needed = "`render_poses` needs joints (B, 17, 3) and intrinsics (B, 3, 3)"
        raise ValueError(three_beats(needed, came, "Give one camera matrix for each pose."))
    if noise is None:
        noise = torch.rand(count, NOISE_CHANNELS, generator=generator)
    if tuple(noise.shape) != (count, NOISE_CHANNELS):
        needed = f"`render_poses` needs `noise` of shape ({count}, {NOISE_CHANNELS})"
        raise ValueError(three_beats(needed, describe(noise), "Leave it out to draw it from `generator`."))
    noise = noise.to(joints_cam.device, torch.float32)
    palette, light = looks(noise[:, :LOOK_CHANNELS])
    image = backgrounds(noise[:, LOOK_CHANNELS:], size)
    step = max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
    for first in range(0, count, step):
        some = slice(first, first + step)
        colours = {name: colour[some] for name, colour in palette.items()}
        paint(image[some], joints_cam[some].float(), intrinsics[some].float(), colours, light[some])
    return normalise_image(image) if normalise else image


def normalise_image(image: Tensor) -> Tensor:
    """RGB in [0, 1], ``(..., 3, H, W)``, to ImageNet's normalisation."""
    mean, deviation = _statistics("normalise_image", image)
    return (image - mean) / deviation


def denormalise_image(image: Tensor) -> Tensor:
    """The inverse of :func:`normalise_image`, clipped to [0, 1], for display."""
    mean, deviation = _statistics("denormalise_image", image)
    return (image * deviation + mean).clamp(0, 1)


def _statistics(operation: str, image: Tensor) -> tuple[Tensor, Tensor]:
    check_shape(operation, "image", image, ("...", 3, "H", "W"))
    both = torch.tensor([_IMAGE_MEAN, _IMAGE_STD], dtype=image.dtype, device=image.device)[:, :, None, None]
    return both[0], both[1]


def landmarks(joints: Tensor) -> tuple[Tensor, Tensor]:
    """The points that capsules end at, ``(B, len(POINTS), 3)``, and the body's size ``(B,)``: 1 for 0.88 m of leg."""
    at = dict(zip(SKELETON.joint_names, joints.unbind(1)))
    unit = torch.nn.functional.normalize
    legs = [at[f"{s}hip"] - at[f"{s}knee"] for s in "lr"] + [at[f"{s}knee"] - at[f"{s}ankle"] for s in "lr"]
    size = sum((leg.norm(dim=-1) for leg in legs), torch.zeros(())) / (2 * 0.88)
    scale = size[:, None]
    leftward = unit(at["lhip"] - at["rhip"], dim=-1)
    across = unit(at["lshoulder"] - at["rshoulder"], dim=-1)
    upward = unit(at["head"] - at["neck_nose"], dim=-1)
    up_trunk = unit(at["thorax"] - at["spine"], dim=-1)
    ahead = unit(torch.linalg.cross(across, upward), dim=-1)  # the head faces where the chest does
    at["crown"] = at["neck_nose"] + 0.55 * (at["head"] - at["neck_nose"])
    at["nape"] = at["crown"] + scale * (0.016 * upward - 0.030 * ahead)
    at["nose"] = at["neck_nose"] + 0.35 * (at["crown"] - at["neck_nose"]) + scale * 0.088 * ahead
    for side in "lr":
        at[f"{side}chest"] = torch.lerp(at["thorax"], at[f"{side}shoulder"], 0.5) - 0.03 * scale * up_trunk
        at[f"{side}waist"] = torch.lerp(at["pelvis"], at[f"{side}hip"], 0.5)
        along = unit(at[f"{side}wrist"] - at[f"{side}elbow"], dim=-1)
        at[f"{side}hand"] = at[f"{side}wrist"] + scale * 0.075 * along
        shin = unit(at[f"{side}knee"] - at[f"{side}ankle"], dim=-1)
        forward = unit(torch.linalg.cross(leftward, shin), dim=-1)
        at[f"{side}heel"] = at[f"{side}ankle"] - scale * (0.038 * shin + 0.020 * forward)
        at[f"{side}toe"] = at[f"{side}ankle"] + scale * (0.160 * forward - 0.046 * shin)
    return torch.stack([at[name] for name in POINTS], 1), size


def paint(image: Tensor, joints: Tensor, intrinsics: Tensor, palette: dict[str, Tensor], light: Tensor) -> None:
    """Draws the people into ``image`` (B, 3, H, W), in place."""
    count, _, height, width = image.shape
    points, size = landmarks(joints)
    radius = size[:, None, None] * joints.new_tensor([capsule[2:4] for capsule in CAPSULES])  # (B, P, 2) metres
    depth = torch.stack([points[:, _START, 2], points[:, _END, 2]], -1)  # (B, P, 2) metres
    pixels = points @ intrinsics.mT
    pixels = pixels[..., :2] / pixels[..., 2:]
    start, end = pixels[:, _START], pixels[:, _END]  # (B, P, 2) pixels
    radius_px = radius * intrinsics[:, 0, 0, None, None] / depth

    # The rectangle of pixels that each capsule can touch, one pixel wider for its soft edge.
    low = torch.minimum(start - radius_px[..., :1], end - radius_px[..., 1:]).floor() - 1
    high = torch.maximum(start + radius_px[..., :1], end + radius_px[..., 1:]).ceil() + 1
    limit = low.new_tensor([width, height])
    low = torch.minimum(low.clamp(min=0), limit).flatten(0, 1).long()
    extent = torch.minimum((high + 1).clamp(min=0), limit).flatten(0, 1).long() - low
    area = extent.clamp(min=0).prod(-1)
    owner = torch.repeat_interleave(torch.arange(len(area), device=area.device), area)  # (N,) capsule of each entry
    local = torch.arange(len(owner), device=area.device) - (area.cumsum(0) - area)[owner]
    across = extent[:, 0].clamp(min=1)[owner]
    row = torch.div(local, across, rounding_mode="floor")
    column = local - row * across + low[:, 0][owner]
    row = row + low[:, 1][owner]

    # Nearest point of the capsule's axis: share t of the way, then how far inside the rim.
    segment = end - start
    shape = torch.cat([start, segment, segment.square().sum(-1, keepdim=True).clamp(min=1e-6), radius_px], -1)
    x0, y0, dx, dy, square, r0, r1 = _columns(shape, owner)
    x, y = column - x0, row - y0
    t = ((x * dx + y * dy) / square).clamp(0, 1)
    x, y = x - t * dx, y - t * dy
    rim = r0 + t * (r1 - r0)
    distance = (x * x + y * y).sqrt()
    inside = torch.nonzero(distance < rim + 0.5)[:, 0]
    owner, t, rim, distance = owner[inside], t[inside], rim[inside], distance[inside]
    x, y = x[inside], y[inside]
    coverage = (rim - distance + 0.5).clamp(max=1)
    steep = (1 - (distance / rim).square()).clamp(min=0).sqrt()  # cosine between surface and line of sight

    z0, z1, thick0, thick1 = _columns(torch.cat([depth, radius], -1), owner)
    near = z0 + t * (z1 - z0) - steep * (thick0 + t * (thick1 - thick0))
    picture = torch.div(owner, len(CAPSULES), rounding_mode="floor")
    # Shading uses the roundness of each part; `facing` is the cosine to the line of sight.
    facing = 1 - _ROUNDNESS.to(steep.device)[owner % len(CAPSULES)] * (1 - steep)
    tilt = (1 - facing.square()).clamp(min=0).sqrt() / distance.clamp(min=1e-6)
    lamp_x, lamp_y, lamp_z = _columns(light[:, None], picture)
    lit = (lamp_x * x + lamp_y * y) * tilt - lamp_z * facing
    shade = (0.46 + 0.12 * facing + 0.5 * lit.clamp(min=0)).clamp(max=1.15)
    colours = torch.stack([palette[capsule[4]] for capsule in CAPSULES], 1).flatten(0, 1)  # (B P, 3)

    # The two nearest entries of each pixel; the sort key is the depth in units of 0.1 mm, then the entry's number.
    target = picture * (height * width) + row[inside] * width + column[inside]
    entry = torch.arange(len(owner), device=owner.device)
    key = ((near.clamp(0, 1e4) * 1e4).long() << 32) | entry
    none = torch.iinfo(torch.int64).max
    empty = torch.full((count * height * width,), none, device=key.device)
    first = empty.scatter_reduce(0, target, key, "amin")
    behind = key != first.index_select(0, target)
    second = empty.scatter_reduce(0, target[behind], key[behind], "amin")
    flat = image.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
    for layer in (second, first):
        hit = torch.nonzero(layer != none)[:, 0]
        chosen = layer.index_select(0, hit) & 0xFFFFFFFF
        paint = colours.index_select(0, owner.index_select(0, chosen)) * shade.index_select(0, chosen)[:, None]
        under = flat.index_select(0, hit)
        flat[hit] = torch.lerp(under, paint.clamp(max=1), coverage.index_select(0, chosen)[:, None])
    image.copy_(flat.unflatten(0, (count, height, width)).permute(0, 3, 1, 2))


def _columns(table: Tensor, owner: Tensor) -> tuple[Tensor, ...]:
    """The features of each entry's capsule: a (B, P, K) table and (N,) rows to K contiguous vectors (N,)."""
    return table.flatten(0, 1).mT.contiguous().index_select(1, owner).unbind(0)
