"""Sources of `predict`: files, folders and patterns, with unique names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedmask.errors import BadInput
from embedmask.predict.sources import Source, find_sources, refuse_overwriting, unique_names


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create files and make their folder the working folder."""
    monkeypatch.chdir(tmp_path)
    others = ("notes.txt", "paper.pdf", "table.h5")
    for name in ("b.png", "a.JPG", "clip.MP4", *others, ".hidden.png", "deep/er/c.webm", "ümläut 1.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_subfolders_with_images_are_named(here: Path) -> None:
    def notes(*arguments: str) -> list[str]:
        lines: list[str] = []
        find_sources(arguments, lines.append)
        return [line for line in lines if "subfolders" in line]

    assert notes(".") == []  # the video is in deep/er
    (here / "deep" / "a.png").touch()
    (here / ".cache").mkdir()
    (here / ".cache" / "a.png").touch()
    line = "images in subfolders are not read: {}; to include them pass 'FOLDER/**/*.png'"
    assert notes(".") == [line.format("deep")]
    assert notes(".", "deep") == [line.format("deep/er")]
    assert notes(".", "deep/**/*") == []


@pytest.mark.usefixtures("here")
def test_files_folders_and_patterns() -> None:
    def paths(*arguments: str) -> list[str]:
        return [str(source.path) for source in find_sources(arguments)]

    assert paths(".") == ["a.JPG", "b.png", "clip.MP4", "ümläut 1.tif"]
    assert paths("**/*") == [
        "a.JPG",
        "b.png",
        "clip.MP4",
        os.path.join("deep", "er", "c.webm"),
        "ümläut 1.tif",
    ]
    assert paths("b.png", "*.png", "a.*") == ["b.png", "a.JPG"]
    same = os.path.join(os.path.abspath("."), "b.png")
    assert paths("deep/../b.png", "b.png", same, "a.JPG") == ["deep/../b.png", "a.JPG"]  # one file
    assert paths("notes.txt") == ["notes.txt"]  # an explicit file is not filtered
    assert [source.is_video for source in find_sources(["."])] == [False, False, True, False]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("argument", ["absent.jpg", "*.gif", "deep"])
def test_raises_on_arguments_without_images(argument: str) -> None:
    with pytest.raises(BadInput) as caught:
        find_sources(["b.png", argument])
    assert str(caught.value).startswith(f"{argument}: ")


def test_equal_stems_get_unique_names() -> None:
    files = [Path("a/x.png"), Path("b/x.jpg"), Path("c/x_2.png"), Path("X.mp4")]
    assert unique_names(files) == ["x", "x_2", "x_2_2", "X_3"]
    many = unique_names([Path(f"{number}/image.png") for number in range(5000)])
    assert many[:2] == ["image", "image_2"]
    assert len(set(many)) == 5000


def test_long_stems_are_cut() -> None:
    names = unique_names([Path("a" * 250 + ".jpg"), Path("a" * 250 + ".png"), Path("細" * 80 + ".png")])
    assert names == ["a" * 200, "a" * 200 + "_2", "細" * 66]


def test_raises_on_result_that_replaces_a_source(tmp_path: Path) -> None:
    source = Source(tmp_path / "in" / "a.png", "a")
    refuse_overwriting([source], [tmp_path / "a.png", tmp_path / "in" / "b.png"])
    for result in (tmp_path / "in" / "a.png", tmp_path / "x" / ".." / "in", tmp_path):
        with pytest.raises(BadInput, match="would be overwritten"):
            refuse_overwriting([source], [result])
