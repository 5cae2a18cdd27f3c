"""Split images by their content alone, without separating near-duplicates."""

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
from scipy.spatial import cKDTree  # type: ignore[import-untyped]

from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.images import read_image
from embedmask.data.turned_copies import SIDE, TURNS, block_means, orient
from embedmask.errors import BadInput

TOLERANCE = 0.5
"""Largest difference of the thumbnails of two near-duplicates in any pixel, in standard deviations of the gray levels.

Copies that are stored as JPEG, resized or a fifth brighter differ by up to 0.5, different photographs by 1.5 or more.
"""
MIN_DEVIATION = 4.0
"""Lower limit of the standard deviation, in gray levels, so that the noise of flat images is not amplified."""
MEAN_TOLERANCE = (3.0, 40.0)
"""Largest difference of the mean colors, in standard deviations and in gray levels."""
AUGMENTED = re.compile(r"(.+)\.rf\.[0-9A-Za-z]+")
"""Names of Roboflow's augmented copies, which begin with the name of the original."""


def split_by_content(
    paths: Sequence[Path], fractions: Mapping[str, float], options: ReadOptions = DEFAULT_READING
) -> dict[str, list[int]]:
    """Split images into `train` and other splits by their content.

    Groups of near-duplicates are sorted by the smallest hash of their files. `val` takes groups from the beginning,
    `test` from the end, each while another group brings it closer to its fraction. The result therefore depends
    neither on names nor on order, and images added later move only those whose hash is next to a border.

    Args:
        fractions: fractions of all images for `val` and `test`, each above 0 and together below 1.
        options: how the images are read, which are compared.

    Returns:
        Indices into `paths`, ascending, of every split; none is empty.

    Raises:
        BadInput: the fractions are invalid, there are fewer groups than splits, or an image cannot be read.
    """
    if not all(value > 0 for value in fractions.values()) or sum(fractions.values()) >= 1:
        raise BadInput(f"fractions must be above 0 and below 1 together, got {dict(fractions)}")
    groups = groups_by_content(paths, options)
    if len(groups) <= len(fractions):
        raise BadInput(
            f"{len(paths)} images in {len(groups)} groups of near-duplicates cannot be divided into train, "
            f"{', '.join(fractions)}; add images that differ"
        )
    result: dict[str, list[int]] = {}
    for waiting, (split, fraction) in enumerate(fractions.items()):
        target, count = max(1.0, fraction * len(paths)), 0
        spare = len(groups) - (len(fractions) - waiting)  # train and each later split need one group
        chosen: list[list[int]] = []
        for group in groups if split != "test" else groups[::-1]:
            if len(chosen) < spare and abs(count + len(group) - target) < abs(count - target):
                chosen.append(group)
                count += len(group)
        chosen = chosen or [min(groups, key=len)]
        result[split] = sorted(i for group in chosen for i in group)
        first = {group[0] for group in chosen}
        groups = [group for group in groups if group[0] not in first]
    return {"train": sorted(i for group in groups for i in group), **result}


def groups_by_content(paths: Sequence[Path], options: ReadOptions = DEFAULT_READING) -> list[list[int]]:
    """Return the groups of near-duplicates, indices into `paths`, sorted by the smallest hash of their files.

    Raises:
        BadInput: an image cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(pool.map(_file_hash, paths))
    return sorted(near_duplicates(paths, hashes, options), key=lambda group: min(hashes[i] for i in group))


def _file_hash(path: Path) -> bytes:
    """Return a hash of a file; not of its pixels, because JPEG decoders differ in the last bit."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def near_duplicates(
    paths: Sequence[Path], hashes: Sequence[bytes], options: ReadOptions = DEFAULT_READING
) -> list[list[int]]:
    """Group near-duplicates: copies that are re-encoded, resized, mirrored, rotated or slightly brighter.

    Roboflow's augmented copies, `NAME.rf.HASH.jpg`, are grouped by their names. An image that is similar to images of
    two groups joins these groups.

    Args:
        paths: image files; one file of each hash is decoded.
        options: how they are read.

    Returns:
        Indices into `paths`; groups in the order of their first image.

    Raises:
        BadInput: an image cannot be read.
    """

    # gray levels row by row, then the mean color: [16 * 16 + 3]
    def thumbnail(path: Path) -> NDArray[np.float32]:
        small = block_means(read_image(path, any_size=True, options=options)).astype(np.float32)
        return np.concatenate((small.mean(2).ravel(), small.mean((0, 1))))

    equal = _same(hashes)
    links = equal + _same([match[1] if (match := AUGMENTED.fullmatch(p.stem)) else p for p in paths])
    firsts = sorted({first for first, _ in equal})
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the GIL
        thumbnails = list(pool.map(thumbnail, (paths[i] for i in firsts)))
    owner = np.arange(len(paths), dtype=np.int64)  # group of each image: at first its own
    for one, other in links:
        _unite(owner, one, other)
    _unite_similar(owner, np.array(firsts, dtype=np.int64), np.array(thumbnails, dtype=np.float32))
    groups: dict[int, list[int]] = defaultdict(list)
    for place, root in enumerate(owner.tolist()):
        groups[root].append(place)
    return list(groups.values())


