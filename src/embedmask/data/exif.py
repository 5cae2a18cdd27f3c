"""Determine whether images with an EXIF orientation are annotated upright or as stored."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embedmask.config.data import Split
from embedmask.data.images import read_header, upright_size
from embedmask.data.problems import Example, Problem
from embedmask.errors import BadInput
from embedmask.structures import Size

Fit = Literal["upright", "stored", "either"]
FrameCounts = dict[Fit, tuple[int, Path]]
"""For each frame: number of images with an EXIF orientation that fit it, and one of them."""
CHUNK = 100
"""Number of headers that a thread reads at a time."""


@dataclass(frozen=True)
class Turned:
    """Image with an EXIF orientation.

    Attributes:
        path: file of the image.
        image_id: id of the image in the split.
        orientation: EXIF orientation, 2 to 8.
        fit: frame whose size agrees with the annotations, or "either".
    """

    path: Path
    image_id: int
    orientation: int
    fit: Fit


def find_turned(
    paths: Sequence[Path], image_ids: Sequence[int], sizes: Sequence[Size], relative: bool
) -> list[Turned]:
    """Find the images with an EXIF orientation by reading their headers; unreadable files are skipped.

    Args:
        sizes: `(height, width)` of each image according to the annotations.
        relative: whether the annotations were fractions of the image size, so that the size cannot decide.
    """

    def look_at(indices: range) -> list[Turned]:
        turned = []
        for index in indices:
            try:
                stored, orientation = read_header(paths[index])
            except BadInput:
                continue  # reported when the image is read
            if orientation != 1:
                fit: Fit = "stored" if sizes[index] == stored else "upright"
                both = relative or stored == upright_size(stored, orientation)
                turned.append(Turned(paths[index], image_ids[index], orientation, "either" if both else fit))
        return turned

    parts = [range(start, min(start + CHUNK, len(paths))) for start in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # files may lie on a slow disk
        return [turned for chunk in pool.map(look_at, parts) for turned in chunk]


def frame_problems(images: Sequence[Turned]) -> Iterator[Problem]:
    """Yield a problem for each image of a split that fits its annotations both upright and as stored."""
    known = _known(count_frames(images))
    hint = f" (images with only one possible frame: {known})" if known else ""
    for turned in images:
        if turned.fit == "either":
            message = (
                f"{turned.path}: EXIF orientation {turned.orientation}, and image {turned.image_id} fits its size "
                f"both upright and as stored; read as upright{hint}; look at it with data show, and choose "
                "with --data.exif upright or stored in train, --exif in eval, data check and data show"
            )
            yield Problem("EXIF orientation", message, fatal=False, example=Example(turned.image_id))


def count_frames(images: Sequence[Turned]) -> FrameCounts:
    """Count the images of each frame."""
    counts = Counter(turned.fit for turned in images)
    paths = {turned.fit: turned.path for turned in images}
    return {fit: (counts[fit], paths[fit]) for fit in counts}


def mixed_frames(splits: Mapping[Split, FrameCounts]) -> Problem | None:
    """Return a problem if, according to their sizes, some images are annotated upright and others as stored."""
    paths = {fit: path for frames in splits.values() for fit, (_, path) in frames.items()}
    if not {"upright", "stored"} <= paths.keys():
        return None
    known = "; ".join(f"{split}: {_known(frames)}" for split, frames in splits.items() if _known(frames))
    message = (
        f"images with an EXIF orientation are annotated upright, as {paths['upright']}, and as stored, as "
        f"{paths['stored']} ({known}); each is read in the frame that fits its size; check that this is intended"
    )
    return Problem("mixed EXIF frames", message, fatal=False)


def _known(frames: FrameCounts) -> str:
    """Format the counts of the images with only one possible frame, such as "3 upright, 1 stored"."""
    order: tuple[Fit, ...] = ("upright", "stored")
    return ", ".join(f"{frames[fit][0]} {fit}" for fit in order if fit in frames)
