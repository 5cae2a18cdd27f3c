"""Memory and time of the objective for one image crowded with objects.

python benchmarks/crowded.py paper 500      # preset, max_mask_instances ("null": all)
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import Tensor

from embedmask.config import ModelConfig, override
from embedmask.objective.criterion import Criterion
from embedmask.structures import CropMasks, Predictions, Target

OBJECTS, SIDE = 1964, 1024


def crowd(generator: torch.Generator) -> Target:
    """Filled rectangles of 8 to 40 px, anywhere."""
    sizes = torch.randint(8, 40, (OBJECTS, 2), generator=generator)
    corners = (torch.rand(OBJECTS, 2, generator=generator) * (SIDE - sizes)).long()
    boxes = torch.cat([corners, corners + sizes], 1).float()
    crops = [torch.ones(height, width, dtype=torch.bool) for width, height in sizes.tolist()]
    offsets = [(y, x) for x, y in corners.tolist()]
    return Target(boxes, torch.zeros(OBJECTS, dtype=torch.int64), CropMasks(crops, offsets, (SIDE, SIDE)))


def predictions(config: ModelConfig, generator: torch.Generator) -> Predictions:
    """Random maps, as a network would give them for the image."""

    def maps(channels: int, positive: bool = False) -> list[Tensor]:
        drawn = [torch.randn(1, channels, SIDE // s, SIDE // s, generator=generator) for s in config.strides]
        return [(m.abs() + 0.1 if positive else m).requires_grad_() for m in drawn]

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


def peak_gb() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """One forward and backward pass."""
    preset, most = sys.argv[1], sys.argv[2]
    torch.set_num_threads(1)
    base = ModelConfig.preset(preset, num_classes=1)
    config = override(base, {"max_mask_instances": None if most == "null" else int(most)}, where="CAP")
    generator = torch.Generator().manual_seed(0)
    target, found = crowd(generator), predictions(config, generator)
    before, start = peak_gb(), time.monotonic()
    Criterion.from_config(config)(found, [target]).total.backward()
    seconds = time.monotonic() - start
    print(f"{preset}, {most}: {seconds:.1f} s, {before:.2f} GB before, {peak_gb():.2f} GB at most")


if __name__ == "__main__":
    main()
