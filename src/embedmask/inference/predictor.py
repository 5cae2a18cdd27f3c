"""From a picture in any form to finished detections in the picture's own frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from embedmask._supervision import sv
from embedmask.config import Precision, override
from embedmask.data.images import read_image
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.inference.device import choose_device, choose_precision
from embedmask.inference.loop import predict_dataset
from embedmask.inference.results import to_detections
from embedmask.model.detector import Detector
from embedmask.structures import Instances
from embedmask.weights.checkpoint import load_checkpoint

PICTURE_TYPES = (str, Path, bytes, Image.Image, np.ndarray, Tensor)
Picture = str | Path | bytes | Image.Image | npt.NDArray[Any] | Tensor


class Predictor:
    """A model ready to be shown pictures.

    Example:
        >>> predictor = Predictor.load("model.safetensors")
        >>> detections = predictor("photo.jpg", score_threshold=0.3)
    """

    def __init__(
        self,
        model: Detector,
        class_names: list[str],
        *,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
    ) -> None:
        """Take over `model`: it is moved to `device` and put into evaluation mode.

        Raises:
            BadInput: the number of names does not fit the model, or there is no such device or precision.
        """
        count = model.config.num_classes
        if len(class_names) != count:
            raise BadInput(
                f"{len(class_names)} class names for a model of {count} classes; give one name a class"
            )
        self.class_names = list(class_names)
        self.device = choose_device(device)
        self.dtype = choose_precision(self.device, precision)
        self.model = model.to(self.device).eval()

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "auto", precision: Precision = "auto"
    ) -> Self:
        """The model of a checkpoint file.

        Raises:
            BadInput: not a checkpoint, or there is no such device or precision.
        """
        checkpoint = load_checkpoint(path)
        return cls(checkpoint.model, checkpoint.class_names, device=device, precision=precision)

    @overload
    def __call__(
        self, source: Picture, score_threshold: float = ..., max_detections: int | None = ...
    ) -> sv.Detections: ...
    @overload
    def __call__(
        self,
        source: list[Picture] | tuple[Picture, ...],
        score_threshold: float = ...,
        max_detections: int | None = ...,
    ) -> list[sv.Detections]: ...
    @overload
    def __call__(
        self, source: Iterator[Picture], score_threshold: float = ..., max_detections: int | None = ...
    ) -> Iterator[sv.Detections]: ...
    def __call__(
        self,
        source: Picture | Iterable[Picture],
        score_threshold: float = 0.3,
        max_detections: int | None = None,
    ) -> sv.Detections | list[sv.Detections] | Iterator[sv.Detections]:
        """Find the objects in a picture, in each of a list, or in each that an iterator gives (lazily).

        Args:
            source: path, bytes of a file, PIL image, array uint8 RGB [H, W, 3] (or RGBA, or grey [H, W]) or
                tensor uint8 RGB [3, H, W].
            score_threshold: what scores below is left out, 0..1.
            max_detections: at most so many a picture; None: what the model's config says.

        Returns:
            Detections by descending score, boxes and masks in the picture's own upright frame.

        Raises:
            BadInput: not a picture, which is named, a threshold beyond 0..1, or less than one detection.
        """
        if isinstance(source, PICTURE_TYPES):
            found = self.instances(as_image(source), max_detections, score_threshold)
            return to_detections(found, self.class_names, score_threshold)
        results = (self(picture, score_threshold, max_detections) for picture in _pictures(source))
        return results if isinstance(source, Iterator) else list(results)

    def instances(
        self, image: Tensor, max_detections: int | None = None, score_threshold: float | None = None
    ) -> Instances:
        """Everything found in one picture, in its own frame; the tensors stay on the device.

        Args:
            image: uint8 RGB [3, H, W].
            max_detections: at most so many; None: what the model's config says.
            score_threshold: class scores that do not pass it are no candidates; None: what the config says.

        Raises:
            BadInput: a threshold beyond 0..1, or less than one detection.
        """
        # no result is lost to the threshold: a score is at most its class score, and suppresses no higher one
        given = {"max_detections": max_detections, "score_threshold": score_threshold}
        cfg = override(
            self.model.config, {k: v for k, v in given.items() if v is not None}, where="predictor"
        )
        resize = EvalTransform(cfg.image_short_side, cfg.image_long_side, cfg.image_rounding)
        original_size = (int(image.shape[1]), int(image.shape[2]))
        batch = ([resize.image(image.cpu())], [0], [original_size])
        ((_, found),) = predict_dataset(self.model, cfg, [batch], dtype=self.dtype)
        return found


def as_image(source: Picture) -> Tensor:
    """Any form of a picture as uint8 RGB [3, H, W].

    Raises:
        BadInput: unreadable, or an array or tensor of another shape or type.
    """
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    return read_image(source)


def _from_tensor(source: Tensor) -> Tensor:
    if source.dtype != torch.uint8 or source.ndim != 3 or source.shape[0] != 3 or not source.numel():
        raise BadInput(
            f"picture: a tensor must be uint8 RGB [3, H, W], got {source.dtype} {tuple(source.shape)}; "
            "convert it, pixels 0..255"
        )
    return source


def _from_array(source: npt.NDArray[Any]) -> Tensor:
    grey = source.ndim == 2 or source.shape[2:] == (1,)
    if source.dtype == np.uint16 and grey and source.size:
        return read_image(Image.fromarray(source.reshape(source.shape[:2])))
    color = source.ndim == 3 and source.shape[2] in (3, 4)
    if source.dtype != np.uint8 or not (grey or color) or not source.size:
        raise BadInput(
            f"picture: an array must be uint8 RGB [H, W, 3] or grey [H, W], "
            f"got {source.dtype} {source.shape}; convert it, pixels 0..255"
        )
    pixels = source.reshape(*source.shape[:2], -1)[..., :3]
    # a copy: the caller's array may be read-only, or run backwards
    rgb = np.array(np.broadcast_to(pixels, (*source.shape[:2], 3)), order="C")
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _pictures(source: Iterable[Picture]) -> Iterator[Picture]:
    for picture in source if isinstance(source, Iterable) else [source]:
        if not isinstance(picture, PICTURE_TYPES):
            raise BadInput(
                f"picture: expected a path, bytes, image, array or tensor, got {type(picture).__name__}"
            )
        yield picture
