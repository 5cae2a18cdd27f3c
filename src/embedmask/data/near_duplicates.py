"""Divide images into splits by their content alone, near-duplicates on one side."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree  # type: ignore[import-untyped]

from embedmask.data.images import read_image
from embedmask.errors import BadInput

SIDE = 16
"""Images are compared as grey images of this side, px."""
TOLERANCE = 0.5
"""Largest difference of two near-duplicates in any of these pixels, in standard deviations of the image's grey.

Copies that are stored as JPEG, resized, or a fifth brighter differ by up to 0.5, different photographs by 1.5 or more.
"""
MIN_DEVIATION = 4.0
"""Deviation below which an image counts as flat: its noise is not enlarged, grey levels."""
MEAN_TOLERANCE = (3.0, 40.0)
"""Largest difference of the means of their colors, in standard deviations and in grey levels."""
AUGMENTED = re.compile(r"(.+)\.rf\.[0-9A-Za-z]+")
"""Names of Roboflow's augmented copies: the original's name comes first."""


def divide(paths: Sequence[Path], fractions: Mapping[str, float]) -> dict[str, list[int]]:
    """Divide images into `train` and other splits, by content.

    Groups of near-duplicates are put in the order of the smallest hash of their files. `val` is taken from the
    beginning, `test` from the end, each until adding a group would not bring it closer to its fraction. So the result
    depends neither on names nor on order, the sizes are as close as the groups allow, and images that are added later
    move only those whose hash is next to a border.

    Args:
        paths: files of the images.
        fractions: of all images, for `val` and `test`; each above 0, their sum below 1.

    Returns:
        Positions in `paths`, ascending, of every split; none is empty.

    Raises:
        BadInput: fewer groups than splits, or an image that cannot be read.
    """
    if not all(value > 0 for value in fractions.values()) or sum(fractions.values()) >= 1:
        raise BadInput(f"fractions must be above 0 and below 1 together, got {dict(fractions)}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(pool.map(_file_hash, paths))
    groups = sorted(near_duplicates(paths, hashes), key=lambda group: min(hashes[i] for i in group))
    if len(groups) <= len(fractions):
        raise BadInput(
            f"{len(paths)} images in {len(groups)} groups of near-duplicates cannot be divided into train, "
            f"{', '.join(fractions)}; add images that differ"
        )
    result: dict[str, list[int]] = {}
    for waiting, (split, fraction) in enumerate(fractions.items()):
        order = groups if split != "test" else groups[::-1]
        spare = len(groups) - (
            len(fractions) - waiting
        )  # each split behind this one needs a group, and so does train
        chosen = _closest(order, max(1.0, fraction * len(paths)), spare)
        result[split] = sorted(i for group in chosen for i in group)
        groups = [group for group in groups if group not in chosen]
    return {"train": sorted(i for group in groups for i in group), **result}


def _closest(groups: Sequence[list[int]], target: float, most: int) -> list[list[int]]:
    """Take groups in order while each brings their number of images closer to the target; at least one."""
    chosen: list[list[int]] = []
    count = 0
    for group in groups:
        if len(chosen) < most and abs(count + len(group) - target) < abs(count - target):
            chosen.append(group)
            count += len(group)
    return chosen or [min(groups, key=len)]


def _file_hash(path: Path) -> bytes:
    # of the file, not of its pixels: decoders of JPEG differ in the last bit
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def near_duplicates(paths: Sequence[Path], hashes: Sequence[bytes]) -> list[list[int]]:
    """Group images that show the same: stored again, resized, mirrored, turned, a little brighter, or of equal bytes.

    Roboflow's augmented copies, `NAME.rf.HASH.jpg`, are kept with each other by their names. An image that is similar
    to two others joins their groups.

    Args:
        paths: files of the images; one of each hash is decoded.
        hashes: of the files.

    Returns:
        Positions in `paths`; groups in the order of their first image.

    Raises:
        BadInput: an image cannot be read.
    """
    links = _same(hashes) + _same([match[1] if (match := AUGMENTED.fullmatch(p.stem)) else p for p in paths])
    firsts = sorted({hash: place for place, hash in reversed(list(enumerate(hashes)))}.values())
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding leaves the interpreter free
        thumbnails = list(pool.map(_thumbnail, (paths[i] for i in firsts)))
    owner = np.arange(len(paths), dtype=np.int64)
    for one, other in links:
        _unite(owner, one, other)
    _unite_similar(owner, np.array(firsts, dtype=np.int64), np.array(thumbnails, dtype=np.float32))
    groups: dict[int, list[int]] = defaultdict(list)
    for place, root in enumerate(owner.tolist()):
        groups[root].append(place)
    return list(groups.values())


def _same(values: Sequence[object]) -> list[tuple[int, int]]:
    first: dict[object, int] = {}
    return [(first.setdefault(value, place), place) for place, value in enumerate(values)]


def _unite(owner: NDArray[np.int64], one: int, other: int) -> None:
    if owner[one] != owner[other]:
        owner[owner == owner[other]] = owner[one]


def _thumbnail(path: Path) -> NDArray[np.float32]:
    """Return the grey image in a square, row by row, and the means of red, green and blue; float32 `[16 * 16 + 3]`."""
    pixels = np.ascontiguousarray(read_image(path, any_size=True).permute(1, 2, 0).numpy())
    image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    small = np.asarray(image, dtype=np.float32)
    return np.concatenate((small.mean(2).ravel(), small.mean((0, 1))))


def _unite_similar(
    owner: NDArray[np.int64], places: NDArray[np.int64], thumbnails: NDArray[np.float32]
) -> None:
    """Unite the groups of images with similar thumbnails, in any of the eight orientations.

    Args:
        owner: number of the group of each image `[N]`, changed in place.
        places: image of each thumbnail `[T]`.
        thumbnails: `[T, 16 * 16 + 3]`.
    """
    if len(places) < 2:
        return
    grey, colors = thumbnails[:, :-3], thumbnails[:, -3:]
    deviation = grey.std(1, keepdims=True)
    normal = ((grey - grey.mean(1, keepdims=True)) / np.maximum(deviation, MIN_DEVIATION)).astype(np.float16)
    limits = 1 + np.minimum(MEAN_TOLERANCE[0] * deviation[:, 0], MEAN_TOLERANCE[1])
    coarse = _invariant(normal)
    # two thumbnails differ at least as much as their sorted means of blocks
    tree = cKDTree(coarse)
    for number in range(len(places)):
        near = np.array(tree.query_ball_point(coarse[number], TOLERANCE + 0.01, p=np.inf), dtype=np.int64)
        near = near[owner[places[near]] != owner[places[number]]]
        limit = np.minimum(limits[number], limits[near])
        near = near[np.abs(colors[near] - colors[number]).max(1, initial=0.0) <= limit]
        for other in near[_are_similar(normal[number], normal[near])].tolist():
            _unite(owner, int(places[number]), int(places[other]))


def _invariant(normal: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return means of 4 x 4 blocks, sorted among those that mirroring and turning exchange; float32 `[T, 16]`."""
    block = SIDE // 4
    means = normal.astype(np.float32).reshape(-1, 4, block, 4, block).mean((2, 4)).reshape(-1, 16)
    corners, center = [0, 3, 12, 15], [5, 6, 9, 10]
    edges = [place for place in range(16) if place not in corners + center]
    return np.concatenate([np.sort(means[:, part], axis=1) for part in (corners, edges, center)], axis=1)


def _are_similar(one: NDArray[np.float16], others: NDArray[np.float16]) -> NDArray[np.bool_]:
    square = one.reshape(SIDE, SIDE)
    similar = np.zeros(len(others), dtype=bool)
    for turns in range(4):
        turned = np.rot90(square, turns)
        for view in (turned, turned[:, ::-1]):
            similar |= np.abs(others - view.ravel()).max(1, initial=0.0) <= TOLERANCE
    return similar
