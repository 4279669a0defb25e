"""Names and shapes of the weights of 2D pose networks, from the description of their architectures."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def _conv(name: str, inputs: int, outputs: int, size: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size)}


def _norm(name: str, channels: int) -> Shapes:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{vector}": (channels,) for vector in vectors}, f"{name}.num_batches_tracked": ()}


def _conv_norm(name: str, inputs: int, outputs: int, size: int) -> Shapes:
    return _conv(f"{name}.0", inputs, outputs, size) | _norm(f"{name}.1", outputs)


def _block(name: str, sizes: tuple[int, ...], channels: list[int]) -> Shapes:
    found: Shapes = {}
    for k, size in enumerate(sizes, 1):
        found |= _conv(f"{name}.conv{k}", channels[k - 1], channels[k], size) | _norm(f"{name}.bn{k}", channels[k])
    return found


def hrnet_pose(width: int, joints: int = 17) -> Shapes:
    """The official pose HRNet for COCO: its last exchange has one output, the finest."""
    w = [width * 2**k for k in range(4)]
    found = _conv("conv1", 3, 64, 3) | _norm("bn1", 64) | _conv("conv2", 64, 64, 3) | _norm("bn2", 64)
    for k in range(4):
        found |= _block(f"layer1.{k}", (1, 3, 1), [64 if k == 0 else 256, 64, 64, 256])
    found |= _conv_norm("layer1.0.downsample", 64, 256, 1)
    found |= _conv_norm("transition1.0", 256, w[0], 3) | _conv_norm("transition1.1.0", 256, w[1], 3)
    found |= _conv_norm("transition2.2.0", w[1], w[2], 3) | _conv_norm("transition3.3.0", w[2], w[3], 3)
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        for module in range(modules):
            for branch in range(stage):
                for k in range(4):
                    here = f"stage{stage}.{module}.branches.{branch}.{k}"
                    found |= _block(here, (3, 3), [w[branch]] * 3)
            outputs = 1 if stage == 4 and module == modules - 1 else stage
            for i in range(outputs):
                for j in range(stage):
                    here = f"stage{stage}.{module}.fuse_layers.{i}.{j}"
                    if j > i:
                        found |= _conv_norm(here, w[j], w[i], 1)
                    for step in range(i - j):
                        found |= _conv_norm(f"{here}.{step}", w[j], w[i] if step == i - j - 1 else w[j], 3)
    return found | {"final_layer.weight": (joints, w[0], 1, 1), "final_layer.bias": (joints,)}


def vitpose(width: int, depth: int, tokens: int = 193) -> Shapes:
    """ViTPose's own repository: everything below ``backbone.``, a head beside it."""
    found: Shapes = {"pos_embed": (1, tokens, width)}
    found |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    for k in range(depth):
        for name, shape in (
            ("norm1", (width,)),
            ("attn.qkv", (3 * width, width)),
            ("attn.proj", (width, width)),
            ("norm2", (width,)),
            ("mlp.fc1", (4 * width, width)),
            ("mlp.fc2", (width, 4 * width)),
        ):
            found |= {f"blocks.{k}.{name}.weight": shape, f"blocks.{k}.{name}.bias": shape[:1]}
    found |= {"last_norm.weight": (width,), "last_norm.bias": (width,)}
    found = {f"backbone.{name}": shape for name, shape in found.items()}
    return found | {"keypoint_head.final_layer.weight": (17, 256, 1, 1), "keypoint_head.final_layer.bias": (17,)}


def vitpose_mmpose(width: int, depth: int) -> Shapes:
    """The same network as mmpose 1.x names it."""
    words = {
        "blocks.": "layers.",
        "norm1.": "ln1.",
        "norm2.": "ln2.",
        "mlp.fc1.": "ffn.layers.0.0.",
        "mlp.fc2.": "ffn.layers.1.",
        "patch_embed.proj.": "patch_embed.projection.",
        "last_norm.": "ln1.",
        "keypoint_head.": "head.",
    }
    found = {}
    for name, shape in vitpose(width, depth, tokens=192).items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        found[name] = shape
    return found
