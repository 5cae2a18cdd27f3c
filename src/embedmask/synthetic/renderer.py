"""Renderer of synthetic images: textured shapes that occlude each other, with exact masks of their visible parts.

Classes are thin or concave or have holes, so that boxes alone do not determine the masks. Each class has a range of
hues, but some of its objects have any color: the outline decides, not the color.
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
"""Center x, center y and radius of an object, px."""
Distance = Callable[[Floats, Floats, float, Rng], Floats]

MIN_SIZE = 32
"""Smallest side of an image, px."""
MIN_RADIUS = 4.0
"""Half the extent of the smallest object, px."""
MAX_OBJECTS = 5
ANY_SCALE_SHARE = 0.1
"""Share of objects whose size is uniform on a logarithmic scale; the others are mostly large."""
EMPTY_SHARE = 0.03
"""Share of images without objects."""
NEIGHBOR_SHARE = 0.4
"""Share of objects that are placed next to another one, so that many touch and occlude each other."""
FAMILY_SHARE = 0.9
"""Share of objects with a color from the hues of their class."""
MIN_VISIBLE_PIXELS = 16
MIN_VISIBLE_SHARE = 0.4
"""Minimum visible part of an object; others are not painted, so that every painted object is annotated."""

# Outlines: signed distance to the outline, px, negative inside, at (x, y) px in the object's rotated frame.


def disc(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    """Return the approximate distance to an ellipse of random height."""
    height = radius * rng.uniform(0.8, 1.0)
    # the implicit function over its gradient; 1e-6 keeps the center finite
    scaled = np.hypot(x / radius, y / height) + 1e-6
    slope = np.hypot(x / radius**2, y / height**2) + 1e-6 / height
    distance: Floats = scaled * (scaled - 1) / slope
    return distance


def square(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    """Return the distance to a rectangle that is nearly a square."""
    side = radius * 0.75
    return _box(x, y, side, side * rng.uniform(0.85, 1.0))


def triangle(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    """Return the distance to a triangle, stretched at random."""
    return _star(x, y * rng.uniform(0.9, 1.1), radius, points=3, inner=0.5)


def star(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    """Return the distance to a star of five points."""
    return _star(x, y, radius, points=5, inner=rng.uniform(0.4, 0.5))


def ring(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    """Return the distance to a ring of random width."""
    width = max(2.0, radius * rng.uniform(0.25, 0.4))
    distance: Floats = np.abs(np.hypot(x, y) - (radius - width / 2)) - width / 2
    return distance


def crescent(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    """Return the distance to a disc minus a shifted smaller disc."""
    shift = radius * rng.uniform(0.4, 0.6)
    bite = 0.85 * radius - np.hypot(x - shift, y)
    distance: Floats = np.maximum(np.hypot(x, y) - radius, bite)
    return distance


def bar(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    """Return the distance to a thin rectangle."""
    return _box(x, y, radius, max(1.25, radius * rng.uniform(0.09, 0.17)))


def cross(x: Floats, y: Floats, radius: float, rng: Rng) -> Floats:
    """Return the distance to the union of two rectangles."""
    arm = max(1.25, radius * rng.uniform(0.2, 0.32))
    return np.minimum(_box(x, y, radius, arm), _box(x, y, arm, radius))


def _box(x: Floats, y: Floats, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _star(x: Floats, y: Floats, radius: float, points: int, inner: float) -> Floats:
    """Return the distance to a star with tips at `radius` and notches at `inner` x `radius`."""
    # symmetry: fold the plane onto half of one tip, where the outline is one straight edge
    half = math.pi / points
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    length = np.hypot(x, y)
    # the edge leads from the tip (1, 0) to the notch, in units of the radius
    notch_x, notch_y = inner * math.cos(half), inner * math.sin(half)
    edge = math.hypot(1 - notch_x, notch_y)
    # distance to its line: the offset from the tip, projected on the outward normal
    along_x, along_y = length * np.cos(angle) - radius, length * np.sin(angle)
    distance: Floats = (along_x * notch_y + along_y * (1 - notch_x)) / edge
    return distance


SHAPES: dict[str, Distance] = {
    "disc": disc,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "crescent": crescent,
    "bar": bar,
    "cross": cross,
}
CLASS_NAMES = tuple(SHAPES)


@dataclass
class Shape:
    """One object, cropped to the part of the image that it can cover.

    Attributes:
        label: index into `CLASS_NAMES`.
        radius: half its extent, px.
        rows, columns: place of the crop in the image.
        x, y: centers of the crop's pixels in the object's rotated frame, px.
        distance: signed distance to the outline, px, negative inside.
    """

    label: int
    radius: float
    rows: slice
    columns: slice
    x: Floats
    y: Floats
    distance: Floats

    @classmethod
    def sample(cls, place: Place, size: int, rng: Rng) -> Shape:
        """Sample the class and the angle of an object at `place` in an image of `size` px."""
        center_x, center_y, radius = place
        label = int(rng.integers(len(SHAPES)))
        # 1.3: a stretched triangle reaches beyond its radius; + 2 px for the soft edge
        reach = 1.3 * radius + 2
        left, right = max(0, int(center_x - reach)), min(size, int(center_x + reach) + 1)
        top, bottom = max(0, int(center_y - reach)), min(size, int(center_y + reach) + 1)
        # [1, w] and [h, 1], which broadcast: pixel centers relative to the object's center
        dx = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - center_x)
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - center_y)
        angle = rng.uniform(0, 2 * np.pi)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y = dx * cos + dy * sin, dy * cos - dx * sin
        distance = SHAPES[CLASS_NAMES[label]](x, y, radius, rng)
        return cls(label, radius, slice(top, bottom), slice(left, right), x, y, distance)

    @property
    def mask(self) -> Bools:
        """Return the pixels whose center lies inside the outline, which are at least half covered."""
        return self.distance < 0


@dataclass
class Scene:
    """A rendered image, uint8 [H, W, 3], with the labels and the visible masks, bool [H, W], of its objects."""

    image: npt.NDArray[np.uint8]
    labels: list[int]
    masks: list[Bools]


def make_scene(size: int, rng: Rng) -> Scene:
    """Render one square image of `size` px with 0 to `MAX_OBJECTS` objects."""
    shapes, masks = select_visible(_sample_shapes(size, rng), size)
    image = _background(size, rng)
    # from back to front
    for shape in reversed(shapes):
        _paint(image, shape, rng)
    image += rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(1, 6))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Scene(pixels, [shape.label for shape in shapes], masks)


def _sample_shapes(size: int, rng: Rng) -> list[Shape]:
    """Sample objects from front to back; some reach beyond the image, many lie next to an earlier one."""
    count = 0 if rng.random() < EMPTY_SHARE else 1 + int(MAX_OBJECTS * rng.random() ** 1.2)
    max_radius = max(MIN_RADIUS, 0.45 * size / math.sqrt(max(1.0, count / 3)))
    places: list[Place] = []
    shapes = []
    for _ in range(count):
        scale = rng.random() if rng.random() < ANY_SCALE_SHARE else rng.random() ** 0.2
        radius = MIN_RADIUS * (max_radius / MIN_RADIUS) ** scale
        x, y = (rng.uniform(0.5 * radius, size - 0.5 * radius) for _ in range(2))
        if places and rng.random() < NEIGHBOR_SHARE:
            # close enough to an earlier object for the two to overlap
            near_x, near_y, near_radius = places[rng.integers(len(places))]
            angle, gap = rng.uniform(0, 2 * math.pi), (radius + near_radius) * rng.uniform(0.4, 0.9)
            beside_x, beside_y = near_x + gap * math.cos(angle), near_y + gap * math.sin(angle)
            if 0 < beside_x < size and 0 < beside_y < size:
                x, y = beside_x, beside_y
        places.append((x, y, radius))
        shapes.append(Shape.sample(places[-1], size, rng))
    return shapes


def select_visible(shapes: list[Shape], size: int) -> tuple[list[Shape], list[Bools]]:
    """Select the sufficiently visible objects, from front to back, and return them with their visible masks [H, W]."""
    occupied = np.zeros((size, size), bool)
    visible_shapes, masks = [], []
    for shape in shapes:
        visible = np.zeros((size, size), bool)
        visible[shape.rows, shape.columns] = shape.mask & ~occupied[shape.rows, shape.columns]
        min_pixels = max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * np.count_nonzero(shape.mask))
        # a dropped object is not painted, so it occludes nothing
        if np.count_nonzero(visible) < min_pixels:
            continue
        occupied |= visible
        visible_shapes.append(shape)
        masks.append(visible)
    return visible_shapes, masks


def _background(size: int, rng: Rng) -> Floats:
    """Return a background, float [H, W, 3]: two colors blended by a gradient and noise, and sometimes a pattern."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / np.float32(size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (x - 0.5) * np.float32(np.cos(angle)) + (y - 0.5) * np.float32(np.sin(angle))
    blend = 0.5 + slope * np.float32(rng.uniform(0, 1))
    # smooth noise of four octaves, about -1..1: random grids of growing resolution, enlarged to the image
    noise = np.zeros((size, size), np.float32)
    cells = int(rng.integers(2, 5))
    for octave in range(4):
        grid = rng.uniform(-1, 1, (cells << octave, cells << octave)).astype(np.float32)
        enlarged = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        noise += np.asarray(enlarged) * 0.6**octave
    blend = np.clip(blend + noise * np.float32(rng.uniform(0.1, 0.6)), 0, 1)
    # half way to gray: duller than most objects
    colors = [_color(rng) for _ in range(3)]
    first, second, third = ((color + color.mean()) / 2 for color in colors)
    image: Floats = first + (second - first) * blend[..., None]
    if rng.random() < 0.5:
        pattern = _pattern(x * size, y * size, rng.uniform(0.02, 0.15) * size, rng)
        image += (third - image) * (pattern * np.float32(rng.uniform(0.1, 0.35)))[..., None]
    return image


