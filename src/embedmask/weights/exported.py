"""Files of `embedmask export` as checkpoints: their config, and a model that keeps the path of its graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedmask.config import from_dict
from embedmask.config.exported import ExportedConfig
from embedmask.errors import BadInput
from embedmask.model.detector import Detector, padded_size_of
from embedmask.runtime_file import read_metadata, settings_of
from embedmask.runtime_masks import BadFile, Settings
from embedmask.structures import ImageBatch, Size

SUFFIXES = (".onnx", ".xml")


class ExportedModel(Detector):
    """The model of an exported file; `make_network` loads its graph, which contains the preprocessing.

    Attributes:
        path: of the file.
        settings: of its decoder.
    """

    config: ExportedConfig
    float32_only = True

    def __init__(self, config: ExportedConfig, path: Path, settings: Settings) -> None:
        nn.Module.__init__(self)  # there is no backbone to build
        self.config, self.path, self.settings = config, path, settings
        self.register_buffer("mean", torch.zeros(0), persistent=False)  # the device

    def preprocess(self, images: Sequence[Tensor], min_size: Size = (0, 0)) -> ImageBatch:
        """Return the images as they are, in one frame: the graph normalizes and pads them.

        Returns:
            uint8 `[N, 3, Hp, Wp]` on the model's device, and the sizes before padding.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        tensors = torch.zeros(len(images), 3, *padded_size_of([*sizes, min_size]), dtype=torch.uint8)
        for slot, image, (height, width) in zip(tensors, images, sizes, strict=True):
            slot[:, :height, :width] = image
        return ImageBatch(tensors.to(self.mean.device), sizes)


def is_exported(path: str | Path) -> bool:
    """Return whether a file has the name of an exported one."""
    return Path(path).suffix in SUFFIXES


def read_exported(path: Path) -> tuple[ExportedConfig, Settings]:
    """Return the config and the decoder's settings of an exported file.

    Raises:
        BadInput: the file is missing, cut off, of another kind or of a newer version.
    """
    with as_bad_input():
        metadata = read_metadata(path)
        settings = settings_of(metadata, path)
    limits = {
        "least_candidate_threshold": settings.candidate_threshold,
        "most_detections": settings.max_detections,
        "max_detections": settings.max_detections,
    }
    values: dict[str, Any] = {**metadata.get("config", {}), **limits}
    return from_dict(ExportedConfig, values, where=f"{path}: config"), settings


@contextmanager
def as_bad_input() -> Iterator[None]:
    """Convert the errors of `embedmask.runtime`, which does not import the package, to `BadInput`."""
    try:
        yield
    except BadFile as error:
        raise BadInput(str(error)) from None
