"""`embedmask predict` as a user types it: what it leaves, also where it is killed, and its exit codes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import fails, save_eager
from faster_coco_eval.core import mask as mask_api
from PIL import Image
from tiny_run import TORCHRUN, free_port, start

from embedmask._supervision import sv
from embedmask.cli import main
from embedmask.cli.records import FOLDER
from embedmask.data.coco import CocoInstances
from embedmask.data.label_images import label_objects
from embedmask.data.shapes import make_shapes
from embedmask.files import is_temporary

COUNT = 12
RATE = 10


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=COUNT, val=1, size=64, seed=0)
    return folder


@pytest.fixture(scope="module")
def weights(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_eager(shapes, tmp_path_factory.mktemp("weights") / "eager.safetensors")


@pytest.fixture
def pictures(shapes: Path, tmp_path: Path) -> Path:
    """A folder of pictures that a test may change."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted((shapes / "images").glob("train*")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def video(pictures: Path, tmp_path: Path) -> Path:
    """Eight frames of 64 x 48."""
    path = tmp_path / "clip.avi"
    with sv.VideoSink(str(path), sv.VideoInfo(64, 48, RATE)) as sink:
        for picture in sorted(pictures.iterdir())[:8]:
            frame = np.asarray(Image.open(picture).convert("RGB"))[:48, :, ::-1]
            sink.write_frame(np.ascontiguousarray(frame))
    return path


def words(given: Path, weights: Path, out: Path, *more: str) -> list[str]:
    base = ["predict", str(given), "--weights", str(weights), "--out", str(out), "--precision", "float32"]
    return [*base, "--score-threshold", "0.45", "--max-detections", "20", "--device", "cpu", *more]


def files(out: Path) -> dict[str, bytes]:
    """Everything that is left, by name, what is hidden included."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def results_of(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pictures, and the results of all of them."""
    images = json.loads((out / "images.json").read_text())["images"]
    return images, json.loads((out / "predictions.json").read_text())


def masks_of(results: list[dict[str, Any]], image_id: int) -> list[Any]:
    mine = [result["segmentation"] for result in results if result["image_id"] == image_id]
    return [mask_api.decode(mask).astype(bool) for mask in mine]


