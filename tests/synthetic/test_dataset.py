"""The synthetic data set: exact masks, complete files, equal results for equal seeds."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api
from PIL import Image

from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.synthetic import renderer
from embedmask.synthetic.dataset import make_shapes


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "shapes"
    make_shapes(folder, train=40, val=7, size=96, seed=3, workers=2)
    return folder


def outline(name: str, radius: float = 40.0, seed: int = 0, turn: float = 0.0) -> np.ndarray:
    """Return the mask of one shape in the center of a 100 px image."""
    y, x = np.mgrid[:100, :100].astype(np.float32) - 49.5
    cos, sin = np.cos(turn), np.sin(turn)
    return (
        renderer.SHAPES[name](x * cos + y * sin, y * cos - x * sin, radius, np.random.default_rng(seed)) < 0
    )


def parts(mask: np.ndarray, corners: bool = False) -> int:
    """Count connected parts by flooding, optionally across corners."""
    left = set(zip(*np.nonzero(mask), strict=True))
    count = 0
    while left:
        count += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if corners or not a * b]
            near = {(y + a, x + b) for a, b in steps} & left
            left -= near
            edge += near
    return count


class TestShapes:
    def test_there_are_thin_concave_and_holed_classes(self) -> None:
        assert len(renderer.CLASS_NAMES) >= 6
        holes = {name for name in renderer.CLASS_NAMES if parts(~outline(name)) > 1}
        assert holes == {"ring"}
        bar = outline("bar")
        assert np.ptp(np.nonzero(bar)[1]) > 5 * np.ptp(np.nonzero(bar)[0])

    @pytest.mark.parametrize("name", renderer.CLASS_NAMES)
    @pytest.mark.parametrize("seed", range(4))
    def test_one_part_within_reach_of_the_radius(self, name: str, seed: int) -> None:
        mask = outline(name, seed=seed, turn=seed)
        assert parts(mask, corners=True) == 1
        y, x = np.nonzero(mask)
        reach = np.hypot(y - 49.5, x - 49.5).max()
        assert 0.7 * 40 < reach < 1.3 * 40 + 1

    @pytest.mark.parametrize("name", renderer.CLASS_NAMES)
    def test_smallest_objects_have_pixels(self, name: str) -> None:
        for seed in range(20):
            assert (
                outline(name, renderer.MIN_RADIUS, seed, turn=seed).sum() >= renderer.MIN_VISIBLE_PIXELS / 2
            )

    def test_areas_match_geometry(self) -> None:
        rng = np.random.default_rng(0)
        height = 40 * rng.uniform(0.8, 1.0)
        assert outline("disc").sum() == pytest.approx(np.pi * 40 * height, rel=0.01)
        side = 30 * np.random.default_rng(0).uniform(0.85, 1.0)
        assert outline("square").sum() == pytest.approx(60 * 2 * side, rel=0.03)
        stretch = np.random.default_rng(0).uniform(0.9, 1.1)
        assert outline("triangle").sum() == pytest.approx(3 * np.sqrt(3) / 4 * 40**2 / stretch, rel=0.02)


class TestScene:
    def test_masks_do_not_overlap_and_are_large_enough(self) -> None:
        for seed in range(60):
            scene = renderer.make_scene(96, np.random.default_rng(seed))
            assert scene.image.shape == (96, 96, 3)
            assert scene.image.dtype == np.uint8
            assert len(scene.labels) == len(scene.masks) <= renderer.MAX_OBJECTS
            assert not scene.masks or np.stack(scene.masks).sum(0).max() == 1
            assert all(mask.sum() >= renderer.MIN_VISIBLE_PIXELS for mask in scene.masks)

    def test_hidden_objects_are_dropped(self) -> None:
        rng = np.random.default_rng(0)
        front = renderer.Shape.sample((32.0, 32.0, 24.0), 64, rng)
        front.distance = np.full_like(front.distance, -1)
        behind = renderer.Shape.sample((32.0, 32.0, 8.0), 64, rng)
        shapes, masks = renderer.select_visible([front, behind], 64)
        assert shapes == [front]
        assert len(masks) == 1

    def test_object_is_visible_through_a_hole(self) -> None:
        y, x = np.mgrid[:64, :64].astype(np.float32) - 31.5
        whole = slice(0, 64)
        ring = renderer.Shape(4, 28, whole, whole, x, y, np.abs(np.hypot(x, y) - 24) - 4)
        disc = renderer.Shape(0, 10, whole, whole, x, y, np.hypot(x, y) - 10)
        shapes, masks = renderer.select_visible([ring, disc], 64)
        assert len(shapes) == 2
        assert masks[1].sum() == (np.hypot(x, y) < 10).sum()

    def test_mask_matches_the_painted_pixels(self) -> None:
        """Check that a pixel is at least half covered exactly inside the mask."""
        rng = np.random.default_rng(5)
        shape = renderer.Shape.sample((30.0, 34.0, 20.0), 64, rng)
        canvas = np.zeros((64, 64, 3), np.float32)
        cover = np.clip(0.5 - shape.distance, 0, 1)
        renderer._paint(canvas, shape, rng)
        painted = canvas[shape.rows, shape.columns].max(-1)
        assert (painted[cover == 0] == 0).all()
        assert (painted[shape.mask] > 0).all()
        assert ((cover > 0.5) == shape.mask).all()

    def test_some_are_empty_and_sizes_are_spread(self) -> None:
        made = [renderer.make_scene(128, np.random.default_rng([1, n])) for n in range(150)]
        counts = [len(scene.masks) for scene in made]
        assert min(counts) == 0
        assert max(counts) >= 4
        extents = [max(np.ptp(axis) + 1 for axis in np.nonzero(m)) for s in made for m in s.masks]
        assert min(extents) <= 10
        assert max(extents) >= 80
        labels = np.bincount([label for scene in made for label in scene.labels])
        assert len(labels) == len(renderer.SHAPES)
        assert labels.min() > 0.5 * labels.mean()

    def test_color_is_a_hint_only(self) -> None:
        """Check that the nearest hue gives the class of many objects, but not of all."""
        right = []
        for seed in range(150):
            scene = renderer.make_scene(64, np.random.default_rng(seed))
            for label, mask in zip(scene.labels, scene.masks, strict=True):
                hue = colorsys.rgb_to_hsv(*scene.image[mask].mean(0) / 255)[0]
                right.append(round(hue * len(renderer.CLASS_NAMES)) % len(renderer.CLASS_NAMES) == label)
        assert 0.3 < np.mean(right) < 0.9


class TestMakeShapes:
    def test_loads_as_a_coco_folder(self, made: Path) -> None:
        for split, count in (("train", 40), ("val", 7)):
            dataset = CocoInstances.open(made, split)
            assert len(dataset) == count
            assert tuple(dataset.class_names) == renderer.CLASS_NAMES
            for index in range(count):
                image, target = dataset[index]
                assert image.shape == (3, 96, 96)
                target.validate(len(renderer.CLASS_NAMES))

    def test_annotations_are_those_of_their_masks(self, made: Path) -> None:
        content = json.loads((made / "train.json").read_text())
        assert len(content["annotations"]) > 60
        ids = [a["id"] for a in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        for entry in content["annotations"]:
            mask = mask_api.decode(entry["segmentation"]).astype(bool)
            y, x = np.nonzero(mask)
            assert mask.shape == (96, 96)
            assert entry["area"] == mask.sum()
            assert entry["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert entry["iscrowd"] == 0

    def test_masks_are_those_of_the_scene(self, made: Path) -> None:
        content = json.loads((made / "val.json").read_text())
        scene = renderer.make_scene(96, np.random.default_rng([3, 1, 2]))
        found = [a for a in content["annotations"] if a["image_id"] == 2]
        assert len(found) == len(scene.masks)
        for entry, mask in zip(found, scene.masks, strict=True):
            assert (mask_api.decode(entry["segmentation"]) == mask).all()
        image = np.asarray(Image.open(made / "images" / "val_000002.jpg")).astype(int)
        assert np.abs(image - scene.image).mean() < 8

    def test_equal_seeds_give_equal_files_for_any_workers(self, made: Path, tmp_path: Path) -> None:
        make_shapes(tmp_path / "again", train=40, val=7, size=96, seed=3, workers=1)
        assert files_of(tmp_path / "again") == files_of(made)

    def test_more_images_leave_the_first_unchanged(self, made: Path, tmp_path: Path) -> None:
        make_shapes(tmp_path / "more", train=43, val=0, size=96, seed=3)
        more, less = files_of(tmp_path / "more"), files_of(made)
        shared = [name for name in less if name.startswith("images/train")]
        assert len(shared) == 40
        assert all(more[name] == less[name] for name in shared)

    def test_seeds_give_different_sets(self, made: Path, tmp_path: Path) -> None:
        make_shapes(tmp_path / "other", train=1, val=0, size=96, seed=4)
        name = "images/train_000001.jpg"
        assert files_of(tmp_path / "other")[name] != files_of(made)[name]

    def test_progress_counts_every_image(self, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        make_shapes(
            tmp_path / "s", train=3, val=2, size=32, progress=lambda done, of: calls.append((done, of))
        )
        assert calls == [(n, 5) for n in range(1, 6)]

    def test_fills_an_empty_folder_and_makes_parents(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for out in (tmp_path / "empty", tmp_path / "a" / "b"):
            make_shapes(out, train=1, val=1, size=32)
            assert {p.name for p in out.iterdir()} == {"images", "train.json", "val.json"}

    def test_the_working_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        make_shapes(".", train=1, val=1, size=32)
        assert Path("train.json").is_file()

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"size": 8}, "at least 32"), ({"train": -1}, "train must be"), ({"seed": -1}, "seed must be")],
    )
    def test_raises_on_invalid_numbers(self, tmp_path: Path, options: dict[str, int], message: str) -> None:
        with pytest.raises(BadInput, match=message):
            make_shapes(tmp_path / "out", **options)
        assert list(tmp_path.iterdir()) == []

    def test_raises_on_existing_output(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for out in (tmp_path, tmp_path / "file"):
            with pytest.raises(BadInput, match=str(out)):
                make_shapes(out, train=1, val=1, size=32)
        with pytest.raises(BadInput, match="cannot be written"):
            make_shapes(tmp_path / "file" / "below", train=1, val=1, size=32)
        assert files_of(tmp_path) == {"file": b"x"}

    def test_interrupted_run_leaves_nothing(self, tmp_path: Path) -> None:
        def stop(done: int, of: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_shapes(tmp_path / "out", train=500, val=1, size=64, progress=stop)
        assert list(tmp_path.iterdir()) == []
