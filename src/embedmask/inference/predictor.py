"""From images in any form to finished detections in each image's own frame."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, overload

import torch
from torch import Tensor

from embedmask._supervision import sv
from embedmask.config import DetectorConfig, Engine, ModelConfig, Precision, ScoreThreshold
from embedmask.data.images import size_of
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.inference.device import choose_device, choose_precision
from embedmask.inference.engines import make_network
from embedmask.inference.image_source import IMAGE_SOURCE_TYPES, ImageSource, as_image, check_image_source
from embedmask.inference.loop import choose_workers, detect
from embedmask.inference.prefetch import ImageResult, LoadedImage, make_batches, prefetch
from embedmask.inference.request import Request, config_of_request, passing
from embedmask.inference.results import to_detections
from embedmask.inference.tiling import check_tiles, tiled_instances
from embedmask.model.detector import Detector
from embedmask.structures import Instances, Size
from embedmask.weights.checkpoint import load_checkpoint

BATCH_SIZE = {"cuda": 8}
"""Images a batch by the kind of device; elsewhere 1."""
CPU_BATCH_PIXELS = 2**18
"""A CPU is slower, each image, at batches of more: they leave its cache."""
WINDOW = 4
"""Batches' worth of images held while companions of one frame are looked for ..."""
WINDOW_BYTES = 2**28
"""... unless they take more memory than this."""


class Options(TypedDict, total=False):
    """Keywords of `Predictor.__call__`, explained there."""

    tile: int | None
    overlap: int
    embeddings: bool
    page: int | None
    channels: Sequence[int] | None


