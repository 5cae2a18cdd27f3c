"""The paper's figures: embeddings, probability maps and margins (1), models side by side (3), many results (4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from embedmask.config import ScoreThreshold
from embedmask.config.data import Split
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.files import atomic_folder, write_json
from embedmask.inference.explain import Explanation
from embedmask.inference.image_source import as_image
from embedmask.inference.predictor import Predictor
from embedmask.samples import draw_target
from embedmask.visualize import Pixels, contact_sheet, crop_of, draw_detections, entitle, write_image
from embedmask.weights.checkpoint import model_title

RAMP = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
"""Colors from low to high values, matplotlib's viridis at five places."""
OUTLINE = (255, 255, 255)
MARGIN = 0.25
"""Margin shown around an instance, as a fraction of its box's longer side."""
TILE = 240
"""Longest side of an instance on its sheet, px."""
PANEL = 480
"""Shortest and longest side of a panel that is scaled, px: smaller images are enlarged, larger ones reduced ..."""
MAX_PANEL = 960
COLUMNS = 4


def color_ramp(values: npt.NDArray[np.floating]) -> Pixels:
    """Return values 0..1 as colors, dark blue to yellow: `[...]` -> uint8 `[..., 3]`."""
    places = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(values, places, channel) for channel in RAMP.T]
    colors: Pixels = np.rint(np.stack(channels, -1)).astype(np.uint8)
    return colors


def paint_instances(explanation: Explanation, colors: Pixels) -> Pixels:
    """Return the image in gray with each mask in its color, uint8 `[R, 3]`; smaller masks cover larger ones."""
    gray = explanation.image.float().mean(0, keepdim=True).expand(3, -1, -1)
    scene: Pixels = (gray / 2 + 96).byte().permute(1, 2, 0).numpy().copy()
    found = explanation.detections
    assert found.mask is not None
    for index in np.flip(np.argsort(found.area, kind="stable")).tolist():
        crop, top, left = crop_of(found.mask, index)
        window = scene[top : top + crop.shape[0], left : left + crop.shape[1]]
        window[crop] = colors[index]
        window[outline(crop)] = OUTLINE
    return scene


def outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels of a mask, bool `[H, W]`, that touch its outside, also the outside of the image."""
    edge: npt.NDArray[np.bool_] = mask & ~ndimage.binary_erosion(mask)
    return edge


def margin_panel(explanation: Explanation) -> tuple[Pixels, str]:
    """Return the masks colored by their margins, and the range of these as text.

    The margin is the distance to q at which phi = 0.5; the colors are evenly spaced in its logarithm.
    """
    distances = explanation.margin_distances.numpy()
    if not len(distances):
        return paint_instances(explanation, np.zeros((0, 3), np.uint8)), "margin"
    low, high = float(distances.min()), float(distances.max())
    extent = max(np.log(high / low), 1e-9)
    painted = paint_instances(explanation, color_ramp(np.log(distances / low) / extent))
    return painted, f"margin: distance at phi = 0.5, {low:.2f} (blue) to {high:.2f} (yellow)"


def figure1(explanation: Explanation) -> dict[str, Pixels]:
    """Return the panels of figure 1 by name, without titles, in the frame of the image.

    Proposal and pixel embeddings have the same colors where they are equal: their three principal components as red,
    green and blue.
    """
    margins, _ = margin_panel(explanation)
    return {
        "image": draw_detections(explanation.image, explanation.detections, explanation.class_names),
        "proposal_embed": paint_instances(explanation, explanation.proposal_colors()),
        "pixel_embed": explanation.pixel_colors(),
        "margin": margins,
    }


def instance_tile(explanation: Explanation, index: int) -> Pixels:
    """Return one detection beside its probability map, both with the outline of its mask, under class and margin."""
    found = explanation.detections
    assert found.mask is not None
    assert found.class_id is not None
    assert found.confidence is not None
    x1, y1, x2, y2 = found.xyxy[index]
    around = MARGIN * max(x2 - x1, y2 - y1, 1)
    height, width = explanation.image.shape[1:]
    top, bottom = max(int(y1 - around), 0), min(int(np.ceil(y2 + around)), height)
    left, right = max(int(x1 - around), 0), min(int(np.ceil(x2 + around)), width)
    edge = outline(found.mask[index])[top:bottom, left:right]
    image = explanation.image.permute(1, 2, 0).numpy()[top:bottom, left:right].copy()
    probability = color_ramp(explanation.probability(index)[top:bottom, left:right])
    for part in (image, probability):
        part[edge] = OUTLINE
    pair = contact_sheet([scale_panel(part, TILE, TILE, smooth=False) for part in (image, probability)], 2)
    name = explanation.class_names[found.class_id[index]]
    margin = float(explanation.margin_distances[index])
    return entitle(pair, f"{index + 1}: {name} {found.confidence[index]:.2f}, margin {margin:.2f}")


def scale_panel(panel: Pixels, shortest: int, longest: int, *, smooth: bool = True) -> Pixels:
    """Scale an image whose longer side is not between two lengths, px; enlarge by whole factors unless `smooth`."""
    height, width = panel.shape[:2]
    side = max(height, width)
    factor = min(max(1.0, shortest / side), longest / side)
    if factor == 1:
        return panel
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    method = Image.Resampling.LANCZOS if smooth or factor < 1 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(panel).resize(size, method))


def write_explanation(explanation: Explanation, out: Path, instances: int) -> int:
    """Write figure 1 of an image to a new folder.

    It receives `figure1.png` with all panels; `image.png`, `proposal_embed.png`, `pixel_embed.png` and `margin.png`
    in the frame of the image; `instances.png` with the probability maps, if there are detections; `explanation.json`.

    Args:
        instances: maximum number of detections in `instances.png`, the best first.

    Returns:
        The number of detections in `instances.png`.

    Raises:
        BadInput: `instances` is below 1, or the folder is not empty or cannot be written.
    """
    if instances < 1:
        raise BadInput(f"instances {instances}: use at least 1")
    panels, (_, margins) = figure1(explanation), margin_panel(explanation)
    share = float(explanation.projection.shares.sum())
    titles = [
        "detections",
        "proposal embeddings",
        f"pixel embedding: 3 components, {share:.1%} of the variance",
        margins,
    ]
    drawn = min(len(explanation.detections), instances)
    with atomic_folder(out) as folder:
        for name, panel in panels.items():
            write_image(panel, folder / f"{name}.png")
        scaled = [scale_panel(panel, PANEL, MAX_PANEL) for panel in panels.values()]
        named = [entitle(panel, title) for panel, title in zip(scaled, titles, strict=True)]
        write_image(contact_sheet(named, 2), folder / "figure1.png")
        if drawn:
            tiles = [instance_tile(explanation, index) for index in range(drawn)]
            write_image(contact_sheet(tiles, 3), folder / "instances.png")
        write_json(folder / "explanation.json", explanation.to_dict())
    return drawn


@dataclass(frozen=True)
class GroundTruthImages:
    """Split of a data set whose images are found by their files."""

    dataset: CocoInstances

    @classmethod
    def open(cls, folder: Path, split: Split, options: ReadOptions = DEFAULT_READING) -> GroundTruthImages:
        """Open a split; degenerate objects are dropped, since models are not trained on them.

        Raises:
            BadInput: see `CocoInstances.open`; or the split has no annotations.
        """
        dataset = CocoInstances.open(folder, split, degenerate="drop", options=options)
        if not dataset.has_annotations:
            raise BadInput(
                f"{dataset.annotations_file}: no annotations to draw; choose another split, or omit --data"
            )
        return cls(dataset)

    def draw(self, path: Path) -> Pixels:
        """Return an image with its objects drawn.

        Raises:
            BadInput: the file is not an image of the split.
        """
        data, wanted = self.dataset, path.resolve()
        index = next((i for i in range(len(data)) if data.image_path(i).resolve() == wanted), None)
        if index is None:
            raise BadInput(
                f"{path}: not an image of {data.annotations_file}; pass one of its files, or omit --data"
            )
        item = EvalTransform.full_size()(data.image(index), data.annotations(index), torch.Generator())
        return draw_target(*item, data.class_names)


def compare_models(
    images: Sequence[Path],
    weights: Sequence[Path],
    *,
    data: Path | None = None,
    split: Split = "val",
    score_threshold: ScoreThreshold | None = None,
    columns: int | None = None,
    device: str = "auto",
    report: Callable[[str], None] = lambda line: None,
) -> Pixels:
    """Draw the detections of several models side by side (figure 3), or those of one model in many images (figure 4).

    A model is loaded after the one before it is done.

    Args:
        images: files.
        weights: model files or names of released models.
        data: data set whose ground truth is drawn before the models, read as the models read images; every image must
            be one of its images.
        split: split of the data set.
        score_threshold: as in `Predictor.__call__`; None: that of each model.
        columns: columns of the sheet. None: one per model and one for the ground truth, so that each row is an image;
            or with a single column of these, 4.
        report: receives the warnings about the data set.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        BadInput: an image, a model, the data set or the number of columns is invalid; or the models read different
            pages, so that the ground truth cannot be that of both.
    """
    if columns is not None and columns < 1:
        raise BadInput(f"columns {columns}: use at least 1")
    series: list[list[tuple[str, Pixels]]] = []
    truth: GroundTruthImages | None = None
    for path in weights:
        predictor = Predictor.load(path, device=device)
        reading = predictor.model.config.reading()
        if data is not None and truth is None:
            truth = GroundTruthImages.open(data, split, reading)
            for line in truth.dataset.warning_lines():
                report(line)
            series.append([("ground truth", truth.draw(image)) for image in images])
        elif truth is not None and truth.dataset.options.page != reading.page:
            raise BadInput(
                f"{path}: reads page {reading.page or 0} of images, "
                f"{weights[0]} page {truth.dataset.options.page or 0}; "
                "compare them separately, or omit --data"
            )
        series.append([(model_title(path), panel) for panel in draw_all(predictor, images, score_threshold)])
    default = len(series) if len(series) > 1 else COLUMNS
    # one title per panel: the model, or with a single model the image
    panels = [
        entitle(scale_panel(panel, PANEL, MAX_PANEL), title if len(series) > 1 else path.name)
        for path, row in zip(images, zip(*series, strict=True), strict=True)
        for title, panel in row
    ]
    return contact_sheet(panels, columns or default)


def draw_all(
    predictor: Predictor, images: Sequence[Path], score_threshold: ScoreThreshold | None
) -> Iterator[Pixels]:
    """Yield each image with the detections of a model drawn, uint8 `[H, W, 3]`."""
    for path in images:
        image = as_image(path, options=predictor.model.config.reading())
        yield draw_detections(image, predictor(image, score_threshold), predictor.class_names)
