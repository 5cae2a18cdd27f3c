"""State of the page for one image: the output of the network, and everything that is recomputed from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from embedmask.config import ModelConfig
from embedmask.data.images import read_image, read_size, size_of
from embedmask.errors import BadInput
from embedmask.figures import OUTLINE, color_ramp, instance_tile, outline, paint_instances
from embedmask.files import write_json
from embedmask.inference.detect import make_postprocessor
from embedmask.inference.explain import Explanation, Projection
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.predictor import Predictor
from embedmask.inference.proposals import Proposals
from embedmask.inference.request import postprocessor_of_request
from embedmask.inference.results import add_embeddings, coco_results, to_detections
from embedmask.inference.tiling import MIN_TILE, tile_windows, tiled_instances
from embedmask.masks import RunMasks
from embedmask.predict.writers import ENDINGS, FOLDERS, ImageOutput, write_annotations
from embedmask.structures import Instances, PixelMap, Predictions, Size
from embedmask.visualize import Pixels, draw_detections

MAX_PIXELS = 2**25
"""Maximum number of pixels of an image, whose maps stay in memory."""
OVERLAP = 128
"""Overlap of neighboring tiles, px."""
CROSS = (255, 0, 0)

Format = Literal["coco", "labels", "polygons", "geojson"]
Row = list[str | int | float]
Output = tuple[Any, Sequence[Size], Sequence[Size]]
"""Output of the network for one tile, size of the tile in the network's frame, and its size: one image each."""


@dataclass(frozen=True)
class Settings:
    """Settings of the post-processing; see `Predictor.__call__` and `DetectorConfig.mask_threshold`."""

    score_threshold: float
    mask_threshold: float
    max_detections: int | None = None

    @classmethod
    def of(cls, predictor: Predictor) -> Self:
        """Return the settings of a model; of several score thresholds, the lowest."""
        config = predictor.model.config
        return cls(min(config.score_thresholds()), config.mask_threshold)


