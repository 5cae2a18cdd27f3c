"""Visualization: detections drawn on images, sheets of images, and plots of a training or a data set."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from embedmask._supervision import CompactMask, sv
from embedmask.errors import BadInput, UnsupportedImage
from embedmask.files import atomic_write

Pixels = npt.NDArray[np.uint8]
Point = tuple[float, float]

PALETTE = sv.ColorPalette.from_hex([
    "#4dabf7", "#ffa94d", "#69db7c", "#f783ac", "#ffe066", "#b197fc", "#38d9a9", "#ff8787", "#a9e34b", "#e599f7",
])  # fmt: skip
"""Light colors, on which black text is readable. Objects are colored by index, not by class."""
SWAPPED = sv.ColorPalette([sv.Color(color.b, color.g, color.r) for color in PALETTE.colors])
"""`PALETTE` in BGR: supervision's annotators expect BGR images, so swapped colors draw correctly on RGB ones."""
MASK_OPACITY = 0.45
MAX_THICKNESS = 4
"""Upper bound on the thickness of outlines, px; thicker ones would fill small objects of very large images."""
BLEND_ROWS = 64
"""Rows blended at once, which bounds the memory of float copies."""
MAX_LABELS = 40
"""With more objects than this, boxes and text are omitted, since they would cover the objects."""
FONT_SHARE = 0.035
"""Height of the text, as a fraction of the image's short side ..."""
FONT_RANGE = (9, 28)
"""... clipped to this range, px."""
GAP = 4
"""Space between the images of a sheet, px."""
PAPER = 255
PNG_LEVEL = 1
"""Compression level of PNG, 0 to 9; level 6 takes four times as long and saves a seventh."""
MAX_CLASSES = 60
"""Maximum number of classes on a chart."""
MAX_NAME = 40
"""Maximum length of a class name on a chart."""