class TestResults:
    def test_pictures_and_results(self, weights: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out"
        assert main(words(pictures, weights, out)) == 0
        given = sorted(pictures.iterdir())
        visible = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        assert visible == {f"{path.stem}.png" for path in given} | {"predictions.json", "images.json"}
        images, results = results_of(out)
        assert [image["file_name"] for image in images] == [str(path) for path in given]
        assert [image["id"] for image in images] == list(range(1, COUNT + 1))
        assert {(image["height"], image["width"]) for image in images} == {(64, 64)}
        assert [result["image_id"] for result in results] == sorted(result["image_id"] for result in results)
        assert len({result["image_id"] for result in results}) == COUNT
        for result in results:
            assert set(result) == {"image_id", "category_id", "bbox", "score", "segmentation"}
            assert result["score"] >= 0.45
            assert mask_api.decode(result["segmentation"]).shape == (64, 64)
        assert f"{len(results)} objects in {COUNT} pictures" in capsys.readouterr().out
        drawn = np.asarray(Image.open(out / f"{given[0].stem}.png"))
        assert (drawn != np.asarray(Image.open(given[0]).convert("RGB"))).any()

    def test_results_are_drawn_in_the_pictures_own_size(self, weights: Path, tmp_path: Path) -> None:
        (tmp_path / "übungen 1").mkdir()
        picture = tmp_path / "übungen 1" / "größe.v2.jpg"
        Image.fromarray(np.full((37, 91), 200, np.uint8)).save(picture)
        assert main(words(tmp_path / "über*" / ".." / "übungen*" / "*.jpg", weights, tmp_path / "o")) == 2
        assert main(words(tmp_path / "übungen*" / "*.jpg", weights, tmp_path / "o", "--format", "yolo")) == 0
        assert Image.open(tmp_path / "o" / "größe.v2.png").size == (91, 37)
        assert (tmp_path / "o" / "labels" / "größe.v2.txt").is_file()

    def test_threshold_and_number_are_kept(self, weights: Path, pictures: Path, tmp_path: Path) -> None:
        picture = next(pictures.iterdir())
        for option, value, count in (("--max-detections", "3", 3), ("--score-threshold", "1", 0)):
            assert main(words(picture, weights, tmp_path / "out", option, value)) == 0
            assert len(results_of(tmp_path / "out")[1]) == count

    def test_tiles(self, weights: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
        wide = Image.new("RGB", (192, 64))
        for place, path in enumerate(sorted(pictures.iterdir())[:3]):
            wide.paste(Image.open(path), (64 * place, 0))
        wide.save(tmp_path / "wide.png")
        given, tiles = tmp_path / "wide.png", ("--tile", "96", "--overlap", "32", "--max-detections", "50")
        assert main(words(given, weights, tmp_path / "tiles", *tiles)) == 0
        assert main(words(given, weights, tmp_path / "whole", "--tile", "0", "--max-detections", "50")) == 0
        tiled, whole = (results_of(tmp_path / name)[1] for name in ("tiles", "whole"))
        assert {mask_api.decode(result["segmentation"]).shape for result in tiled} == {(64, 192)}
        assert tiled != whole
        assert "tile" in fails(capsys, *words(given, weights, tmp_path / "none", "--tile", "3"))
        assert not (tmp_path / "none").exists()

    def test_an_earlier_run_is_replaced(self, weights: Path, pictures: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        given = sorted(pictures.iterdir())
        assert main(words(given[0], weights, out)) == 0
        (out / "mine.txt").write_text("keep")
        assert main(words(given[1], weights, out, "--score-threshold", "0.48", "--no-draw")) == 0
        assert [image["name"] for image in results_of(out)[0]] == [given[1].stem]
        assert {path.name for path in (out / FOLDER).iterdir()} == {"settings.json", f"{given[1].stem}.jsonl"}
        assert (out / "mine.txt").read_text() == "keep"
        assert not (out / f"{given[1].stem}.png").exists()

    def test_batches_change_nothing_but_last_digits(
        self, weights: Path, pictures: Path, tmp_path: Path
    ) -> None:
        for size in (1, 3):
            more = ("--batch-size", str(size), "--no-draw")
            assert main(words(pictures, weights, tmp_path / str(size), *more)) == 0
        one, three = (results_of(tmp_path / str(size))[1] for size in (1, 3))
        assert len(one) == len(three)
        scores = [[result["score"] for result in results] for results in (one, three)]
        np.testing.assert_allclose(*scores, atol=1e-5)


class TestFormats:
    @pytest.fixture
    def written(
        self, request: pytest.FixtureRequest, weights: Path, pictures: Path, tmp_path: Path
    ) -> tuple[Path, str, list[Any]]:
        """The folder, the name of a picture, and its masks as in predictions.json."""
        out, picture = tmp_path / "out", min(pictures.iterdir())
        assert main(words(picture, weights, out, "--format", request.param, "--no-draw")) == 0
        masks = masks_of(results_of(out)[1], 1)
        assert sum(mask.any() for mask in masks) > 3
        return out, picture.stem, masks

    @pytest.mark.parametrize("written", ["labels"], indirect=True)
    def test_labels(self, written: tuple[Path, str, list[Any]]) -> None:
        out, name, masks = written
        labels = np.asarray(Image.open(out / "labels" / f"{name}.png"))
        assert labels.dtype == np.uint16
        taken = np.zeros((64, 64), bool)
        read = {number: runs.pixels(0, 0, 64, 64) for number, runs in label_objects(labels)}
        for number, mask in enumerate(masks, start=1):
            np.testing.assert_array_equal(read.get(number, np.zeros((64, 64), bool)), mask & ~taken)
            taken |= mask

    @pytest.mark.parametrize("written", ["masks"], indirect=True)
    def test_masks(self, written: tuple[Path, str, list[Any]]) -> None:
        out, name, masks = written
        paths = sorted((out / "masks" / name).iterdir())
        assert len(paths) == len(masks)
        for path, mask in zip(paths, masks, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), mask)

    @pytest.mark.parametrize("written", ["yolo"], indirect=True)
    def test_yolo_is_a_data_set(self, written: tuple[Path, str, list[Any]], pictures: Path) -> None:
        out, _, masks = written
        (out / "images").mkdir()
        shutil.copy(min(pictures.iterdir()), out / "images")
        assert len(yaml.safe_load((out / "data.yaml").read_text())["names"]) > 1
        dataset = CocoInstances.open(out, "val")
        _, target = dataset.sample(0, torch.Generator())
        whole = [mask for mask in masks if mask.any()]
        read = target.dense_masks().numpy()
        assert len(read) == len(whole)
        for mask in whole:
            assert (read == mask).all((1, 2)).any()

    @pytest.mark.parametrize("written", ["polygons"], indirect=True)
    def test_polygons_point_to_the_picture(self, written: tuple[Path, str, list[Any]]) -> None:
        out, name, masks = written
        content = json.loads((out / "polygons" / f"{name}.json").read_text())
        assert (out / "polygons" / content["imagePath"]).is_file()
        with_pixels = {number for number, mask in enumerate(masks, start=1) if mask.any()}
        assert {shape["group_id"] for shape in content["shapes"]} == with_pixels

    def test_fewer_masks_leave_no_old_ones(self, weights: Path, pictures: Path, tmp_path: Path) -> None:
        picture, out = min(pictures.iterdir()), tmp_path / "out"
        for count, threshold in ((5, "0"), (2, "0"), (0, "1")):
            more = ("--format", "masks", "--max-detections", str(count or 5), "--score-threshold", threshold)
            assert main(words(picture, weights, out, *more)) == 0
            assert len(list((out / "masks" / picture.stem).iterdir())) == count


class TestBroken:
    def test_broken_files_do_not_stop_the_others(
        self, weights: Path, pictures: Path, tmp_path: Path, capsys: Any
    ) -> None:
        given, out = sorted(pictures.iterdir()), tmp_path / "out"
        given[3].write_bytes(given[3].read_bytes()[:300])
        (pictures / "a.mp4").write_bytes(b"no video")
        (pictures / "notes.txt").write_text("not a picture")
        assert main(words(pictures, weights, out)) == 1
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 2, captured.err
        assert str(pictures / "a.mp4") in lines[0]
        assert str(given[3]) in lines[1]
        assert f"{COUNT - 1} pictures" in captured.out
        assert len(results_of(out)[0]) == COUNT - 1
        assert not (out / f"{given[3].stem}.png").exists()
        assert not (out / "a.mp4").exists()

    def test_a_mended_file_is_taken_up(
        self, weights: Path, pictures: Path, tmp_path: Path, capsys: Any
    ) -> None:
        given, out = sorted(pictures.iterdir()), tmp_path / "out"
        whole = given[3].read_bytes()
        given[3].write_bytes(whole[:300])
        assert main(words(pictures, weights, out)) == 1
        drawn = (out / f"{given[0].stem}.png").stat().st_mtime_ns
        given[3].write_bytes(whole)
        assert main(words(pictures, weights, out, "--resume")) == 0
        assert [image["file_name"] for image in results_of(out)[0]] == [str(path) for path in given]
        assert (out / f"{given[0].stem}.png").stat().st_mtime_ns == drawn

    def test_only_broken_files_leave_nothing(self, weights: Path, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff nothing")
        assert "a.jpg" in fails(capsys, *words(tmp_path / "a.jpg", weights, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_what_cannot_be_is_told_before_anything_is_written(
        self, weights: Path, pictures: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        for option, value in (
            ("--score-threshold", "1.5"),
            ("--max-detections", "0"),
            ("--batch-size", "0"),
            ("--devices", "0"),
            ("--format", "gif"),
        ):
            line = fails(capsys, *words(pictures, weights, out, option, value))
            assert option.strip("-").replace("-", "_") in line.replace("-", "_")
        assert not out.exists()

    def test_a_picture_is_not_overwritten(
        self, weights: Path, pictures: Path, tmp_path: Path, capsys: Any
    ) -> None:
        Image.new("RGB", (8, 8)).save(pictures / "b.png")
        before = files(pictures)
        assert "overwritten" in fails(capsys, *words(pictures, weights, tmp_path / "x" / ".." / "in"))
        more = ("--no-draw", "--format", "labels")
        (tmp_path / "labels").symlink_to(pictures)
        assert "overwritten" in fails(capsys, *words(pictures, weights, tmp_path, *more))
        assert files(pictures) == before

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written(
        self, weights: Path, pictures: Path, tmp_path: Path, capsys: Any
    ) -> None:
        locked = tmp_path / "locked"
        locked.mkdir()
        locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert "cannot be written" in fails(capsys, *words(pictures, weights, locked))

    def test_a_file_in_place_of_the_folder(
        self, weights: Path, pictures: Path, tmp_path: Path, capsys: Any
    ) -> None:
        (tmp_path / "out").write_text("a file")
        assert "cannot be written" in fails(capsys, *words(pictures, weights, tmp_path / "out"))
        assert (tmp_path / "out").read_text() == "a file"


def run_main(given: list[str]) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    raise SystemExit(main(given))


def finished(out: Path) -> list[Path]:
    return [path for path in out.glob(f"{FOLDER}/*.jsonl") if not is_temporary(path)]


def check_whole(path: Path) -> None:
    """Read all of a file."""
    if path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".jsonl":
        assert [json.loads(line) for line in path.read_text().splitlines()]
    elif path.suffix == ".json":
        json.loads(path.read_text())
    else:
        assert len(list(sv.get_video_frames_generator(str(path)))) == 8


class TestResume:
    def test_killed_at_random_moments(
        self, weights: Path, pictures: Path, video: Path, tmp_path: Path
    ) -> None:
        shutil.move(video, pictures / "clip.avi")
        torch.set_num_threads(1)
        whole, out = tmp_path / "whole", tmp_path / "out"
        more = ("--format", "labels")
        assert main(words(pictures, weights, whole, *more)) == 0
        rng = random.Random(0)
        for _ in range(3):
            begun = len(finished(out))
            process = start(run_main, words(pictures, weights, out, *more, "--resume"))
            patience = time.monotonic() + 60
            while process.is_alive() and len(finished(out)) <= begun:
                assert time.monotonic() < patience
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.03))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            for path in (path for path in out.rglob("*") if path.is_file() and not is_temporary(path)):
                check_whole(path)
        done = {path: path.stat().st_mtime_ns for path in finished(out)}
        assert len(done) >= 3
        assert main(words(pictures, weights, out, *more, "--resume")) == 0
        assert {path: path.stat().st_mtime_ns for path in done} == done
        assert files(out) == files(whole)

    @pytest.mark.parametrize(
        ("option", "value"), [("--score-threshold", "0.5"), ("--format", "yolo"), ("--tile", "64")]
    )
    def test_other_settings_are_refused(
        self, *, option: str, value: str, weights: Path, pictures: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out, picture = tmp_path / "out", min(pictures.iterdir())
        assert main(words(picture, weights, out)) == 0
        before = files(out)
        assert option in fails(capsys, *words(pictures, weights, out, option, value, "--resume"))
        assert files(out) == before

    def test_other_weights_are_refused(
        self, weights: Path, shapes: Path, pictures: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        assert main(words(min(pictures.iterdir()), weights, out)) == 0
        other = tmp_path / "other.safetensors"
        changed = bytearray(weights.read_bytes())
        changed[-1] ^= 1
        other.write_bytes(bytes(changed))
        assert "--weights" in fails(capsys, *words(pictures, other, out, "--resume"))

    def test_new_pictures_join_the_old(self, weights: Path, pictures: Path, tmp_path: Path) -> None:
        given, out = sorted(pictures.iterdir()), tmp_path / "out"
        first = given[0].rename(tmp_path / "later")
        assert main(words(pictures, weights, out)) == 0
        first.rename(given[0])
        assert main(words(pictures, weights, out, "--resume")) == 0
        assert [image["file_name"] for image in results_of(out)[0]] == [str(path) for path in given]


class TestVideo:
    def test_drawn_and_frame_by_frame(self, weights: Path, video: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert main(words(video, weights, out, "--format", "labels")) == 0
        info = sv.VideoInfo.from_video_path(str(out / "clip.mp4"))
        assert (info.resolution_wh, info.fps) == ((64, 48), RATE)
        frames = list(sv.get_video_frames_generator(str(out / "clip.mp4")))
        assert len(frames) == 8
        plain = next(sv.get_video_frames_generator(str(video)))
        assert np.abs(frames[0].astype(int) - plain).mean() > 1
        images, results = results_of(out)
        assert [(image["file_name"], image["frame"]) for image in images] == [
            (str(video), frame) for frame in range(8)
        ]
        assert {result["image_id"] for result in results} == set(range(1, 9))
        assert len(list((out / "labels" / "clip").iterdir())) == 8

    def test_a_video_and_a_picture_of_one_name(self, weights: Path, video: Path, pictures: Path) -> None:
        shutil.copy(min(pictures.iterdir()), video.parent / "clip.jpg")
        out = video.parent / "out"
        more = (str(video.parent / "clip.jpg"), "--no-draw")
        given = words(video, weights, out)
        assert main([given[0], given[1], *more, *given[2:]]) == 0
        images, _ = results_of(out)
        assert [image["name"] for image in images] == [f"clip/{k:06}" for k in range(8)] + ["clip_2"]
        assert not (out / "clip.mp4").exists()

    def test_a_video_cut_short_gives_what_it_holds(
        self, weights: Path, video: Path, tmp_path: Path, capsys: Any
    ) -> None:
        content = video.read_bytes()
        video.write_bytes(content[: len(content) // 2])
        assert main(words(video, weights, tmp_path / "out")) == 1
        given = len(results_of(tmp_path / "out")[0])
        assert 0 < given < 8
        assert f"clip.avi: breaks off after {given} of 8 frames" in capsys.readouterr().err
        video.write_bytes(content[:100])
        assert "clip.avi" in fails(capsys, *words(video, weights, tmp_path / "none"))
        assert not (tmp_path / "none").exists()


def one_of_two(rank: int, port: int, given: list[str]) -> None:
    """What torchrun starts."""
    os.environ.update(TORCHRUN, RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", MASTER_PORT=str(port))
    run_main(given)


class TestProcesses:
    @pytest.mark.parametrize("batch", ["1", "2"])
    def test_two_leave_what_one_leaves(
        self, batch: str, weights: Path, pictures: Path, video: Path, tmp_path: Path
    ) -> None:
        torch.set_num_threads(1)
        shutil.move(video, pictures / "clip.avi")
        given = sorted(pictures.iterdir())
        given[4].write_bytes(given[4].read_bytes()[:300])
        more = ("--format", "yolo", "--batch-size", batch)
        port = free_port()
        ranks = [
            start(one_of_two, rank, port, words(pictures, weights, tmp_path / "two", *more))
            for rank in range(2)
        ]
        assert main(words(pictures, weights, tmp_path / "one", *more)) == 1
        for process in ranks:
            process.join(120)
        assert [process.exitcode for process in ranks] == [1, 0]  # the first one tells of the broken file
        assert files(tmp_path / "two") == files(tmp_path / "one")
