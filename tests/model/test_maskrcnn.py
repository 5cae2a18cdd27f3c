"""The baseline equals torchvision's Mask R-CNN exactly, apart from preprocessing, labels and types."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import light_baseline, no_objects, random_rectangles, small_baseline
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn

from embedmask.config import MaskRCNNConfig
from embedmask.errors import BadInput
from embedmask.inference.detect import detect, make_postprocessor
from embedmask.inference.engines import make_network
from embedmask.model.build import build_model
from embedmask.model.maskrcnn import MaskRCNN
from embedmask.structures import Instances, Size, Target

CLASSES = 3
SIZES = [(64, 96), (80, 64)]
"""Sizes with equal short sides, so that torchvision does not resize."""


def images() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=rng, dtype=torch.uint8) for size in SIZES]


def targets() -> list[Target]:
    return [random_rectangles(4, size, seed=seed) for seed, size in enumerate(SIZES)]


def detected(
    model: MaskRCNN, pixels: list[Tensor], sizes: list[Size], dtype: torch.dtype = torch.float32
) -> list[Instances]:
    network = make_network(model, dtype=dtype)
    return detect(network, make_postprocessor(model.config), model.preprocess(pixels), sizes)


@pytest.fixture(scope="module")
def pair() -> tuple[MaskRCNN, Any]:
    """Return the default baseline and torchvision's model, with equal random weights."""
    torch.manual_seed(0)
    config = MaskRCNNConfig(num_classes=CLASSES, backbone_norm="batch", frozen_stages=0, max_detections=20)
    baseline = build_model(config)
    reference_model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=min(SIZES[0]),
        max_size=1333,
        box_detections_per_img=config.max_detections,
        image_mean=baseline.config.image_mean,
        image_std=baseline.config.image_std,
    )
    state = {name.replace("fpn.", "backbone.fpn.", 1) if name.startswith("fpn.") else name: value
             for name, value in baseline.state_dict().items()}  # fmt: skip
    reference_model.load_state_dict(state)
    reference_model.transform.torch_choice = min  # samples no random number
    assert isinstance(baseline, MaskRCNN)
    for model in (baseline, reference_model):
        model.rpn._post_nms_top_n = {"training": 100, "testing": 100}  # faster
    return baseline, reference_model


def test_losses_and_gradients_match_torchvision(pair: tuple[MaskRCNN, Any]) -> None:
    baseline, reference_model = (copy.deepcopy(model).train() for model in pair)
    torch.manual_seed(1)
    losses = baseline.losses(baseline.preprocess(images()), targets())
    gts = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks.byte()} for t in targets()]
    torch.manual_seed(1)
    expected = reference_model([image.float() for image in images()], gts)
    names = {"classification": "loss_classifier", "box": "loss_box_reg", "mask": "loss_mask",
             "objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}  # fmt: skip
    assert losses.as_dict().keys() == names.keys()
    for name, value in losses.as_dict().items():
        assert torch.equal(value, expected[names[name]]), name
    losses.total.backward()
    sum(expected.values()).backward()
    gradients = {name: p.grad for name, p in reference_model.named_parameters()}
    for name, parameter in baseline.named_parameters():
        expected_grad = gradients[f"backbone.{name}" if name.startswith("fpn.") else name]
        assert torch.allclose(parameter.grad, expected_grad, rtol=1e-4, atol=1e-6), name


def test_detections_match_torchvision(pair: tuple[MaskRCNN, Any]) -> None:
    baseline, reference_model = (model.eval() for model in pair)
    found = detected(baseline, images(), SIZES)
    with torch.inference_mode():
        expected = reference_model([image.float() for image in images()])
    for one, reference in zip(found, expected, strict=True):
        assert len(one) > 10
        assert torch.equal(one.boxes, reference["boxes"])
        assert torch.equal(one.scores, reference["scores"])
        assert torch.equal(one.labels, reference["labels"] - 1)
        assert torch.equal(one.masks.to_dense(), reference["masks"][:, 0] > 0.5)


def test_images_without_objects_reach_every_parameter() -> None:
    model = MaskRCNN(small_baseline())
    losses = model.losses(model.preprocess(images()), [no_objects(size) for size in SIZES])
    assert losses.box == losses.mask == losses.rpn_box == 0
    assert losses.classification > 0
    assert losses.objectness > 0
    losses.total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_raises_on_invalid_labels() -> None:
    model = MaskRCNN(small_baseline(num_classes=2))
    with pytest.raises(BadInput, match=r"labels 0\.\.2, but the model has classes 0\.\.1"):
        model.losses(model.preprocess(images()[:1]), targets()[:1])


def test_limits_are_arguments_of_the_call() -> None:
    torch.manual_seed(0)
    model = light_baseline().eval()
    batch = model.preprocess(images()[:1])
    with torch.inference_mode():
        few, many = (
            model(batch, score_threshold=0.0, max_detections=limit)[0]["scores"] for limit in (3, 40)
        )
        (none,) = model(batch, score_threshold=1.0)
        apart = model(batch, score_threshold=0.0, nms_threshold=0.1, max_detections=20)[0]["scores"]
    assert (len(few), len(many)) == (3, 40)
    assert torch.equal(few, many[:3])
    assert apart.sum() < many[:20].sum()
    assert len(none["boxes"]) == len(none["masks"]) == 0


def test_only_convolutions_use_reduced_precision_under_autocast() -> None:
    torch.manual_seed(0)
    model = light_baseline()
    gradients, totals = [], []
    for enabled in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = model.losses(model.preprocess(images()[:1]), targets()[:1])
        assert {value.dtype for value in losses.as_dict().values()} == {torch.float32}
        losses.total.backward()
        totals.append(losses.total.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert totals[1] == pytest.approx(totals[0], rel=0.02)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


def test_boxes_keep_their_precision_under_autocast() -> None:
    """Check boxes beyond 256 px, where bfloat16 would round corners to even pixels."""
    torch.manual_seed(0)
    model = light_baseline(max_detections=20).eval()
    image = torch.randint(0, 256, (3, 64, 640), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = detected(model, [image], [(64, 640)], torch.bfloat16)
    right = found.boxes[:, 2]
    inside = right[(right > 256) & (right < 640)]
    assert len(inside) > 5
    assert (inside != inside.bfloat16().float()).float().mean() > 0.9
