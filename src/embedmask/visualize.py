"""Images for people: detections drawn, images side by side, curves of a training."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from embedmask._supervision import CompactMask, sv
from embedmask.errors import BadInput
from embedmask.files import atomic_write

Pixels = npt.NDArray[np.uint8]
Point = tuple[float, float]

PALETTE = sv.ColorPalette.from_hex([
    "#4dabf7", "#ffa94d", "#69db7c", "#f783ac", "#ffe066", "#b197fc", "#38d9a9", "#ff8787", "#a9e34b", "#e599f7",
])  # fmt: skip
"""Light, so that black text can be read on it; an object's colour is its place in the list, not its class."""
SWAPPED = sv.ColorPalette([sv.Color(color.b, color.g, color.r) for color in PALETTE.colors])
"""For supervision, which takes channels as blue, green, red: so it paints ours right, and no copy is turned for it."""
MASK_OPACITY = 0.45
MAX_THICKNESS = 4
"""Of outlines, px: in a very large image thicker ones would fill small objects."""
BLEND_ROWS = 64
"""Rows blended at once: what is held beside the image stays small."""
MAX_LABELS = 40
"""With more objects than this, boxes and text are left out: they would hide what they name."""
FONT_SHARE = 0.035
"""Height of the text, as a fraction of the image's short side ..."""
FONT_RANGE = (9, 28)
"""... within these bounds, px."""
GAP = 4
"""Between the images of a sheet, px."""
PAPER = 255
PNG_LEVEL = 1
"""How hard PNG is compressed, 0 to 9: 6 takes four times as long and saves a seventh."""
MAX_CLASSES = 60
"""More do not fit on a chart."""
MAX_NAME = 40
"""Characters of a class name on a chart."""


def draw_detections(
    image: Tensor | npt.NDArray[Any], detections: sv.Detections, class_names: Sequence[str]
) -> Pixels:
    """Masks with thin outlines, boxes, and class and score where there is room for text.

    Touching objects differ in colour, whatever their classes. Masks are painted one by one, large ones first, from
    their crops where they are a `CompactMask`; beside the image a byte a pixel is held.

    Args:
        image: uint8 RGB, tensor [3, H, W] or array [H, W, 3]; it is not changed.
        detections: in the frame of `image`; without `confidence` no score is written.
        class_names: name of each class id.

    Returns:
        uint8 RGB [H, W, 3].
    """
    pixels = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image
    scene: Pixels = np.array(pixels, dtype=np.uint8, order="C")
    if len(detections):
        scene = _annotate(scene, _inside(detections, scene.shape[:2]), class_names)
    return scene


def _annotate(scene: Pixels, detections: sv.Detections, class_names: Sequence[str]) -> Pixels:
    thickness = min(max(1, round(min(scene.shape[:2]) / 600)), MAX_THICKNESS)
    by_index = sv.ColorLookup.INDEX
    _tint(scene, detections, thickness)
    if len(detections) > MAX_LABELS:
        return scene
    scene = sv.BoxAnnotator(SWAPPED, thickness, by_index).annotate(scene, detections)
    return _write_labels(scene, detections, class_names)


def _tint(scene: Pixels, detections: sv.Detections, thickness: int) -> None:
    """Colour the masks inside and their edges, in place; smaller ones over larger ones.

    supervision's own annotators take minutes for a thousand masks in a large image, where OpenCV is missing.
    """
    colors = [PALETTE.by_idx(index).as_rgb() for index in range(len(PALETTE.colors))]
    table = np.array([(0, 0, 0), *colors, *colors], np.float32)
    opacity = np.repeat(np.array([0, MASK_OPACITY, 1], np.float32), [1, len(colors), len(colors)])[:, None]
    kind = np.zeros(scene.shape[:2], np.uint8)
    for index, (x, y), crop in _largest_first(detections):
        window = kind[y : y + crop.shape[0], x : x + crop.shape[1]]
        window[crop] = 1 + index % len(colors) + len(colors)
        window[_eroded(crop, thickness)] = 1 + index % len(colors)
    for start in range(0, len(scene), BLEND_ROWS):
        rows, kinds = scene[start : start + BLEND_ROWS], kind[start : start + BLEND_ROWS]
        there = kinds > 0
        of = kinds[there]
        rows[there] = np.rint(rows[there] * (1 - opacity[of]) + table[of] * opacity[of])


