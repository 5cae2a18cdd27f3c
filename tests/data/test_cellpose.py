"""Test label images in numpy and Cellpose files, and that pickled code is never executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedmask.data.cellpose import read_numpy_labels
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput

from .folders import SCENES, write_label_images

LABELS = np.arange(12, dtype=np.uint16).reshape(3, 4)


def save(path: Path, value: Any, protocol: int = 4) -> Path:
    """Write an object as `np.save` does, in any pickle protocol."""
    array = np.empty((), dtype=object)
    array[()] = value
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, file, protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", range(2, 6))
def test_cellpose_dictionary(tmp_path: Path, protocol: int) -> None:
    seg = {
        "masks": LABELS,
        "outlines": np.zeros((3, 4), dtype=np.uint16),
        "colors": np.zeros((11, 3), dtype=np.uint8),
        "filename": "a.png",
        "flows": [np.zeros((3, 4), np.float32), [], None],
        "chan_choose": [0, 0],
        "ismanual": np.zeros(11, dtype=bool),
        "manual_changes": [["01/02/2025, 10:00:00", "added mask", [np.arange(2), np.arange(2)]]],
        "est_diam": np.float64(3.5),
    }
    np.testing.assert_array_equal(read_numpy_labels(save(tmp_path / "a_seg.npy", seg, protocol)), LABELS)


def test_files_of_np_save(tmp_path: Path) -> None:
    np.save(tmp_path / "a_seg.npy", {"masks": LABELS})  # type: ignore[arg-type]
    np.save(tmp_path / "a.npy", LABELS)
    for name in ("a_seg.npy", "a.npy"):
        np.testing.assert_array_equal(read_numpy_labels(tmp_path / name), LABELS)


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, getattr, exec, np.load, pickle.loads])
def test_rejects_code_without_running_it(tmp_path: Path, function: Callable[..., Any]) -> None:
    marker = tmp_path / "ran"
    text = {os.mkdir: str(marker), os.system: f"touch {marker}"}.get(
        function, f"__import__('os').mkdir({str(marker)!r})"
    )
    path = save(tmp_path / "a_seg.npy", {"masks": LABELS, "extra": Calls(function, text)})
    with pytest.raises(ValueError, match="which is not an array") as caught:
        read_numpy_labels(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)


def test_raises_on_code_in_data_set(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    (tmp_path / "val/masks/c.tif").unlink()
    save(tmp_path / "val/masks/c_seg.npy", {"masks": Calls(os.mkdir, str(tmp_path / "ran"))})
    with pytest.raises(BadInput, match=r"c_seg\.npy: cannot be read .*mkdir, which is not an array"):
        CocoInstances.open(tmp_path, "val")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [{"outlines": LABELS}, "text", {"masks": "text"}, {"masks": None}, [1, 2]])
def test_raises_on_files_without_masks(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="no array of labels and no dictionary with 'masks'"):
        read_numpy_labels(save(tmp_path / "a_seg.npy", value))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x05\x00abcde", b"PNG" * 99])
def test_raises_on_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="not a plain numpy file"):
        read_numpy_labels(tmp_path / "a.npy")


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    from PIL import Image

    return {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "val/masks").glob("*.tif"))}


@pytest.mark.parametrize("place", ["val/masks", "val/images", "val"])
@pytest.mark.parametrize("form", ["seg", "cp_masks", "both", "numpy"])
def test_cellpose_folders(tmp_path: Path, place: str, form: str) -> None:
    from PIL import Image

    write_label_images(tmp_path)
    for name, labels in labels_of(tmp_path).items():
        (tmp_path / f"val/masks/{name}.tif").unlink()
        if place == "val":
            (tmp_path / f"val/images/{name}.png").rename(tmp_path / f"val/{name}.png")
        if form in ("seg", "both"):
            save(tmp_path / place / f"{name}_seg.npy", {"masks": labels})
        if form in ("cp_masks", "both"):
            Image.fromarray(labels).save(tmp_path / place / f"{name}_cp_masks.png")
        if form == "numpy":
            np.save(tmp_path / place / f"{name}_masks.npy", labels)
        if place != "val/masks":
            for ending in ("_flows.tif", "_cp_output.png", "_outlines.png"):
                Image.new("RGB", (30, 40)).save(tmp_path / place / f"{name}{ending}")
    dataset = CocoInstances.open(tmp_path, "val")
    assert [dataset.image_path(i).name for i in range(len(dataset))] == ["c.png", "d.png"]
    assert [len(dataset[i][1]) for i in range(2)] == [len(objects) for objects in SCENES["val"].values()]


def test_raises_on_differing_label_images(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    save(tmp_path / "val/masks/d_seg.npy", {"masks": labels_of(tmp_path)["d"][::-1]})
    with pytest.raises(BadInput, match=r"masks/d\.tif, .*masks/d_seg\.npy: differ, so it is ambiguous"):
        CocoInstances.open(tmp_path, "val")
