"""The two sides of the comparison: stages from files to finished detections, each callable by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from embedmask._supervision import sv
from embedmask.config import ModelConfig
from embedmask.data.images import read_image, size_of
from embedmask.data.transforms import EvalTransform
from embedmask.inference.engines import Network
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.proposals import Proposals
from embedmask.inference.results import to_detections
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import ImageBatch, Instances, Predictions, Size

Stages = dict[str, Callable[[], None]]
Setting = Literal["float32", "bfloat16", "compiled"]
SETTINGS: tuple[Setting, ...] = ("float32", "bfloat16", "compiled")
"""Of the baseline: torchvision's default; bfloat16 autocast with channels_last; that, its convolutions compiled."""


class Pipeline(Protocol):
    """One of two ways from files to detections.

    Attributes:
        detections: of the last run, an image each, masks in the image's own frame.
    """

    detections: list[sv.Detections]

    def stages(self) -> Stages:
        """Name -> the stage; called in this order they are one whole run. Each keeps its result for the next."""
        ...


class EmbedMaskPipeline:
    """Ours, as `Predictor` does it; masks are kept as crops."""

    images: list[Tensor]
    resized: list[Tensor]
    batch: ImageBatch
    predictions: Predictions
    proposals: list[Proposals]
    instances: list[Instances]
    detections: list[sv.Detections]

    def __init__(
        self, model: EmbedMask, network: Network, config: ModelConfig, files: Sequence[Path]
    ) -> None:
        """Take a model on its device, what runs it, how its results are made, and the files of one batch."""
        self.model, self.network, self.files = model, network, files
        self.transform = EvalTransform(config.image_short_side, config.image_long_side, config.image_rounding)
        self.postprocessor = Postprocessor(config)
        self.class_names = [str(label) for label in range(config.num_classes)]

    def stages(self) -> Stages:
        """See `Pipeline`."""
        return {
            "read": self.read,
            "resize": self.resize,
            "preprocess": self.preprocess,
            "network": self.run_network,
            "proposals": self.propose,
            "masks": self.finish,
            "results": self.convert,
        }

    def read(self) -> None:
        """Decode the files."""
        self.images = [read_image(file) for file in self.files]

    def resize(self) -> None:
        """To the network's frame."""
        self.resized = [self.transform.image(image) for image in self.images]

    def preprocess(self) -> None:
        """Normalise and pad."""
        self.batch = self.model.preprocess(self.resized)

    def run_network(self) -> None:
        """The network."""
        self.predictions = self.network(self.batch)

    @torch.inference_mode()
    def propose(self) -> None:
        """Decode and NMS."""
        sizes = enumerate(self.batch.sizes)
        self.proposals = [self.postprocessor.propose(self.predictions, *one) for one in sizes]

    @torch.inference_mode()
    def finish(self) -> None:
        """Boolean crops in the images' frames."""
        self.instances = [
            self.postprocessor.finish(
                self.predictions, index, proposals, self.batch.sizes[index], size_of(self.images[index])
            )
            for index, proposals in enumerate(self.proposals)
        ]

    def convert(self) -> None:
        """supervision's detections."""
        self.detections = [to_detections(found, self.class_names) for found in self.instances]


class TorchvisionPipeline:
    """torchvision's Mask R-CNN, as `model([image])` does it; masks are dense, as it makes them."""

    images: list[Tensor]
    inputs: Any
    found: Any
    pasted: list[dict[str, Tensor]]
    detections: list[sv.Detections]

    def __init__(self, model: Any, files: Sequence[Path], device: torch.device, setting: Setting) -> None:
        """Take over a network in evaluation mode, and the files of one batch."""
        self.files, self.device = files, device
        self.reduced = setting != "float32"
        if self.reduced:
            model = model.to(memory_format=torch.channels_last)
        if setting == "compiled":
            _compile_parts(model)
        self.model = model

    def stages(self) -> Stages:
        """See `Pipeline`; resizing and normalising are one stage here."""
        return {
            "read": self.read,
            "preprocess": self.preprocess,
            "network": self.run_network,
            "masks": self.paste,
            "results": self.convert,
        }

    def read(self) -> None:
        """Decode the files."""
        self.images = [read_image(file) for file in self.files]

    @torch.inference_mode()
    def preprocess(self) -> None:
        """torchvision's own transform."""
        self.inputs = self.model.transform([image.to(self.device).float() / 255 for image in self.images])[0]

    @torch.inference_mode()
    def run_network(self) -> None:
        """Backbone, region proposals and the heads, NMS included."""
        with self._precision():
            features = self.model.backbone(self.inputs.tensors)
            proposals = self.model.rpn(self.inputs, features)[0]
            self.found = self.model.roi_heads(features, proposals, self.inputs.image_sizes)[0]

    @torch.inference_mode()
    def paste(self) -> None:
        """Masks pasted into the images, then thresholded."""
        sizes: list[Size] = [size_of(image) for image in self.images]
        self.pasted = self.model.transform.postprocess(self.found, self.inputs.image_sizes, sizes)
        for one in self.pasted:
            one["masks"] = one["masks"][:, 0] > 0.5

    def convert(self) -> None:
        """supervision's detections."""
        self.detections = [
            sv.Detections(
                xyxy=one["boxes"].float().cpu().numpy(),
                confidence=one["scores"].float().cpu().numpy(),
                class_id=one["labels"].cpu().numpy().astype(np.int64),
                mask=one["masks"].cpu().numpy(),
            )
            for one in self.pasted
        ]

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.device.type, torch.bfloat16 if self.reduced else None, enabled=self.reduced
        )


def _compile_parts(model: Any) -> None:
    """Compile what holds the convolutions and the large layers; what decides between boxes has no fixed sizes."""
    heads = model.roi_heads
    for owner, name in (
        (model, "backbone"),
        (model.rpn, "head"),
        (heads, "box_head"),
        (heads, "box_predictor"),
        (heads, "mask_head"),
        (heads, "mask_predictor"),
    ):
        part: nn.Module = getattr(owner, name)
        setattr(owner, name, torch.compile(part))
