"""Prediction for images in every form, with detections in the frame of the original image."""

from __future__ import annotations

import io
import math
import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predictors import NAMES, NOTHING, changed, predictor_config, same
from small_models import forms_of, small_baseline
from torch import Tensor

from embedmask import EmbedMask, Predictor
from embedmask._supervision import CompactMask, sv
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.inference.image_source import as_image
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.request import Options
from embedmask.masks import RunMasks
from embedmask.model.build import build_model
from embedmask.model.detector import Detector
from embedmask.structures import ImageBatch, Instances, Size
from embedmask.weights.checkpoint import save


def test_detections_are_in_image_frame(predictor: Predictor, photo: np.ndarray) -> None:
    actual = predictor(photo, score_threshold=0.0)
    assert len(actual) == 20
    assert isinstance(actual.mask, CompactMask)
    assert actual.mask.shape == (20, 90, 131)
    assert actual.xyxy.min() >= 0
    assert (actual.xyxy[:, 2:] <= [131, 90]).all()
    assert actual.confidence is not None
    assert (np.diff(actual.confidence) <= 0).all()
    assert actual.class_id is not None
    assert actual.data["class_name"].tolist() == [NAMES[label] for label in actual.class_id]


def test_all_image_forms_are_equal(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    forms = forms_of(photo, tmp_path)
    expected = predictor(photo, 0.0)
    assert len(expected) > 0
    for form in forms:
        assert same(predictor(form, 0.0), expected), type(form)
    assert all(same(one, expected) for one in predictor(forms[:2], 0.0))


def test_list(predictor: Predictor, photo: np.ndarray) -> None:
    listed = predictor([photo, photo[:50]], 0.0)
    assert isinstance(listed, list)
    assert [one.mask.shape[1:] for one in listed if one.mask is not None] == [(90, 131), (50, 131)]
    assert same(listed[1], predictor(photo[:50], 0.0))
    assert predictor([], 0.0) == []
    assert same(predictor((photo,), 0.0)[0], listed[0])


def test_list_is_checked_first(predictor: Predictor, photo: np.ndarray) -> None:
    batches: list[ImageBatch] = []
    watched = changed(predictor, network=batches.append)
    with pytest.raises(BadInput, match=r"^images\[2\]: .* got int"):
        watched([photo, photo, 7])  # type: ignore[list-item]
    with pytest.raises(BadInput, match=r"^images\[1\]: .* got float32"):
        watched([photo, photo.astype(np.float32)])
    with pytest.raises(BadInput, match=r"^images\[1\]: "):
        watched.predict_instances([torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8)])
    for source in (np.zeros((8, 8, 3), np.uint8), "a.png"):
        with pytest.raises(BadInput, match=r"^images\[0\]: expected a tensor .* got (ndarray|str)"):
            watched.predict_instances([source])
    assert batches == []


def test_embeddings_match_detections(predictor: Predictor, photo: np.ndarray) -> None:
    plain = predictor(photo, 0.0)
    assert set(plain.data) == {"class_name"}
    actual = predictor(photo, 0.0, embeddings=True)
    assert same(actual, plain)
    embed, margin = actual.data["proposal_embed"], actual.data["proposal_margin"]
    assert (embed.dtype, embed.shape) == (np.float32, (20, 4))
    assert (margin.dtype, margin.shape) == (np.float32, (20, 1))
    (instances,) = predictor.predict_instances([as_image(photo)])
    np.testing.assert_array_equal(embed, instances.proposal_embed)
    np.testing.assert_array_equal(margin, instances.proposal_margin)
    assert actual.class_id is not None
    chosen = actual[actual.class_id == actual.class_id[3]]
    assert isinstance(chosen, sv.Detections)
    np.testing.assert_array_equal(chosen.data["proposal_embed"], embed[actual.class_id == actual.class_id[3]])
    level = float(np.median(actual.confidence))  # type: ignore[arg-type]
    some = predictor(photo, level, embeddings=True)
    np.testing.assert_array_equal(some.data["proposal_embed"], embed[: len(some)])
    none = predictor([photo], 1.0, embeddings=True)[0]
    assert none.data["proposal_embed"].shape == (0, 4)


