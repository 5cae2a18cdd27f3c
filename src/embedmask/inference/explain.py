"""Explanation of an image's masks: principal components of the embeddings, probability maps, margins (figure 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask._supervision import sv
from embedmask.config import ScoreThreshold
from embedmask.coupling import weighted_distance
from embedmask.data.images import size_of
from embedmask.errors import BadInput
from embedmask.inference.image_source import ImageSource, as_image
from embedmask.inference.mask_decoding import Interpolation, source_positions
from embedmask.inference.predictor import Predictor
from embedmask.locations import MASK_UPSAMPLING
from embedmask.structures import PixelMap

NUM_COMPONENTS = 3
RANGE = (1.0, 99.0)
"""Percentiles of the pixels that become the darkest and the brightest value of a color."""


@dataclass(frozen=True)
class Projection:
    """Principal components of the pixel embeddings of an image.

    Attributes:
        origin: mean of p, float64 `[D]`.
        components: float64 `[3, D]`, orthonormal, by descending variance; zeros where D < 3. The largest entry of each
            is positive.
        shares: fraction of the variance of p along each component, `[3]`.
        low, high: coordinates of the darkest and the brightest color, `[3]`.
    """

    origin: Tensor
    components: Tensor
    shares: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def fit(cls, pixel_embed: Tensor) -> Self:
        """Fit the components to p `[D, P]`."""
        values = pixel_embed.double()
        dims, count = values.shape
        origin = values.mean(1)
        centered = values - origin[:, None]
        variances, vectors = torch.linalg.eigh(centered @ centered.T / count)  # ascending: [D], [D, D]
        components = vectors.T.flip(0)[:NUM_COMPONENTS]
        # the sign of an eigenvector is arbitrary
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = F.pad(components * largest.sign(), (0, 0, 0, max(NUM_COMPONENTS - dims, 0)))
        shares = F.pad(variances.flip(0)[:NUM_COMPONENTS], (0, max(NUM_COMPONENTS - dims, 0)))
        limits = np.percentile((components @ centered).numpy(), RANGE, axis=1)
        low, high = torch.from_numpy(limits)
        total = variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return cls(origin, components, shares / total, low, high)

    @classmethod
    def of(cls, pixels: PixelMap) -> Self:
        """Fit the components to p inside the image, without the cells of the padding."""
        height, width = (-(-side // pixels.stride) for side in pixels.image_size)
        return cls.fit(pixels.embed[:, :height, :width].flatten(1).cpu())

    def coordinates(self, embed: Tensor) -> Tensor:
        """Return the coordinates of embeddings: `[D, ...]` -> float64 `[3, ...]`."""
        flat = embed.cpu().double().flatten(1) - self.origin[:, None]
        return (self.components @ flat).view(NUM_COMPONENTS, *embed.shape[1:])

    def colors(self, coordinates: Tensor) -> npt.NDArray[np.uint8]:
        """Return coordinates as colors: `[3, ...]` -> uint8 RGB `[..., 3]`, clipped to the range of the pixels."""
        extent = (self.high - self.low).clamp(min=1e-12)
        last = coordinates.movedim(0, -1)
        return ((last - self.low) / extent).clamp(0, 1).mul(255).round().byte().numpy()


@dataclass(frozen=True)
class Explanation:
    """Detections of one image with the embeddings that their masks come from.

    Attributes:
        image: uint8 RGB `[3, H, W]`.
        detections: from `Predictor(..., embeddings=True)`, R of them.
        class_names: name of each class id.
        pixels: p and its place in the image.
        projection: principal components of p inside the image.
        interpolation, threshold: `mask_interpolation` and `mask_threshold` of the model.
    """

    image: Tensor
    detections: sv.Detections
    class_names: list[str]
    pixels: PixelMap
    projection: Projection
    interpolation: Interpolation
    threshold: float

    @property
    def proposal_embed(self) -> Tensor:
        """Return q of each detection, float32 `[R, D]`."""
        return torch.from_numpy(self.detections.data["proposal_embed"])

    @property
    def proposal_margin(self) -> Tensor:
        """Return s of each detection, a precision, float32 `[R, 1 or D]`."""
        return torch.from_numpy(self.detections.data["proposal_margin"])

    @property
    def margin_distances(self) -> Tensor:
        """Return the distance to q at which phi = 0.5, `[R]`; for a margin per dimension, the geometric mean."""
        return (math.log(2) / self.proposal_margin).sqrt().log().mean(1).exp()

    def pixel_colors(self) -> npt.NDArray[np.uint8]:
        """Return p in colors in the frame of the image, uint8 `[H, W, 3]`."""
        coordinates = self.projection.coordinates(self.pixels.embed)
        rows, columns = self._positions(self.pixels.stride, self.pixels.embed.shape[1:])
        return self.projection.colors(sample_map(coordinates, rows, columns))

    def proposal_colors(self) -> npt.NDArray[np.uint8]:
        """Return q of each detection in the colors of `pixel_colors`, uint8 `[R, 3]`."""
        return self.projection.colors(self.projection.coordinates(self.proposal_embed.T))

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return phi of detection `index` in the whole image, float32 `[H, W]` (eq. 3).

        The mask of the detection is phi above `threshold`, near its box (with `aligned`, everywhere).
        """
        cells, stride = self._cells
        chosen = slice(index, index + 1)
        return self._sample_phi(cells, chosen, *self._positions(stride, cells.shape[1:]))[0].numpy()

    def pixel_probabilities(self, x: int, y: int) -> npt.NDArray[np.float32]:
        """Return phi of every detection at one pixel of the image, float32 `[R]`; the value of `probability` there."""
        cells, stride = self._cells
        row, column = (
            places[at] for places, at in zip(self._positions(stride, cells.shape[1:]), (y, x), strict=True)
        )
        # of the map, only the cells around the pixel matter: [D, 1 or 2, 1 or 2]
        top, left = int(row), int(column)
        near = cells[:, top : top + 2, left : left + 2]
        place = row.view(1) - top, column.view(1) - left
        return self._sample_phi(near, slice(None), *place)[:, 0, 0].numpy()

    def pixel_distances(self, x: int, y: int) -> npt.NDArray[np.float32]:
        """Return the Euclidean distance of p at one pixel of the image and q of every detection, float32 `[R]`."""
        rows, columns = self._positions(self.pixels.stride, self.pixels.embed.shape[1:])
        pixel = sample_map(self.pixels.embed.float(), rows[y : y + 1], columns[x : x + 1])[:, 0, 0]
        distances: Tensor = torch.linalg.vector_norm(self.proposal_embed - pixel, dim=1)
        return distances.numpy()

    @cached_property
    def _cells(self) -> tuple[Tensor, int]:
        """Return the map of p that is coupled, `[D, h, w]`, and px per cell; resized as in `decode_masks`."""
        pixels = self.pixels.embed.float()
        if self.interpolation == "aligned":
            return pixels, self.pixels.stride
        resized = F.interpolate(pixels[None], scale_factor=MASK_UPSAMPLING, mode="bilinear")[0]
        return resized, self.pixels.stride // MASK_UPSAMPLING

    def _sample_phi(self, cells: Tensor, chosen: slice, rows: Tensor, columns: Tensor) -> Tensor:
        """Return phi of the chosen detections at rows and columns of a map of p: `[D, h, w]` -> `[M, H, W]`."""
        distance = weighted_distance(
            cells.flatten(1), self.proposal_embed[chosen], self.proposal_margin[chosen]
        )
        log_phi = -distance.view(-1, *cells.shape[1:])
        if self.interpolation == "log_prob":
            return sample_map(log_phi, rows, columns).exp()
        return sample_map(log_phi.exp(), rows, columns)

    def _positions(self, cell: int, grid: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the position of each row and column of the image on a grid `(h, w)` of `cell` px."""
        aligned = self.interpolation == "aligned"
        rows, columns = (
            source_positions(cells, original, network, cell=cell, aligned=aligned, frame="exact")
            for cells, original, network in zip(
                grid, size_of(self.image), self.pixels.image_size, strict=True
            )
        )
        return rows, columns

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values: the projection, and score, box and embedding of each detection."""
        detections, projection = self.detections, self.projection
        assert detections.class_id is not None
        assert detections.confidence is not None
        coordinates = projection.coordinates(self.proposal_embed.T).T.tolist()
        colors, distances = self.proposal_colors().tolist(), self.margin_distances.tolist()
        return {
            "components": projection.components.tolist(),
            "origin": projection.origin.tolist(),
            "variance_shares": projection.shares.tolist(),
            "instances": [
                {
                    "class": self.class_names[detections.class_id[index]],
                    "score": float(detections.confidence[index]),
                    "box": detections.xyxy[index].tolist(),
                    "proposal_embed": self.proposal_embed[index].tolist(),
                    "proposal_margin": self.proposal_margin[index].tolist(),
                    "margin_distance": distances[index],
                    "coordinates": coordinates[index],
                    "color": colors[index],
                }
                for index in range(len(detections))
            ],
        }


def explain(
    predictor: Predictor,
    source: ImageSource,
    score_threshold: ScoreThreshold | None = None,
    max_detections: int | None = None,
) -> Explanation:
    """Detect the objects in one image and keep the embeddings of its pixels and proposals.

    Raises:
        BadInput: the model has no embeddings, or as `Predictor.__call__`.
    """
    config = predictor.model.config
    if not config.has_embeddings:
        raise BadInput("explain: the model has no embeddings; pass an EmbedMask")
    image = as_image(source, options=config.reading())
    detections = predictor(image, score_threshold, max_detections, embeddings=True)
    data = detections.metadata
    pixels = PixelMap(torch.from_numpy(data["pixel_embed"]), data["pixel_stride"], data["network_size"])
    settings: Any = config
    return Explanation(
        image,
        detections,
        predictor.class_names,
        pixels,
        Projection.of(pixels),
        settings.mask_interpolation,
        config.mask_threshold,
    )


def sample_map(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sample maps bilinearly at every pair of row and column.

    Args:
        values: `[C, h, w]`.
        rows: positions in cells, float64 `[H]`, 0..h - 1.
        columns: positions in cells, float64 `[W]`, 0..w - 1.

    Returns:
        `[C, H, W]`, dtype of `values`.
    """
    for axis, places in ((1, rows), (2, columns)):
        first = places.floor().long()
        following = (first + 1).clamp(max=values.shape[axis] - 1)
        weight = (places - first).to(values.dtype)
        weight = weight[:, None] if axis == 1 else weight
        values = torch.lerp(values.index_select(axis, first), values.index_select(axis, following), weight)
    return values
