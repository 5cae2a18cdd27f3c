"""Test the recognition of image files and of images that cannot be read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from embedmask.data.check import check_folder
from embedmask.data.coco import CocoInstances
from embedmask.data.formats import describe_unread, is_image_file
from embedmask.data.images import read_image
from embedmask.errors import BadInput

from .folders import write_label_images, write_yolo


@pytest.mark.parametrize(
    ("name", "known"),
    [("a.jpg", True), ("a.PNG", True), ("a.tif", True), ("a.lsm", True), ("a.webp", True), ("a.heic", False),
     ("a.nef", False), ("a.czi", False), ("a.pdf", False), ("a.txt", False), (".a.jpg", False), ("jpg", False)],
)  # fmt: skip
def test_image_suffixes(name: str, known: bool) -> None:
    assert is_image_file(Path(name)) is known


def test_describes_unread_images(tmp_path: Path) -> None:
    names = ["a.HEIC", "b.heic", "c.heif", "d.heic", "e.nef", "f.dng", "g.czi", "h.nd2", "i.dcm", "j.npy"]
    ignored = ["k.jpg", "l.txt", "m.json", "Thumbs.db", ".DS_Store", "._a.heic", "n.csv", "o.xml", "p.mp4"]
    for name in names + ignored:
        (tmp_path / name).touch()
    (tmp_path / "q.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "r.txt").symlink_to(tmp_path / "gone.txt")
    assert describe_unread(sorted(tmp_path.iterdir())) == (
        "11 image files are not read: a.HEIC, b.heic, c.heif and 1 more (HEIC or the like: convert to JPEG or PNG); "
        "e.nef, f.dng (camera raw: develop to TIFF or JPEG); g.czi, h.nd2 "
        "(microscope format: export as OME-TIFF or OME-Zarr); "
        "i.dcm (medical format: export as TIFF or PNG); j.npy (array: save as TIFF); "
        "q.png (broken link: restore the file it points to)"
    )
    assert describe_unread(tmp_path / name for name in ignored) is None
    assert describe_unread([tmp_path / "g.czi"]) == (
        "1 image file is not read: g.czi (microscope format: export as OME-TIFF or OME-Zarr)"
    )


def test_raises_with_advice_on_unread_format(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(BadInput, match=r"a\.heic: cannot be read .*; convert to JPEG or PNG"):
        read_image(tmp_path / "a.heic")
    preview = tmp_path / "b.nef"  # a TIFF file, whose first page is small
    tifffile.imwrite(preview, np.zeros((12, 16, 3), np.uint8), photometric="rgb")
    with pytest.raises(BadInput, match=r"b\.nef: .*only the preview.*; develop to TIFF or JPEG"):
        read_image(preview)
    with pytest.raises(BadInput, match=r"c\.nef: no such image"):
        read_image(tmp_path / "c.nef")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_raises_on_truncated_tiff(tmp_path: Path, compression: str | None) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (5, 60, 60)).astype(np.uint16)
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate", compression=compression)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(BadInput, match=r"cut\.tif: cannot be read.*truncated"):
        read_image(path)


def test_raises_with_advice_on_unsupported_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.zeros((2, 20, 20), np.uint16), photometric="minisblack", planarconfig="separate"
    )
    content = bytearray(path.read_bytes())
    place = content.index(b"\x03\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # the tag of the compression
    content[place + 8] = 5
    path.write_bytes(content)
    advice = r"compressed as LZW, .* without imagecodecs: pip install 'embedmask\[microscopy\]'$"
    if find_spec("imagecodecs") is not None:  # decodes LZW, and finds no LZW in this file
        advice = "cannot be read as an image"
    with pytest.raises(BadInput, match=rf"a\.tif: {advice}"):
        read_image(path)


def test_any_size_reads_large_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((40, 50), np.float32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadInput, match=r"a\.tif: too large to be read at once"):
        read_image(path)
    assert read_image(path, any_size=True).shape == (3, 40, 50)


@pytest.mark.parametrize("writer", [write_label_images, write_yolo])
def test_data_sets_report_unread_images(tmp_path: Path, writer: object) -> None:
    writer(tmp_path)  # type: ignore[operator]
    folder = next(
        path for path in tmp_path.rglob("images/*/*" if writer is write_yolo else "val/images/*")
    ).parent
    (folder / "x.heic").touch()
    warned = [problem for problem in check_folder(tmp_path).problems if problem.kind == "unread file"]
    assert len(warned) == 1
    assert not warned[0].fatal
    assert "1 image file is not read: x.heic" in warned[0].message
    opened = [CocoInstances.open(tmp_path, split) for split in ("train", "val")]  # type: ignore[arg-type]
    assert sum("x.heic" in line for dataset in opened for line in dataset.warning_lines()) == 1


@contextmanager
def collect_bad_input(messages: list[str]) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        messages.append(str(error))


@pytest.mark.filterwarnings("ignore:.*(EXIF|Tag|Truncated)")
def test_raises_on_damaged_stacks() -> None:
    buffer = io.BytesIO()
    values = np.zeros((3, 2, 32, 32), np.uint16)
    tifffile.imwrite(buffer, values, ome=True, metadata={"axes": "TCYX"}, compression="zlib")
    content, rng = buffer.getvalue(), np.random.default_rng(0)
    messages = []
    for turn in range(60):
        damaged = bytearray(content[: int(rng.integers(8, len(content)))] if turn % 2 else content)
        damaged[int(rng.integers(4, len(damaged)))] ^= 0xFF
        with collect_bad_input(messages):
            read_image(bytes(damaged))
    assert len(messages) > 5
    assert not any("\n" in message for message in messages)