def _pattern(x: Floats, y: Floats, period: float, rng: Rng) -> Floats:
    """Return stripes, checks or dots of `period` px, 0..1."""
    angle = rng.uniform(0, np.pi)
    wave = np.float32(2 * np.pi / period)
    cos, sin = wave * np.float32(np.cos(angle)), wave * np.float32(np.sin(angle))
    along = np.sin(x * cos + y * sin)
    pattern = rng.integers(3)
    if pattern == 0:
        return np.clip(0.5 + 2 * along, 0, 1)
    across = np.sin(y * cos - x * sin)
    if pattern == 1:
        return np.clip(0.5 + 4 * along * across, 0, 1)
    return np.clip(2 * (along + across - 0.8), 0, 1)


def _paint(image: Floats, shape: Shape, rng: Rng) -> None:
    """Paint an object and its soft shadow over the image, in place."""
    depth = int(np.clip(0.08 * shape.radius, 1, 6))
    down, right = rng.integers(-depth, depth + 1, 2)
    softness = np.float32(1 + depth)
    shadow = np.clip(0.5 - shape.distance / (2 * softness), 0, 1) * np.float32(rng.uniform(0.2, 0.5))
    # the crop, shifted and cut to the image, and the same part of the shadow
    rows, columns = _shift(shape.rows, down, len(image)), _shift(shape.columns, right, len(image))
    cut = shadow[rows.start - shape.rows.start - down :, columns.start - shape.columns.start - right :]
    image[rows, columns] *= 1 - cut[: rows.stop - rows.start, : columns.stop - columns.start, None]
    canvas = image[shape.rows, shape.columns]
    # the outline is antialiased over one pixel
    cover = np.clip(0.5 - shape.distance, 0, 1)[..., None]
    canvas += (_surface(canvas, shape, rng) - canvas) * cover


