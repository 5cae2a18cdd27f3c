"""`embedmask predict` with --resume, also after a kill, and in several processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import fails
from PIL import Image
from predict_command import files, results_of, words
from tiny_run import TORCHRUN, exit_codes, free_port, start

from embedmask._supervision import sv
from embedmask.cli import main
from embedmask.files import is_temporary
from embedmask.predict.journal import FOLDER


def run_main(arguments: list[str]) -> None:
    """Run the command in a separate process."""
    torch.set_num_threads(1)
    raise SystemExit(main(arguments))


def finished(out: Path) -> list[Path]:
    return [path for path in out.glob(f"{FOLDER}/*.jsonl") if not is_temporary(path)]


def check_whole(path: Path) -> None:
    """Read a file completely."""
    if path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".jsonl":
        assert [json.loads(line) for line in path.read_text().splitlines()]
    elif path.suffix == ".json":
        json.loads(path.read_text())
    else:
        assert len(list(sv.get_video_frames_generator(str(path)))) == 8


class TestResume:
    def test_killed_at_random_moments(self, weights: Path, images: Path, video: Path, tmp_path: Path) -> None:
        shutil.move(video, images / "clip.avi")
        torch.set_num_threads(1)
        whole, out = tmp_path / "whole", tmp_path / "out"
        more = ("--format", "labels")
        assert main(words(images, weights, whole, *more)) == 0
        rng = random.Random(0)
        for _ in range(3):
            num_before = len(finished(out))
            process = start(run_main, words(images, weights, out, *more, "--resume"))
            deadline = time.monotonic() + 60
            while process.is_alive() and len(finished(out)) <= num_before:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.03))
            process.kill()  # it may have finished
            process.join()
            for path in (path for path in out.rglob("*") if path.is_file() and not is_temporary(path)):
                check_whole(path)
        done = {path: path.stat().st_mtime_ns for path in finished(out)}
        assert len(done) >= 3
        assert main(words(images, weights, out, *more, "--resume")) == 0
        assert {path: path.stat().st_mtime_ns for path in done} == done
        assert files(out) == files(whole)

    @pytest.mark.parametrize(
        ("option", "value"), [("--score-threshold", "0.5"), ("--format", "yolo"), ("--tile", "64")]
    )
    def test_raises_on_other_settings(
        self, *, option: str, value: str, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out, image = tmp_path / "out", min(images.iterdir())
        assert main(words(image, weights, out)) == 0
        before = files(out)
        assert option in fails(capsys, *words(images, weights, out, option, value, "--resume"))
        assert files(out) == before

    def test_raises_on_other_weights(
        self, weights: Path, shapes: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        assert main(words(min(images.iterdir()), weights, out)) == 0
        other = tmp_path / "other.safetensors"
        changed = bytearray(weights.read_bytes())
        changed[-1] ^= 1
        other.write_bytes(bytes(changed))
        assert "--weights" in fails(capsys, *words(images, other, out, "--resume"))

    def test_raises_on_damaged_journal(
        self, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        assert main(words(images, weights, out)) == 0
        # a row that begins like a finished one
        broken = min(finished(out))
        text = broken.read_text()
        broken.write_text(text[: len(text) // 2])
        line = fails(capsys, *words(images, weights, out, "--resume"))
        assert f"{broken}: is damaged; remove it and repeat" in line
        broken.unlink()
        assert main(words(images, weights, out, "--resume")) == 0
        for content in (b"\xff{", b"[]"):
            (out / FOLDER / "settings.json").write_bytes(content)
            line = fails(capsys, *words(images, weights, out, "--resume"))
            assert "settings.json: is damaged; omit --resume" in line

    def test_raises_on_overlap_without_tiles(
        self, weights: Path, images: Path, tmp_path: Path, capsys: Any
    ) -> None:
        line = fails(capsys, *words(images, weights, tmp_path / "out", "--overlap", "32"))
        assert "--overlap 32" in line
        assert "--tile" in line
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("folder", ["labels", "."])
    def test_missing_result_files_are_written_again(
        self, folder: str, weights: Path, images: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        assert main(words(images, weights, out, "--format", "labels")) == 0
        before = files(out)
        min((out / folder).glob("*.png")).unlink()
        assert files(out) != before
        assert main(words(images, weights, out, "--format", "labels", "--resume")) == 0
        assert files(out) == before

    def test_new_images_are_added(self, weights: Path, images: Path, tmp_path: Path) -> None:
        sources, out = sorted(images.iterdir()), tmp_path / "out"
        first = sources[0].rename(tmp_path / "later")
        assert main(words(images, weights, out)) == 0
        first.rename(sources[0])
        assert main(words(images, weights, out, "--resume")) == 0
        assert [image["file_name"] for image in results_of(out)[0]] == [str(path) for path in sources]


def one_of_two(rank: int, port: int, arguments: list[str]) -> None:
    """Run the command as one of two processes of torchrun."""
    os.environ.update(TORCHRUN, RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", MASTER_PORT=str(port))
    run_main(arguments)


class TestProcesses:
    @pytest.mark.parametrize("batch", ["1", "2"])
    def test_two_processes_write_the_results_of_one(
        self, batch: str, weights: Path, images: Path, video: Path, tmp_path: Path
    ) -> None:
        torch.set_num_threads(1)
        shutil.move(video, images / "clip.avi")
        sources = sorted(images.iterdir())
        sources[4].write_bytes(sources[4].read_bytes()[:300])
        more = ("--format", "yolo", "--batch-size", batch)
        port = free_port()
        ranks = [
            start(one_of_two, rank, port, words(images, weights, tmp_path / "two", *more))
            for rank in range(2)
        ]
        assert main(words(images, weights, tmp_path / "one", *more)) == 1
        assert exit_codes(*ranks) == [1, 0]  # rank zero reports the broken file
        assert files(tmp_path / "two") == files(tmp_path / "one")


def test_replaced_file_is_predicted_again(weights: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(images, weights, out)) == 0
    paths = sorted(images.iterdir())
    listed, before = results_of(out)
    kept = {path: path.stat().st_mtime_ns for path in finished(out)}
    shutil.copy(paths[1], paths[0])
    assert main(words(images, weights, out, "--resume")) == 0
    again, after = results_of(out)
    assert again == listed
    assert {"file_size", "file_time"}.isdisjoint(again[0])
    first, second = ([row["score"] for row in after if row["image_id"] == number] for number in (1, 2))
    assert first == second
    assert [row for row in before if row["image_id"] > 1] == [row for row in after if row["image_id"] > 1]
    changed = [path.stem for path in finished(out) if kept[path] != path.stat().st_mtime_ns]
    assert changed == [paths[0].stem]
