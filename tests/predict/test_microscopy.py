"""The formats of microscopy, and slides, through the command line."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command_line import fails
from PIL import Image
from predict_command import masks_of, results_of, words
from pyramids import textured, write_ome_tiff, write_ome_zarr
from test_geojson import filled

from embedmask.cli import main
from embedmask.predict import label_tiff

RGB = ("FF0000", "00FF00", "0000FF")
TILES = ("--tile", "64", "--overlap", "24")


@pytest.fixture
def image(images: Path) -> Path:
    return sorted(images.iterdir())[0]


def test_formats_hold_the_masks_of_the_results(
    weights: Path, image: Path, tmp_path: Path, capsys: Any
) -> None:
    import roifile

    out = tmp_path / "out"
    for fmt in ("geojson", "roi", "csv", "tiff"):
        assert main([*words(image, weights, out), "--format", fmt, "--no-draw"]) == 0
    (entry,), results = results_of(out)
    masks, size = masks_of(results, 1), (entry["height"], entry["width"])
    kept = [index for index, mask in enumerate(masks) if mask.any()]
    assert len(kept) > 3
    # QuPath
    collection = json.loads((out / f"geojson/{image.stem}.geojson").read_text())
    features = collection["features"]
    assert [feature["properties"]["object"] - 1 for feature in features] == kept
    for feature, index in zip(features, kept, strict=True):
        np.testing.assert_array_equal(filled(feature["geometry"], size), masks[index])
        score = results[index]["score"]
        assert feature["properties"]["measurements"]["score"] == pytest.approx(score, abs=1e-6)
    # ImageJ
    rois = roifile.roiread(out / f"rois/{image.stem}.zip")
    assert [int(roi.name.split("-")[0]) - 1 for roi in rois] == kept
    # table
    with (out / f"measurements/{image.stem}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(float(row["area"])) for row in rows] == [int(masks[index].sum()) for index in kept]
    # label image: the best object keeps its pixels
    labels = tifffile.imread(out / f"labels/{image.stem}.tif")
    np.testing.assert_array_equal(labels == 1, masks[0])
    np.testing.assert_array_equal(labels > 0, np.any(masks, 0))


def test_labels_of_32_bits_are_noted(
    weights: Path, image: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_tiff, "MAX_16", 3)
    assert main([*words(image, weights, tmp_path / "out"), "--format", "tiff", "--no-draw"]) == 0
    assert f"{image.stem}.tif: labels have 32 bits, because 16 bits do not hold" in capsys.readouterr().err
    assert tifffile.imread(tmp_path / f"out/labels/{image.stem}.tif").dtype == np.uint32


@pytest.mark.parametrize("fmt", ["roi", "csv"])
def test_missing_extra(fmt: str, image: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    package = {"roi": "roifile", "csv": "skimage"}[fmt]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])
    line = fails(capsys, *words(image, tmp_path / "not_loaded", tmp_path / "out"), "--format", fmt)
    assert line == f"embedmask: --format {fmt} needs {package}; pip install 'embedmask[microscopy]'"
    assert not (tmp_path / "out").exists()


class Hidden:
    """Finder of modules to which a package is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.split(".", maxsplit=1)[0] == self.package:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)


@pytest.mark.parametrize("kind", ["tiff", "0.4", "0.5"])
def test_slide_equals_the_image_of_its_level(kind: str, weights: Path, tmp_path: Path, capsys: Any) -> None:
    # cells of 16 px, so that the network sees structure
    values = np.kron(textured(16, 20), np.ones((16, 16, 1), np.uint8))
    slides = tmp_path / "slides"
    if kind == "tiff":
        slides.mkdir()
        level = write_ome_tiff(slides / "a.ome.tif", values, "YXS")[1]
    else:
        level = write_ome_zarr(slides / "a.ome.zarr", values.transpose(2, 0, 1), "CYX", kind, colors=RGB)[1]
        level = level.transpose(1, 2, 0)
    Image.fromarray(level).save(tmp_path / "plain.png")
    options = (*TILES, "--format", "geojson")
    assert main([*words(slides, weights, tmp_path / "slide", *options), "--level", "1"]) == 0
    assert "not drawn, because it is read by windows" in capsys.readouterr().err
    assert main([*words(tmp_path / "plain.png", weights, tmp_path / "flat", *options), "--no-draw"]) == 0
    (entry,), results = results_of(tmp_path / "slide")
    (_,), expected = results_of(tmp_path / "flat")
    assert len(expected) > 5
    assert results == expected
    assert (entry["level"], entry["downsample"]) == (1, [2.0, 2.0])
    # QuPath's coordinates are those of the full resolution
    (path,) = (tmp_path / "slide/geojson").iterdir()
    (flat,) = (tmp_path / "flat/geojson").iterdir()
    one, other = (json.loads(file.read_text())["features"] for file in (path, flat))
    for feature, plain in zip(one, other, strict=True):
        shells = [feature["geometry"]["coordinates"], plain["geometry"]["coordinates"]]
        while isinstance(shells[0][0][0], list):
            shells = [shell[0] for shell in shells]
        np.testing.assert_array_equal(shells[0], np.array(shells[1]) * 2)


def test_measurements_of_a_slide(weights: Path, tmp_path: Path) -> None:
    values = np.kron(textured(16, 20), np.ones((16, 16, 1), np.uint8))
    write_ome_tiff(tmp_path / "a.ome.tif", values, "YXS")
    Image.fromarray(values).save(tmp_path / "plain.png")
    tables = []
    for name in ("a.ome.tif", "plain.png"):
        given = words(tmp_path / name, weights, tmp_path / "out", *TILES, "--format", "csv", "--no-draw")
        assert main(given) == 0
        tables.append((tmp_path / f"out/measurements/{Path(name).stem}.csv").read_text())
    assert tables[0] == tables[1]
    assert tables[0].count("\n") > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "7"], "has 3 levels, level 7 is requested; they count from 0"),
        (["--page", "3"], "has 1 page, page 3 is requested; they count from 0"),
        (["--channels", "4"], "has 3 channels, channel 4 is requested; they count from 0"),
    ],
)
def test_missing_parts_of_a_slide(
    options: list[str], message: str, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    write_ome_tiff(tmp_path / "a.ome.tif", textured(150, 130), "YXS")
    line = fails(capsys, *words(tmp_path / "a.ome.tif", weights, tmp_path / "out", *TILES), *options)
    assert line == f"embedmask: {tmp_path}/a.ome.tif: {message}"


def test_invalid_level(weights: Path, image: Path, tmp_path: Path, capsys: Any) -> None:
    assert "level must be at least 0" in fails(
        capsys, *words(image, weights, tmp_path / "out"), "--level", "-1"
    )


def test_unsupported_slide_and_folder_of_zarr(weights: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mrxs").write_bytes(b"slide")
    line = fails(capsys, *words(tmp_path / "in", weights, tmp_path / "out"))
    assert "a.mrxs (microscope format: export as OME-TIFF or OME-Zarr)" in line
    line = fails(capsys, *words(tmp_path / "in/a.mrxs", weights, tmp_path / "out"))
    assert "cannot be read as an image (no known format); export as OME-TIFF or OME-Zarr" in line
    import zarr

    zarr.open_group(tmp_path / "plate.zarr", mode="w")
    line = fails(capsys, *words(tmp_path / "plate.zarr", weights, tmp_path / "out"))
    assert "plate.zarr: is not an OME-Zarr image: it has no multiscales" in line