def _shift(part: slice, step: int, size: int) -> slice:
    return slice(max(0, part.start + step), min(size, part.stop + step))


def _surface(canvas: Floats, shape: Shape, rng: Rng) -> Floats:
    """Return the object's colors, float [h, w, 3]: textured, lit from one side, darker at the rim."""
    label = shape.label if rng.random() < FAMILY_SHARE else None
    behind = canvas[shape.mask].mean(0)
    # a few attempts at a color that differs from the background; the last one is used if none does
    for _ in range(8):
        base = _color(rng, label)
        if np.abs(base - behind).max() > 60:
            break
    surface = np.broadcast_to(base, canvas.shape).astype(np.float32)
    if rng.random() < 0.6:
        pattern = _pattern(shape.x, shape.y, max(4.0, shape.radius * rng.uniform(0.2, 0.8)), rng)
        surface += (_color(rng) - surface) * (pattern * np.float32(rng.uniform(0.15, 0.5)))[..., None]
    light = 1 + shape.x * np.float32(rng.uniform(-0.3, 0.3) / shape.radius)
    rim = np.exp(np.minimum(shape.distance, 0) / np.float32(0.04 * shape.radius + 1))
    surface *= (light * (1 - np.float32(rng.uniform(0.1, 0.4)) * rim))[..., None]
    return surface


def _color(rng: Rng, label: int | None = None) -> Floats:
    """Sample a color, RGB 0..255: any, or one from the hues of a class."""
    if label is None:
        return rng.uniform(20, 235, 3).astype(np.float32)
    # classes divide the color circle, with small gaps between them
    hue = (label + rng.uniform(-0.3, 0.3)) / len(CLASS_NAMES)
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1), rng.uniform(0.45, 0.95))
    return np.array(rgb, np.float32) * 255
