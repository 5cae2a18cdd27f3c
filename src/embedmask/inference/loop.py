"""Walk a data set and give finished instances, image by image: what evaluation and training share."""

from __future__ import annotations

import os
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

MAX_WORKERS = 8


def predict_batch(
    model: Detector,
    config: DetectorConfig,
    images: Sequence[Tensor],
    original_sizes: Sequence[Size],
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Instances]:
    """Instances of each image, in its original frame.

    Args:
        config: the model's own, or with other thresholds or `max_detections`.
        images: uint8 `[3, h, w]` RGB, already in the network's frame; any device.
        original_sizes: `(height, width)` of each image's file.
        memory_format: layout of the images; channels_last where the weights are.
    """
    batch = model.preprocess(images)
    batch.tensors = batch.tensors.contiguous(memory_format=memory_format)
    return detect(model, config, batch, original_sizes)


def detect(
    network: Network, config: DetectorConfig, batch: ImageBatch, original_sizes: Sequence[Size]
) -> list[Instances]:
    """What a network of any kind, or a model itself, finds in a preprocessed batch; the rest as in `predict_batch`.

    Autocast, where it is on, reaches the network alone: boxes and masks are decoded in float32.
    """
    in_float32 = torch.autocast(batch.tensors.device.type, enabled=False)
    if isinstance(config, ModelConfig):
        predictions = network(batch)
        with in_float32:
            return Postprocessor.from_config(config)(predictions, batch.sizes, original_sizes)
    found = network(
        batch,
        score_threshold=config.score_threshold,
        nms_threshold=config.nms_threshold,
        max_detections=config.max_detections,
    )
    with in_float32:
        return [
            postprocess_mask_rcnn(one, *sizes, mask_threshold=config.mask_threshold)
            for one, *sizes in zip(found, batch.sizes, original_sizes, strict=True)
        ]


def predict_dataset(
    model: Detector,
    config: DetectorConfig,
    batches: Iterable[EvalBatch],
    *,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, Instances]]:
    """`(image_id, instances)` of every image that `batches` gives; memory holds one batch at a time.

    Args:
        model: in evaluation mode, on its device; moved to channels_last where `dtype` is not float32.
        config: the model's own, or with other thresholds or `max_detections`.
        batches: from `eval_loader`.
        dtype: bfloat16 or float16 run the convolutions under autocast; what needs float32 stays float32.
    """
    device = next(model.parameters()).device
    reduced = dtype != torch.float32
    memory_format = torch.channels_last if reduced else torch.contiguous_format
    model.to(memory_format=memory_format)
    for images, image_ids, original_sizes in batches:
        with torch.inference_mode(), torch.autocast(device.type, dtype if reduced else None, enabled=reduced):
            found = predict_batch(model, config, images, original_sizes, memory_format=memory_format)
        yield from zip(image_ids, found, strict=True)


def choose_workers(wanted: int | None) -> int:
    """Loading processes: as many as wanted; None: one fewer than the cores that we may use, at most 8."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, MAX_WORKERS)
