"""`embedmask predict`: results and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import fails
from faster_coco_eval.core import mask as mask_api
from PIL import Image
from predict_command import COUNT, files, masks_of, results_of, words

from embedmask.cli import main
from embedmask.data.coco import CocoInstances
from embedmask.data.label_images import label_objects
from embedmask.predict.journal import FOLDER


class TestResults:
    def test_images_and_results(self, weights: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out"
        assert main(words(images, weights, out)) == 0
        sources = sorted(images.iterdir())
        visible = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        assert visible == {f"{path.stem}.png" for path in sources} | {"predictions.json", "images.json"}
        images, results = results_of(out)
        assert [image["file_name"] for image in images] == [str(path) for path in sources]
        assert [image["id"] for image in images] == list(range(1, COUNT + 1))
        assert {(image["height"], image["width"]) for image in images} == {(64, 64)}
        assert [result["image_id"] for result in results] == sorted(result["image_id"] for result in results)
        assert len({result["image_id"] for result in results}) == COUNT
        for result in results:
            assert set(result) == {"image_id", "category_id", "bbox", "score", "segmentation"}
            assert result["score"] >= 0.45
            assert mask_api.decode(result["segmentation"]).shape == (64, 64)
        assert f"{len(results)} objects in {COUNT} images" in capsys.readouterr().out
        drawn = np.asarray(Image.open(out / f"{sources[0].stem}.png"))
        assert (drawn != np.asarray(Image.open(sources[0]).convert("RGB"))).any()

    def test_drawn_images_have_the_original_size(self, weights: Path, tmp_path: Path) -> None:
        (tmp_path / "übungen 1").mkdir()
        image = tmp_path / "übungen 1" / "größe.v2.jpg"
        Image.fromarray(np.full((37, 91), 200, np.uint8)).save(image)
        assert main(words(tmp_path / "über*" / ".." / "übungen*" / "*.jpg", weights, tmp_path / "o")) == 2
        assert main(words(tmp_path / "übungen*" / "*.jpg", weights, tmp_path / "o", "--format", "yolo")) == 0
        assert Image.open(tmp_path / "o" / "größe.v2.png").size == (91, 37)
        assert (tmp_path / "o" / "labels" / "größe.v2.txt").is_file()

    def test_threshold_and_max_detections(self, weights: Path, images: Path, tmp_path: Path) -> None:
        image = next(images.iterdir())
        for option, value, count in (("--max-detections", "3", 3), ("--score-threshold", "1", 0)):
            assert main(words(image, weights, tmp_path / "out", option, value)) == 0
            assert len(results_of(tmp_path / "out")[1]) == count

    def test_tiles(self, weights: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
        wide = Image.new("RGB", (192, 64))
        for place, path in enumerate(sorted(images.iterdir())[:3]):
            wide.paste(Image.open(path), (64 * place, 0))
        wide.save(tmp_path / "wide.png")
        sources, tiles = tmp_path / "wide.png", ("--tile", "96", "--overlap", "32", "--max-detections", "50")
        assert main(words(sources, weights, tmp_path / "tiles", *tiles)) == 0
        assert main(words(sources, weights, tmp_path / "whole", "--tile", "0", "--max-detections", "50")) == 0
        tiled, whole = (results_of(tmp_path / name)[1] for name in ("tiles", "whole"))
        assert {mask_api.decode(result["segmentation"]).shape for result in tiled} == {(64, 192)}
        assert tiled != whole
        assert "tile" in fails(capsys, *words(sources, weights, tmp_path / "none", "--tile", "3"))
        assert not (tmp_path / "none").exists()

    def test_earlier_run_is_replaced(self, weights: Path, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        sources = sorted(images.iterdir())
        assert main(words(sources[0], weights, out)) == 0
        (out / "mine.txt").write_text("keep")
        assert main(words(sources[1], weights, out, "--score-threshold", "0.48", "--no-draw")) == 0
        assert [image["name"] for image in results_of(out)[0]] == [sources[1].stem]
        assert {path.name for path in (out / FOLDER).iterdir()} == {
            "settings.json",
            f"{sources[1].stem}.jsonl",
        }
        assert (out / "mine.txt").read_text() == "keep"
        assert not (out / f"{sources[1].stem}.png").exists()

    def test_batch_size_changes_rounding_only(self, weights: Path, images: Path, tmp_path: Path) -> None:
        for size in (1, 3):
            more = ("--batch-size", str(size), "--no-draw")
            assert main(words(images, weights, tmp_path / str(size), *more)) == 0
        one, three = (results_of(tmp_path / str(size))[1] for size in (1, 3))
        assert len(one) == len(three)
        scores = [[result["score"] for result in results] for results in (one, three)]
        np.testing.assert_allclose(*scores, atol=1e-5)


class TestFormats:
    @pytest.fixture
    def written(
        self, request: pytest.FixtureRequest, weights: Path, images: Path, tmp_path: Path
    ) -> tuple[Path, str, list[Any]]:
        """Return the results folder, the name of an image, and its masks from predictions.json."""
        out, image = tmp_path / "out", min(images.iterdir())
        assert main(words(image, weights, out, "--format", request.param, "--no-draw")) == 0
        masks = masks_of(results_of(out)[1], 1)
        assert sum(mask.any() for mask in masks) > 3
        return out, image.stem, masks

    @pytest.mark.parametrize("written", ["labels"], indirect=True)
    def test_labels(self, written: tuple[Path, str, list[Any]]) -> None:
        out, name, masks = written
        labels = np.asarray(Image.open(out / "labels" / f"{name}.png"))
        assert labels.dtype == np.uint16
        covered = np.zeros((64, 64), bool)
        decoded = {number: runs.pixels(0, 0, 64, 64) for number, runs in label_objects(labels)}
        for number, mask in enumerate(masks, start=1):
            np.testing.assert_array_equal(decoded.get(number, np.zeros((64, 64), bool)), mask & ~covered)
            covered |= mask

    @pytest.mark.parametrize("written", ["masks"], indirect=True)
    def test_masks(self, written: tuple[Path, str, list[Any]]) -> None:
        out, name, masks = written
        paths = sorted((out / "masks" / name).iterdir())
        assert len(paths) == len(masks)
        for path, mask in zip(paths, masks, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), mask)

    @pytest.mark.parametrize("written", ["yolo"], indirect=True)
    def test_yolo_is_a_data_set(self, written: tuple[Path, str, list[Any]], images: Path) -> None:
        out, _, masks = written
        (out / "images").mkdir()
        shutil.copy(min(images.iterdir()), out / "images")
        assert len(yaml.safe_load((out / "data.yaml").read_text())["names"]) > 1
        dataset = CocoInstances.open(out, "val")
        _, target = dataset.sample(0, torch.Generator())
        whole = [mask for mask in masks if mask.any()]
        loaded = target.dense_masks().numpy()
        assert len(loaded) == len(whole)
        for mask in whole:
            assert (loaded == mask).all((1, 2)).any()

    @pytest.mark.parametrize("written", ["polygons"], indirect=True)
    def test_polygons_point_to_the_image(self, written: tuple[Path, str, list[Any]]) -> None:
        out, name, masks = written
        content = json.loads((out / "polygons" / f"{name}.json").read_text())
        assert (out / "polygons" / content["imagePath"]).is_file()
        with_pixels = {number for number, mask in enumerate(masks, start=1) if mask.any()}
        assert {shape["group_id"] for shape in content["shapes"]} == with_pixels

    def test_old_masks_are_removed(self, weights: Path, images: Path, tmp_path: Path) -> None:
        image, out = min(images.iterdir()), tmp_path / "out"
        for count, threshold in ((5, "0"), (2, "0"), (0, "1")):
            more = ("--format", "masks", "--max-detections", str(count or 5), "--score-threshold", threshold)
            assert main(words(image, weights, out, *more)) == 0
            assert len(list((out / "masks" / image.stem).iterdir())) == count


class TestBroken:
    def test_broken_files_do_not_stop_the_others(
        self, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        sources, out = sorted(images.iterdir()), tmp_path / "out"
        sources[3].write_bytes(sources[3].read_bytes()[:300])
        (images / "a.mp4").write_bytes(b"no video")
        (images / "notes.txt").write_text("not an image")
        assert main(words(images, weights, out)) == 1
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 2, captured.err
        assert str(images / "a.mp4") in lines[0]
        assert str(sources[3]) in lines[1]
        assert f"{COUNT - 1} images" in captured.out
        assert len(results_of(out)[0]) == COUNT - 1
        assert not (out / f"{sources[3].stem}.png").exists()
        assert not (out / "a.mp4").exists()

    def test_repaired_file_is_predicted_on_resume(
        self, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        sources, out = sorted(images.iterdir()), tmp_path / "out"
        whole = sources[3].read_bytes()
        sources[3].write_bytes(whole[:300])
        assert main(words(images, weights, out)) == 1
        drawn = (out / f"{sources[0].stem}.png").stat().st_mtime_ns
        sources[3].write_bytes(whole)
        assert main(words(images, weights, out, "--resume")) == 0
        assert [image["file_name"] for image in results_of(out)[0]] == [str(path) for path in sources]
        assert (out / f"{sources[0].stem}.png").stat().st_mtime_ns == drawn

    def test_only_broken_files_write_nothing(self, weights: Path, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff nothing")
        assert "a.jpg" in fails(capsys, *words(tmp_path / "a.jpg", weights, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_raises_on_invalid_options_before_writing(
        self, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        for option, value in (
            ("--score-threshold", "1.5"),
            ("--max-detections", "0"),
            ("--batch-size", "0"),
            ("--devices", "0"),
            ("--format", "gif"),
        ):
            line = fails(capsys, *words(images, weights, out, option, value))
            assert option.strip("-").replace("-", "_") in line.replace("-", "_")
        assert not out.exists()

    def test_raises_instead_of_overwriting_an_image(
        self, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        Image.new("RGB", (8, 8)).save(images / "b.png")
        before = files(images)
        assert "overwritten" in fails(capsys, *words(images, weights, tmp_path / "x" / ".." / "in"))
        more = ("--no-draw", "--format", "labels")
        (tmp_path / "labels").symlink_to(images)
        assert "overwritten" in fails(capsys, *words(images, weights, tmp_path, *more))
        assert files(images) == before

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_raises_on_unwritable_folder(
        self, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        locked = tmp_path / "locked"
        locked.mkdir()
        locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert "cannot be written" in fails(capsys, *words(images, weights, locked))

    def test_raises_on_file_in_place_of_the_folder(
        self, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        (tmp_path / "out").write_text("a file")
        assert "cannot be written" in fails(capsys, *words(images, weights, tmp_path / "out"))
        assert (tmp_path / "out").read_text() == "a file"