def _largest_first(detections: sv.Detections) -> Iterator[tuple[int, tuple[int, int], npt.NDArray[np.bool_]]]:
    """Index, corner x, y and bool crop of each mask."""
    masks = detections.mask
    if masks is None:
        return
    for index in np.flip(np.argsort(detections.area, kind="stable")).tolist():
        if isinstance(masks, CompactMask):
            x, y = masks.offsets[index].tolist()
            yield index, (x, y), masks.crop(index)
        else:
            yield index, (0, 0), masks[index]


def _eroded(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """Pixels that are further than `by` px, along rows and columns, from what is not of the mask."""
    inside: npt.NDArray[Any] = np.pad(mask, by)
    for axis in (0, 1):
        inside = np.all(np.lib.stride_tricks.sliding_window_view(inside, 2 * by + 1, axis), axis=-1)
    return inside


def _write_labels(scene: Pixels, detections: sv.Detections, class_names: Sequence[str]) -> Pixels:
    """Write class and score at each object that is thicker than its text is high."""
    font_size = int(np.clip(FONT_SHARE * min(scene.shape[:2]), *FONT_RANGE))
    sides = detections.xyxy[:, 2:] - detections.xyxy[:, :2]
    thickness = detections.area / np.maximum(
        sides.max(1), 1
    )  # of what is drawn: a label would hide a thin object
    index = np.flatnonzero((sides.max(1) >= 2 * font_size) & (thickness >= font_size))
    if not len(index):
        return scene
    writer = sv.RichLabelAnnotator(
        SWAPPED,
        text_color=sv.Color.BLACK,
        font_size=font_size,
        text_padding=max(1, font_size // 6),
        smart_position=True,
    )
    shown = cast(sv.Detections, detections[index])
    written: Pixels = writer.annotate(scene, shown, _labels(shown, class_names), custom_color_lookup=index)
    return written


def _labels(detections: sv.Detections, class_names: Sequence[str]) -> list[str]:
    ids = [] if detections.class_id is None else detections.class_id.tolist()
    names = [class_names[label] for label in ids] or [""] * len(detections)
    if detections.confidence is None:
        return names
    pairs = zip(names, detections.confidence, strict=True)
    return [f"{name} {score:.2f}".lstrip() for name, score in pairs]


def _inside(detections: sv.Detections, size: tuple[int, ...]) -> sv.Detections:
    """Boxes end on their last pixel instead of one beyond it, so that they are seen at the image's edge."""
    height, width = size
    ends = np.array([width - 1, height - 1, width - 1, height - 1], np.float32)
    first, last = np.floor(detections.xyxy[:, :2]), np.ceil(detections.xyxy[:, 2:]) - 1
    corners = np.concatenate([first, np.maximum(first, last)], 1)
    return replace(detections, xyxy=np.clip(corners, 0, ends).astype(np.float32))


def write_image(image: npt.NDArray[Any], path: Path) -> None:
    """Write uint8 `[H, W, 3]`, or bool or uint16 `[H, W]`, whole or not at all; the suffix says the format.

    Raises:
        BadInput: a suffix that is no image format's.
    """
    file_format = Image.registered_extensions().get(path.suffix.lower())
    if file_format is None:
        raise BadInput(f"{path}: not the name of an image; end it in .png or .jpg")
    # encoded before the file is begun: who kills us leaves no half of it, by any name
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, compress_level=PNG_LEVEL)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def side_by_side(left: Pixels, right: Pixels, titles: tuple[str, str]) -> Pixels:
    """Two images uint8 [H, W, 3] beside each other, each under its title."""
    return contact_sheet([entitle(left, titles[0]), entitle(right, titles[1])], columns=2)


def contact_sheet(images: Sequence[Pixels], columns: int) -> Pixels:
    """Images uint8 [h, w, 3] of any sizes, row by row in `columns` on white paper, uint8 [H, W, 3].

    Columns are as wide and rows as high as their largest image; nothing is scaled.
    """
    if not images:
        return np.full((1, 1, 3), PAPER, np.uint8)
    columns = max(1, min(columns, len(images)))
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    widths = [max(image.shape[1] for image in images[c::columns]) for c in range(min(columns, len(images)))]
    total = (sum(heights) + GAP * max(0, len(heights) - 1), sum(widths) + GAP * max(0, len(widths) - 1))
    sheet = np.full((max(1, total[0]), max(1, total[1]), 3), PAPER, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = sum(heights[:row]) + GAP * row, sum(widths[:column]) + GAP * column
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def entitle(image: Pixels, title: str) -> Pixels:
    """Put the image under a line of black text; text that is too wide is made smaller."""
    size = int(np.clip(FONT_SHARE * min(image.shape[:2]), 12, FONT_RANGE[1]))
    font = ImageFont.load_default(size)
    wide = font.getlength(title)
    if wide > image.shape[1] - 4:
        font = ImageFont.load_default(max(4, size * (image.shape[1] - 4) / wide))
    line = Image.new("RGB", (image.shape[1], round(1.6 * size)), (PAPER,) * 3)
    ImageDraw.Draw(line).text((2, line.height // 2), title, fill=(0, 0, 0), font=font, anchor="lm")
    return np.concatenate([np.asarray(line), image])


def plot_curves(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Losses, and AP where it was measured, over the steps of a training, as an image; needs extra `train`.

    Args:
        history: rows of metrics.csv: `step` (or `epoch`), `loss/...`, and `segm/AP...`, `bbox/AP...` where
            they were measured. Values that are absent, empty or not finite leave no point.
        path: image to write, whole or not at all; the suffix says the format.
    """
    from matplotlib.figure import Figure

    axis = "step" if any("step" in row for row in history) else "epoch"
    groups = {"loss": _curves(history, axis, "loss/"), "AP": _curves(history, axis, "segm/AP", "bbox/AP")}
    shown = {name: curves for name, curves in groups.items() if curves or name == "loss"}
    figure = Figure(figsize=(6.5 * len(shown), 4.5), dpi=120, layout="constrained")
    for panel, (name, curves) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        _plot(panel, name, axis, curves)
    _write_figure(figure, path)


def plot_counts(splits: Mapping[str, Mapping[str, Sequence[int]]], path: str | Path) -> None:
    """Objects by class and size, a panel for each split, as an image; needs extra `train`.

    Args:
        splits: of each split, small, medium and large objects of each class; the first split's most frequent
            `MAX_CLASSES` are shown.
        path: image to write, whole or not at all; the suffix says the format.
    """
    from matplotlib.figure import Figure

    classes = dict.fromkeys(name for counts in splits.values() for name in counts)
    first = next(iter(splits.values()), {})
    names = sorted(classes, key=lambda name: -sum(first.get(name, ())))[:MAX_CLASSES]
    size = (1 + 4.5 * max(len(splits), 1), 1.5 + 0.25 * len(names))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, max(len(splits), 1), squeeze=False, sharey=True)[0]
    panels[0].set_yticks(range(len(names)), map(_plain, names))
    panels[0].set_ylim(max(len(names), 1) - 0.5, -0.5)  # the first on top
    if len(classes) > len(names):
        panels[0].set_ylabel(f"the {len(names)} most frequent of {len(classes)} classes")
    for panel, (split, counts) in zip(panels, splits.items(), strict=False):
        _stack(panel, np.array([counts.get(name, (0, 0, 0)) for name in names]).reshape(-1, 3))
        panel.set(title=f"{split}: {sum(map(sum, counts.values()))} objects", xlabel="objects")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    _write_figure(figure, path)


def _write_figure(figure: Any, path: str | Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods are not annotated
    canvas.draw()
    write_image(np.asarray(canvas.buffer_rgba())[..., :3], Path(path))


def _plain(name: str) -> str:
    """Return a name as a chart can show it: one short line, without mathematics and lone surrogates."""
    line = " ".join(name.encode("utf-8", "backslashreplace").decode().split())
    return (line if len(line) <= MAX_NAME else f"{line[: MAX_NAME - 1]}…").replace("$", r"\$")


def _stack(panel: Any, counts: npt.NDArray[np.int64]) -> None:
    left = np.cumsum(counts, axis=1) - counts
    for column, size in enumerate(("small", "medium", "large")):
        panel.barh(range(len(counts)), counts[:, column], left=left[:, column], label=size, height=0.7)
    panel.grid(axis="x", alpha=0.3)


def _curves(
    history: Sequence[Mapping[str, Any]], axis: str, *prefixes: str
) -> dict[str, list[tuple[float, float]]]:
    """Name -> points (x, y), for the columns that start with one of `prefixes`."""
    names = dict.fromkeys(name for row in history for name in row if name.startswith(prefixes))
    curves = {name: [_point(row, axis, name) for row in history] for name in names}
    finite = {name: [point for point in points if point is not None] for name, points in curves.items()}
    return {name: points for name, points in finite.items() if points}


def _point(row: Mapping[str, Any], axis: str, name: str) -> Point | None:
    try:
        x, y = float(row[axis]), float(row[name])
    except (KeyError, TypeError, ValueError):
        return None
    return (x, y) if math.isfinite(x) and math.isfinite(y) else None


def _plot(panel: Any, name: str, axis: str, curves: Mapping[str, list[Point]]) -> None:
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
