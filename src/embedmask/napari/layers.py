"""Layers of napari from a layer with an image: label image and embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedmask.config.reading import Depth
from embedmask.data.depth import reduce_depth, strips_of
from embedmask.data.images import size_of
from embedmask.errors import BadInput
from embedmask.inference.explain import Projection
from embedmask.inference.predictor import Predictor
from embedmask.structures import Instances, PixelMap, Size

RESULT = "embedmask result"
"""Key in the metadata of image layers that the plugin adds."""
LayerData = tuple[Any, dict[str, Any], str]
"""Data, keyword arguments and type of a layer, as napari's readers return them."""


@dataclass(frozen=True)
class Plane:
    """The plane of an image layer that the viewer shows.

    Attributes:
        data: array of the layer, at full resolution; may be lazy.
        index: position on each leading axis.
        rgb: whether the last axis holds colors.
        name: name of the layer.
        scale, translate: of y and x, in world coordinates.
    """

    data: Any
    index: tuple[int, ...]
    rgb: bool
    name: str
    scale: tuple[float, float]
    translate: tuple[float, float]

    @classmethod
    def of(cls, layer: Any, point: Sequence[float]) -> Plane:
        """Return the current plane of an `Image` layer; nothing is read yet.

        Args:
            layer: layer of napari.
            point: position of the viewer in world coordinates; its last axes are those of the layer.

        Raises:
            BadInput: the layer is rotated, sheared or has an affine transform.
        """
        data = layer.data[0] if layer.multiscale else layer.data
        count = layer.ndim - 2
        place = layer.world_to_data(point[len(point) - layer.ndim :])[:count]
        shown = zip(place, data.shape[:count], strict=True)
        index = tuple(min(max(round(float(position)), 0), size - 1) for position, size in shown)
        scale, translate = layer.scale[-2:].tolist(), layer.translate[-2:].tolist()
        # the corners (0, 0), (1, 0) and (0, 1) of the plane in the world, [3, 2]
        corners = [layer.data_to_world((*index, y, x))[-2:] for y, x in ((0, 0), (1, 0), (0, 1))]
        expected = np.array(translate) + np.array([(0, 0), (scale[0], 0), (0, scale[1])])
        if not np.allclose(corners, expected):
            raise BadInput(
                f"{layer.name}: is rotated, sheared or has an affine transform, which results would not follow; "
                "reset rotate, shear and affine of the layer"
            )
        return cls(data, index, layer.rgb, layer.name, tuple(scale), tuple(translate))

    def image(self, depth: Depth) -> Tensor:
        """Read the plane as uint8 RGB `[3, H, W]`; `depth` is the conversion of more than 8 bits, as in image files."""
        values = np.asarray(self.data[self.index])
        values = values[..., :3] if self.rgb else values[..., None]
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * np.uint8(255)
        pixels = np.empty((*values.shape[:2], 3), np.uint8)
        reduce_depth(strips_of(values), pixels, depth)
        return torch.from_numpy(pixels).permute(2, 0, 1)


@lru_cache(maxsize=1)
def load_predictor(weights: str) -> Predictor:
    """Load a model, or return the one that was loaded last.

    Raises:
        BadInput: no such model.
    """
    return Predictor.load(weights)


def detect_layers(
    plane: Plane, weights: str, *, score_threshold: float | None, tile: int | None, embedding: bool
) -> list[LayerData]:
    """Detect the objects of a plane.

    Args:
        weights: model file, the name of a bundled model, or user/model on the Hugging Face Hub.
        score_threshold: None: that of the model.
        tile: side of tiles, px; None: no tiles.
        embedding: also return the embedding of the pixels, for an image that fits in one tile.

    Returns:
        A `labels` layer with scores and class names as features and, if requested, an RGB `image` layer.

    Raises:
        BadInput: no such model, or the embedding of a model without any or of an image larger than a tile.
    """
    predictor = load_predictor(weights)
    image = plane.image(predictor.model.config.reading().depth)
    if embedding and tile is not None and max(size_of(image)) > tile:
        raise BadInput(
            f"embedding: {plane.name} is larger than a tile; set the tile to 0, or omit the embedding"
        )
    if embedding and not predictor.model.config.has_embeddings:
        raise BadInput("embedding: this type of model has none; choose an EmbedMask, or omit the embedding")
    tile = None if embedding else tile
    overlap = 0 if tile is None else min(128, tile // 2)
    (result,) = predictor.predict_stream(
        [image], score_threshold=score_threshold, tile=tile, overlap=overlap, embeddings=embedding
    )
    assert result.instances is not None
    layers = [labels_layer(result.instances, predictor.class_names, plane)]
    if result.pixels is not None:
        layers.append(embedding_layer(result.pixels, size_of(image), plane))
    return layers


def labels_layer(instances: Instances, class_names: Sequence[str], plane: Plane) -> LayerData:
    """Return a label image: k for the k-th instance, whose score and class are row k of the features."""
    labels = instances.masks.to_label_image()
    names = [class_names[label] for label in instances.labels.tolist()]
    features = {
        "index": list(range(len(names) + 1)),
        "class": ["background", *names],
        "score": [float("nan"), *instances.scores.tolist()],
    }
    options = {"name": f"{plane.name} objects", "scale": plane.scale, "translate": plane.translate}
    return labels, {**options, "features": features}, "labels"


def embedding_layer(pixels: PixelMap, size: Size, plane: Plane) -> LayerData:
    """Return the first three principal components of the pixel embedding as an RGB image, in place over its image.

    Args:
        pixels: p of the image.
        size: `(height, width)` of the image.
    """
    height, width = (-(-side // pixels.stride) for side in pixels.image_size)  # without padding
    projection = Projection.of(pixels)
    colors = projection.colors(projection.coordinates(pixels.embed[:, :height, :width].cpu()))
    # px of the image per cell
    factors = [pixels.stride * side / net for side, net in zip(size, pixels.image_size, strict=True)]
    scale = [value * factor for value, factor in zip(plane.scale, factors, strict=True)]
    # the center of cell i is pixel (i + 0.5) * factor - 0.5, because napari's pixels have their centers at integers
    shift = [value * (factor - 1) / 2 for value, factor in zip(plane.scale, factors, strict=True)]
    translate = [value + by for value, by in zip(plane.translate, shift, strict=True)]
    options = {"name": f"{plane.name} embedding", "rgb": True, "scale": scale, "translate": translate}
    options["metadata"] = {RESULT: True}
    return colors, options, "image"
