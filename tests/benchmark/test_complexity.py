"""Parameters and operations of a model, compared with the model itself and with a count by hand."""

from __future__ import annotations

import pytest
import torch
from small_models import small_baseline, small_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from embedmask.benchmark.complexity import PROPOSALS, Complexity, count_complexity
from embedmask.config import MaskRCNNConfig, ModelConfig
from embedmask.model.build import build_model


@pytest.mark.parametrize("preset", ["paper", "ijcai21", "fused"])
def test_counts_equal_those_of_the_real_network(preset: str) -> None:
    config = small_config(preset=preset)
    found = count_complexity(config, (60, 90))
    model = build_model(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(model.preprocess([torch.zeros(3, 60, 90, dtype=torch.uint8)]))
    assert found == Complexity(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops=counter.get_total_flops(),
        frame=(64, 96),
    )


def test_image_is_resized_as_the_config_says() -> None:
    config = small_config(image_short_side=64, image_long_side=200)
    assert count_complexity(config, (100, 200)).frame == (64, 128)
    assert count_complexity(config, (100, 200)) == count_complexity(small_config(), (64, 128))


def test_second_stage_of_the_baseline() -> None:
    config = small_baseline(max_detections=7)
    found = count_complexity(config, (64, 64))
    more = count_complexity(small_baseline(max_detections=8), (64, 64))
    # one mask: four 3x3 convolutions at 14 x 14, a transposed one, and the classes at 28 x 28; 2 FLOPs each
    layers = [(16, 256, 9, 14)] + [(256, 256, 9, 14)] * 3 + [(256, 256, 4, 14), (256, 4, 1, 28)]
    assert more.flops - found.flops == sum(2 * a * b * taps * side**2 for a, b, taps, side in layers)
    boxes = 2 * PROPOSALS * (16 * 49 * 1024 + 1024 * 1024 + 1024 * (4 + 16))
    assert found.flops > boxes
    model = build_model(config)
    assert found.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(ModelConfig(), 34.8e6), (MaskRCNNConfig(), 44.3e6)],
    ids=["embedmask", "maskrcnn"],
)
def test_published_models_are_counted_without_their_memory(config: ModelConfig, parameters: float) -> None:
    found = count_complexity(config)
    assert found.parameters == pytest.approx(parameters, rel=2e-3)
    assert found.frame == (800, 1088)
    assert 350e9 < found.flops < 500e9
    assert nn.Conv2d(1, 1, 1).weight.device.type == "cpu"