def test_raises_on_model_without_embeddings() -> None:
    predictor = Predictor(build_model(small_baseline()), NAMES, device="cpu", precision="float32")
    with pytest.raises(BadInput, match="embeddings"):
        predictor(np.zeros((64, 64, 3), np.uint8), embeddings=True)


def test_limits_reach_the_baseline() -> None:
    torch.manual_seed(0)
    model = build_model(small_baseline(candidate_threshold=0.0, max_detections=7))
    predictor = Predictor(model, NAMES, device="cpu", precision="float32")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(predictor(pixels, 0.0)) == 7
    assert len(predictor(pixels, 0.0, max_detections=2)) == 2
    assert predictor(pixels, 1.0).is_empty()


@pytest.mark.parametrize("kind", ["plain", "rescored", "tiles", "baseline"])
def test_limit_applies_after_thresholds_of_each_class(
    predictor: Predictor, photo: np.ndarray, kind: str
) -> None:
    """Check that results below the threshold of their class take no place of others."""
    torch.manual_seed(0)
    if kind == "baseline":
        model: Detector = build_model(small_baseline(candidate_threshold=0.0, max_detections=1000))
        predictor = Predictor(model, NAMES, device="cpu", precision="float32")
    elif kind == "rescored":
        model = EmbedMask(predictor_config(rescore_masks=True))
        predictor = Predictor(model, NAMES, device="cpu", precision="float32")
    options: Options = {"tile": 64, "overlap": 16} if kind == "tiles" else {}
    every = predictor(photo, 0.0, 1000, **options)
    assert every.confidence is not None
    assert every.class_id is not None
    # the class of the best result is dropped, and fewer than all of the others are wanted
    thresholds = np.zeros(len(NAMES))
    thresholds[every.class_id[0]] = 1.0
    wanted = every[every.class_id != every.class_id[0]]
    assert isinstance(wanted, sv.Detections)
    assert len(wanted) > 2
    subset = wanted[:2]
    assert isinstance(subset, sv.Detections)
    assert same(predictor(photo, thresholds.tolist(), 2, **options), subset)


def test_masks_are_placed_exactly(predictor: Predictor, photo: np.ndarray) -> None:
    """Check that prediction ignores `mask_frame: authors`, which is for reproducing published figures."""
    assert predictor.model.config.mask_frame == "authors"
    image = EvalTransform(64, 128).image(as_image(photo))
    with torch.inference_mode():
        predictions = predictor.network(predictor.model.preprocess([image]))
    postprocess = Postprocessor.from_config(predictor.model.config, reference_masks=False)
    (exact,) = postprocess(predictions, [(64, 93)], [(90, 131)])
    assert np.array_equal(exact.masks.to_dense().numpy(), np.asarray(predictor(photo, 0.0).mask))


@pytest.mark.parametrize(
    ("tile", "score_threshold", "max_detections"), [(None, 0.25, 7), (64, 0.0, 20)], ids=["image", "tiles"]
)
def test_request_limits_reach_the_postprocessor(
    predictor: Predictor, photo: np.ndarray, tile: int | None, score_threshold: float, max_detections: int
) -> None:
    """Check that limits apply to an image at once, and to tiles only as far as no object can be lost."""
    used = []

    def run(resized: list[Tensor], sizes: list[Size], postprocess: Postprocessor) -> list[Instances]:
        used.append(postprocess)
        return [replace(NOTHING, masks=RunMasks([], size)) for size in sizes]

    changed(predictor, _run=run)(photo, 0.25, 7, tile=tile, overlap=16)
    assert used[0].score_threshold == pytest.approx(score_threshold, rel=1e-5)
    assert (used[0].max_detections, used[0].mask_frame) == (max_detections, "exact")


