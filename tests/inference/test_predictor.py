"""Pictures of every kind in, detections in the picture's own frame out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedmask import EmbedMask, ModelConfig, Predictor
from embedmask._supervision import CompactMask, sv
from embedmask.errors import BadInput
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.predictor import as_image
from embedmask.weights.checkpoint import save

NAMES = ["disc", "star", "ring"]


def small_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "num_classes": 3, "backbone": "resnet18", "channels": 16, "norm_groups": 4, "embed_dim": 4,
        "tower_convs": 1, "backbone_norm": "batch", "image_short_side": 64, "image_long_side": 128,
        "score_threshold": 0.0, "max_detections": 20,
    }  # fmt: skip
    return ModelConfig.preset("paper", **{**values, **changes})


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(EmbedMask(small_config()), NAMES, device="cpu", precision="float32")


@pytest.fixture
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return np.asarray(small.resize((131, 90)))


def same(a: sv.Detections, b: sv.Detections) -> bool:
    assert a.mask is not None
    assert b.mask is not None
    return (
        np.array_equal(a.xyxy, b.xyxy)
        and np.array_equal(a.confidence, b.confidence)  # type: ignore[arg-type]
        and np.array_equal(a.class_id, b.class_id)  # type: ignore[arg-type]
        and np.array_equal(np.asarray(a.mask), np.asarray(b.mask))
    )


def test_detections_are_in_the_pictures_frame(predictor: Predictor, picture: np.ndarray) -> None:
    found = predictor(picture, score_threshold=0.0)
    assert len(found) == 20
    assert isinstance(found.mask, CompactMask)
    assert found.mask.shape == (20, 90, 131)
    assert found.xyxy.min() >= 0
    assert (found.xyxy[:, 2:] <= [131, 90]).all()
    assert found.confidence is not None
    assert (np.diff(found.confidence) <= 0).all()
    assert found.class_id is not None
    assert found.data["class_name"].tolist() == [NAMES[label] for label in found.class_id]


def test_every_form_of_a_picture_gives_the_same(
    predictor: Predictor, picture: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    forms = [
        path, str(path), path.read_bytes(), Image.open(path), picture,
        torch.from_numpy(picture.copy()).permute(2, 0, 1),
        np.dstack([picture, np.zeros_like(picture[..., :1])]), picture[::-1][::-1],
    ]  # fmt: skip
    expected = predictor(picture, 0.0)
    assert len(expected) > 0
    for form in forms:
        assert same(predictor(form, 0.0), expected), type(form)
    assert all(same(one, expected) for one in predictor(forms[:2], 0.0))


def test_list_and_iterator(predictor: Predictor, picture: np.ndarray) -> None:
    shown: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for frame in range(3):
            shown.append(frame)
            yield picture

    results = predictor(camera(), 0.0)
    assert isinstance(results, Iterator)
    assert shown == []
    assert same(next(results), predictor(picture, 0.0))
    assert shown == [0]
    assert len(list(results)) == 2
    listed = predictor([picture, picture[:50]], 0.0)
    assert isinstance(listed, list)
    assert [one.mask.shape[1:] for one in listed if one.mask is not None] == [(90, 131), (50, 131)]
    assert predictor([], 0.0) == []


def test_thresholds_and_limits(predictor: Predictor, picture: np.ndarray) -> None:
    every = predictor(picture, 0.0, max_detections=1000)
    assert every.confidence is not None
    assert len(every) > 20
    assert len(predictor(picture, 0.0, max_detections=3)) == 3
    level = float(np.median(every.confidence))
    some = predictor(picture, level, max_detections=1000)
    assert 0 < len(some) < len(every)
    kept = every[every.confidence >= level]
    assert isinstance(kept, sv.Detections)
    assert same(some, kept)
    none = predictor(picture, 1.0)
    assert none.is_empty()
    assert none.mask is not None
    assert none.mask.shape == (0, 90, 131)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"score_threshold": 1.5}, "score_threshold"), ({"max_detections": 0}, "max_detections")],
)
def test_bad_options(predictor: Predictor, picture: np.ndarray, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        predictor(picture, **options)


def test_the_steps_one_by_one(predictor: Predictor, picture: np.ndarray) -> None:
    """The road by hand, on a picture that already has the network's size: nothing is resized."""
    image = torch.from_numpy(picture[:64, :96].copy()).permute(2, 0, 1)
    found = predictor.instances(image)
    with torch.inference_mode():
        batch = predictor.model.preprocess([image])
        predictions = predictor.model(batch)
    expected = Postprocessor.from_config(predictor.model.config)(predictions, [(64, 96)], [(64, 96)])[0]
    assert len(found) == 20
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.masks.to_dense(), expected.masks.to_dense())


