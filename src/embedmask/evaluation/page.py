"""Building blocks of a self-contained web page: tables, bars, charts and images as HTML and SVG text."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 74rem;
  margin: 0 auto; padding: 1rem 1.25rem 3rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #d5dae0; padding-bottom: .2rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.scroll { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e8ebef; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.text, th.text { text-align: left; white-space: normal; min-width: 16rem; }
th { font-weight: 600; color: #48525e; }
.bar { width: 8rem; height: .8rem; background: #eef1f4; }
.bar i { display: block; height: 100%; background: #1c7ed6; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: .85rem; color: #48525e; overflow-wrap: anywhere; }
.curve { flex: 1 1 17rem; max-width: 24rem; }
.curve svg { width: 100%; height: auto; }
.pair { flex: 1 1 22rem; max-width: 35rem; break-inside: avoid; }
.pair div { display: flex; gap: 4px; }
.pair img { width: calc(50% - 2px); height: auto; }
@media (max-width: 34rem) { body { padding: .5rem .75rem 2rem; } td:first-child { white-space: normal; } }
@media print { body { padding: 0; font-size: 9px; } .scroll { overflow: visible; }
  h2, p { break-after: avoid; } tr { break-inside: avoid; } }
"""
COLORS = ("#1864ab", "#d9480f", "#2b8a3e", "#862e9c")
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
"""Dash patterns of the curves, which distinguish them in black-and-white prints."""
WIDTH, HEIGHT, LEFT, TOP = 300, 220, 34, 8
"""Size of a chart, and its left and top margin, in SVG units."""
THUMBNAIL_SIDE = 440
"""Longest side of an image, px."""


class Html(str):
    """Text that is already HTML and must not be escaped."""


def document(title: str, sections: Iterable[str]) -> str:
    """Return the page of a plain title and of sections, which must be HTML."""
    head = (
        f'<meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
    )
    body = "\n".join([f"<h1>{escape(title)}</h1>", *sections])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def section(title: str, text: str, *parts: str) -> str:
    """Return a heading, a paragraph of plain text, and further parts, which must be HTML."""
    return "\n".join([f"<h2>{escape(title)}</h2>", f"<p>{escape(text)}</p>", *parts])


def number(value: float) -> str:
    """Format a figure with three digits; nan becomes a dash."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. Cells are plain text, or `Html` from `bar` or `note`."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(c if isinstance(c, Html) else f"<{tag}>{escape(c)}</{tag}>" for c in cells)

    lines = [line(head, "th"), *(line(row, "td") for row in rows)]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>{body}</table></div>'


def bar(value: float) -> Html:
    """Return a table cell with a bar for a value of 0..1; empty for nan."""
    share = 0.0 if math.isnan(value) else min(max(value, 0.0), 1.0)
    return Html(f'<td><div class="bar"><i style="width:{100 * share:.1f}%"></i></div></td>')


def note(text: str, tag: str = "td") -> Html:
    """Return a table cell of running text; tag `th` for the head."""
    return Html(f'<{tag} class="text">{escape(text)}</{tag}>')


def chart(
    title: str,
    curves: Sequence[tuple[str, NDArray[np.float64]]],
    axes: tuple[str, str] = ("recall", "precision"),
) -> str:
    """Draw curves over the unit square as SVG, under a plain title, which may be empty.

    Args:
        curves: name, and values at P evenly spaced positions of 0..1, float64 `[P]`; a curve with a nan is omitted.
    """
    grid = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _x(tick), _y(tick)
        grid.append(f'<path d="M{_x(0)},{y}H{_x(1)}M{x},{_y(0)}V{_y(1)}" stroke="#e3e7eb"/>')
        grid.append(f'<text x="{LEFT - 4}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
        grid.append(f'<text x="{x}" y="{HEIGHT - 18}" text-anchor="middle">{tick:g}</text>')
    grid.append(f'<text x="{_x(0.5)}" y="{HEIGHT - 4}" text-anchor="middle">{axes[0]}</text>')
    grid.append(f'<text transform="translate(9 {_y(0.5)}) rotate(-90)" text-anchor="middle">{axes[1]}</text>')
    lines, names = [], []
    for (name, values), color, dash in zip(curves, COLORS, DASHES, strict=False):
        names.append(f'<span style="color:{color}">{escape(name)}</span>')
        if not np.isnan(values).any():
            positions = zip(np.linspace(0, 1, len(values)).tolist(), values.tolist(), strict=True)
            points = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in positions)
            lines.append(
                f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8" '
                f'stroke-dasharray="{dash}"/>'
            )
    group = f'<g font-size="10" fill="#48525e">{"".join(grid)}</g>'
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{group}{"".join(lines)}</svg>'
    caption = " · ".join([f"<b>{escape(title)}</b>", *names] if title else names)
    return f'<figure class="curve">{drawing}<figcaption>{caption}</figcaption></figure>'


# unit square -> SVG units; y points down, the right and bottom margins are 12 and 32
def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - 12)


def _y(value: float) -> float:
    return TOP + (1 - value) * (HEIGHT - TOP - 32)


def pair(left: NDArray[np.uint8], right: NDArray[np.uint8], caption: str) -> str:
    """Return thumbnails of ground truth and prediction, uint8 `[H, W, 3]`, side by side over one caption."""
    images = []
    for name, pixels in (("ground truth", left), ("prediction", right)):
        image = Image.fromarray(pixels)
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        data = io.BytesIO()
        image.save(data, "JPEG", quality=82)
        # embedded as a data URI, so that the page needs no other files
        url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
        images.append(f'<img alt="{name}" width="{image.width}" height="{image.height}" src="{url}">')
    return f'<figure class="pair"><div>{"".join(images)}</div><figcaption>{escape(caption)}</figcaption></figure>'
