"""Measure memory and time of the training objective for one image with 1,964 objects.

python benchmarks/crowded.py paper 500      # preset, max_mask_instances ("null": all)
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from reporting import peak_gb
from torch import Tensor

from embedmask.config import ModelConfig, override
from embedmask.masks import BitMasks, MaskCrop
from embedmask.objective.criterion import Criterion
from embedmask.structures import Predictions, Target

OBJECTS, SIDE = 1964, 1024


def crowd(generator: torch.Generator) -> Target:
    """Return a target of filled rectangles with sides of 8 to 40 px at random positions."""
    sizes = torch.randint(8, 40, (OBJECTS, 2), generator=generator)
    corners = (torch.rand(OBJECTS, 2, generator=generator) * (SIDE - sizes)).long()
    boxes = torch.cat([corners, corners + sizes], 1).float()
    crops = [
        MaskCrop(np.ones((height, width), bool), y, x)
        for (width, height), (x, y) in zip(sizes.tolist(), corners.tolist(), strict=True)
    ]
    masks = BitMasks.from_crops(crops, (SIDE, SIDE))
    return Target(boxes, torch.zeros(OBJECTS, dtype=torch.int64), masks)


def predictions(config: ModelConfig, generator: torch.Generator) -> Predictions:
    """Return random predictions with the shapes of a network's output for the image."""

    def maps(channels: int, positive: bool = False) -> list[Tensor]:
        # one map per level, [1, channels, H / stride, W / stride]
        levels = [torch.randn(1, channels, SIDE // s, SIDE // s, generator=generator) for s in config.strides]
        return [(m.abs() + 0.1 if positive else m).requires_grad_() for m in levels]

    dim = config.embed_dim
    return Predictions(
        class_logits=maps(1),
        box_ltrb=maps(4, positive=True),
        centerness_logits=maps(1),
        proposal_embed=maps(dim),
        proposal_margin=maps(1 if config.margin_source == "box" else dim, positive=True),
        pixel_embed=maps(dim)[0],
        strides=config.strides,
        semantic_logits=maps(1)[0] if config.semantic_weight else None,
    )


def main() -> None:
    """Run one forward and one backward pass."""
    preset, cap = sys.argv[1], sys.argv[2]
    # one thread: the figures do not depend on the number of cores
    torch.set_num_threads(1)
    base = ModelConfig.preset(preset, num_classes=1)
    config = override(base, {"max_mask_instances": None if cap == "null" else int(cap)}, where="CAP")
    generator = torch.Generator().manual_seed(0)
    target, maps = crowd(generator), predictions(config, generator)
    before, start = peak_gb(), time.monotonic()
    Criterion.from_config(config)(maps, [target]).total.backward()
    seconds = time.monotonic() - start
    print(f"{preset}, {cap}: {seconds:.1f} s, {before:.2f} GB before, {peak_gb():.2f} GB at most")


if __name__ == "__main__":
    main()
