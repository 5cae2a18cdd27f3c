"""ImageJ's ROIs, read back by roifile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from test_polygons import RING, Bools, any_mask, fill, scene

from embedmask.errors import BadInput
from embedmask.predict.rois import rois, write_rois
from embedmask.predict.writers import ImageOutput, write_annotations

roifile = pytest.importorskip("roifile")


def filled(roi: roifile.ImagejRoi, size: tuple[int, int]) -> Bools:
    """Fill the paths of a region by the even-odd rule."""
    mask = np.zeros(size, bool)
    paths = roi.coordinates(multi=True) if roi.composite else [roi.coordinates()]
    for path in paths:
        ring = path[:-1] if roi.composite else path  # composites repeat the first corner
        mask ^= fill([ring.astype(float)], size)
    return mask


@given(any_mask)
def test_bytes_restore_the_mask(mask: Bools) -> None:
    instances = scene([mask], [0], (20, 21))
    (roi,) = rois(instances, ["cell"])
    read = roifile.ImagejRoi.frombytes(roi.tobytes())
    np.testing.assert_array_equal(filled(read, (20, 21)), instances.masks.to_dense()[0])
    x1, y1, x2, y2 = instances.masks.boxes()[0].tolist()
    assert (read.left, read.top) == (x1, y1)
    if read.composite:
        assert (read.right, read.bottom) == (x2, y2)


def test_zip_holds_a_region_per_object(tmp_path: Path) -> None:
    square, empty = np.ones((5, 6), bool), np.zeros((0, 0), bool)
    instances = scene([square, RING, empty, np.eye(3, dtype=bool)], [0, 1, 0, 1], (50, 60))
    write_rois(tmp_path / "a.zip", instances, ["cell", "a/b"], "a.tif", page=2)
    read = roifile.roiread(tmp_path / "a.zip")
    assert [roi.name for roi in read] == ["0001-cell", "0002-a_b", "0004-a_b"]
    assert [roi.composite for roi in read] == [False, True, True]
    assert [roi.roitype.name for roi in read] == ["POLYGON", "RECT", "RECT"]
    assert {roi.position for roi in read} == {3}, "ImageJ counts from 1"
    assert read[0].properties == {"class": "cell", "score": 0.9}
    for roi, index in zip(read, (0, 1, 3), strict=True):
        np.testing.assert_array_equal(filled(roi, (50, 60)), instances.masks.to_dense()[index])
    # a second run replaces the file
    write_rois(tmp_path / "a.zip", instances.select([0]), ["cell", "a/b"], "a.tif")
    (only,) = [roifile.roiread(tmp_path / "a.zip")]
    assert len(np.atleast_1d(only)) == 1


def test_image_without_objects(tmp_path: Path) -> None:
    write_rois(tmp_path / "a.zip", scene([], [], (5, 6)), ["cell"], "a.tif")
    assert roifile.roiread(tmp_path / "a.zip") == []


def test_far_coordinates(tmp_path: Path) -> None:
    instances = scene([np.ones((3, 4), bool)], [0], (60, 60_535))
    instances.masks.runs[0][:] += 60 * (60_531 - instances.masks.boxes()[0, 0])
    (read,) = [roifile.ImagejRoi.frombytes(roi.tobytes()) for roi in rois(instances, ["cell"])]
    assert read.coordinates()[:, 0].max() == 60_535
    wide = scene([np.ones((3, 4), bool)], [0], (60, 60_536))
    with pytest.raises(
        BadInput, match=r"a\.tif: 60536 x 60 px, but ImageJ ROIs have coordinates up to 60535"
    ):
        write_rois(tmp_path / "a.zip", wide, ["cell"], "a.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("axes", "shape", "page", "expected"),
    [
        ("ZYX", (3, 9, 8), 2, (0, 0, 0, 3)),
        ("TYX", (3, 9, 8), 2, (0, 0, 0, 3)),
        ("ZCYX", (3, 2, 9, 8), 1, (0, 2, 1, 0)),
        ("TCYX", (3, 2, 9, 8), 2, (0, 1, 3, 0)),
        ("TZYX", (2, 3, 9, 8), 4, (0, 2, 2, 0)),
        ("TZCYX", (2, 3, 2, 9, 8), 5, (0, 3, 2, 0)),
    ],
)
def test_position_in_stacks_and_hyperstacks(
    axes: str, shape: tuple[int, ...], page: int, expected: tuple[int, int, int, int], tmp_path: Path
) -> None:
    """ImageJ shows an ROI at its position in a stack, but at its slice and frame in a hyperstack; 0 stands for all."""
    source = tmp_path / "a.tif"
    tifffile.imwrite(source, np.zeros(shape, np.uint16), imagej=True, metadata={"axes": axes})
    instances = scene([np.ones((3, 4), bool)], [0], (9, 8))
    image = torch.zeros(3, 9, 8, dtype=torch.uint8)
    for number in (page, None):
        write_annotations("roi", tmp_path, "a", ImageOutput(instances, ["cell"], source, image, number))
        roi = roifile.ImagejRoi.fromfile(next((tmp_path / "rois").iterdir()))
        (roi,) = roi if isinstance(roi, list) else [roi]
        places = (roi.c_position, roi.z_position, roi.t_position, roi.position)
        assert places == (expected if number is not None else (0, 0, 0, 0))