def test_tiles(predictor: Predictor) -> None:
    """Check tiles in every method: they are not resized, and limits apply to the whole image."""
    pixels = np.random.default_rng(3).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    tiled = predictor(pixels, 0.0, max_detections=30, tile=64, overlap=16)
    assert tiled.mask is not None
    assert tiled.mask.shape == (30, 100, 150)
    assert not np.array_equal(tiled.xyxy, predictor(pixels, 0.0, max_detections=30).xyxy)
    assert len(predictor(pixels, 0.0, tile=64, overlap=16)) > 20  # the config's limit applies to each tile
    assert same(predictor([pixels], 0.0, 30, tile=64, overlap=16)[0], tiled)
    assert same(next(predictor(iter([pixels]), 0.0, 30, tile=64, overlap=16)), tiled)
    assert tiled.confidence is not None
    level = float(np.median(tiled.confidence))
    above = predictor(pixels, level, 30, tile=64, overlap=16)
    assert above.confidence is not None
    assert above.confidence.min() >= level
    few = predictor(pixels, 0.0, max_detections=5, tile=64, overlap=16)
    subset = tiled[:5]
    assert isinstance(subset, sv.Detections)
    assert same(few, subset)
    small = predictor(pixels[:40, :50], 0.0, tile=64, overlap=16)
    assert same(small, predictor(pixels[:40, :50], 0.0))


def test_thresholds_and_limits(predictor: Predictor, photo: np.ndarray) -> None:
    every = predictor(photo, 0.0, max_detections=1000)
    assert every.confidence is not None
    assert len(every) > 20
    assert len(predictor(photo, 0.0, max_detections=3)) == 3
    level = float(np.median(every.confidence))
    some = predictor(photo, level, max_detections=1000)
    assert 0 < len(some) < len(every)
    subset = every[every.confidence >= level]
    assert isinstance(subset, sv.Detections)
    assert same(some, subset)
    none = predictor(photo, 1.0)
    assert none.is_empty()
    assert none.mask is not None
    assert none.mask.shape == (0, 90, 131)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold"), ({"score_threshold": math.nan}, "score_threshold"),
        ({"max_detections": 0}, "max_detections"), ({"tile": 8}, "tile"),
        ({"tile": 64, "overlap": 33}, "overlap"), ({"tile": 64, "overlap": -1}, "overlap"),
    ],
)  # fmt: skip
def test_raises_on_bad_options(
    predictor: Predictor, photo: np.ndarray, options: dict[str, Any], message: str
) -> None:
    """Check that errors are raised at the call, also for methods that return iterators."""
    for source in (photo, [photo], iter([photo])):
        with pytest.raises(BadInput, match=message):
            predictor(source, **options)
    with pytest.raises(BadInput, match=message):
        predictor.predict_stream([], **options)


def test_raises_on_batch_size_zero(predictor: Predictor) -> None:
    with pytest.raises(BadInput, match="batch_size 0"):
        predictor.predict_stream([], batch_size=0)


def test_equals_separate_steps(predictor: Predictor, photo: np.ndarray) -> None:
    """Compare with the separate steps, on an image of the network's size, which is not resized."""
    image = torch.from_numpy(photo[:64, :96].copy()).permute(2, 0, 1)
    (actual,) = predictor.predict_instances([image])
    with torch.inference_mode():
        batch = predictor.model.preprocess([image])
        predictions = predictor.network(batch)
    postprocess = Postprocessor.from_config(predictor.model.config, reference_masks=False)
    expected = postprocess(predictions, [(64, 96)], [(64, 96)])[0]
    assert len(actual) == 20
    assert torch.equal(actual.boxes, expected.boxes)
    assert torch.equal(actual.masks.to_dense(), expected.masks.to_dense())


def test_exif_orientation(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    """Check that detections of a photo with an EXIF orientation are in its upright frame."""
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(path, exif=exif)
    upright = np.rot90(photo, -1)
    actual = predictor(path, 0.0)
    assert actual.mask is not None
    assert actual.mask.shape[1:] == (131, 90)
    assert same(actual, predictor(upright, 0.0))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (200, 64)])
