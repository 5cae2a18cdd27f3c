"""Prediction for batches and data sets, shared by evaluation and training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from embedmask.config import DetectorConfig, ModelConfig
from embedmask.data.loader import EvalBatch
from embedmask.inference.engines import Network
from embedmask.inference.mask_rcnn import postprocess_mask_rcnn
from embedmask.inference.postprocess import Postprocessor
from embedmask.model.detector import Detector
from embedmask.structures import ImageBatch, Instances, Size


def predict_batch(
    model: Detector,
    config: DetectorConfig,
    images: Sequence[Tensor],
    original_sizes: Sequence[Size],
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Instances]:
    """Return the instances of each image, in its original frame.

    Args:
        model: in evaluation mode.
        config: the model's own, or one with other thresholds or `max_detections`.
        images: uint8 RGB `[3, h, w]`, already resized for the network; any device.
        original_sizes: `(height, width)` of each original image.
        memory_format: memory format of the images, equal to that of the weights.
    """
    batch = model.preprocess(images)
    batch.tensors = batch.tensors.contiguous(memory_format=memory_format)
    return detect(model, config, batch, original_sizes)


def detect(
    network: Network, config: DetectorConfig, batch: ImageBatch, original_sizes: Sequence[Size]
) -> list[Instances]:
    """Run a network on a preprocessed batch and post-process its output.

    Autocast, if enabled, applies to the network only: boxes and masks are decoded in float32.

    Args:
        network: of `make_network`, or a model itself.
        config: of the model, as in `predict_batch`.
        batch: output of `Detector.preprocess`.
        original_sizes: `(height, width)` of each original image.
    """
    in_float32 = torch.autocast(batch.tensors.device.type, enabled=False)
    if isinstance(config, ModelConfig):
        predictions = network(batch)
        with in_float32:
            return Postprocessor.from_config(config)(predictions, batch.sizes, original_sizes)
    detections = network(
        batch,
        score_threshold=config.score_threshold,
        nms_threshold=config.nms_threshold,
        max_detections=config.max_detections,
    )
    with in_float32:
        return [
            postprocess_mask_rcnn(one, *sizes, mask_threshold=config.mask_threshold)
            for one, *sizes in zip(detections, batch.sizes, original_sizes, strict=True)
        ]


def predict_dataset(
    model: Detector,
    config: DetectorConfig,
    batches: Iterable[EvalBatch],
    *,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, Instances]]:
    """Yield `(image_id, instances)` of every image; one batch is in memory at a time.

    Args:
        model: in evaluation mode, on its device; it is moved to channels_last if `dtype` is not float32.
        config: the model's own, or one with other thresholds or `max_detections`.
        batches: of `eval_loader`.
        dtype: bfloat16 or float16 run the convolutions under autocast.
    """
    device = next(model.parameters()).device
    reduced = dtype != torch.float32
    memory_format = torch.channels_last if reduced else torch.contiguous_format
    model.to(memory_format=memory_format)
    for images, image_ids, original_sizes in batches:
        with torch.inference_mode(), torch.autocast(device.type, dtype if reduced else None, enabled=reduced):
            results = predict_batch(model, config, images, original_sizes, memory_format=memory_format)
        yield from zip(image_ids, results, strict=True)
