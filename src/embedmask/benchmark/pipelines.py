"""The two pipelines that are compared: EmbedMask and the baseline, each as separate stages from files to detections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from embedmask._supervision import sv
from embedmask.config import DetectorConfig, model_type_of
from embedmask.data.images import read_image, size_of
from embedmask.data.transforms import EvalTransform
from embedmask.inference.engines import Network
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.proposals import Proposals
from embedmask.inference.results import to_detections
from embedmask.model.detector import Detector
from embedmask.structures import ImageBatch, Instances, Predictions, Size

Stages = dict[str, Callable[[], None]]
Setting = Literal["float32", "bfloat16", "compiled"]
SETTINGS: tuple[Setting, ...] = ("float32", "bfloat16", "compiled")
"""Settings of the baseline: torchvision's default; bfloat16 autocast with channels_last; the same, compiled."""


class Pipeline(ABC):
    """Pipeline from image files to detections.

    Attributes:
        files: image files of one batch.
        detections: detections of the last run, per image; masks are in the frame of the original image.
    """

    files: Sequence[Path]
    images: list[Tensor]
    detections: list[sv.Detections]

    @abstractmethod
    def stages(self) -> Stages:
        """Return the stages by name. Called in this order they are one run; each stores its result for the next."""

    def read(self) -> None:
        """Decode the image files."""
        self.images = [read_image(file) for file in self.files]


class EmbedMaskPipeline(Pipeline):
    """Pipeline of EmbedMask, or of an exported one, with the steps of `Predictor`. Masks stay cropped."""

    resized: list[Tensor]
    batch: ImageBatch
    predictions: Predictions
    proposals: list[Proposals]
    instances: list[Instances]

    def __init__(
        self, model: Detector, network: Network, config: DetectorConfig, files: Sequence[Path]
    ) -> None:
        """Store the model, which preprocesses, and its `network`; resizing and post-processing follow `config`."""
        self.model, self.network, self.files = model, network, files
        self.transform = EvalTransform.from_config(config)
        make = model_type_of(config).load("postprocessor").from_config
        self.postprocessor: Postprocessor = make(config, reference_masks=False)
        self.class_names = [str(label) for label in range(config.num_classes)]

    def stages(self) -> Stages:
        """Return the stages by name; see `Pipeline`."""
        return {
            "read": self.read,
            "resize": self.resize,
            "preprocess": self.preprocess,
            "network": self.run_network,
            "proposals": self.propose,
            "masks": self.decode_masks,
            "results": self.convert,
        }

    def resize(self) -> None:
        """Resize the images for the network."""
        self.resized = [self.transform.image(image) for image in self.images]

    def preprocess(self) -> None:
        """Normalize the images and pad them to one batch."""
        self.batch = self.model.preprocess(self.resized)

    def run_network(self) -> None:
        """Run the network."""
        self.predictions = self.network(self.batch)

    @torch.inference_mode()
    def propose(self) -> None:
        """Decode the boxes and apply NMS."""
        sizes = enumerate(self.batch.sizes)
        self.proposals = [self.postprocessor.propose(self.predictions, *one) for one in sizes]

    @torch.inference_mode()
    def decode_masks(self) -> None:
        """Decode the masks in the frames of the original images."""
        self.instances = [
            self.postprocessor.decode_instances(
                self.predictions, index, proposals, self.batch.sizes[index], size_of(self.images[index])
            )
            for index, proposals in enumerate(self.proposals)
        ]

    def convert(self) -> None:
        """Convert the instances to supervision's detections."""
        self.detections = [to_detections(instances, self.class_names) for instances in self.instances]


class TorchvisionPipeline(Pipeline):
    """Pipeline of torchvision's Mask R-CNN with the steps of `model([image])`. Masks are dense, as it returns them."""

    inputs: Any
    outputs: Any
    pasted: list[dict[str, Tensor]]

    def __init__(self, model: Any, files: Sequence[Path], device: torch.device, setting: Setting) -> None:
        """Change a model in evaluation mode on `device`, in place, according to the setting."""
        self.files, self.device = files, device
        self.reduced = setting != "float32"
        if self.reduced:
            model = model.to(memory_format=torch.channels_last)
        if setting == "compiled":
            compile_parts(model)
        self.model = model

    def stages(self) -> Stages:
        """Return the stages by name; see `Pipeline`. Resizing is part of "preprocess"."""
        return {
            "read": self.read,
            "preprocess": self.preprocess,
            "network": self.run_network,
            "masks": self.paste,
            "results": self.convert,
        }

    @torch.inference_mode()
    def preprocess(self) -> None:
        """Run torchvision's own transform: normalize, resize and pad."""
        self.inputs = self.model.transform([image.to(self.device).float() / 255 for image in self.images])[0]

    @torch.inference_mode()
    def run_network(self) -> None:
        """Run backbone, region proposals and heads, including NMS."""
        dtype = torch.bfloat16 if self.reduced else None
        with torch.autocast(self.device.type, dtype, enabled=self.reduced):
            features = self.model.backbone(self.inputs.tensors)
            proposals = self.model.rpn(self.inputs, features)[0]
            self.outputs = self.model.roi_heads(features, proposals, self.inputs.image_sizes)[0]

    @torch.inference_mode()
    def paste(self) -> None:
        """Paste the masks into the original images and threshold them."""
        sizes: list[Size] = [size_of(image) for image in self.images]
        self.pasted = self.model.transform.postprocess(self.outputs, self.inputs.image_sizes, sizes)
        for one in self.pasted:
            # float [R, 1, H, W] -> bool [R, H, W]
            one["masks"] = one["masks"][:, 0] > 0.5

    def convert(self) -> None:
        """Convert the outputs to supervision's detections."""
        self.detections = [
            sv.Detections(
                xyxy=one["boxes"].float().cpu().numpy(),
                confidence=one["scores"].float().cpu().numpy(),
                class_id=one["labels"].cpu().numpy().astype(np.int64),
                mask=one["masks"].cpu().numpy(),
            )
            for one in self.pasted
        ]


def compile_parts(model: Any) -> None:
    """Compile the parts of Mask R-CNN with convolutions and large layers, in place.

    The selection of boxes between them has no fixed shapes and is not compiled.
    """
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
