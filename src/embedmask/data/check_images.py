"""Check the images of a data set: broken files, wrong sizes, and images that occur more than once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from embedmask.config.data import Split
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_image, read_size, size_of
from embedmask.data.problems import Example, OnIssue, Problem, ProblemType
from embedmask.data.turned_copies import NAMES, Thumb, find_turned_copies, misplaced, thumbnail
from embedmask.errors import BadInput

CHUNK = 512
"""Number of images submitted to the threads at once."""
Place = tuple[Split, int]
"""A split and the index of an image in it."""


@dataclass(frozen=True)
class Content:
    """Content of an image, for comparison with other images.

    Attributes:
        digest: digest of the upright pixels, or of the bytes of the file if pixels are not decoded.
        thumb: thumbnail in the frame of the annotations; None if pixels are not decoded.
    """

    digest: bytes
    thumb: Thumb | None


def check_images(
    sets: Mapping[Split, CocoInstances],
    handlers: Mapping[Split, OnIssue],
    *,
    quick: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Read all images, and report broken ones, wrong sizes and copies.

    Args:
        quick: compare the bytes of the files instead of the decoded pixels.
        workers: number of threads; None for one per core.
        progress: called with the number of images read so far and the total.
    """
    copies = Copies(sets, handlers)
    total = sum(map(len, sets.values()))
    for done, (place, content) in enumerate(_read_all(sets, quick, workers), start=1):
        if isinstance(content, Problem):
            handlers[place[0]](content)
        elif content is not None:
            copies.add(place, content)
        progress(done, total)
    copies.compare_turned()


def _read_all(
    sets: Mapping[Split, CocoInstances], quick: bool, workers: int | None
) -> Iterator[tuple[Place, Content | Problem | None]]:
    """Yield each image with its content or its problem, or with None if the file is missing (reported elsewhere)."""

    def read(place: Place) -> tuple[Place, Content | Problem | None]:
        dataset, index = sets[place[0]], place[1]
        path, expected = dataset.image_path(index), dataset.sizes[index]
        if not path.is_file():
            return place, None
        try:
            image = None if quick else read_image(path, options=dataset.options)
            size = read_size(path, dataset.options) if image is None else size_of(image)
            if image is None:
                content = path.read_bytes()
            else:  # include the size: images of different shapes may have equal bytes
                content = repr(size).encode() + image.permute(1, 2, 0).numpy().tobytes()
        except BadInput as error:
            return place, Problem("broken image", str(error))
        if size != expected or (image is not None and dataset.exif == "stored"):
            try:  # the annotations may refer to the image as stored, not upright
                image = dataset.image(index)
            except BadInput as error:
                return place, Problem("wrong size", str(error))
        thumb = None if quick or image is None else thumbnail(image)
        return place, Content(hashlib.blake2b(content, digest_size=16).digest(), thumb)

    places = [(split, index) for split, dataset in sets.items() for index in range(len(dataset))]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # decoding releases the GIL
        # in chunks, so that results that are not consumed yet do not pile up
        for start in range(0, len(places), CHUNK):
            yield from pool.map(read, places[start : start + CHUNK])


class Copies:
    """Detector of images that occur more than once, in one split or in two.

    Attributes:
        sets: data set of each split.
        handlers: issue handler of each split.
        places: first image of each digest.
        thumbs: thumbnails of these images.
    """

    def __init__(self, sets: Mapping[Split, CocoInstances], handlers: Mapping[Split, OnIssue]) -> None:
        self.sets = sets
        self.handlers = handlers
        self.places: dict[bytes, Place] = {}
        self.thumbs: dict[Place, Thumb] = {}

    def add(self, place: Place, content: Content) -> None:
        """Report an image with the same content as an earlier one; remember any other image."""
        other = self.places.setdefault(content.digest, place)
        if other != place:
            kind: ProblemType = "leak" if other[0] != place[0] else "same image twice"
            message = f"{self.name(place)}: is the same image as {self.name(other)}; remove one"
            self.handlers[place[0]](Problem(kind, message, fatal=False))
        elif content.thumb is not None:
            self.thumbs[place] = content.thumb

    def compare_turned(self) -> None:
        """Report turned copies in different splits, and turned copies whose objects contradict the turn."""
        places = list(self.thumbs)
        sizes = [self.sets[split].sizes[index] for split, index in places]
        for copy in find_turned_copies(list(self.thumbs.values()), sizes):
            first, second = places[copy.first], places[copy.second]
            shows = f"{self.name(second)}: shows {self.name(first)} {NAMES[copy.turn]}"
            on_issue, image_id = self.handlers[second[0]], self.sets[second[0]].image_ids[second[1]]
            if first[0] != second[0]:
                on_issue(Problem("leak", f"{shows}; remove one", fatal=False))
            objects, turned = (self.sets[split].annotations(index) for split, index in (first, second))
            fault = misplaced(objects, turned, copy.turn)
            if fault:
                advice = f"look at both, and give image {image_id} and its copy their own objects"
                message, example = f"{shows}, but {fault}; {advice}", Example(image_id)
                on_issue(Problem("objects of a turned copy", message, fatal=False, example=example))

    def name(self, place: Place) -> str:
        """Return the file and the split of an image, for messages."""
        split, index = place
        return f"{self.sets[split].image_path(index)} of {split}"
