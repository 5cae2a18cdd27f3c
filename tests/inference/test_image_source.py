"""Images in every form as uint8 RGB, and objects that are not images."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import forms_of

from embedmask.config import ReadOptions
from embedmask.config.reading import DEFAULT_READING
from embedmask.data.pages import UnreadPages
from embedmask.errors import BadInput
from embedmask.inference.image_source import as_image
from embedmask.inference.predictor import Predictor


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)


def test_all_image_forms_are_equal(photo: np.ndarray, tmp_path: Path) -> None:
    for form in forms_of(photo, tmp_path):
        assert torch.equal(as_image(form), torch.from_numpy(photo).permute(2, 0, 1)), type(form)


def test_gray_and_deep_arrays() -> None:
    gray = np.random.default_rng(1).integers(0, 256, (40, 50), dtype=np.uint8)
    three = np.repeat(gray[..., None], 3, axis=2)
    assert torch.equal(as_image(gray), as_image(three))
    assert torch.equal(as_image(gray[..., None]), as_image(three))
    deep = gray.astype(np.uint16) * 257
    # as ImageJ's files are mapped into memory
    assert torch.equal(as_image(deep.astype(">u2")), as_image(deep))
    deep[0, 0] = 65535
    gray[0, 0] = 255
    assert torch.equal(as_image(deep), as_image(gray))


def test_input_array_is_copied(photo: np.ndarray) -> None:
    photo.flags.writeable = False
    image = as_image(photo)
    image.zero_()
    assert photo.any()


NO_IMAGES = [
    np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8),
    np.zeros((2, 4, 4, 3), np.uint8), np.zeros(4, np.uint8), np.array(7, np.uint8), torch.zeros(3, 4, 4),
    torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(3, 0, 4, dtype=torch.uint8), b"no image", b"",
    7, None, [7], {},
]  # fmt: skip


@pytest.mark.parametrize("source", NO_IMAGES, ids=lambda source: type(source).__name__)
def test_raises_on_invalid_image(source: Any) -> None:
    with pytest.raises(BadInput, match=r"^images\[3\]: ") as caught:
        as_image(source, "images[3]")
    assert "\n" not in str(caught.value)


def test_files_are_named_by_their_path(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(photo).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    for source in (path, str(path), Image.open(path)):
        with pytest.raises(BadInput, match=r"cut\.png: cannot be read"):
            as_image(source, "images[3]")
    with pytest.raises(BadInput, match="no such image"):
        as_image("missing.png", "images[3]")


class Upload:
    """An upload of a web framework, with `read` as its only method."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def read(self) -> Any:
        return self.content


def test_files_are_read(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    content, expected = path.read_bytes(), as_image(photo)
    with path.open("rb") as file, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(content)
        spooled.seek(0)
        for source in (file, io.BytesIO(content), spooled, Upload(content), Upload(bytearray(content))):
            assert torch.equal(as_image(source), expected)  # type: ignore[arg-type]


def test_files_that_give_no_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("no image")
    closed = io.BytesIO(b"x")
    closed.close()
    binary = tmp_path / "b.png"
    binary.write_bytes(b"\x89PNG\xff")
    with path.open() as text, binary.open(encoding="utf-8") as damaged:
        for source, reason in (
            (text, r"a\.txt: .*binary mode"), (damaged, r"b\.png: .*binary mode"), (tmp_path, "it is a folder"),
            (Upload(None), "binary mode"), (closed, "closed"),
            (io.BytesIO(), r"seek\(0\)"), (io.BytesIO(b"no image"), "no known format"),
        ):  # fmt: skip
            with pytest.raises(BadInput, match=reason) as caught:
                as_image(source, "images[3]")  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [3, 4])
def test_colors_of_16_bits_follow_the_rule_of_files(channels: int) -> None:
    deep = np.random.default_rng(1).integers(0, 4096, (40, 50, channels)).astype(np.uint16)
    image = as_image(deep)
    np.testing.assert_array_equal(image.permute(1, 2, 0), np.rint(deep[..., :3] * (255 / 4095)))


def test_pages_that_nobody_chose_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    frames = [Image.new("L", (9, 9), shade) for shade in (10, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(UnreadPages, match=r"film\.gif: 2 pages, page 0 is used; choose with page"):
        first = as_image(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = as_image(path, options=ReadOptions(page=1))
    assert (first.max(), second.max()) == (10, 200)


@pytest.mark.parametrize("channels", [0, "1", [1.0], [True], [0, 1]])
def test_raises_on_channels_of_another_type(channels: Any) -> None:
    with pytest.raises(BadInput, match="channels must be"):
        DEFAULT_READING.changed(None, channels)


def test_channels_and_pages_of_numpy() -> None:
    options = DEFAULT_READING.changed(np.int64(2), np.array([0]))
    assert (options.page, options.channels) == (2, (0,))
    assert DEFAULT_READING.changed(None, []).channels is None
    for page in (0.5, True, -1):
        with pytest.raises(BadInput, match="page must be at least 0 and a whole number"):
            DEFAULT_READING.changed(page, None)


@pytest.mark.parametrize("source", [{"a": 1}, bytearray(b"abc"), memoryview(b"abc")])
def test_raises_on_containers_that_are_no_lists_of_images(predictor: Predictor, source: Any) -> None:
    with pytest.raises(BadInput, match=f"image: expected a path, .* got {type(source).__name__}"):
        predictor(source)