def test_odd_sizes(predictor: Predictor, size: tuple[int, int]) -> None:
    actual = predictor(np.full((*size, 3), 120, np.uint8), 0.0)
    assert actual.mask is not None
    assert actual.mask.shape[1:] == size


def test_raises_on_truncated_file(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "jpeg")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(BadInput, match=r"cut\.jpg"):
        predictor(path)


def test_load(predictor: Predictor, photo: np.ndarray, tmp_path: Path) -> None:
    save(predictor.model, tmp_path / "model.safetensors", class_names=NAMES)
    loaded = Predictor.load(tmp_path / "model.safetensors", device="cpu", precision="float32")
    assert loaded.class_names == NAMES
    assert not loaded.model.training
    assert same(loaded(photo, 0.0), predictor(photo, 0.0))


def test_raises_on_wrong_number_of_names() -> None:
    with pytest.raises(BadInput, match="2 class names for a model of 3"):
        Predictor(EmbedMask(predictor_config()), ["a", "b"], device="cpu")


def test_bfloat16_is_close_to_float32(photo: np.ndarray) -> None:
    torch.manual_seed(0)
    model = EmbedMask(predictor_config())
    exact = Predictor(model, NAMES, device="cpu", precision="float32")(photo, 0.0, 1000)
    reduced = Predictor(model, NAMES, device="cpu", precision="bfloat16")
    assert reduced.dtype == torch.bfloat16
    actual = reduced(photo, 0.0, 1000)
    assert actual.xyxy.dtype == np.float32
    assert not np.array_equal(actual.xyxy[:20], exact.xyxy[:20])
    near = [np.abs(exact.xyxy - box).max(1).min() for box in actual.xyxy[:20]]
    assert np.median(near) < 2


def test_default_score_threshold(photo: np.ndarray) -> None:
    torch.manual_seed(0)
    model = EmbedMask(predictor_config())
    everything = Predictor(model, NAMES, precision="float32")(photo, score_threshold=0.0)
    assert everything.confidence is not None
    middle = float(np.median(everything.confidence))
    model.config = replace(model.config, default_score_threshold=middle)
    predictor = Predictor(model, NAMES, precision="float32")
    decided = predictor(photo)
    assert 0 < len(decided) < len(everything)
    assert same(decided, predictor(photo, score_threshold=middle))
    (streamed,) = predictor.predict_stream([photo])
    assert streamed.instances is not None
    assert len(streamed.instances) == len(decided)


def test_repr(predictor: Predictor) -> None:
    assert repr(predictor) == (
        "Predictor(EmbedMask with resnet18, 3 classes: disc, star, ring; "
        "device=cpu, precision=float32, engine=torch)"
    )
    many = changed(predictor, class_names=["a", "b", "c", "d"])
    assert "4 classes: a, b, c, ...; " in repr(many)


def test_pickle(predictor: Predictor, photo: np.ndarray) -> None:
    copied = pickle.loads(pickle.dumps(changed(predictor, batch_size=3)))
    assert (repr(copied), copied.batch_size) == (repr(predictor), 3)
    assert same(copied(photo, 0.0), predictor(photo, 0.0))


@pytest.mark.slow
def test_pickle_to_another_process(predictor: Predictor, photo: np.ndarray) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        actual = pool.apply(predictor, (photo, 0.0))
    assert np.allclose(actual.xyxy, predictor(photo, 0.0).xyxy, atol=1e-3)


def test_unpickling_rebuilds_engine(predictor: Predictor) -> None:
    built: list[str] = []

    def build(model: EmbedMask, engine: str, dtype: torch.dtype) -> Any:
        built.append(engine)
        return lambda batch: None  # cannot be pickled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedmask.inference.predictor.make_network", build)
        other = Predictor(predictor.model, NAMES, device="cpu", precision="float32", engine="openvino")
        assert pickle.loads(pickle.dumps(other)).engine == "openvino"
    assert built == ["openvino", "openvino"]
