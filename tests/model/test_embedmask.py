"""EmbedMask from images to predictions: frames, normalization, levels."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import maps_of, random_rectangles, small_config

from embedmask import Criterion, EmbedMask
from embedmask.errors import BadInput
from embedmask.structures import ImageBatch


def random_image(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("sizes", "frame"),
    [
        ([(1, 1)], (32, 32)),
        ([(33, 65)], (64, 96)),
        ([(32, 64)], (32, 64)),
        ([(33, 10), (5, 65)], (64, 96)),
    ],
)
def test_frames_are_padded_to_32(sizes: list[tuple[int, int]], frame: tuple[int, int]) -> None:
    model = EmbedMask(small_config()).eval()
    images = [random_image(size) for size in sizes]
    batch = model.preprocess(images)
    assert batch.tensors.shape == (len(sizes), 3, *frame)
    assert batch.sizes == sizes
    for slot, image, (h, w) in zip(batch.tensors, images, sizes, strict=True):
        expected = (image.float() - model.mean) / model.std
        assert torch.allclose(slot[:, :h, :w], expected)
        assert (slot[:, h:] == 0).all()
        assert (slot[:, :, w:] == 0).all()
    predictions = model(batch)
    assert predictions.padded_size == frame
    assert all(m.isfinite().all() for m in maps_of(predictions))


@pytest.mark.parametrize("size", [(1, 1), (33, 65), (64, 40)])
@pytest.mark.parametrize("finest", [4, 8])
def test_tensors_of_any_size(size: tuple[int, int], finest: int) -> None:
    strides = tuple(finest * 2**i for i in range(5))
    predictions = EmbedMask(small_config(strides=strides)).eval()(torch.randn(2, 3, *size))
    assert predictions.strides == strides
    assert [m.shape[2:] for m in predictions.class_logits] == [
        tuple(math.ceil(side / s) for side in size) for s in strides
    ]
    losses = Criterion.from_config(small_config(strides=strides))(
        predictions, [random_rectangles(1, size)] * 2
    )
    assert losses.total.isfinite()


def test_more_and_fewer_levels() -> None:
    for levels in (3, 4, 7):
        strides = tuple(8 * 2**i for i in range(levels))
        cfg = small_config(strides=strides, size_ranges=tuple(64.0 * 2**i for i in range(levels - 1)))
        predictions = EmbedMask(cfg).eval()(torch.zeros(1, 3, 32, 32))
        assert [m.shape[2] for m in predictions.box_ltrb] == [math.ceil(32 / s) for s in strides]


def test_batch_and_tensor_give_equal_predictions() -> None:
    model = EmbedMask(small_config()).eval()
    tensors = torch.randn(1, 3, 32, 64)
    for one, two in zip(
        maps_of(model(tensors)), maps_of(model(ImageBatch(tensors, [(20, 50)]))), strict=True
    ):
        assert torch.equal(one, two)


def test_training_and_inference_give_one_type() -> None:
    model = EmbedMask(small_config(backbone_norm="frozen"))
    tensors = torch.randn(1, 3, 32, 64)
    for one, two in zip(maps_of(model.train()(tensors)), maps_of(model.eval()(tensors)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 4, 32, 32), (32,)])
def test_raises_on_invalid_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"expected images \[N, 3, H, W\], got a tensor of shape"):
        EmbedMask(small_config())(torch.zeros(shape))


def test_normalization_in_both_channel_orders() -> None:
    options = {"image_mean": (10.0, 20.0, 30.0), "image_std": (1.0, 2.0, 4.0)}
    image = torch.tensor([50, 100, 150], dtype=torch.uint8).view(3, 1, 1)
    rgb = EmbedMask(small_config(**options)).preprocess([image]).tensors[0, :, 0, 0]
    bgr = EmbedMask(small_config(channel_order="bgr", **options)).preprocess([image]).tensors[0, :, 0, 0]
    assert rgb.tolist() == [40, 40, 30]
    assert bgr.tolist() == [140, 40, 5]


def test_image_norm_uses_the_statistics_of_each_image() -> None:
    model = EmbedMask(small_config(image_norm="image"))
    image = random_image((40, 50))
    dim = (image.float() / 2).round().to(torch.uint8)
    bright, dark = model.preprocess([image]).tensors, model.preprocess([dim]).tensors
    shown = bright[0, :, :40, :50]
    assert shown.mean().item() == pytest.approx(0, abs=1e-4)
    assert shown.std().item() == pytest.approx(1, abs=0.05)
    assert (bright - dark).abs().max() < 0.06
    fixed = EmbedMask(small_config())
    assert (fixed.preprocess([image]).tensors - fixed.preprocess([dim]).tensors).abs().max() > 1


@pytest.mark.parametrize("size", [(1, 1), (20, 20)])
def test_a_blank_image_stays_blank(size: tuple[int, int]) -> None:
    blank = torch.full((3, *size), 200, dtype=torch.uint8)
    tensors = EmbedMask(small_config(image_norm="image")).preprocess([blank]).tensors
    assert (tensors == 0).all()


@pytest.mark.parametrize("preset", ["paper", "ijcai21"])
def test_embeddings_boxes_and_losses_stay_float32_under_autocast(preset: str) -> None:
    cfg = small_config(preset=preset)
    model = EmbedMask(cfg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = model(torch.randn(1, 3, 64, 64))
        losses = Criterion.from_config(cfg)(predictions, [random_rectangles(4, (64, 64))])
    assert {m.dtype for m in maps_of(predictions)} == {torch.float32}
    assert {value.dtype for value in losses.as_dict().values()} == {torch.float32}
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
