"""Peak memory of the stages after the network, each in its own process: it must not grow with instances x image."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCENE = """
import math, resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from embedmask import ModelConfig, Postprocessor, Predictions
from embedmask.inference.results import coco_results, to_detections
from embedmask.masks import RunMasks
from embedmask.visualize import draw_detections

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def scene(preset, count, network, original, share):
    # `count` ellipses over `share` of the image's sides, in boxes of the same size
    cfg = ModelConfig.preset(preset, num_classes=1, max_detections=count, pre_nms_topk=count, nms_threshold=1.0)
    grids = [tuple(math.ceil(side / stride) for side in network) for stride in cfg.strides]
    def maps(channels, value):
        return [torch.full((1, channels, *grid), value) for grid in grids]
    p = torch.zeros(1, cfg.embed_dim, *grids[0])
    p[0, 0] = (torch.arange(grids[0][1]) * 8 + 4.0) / 16
    p[0, 1] = (torch.arange(grids[0][0]) * 8 + 4.0)[:, None] / 16
    logits, q, boxes = maps(1, -20.0), maps(cfg.embed_dim, 0.0), maps(4, 0.0)
    logits[0].view(-1)[:: max(1, logits[0].numel() // count)] = 3
    q[0][0, :2] = p[0, :2]
    boxes[0][0] = torch.tensor([network[1], network[0]] * 2)[:, None, None] * share / 2
    s = math.log(2) * (32 / min(network) / share) ** 2
    predictions = Predictions(class_logits=logits, box_ltrb=boxes, centerness_logits=maps(1, 5.0),
        proposal_embed=q, proposal_margin=maps(cfg.embed_dim, s), pixel_embed=p, strides=cfg.strides)
    def decode(original=original):
        return Postprocessor.from_config(cfg)(predictions, [network], [original])[0]
    return decode

def refuse(*_):
    raise AssertionError("made dense")
RunMasks.to_dense = refuse
preset, count, share = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
network, original = (tuple(map(int, side.split("x"))) for side in sys.argv[4:6])
scene(preset, 5, (64, 64), (64, 64), 0.5)()  # excludes the memory that libraries allocate at their first use
decode = scene(preset, count, network, original, share)
before = peak()
actual = decode()
assert len(actual) == count, len(actual)
assert min(actual.masks.areas()) > 0.1 * share ** 2 * original[0] * original[1], "masks are large"
if "results" in sys.argv:
    before = peak()
    detections = to_detections(actual, ["thing"])
    assert len(coco_results(actual, 1, [1])) == count
    draw_detections(np.zeros((*original, 3), np.uint8), detections, ["thing"])
print(peak() - before)
"""


def measure(*arguments: str) -> float:
    """Return the increase of peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", SCENE, *arguments],
        capture_output=True, text=True, check=False, timeout=300, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    ["ijcai21", "paper", "fused"],
)
def test_300_large_instances_on_12_megapixels(preset: str) -> None:
    """Check masks that would take 1 GB as bool crops."""
    assert measure(preset, "300", "0.5", "800x1066", "3000x4000") < 400


@pytest.mark.slow
def test_1000_large_instances_on_a_megapixel() -> None:
    assert measure("paper", "1000", "0.5", "1000x1000", "1000x1000") < 300


@pytest.mark.slow
def test_results_and_drawing() -> None:
    """Check drawing: the image, its copy and a byte per pixel take at most 13 MB per million pixels."""
    assert measure("paper", "300", "0.1", "800x1066", "3000x4000", "results") < 12 * 13 + 100
