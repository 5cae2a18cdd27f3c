"""Tiles of images with known objects: pixels hold the numbers of objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.tiling import merged_masks
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from embedmask.errors import BadInput
from embedmask.inference.tiling import check_tiles, tile_windows, tiled_instances
from embedmask.masks import MaskCrop, RunMasks
from embedmask.structures import Instances

Ids = npt.NDArray[np.int64]
CLASSES = 3


def as_image(ids: Ids) -> Tensor:
    return torch.from_numpy(np.stack([ids & 255, ids >> 8 & 255, ids >> 16]).astype(np.uint8))


class Detector:
    """A detector that returns the objects in a tile; cut objects score less.

    Args:
        ids: the whole image.
        noise: maximum number of px by which masks grow or shrink, at random.
        apart: whether unconnected parts of an object in a tile are separate detections.
        seed: of the noise.
    """

    def __init__(self, ids: Ids, *, noise: int = 0, apart: bool = False, seed: int = 0) -> None:
        self.areas = np.bincount(ids.ravel())
        self.noise, self.apart, self.rng = noise, apart, np.random.default_rng(seed)
        self.sizes: list[tuple[int, ...]] = []
        self.results: list[Instances] = []

    def __call__(self, tiles: Sequence[Tensor]) -> list[Instances]:
        self.sizes += [tuple(tile.shape) for tile in tiles]
        results = [self.detect(tile) for tile in tiles]
        self.results += results
        return results

    def detect(self, tile: Tensor) -> Instances:
        low, middle, high = tile.numpy().astype(np.int64)
        ids = low + 256 * middle + 65536 * high
        rows = [row for number in np.unique(ids[ids > 0]) for row in self.pieces(ids, int(number))]
        rows.sort(key=lambda row: -row[0])
        crops = [MaskCrop(mask, *corner) for _, _, mask, corner in rows]
        return Instances(
            torch.tensor([crop.box for crop in crops], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([score for score, *_ in rows], dtype=torch.float32),
            torch.tensor([number % CLASSES for _, number, *_ in rows], dtype=torch.int64),
            RunMasks.from_crops(crops, (ids.shape[0], ids.shape[1])),
            torch.tensor([[number] for _, number, *_ in rows], dtype=torch.float32).reshape(-1, 1),
            torch.ones(len(rows), 1),
        )

    def pieces(
        self, ids: Ids, number: int
    ) -> list[tuple[float, int, npt.NDArray[np.bool_], tuple[int, int]]]:
        whole = ids == number
        labeled, count = ndimage.label(whole)
        masks = [labeled == part for part in range(1, count + 1)] if self.apart else [whole]
        pieces = []
        for mask in map(self.disturbed, masks):
            if mask.any():
                (rows, columns), score = ndimage.find_objects(mask.astype(np.int8))[0], 0.9
                score *= min(1.0, float(mask.sum() / self.areas[number]))
                pieces.append((score, number, mask[rows, columns], (rows.start, columns.start)))
        return pieces

    def disturbed(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        steps = int(self.rng.integers(-self.noise, self.noise + 1))
        change, border = (ndimage.binary_dilation, 0) if steps > 0 else (ndimage.binary_erosion, 1)
        changed: npt.NDArray[np.bool_] = mask
        if steps:
            changed = change(mask, iterations=abs(steps), border_value=border)
        return changed


def objects_of(actual: Instances) -> list[int]:
    """Return the number of the object of each result."""
    return [int(number) for number in actual.proposal_embed[:, 0].tolist()]


def check_exact(actual: Instances, ids: Ids) -> None:
    """Check that every object is detected once and whole, with its class and box."""
    assert sorted(objects_of(actual)) == np.unique(ids[ids > 0]).tolist()
    assert (actual.scores[:-1] >= actual.scores[1:]).all()
    for row, number in enumerate(objects_of(actual)):
        np.testing.assert_array_equal(actual.masks.select([row]).to_dense()[0].numpy(), ids == number)
        ys, xs = np.nonzero(ids == number)
        assert actual.boxes[row].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert int(actual.labels[row]) == number % CLASSES


def paint(height: int, width: int, *masks: Callable[[Ids, Ids], npt.NDArray[np.bool_]]) -> Ids:
    y, x = np.mgrid[:height, :width]
    ids = np.zeros((height, width), np.int64)
    for index, mask in enumerate(masks):
        ids[mask(y, x)] = 1 + index * CLASSES  # all of one class
    return ids


# tiles of 100 with an overlap of 20 begin at 0, 80, 160, ... in these images
SIDE = 260
SCENES = {
    "in the overlap": paint(SIDE, SIDE, lambda y, x: (x >= 85) & (x < 95) & (y >= 30) & (y < 40)),
    "inside four tiles": paint(SIDE, SIDE, lambda y, x: (x >= 85) & (x < 95) & (y >= 85) & (y < 95)),
    "on a side": paint(SIDE, SIDE, lambda y, x: (x >= 80) & (x < 100) & (y >= 20) & (y < 60)),
    "ends on a side": paint(SIDE, SIDE, lambda y, x: (x >= 60) & (x < 80) & (y >= 20) & (y < 60)),
    "larger than the overlap": paint(SIDE, SIDE, lambda y, x: (x >= 60) & (x < 130) & (y >= 60) & (y < 130)),
    "larger than a tile": paint(SIDE, SIDE, lambda y, x: (x >= 5) & (x < 250) & (y >= 15) & (y < 245)),
    "all of it": paint(SIDE, SIDE, lambda y, x: x >= 0),
    "diagonal": paint(SIDE, SIDE, lambda y, x: abs(x - y) < 2),
    "parallel diagonals": paint(SIDE, SIDE, *(lambda y, x, at=at: abs(x - y - at) < 2 for at in (0, 4, 8))),
    "ring": paint(SIDE, SIDE, lambda y, x: abs(np.hypot(x - 130, y - 130) - 110) < 6),
    "touching along a seam": paint(
        SIDE, SIDE, lambda y, x: (x >= 50) & (x < 80), lambda y, x: (x >= 80) & (x < 100),
        lambda y, x: (x >= 100) & (x < 140),
    ),
    "touching across a seam": paint(
        SIDE, SIDE, *(lambda y, x, at=at: (x >= 60) & (x < 120) & (y // 9 == at) for at in range(20))
    ),
    "a grid of cells that touch": paint(
        SIDE, SIDE, *(lambda y, x, at=at: (y // 20 * 13 + x // 20) == at for at in range(169))
    ),
    "one inside another": paint(
        SIDE, SIDE, lambda y, x: (x >= 40) & (x < 200) & (y >= 40) & (y < 200),
        lambda y, x: (x >= 84) & (x < 96) & (y >= 84) & (y < 96),
    ),
    "nothing": np.zeros((SIDE, SIDE), np.int64),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(("tile", "overlap"), [(100, 20), (100, 50), (128, 7)])
def test_objects_are_detected_once(name: str, tile: int, overlap: int) -> None:
    ids = SCENES[name]
    check_exact(tiled_instances(as_image(ids), Detector(ids), tile=tile, overlap=overlap), ids)


def u_shape(y: Ids, x: Ids) -> npt.NDArray[np.bool_]:
    return (x >= 10) & (x < 75) & (y >= 10) & (y < 150) & ~((x >= 30) & (x < 60) & (y < 130))


def test_fragments_are_joined() -> None:
    ids = paint(SIDE, SIDE, u_shape)
    detector = Detector(ids, apart=True)
    actual = tiled_instances(as_image(ids), detector, tile=100, overlap=20)
    assert max(map(len, detector.results)) == 2
    check_exact(actual, ids)


def test_cut_piece_does_not_join_cells() -> None:
    """Check two cells that the left tile contains, while the right tile detects their parts as one object."""
    ids = paint(100, 180, lambda y, x: (x >= 70) & (x < 94) & (y >= 20) & (y < 40),
                lambda y, x: (x >= 70) & (x < 94) & (y >= 40) & (y < 60))  # fmt: skip
    detector = Detector(ids)

    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        (actual,) = detector(tiles)
        if len(detector.sizes) == 2:
            blob = RunMasks.from_crops([MaskCrop(np.ones((40, 14), bool), 20, 0)], (100, 100))
            actual = Instances(
                torch.tensor([[0.0, 20, 14, 60]]), torch.tensor([0.99]), torch.tensor([1]), blob,
                torch.tensor([[0.0]]), torch.ones(1, 1),
            )  # fmt: skip
        return [actual]

    check_exact(tiled_instances(as_image(ids), detect, tile=100, overlap=20), ids)


def test_duplicates_with_low_scores_do_not_take_the_place_of_detections() -> None:
    """Check two tiles that return one square twice; the masks with low scores equal the good ones of the other tile."""
    square = np.ones((20, 20), bool)

    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        found = []
        # x of the good and of the low mask in each tile; the second tile begins at x = 40
        for good, low in ((50, 51), (11, 10)):
            masks = RunMasks.from_crops([MaskCrop(square, 30, good), MaskCrop(square, 30, low)], (100, 100))
            boxes = torch.tensor([[good, 30.0, good + 20, 50], [low, 30, low + 20, 50]])
            found.append(Instances(boxes, torch.tensor([0.8, 0.02]), torch.tensor([0, 0]), masks))
        assert len(tiles) == len(found)
        return found

    image = torch.zeros(3, 100, 140, dtype=torch.uint8)
    actual = tiled_instances(image, detect, tile=100, overlap=50, batch_size=2)
    assert int((actual.scores > 0.5).sum()) == 1


def test_classes_are_not_merged() -> None:
    ids = paint(100, 180, lambda y, x: (x >= 70) & (x < 120) & (y >= 20) & (y < 60))
    detector = Detector(ids)

    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        (actual,) = detector(tiles)
        actual.labels += len(detector.sizes)
        return [actual]

    actual = tiled_instances(as_image(ids), detect, tile=100, overlap=20)
    assert sorted(actual.labels.tolist()) == [2, 3]


def test_merged_score_and_embedding() -> None:
    ids = paint(100, 180, lambda y, x: (x >= 20) & (x < 120) & (y >= 20) & (y < 60))
    detector = Detector(ids)
    actual = tiled_instances(as_image(ids), detector, tile=100, overlap=20)
    left, right = detector.results
    assert actual.scores.tolist() == left.scores.tolist()
    assert left.scores[0] > right.scores[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(64, 120), st.floats(0, 0.5))
def test_random_shapes(seed: int, tile: int, share: float) -> None:
    """Check rectangles, discs and rings of any class that overlap and remain in one piece."""
    ids = random_scene(np.random.default_rng(seed), 180, 230, 40)
    overlap = max(int(share * tile), 3)
    check_exact(tiled_instances(as_image(ids), Detector(ids), tile=tile, overlap=overlap), ids)


def random_scene(rng: np.random.Generator, height: int, width: int, count: int) -> Ids:
    y, x = np.mgrid[:height, :width]
    ids = np.zeros((height, width), np.int64)
    for number in range(1, count + 1):
        cy, cx, radius, flat = (
            rng.uniform(0, height),
            rng.uniform(0, width),
            rng.uniform(3, 40),
            rng.uniform(0.1, 1),
        )
        distance = (abs(x - cx) + abs(y - cy) / flat, np.hypot(x - cx, (y - cy) / flat))[number % 2]
        ids[distance < radius] = number
    for number in np.unique(ids[ids > 0]):
        labeled, parts = ndimage.label(ids == number, np.ones((3, 3)))
        if parts > 1:
            ids[labeled > 1] = 0
    return ids


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.booleans())
def test_equals_slow_twin(seed: int, noise: int, apart: bool) -> None:
    ids = random_scene(np.random.default_rng(seed), 110, 150, 14)
    detector = Detector(ids, noise=noise, apart=apart, seed=seed)
    actual = tiled_instances(as_image(ids), detector, tile=64, overlap=24)
    slow = merged_masks(detector.results, tile_windows(ids.shape, 64, 24), ids.shape)
    assert sorted(map(key_of, slow)) == sorted(
        key_of((float(actual.scores[row]), actual.masks.select([row]).to_dense()[0]))
        for row in range(len(actual))
    )


def key_of(result: tuple[float, Tensor]) -> tuple[float, bytes]:
    score, mask = result
    return score, np.packbits(mask.numpy()).tobytes()


def test_noisy_masks_of_touching_cells() -> None:
    ids = SCENES["a grid of cells that touch"]
    actual = tiled_instances(as_image(ids), Detector(ids, noise=2), tile=100, overlap=50)
    numbers = objects_of(actual)
    assert set(numbers) == set(np.unique(ids).tolist())
    assert len(numbers) <= 1.02 * len(set(numbers))
    assert max(actual.masks.areas()) <= 26**2


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(64, 1500), st.floats(0, 0.5))
def test_tiles_cover_the_image(height: int, width: int, tile: int, share: float) -> None:
    overlap = int(share * tile)
    windows = np.array(tile_windows((height, width), tile, overlap))
    assert (windows[:, 2:] - windows[:, :2] == [min(tile, height), min(tile, width)]).all()
    for side, length in enumerate((height, width)):
        starts = np.unique(windows[:, side])
        assert starts[0] == 0
        assert starts[-1] + min(tile, length) == length
        assert (np.diff(starts) <= tile - overlap).all()
        assert len(starts) == 1 + max(0, -(-(length - tile) // (tile - overlap)))
    assert len(windows) == len(np.unique(windows[:, 0])) * len(np.unique(windows[:, 1]))


def test_small_image_is_one_tile() -> None:
    ids = SCENES["inside four tiles"][:90, :100]
    detector = Detector(ids)
    check_exact(tiled_instances(as_image(ids), detector, tile=100, overlap=20), ids)
    assert detector.sizes == [(3, 90, 100)]


def test_batches_and_limit() -> None:
    ids = SCENES["a grid of cells that touch"]
    one, three = (
        tiled_instances(as_image(ids), Detector(ids), tile=100, overlap=20, batch_size=size)
        for size in (1, 3)
    )
    assert torch.equal(one.boxes, three.boxes)
    best = tiled_instances(as_image(ids), Detector(ids), tile=100, overlap=20, max_detections=7)
    assert torch.equal(best.boxes, one.boxes[:7])
    assert len(best.masks) == 7


def test_tiles_share_image_memory() -> None:
    image = as_image(SCENES["all of it"])
    place = image.untyped_storage().data_ptr()

    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        assert all(tile.untyped_storage().data_ptr() == place for tile in tiles)
        return detector(tiles)

    detector = Detector(SCENES["all of it"])
    tiled_instances(image, detect, tile=100, overlap=0, batch_size=2)
    assert len(detector.sizes) == 9


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (63, 0, "tile 63: use at least 64 px"),
        (100, 51, "overlap 51: use 0 to 50 px"),
        (100, -1, "overlap -1"),
        (100.5, 10, "tile 100.5: use a whole number"),
    ],
)
def test_raises_on_bad_tiles(tile: int, overlap: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_tiles(tile, overlap)


def test_empty_masks_and_models_without_embeddings() -> None:
    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        crops = [MaskCrop(np.zeros((0, 3), bool), 0, 0), MaskCrop(np.ones((4, 4), bool), 40, 40)]
        masks = RunMasks.from_crops(crops, (64, 64))
        boxes = torch.tensor([[0.0, 0, 3, 3], [40, 40, 44, 44]])
        return [Instances(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), masks)] * len(tiles)

    actual = tiled_instances(torch.zeros(3, 64, 128, dtype=torch.uint8), detect, tile=64, overlap=0)
    assert actual.boxes.tolist() == [[40, 40, 44, 44], [104, 40, 108, 44]]
    assert actual.proposal_embed.shape == (2, 0)
