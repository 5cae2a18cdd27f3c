"""Images of textured shapes that overlap and hide each other, with exact masks of what can be seen of each.

Thin, concave and holed classes, so that boxes alone do not give the masks away. A class has a colour family, as many
real things have, but a share of its objects is painted in any colour: colour is a hint, the outline decides.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Rng = np.random.Generator
Place = tuple[float, float, float]
"""Centre x, centre y and radius of an object, px."""
Distance = Callable[[Floats, Floats, float, Rng], Floats]

MIN_SIZE = 32
MIN_RADIUS = 4.0
"""Half of the smallest object's extent, px."""
MAX_OBJECTS = 5
ANY_SCALE_SHARE = 0.1
"""Share of objects that are as likely small as large; the others are mostly large."""
EMPTY_SHARE = 0.03
"""Share of images without any object."""
NEIGHBOUR_SHARE = 0.4
"""Share of objects that are put next to another one, so that many touch and hide each other."""
FAMILY_SHARE = 0.9
"""Share of objects painted in their class's colour family."""
MIN_VISIBLE_PIXELS = 16
MIN_VISIBLE_SHARE = 0.4
"""An object of which less can be seen is not drawn at all: what is in an image is in its annotations."""


# Signed distances, px, negative inside; (x, y) px in the object's own rotated frame around its centre.