def draw_detections(
    image: Tensor | npt.NDArray[Any], detections: sv.Detections, class_names: Sequence[str]
) -> Pixels:
    """Draw masks with outlines, boxes, and class and score where the text fits.

    Touching objects differ in color, even within a class. Masks are painted one by one, large ones first, from
    their crops if they are a `CompactMask`; the memory beside the image is one byte per pixel.

    Args:
        image: uint8 RGB, tensor `[3, H, W]` or array `[H, W, 3]`; it is not changed.
        detections: in the frame of `image`; without `confidence` no score is written.
        class_names: name of each class id.

    Returns:
        uint8 RGB `[H, W, 3]`.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image
    scene: Pixels = np.array(pixels, dtype=np.uint8, order="C")
    if not len(detections):
        return scene
    height, width = scene.shape[:2]
    # last pixel inside the box instead of the continuous corner, so that boxes at the border stay visible
    first, last = np.floor(detections.xyxy[:, :2]), np.ceil(detections.xyxy[:, 2:]) - 1
    corners = np.concatenate([first, np.maximum(first, last)], 1)
    ends = np.array([width - 1, height - 1, width - 1, height - 1], np.float32)
    detections = replace(detections, xyxy=np.clip(corners, 0, ends).astype(np.float32))
    thickness = min(max(1, round(min(height, width) / 600)), MAX_THICKNESS)
    _blend_masks(scene, detections, thickness)
    if len(detections) > MAX_LABELS:
        return scene
    scene = sv.BoxAnnotator(SWAPPED, thickness, sv.ColorLookup.INDEX).annotate(scene, detections)
    return _write_labels(scene, detections, class_names)


def _blend_masks(scene: Pixels, detections: sv.Detections, thickness: int) -> None:
    """Paint masks half-transparent with opaque outlines, in place; smaller objects over larger ones.

    supervision's own annotators take minutes for a thousand masks in a large image if OpenCV is missing.
    """
    masks = detections.mask
    if masks is None:
        return
    # one byte per pixel selects color and opacity: 0 none, 1 .. C inside, C + 1 .. 2 C outline
    colors = [PALETTE.by_idx(index).as_rgb() for index in range(len(PALETTE.colors))]
    table = np.array([(0, 0, 0), *colors, *colors], np.float32)  # [1 + 2 C, 3]
    opacity = np.repeat(np.array([0, MASK_OPACITY, 1], np.float32), [1, len(colors), len(colors)])[:, None]
    codes = np.zeros(scene.shape[:2], np.uint8)
    for index in np.flip(np.argsort(detections.area, kind="stable")).tolist():
        crop, y, x = crop_of(masks, index)
        window = codes[y : y + crop.shape[0], x : x + crop.shape[1]]
        window[crop] = 1 + index % len(colors) + len(colors)
        # erosion by a square of this side; pixels beyond the crop are outside the mask
        inside = ndimage.minimum_filter(crop, 2 * thickness + 1, mode="constant", cval=0)
        window[inside] = 1 + index % len(colors)
    for start in range(0, len(scene), BLEND_ROWS):
        rows, code = scene[start : start + BLEND_ROWS], codes[start : start + BLEND_ROWS]
        painted = code > 0
        code = code[painted]  # [P]
        rows[painted] = np.rint(rows[painted] * (1 - opacity[code]) + table[code] * opacity[code])


def crop_of(masks: CompactMask | npt.NDArray[np.bool_], index: int) -> tuple[npt.NDArray[np.bool_], int, int]:
    """Return the pixels of a mask inside its box, with the first row and column; of an array, the whole image."""
    if not isinstance(masks, CompactMask):
        return masks[index], 0, 0
    x, y = masks.offsets[index].tolist()
    return masks.crop(index), y, x


def _write_labels(scene: Pixels, detections: sv.Detections, class_names: Sequence[str]) -> Pixels:
    """Write class and score on each object that is thicker than the height of its text."""
    font_size = int(np.clip(FONT_SHARE * min(scene.shape[:2]), *FONT_RANGE))
    sides = detections.xyxy[:, 2:] - detections.xyxy[:, :2]
    # mean thickness of the mask, not of the box: a label would cover a thin diagonal object
    thickness = detections.area / np.maximum(sides.max(1), 1)
    index = np.flatnonzero((sides.max(1) >= 2 * font_size) & (thickness >= font_size))
    if not len(index):
        return scene
    annotator = sv.RichLabelAnnotator(
        SWAPPED,
        text_color=sv.Color.BLACK,
        font_size=font_size,
        text_padding=max(1, font_size // 6),
        smart_position=True,
    )
    shown = cast(sv.Detections, detections[index])
    names = [""] * len(shown) if shown.class_id is None else [class_names[i] for i in shown.class_id.tolist()]
    if shown.confidence is not None:
        pairs = zip(names, shown.confidence, strict=True)
        names = [f"{name} {score:.2f}".lstrip() for name, score in pairs]
    # colors by the index among all detections, as for the masks
    written: Pixels = annotator.annotate(scene, shown, names, custom_color_lookup=index)
    return written


def write_image(image: npt.NDArray[Any], path: Path) -> None:
    """Write an image file, whole or not at all.

    Args:
        image: uint8 `[H, W, 3]`, or bool or uint16 `[H, W]`; the suffix of `path` selects the format.

    Raises:
        BadInput: the suffix is not that of an image format.
        UnsupportedImage: the format cannot store an image of this size.
    """
    file_format = image_format(path)
    # encode in memory first, so that a killed process leaves no partial file
    buffer = io.BytesIO()
    try:
        Image.fromarray(image).save(buffer, file_format, compress_level=PNG_LEVEL)
    except (OSError, ValueError) as error:
        height, width = image.shape[:2]
        fault = f"{file_format} cannot store an image of {width} x {height} px ({error})"
        raise UnsupportedImage(f"{path}: {fault}; end it in .png") from None
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def image_format(path: Path) -> str:
    """Return Pillow's name of the image format of a file to write; `BadInput` if its suffix has none."""
    file_format = Image.registered_extensions().get(path.suffix.lower())
    if file_format not in Image.SAVE:
        raise BadInput(f"{path}: not the name of an image; end it in .png or .jpg")
    return str(file_format)


def side_by_side(left: Pixels, right: Pixels, titles: tuple[str, str]) -> Pixels:
    """Return two images uint8 `[H, W, 3]` side by side, each under its title."""
    return contact_sheet([entitle(left, titles[0]), entitle(right, titles[1])], columns=2)