def test_a_turned_photo(predictor: Predictor, picture: np.ndarray, tmp_path: Path) -> None:
    """Detections of a photo with an EXIF orientation are in its upright frame."""
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(path, exif=exif)
    upright = np.rot90(picture, -1)
    found = predictor(path, 0.0)
    assert found.mask is not None
    assert found.mask.shape[1:] == (131, 90)
    assert same(found, predictor(upright, 0.0))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (200, 64)])
def test_odd_sizes(predictor: Predictor, size: tuple[int, int]) -> None:
    found = predictor(np.full((*size, 3), 120, np.uint8), 0.0)
    assert found.mask is not None
    assert found.mask.shape[1:] == size


def test_grey_and_deep_arrays(predictor: Predictor) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (40, 50), dtype=np.uint8)
    three = np.repeat(grey[..., None], 3, axis=2)
    assert torch.equal(as_image(grey), as_image(three))
    assert torch.equal(as_image(grey[..., None]), as_image(three))
    deep = grey.astype(np.uint16) * 257
    deep[0, 0] = 65535
    grey[0, 0] = 255
    assert torch.equal(as_image(deep), as_image(grey))


def test_the_callers_array_is_not_changed_nor_kept(picture: np.ndarray) -> None:
    picture.flags.writeable = False
    image = as_image(picture)
    image.zero_()
    assert picture.any()


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8), np.zeros(4, np.uint8), torch.zeros(3, 4, 4),
        torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(3, 0, 4, dtype=torch.uint8), b"no picture",
        "missing.png", 7, None, [7],
    ],
)  # fmt: skip
def test_what_is_no_picture(predictor: Predictor, source: Any) -> None:
    with pytest.raises(BadInput) as caught:
        predictor(source)
    assert "\n" not in str(caught.value)


def test_a_cut_file(predictor: Predictor, picture: np.ndarray, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(BadInput, match=r"cut\.jpg"):
        predictor(path)


def test_load(predictor: Predictor, picture: np.ndarray, tmp_path: Path) -> None:
    save(predictor.model, tmp_path / "model.safetensors", class_names=NAMES)
    loaded = Predictor.load(tmp_path / "model.safetensors", device="cpu", precision="float32")
    assert loaded.class_names == NAMES
    assert not loaded.model.training
    assert same(loaded(picture, 0.0), predictor(picture, 0.0))


def test_wrong_number_of_names() -> None:
    with pytest.raises(BadInput, match="2 class names for a model of 3"):
        Predictor(EmbedMask(small_config()), ["a", "b"], device="cpu")


def test_bfloat16_stays_near_float32(picture: np.ndarray) -> None:
    torch.manual_seed(0)
    model = EmbedMask(small_config())
    exact = Predictor(model, NAMES, device="cpu", precision="float32")(picture, 0.0, 1000)
    reduced = Predictor(model, NAMES, device="cpu", precision="bfloat16")
    assert reduced.dtype == torch.bfloat16
    found = reduced(picture, 0.0, 1000)
    assert found.xyxy.dtype == np.float32
    assert not np.array_equal(found.xyxy[:20], exact.xyxy[:20])
    near = [np.abs(exact.xyxy - box).max(1).min() for box in found.xyxy[:20]]
    assert np.median(near) < 2
