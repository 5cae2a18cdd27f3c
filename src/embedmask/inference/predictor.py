"""Prediction from images in any form to detections in the frame of each image."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack, overload

import torch
from torch import Tensor

from embedmask._supervision import sv
from embedmask.config import Engine, Precision, ScoreThreshold, model_type_of
from embedmask.data.images import size_of
from embedmask.data.slides import Slide
from embedmask.data.transforms import EvalTransform
from embedmask.device import choose_device, choose_workers
from embedmask.errors import BadInput
from embedmask.inference.detect import PostProcessing, detect
from embedmask.inference.engines import choose_dtype, make_network
from embedmask.inference.image_source import SINGLE_TYPES, ImageSource, check_image_source, open_image
from embedmask.inference.prefetch import ImageResult, LoadedImage, make_batches, prefetch
from embedmask.inference.request import Options, PixelRecorder, Request, postprocessor_of_request
from embedmask.inference.results import add_embeddings, to_detections
from embedmask.inference.shared import Shared
from embedmask.inference.tiling import check_tiles, tiled_instances
from embedmask.model.detector import Detector
from embedmask.structures import Instances, Size
from embedmask.weights.checkpoint import load_checkpoint

BATCH_SIZE = {"cuda": 8}
"""Images per batch by type of device; 1 for all others."""
CPU_BATCH_PIXELS = 2**18
"""Maximum pixels of a batch on a CPU; larger batches leave its cache and take longer per image."""
WINDOW = 4
"""Maximum batches of images to buffer while collecting images of one frame."""
WINDOW_BYTES = 2**28
"""Maximum total size of the buffered images, bytes."""


class Predictor(Shared):
    """A model with its device, precision and engine, ready to predict; masks are always placed exactly.

    Examples:
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
        """Move `model` to `device` and put it into evaluation mode.

        Args:
            model: the model itself is changed, not a copy.
            class_names: name of each class.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            precision: number format of the convolutions.
            engine: runtime of the network; it may not notice later changes of the model's weights.

        Raises:
            BadInput: the number of names differs from the number of classes, or the device, precision or engine does
                not exist.
        """
        count = model.config.num_classes
        if len(class_names) != count:
            raise BadInput(
                f"{len(class_names)} class names for a model of {count} classes; pass one name per class"
            )
        self.class_names = list(class_names)
        self.device = choose_device(device)
        self.dtype = choose_dtype(model, self.device, precision)
        self.model = model.to(self.device).eval()
        self.engine = engine
        self.network = make_network(self.model, engine, self.dtype)
        self.batch_size = BATCH_SIZE.get(self.device.type, 1)
        self.resize = EvalTransform.from_config(model.config)

    def __repr__(self) -> str:
        more = ", ..." if len(self.class_names) > 3 else ""
        names = ", ".join(self.class_names[:3]) + more
        settings = ", ".join(f"{name}={value}" for name, value in self._settings.items())
        model = f"{type(self.model).__name__} with {self.model.config.backbone}"
        return f"Predictor({model}, {len(self.class_names)} classes: {names}; {settings})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model on the CPU; unpickling rebuilds the engine's network, on a device of the same name."""
        arguments = (copy.deepcopy(self.model).cpu(), self.class_names)
        return partial(type(self), **self._settings), arguments, {"batch_size": self.batch_size}

    @property
    def _settings(self) -> dict[str, Any]:
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
        """Load a model.

        Args:
            path: model file, folder with a `model.safetensors`, bundled model (`nuclei`), model on the Hugging Face Hub
                (`user/model`), or file of `embedmask export`, which computes on the CPU in the number formats of its
                graph, and with `engine` torch chooses its own engine.
            device, precision, engine: as in `__init__`.

        Raises:
            BadInput: not such a file, or the device, precision or engine does not exist.
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
        level: int = 0,
    ) -> sv.Detections | list[sv.Detections] | Iterator[sv.Detections]:
        """Detect the objects in an image, in each image of a list, or in each image of an iterator.

        The images of a list or an iterator are read in the background. A limited number of images is taken from an
        iterator in advance, and results are yielded in its order; for a live camera, pass one image at a time.

        Args:
            source: path, bytes of a file, a file opened in binary mode, PIL image, array uint8 or uint16, RGB [H, W, 3]
                (or RGBA, or gray [H, W]), or tensor uint8 RGB [3, H, W].
            score_threshold: minimum score, 0..1; a sequence has one per class, a mapping one by class name. None: the
                model's `default_score_threshold`.
            max_detections: maximum number of detections per image; None: as in the model's config.
            tile: side of the tiles, px, in which a large image is processed before the results are merged. Each tile is
                resized like an image. `max_detections` then applies to the whole image (None: no limit), and each tile
                returns at least as many detections as the model's config allows. None: no tiles.
                Pyramids and OME-Zarr are then read by windows.
            overlap: overlap of neighboring tiles, px.
            embeddings: add `data["proposal_embed"]`, float32 [R, D], and `data["proposal_margin"]`, float32
                [R, 1 or D]; and, without tiles, `metadata["pixel_embed"]`, float32 [D, h, w] of the padded frame, with
                `metadata["pixel_stride"]`, px per cell, and `metadata["network_size"]`, the image's (height, width)
                in that frame. `embedmask.inference.explain` draws on them.
            page: page of a TIFF stack or frame of an animation, from 0; None: as in the model's config, else the first.
                It applies to files and their bytes, not to open images.
            channels: one channel of a file to read as gray, or three as R, G and B, from 0; None: as in the model's
                config, else the colors of a color image or the first channel.
            level: level of a pyramid, from 0, the full resolution; boxes and masks are in the frame of the level.

        Returns:
            Detections by descending score, with boxes and masks in the upright frame of the original image.

        Raises:
            BadInput: not an image (the message names it), a threshold outside 0..1, `max_detections` below 1, tiles
                that are too small or overlap too much, or embeddings of a model without any.
        """
        thresholds = self._score_thresholds(score_threshold)
        request = self._request(thresholds, max_detections, tile, overlap, embeddings=embeddings)
        request = replace(request, reading=self.model.config.reading().changed(page, channels, level))

        def as_detections(result: ImageResult) -> sv.Detections:
            assert result.instances is not None
            detections = to_detections(result.instances, self.class_names)
            if embeddings:
                add_embeddings(detections, result.instances, result.pixels)
            return detections

        if isinstance(source, SINGLE_TYPES) or not isinstance(source, Iterable):
            image = open_image(source, "image", tiled=request.tile is not None, options=request.reading)
            (item,) = self._solve([self._prepare(image, source, request)], request)
            return as_detections(item.result)
        if isinstance(source, Iterator):
            return (as_detections(result) for result in self._stream(source, request))
        images = list(source)
        for index, item in enumerate(images):
            check_image_source(item, f"images[{index}]")
        return [as_detections(result) for result in self._stream(images, request)]

    def predict_stream(
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
        level: int = 0,
        embeddings: bool = False,
    ) -> Iterator[ImageResult]:
        """Yield the instances of many images in order; images are read and resized in the background.

        Args:
            images: in any form; another thread takes a limited number in advance.
            score_threshold, max_detections, tile, overlap, page, channels, level: as in `__call__`.
            batch_size: images per batch; None: the default of the device. Only images that are padded to the same frame
                share a batch, because padding changes the statistics of GroupNorm.
            skip_broken: whether an unreadable image becomes a result with an `error` instead of raising it.
            embeddings: also return the pixel embedding of each image, without tiles.

        Raises:
            BadInput: as `__call__`, or a batch size below 1.
        """
        thresholds = self._score_thresholds(score_threshold)
        request = self._request(thresholds, max_detections, tile, overlap, batch_size, embeddings=embeddings)
        request = replace(request, reading=self.model.config.reading().changed(page, channels, level))
        return self._stream(images, request, skip_broken=skip_broken)

    def predict_instances(
        self,
        images: Sequence[Tensor],
        max_detections: int | None = None,
        score_threshold: ScoreThreshold | None = None,
    ) -> list[Instances]:
        """Return the instances of each image, in its original frame, with tensors on the device.

        Args:
            images: uint8 RGB [3, H, W], of any sizes; images of one frame share a batch.
            max_detections: maximum number of instances per image; None: as in the model's config.
            score_threshold: as in `__call__`; None: the candidate threshold of the model's config.

        Raises:
            BadInput: not such an image, a threshold outside 0..1, or `max_detections` below 1.
        """
        for index, image in enumerate(images):
            check_image_source(image, f"images[{index}]", tensor=True)
        thresholds = () if score_threshold is None else self._score_thresholds(score_threshold)
        return self._predict_instances(images, self._request(thresholds, max_detections))

    def _predict_instances(self, images: Sequence[Tensor], request: Request) -> list[Instances]:
        items = (self._prepare(image, image, request) for image in images)
        solved = self._in_order(items, request)
        return [item.result.instances for item in solved if item.result.instances is not None]

    def _score_thresholds(self, score_threshold: ScoreThreshold | None) -> tuple[float, ...]:
        return self.model.config.score_thresholds(score_threshold, self.class_names)

    def _request(
        self,
        score_thresholds: tuple[float, ...],
        max_detections: int | None,
        tile: int | None = None,
        overlap: int = 0,
        batch_size: int | None = None,
        *,
        embeddings: bool = False,
    ) -> Request:
        config = self.model.config
        if embeddings and not config.has_embeddings:
            raise BadInput(f"embeddings: {model_type_of(config).title} has none; pass embeddings=False")
        if tile is not None:
            check_tiles(tile, overlap)
        if batch_size is not None and batch_size < 1:
            raise BadInput(f"batch_size {batch_size}: use at least 1")
        postprocess = postprocessor_of_request(
            config, score_thresholds, max_detections, parts=tile is not None
        )
        sizes = max_detections, tile, overlap, batch_size or self.batch_size
        return Request(postprocess, score_thresholds, *sizes, embeddings=embeddings)

    def _stream(
        self, images: Iterable[ImageSource], request: Request, *, skip_broken: bool = False
    ) -> Iterator[ImageResult]:
        tiled = request.tile is not None

        def read(numbered: tuple[int, ImageSource]) -> LoadedImage:
            index, source = numbered
            try:
                image = open_image(source, f"images[{index}]", tiled=tiled, options=request.reading)
                return self._prepare(image, source, request)
            except BadInput as error:
                return LoadedImage(ImageResult(source, error=error))

        # images that need tiles may be large: read only one while another is processed
        workers = 1 if tiled else max(choose_workers(None), 1)
        ahead = 1 if tiled else workers + 1
        items = prefetch(enumerate(images), read, workers=workers, ahead=ahead)
        with closing(items):
            for item in self._in_order(items, request):
                if item.result.error is not None and not skip_broken:
                    raise item.result.error
                yield item.result

    def _prepare(self, image: Tensor | Slide, source: ImageSource, request: Request) -> LoadedImage:
        if isinstance(image, Slide):
            return LoadedImage(ImageResult(source, image))
        image = image.cpu()
        resized = self.resize.image(image) if request.tile is None else None
        return LoadedImage(ImageResult(source, image), resized)

    def _in_order(self, items: Iterable[LoadedImage], request: Request) -> Iterator[LoadedImage]:
        """Yield the items with their instances; each batch holds items of one frame that are close in order."""

        def batch_size(item: LoadedImage) -> int:
            if item.frame is None:  # goes through the network in tiles
                return 1
            if self.device.type != "cpu":
                return request.batch_size
            height, width = item.frame
            return max(min(request.batch_size, CPU_BATCH_PIXELS // (height * width)), 1)

        solved, place = dict[int, LoadedImage](), 0
        window = WINDOW * request.batch_size
        for batch in make_batches(items, batch_size=batch_size, max_items=window, max_bytes=WINDOW_BYTES):
            solved |= zip(batch, self._solve(list(batch.values()), request), strict=True)
            # a batch may finish items out of order: hold them back until all earlier ones are out
            while place in solved:
                yield solved.pop(place)
                place += 1

    def _solve(self, items: list[LoadedImage], request: Request) -> list[LoadedImage]:
        """Add instances to the items of a batch, except to those without an image."""
        images = [item.result.image for item in items if item.result.image is not None]
        if not images:
            return items
        resized = [item.resized for item in items if item.resized is not None]
        recorder = PixelRecorder(request.postprocess)
        if resized:
            postprocess = recorder if request.embeddings else request.postprocess
            results = self._run(resized, list(map(size_of, images)), postprocess)
        else:
            whole = replace(request, tile=None)
            results = [
                tiled_instances(
                    image,
                    lambda tiles: self._predict_instances(tiles, whole),
                    tile=request.tile or 0,
                    overlap=request.overlap,
                    score_thresholds=request.score_thresholds,
                    max_detections=request.max_detections,
                    batch_size=request.batch_size,
                )
                for image in images
            ]
        for item, pixels in zip(items, recorder.maps, strict=False):
            item.result.pixels = pixels
        for item, instances in zip(items, results, strict=True):
            item.result.instances = instances
            item.resized = None
        return items

    def _run(
        self, resized: Sequence[Tensor], original_sizes: Sequence[Size], postprocess: PostProcessing
    ) -> list[Instances]:
        return detect(self.network, postprocess, self.model.preprocess(resized), original_sizes)