def contact_sheet(images: Sequence[Pixels], columns: int) -> Pixels:
    """Place images in a grid on white, row by row, without scaling.

    Args:
        images: uint8 `[h, w, 3]`, of any sizes.
        columns: number of columns; each column is as wide and each row as high as its largest image.

    Returns:
        uint8 `[H, W, 3]`; one white pixel without images.
    """
    if not images:
        return np.full((1, 1, 3), PAPER, np.uint8)
    columns = max(1, min(columns, len(images)))
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    widths = [max(image.shape[1] for image in images[c::columns]) for c in range(columns)]
    total = (sum(heights) + GAP * (len(heights) - 1), sum(widths) + GAP * (len(widths) - 1))
    sheet = np.full((max(1, total[0]), max(1, total[1]), 3), PAPER, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = sum(heights[:row]) + GAP * row, sum(widths[:column]) + GAP * column
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def entitle(image: Pixels, title: str) -> Pixels:
    """Put a line of black text above an image, uint8 `[H, W, 3]`; text that is too wide is scaled down."""
    size = int(np.clip(FONT_SHARE * min(image.shape[:2]), 12, FONT_RANGE[1]))
    font = ImageFont.load_default(size)
    width = font.getlength(title)
    if width > image.shape[1] - 4:
        font = ImageFont.load_default(max(4, size * (image.shape[1] - 4) / width))
    line = Image.new("RGB", (image.shape[1], round(1.6 * size)), (PAPER,) * 3)
    ImageDraw.Draw(line).text((2, line.height // 2), title, fill=(0, 0, 0), font=font, anchor="lm")
    return np.concatenate([np.asarray(line), image])


def plot_curves(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Plot the losses of a training and its AP, where measured. Requires the extra `train`.

    Args:
        history: rows of metrics.csv: `step` (or `epoch`), `loss/...`, and `segm/AP...`, `bbox/AP...` where
            they were measured. Values that are missing, empty or not finite are skipped.
        path: image to write, whole or not at all; its suffix selects the format.
    """
    from matplotlib.figure import Figure

    axis = "step" if any("step" in row for row in history) else "epoch"
    groups = {"loss": _curves(history, axis, "loss/"), "AP": _curves(history, axis, "segm/AP", "bbox/AP")}
    shown = {name: curves for name, curves in groups.items() if curves or name == "loss"}
    figure = Figure(figsize=(6.5 * len(shown), 4.5), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (name, curves) in zip(panels, shown.items(), strict=True):
        for label, points in curves.items():
            x, y = zip(*points, strict=True)
            is_main = label in ("loss/total", "segm/AP")
            style = {"linewidth": 2.4 if is_main else 1.3, "marker": "." if len(x) < 60 else None}
            panel.plot(x, y, label=label.removeprefix("loss/"), **style)
        panel.set(title=name, xlabel=axis)
        panel.grid(alpha=0.3)
        panel.set_ylim(bottom=0)
        if curves:
            panel.legend(fontsize=8, ncols=1 + (len(curves) > 8))
    _write_figure(figure, path)


def plot_counts(splits: Mapping[str, Mapping[str, Sequence[int]]], path: str | Path) -> None:
    """Plot the number of objects by class and size, one panel per split. Requires the extra `train`.

    Args:
        splits: split -> class -> number of small, medium and large objects. The `MAX_CLASSES` most frequent classes
            of the first split are shown.
        path: image to write, whole or not at all; its suffix selects the format.
    """
    from matplotlib.figure import Figure

    classes = dict.fromkeys(name for counts in splits.values() for name in counts)
    first = next(iter(splits.values()), {})
    names = sorted(classes, key=lambda name: -sum(first.get(name, ())))[:MAX_CLASSES]
    size = (1 + 4.5 * max(len(splits), 1), 1.5 + 0.25 * len(names))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, max(len(splits), 1), squeeze=False, sharey=True)[0]
    # matplotlib fails on lone surrogates and reads $ as mathematics
    lines = [" ".join(name.encode("utf-8", "backslashreplace").decode().split()) for name in names]
    short = [line if len(line) <= MAX_NAME else f"{line[: MAX_NAME - 1]}…" for line in lines]
    panels[0].set_yticks(range(len(names)), [line.replace("$", r"\$") for line in short])
    panels[0].set_ylim(max(len(names), 1) - 0.5, -0.5)  # first class at the top
    if len(classes) > len(names):
        panels[0].set_ylabel(f"the {len(names)} most frequent of {len(classes)} classes")
    for panel, (split, counts) in zip(panels, splits.items(), strict=False):
        numbers = np.array([counts.get(name, (0, 0, 0)) for name in names]).reshape(-1, 3)
        left = np.cumsum(numbers, axis=1) - numbers  # where each bar of a stack begins
        for column, label in enumerate(("small", "medium", "large")):
            panel.barh(range(len(names)), numbers[:, column], left=left[:, column], label=label, height=0.7)
        panel.grid(axis="x", alpha=0.3)
        panel.set(title=f"{split}: {sum(map(sum, counts.values()))} objects", xlabel="objects")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    _write_figure(figure, path)


def _write_figure(figure: Any, path: str | Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods are not annotated
    canvas.draw()
    write_image(np.asarray(canvas.buffer_rgba())[..., :3], Path(path))


def _curves(history: Sequence[Mapping[str, Any]], axis: str, *prefixes: str) -> dict[str, list[Point]]:
    """Return name -> points (x, y), for the columns that start with one of `prefixes`."""
    names = dict.fromkeys(name for row in history for name in row if name.startswith(prefixes))
    curves: dict[str, list[Point]] = {name: [] for name in names}
    for name, points in curves.items():
        for row in history:
            try:
                x, y = float(row[axis]), float(row[name])
            except (KeyError, TypeError, ValueError):
                continue  # missing or empty
            if math.isfinite(x) and math.isfinite(y):
                points.append((x, y))
    return {name: points for name, points in curves.items() if points}