def _disc(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    height = radius * rng.uniform(0.8, 1.0)
    scaled = np.hypot(x / radius, y / height) + 1e-6
    slope = np.hypot(x / radius**2, y / height**2) + 1e-6 / height
    distance: Floats = scaled * (scaled - 1) / slope
    return distance


def _square(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    side = radius * 0.75
    return _box(x, y, side, side * rng.uniform(0.85, 1.0))


def _triangle(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    return _fold(x, y * rng.uniform(0.9, 1.1), radius, points=3, inner=0.5)


def _star(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    return _fold(x, y, radius, points=5, inner=rng.uniform(0.4, 0.5))


def _ring(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    width = max(2.0, radius * rng.uniform(0.25, 0.4))
    distance: Floats = np.abs(np.hypot(x, y) - (radius - width / 2)) - width / 2
    return distance


def _crescent(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    shift = radius * rng.uniform(0.4, 0.6)
    bite = 0.85 * radius - np.hypot(x - shift, y)
    distance: Floats = np.maximum(np.hypot(x, y) - radius, bite)
    return distance


def _bar(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    return _box(x, y, radius, max(1.25, radius * rng.uniform(0.09, 0.17)))


def _cross(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    arm = max(1.25, radius * rng.uniform(0.2, 0.32))
    return np.minimum(_box(x, y, radius, arm), _box(x, y, arm, radius))


def _box(x: Floats, y: Floats, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _fold(x: Floats, y: Floats, radius: float, points: int, inner: float) -> Floats:
    """Star with tips at `radius` and notches at `inner` x `radius`, folded onto half of one tip."""
    half = math.pi / points
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    length = np.hypot(x, y)
    notch_x, notch_y = inner * math.cos(half), inner * math.sin(half)
    edge = math.hypot(1 - notch_x, notch_y)
    along_x, along_y = length * np.cos(angle) - radius, length * np.sin(angle)
    distance: Floats = (along_x * notch_y + along_y * (1 - notch_x)) / edge
    return distance


SHAPES: dict[str, Distance] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "crescent": _crescent,
    "bar": _bar,
    "cross": _cross,
}
CLASS_NAMES = tuple(SHAPES)


@dataclass
class Shape:
    """One object, cropped to the part of the image that it can touch.

    Attributes:
        label: index into `CLASS_NAMES`.
        rows, columns: where the crop lies in the image.
        x, y: the crop's pixel centres in the object's rotated frame, px.
        distance: signed distance to the outline, px, negative inside.
    """

    label: int
    radius: float
    rows: slice
    columns: slice
    x: Floats
    y: Floats
    distance: Floats

    @property
    def mask(self) -> Bools:
        """Pixels whose centre lies inside the outline: half covered or more."""
        return self.distance < 0


@dataclass
class Scene:
    """An image: `image` uint8 [H, W, 3], and the `labels` and visible `masks` bool [H, W] of its objects."""

    image: npt.NDArray[np.uint8]
    labels: list[int]
    masks: list[Bools]


def make_scene(size: int, rng: Rng) -> Scene:
    """Draw one square image of `size` px: 0 to `MAX_OBJECTS` objects, back to front, and what is visible of each."""
    shapes, masks = _keep_visible(_draw_shapes(size, rng), size)
    image = _background(size, rng)
    for shape in reversed(shapes):
        _paint(image, shape, rng)
    image += rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(1, 6))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Scene(pixels, [shape.label for shape in shapes], masks)


def _draw_shapes(size: int, rng: Rng) -> list[Shape]:
    """Objects from front to back, some beyond the image's edge, many beside or upon an earlier one."""
    count = 0 if rng.random() < EMPTY_SHARE else 1 + int(MAX_OBJECTS * rng.random() ** 1.2)
    largest = max(MIN_RADIUS, 0.45 * size / math.sqrt(max(1.0, count / 3)))
    placed: list[Place] = []
    shapes = []
    for _ in range(count):
        scale = rng.random() if rng.random() < ANY_SCALE_SHARE else rng.random() ** 0.2
        radius = MIN_RADIUS * (largest / MIN_RADIUS) ** scale
        center_x, center_y = _place(size, radius, placed, rng)
        placed.append((center_x, center_y, radius))
        shapes.append(_shape(placed[-1], size, rng))
    return shapes


def _place(size: int, radius: float, placed: list[Place], rng: Rng) -> tuple[float, float]:
    """Centre (x, y) px: anywhere, or so close to one of `placed` that the two may overlap."""
    x, y = (rng.uniform(0.5 * radius, size - 0.5 * radius) for _ in range(2))
    if placed and rng.random() < NEIGHBOUR_SHARE:
        near_x, near_y, near_radius = placed[rng.integers(len(placed))]
        angle, gap = rng.uniform(0, 2 * math.pi), (radius + near_radius) * rng.uniform(0.4, 0.9)
        beside_x, beside_y = near_x + gap * math.cos(angle), near_y + gap * math.sin(angle)
        if 0 < beside_x < size and 0 < beside_y < size:
            return beside_x, beside_y
    return x, y


def _shape(place: Place, size: int, rng: Rng) -> Shape:
    """Any class, any angle, at `place`."""
    center_x, center_y, radius = place
    label = int(rng.integers(len(SHAPES)))
    # 1.3: slack of a stretched triangle; + 2 px for the soft edge
    reach = 1.3 * radius + 2
    left, right = max(0, int(center_x - reach)), min(size, int(center_x + reach) + 1)
    top, bottom = max(0, int(center_y - reach)), min(size, int(center_y + reach) + 1)
    dx = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - center_x)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - center_y)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    distance = SHAPES[CLASS_NAMES[label]](x, y, radius, rng)
    return Shape(label, radius, slice(top, bottom), slice(left, right), x, y, distance)


def _keep_visible(shapes: list[Shape], size: int) -> tuple[list[Shape], list[Bools]]:
    """From front to back, the objects that can be seen well enough and their visible masks, bool [H, W]."""
    hidden = np.zeros((size, size), bool)
    kept, masks = [], []
    for shape in shapes:
        visible = np.zeros((size, size), bool)
        visible[shape.rows, shape.columns] = shape.mask & ~hidden[shape.rows, shape.columns]
        needed = max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * np.count_nonzero(shape.mask))
        if np.count_nonzero(visible) < needed:
            continue
        hidden |= visible
        kept.append(shape)
        masks.append(visible)
    return kept, masks


def _background(size: int, rng: Rng) -> Floats:
    """Colours mixed by a gradient, noise of several octaves and, at times, a pattern; float [H, W, 3]."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / np.float32(size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (x - 0.5) * np.float32(np.cos(angle)) + (y - 0.5) * np.float32(np.sin(angle))
    field = (
        0.5 + slope * np.float32(rng.uniform(0, 1)) + _noise(size, rng) * np.float32(rng.uniform(0.1, 0.6))
    )
    first, second, third = (_muted_color(rng) for _ in range(3))
    image = _mix(first, second, np.clip(field, 0, 1))
    if rng.random() < 0.5:
        pattern = _pattern(x * size, y * size, rng.uniform(0.02, 0.15) * size, rng)
        image += (third - image) * (pattern * np.float32(rng.uniform(0.1, 0.35)))[..., None]
    return image


def _noise(size: int, rng: Rng) -> Floats:
    """Smooth noise of four octaves, about -1..1, float [H, W]."""
    total = np.zeros((size, size), np.float32)
    cells = int(rng.integers(2, 5))
    for octave in range(4):
        grid = rng.uniform(-1, 1, (cells << octave, cells << octave)).astype(np.float32)
        total += (
            np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) * 0.6**octave
        )
    return total


def _pattern(x: Floats, y: Floats, period: float, rng: Rng) -> Floats:
    """Stripes, checks or dots of `period` px, 0..1."""
    angle = rng.uniform(0, np.pi)
    wave = np.float32(2 * np.pi / period)
    cos, sin = wave * np.float32(np.cos(angle)), wave * np.float32(np.sin(angle))
    along = np.sin(x * cos + y * sin)
    kind = rng.integers(3)
    if kind == 0:
        return np.clip(0.5 + 2 * along, 0, 1)
    across = np.sin(y * cos - x * sin)
    return np.clip(0.5 + 4 * along * across, 0, 1) if kind == 1 else np.clip(2 * (along + across - 0.8), 0, 1)


def _paint(image: Floats, shape: Shape, rng: Rng) -> None:
    """Lay the object and its soft shadow over the image, in place."""
    _cast_shadow(image, shape, rng)
    canvas = image[shape.rows, shape.columns]
    cover = np.clip(0.5 - shape.distance, 0, 1)[..., None]
    canvas += (_surface(canvas, shape, rng) - canvas) * cover


def _cast_shadow(image: Floats, shape: Shape, rng: Rng) -> None:
    depth = int(np.clip(0.08 * shape.radius, 1, 6))
    down, right = rng.integers(-depth, depth + 1, 2)
    softness = np.float32(1 + depth)
    shadow = np.clip(0.5 - shape.distance / (2 * softness), 0, 1) * np.float32(rng.uniform(0.2, 0.5))
    rows, columns = _shift(shape.rows, down, len(image)), _shift(shape.columns, right, len(image))
    cut = shadow[rows.start - shape.rows.start - down :, columns.start - shape.columns.start - right :]
    image[rows, columns] *= 1 - cut[: rows.stop - rows.start, : columns.stop - columns.start, None]


def _shift(part: slice, step: int, size: int) -> slice:
    return slice(max(0, part.start + step), min(size, part.stop + step))


def _surface(canvas: Floats, shape: Shape, rng: Rng) -> Floats:
    """Colours of the object's whole crop: textured, lit from one side, darker at its rim; float [h, w, 3]."""
    family = shape.label if rng.random() < FAMILY_SHARE else None
    base = _visible_color(canvas[shape.mask].mean(0), rng, family)
    surface = np.broadcast_to(base, canvas.shape).astype(np.float32)
    if rng.random() < 0.6:
        pattern = _pattern(shape.x, shape.y, max(4.0, shape.radius * rng.uniform(0.2, 0.8)), rng)
        surface += (_color(rng) - surface) * (pattern * np.float32(rng.uniform(0.15, 0.5)))[..., None]
    light = 1 + shape.x * np.float32(rng.uniform(-0.3, 0.3) / shape.radius)
    rim = np.exp(np.minimum(shape.distance, 0) / np.float32(0.04 * shape.radius + 1))
    surface *= (light * (1 - np.float32(rng.uniform(0.1, 0.4)) * rim))[..., None]
    return surface


def _visible_color(behind: Floats, rng: Rng, family: int | None) -> Floats:
    """A colour that stands off from `behind`; the last of a few draws when none is far enough."""
    for _ in range(8):
        color = _color(rng) if family is None else _family_color(family, rng)
        if np.abs(color - behind).max() > 60:
            break
    return color


def _family_color(family: int, rng: Rng) -> Floats:
    """Families share out the colour circle, a little apart."""
    hue = (family + rng.uniform(-0.3, 0.3)) / len(CLASS_NAMES)
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1), rng.uniform(0.45, 0.95))
    return np.array(rgb, np.float32) * 255


def _muted_color(rng: Rng) -> Floats:
    """Half way to grey: backgrounds are duller than most objects."""
    color = _color(rng)
    muted: Floats = (color + color.mean()) / 2
    return muted


def _color(rng: Rng) -> Floats:
    return rng.uniform(20, 235, 3).astype(np.float32)


def _mix(first: Floats, second: Floats, share: Floats) -> Floats:
    mixed: Floats = first + (second - first) * share[..., None]
    return mixed
