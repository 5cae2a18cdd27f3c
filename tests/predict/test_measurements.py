"""Measurements against scikit-image on the whole label image, and known shapes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_polygons import scene

from embedmask.predict import measurements
from embedmask.predict.measurements import COLUMNS, write_measurements

skimage_measure = pytest.importorskip("skimage.measure")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("block", [7, 1024])
def test_measurements_equal_those_of_the_label_image(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "BLOCK", block)
    rng = np.random.default_rng(0)
    masks = [rng.random((6, 8)) < 0.7 for _ in range(5)]
    masks.insert(2, np.zeros((0, 0), bool))
    instances = scene(masks, [0, 1, 0, 1, 0, 1], (40, 50), seed=3)
    image = torch.from_numpy(rng.integers(0, 256, (3, 40, 50), dtype=np.uint8))
    write_measurements(tmp_path / "a.csv", instances, ["cell", "x, y"], image)
    rows = read(tmp_path / "a.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [row["object"] for row in rows] == ["1", "2", "4", "5", "6"]
    assert [row["class"] for row in rows] == ["cell", "x, y", "x, y", "cell", "x, y"]
    for row in rows:
        index = int(row["object"]) - 1
        dense = instances.masks.to_dense()[index].numpy().astype(np.uint8)
        (region,) = skimage_measure.regionprops(dense, image.permute(1, 2, 0).numpy())
        y, x = region.centroid
        expected = [
            region.area,
            region.perimeter,
            x + 0.5,
            y + 0.5,
            region.eccentricity,
            *region.intensity_mean,
        ]
        actual = [float(row[name]) for name in COLUMNS[3:]]
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        assert float(row["score"]) == pytest.approx(float(instances.scores[index]), abs=1e-6)


def test_known_shapes(tmp_path: Path) -> None:
    y, x = np.mgrid[:41, :41] - 20
    instances = scene([y**2 + x**2 <= 400, np.ones((2, 30), bool)], [0, 0], (41, 41))
    image = torch.full((3, 41, 41), 7, dtype=torch.uint8)
    write_measurements(tmp_path / "a.csv", instances, ["cell"], image)
    disc, bar = read(tmp_path / "a.csv")
    assert float(disc["area"]) == np.count_nonzero(y**2 + x**2 <= 400)
    assert float(disc["perimeter"]) == pytest.approx(2 * math.pi * 20, rel=0.05)
    assert (disc["centroid_x"], disc["centroid_y"]) == ("20.5", "20.5")
    assert float(disc["eccentricity"]) < 0.01
    assert float(bar["eccentricity"]) > 0.99
    assert {disc[name] for name in COLUMNS[-3:]} == {"7"}


def test_image_without_objects(tmp_path: Path) -> None:
    write_measurements(tmp_path / "a.csv", scene([], [], (5, 6)), ["cell"], torch.zeros(3, 5, 6))
    assert (tmp_path / "a.csv").read_text().strip() == ",".join(COLUMNS)
