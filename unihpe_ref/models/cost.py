"""Parameters and multiply-adds of a network, counted by PyTorch on meta tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from multicontrast._checks import call as call_checked
from multicontrast._checks import check_callable, check_size, check_type
from unihpe_ref.config import ModelConfig, SamplerConfig
from unihpe_ref.models.absent import Absent
from unihpe_ref.models.unihpe import UniHPE


def parameters(module: nn.Module) -> int:
    """The number of trained parameters."""
    check_type("parameters", "module", module, nn.Module, "Pass a model, or a part of one.")
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(call: Callable[[], object]) -> int:
    """Multiply-adds (MACs) of the matrix products and convolutions in ``call``; half of what others call FLOPs.

    This includes attention's products of queries with keys and of weights with values, which some tables leave out.

    Example:
        >>> layer, x = nn.Linear(3, 5), torch.ones(2, 3)
        >>> multiply_adds(lambda: layer(x))
        30
    """
    remedy = "Pass a function without arguments: `lambda: layer(x)`."
    check_callable("multiply_adds", "call", call, remedy)
    with FlopCounterMode(display=False) as counter:
        call_checked("`multiply_adds` needs a function without arguments", call, remedy=remedy)
    return counter.get_total_flops() // 2


def costs(config: ModelConfig, image_size: tuple[int, int] = (256, 192)) -> dict[str, tuple[int, int]]:
    """(parameters, multiply-adds for one sample) by part of the model; nothing is allocated.

    For a score-based decoder this is one evaluation of the network; a sampler needs one or more for each step.
    """
    check_type("costs", "config", config, ModelConfig, "Pass `RunConfig().model`, for example.")
    image_size = check_size("costs", "image_size", image_size)
    with torch.device("meta"):
        model = UniHPE(config, SamplerConfig(steps=1))
        box_info, embedding = torch.empty(1, 3), torch.empty(1, config.embedding_dim)
        calls = {
            "image encoder": lambda: model.encode(image=torch.empty(1, 3, *image_size)),
            "2D pose encoder": lambda: model.encode(kp2d=torch.empty(1, config.joints, 2), box_info=box_info),
            "3D pose encoder": lambda: model.encode(kp3d=torch.empty(1, config.joints, 3)),
            "2D pose decoder": lambda: model.decode_2d(embedding, "img", box_info),
            "3D pose decoder": lambda: model.decode_3d(embedding, "img", box_info),
        }
        parts = [model.image_encoder, model.encoder_2d, model.encoder_3d, model.decoder_2d, model.decoder_3d]
        model.train()  # PyTorch's fused inference path of the transformer is not counted
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # one sample has no batch statistics
        return {
            name: (parameters(part), multiply_adds(call))
            for (name, call), part in zip(calls.items(), parts)
            if part is not None and not isinstance(part, Absent)
        }
