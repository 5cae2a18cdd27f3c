"""`Model`: from images to results, with the rules of `embedmask.Predictor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .graph_file import BadFile, read_metadata, settings_of
from .images import read_image, resize
from .masks import decode_masks, rescored, to_dense, to_rle
from .session import Session

Array = NDArray[Any]
Source = str | Path | Image.Image | NDArray[np.uint8]
Threshold = float | Sequence[float] | Mapping[str, float]


@dataclass
class Result:
    """The detections of one image by descending score, in its own frame.

    Attributes:
        boxes: float32 `[R, 4]` xyxy px.
        scores: float32 `[R]`.
        labels: int64 `[R]`, 0..C-1.
        runs: of each mask int64 `[T, 2]`: first pixel of each run and the one after its last, column by column.
        size: `(height, width)` of the image.
        class_names: name of each label.
    """

    boxes: Array
    scores: Array
    labels: Array
    runs: list[Array]
    size: tuple[int, int]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: Sequence[int] | Array) -> Result:
        """Return the detections at `index`, in that order."""
        rows = np.asarray(index, np.int64)
        return Result(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            [self.runs[row] for row in rows.tolist()],
            self.size,
            self.class_names,
        )

    def masks(self) -> NDArray[np.bool_]:
        """Return all masks, bool `[R, H, W]`. Memory grows with objects x image."""
        dense = np.zeros((len(self), *self.size), bool)
        for mask, runs in zip(dense, self.runs, strict=True):
            mask[:] = to_dense(runs, self.size)
        return dense

    def label_image(self) -> NDArray[np.uint16]:
        """Return uint16 `[H, W]`: 0 background, k the k-th detection; where masks overlap, the first keeps the pixels.

        Raises:
            BadFile: more detections than numbers of 16 bits.
        """
        if len(self) >= 2**16:
            raise BadFile(f"{len(self)} objects, but a label image holds at most 65535; lower max_detections")
        image = np.zeros(self.size, np.uint16)
        for number, runs in enumerate(self.runs, start=1):
            image[to_dense(runs, self.size) & (image == 0)] = number
        return image

    def coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO results: `image_id`, `category_id` (label + 1), `bbox` (xywh px), `score`, `segmentation`."""
        boxes = self.boxes.astype(np.float64)
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        rows = zip(self.labels.tolist(), xywh.tolist(), self.scores.tolist(), self.runs, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": box,
                "score": score,
                "segmentation": to_rle(runs, self.size),
            }
            for label, box, score, runs in rows
        ]


class Model:
    """An exported file, ready to predict.

    Example:
        >>> result = Model("model.onnx")("photo.jpg", score_threshold=0.3)
    """

    def __init__(self, path: str | Path, *, engine: str | None = None, threads: int | None = None) -> None:
        """Load a file; arguments and errors as in `Session`, and `BadFile` for files without our metadata."""
        self.metadata = read_metadata(path)
        self.settings = settings_of(self.metadata, path)
        self.session = Session(path, engine=engine, threads=threads)

    @property
    def class_names(self) -> list[str]:
        """Return the name of each label."""
        return self.settings.class_names

    def __call__(
        self,
        image: Source,
        score_threshold: Threshold | None = None,
        max_detections: int | None = None,
    ) -> Result:
        """Detect the objects in an image.

        Args:
            image: a file, a Pillow image, or an array uint8 RGB `[H, W, 3]`.
            score_threshold: minimum score: one number, one per class, or by class name; None: the model's.
            max_detections: maximum number of results; None: the model's.

        Raises:
            BadFile: no image, or a threshold or number that the graph does not serve.
        """
        thresholds, limit = self.check(score_threshold, max_detections)
        pixels = read_image(image, self.settings)
        resized = resize(pixels, self.settings)
        outputs = self.session.run(resized.transpose(2, 0, 1)[None])
        result = self._decode(
            {name: value[0] for name, value in outputs.items()}, resized.shape, pixels.shape
        )
        result = result.select(range(min(limit, len(result))))
        return result.select(np.flatnonzero(result.scores >= thresholds[result.labels]))

    def check(
        self, score_threshold: Threshold | None = None, max_detections: int | None = None
    ) -> tuple[Array, int]:
        """Return the threshold of each class, float32 `[C]`, and the number of results; see `__call__`."""
        limit = self.settings.max_detections if max_detections is None else max_detections
        if not 1 <= limit <= self.settings.max_detections:
            raise BadFile(f"max_detections {limit}: this file serves 1 to {self.settings.max_detections}")
        return self._thresholds(score_threshold), limit

    def _thresholds(self, requested: Threshold | None) -> Array:
        own, names = self.settings.score_thresholds, self.class_names
        if isinstance(requested, Mapping):
            unknown = [name for name in requested if name not in names]
            if unknown:
                raise BadFile(f"score_threshold: the model has no class {unknown[0]!r}")
            requested = [requested.get(name, value) for name, value in zip(names, own, strict=True)]
        values = np.broadcast_to(np.asarray(own if requested is None else requested, np.float64), len(own))
        least = self.settings.least_score
        if (values < least * (1 - 1e-5)).any() or (values > 1).any():
            raise BadFile(f"score_threshold {float(values.min()):g}: this file serves {least:.3g} to 1")
        return values.astype(np.float32)

    def _decode(self, outputs: dict[str, Array], network: Sequence[int], original: Sequence[int]) -> Result:
        """Decode the outputs for one image, in its frame."""
        image_size, size = (network[0], network[1]), (original[0], original[1])
        found = np.flatnonzero(outputs["labels"] >= 0)
        boxes, scores, labels, q, s = (
            outputs[name][found] for name in ("boxes", "scores", "labels", "q", "s")
        )
        runs = decode_masks(
            outputs["p"], boxes, q, s, self.settings, image_size=image_size, original_size=size
        )
        scale = np.array([size[1] / image_size[1], size[0] / image_size[0]] * 2, np.float32)
        limits = np.array([size[1], size[0]] * 2, np.float32)
        result = Result((boxes * scale).clip(0, limits), scores, labels, runs, size, self.class_names)
        if not self.settings.rescore:
            return result
        result.scores = rescored(result.boxes, scores, labels, runs, size)
        return result.select(np.argsort(-result.scores, kind="stable"))


def predict_files(
    model: Model, paths: Sequence[str | Path], **options: Any
) -> Iterator[tuple[Path, Result | BadFile]]:
    """Yield the result of each file, or the error of one that cannot be read; `options` as in `Model`.

    Raises:
        BadFile: an option that the file does not serve.
    """
    model.check(**options)
    for path in paths:
        try:
            yield Path(path), model(path, **options)
        except BadFile as error:
            yield Path(path), error
