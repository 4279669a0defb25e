"""The estimate of memory against what real tensors keep, and against sums by hand."""

import pytest
import torch
from small import POSES_ONLY, SMALL, small_source

from unihpe_ref.models import UniHPE
from unihpe_ref.runs.memory import estimate_memory, memory_lines, meta_batch, saved_for_backward
from unihpe_ref.stages import make_stages
from unihpe_ref.training import choose_trained


@pytest.mark.parametrize(
    "config", [SMALL, POSES_ONLY.override(**{"model.pose_encoder": "mlp", "model.decoder": "mlp"})]
)
def test_shapes_alone_keep_what_real_batches_keep(config):
    source = small_source(images=config is SMALL)
    real = source.batch(torch.arange(6), torch.Generator().manual_seed(0))
    for stage in make_stages(config):
        model = UniHPE(config.model)
        with torch.device("meta"):
            shapes = UniHPE(config.model)
        for each in (model, shapes):
            choose_trained(each, stage)
        expected = saved_for_backward(stage, model, real)
        assert expected > 10_000
        assert saved_for_backward(stage, shapes, meta_batch(6, config)) == pytest.approx(expected, rel=0.1)


def test_states_are_counted_by_hand():
    found = estimate_memory(SMALL)
    model = UniHPE(SMALL.model)
    everything = sum(tensor.nbytes for tensor in model.state_dict().values())
    image = 4 * sum(parameter.numel() for parameter in model.image_encoder.parameters())
    assert found["2 images"]["gradients"] == image
    assert found["2 images"]["optimizer"] == 2 * image
    assert found["2 images"]["weights"] == everything
    assert found["3 everything"]["weights"] == 2 * everything  # and their average
    halved = estimate_memory(SMALL.override(**{"stage3.accumulate": 2, "precision": "bfloat16"}))["3 everything"]
    assert halved["activations"] == pytest.approx(found["3 everything"]["activations"] / 4, rel=0.2)
    (line,) = memory_lines(SMALL.override(**{"stage1.steps": 0, "stage2.steps": 0}))
    assert line.startswith("3 everything: about ")