def _same(values: Sequence[object]) -> list[tuple[int, int]]:
    """Return the index of the first equal value and the index of each value."""
    first: dict[object, int] = {}
    return [(first.setdefault(value, place), place) for place, value in enumerate(values)]


def _unite(owner: NDArray[np.int64], one: int, other: int) -> None:
    """Merge the groups of two images; `owner` is the group of each image, changed in place."""
    if owner[one] != owner[other]:
        owner[owner == owner[other]] = owner[one]


def _unite_similar(
    owner: NDArray[np.int64], places: NDArray[np.int64], thumbnails: NDArray[np.float32]
) -> None:
    """Merge the groups of images with similar thumbnails in any of the eight orientations.

    Args:
        owner: group of each image, `[N]`, changed in place.
        places: image of each thumbnail, `[T]`.
        thumbnails: thumbnails and mean colors, `[T, 16 * 16 + 3]`.
    """
    if len(places) < 2:
        return
    gray, colors = thumbnails[:, :-3], thumbnails[:, -3:]
    deviation = gray.std(1, keepdims=True)
    # float16 halves the memory: [T, 16 * 16]
    normal = ((gray - gray.mean(1, keepdims=True)) / np.maximum(deviation, MIN_DEVIATION)).astype(np.float16)
    limits = 1 + np.minimum(MEAN_TOLERANCE[0] * deviation[:, 0], MEAN_TOLERANCE[1])
    # features that the eight orientations do not change: means of 4 x 4 blocks, sorted within the corners, the edges
    # and the center: [T, 16]
    block = SIDE // 4
    means = normal.astype(np.float32).reshape(-1, 4, block, 4, block).mean((2, 4)).reshape(-1, 16)
    parts = [0, 3, 12, 15], [1, 2, 4, 7, 8, 11, 13, 14], [5, 6, 9, 10]
    coarse = np.concatenate([np.sort(means[:, part], axis=1) for part in parts], axis=1)
    # Averaging and sorting never increase the largest difference, so every near-duplicate is within TOLERANCE in
    # `coarse`; 0.01 allows for rounding.
    tree = cKDTree(coarse)
    # so do the means over all orientations of each pixel: [T, 36]
    rows, columns = np.triu_indices(SIDE // 2)
    squares = normal.astype(np.float32).reshape(-1, SIDE, SIDE)
    symmetric = np.mean([orient(squares, turn) for turn in range(len(TURNS))], axis=0)[:, rows, columns]
    for number in range(len(places)):
        near = np.array(tree.query_ball_point(coarse[number], TOLERANCE + 0.01, p=np.inf), dtype=np.int64)
        near = near[(near > number) & (owner[places[near]] != owner[places[number]])]
        near = near[np.abs(symmetric[near] - symmetric[number]).max(1, initial=0.0) <= TOLERANCE + 0.01]
        limit = np.minimum(limits[number], limits[near])
        near = near[np.abs(colors[near] - colors[number]).max(1, initial=0.0) <= limit]
        similar, others = np.zeros(len(near), dtype=bool), squares[near]
        for turn in range(len(TURNS)):
            similar |= np.abs(others - orient(squares[number], turn)).max((1, 2), initial=0.0) <= TOLERANCE
        for other in near[similar].tolist():
            _unite(owner, int(places[number]), int(places[other]))
