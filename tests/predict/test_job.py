"""`embedmask.predict.run` from Python: the files of the command, and a summary in place of printed lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tifffile
from PIL import Image
from predict_command import COUNT, files, results_of, words

import embedmask
from embedmask.cli import main
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.files import exclusive
from embedmask.predict import PredictSummary, rois

OPTIONS: dict[str, Any] = {
    "score_threshold": 0.45,
    "max_detections": 20,
    "precision": "float32",
    "device": "cpu",
}


def run(source: Any, weights: Path, out: Path, **options: Any) -> PredictSummary:
    """Predict with the options of `words`."""
    return embedmask.predict.run(source, weights, out, **{**OPTIONS, **options})


@pytest.fixture
def mixed(images: Path, video: Path) -> Path:
    """Return a folder of images and a video."""
    shutil.move(video, images / "clip.avi")
    return images


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, ()),
        (
            {"format": "yolo", "draw": False, "batch_size": 3},
            ("--format=yolo", "--no-draw", "--batch-size=3"),
        ),
        ({"format": "labels", "tile": 64, "overlap": 16}, ("--format=labels", "--tile=64", "--overlap=16")),
    ],
    ids=["drawn", "yolo", "tiles"],
)
def test_files_equal_those_of_the_command(
    *,
    options: dict[str, Any],
    more: tuple[str, ...],
    weights: Path,
    mixed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = run(mixed, weights, tmp_path / "python", **options)
    assert capsys.readouterr() == ("", "")
    assert main(words(mixed, weights, tmp_path / "command", *more)) == 0
    assert files(tmp_path / "python") == files(tmp_path / "command")
    results = results_of(tmp_path / "python")[1]
    assert summary == PredictSummary(num_images=COUNT + 8, num_objects=len(results))
    assert f"{len(results)} objects in {COUNT + 8} images" in capsys.readouterr().out


def test_resume_predicts_new_files_only(weights: Path, mixed: Path, tmp_path: Path) -> None:
    out, later = tmp_path / "out", min(mixed.glob("train*"))
    later.rename(tmp_path / "later")
    assert run([mixed / "clip.avi", str(mixed / "train*")], weights, out).num_images == COUNT + 7
    drawn = (out / "clip.mp4").stat().st_mtime_ns
    (tmp_path / "later").rename(later)
    sources = [mixed / "clip.avi", str(mixed / "train*")]
    assert run(sources, str(weights), str(out), resume=True).num_images == COUNT + 8
    assert (out / "clip.mp4").stat().st_mtime_ns == drawn
    run(sources, weights, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")
    # a run of the command continues in Python, and the other way round
    arguments = words(mixed / "clip.avi", weights, out, "--resume")
    assert main([*arguments[:2], str(mixed / "train*"), *arguments[2:]]) == 0
    assert files(out) == files(tmp_path / "whole")
    with pytest.raises(BadInput, match="--max-detections 20, now 3"):
        run(sources, weights, out, resume=True, max_detections=3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock of a folder")
@pytest.mark.parametrize("resume", [False, True])
def test_one_process_predicts_into_a_folder(
    weights: Path, images: Path, tmp_path: Path, *, resume: bool
) -> None:
    out = tmp_path / "out"
    run(images, weights, out)
    (out / ".a.png.0123456789ab.png").touch()  # a file that the other process is writing
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with exclusive(out), pytest.raises(BadInput, match="another run is writing there"):
        run(images, weights, out, resume=resume)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_image_that_the_format_cannot_store_does_not_stop_the_others(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = images / "a.png"
    Image.new("RGB", (90, 40)).save(large)
    monkeypatch.setattr(rois, "MAX_SIDE", 80)
    for resume in (False, True):
        summary = run(images, weights, tmp_path / "out", format="roi", draw=False, resume=resume)
        assert summary.num_images == COUNT
        assert len(summary.broken) == 1
        assert summary.broken[0].startswith(f"{large}: 90 x 40 px, but ImageJ ROIs have coordinates up to 80")


def test_summary_lists_broken_files_notes_and_the_best_score(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    broken = images / "a.png"
    broken.write_bytes(min(images.glob("train*")).read_bytes()[:300])
    (images / "b.heic").touch()
    pixels = Image.open(min(images.glob("train*"))).convert("L")
    tifffile.imwrite(images / "stack.tif", [pixels, pixels], photometric="minisblack")
    summary = run(images, weights, tmp_path / "out", score_threshold=1.0)
    assert (summary.num_images, summary.num_objects) == (COUNT + 1, 0)
    assert len(summary.broken) == 1
    assert str(broken) in summary.broken[0]
    assert [note.partition(":")[0] for note in summary.notes] == [
        "1 image file is not read",
        "1 file with several pages",
    ]
    assert summary.hint.startswith("the best score ")


def test_ids_of_a_data_set(shapes: Path, weights: Path, tmp_path: Path) -> None:
    run(shapes / "images" / "train_*", weights, tmp_path / "out", ids_from=shapes)
    images = results_of(tmp_path / "out")[0]
    assert [image["id"] for image in images] == list(CocoInstances.open(shapes, "train").image_ids)


@pytest.mark.parametrize(
    "options",
    [{"score_threshold": 1.5}, {"page": -1}, {"batch_size": 0}, {"devices": 0}, {"device": "abacus"}],
)
def test_raises_before_writing(options: dict[str, Any], weights: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        run(images, weights, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


SCRIPT = """
import json, sys
import embedmask
if __name__ == "__main__":
    source, weights, out, options = sys.argv[1:]
    summary = embedmask.predict.run(source, weights, out, devices=2, **json.loads(options))
    if summary.num_images:
        print(summary.num_images, summary.num_objects)
"""


@pytest.mark.slow
def test_script_in_two_processes(weights: Path, mixed: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    options = json.dumps({**OPTIONS, "format": "labels"})
    command = [sys.executable, script, mixed, weights, tmp_path / "two", options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    summary = run(mixed, weights, tmp_path / "one", format="labels")
    assert done.stdout.split() == [str(summary.num_images), str(summary.num_objects)]
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_importing_is_light() -> None:
    script = (
        "import embedmask, embedmask.predict, sys; print('torch' in sys.modules, embedmask.predict.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False ['PredictSummary', 'run']\n"


def test_raises_on_unknown_format(images: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="format 'label': use one of coco, labels, "):
        run(images, weights, tmp_path / "out", format="label")
    assert not (tmp_path / "out").exists()
