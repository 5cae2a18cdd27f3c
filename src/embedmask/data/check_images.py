"""Judge the images of a data set: those that are broken, of another size than written, or there more than once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from embedmask.config.data import Split
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_image, read_size, size_of
from embedmask.data.problems import Example, Kind, OnIssue, Problem
from embedmask.data.turned_copies import NAMES, Thumb, find_turned_copies, misplaced, thumbnail
from embedmask.errors import BadInput

CHUNK = 512
"""Images that wait for a thread."""
Place = tuple[Split, int]
"""A split and the place of an image in it."""


@dataclass(frozen=True)
class Content:
    """What an image shows.

    Attributes:
        digest: the same for the same upright pixels; of the bytes of the file where pixels are not decoded.
        thumb: the image made small, in the frame of its annotations; None: not decoded.
    """

    digest: bytes
    thumb: Thumb | None


def look_at_all(
    sets: Mapping[Split, CocoInstances], quick: bool, workers: int | None
) -> Iterator[tuple[Place, Content | Problem | None]]:
    """Yield every image with its content, or what is wrong with it; None where it is missing.

    Args:
        sets: the splits.
        quick: compare the bytes of the files, and decode nothing.
        workers: threads; None: one a core.
    """
    places = [(split, index) for split, dataset in sets.items() for index in range(len(dataset))]

    def look(place: Place) -> tuple[Place, Content | Problem | None]:
        split, index = place
        return place, _look(sets[split], index, quick)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # decoding leaves the interpreter free
        for start in range(0, len(places), CHUNK):
            yield from pool.map(look, places[start : start + CHUNK])


def _look(dataset: CocoInstances, index: int, quick: bool) -> Content | Problem | None:
    """Return what tells the image from others, or what is wrong with it; None where it is missing."""
    path, expected = dataset.image_path(index), dataset.sizes[index]
    if not path.is_file():
        return None  # known already
    try:
        image = None if quick else read_image(path, options=dataset.options)
        size = read_size(path, dataset.options) if image is None else size_of(image)
        content = path.read_bytes() if image is None else _pixels(image)
    except BadInput as error:
        return Problem("broken image", str(error))
    if size != expected or (image is not None and dataset.exif == "stored"):
        try:
            image = dataset.image(index)  # it may be meant as it is stored, not upright
        except BadInput as error:
            return Problem("wrong size", str(error))
    thumb = None if quick or image is None else thumbnail(image)
    return Content(hashlib.blake2b(content, digest_size=16).digest(), thumb)


def _pixels(image: Tensor) -> bytes:
    return repr(size_of(image)).encode() + image.permute(1, 2, 0).numpy().tobytes()


class Copies:
    """Finds images that are there more than once."""

    def __init__(self, sets: Mapping[Split, CocoInstances], handlers: Mapping[Split, OnIssue]) -> None:
        self.sets = sets
        self.handlers = handlers
        self.places: dict[bytes, Place] = {}
        self.thumbs: dict[Place, Thumb] = {}

    def add(self, place: Place, content: Content) -> None:
        """Tell of an image whose pixels were seen before; otherwise it is known from then on."""
        other = self.places.setdefault(content.digest, place)
        if other != place:
            kind: Kind = "leak" if other[0] != place[0] else "same image twice"
            message = f"{self.name(place)}: is the same image as {self.name(other)}; remove one"
            self.handlers[place[0]](Problem(kind, message, fatal=False))
        elif content.thumb is not None:
            self.thumbs[place] = content.thumb

    def compare_turned(self) -> None:
        """Tell of turned copies between splits, and of those whose objects contradict the turn."""
        places = list(self.thumbs)
        sizes = [self.sets[split].sizes[index] for split, index in places]
        for copy in find_turned_copies(list(self.thumbs.values()), sizes):
            first, second = places[copy.first], places[copy.second]
            shows = f"{self.name(second)}: shows {self.name(first)} {NAMES[copy.turn]}"
            on_issue, image_id = self.handlers[second[0]], self.sets[second[0]].image_ids[second[1]]
            if first[0] != second[0]:
                on_issue(Problem("leak", f"{shows}; remove one", fatal=False))
            ours, theirs = (self.sets[split].annotations(index) for split, index in (first, second))
            fault = misplaced(ours, theirs, copy.turn)
            if fault:
                advice = f"look at both, and give image {image_id} and its twin their own objects"
                example = Example(image_id)
                on_issue(
                    Problem(
                        "objects of a turned copy",
                        f"{shows}, but {fault}; {advice}",
                        fatal=False,
                        example=example,
                    )
                )

    def name(self, place: Place) -> str:
        """Return the file and the split of an image."""
        split, index = place
        return f"{self.sets[split].image_path(index)} of {split}"