@dataclass
class Session:
    """An image with the output of the network and the objects decoded from it.

    Attributes:
        predictor: the model.
        path: image file.
        image: uint8 RGB `[3, H, W]`.
        tile: side of the tiles, px.
        outputs: output of the network for each tile, row by row.
        notes: lines about the file, such as pages that are not read.
        instances, drawn, explanation: objects, by descending score, their drawing, and their embeddings, which are
            None if they cannot be shown; `update` sets them.
        pixel: chosen pixel x, y of the image.
        margin_factor: factor of the chosen object's margin, in terms of the distance at which phi = 0.5.
    """

    predictor: Predictor
    path: Path
    image: Any
    tile: int
    outputs: list[Output]
    notes: list[str] = field(default_factory=list)
    pixel: tuple[int, int] | None = None
    margin_factor: float = 1.0

    @classmethod
    def open(
        cls,
        predictor: Predictor,
        path: Path,
        tile: int = 0,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Self:
        """Read an image and run the network on it, once.

        Args:
            path: image file.
            tile: side of tiles, px, for larger images; 0: no tiles.
            report: receives the number of finished tiles and of all tiles.

        Raises:
            BadInput: not an image, or more than `MAX_PIXELS`; the message contains the name of the file.
        """
        reading, notes = predictor.model.config.reading(), list[str]()
        try:
            height, width = read_size(path, reading)
            if height * width > MAX_PIXELS:
                raise BadInput(
                    f"{path.name}: {width} x {height} px, but the page accepts up to {MAX_PIXELS / 1e6:.0f} "
                    "megapixels; embedmask predict --tile 1024 processes images of any size"
                )
            image = read_image(path, options=reading, notice=notes.append)
        except BadInput as error:
            raise BadInput(str(error).replace(str(path), path.name)) from None
        tile = tile or max(height, width, MIN_TILE)
        options, outputs = make_postprocessor(predictor.model.config).network_options, list[Output]()
        windows = tile_windows((height, width), tile, min(OVERLAP, tile // 2))
        for done, (y1, x1, y2, x2) in enumerate(windows):
            report(done, len(windows))
            part = image[:, y1:y2, x1:x2]
            batch = predictor.model.preprocess([predictor.resize.image(part)])
            outputs.append((predictor.network(batch, **options), batch.sizes, [size_of(part)]))
        session = cls(predictor, path, image, tile, outputs, notes)
        session.update(Settings.of(predictor))
        return session

    def update(self, settings: Settings) -> None:
        """Decode the objects with other settings, as `Predictor` would; the network is not run.

        A type of model that limits its boxes within the network returns no more than these.
        """
        config = replace(self.predictor.model.config, mask_threshold=settings.mask_threshold)
        limit, is_tiled = settings.max_detections, len(self.outputs) > 1
        thresholds = config.score_thresholds(settings.score_threshold)
        postprocess = postprocessor_of_request(config, thresholds, limit, parts=is_tiled)
        outputs = iter(self.outputs)
        instances = tiled_instances(
            self.image,
            lambda _: postprocess(*next(outputs)),
            tile=self.tile,
            overlap=min(OVERLAP, self.tile // 2),
            score_thresholds=thresholds,
            max_detections=limit,
        )
        self.settings = settings
        self.instances = instances
        self.drawn = self.draw(self.instances)
        self.explanation = self._explain(self.instances) if self.has_embeddings else None

    @property
    def has_embeddings(self) -> bool:
        """Return whether the embeddings can be shown: those of an EmbedMask, of an image without tiles."""
        return self.predictor.model.config.has_embeddings and len(self.outputs) == 1

    @cached_property
    def pixels(self) -> PixelMap:
        """Return p of the image."""
        predictions, (image_size,), _ = self.outputs[0]
        return PixelMap(predictions.pixel_embed[0].float().cpu(), predictions.pixel_stride, image_size)

    @cached_property
    def projection(self) -> Projection:
        """Return the principal components of p."""
        return Projection.of(self.pixels)

    def _explain(self, instances: Instances) -> Explanation:
        """Return instances with the embeddings that their masks come from."""
        config: Any = self.predictor.model.config
        names, detections = self.predictor.class_names, to_detections(instances, self.predictor.class_names)
        add_embeddings(detections, instances, None)
        return Explanation(
            self.image,
            detections,
            names,
            self.pixels,
            self.projection,
            config.mask_interpolation,
            self.settings.mask_threshold,
        )

    def draw(self, instances: Instances) -> Pixels:
        """Draw objects on the image."""
        names = self.predictor.class_names
        return draw_detections(self.image, to_detections(instances, names), names)

    def object_rows(self) -> list[Row]:
        """Return number, class, score, box (x, y, width, height, px) and mask area, px, of each object."""
        instances, areas = self.instances, self.instances.masks.areas().tolist()
        rows: list[Row] = []
        for index, ((x1, y1, x2, y2), label) in enumerate(
            zip(instances.boxes.tolist(), instances.labels.tolist(), strict=True)
        ):
            box = [round(value, 1) for value in (x1, y1, x2 - x1, y2 - y1)]
            score = round(float(instances.scores[index]), 3)
            rows.append([index + 1, self.predictor.class_names[label], score, *box, areas[index]])
        return rows

    def choose(self, x: float, y: float, width: int) -> None:
        """Choose the pixel at x, y of the image as it is shown, `width` px wide, and reset the factor of the margin."""
        rows, columns = size_of(self.image)
        scale = columns / width
        self.pixel = min(int((x + 0.5) * scale), columns - 1), min(int((y + 0.5) * scale), rows - 1)
        self.margin_factor = 1.0

    @property
    def chosen(self) -> int | None:
        """Return the object that is drawn at the chosen pixel: the smallest of those whose masks cover it."""
        if self.pixel is None:
            return None
        (x, y), masks = self.pixel, self.instances.masks
        areas = masks.areas().tolist()
        covering = [
            index
            for index, (x1, y1, x2, y2) in enumerate(masks.boxes().tolist())
            if x1 <= x < x2 and y1 <= y < y2 and masks.window(index, (x, y, x + 1, y + 1)).any()
        ]
        return min(covering, key=areas.__getitem__, default=None)

    def pixel_rows(self) -> list[Row]:
        """Return number, class, distance of p and q, margin and phi of each object at the chosen pixel, best first."""
        if self.explanation is None or self.pixel is None:
            return []
        phi = self.explanation.pixel_probabilities(*self.pixel)
        distance = self.explanation.pixel_distances(*self.pixel)
        margins, labels = self.explanation.margin_distances.tolist(), self.instances.labels.tolist()
        return [
            [
                index + 1,
                self.predictor.class_names[labels[index]],
                round(float(distance[index]), 3),
                round(margins[index], 3),
                round(float(phi[index]), 4),
            ]
            for index in np.lexsort((distance, -phi)).tolist()
        ]

    def draw_pixel(self) -> Pixels:
        """Draw the objects by their phi at the chosen pixel, dark blue 0 to yellow 1, with a cross on the pixel."""
        if self.explanation is None or self.pixel is None:
            return self.drawn
        x, y = self.pixel
        scene = paint_instances(
            self.explanation, color_ramp(self.explanation.pixel_probabilities(*self.pixel))
        )
        arm = max(scene.shape[:2]) // 64 + 2
        scene[y, max(x - arm, 0) : x + arm + 1] = scene[max(y - arm, 0) : y + arm + 1, x] = CROSS
        return scene

    def widened(self, index: int, factor: float) -> Instances:
        """Return the objects, one of them with its margin multiplied and its mask decoded again.

        Args:
            index: object.
            factor: of the distance at which phi = 0.5; the precision s is divided by its square.
        """
        predictions: Predictions
        predictions, (image_size,), (original_size,) = self.outputs[0]
        config = self.predictor.model.config
        assert isinstance(config, ModelConfig)
        config = replace(config, mask_threshold=self.settings.mask_threshold, rescore_masks=False)
        instances = self.instances
        sides = zip(image_size, original_size, strict=True)
        scale_y, scale_x = (network / original for network, original in sides)
        margins = instances.proposal_margin.clone()
        margins[index] /= factor**2
        boxes = instances.boxes * instances.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        proposals = Proposals(boxes, instances.scores, instances.labels, instances.proposal_embed, margins)
        postprocess = Postprocessor.from_config(config, reference_masks=False)
        (runs,) = postprocess.decode_instances(
            predictions, 0, proposals.select([index]), image_size, original_size
        ).masks.runs
        masks = [runs if place == index else old for place, old in enumerate(instances.masks.runs)]
        return replace(instances, masks=RunMasks(masks, instances.masks.frame), proposal_margin=margins)

    def draw_object(self) -> tuple[Pixels, Pixels | None]:
        """Draw the objects, the chosen one with its margin multiplied and a white outline; and its probability map."""
        index = self.chosen
        if index is None or not self.has_embeddings:
            return self.drawn, None
        widened = self.widened(index, self.margin_factor)
        scene, (mask, top, left) = self.draw(widened), widened.masks.crop(index)
        scene[top : top + mask.shape[0], left : left + mask.shape[1]][outline(mask)] = OUTLINE
        return scene, instance_tile(self._explain(widened), index)

    def embedding_rows(self) -> list[Row]:
        """Return the first two principal components of q, number, and class or `chosen object`, of each object."""
        if self.explanation is None:
            return []
        places = self.projection.coordinates(self.explanation.proposal_embed.T)[:2].T.tolist()
        chosen, labels = self.chosen, self.instances.labels.tolist()
        return [
            [
                *place,
                index + 1,
                "chosen object" if index == chosen else self.predictor.class_names[labels[index]],
            ]
            for index, place in enumerate(places)
        ]

    def write(self, fmt: Format, folder: Path) -> Path:
        """Write the objects to a file in a folder, and return its path; errors as in `write_annotations`."""
        names, stem = self.predictor.class_names, self.path.stem
        if fmt == "coco":
            path = folder / f"{stem}_coco.json"
            write_json(path, self.to_coco())
            return path
        name = f"{stem}_labels" if fmt == "labels" else stem
        source = folder / FOLDERS[fmt] / self.path.name  # LabelMe names the image relative to its own file
        write_annotations(fmt, folder, name, ImageOutput(self.instances, names, source, self.image))
        return folder / FOLDERS[fmt] / f"{name}{ENDINGS[fmt]}"

    def to_coco(self) -> dict[str, Any]:
        """Return the objects as a data set in COCO's format with one image, category ids from 1, and scores."""
        names, (height, width) = self.predictor.class_names, size_of(self.image)
        results = coco_results(self.instances, 1, range(1, len(names) + 1))
        areas = self.instances.masks.areas().tolist()
        return {
            "images": [{"id": 1, "file_name": self.path.name, "width": width, "height": height}],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
            "annotations": [
                {"id": number, **result, "area": area, "iscrowd": 0}
                for number, (result, area) in enumerate(zip(results, areas, strict=True), start=1)
            ],
        }
