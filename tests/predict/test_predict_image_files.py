"""Pages, channels and unsupported files in `predict`, `train` and `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command_line import fails
from PIL import Image
from predict_command import files, results_of, words

from embedmask.cli import main


@pytest.fixture
def stack(images: Path, tmp_path: Path) -> Path:
    """Write a stack of two pages, the first one empty."""
    pixels = np.asarray(Image.open(sorted(images.iterdir())[0]).convert("L"))
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.stack([np.zeros_like(pixels), pixels]), photometric="minisblack", metadata=None)
    Image.fromarray(pixels).save(tmp_path / "page.png")
    return path


def lines_of(capsys: Any) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("embedmask: ")]


def test_page_and_channels(weights: Path, stack: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(words(stack, weights, tmp_path / "first")) == 0
    assert lines_of(capsys) == [
        "embedmask: 1 file with several pages: page 0 is used (stack.tif: 2 pages); choose with --page"
    ]
    assert main(words(tmp_path / "page.png", weights, tmp_path / "expected")) == 0
    for option in (("--page", "1"), ("--channels", "1"), ("--channels", "1", "1", "1")):
        assert main(words(stack, weights, tmp_path / "out", *option)) == 0
        assert lines_of(capsys) == []
        assert results_of(tmp_path / "out")[1] == results_of(tmp_path / "expected")[1]
    assert results_of(tmp_path / "first")[1] != results_of(tmp_path / "expected")[1]


def test_raises_on_invalid_page_or_channels(weights: Path, stack: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert main(words(stack, weights, tmp_path / "out", "--page", "2")) == 2
    assert lines_of(capsys) == [f"embedmask: {stack}: has 2 pages, page 2 is requested; they count from 0"]
    for option, reason in (
        (("--page", "-1"), "page must be at least 0"),
        (("--channels", "0", "1"), "one channel (gray) or three"),
    ):
        assert reason in fails(capsys, *words(stack, weights, tmp_path / "out", *option))
    assert not (tmp_path / "out").exists()


def test_resume_requires_the_same_page(weights: Path, stack: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(words(stack, weights, tmp_path / "out", "--page", "1")) == 0
    before = files(tmp_path / "out")
    assert "--page" in fails(capsys, *words(stack, weights, tmp_path / "out", "--resume"))
    assert main(words(stack, weights, tmp_path / "out", "--page", "1", "--resume")) == 0
    assert files(tmp_path / "out") == before


def test_unsupported_files_are_reported_in_one_line(
    weights: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    for name in ("a.heic", "b.nef", "notes.txt", ".DS_Store"):
        (images / name).touch()
    (images / "z.png").symlink_to(tmp_path / "gone.png")
    assert main(words(images, weights, tmp_path / "out")) == 0
    (line,) = lines_of(capsys)
    assert line.startswith("embedmask: 3 image files are not read: a.heic (")
    assert "b.nef" in line
    assert "z.png (broken link" in line
    assert "notes" not in line
    assert main(words(images / "a.heic", weights, tmp_path / "none")) == 2  # an explicit file is not skipped
    assert "convert to JPEG or PNG" in "".join(lines_of(capsys))


def test_folder_without_images_reports_its_contents(weights: Path, tmp_path: Path, capsys: Any) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "deeper").mkdir(parents=True)
    assert "deeper/" in fails(capsys, *words(folder, weights, out))
    (folder / "table.csv").touch()
    assert "table.csv" in fails(capsys, *words(folder, weights, out))
    (folder / "a.heic").touch()
    assert "a.heic (HEIC" in fails(capsys, *words(folder, weights, out))
    assert "a.heic (HEIC" in fails(capsys, *words(folder / "*.heic", weights, out))
    assert "table.csv" in fails(capsys, *words(folder / "*.csv", weights, out))
