"""Detection on a preprocessed batch: `Predictor`, evaluation, validation and benchmarks share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from embedmask.config import DetectorConfig, model_type_of
from embedmask.inference.engines import Network
from embedmask.structures import ImageBatch, Instances, Size


class PostProcessing(Protocol):
    """Interface of the post-processing of a model type.

    Attributes:
        network_options: keyword arguments of the network, for types that apply limits within it.
    """

    network_options: Mapping[str, Any]

    def __call__(
        self, predictions: Any, image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Instances]:
        """Return the instances of each image, in its original frame.

        Args:
            predictions: output of the network for N images.
            image_sizes: `(height, width)` of each image inside the padded frame.
            original_sizes: `(height, width)` of each original image.
        """


def make_postprocessor(
    config: DetectorConfig,
    *,
    max_detections: int | None = None,
    score_threshold: float | None = None,
    reference_masks: bool = False,
    final_thresholds: Sequence[float] = (),
) -> PostProcessing:
    """Build the post-processing of any type of model.

    Args:
        max_detections: per image; None: that of the config.
        score_threshold: of candidates; None: that of the config.
        reference_masks: place masks by the config's `mask_frame`, instead of exactly.
        final_thresholds: minimum final score of each class, C values, applied before the limit; empty: none.
    """
    make = model_type_of(config).load("postprocessor").from_config
    postprocess: PostProcessing = make(
        config, max_detections, score_threshold, reference_masks, final_thresholds
    )
    return postprocess


@torch.inference_mode()
def detect(
    network: Network, postprocess: PostProcessing, batch: ImageBatch, original_sizes: Sequence[Size]
) -> list[Instances]:
    """Run a network on a preprocessed batch and post-process its output.

    The network casts its own layers; boxes and masks are decoded in float32, even under the caller's autocast.

    Args:
        batch: output of `Detector.preprocess`.
        original_sizes: `(height, width)` of each original image.

    Returns:
        The instances of each image, in its original frame, with tensors on the device of the batch.
    """
    with torch.autocast(batch.tensors.device.type, enabled=False):
        predictions = network(batch, **postprocess.network_options)
        return postprocess(predictions, batch.sizes, original_sizes)
