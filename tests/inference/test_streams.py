"""Streams of images: lazy, in batches, in order, with broken images."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from predictors import NOTHING, changed, same
from torch import Tensor

from embedmask import Predictions, Predictor
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.inference.detect import PostProcessing
from embedmask.inference.image_source import as_image
from embedmask.masks import RunMasks
from embedmask.structures import ImageBatch, Instances, Size


def test_iterator_is_lazy_and_bounded(predictor: Predictor, photo: np.ndarray) -> None:
    taken: list[int] = []
    threads = set(threading.enumerate())
    results = predictor(camera(photo, taken), 0.0)
    assert isinstance(results, Iterator)
    assert taken == []
    expected = predictor(photo, 0.0)
    for number in range(3):
        assert same(next(results), expected)
        assert number + 1 <= len(taken) <= number + 20
    del results
    assert set(threading.enumerate()) <= threads


def camera(photo: np.ndarray, taken: list[int]) -> Iterator[np.ndarray]:
    """Yield frames without end and record their numbers."""
    for frame in itertools.count():
        taken.append(frame)
        yield photo


def test_stopping_early_leaves_no_threads(predictor: Predictor, photo: np.ndarray) -> None:
    threads = set(threading.enumerate())
    for result in predictor.predict_stream(camera(photo, [])):
        assert result.image is not None
        break
    del result
    gc.collect()
    assert set(threading.enumerate()) <= threads

    def unplugged() -> Iterator[np.ndarray]:
        yield photo
        raise OSError("unplugged")

    stream = predictor.predict_stream(unplugged())
    next(stream)
    with pytest.raises(OSError, match="unplugged"):
        next(stream)
    assert set(threading.enumerate()) <= threads


def mixed_images(photo: np.ndarray) -> list[np.ndarray]:
    """Return images of three frames, mixed, some of one frame with different sizes."""
    shapes = [(90, 131), (131, 90), (90, 131), (70, 70), (90, 125), (131, 88), (70, 71), (90, 131), (90, 131)]
    return [np.ascontiguousarray(np.resize(photo, (*shape, 3))) for shape in shapes]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_results_are_in_order(predictor: Predictor, photo: np.ndarray, batch_size: int) -> None:
    images = mixed_images(photo)
    results = list(predictor.predict_stream(images, score_threshold=0.0, batch_size=batch_size))
    assert len(results) == len(images)
    for result, source in zip(results, images, strict=True):
        assert result.source is source
        assert result.error is None
        assert torch.equal(result.image, as_image(source))
        alone = predictor(source, 0.0)
        assert result.instances is not None
        # sums in another order differ in the last digits
        np.testing.assert_allclose(result.instances.boxes.numpy(), alone.xyxy, atol=0.01)
        np.testing.assert_allclose(result.instances.scores.numpy(), alone.confidence, atol=1e-5)
        assert result.instances.masks.frame == source.shape[:2]


def test_only_images_of_one_frame_share_a_batch(predictor: Predictor, photo: np.ndarray) -> None:
    """Check the batches of the network; each frame equals that of the image alone."""
    frames = []

    def network(batch: ImageBatch) -> Predictions:
        frames.append(tuple(batch.tensors.shape))
        return predictor.network(batch)

    watched = changed(predictor, network=network)
    images = mixed_images(photo)
    list(watched.predict_stream(images, batch_size=4))
    assert frames == [(4, 3, 64, 96), (2, 3, 96, 64), (2, 3, 64, 64), (1, 3, 64, 96)]
    alone: set[tuple[int, ...]] = set()
    for source in images:
        frames.clear()
        watched(source)
        alone.update(frames)
    assert alone == {(1, 3, 64, 96), (1, 3, 96, 64), (1, 3, 64, 64)}


def test_large_images_are_not_batched_on_cpu(predictor: Predictor) -> None:
    sizes = []

    def run(resized: list[Tensor], *rest: Any) -> list[Instances]:
        sizes.append(len(resized))
        return [NOTHING] * len(resized)

    predictor = changed(predictor, resize=EvalTransform.full_size(), _run=run)
    large, small = torch.zeros(3, 512, 513, dtype=torch.uint8), torch.zeros(3, 32, 32, dtype=torch.uint8)
    list(predictor.predict_stream([large] * 3 + [small] * 8, batch_size=4))
    assert sizes == [1, 1, 1, 4, 4]


def test_thousand_small_images(predictor: Predictor) -> None:
    """Check the order of many images in batches and threads, with a stub network."""

    def run(resized: list[Tensor], sizes: list[Size], postprocess: PostProcessing) -> list[Instances]:
        """Return one object per image, with its gray value as the score."""
        return [
            replace(NOTHING, boxes=torch.ones(1, 4), scores=image[0, :1, 0] / 255, labels=torch.zeros(1).long(),
                    masks=RunMasks([np.array([[0, 1]])], size))
            for image, size in zip(resized, sizes, strict=True)
        ]  # fmt: skip

    predictor = changed(predictor, _run=run)
    grays = np.random.default_rng(0).integers(0, 256, 1000)
    images = (np.full((4 + gray % 3, 5, 3), gray, np.uint8) for gray in grays)
    results = list(predictor.predict_stream(images, score_threshold=0.0, batch_size=8))
    scores = [float(result.instances.scores[0]) for result in results if result.instances is not None]
    np.testing.assert_allclose(scores, grays / 255, rtol=1e-6)


def test_broken_image(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    """Check that a broken image is skipped and reported, or raised at its position."""
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    images = [photo, path, photo, b"", photo]
    results = list(predictor.predict_stream(images, skip_broken=True, batch_size=2))
    assert [result.error is None for result in results] == [True, False, True, False, True]
    broken = results[1]
    assert (broken.source, broken.image, broken.instances) == (path, None, None)
    assert "broken.png" in str(broken.error)
    assert str(results[3].error).startswith("images[3]: ")
    stream = predictor.predict_stream(images)
    assert next(stream).error is None
    with pytest.raises(BadInput, match=r"broken\.png"):
        next(stream)
