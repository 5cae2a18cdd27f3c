"""The exported graph, run by torch, selects the proposals of `decode_proposals`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embedmask import EmbedMask, ModelConfig, Postprocessor
from embedmask.coupling import weighted_distance
from embedmask.export.graph import Graph, output_limit
from embedmask.export.nms import nms_mask
from embedmask.inference.engines import make_network
from embedmask.inference.proposals import class_wise_nms
from export.conftest import calibrated, scene

VERSIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fused": {"preset": "fused"},
    "nuclei": {
        "preset": "ijcai21",
        "score": "root",
        "rescore_masks": True,
        "image_norm": "image",
        "box_offset": 0,
    },
    "retinanet": {
        "preset": "ijcai21",
        "detector": "retinanet",
        "anchor_scales": (4.0, 6.0),
        "anchor_ratios": (0.5, 1.0),
    },
    "tal": {"detector": "tal", "score": "root"},
    "few candidates": {"channel_order": "bgr", "pre_nms_topk": 7, "max_detections": 11},
}


@pytest.fixture(scope="module", params=VERSIONS.values(), ids=VERSIONS)
def model(request: pytest.FixtureRequest) -> EmbedMask:
    return calibrated(**request.param)


@pytest.fixture(scope="module")
def graph(model: EmbedMask) -> Graph:
    return Graph(model, dense_masks=False)


def images(height: int, width: int, count: int) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(scene(height, width, seed)).permute(2, 0, 1) for seed in range(count)]
    )


@pytest.mark.parametrize(("height", "width", "count"), [(45, 91, 2), (7, 130, 1)])
def test_it_returns_the_proposals(
    model: EmbedMask, graph: Graph, height: int, width: int, count: int
) -> None:
    batch = images(height, width, count)
    outputs = dict(zip(("boxes", "scores", "labels", "q", "s", "p"), graph(batch), strict=True))
    predictions = make_network(model)(model.preprocess(list(batch)))
    postprocess = Postprocessor.from_config(model.config)
    for index in range(count):
        expected = postprocess.propose(predictions, index, (height, width))
        found = outputs["labels"][index] >= 0
        assert len(outputs["labels"][index]) == output_limit(model.config)
        assert torch.equal(outputs["labels"][index][found], expected.labels)
        for name, value in (("boxes", expected.boxes), ("scores", expected.scores), ("q", expected.embed)):
            torch.testing.assert_close(outputs[name][index][found], value, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(outputs["s"][index][found], expected.margin, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(outputs["p"][index], predictions.pixel_embed[index], atol=1e-3, rtol=1e-3)


def test_images_have_detections(graph: Graph) -> None:
    """The comparison above would also pass on empty results."""
    labels = graph(images(64, 96, 1))[2]
    assert int((labels >= 0).sum()) >= 5


def test_no_detections_are_padding() -> None:
    none = calibrated()
    torch.nn.init.constant_(none.head.class_logits.bias, -20.0)
    boxes, scores, labels, q, s, _ = Graph(none, dense_masks=False)(images(40, 50, 2))
    assert (labels == -1).all()
    assert not any(bool(values.any()) for values in (boxes, scores, q, s))


def test_dense_masks_are_log_phi() -> None:
    model = calibrated()
    *_, q, s, p, log_phi = Graph(model, dense_masks=True)(images(64, 96, 2))
    fine = torch.nn.functional.interpolate(p, scale_factor=2, mode="bilinear")
    assert log_phi.shape == (2, 40, *fine.shape[2:])
    for index in range(2):
        expected = -weighted_distance(fine[index].flatten(1), q[index], s[index])
        torch.testing.assert_close(log_phi[index].flatten(1), expected, atol=1e-3, rtol=1e-3)


def test_nms_of_a_batch_is_that_of_each_image() -> None:
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 60, 2, generator=rng) * 20
    boxes = torch.cat([corners, corners + 2 + torch.rand(2, 60, 2, generator=rng) * 10], 2)
    scores, labels = torch.rand(2, 60, generator=rng), torch.randint(0, 3, (2, 60), generator=rng)
    scores[0, ::7] = -1.0
    kept = nms_mask(boxes, scores, labels, num_classes=3, threshold=0.5, limit=60)
    for index in range(2):
        rows = (scores[index] > 0).nonzero()[:, 0]
        best = class_wise_nms(boxes[index, rows], scores[index, rows], labels[index, rows], 0.5)
        assert kept[index].nonzero()[:, 0].tolist() == sorted(rows[best].tolist())
        assert 0 < len(best) < len(rows)


def test_limits() -> None:
    config = ModelConfig.preset("paper", rescore_masks=True, pre_nms_topk=100)
    assert output_limit(config) == 500  # all candidates of five levels
    assert output_limit(ModelConfig.preset("paper", rescore_masks=True)) == 1000
    assert output_limit(ModelConfig.preset("paper")) == 100
