"""Published pose networks into the image encoders: exact names, and the missing tensors."""

import pytest
import torch
from pose_weight_definitions import hrnet_pose, vitpose, vitpose_mmpose
from torch import Tensor, nn
from torch.testing import assert_close

from unihpe_ref.models.hrnet import HRNetEncoder
from unihpe_ref.models.pose_weights import fuse_tensors, load_pose_weights, read_state
from unihpe_ref.models.vit import ViTEncoder


def on_shapes_alone(kind: type[nn.Module], name: str) -> nn.Module:
    with torch.device("meta"):
        return kind(name, 1024)


def meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random_state(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Values like those of a trained network: no BatchNorm at its start."""
    generator = torch.Generator().manual_seed(seed)

    def value(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.full_like(tensor, 7)
        return 0.2 + torch.rand(tensor.shape, generator=generator)

    return {name: value(tensor) for name, tensor in module.state_dict().items()}


def pose_state(encoder: HRNetEncoder, seed: int = 0) -> dict[str, Tensor]:
    gap = fuse_tensors(encoder)
    return {name: value for name, value in random_state(encoder.backbone, seed).items() if name not in gap}


@pytest.fixture(scope="module")
def encoders() -> dict[str, HRNetEncoder]:
    return {name: on_shapes_alone(HRNetEncoder, name) for name in ("hrnet_w32", "hrnet_w48")}


@pytest.mark.parametrize(("name", "width", "lacking"), [("hrnet_w32", 32, 769_984), ("hrnet_w48", 48, 1_730_208)])
def test_official_names_and_shapes_leave_the_78_tensors(encoders, name, width, lacking):
    official = hrnet_pose(width)
    assert len(official) == 1754
    target = {n: tuple(t.shape) for n, t in encoders[name].backbone.state_dict().items()}
    assert len(target) == 1830
    gap = fuse_tensors(encoders[name])
    assert len(gap) == 78
    assert {n: s for n, s in target.items() if n not in gap} == {
        n: s for n, s in official.items() if not n.startswith("final_layer.")
    }
    assert sum(p.numel() for n, p in encoders[name].backbone.named_parameters() if n in gap) == lacking


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: s,
        lambda s: {f"module.{n}": t for n, t in s.items()},
        lambda s: {"state_dict": s, "epoch": 210},
        lambda s: {
            "meta": {"version": "1.1.0"},
            "state_dict": {
                f"keypoint_head.{n}" if n.startswith("final_layer") else f"backbone.{n}": t for n, t in s.items()
            },
        },
        lambda s: {"state_dict": {f"head.{n}" if "final" in n else f"module.backbone.{n}": t for n, t in s.items()}},
    ],
    ids=["official", "DataParallel", "saved while training", "mmpose 0.x", "mmpose 1.x"],
)
def test_each_way_to_wrap_the_official_names_is_understood(encoders, wrapped):
    load_pose_weights(encoders["hrnet_w32"], wrapped(meta(hrnet_pose(32))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("stage3.1.branches.2.3.bn2.running_var"), r"lacks 1 of 1830 tensors: stage3.1.branches.2.3"),
        (lambda s: s.update({"stage5.weight": s["conv1.weight"]}), "holds beside the head 1 of 1830 .*: stage5.weight"),
        (lambda s: s.update({"conv1.weight": torch.ones(2, device="meta")}), "has in another shape 1 of 1830"),
        (
            lambda s: s.update({"stage4.2.fuse_layers.2.3.1.bias": torch.ones(128, device="meta")}),
            r"should lack \(is it a classifier's\?\) but holds 1 of",
        ),
        (lambda s: s.clear(), "lacks 1752 of 1830 tensors: bn1.bias, bn1.num_batches_tracked, .*, ..."),
    ],
    ids=["missing", "unexpected", "shape", "full network", "empty"],
)
def test_any_other_difference_is_an_error(encoders, change, message):
    state = meta(hrnet_pose(32))
    change(state)
    with pytest.raises(ValueError, match=message):
        load_pose_weights(encoders["hrnet_w32"], state)


def test_the_smaller_network_does_not_fit_the_larger(encoders):
    with pytest.raises(ValueError, match=r"in another shape .* Check that `image_encoder` names"):
        load_pose_weights(encoders["hrnet_w48"], meta(hrnet_pose(32)))


def maps(encoder: HRNetEncoder, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The four stage-4 maps, and what the branches of its last module handed to the exchange."""
    branches: list[Tensor] = []
    module = encoder.backbone.stage4[-1]
    hooks = [branch.register_forward_hook(lambda _m, _i, out: branches.append(out)) for branch in module.branches]
    out = encoder.backbone(image)
    for hook in hooks:
        hook.remove()
    return out, branches


def test_zero_starts_from_the_trained_branches_and_grows():
    encoder = HRNetEncoder("hrnet_tiny", 8)
    state = pose_state(encoder)
    load_pose_weights(encoder, state)
    loaded = encoder.backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    encoder.eval()
    found, branches = maps(encoder, torch.randn(2, 3, 64, 64))
    for finished, branch in zip(found[1:], branches[1:]):
        assert torch.equal(finished, branch.relu())
    assert not torch.equal(found[0], branches[0].relu())  # the exchange that the checkpoint holds
    encoder.train()
    encoder(torch.randn(2, 3, 64, 64)).square().sum().backward()
    slopes = [p.grad for n, p in encoder.backbone.named_parameters() if n in fuse_tensors(encoder) and p.ndim == 1]
    assert sum(bool(slope.abs().sum() > 0) for slope in slopes) >= 9  # of each path, its last multiplier


def test_random_and_imagenet_fill_the_gap():
    encoder = HRNetEncoder("hrnet_tiny", 8)
    gap = fuse_tensors(encoder)
    state, classifier = pose_state(encoder, 0), random_state(encoder.backbone, 1)
    load_pose_weights(encoder, state, fuse_init="random")
    loaded = encoder.backbone.state_dict()
    kernels = torch.cat([loaded[name].flatten() for name in gap if loaded[name].ndim == 4])
    assert_close(kernels.std(), torch.tensor(0.001), rtol=0.02, atol=0)
    assert all(bool((loaded[n] == 1).all()) for n in gap if n.endswith("weight") and loaded[n].ndim == 1)
    load_pose_weights(encoder, state, fuse_init="imagenet", imagenet=classifier)
    loaded = encoder.backbone.state_dict()
    assert all(torch.equal(loaded[name], (classifier if name in gap else state)[name]) for name in loaded)
    with pytest.raises(ValueError, match=r"one without stage4\.0\.fuse_layers\.1\.0"):
        load_pose_weights(encoder, state, fuse_init="imagenet", imagenet=state)


@pytest.mark.parametrize(("name", "width"), [("vit_s", 384), ("vit_b", 768)])
@pytest.mark.parametrize("names", [vitpose, vitpose_mmpose])
def test_vitpose_names_and_shapes_are_complete(name, width, names):
    load_pose_weights(on_shapes_alone(ViTEncoder, name), meta(names(width, 12)))


def test_vitpose_values_come_through_both_namings():
    """The positions of 193 tokens hold a class token's, which ViTPose adds to each."""
    torch.manual_seed(0)
    state = {name: torch.rand(shape) for name, shape in vitpose(64, 2).items()}
    one, other = ViTEncoder("vit_tiny", 8), ViTEncoder("vit_tiny", 8)
    load_pose_weights(one, state)
    positions = state["backbone.pos_embed"]
    assert_close(one.backbone.pos_embed.data, positions[:, 1:] + positions[:, :1])
    assert torch.equal(one.backbone.blocks[1].mlp.fc2.bias, state["backbone.blocks.1.mlp.fc2.bias"])
    assert torch.equal(one.backbone.norm.weight, state["backbone.last_norm.weight"])
    flat = dict(state, **{"backbone.pos_embed": one.backbone.pos_embed.data})
    renamed = dict(zip(vitpose_mmpose(64, 2), flat.values()))
    load_pose_weights(other, renamed)
    for a, b in zip(one.backbone.state_dict().values(), other.backbone.state_dict().values()):
        assert torch.equal(a, b)


def test_vit_is_vitpose_s_network():
    """Twelve heads in both sizes, a padded patch convolution, 16 x 12 tokens, no class token, their mean."""
    for name, width in (("vit_s", 384), ("vit_b", 768)):
        backbone = on_shapes_alone(ViTEncoder, name).backbone
        assert len(backbone.blocks) == 12
        assert {block.attn.num_heads for block in backbone.blocks} == {12}
        assert backbone.pos_embed.shape == (1, 16 * 12, width)
    encoder = ViTEncoder("vit_tiny", 8).eval()
    image = torch.randn(2, 3, 256, 192)
    tokens = nn.functional.conv2d(image, *encoder.backbone.patch_embed.proj.parameters(), stride=16, padding=2)
    assert tokens.shape[-2:] == (16, 12)
    hidden = tokens.flatten(2).mT + encoder.backbone.pos_embed
    for block in encoder.backbone.blocks:
        hidden = block(hidden)
    assert_close(encoder(image), encoder.out(encoder.backbone.norm(hidden).mean(1)))
    assert encoder(image[..., :64, :64]).shape == (2, 8)
    with pytest.raises(ValueError, match="multiples of 16"):
        encoder(image[..., :60])
    with pytest.raises(ValueError, match="Did you mean 'vit_s'"):
        ViTEncoder("vits", 8)


def test_a_file_is_read_without_running_code(tmp_path):
    from safetensors.torch import save_file

    state = {"a.weight": torch.ones(2)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert list(read_state(tmp_path / name)) == ["a.weight"]
    torch.save({"state_dict": state, "hook": print}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"tensors and plain values alone; got .*UnpicklingError.* pass its tensors"):
        read_state(tmp_path / "bad.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-3])
    for name, came in (("list.pth", "a list"), ("cut.safetensors", "SafetensorError")):
        with pytest.raises(ValueError, match=f"tensors and plain values alone; got .*{came}"):
            read_state(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="a 2D pose network; got no such file"):
        read_state(tmp_path / "none.pth")
    with pytest.raises(TypeError, match="needs a HRNet or a ViT encoder; got a Linear"):
        load_pose_weights(nn.Linear(2, 2), state)


def test_a_run_starts_from_the_weights_that_it_names(tmp_path):
    from small import POSES_ONLY, SMALL

    from unihpe_ref.runs import new_model

    encoder = HRNetEncoder("hrnet_tiny", 8)
    state = pose_state(encoder)
    torch.save(state, tmp_path / "pose.pth")
    config = SMALL.override(image_weights=tmp_path / "pose.pth")
    loaded = new_model(config).image_encoder.backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    (tmp_path / "pose.pth").unlink()
    new_model(config, to_be_restored=True)
    with pytest.raises(ValueError, match="needs a model with an image encoder"):
        new_model(POSES_ONLY.override(image_weights=tmp_path / "pose.pth"))