class Predictor:
    """A model ready to be shown images.

    Masks are placed exactly at every size (`mask_frame: exact`), whatever the model's config says for evaluation.

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
        engine: Engine = "torch",
    ) -> None:
        """Take over `model`: it is moved to `device` and put into evaluation mode.

        Args:
            engine: what runs the network; later changes of the model's weights need not reach it.

        Raises:
            BadInput: the number of names does not fit the model, or there is no such device, precision or engine.
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
        self.engine = engine
        self.network = make_network(self.model, engine, self.dtype)
        self.batch_size = BATCH_SIZE.get(self.device.type, 1)
        cfg = model.config
        self.resize = EvalTransform(cfg.image_short_side, cfg.image_long_side, cfg.image_rounding)

    def __repr__(self) -> str:
        more = ", ..." if len(self.class_names) > 3 else ""
        names = ", ".join(self.class_names[:3]) + more
        how = ", ".join(f"{name}={value}" for name, value in self._how.items())
        model = f"{type(self.model).__name__} with {self.model.config.backbone}"
        return f"Predictor({model}, {len(self.class_names)} classes: {names}; {how})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model on the CPU; unpickling builds the engine's network anew, on a device of the same name."""
        arguments = (copy.deepcopy(self.model).cpu(), self.class_names)
        return partial(type(self), **self._how), arguments, {"batch_size": self.batch_size}

    @property
    def _how(self) -> dict[str, Any]:
        precision = str(self.dtype).removeprefix("torch.")
        return {"device": str(self.device), "precision": precision, "engine": self.engine}

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        engine: Engine = "torch",
    ) -> Self:
        """The model of a checkpoint file.

        Raises:
            BadInput: not a checkpoint, or there is no such device, precision or engine.
        """
        checkpoint = load_checkpoint(path)
        return cls(
            checkpoint.model, checkpoint.class_names, device=device, precision=precision, engine=engine
        )

    @overload
    def __call__(
        self,
        source: ImageSource,
        score_threshold: ScoreThreshold | None = ...,
        max_detections: int | None = ...,
        **options: Unpack[Options],
    ) -> sv.Detections: ...
    @overload
    def __call__(
        self,
        source: list[ImageSource] | tuple[ImageSource, ...],
        score_threshold: ScoreThreshold | None = ...,
        max_detections: int | None = ...,
        **options: Unpack[Options],
    ) -> list[sv.Detections]: ...
    @overload
    def __call__(
        self,
        source: Iterator[ImageSource],
        score_threshold: ScoreThreshold | None = ...,
        max_detections: int | None = ...,
        **options: Unpack[Options],
    ) -> Iterator[sv.Detections]: ...
    def __call__(
        self,
        source: ImageSource | Iterable[ImageSource],
        score_threshold: ScoreThreshold | None = None,
        max_detections: int | None = None,
        *,
        tile: int | None = None,
        overlap: int = 128,
        embeddings: bool = False,
        page: int | None = None,
        channels: Sequence[int] | None = None,
    ) -> sv.Detections | list[sv.Detections] | Iterator[sv.Detections]:
        """Find the objects in an image, in each of a list, or in each that an iterator gives.

        Images of a list or an iterator are read in the background. An iterator is asked for a bounded number of
        images ahead, the results come as it gives them; for a live camera call with one image at a time.

        Args:
            source: path, bytes of a file, a file opened in binary mode, PIL image, array uint8 or uint16, RGB [H, W, 3]
                (or RGBA, or grey [H, W]), or tensor uint8 RGB [3, H, W].
            score_threshold: results that score less are left out, 0..1; a sequence holds one per class, a mapping one
                by class name. None: the model's `decision_threshold`.
            max_detections: at most so many an image; None: what the model's config says.
            tile: look at squares of so many px, one after the other, and join what is found; for large
                images. Each tile is resized as an image would be. `max_detections` then holds for the whole image,
                None: no limit; each tile gives at least as many as the model's config says. None: no tiles.
            overlap: px that neighbouring tiles share.
            embeddings: also give `data["proposal_embed"]`, float32 [R, D], and `data["proposal_margin"]`, float32
                [R, 1 or D].
            page: page of a TIFF stack or frame of an animation, from 0; None: what the model's config says, else the
                first. Of files and their bytes, not of images that are open already.
            channels: one channel of a file to read as grey, or three as R, G and B, from 0; None: likewise, else the
                colours of an image in colour or the first channel.

        Returns:
            Detections by descending score, boxes and masks in the image's own upright frame.

        Raises:
            BadInput: not an image, which is named, a threshold beyond 0..1, less than one detection, tiles that are
                too small or overlap too much, or embeddings of a model that has none.
        """
        if embeddings and not isinstance(self.model.config, ModelConfig):
            raise BadInput("embeddings: a Mask R-CNN has none; leave them out")
        request = self._request(self._decision(score_threshold), max_detections, tile, overlap)
        request = replace(request, reading=self.model.config.reading().changed(page, channels))
        finish = partial(self._detections, embeddings=embeddings)
        if isinstance(source, IMAGE_SOURCE_TYPES) or not isinstance(source, Iterable):
            image = as_image(source, any_size=request.tile is not None, options=request.reading)
            (item,) = self._solve([self._prepare(image, source, request)], request)
            return finish(item.result)
        if isinstance(source, Iterator):
            return (finish(result) for result in self._stream(source, request))
        images = list(source)
        for index, item in enumerate(images):
            check_image_source(item, _name(index))
        return [finish(result) for result in self._stream(images, request)]

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        score_threshold: ScoreThreshold | None = None,
        max_detections: int | None = None,
        tile: int | None = None,
        overlap: int = 128,
        batch_size: int | None = None,
        skip_broken: bool = False,
        page: int | None = None,
        channels: Sequence[int] | None = None,
    ) -> Iterator[ImageResult]:
        """Finished instances of many images, in their order, read and resized in the background.

        Args:
            images: of any forms; asked for a bounded number ahead, by another thread.
            score_threshold, max_detections, tile, overlap, page, channels: as in `__call__`.
            batch_size: images that the network sees at once; None: what suits the device. Only images that the
                network's frame pads alike share a batch: padding changes what GroupNorm sees.
            skip_broken: an image that cannot be read becomes a result with an `error`; else it is raised in its turn.

        Raises:
            BadInput: as `__call__`, or a batch of less than one image.
        """
        request = self._request(self._decision(score_threshold), max_detections, tile, overlap, batch_size)
        request = replace(request, reading=self.model.config.reading().changed(page, channels))
        return self._stream(images, request, skip_broken=skip_broken)

    def find(
        self,
        images: Sequence[Tensor],
        max_detections: int | None = None,
        score_threshold: ScoreThreshold | None = None,
    ) -> list[Instances]:
        """Everything found in each image, in its own frame; the tensors stay on the device.

        Args:
            images: uint8 RGB [3, H, W], of any sizes; those of one frame share a batch.
            max_detections: at most so many an image; None: what the model's config says.
            score_threshold: as in `__call__`; None: everything above the config's threshold of candidates.

        Raises:
            BadInput: not such an image, a threshold beyond 0..1, or less than one detection.
        """
        for index, image in enumerate(images):
            check_image_source(image, f"images[{index}]")
        thresholds = None if score_threshold is None else self._decision(score_threshold)
        return self._find(images, self._request(thresholds, max_detections))

    def _find(self, images: Sequence[Tensor], request: Request) -> list[Instances]:
        items = (self._prepare(image, image, request) for image in images)
        done = self._in_order(items, request)
        return [item.result.instances for item in done if item.result.instances is not None]

    def _decision(self, score_threshold: ScoreThreshold | None) -> tuple[float, ...]:
        return self.model.config.decision(score_threshold, self.class_names)

    def _request(
        self,
        score_thresholds: tuple[float, ...] | None,
        max_detections: int | None,
        tile: int | None = None,
        overlap: int = 0,
        batch_size: int | None = None,
    ) -> Request:
        if tile is not None:
            check_tiles(tile, overlap)
        if batch_size is not None and batch_size < 1:
            raise BadInput(f"batch_size {batch_size}: use at least 1")
        lowest = None if score_thresholds is None else min(score_thresholds)
        config = config_of_request(self.model.config, lowest, max_detections, parts=tile is not None)
        batch_size = batch_size or self.batch_size
        return Request(config, score_thresholds or (), max_detections, tile, overlap, batch_size)

    def _stream(
        self, images: Iterable[ImageSource], request: Request, *, skip_broken: bool = False
    ) -> Iterator[ImageResult]:
        tiled = request.tile is not None

        def read(numbered: tuple[int, ImageSource]) -> LoadedImage:
            index, source = numbered
            try:
                image = as_image(source, _name(index), any_size=tiled, options=request.reading)
                return self._prepare(image, source, request)
            except BadInput as error:
                return LoadedImage(ImageResult(source, error=error))

        # what is worth tiles may be large: one is read while another is looked at
        workers = 1 if tiled else max(choose_workers(None), 1)
        ahead = 1 if tiled else workers + 1
        items = prefetch(enumerate(images), read, workers=workers, ahead=ahead)
        with closing(items):
            for item in self._in_order(items, request):
                if item.result.error is not None and not skip_broken:
                    raise item.result.error
                yield item.result

    def _prepare(self, image: Tensor, source: ImageSource, request: Request) -> LoadedImage:
        image = image.cpu()
        resized = self.resize.image(image) if request.tile is None else None
        return LoadedImage(ImageResult(source, image), resized)

    def _in_order(self, items: Iterable[LoadedImage], request: Request) -> Iterator[LoadedImage]:
        """The items with their instances; batches are made of those that are near each other."""
        done: dict[int, LoadedImage] = {}
        place = 0
        size = partial(self._batch_size, most=request.batch_size)
        window = WINDOW * request.batch_size
        for batch in make_batches(items, size=size, window=window, room=WINDOW_BYTES):
            done |= zip(batch, self._solve(list(batch.values()), request), strict=True)
            while place in done:
                yield done.pop(place)
                place += 1

    def _batch_size(self, item: LoadedImage, most: int) -> int:
        if item.frame is None:
            return 1
        height, width = item.frame
        return most if self.device.type != "cpu" else max(min(most, CPU_BATCH_PIXELS // (height * width)), 1)

    def _solve(self, items: list[LoadedImage], request: Request) -> list[LoadedImage]:
        """The items of a batch with their instances; none where there is no image."""
        images = [item.result.image for item in items if item.result.image is not None]
        if not images:
            return items
        resized = [item.resized for item in items if item.resized is not None]
        if resized:
            found = self._run(resized, list(map(size_of, images)), request.config)
        else:
            found = [self._tiled(image, request) for image in images]
        for item, instances in zip(items, found, strict=True):
            item.result.instances = passing(instances, request.score_thresholds)
            item.resized = None
        return items

    def _run(
        self, resized: Sequence[Tensor], original_sizes: Sequence[Size], config: DetectorConfig
    ) -> list[Instances]:
        with torch.inference_mode():
            return detect(self.network, config, self.model.preprocess(resized), original_sizes)

    def _tiled(self, image: Tensor, request: Request) -> Instances:
        whole = replace(request, tile=None, score_thresholds=())
        return tiled_instances(
            image,
            lambda tiles: self._find(tiles, whole),
            tile=request.tile or 0,
            overlap=request.overlap,
            max_detections=request.max_detections,
            batch_size=request.batch_size,
        )

    def _detections(self, result: ImageResult, *, embeddings: bool) -> sv.Detections:
        assert result.instances is not None
        detections = to_detections(result.instances, self.class_names)
        if embeddings:
            for name in ("proposal_embed", "proposal_margin"):
                detections.data[name] = getattr(result.instances, name).float().cpu().numpy()
        return detections


def _name(index: int) -> str:
    return f"images[{index}]"
