"""Inference with an exported file: its graph ends with the proposals, so post-processing begins at the masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor

from embedmask.config import Engine, ModelConfig
from embedmask.config.detector import SCORE_ROUNDING
from embedmask.config.exported import ExportedConfig
from embedmask.errors import BadInput
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.proposals import Proposals
from embedmask.runtime import Session
from embedmask.structures import ImageBatch, Predictions, Size
from embedmask.weights.exported import ExportedModel, as_bad_input


@dataclass
class ExportedPredictions:
    """Output of an exported graph for N images.

    Attributes:
        proposals: of each image, in the network's frame.
        pixel_embed: p of each image, `[D, h, w]`.
        pixel_stride: px per cell of p.
    """

    proposals: list[Proposals]
    pixel_embed: list[Tensor]
    pixel_stride: int


@dataclass
class ExportedPostprocessor(Postprocessor):
    """Post-processing from the proposals on."""

    @classmethod
    def from_config(
        cls,
        cfg: ModelConfig,
        max_detections: int | None = None,
        score_threshold: float | None = None,
        reference_masks: bool = True,
        final_thresholds: Sequence[float] = (),
    ) -> Self:
        """Return the post-processing of an exported file; see `Postprocessor.from_config`.

        Raises:
            BadInput: the graph does not serve the number of detections or the threshold.
        """
        exported = cast(ExportedConfig, cfg)
        made = super().from_config(cfg, max_detections, score_threshold, reference_masks, final_thresholds)
        if made.max_detections > exported.most_detections:
            raise BadInput(
                f"max_detections {made.max_detections}: the exported file serves at most "
                f"{exported.most_detections}; export the model with a larger max_detections"
            )
        if made.score_threshold < exported.least_candidate_threshold * (1 - 2 * SCORE_ROUNDING):
            raise BadInput(
                f"score threshold: the exported file serves {exported.min_score:.3g} to 1; "
                "export the model with a lower candidate_threshold"
            )
        return made

    def propose(self, predictions: Predictions, index: int, image_size: Size) -> Proposals:
        """Return the proposals of image `index`; the graph has clipped them to `image_size`."""
        proposals = cast(ExportedPredictions, predictions).proposals[index]
        limit = None if self.cfg.rescore_masks else self.max_detections
        return proposals.best(self.final_thresholds, limit)


def exported_network(
    model: ExportedModel, engine: Engine, dtype: torch.dtype
) -> Callable[[ImageBatch], ExportedPredictions]:
    """Return the network of an exported file: onnxruntime, or OpenVINO for `.xml` or on request, on the CPU.

    Raises:
        BadInput: the engine cannot run the file or is not installed, or `dtype` is not float32.
    """
    if engine == "compile" or (engine == "onnxruntime" and model.path.suffix == ".xml"):
        fits = "openvino" if model.path.suffix == ".xml" else "onnxruntime or openvino"
        raise BadInput(f"{model.path}: engine {engine!r} cannot run an exported file; use {fits}")
    if dtype != torch.float32:
        raise BadInput(f"{model.path}: an exported file computes in float32; use precision auto or float32")
    with as_bad_input():
        session = Session(
            model.path, engine=None if engine == "torch" else engine, threads=torch.get_num_threads()
        )

    def network(batch: ImageBatch) -> ExportedPredictions:
        results = ExportedPredictions([], [], model.settings.pixel_stride)
        for rows in _of_one_size(batch.sizes):
            height, width = batch.sizes[rows[0]]
            images = batch.tensors[rows[0] : rows[-1] + 1, :, :height, :width].cpu().numpy()
            outputs = session.run(images)
            named = {
                name: torch.from_numpy(value).to(batch.tensors.device) for name, value in outputs.items()
            }
            for row in range(len(rows)):
                is_detection = named["labels"][row] >= 0
                columns = (named[name][row][is_detection] for name in ("boxes", "scores", "labels", "q", "s"))
                results.proposals.append(Proposals(*columns))
                results.pixel_embed.append(named["p"][row])
        return results

    return network


def _of_one_size(sizes: Sequence[Size]) -> list[list[int]]:
    """Group neighboring images of one size, which the graph takes together."""
    ends = [index for index in range(1, len(sizes)) if sizes[index] != sizes[index - 1]]
    return [part.tolist() for part in np.split(np.arange(len(sizes)), ends)]
