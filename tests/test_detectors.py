"""Each detector learns a few images by heart; its model file, engines, tiles and result files then work alike."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from evaluation_scenes import as_annotation, as_result, make_truth
from PIL import Image
from predictors import same
from small_models import small_config

from embedmask import Criterion, EmbedMask, Predictor, Target, load, save
from embedmask._supervision import sv
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.inference.engines import Engine
from embedmask.predict import run
from embedmask.synthetic.renderer import CLASS_NAMES, Scene, make_scene

DETECTORS = ("fcos", "retinanet", "tal")
SIZE, STEPS = 64, 80
each_detector = pytest.mark.parametrize("detector", DETECTORS)


@cache
def scenes() -> list[Scene]:
    rng = np.random.default_rng(2)
    found = [make_scene(SIZE, rng) for _ in range(6)]
    return [scene for scene in found if len(scene.labels) > 1][:2]


def target_of(scene: Scene) -> Target:
    boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in map(np.nonzero, scene.masks)]
    masks = torch.from_numpy(np.stack(scene.masks))
    return Target(torch.tensor(boxes, dtype=torch.float32), torch.tensor(scene.labels), masks)


@cache
def trained(detector: str) -> EmbedMask:
    """Train a small model on the scenes, in a few seconds."""
    torch.manual_seed(0)
    config = small_config(
        preset="ijcai21",
        detector=detector,
        backbone="test_resnet",
        num_classes=len(CLASS_NAMES),
        strides=(4, 8, 16, 32),
        size_ranges=(32, 64, 128),
        sample_in_mask=False,  # the center of a ring lies in its hole
        embed_samples="iou",
        box_expansion=1.2,
        box_offset=0.0,
    )
    model = EmbedMask(config).train()
    criterion = Criterion(config)
    batch = model.preprocess([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes()])
    targets = [target_of(scene) for scene in scenes()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        criterion(model(batch), targets).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
    return model.eval()


@cache
def predictor_of(detector: str) -> Predictor:
    return Predictor(trained(detector), list(CLASS_NAMES), device="cpu", precision="float32")


def mask_metrics(predictor: Predictor) -> dict[str, float]:
    """Return the metrics of a predictor on the scenes."""
    annotations, results = [], []
    for number, scene in enumerate(scenes()):
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            annotations.append(as_annotation(len(annotations) + 1, number, label, mask))
        found = predictor(scene.image, score_threshold=0.05)
        for label, score, mask in zip(found.class_id, found.confidence, np.asarray(found.mask), strict=True):
            results.append(as_result(number, int(label), mask, float(score)))
    sizes = dict.fromkeys(range(len(scenes())), (SIZE, SIZE))
    evaluator = CocoEvaluator(make_truth(annotations, sizes, list(range(len(CLASS_NAMES)))))
    evaluator.add(results)
    return evaluator.compute()


@each_detector
def test_learns_images_by_heart(detector: str) -> None:
    metrics = mask_metrics(predictor_of(detector))
    assert metrics["segm/AP"] > 0.65
    assert metrics["segm/AP50"] > 0.9
    assert metrics["bbox/AP"] > 0.8


@each_detector
def test_model_file_round_trip(detector: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    model = trained(detector)
    save(model, file, class_names=list(CLASS_NAMES))
    loaded = load(file)
    assert loaded.config == model.config
    expected, actual = model.state_dict(), loaded.state_dict()
    assert list(expected) == list(actual)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    again = Predictor.load(file, device="cpu", precision="float32")
    assert same(again(scenes()[0].image), predictor_of(detector)(scenes()[0].image))


@each_detector
def test_tiles_find_the_objects_of_each_tile(detector: str) -> None:
    """An image of two scenes side by side, in tiles of one scene each, has the objects of both."""
    predictor = predictor_of(detector)
    first, second = (predictor(scene.image, score_threshold=0.5) for scene in scenes()[:2])
    assert min(len(first), len(second)) > 0
    both = np.concatenate([scene.image for scene in scenes()[:2]], 1)
    tiled = predictor(both, score_threshold=0.5, tile=SIZE, overlap=0)
    assert sorted(tiled.class_id.tolist()) == sorted([*first.class_id.tolist(), *second.class_id.tolist()])
    assert tiled.mask.shape[1:] == (SIZE, 2 * SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["compile", "openvino"])
@each_detector
def test_engines_find_the_same_objects(
    detector: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setenv("EMBEDMASK_CACHE", str(tmp_path))
    names = list(CLASS_NAMES)
    predictor = Predictor(trained(detector), names, device="cpu", precision="float32", engine=engine)
    for scene in scenes():
        expected, actual = (one(scene.image) for one in (predictor_of(detector), predictor))
        assert actual.class_id.tolist() == expected.class_id.tolist()
        assert len(actual) > 0
        np.testing.assert_allclose(actual.xyxy, expected.xyxy, atol=0.01)
        np.testing.assert_allclose(actual.confidence, expected.confidence, atol=1e-4)
        # rounding may move a pixel of the outline across the threshold
        assert (np.asarray(actual.mask) != np.asarray(expected.mask)).sum() <= 2


@each_detector
def test_video(detector: str, tmp_path: Path) -> None:
    """The results of a video are those of its frames."""
    save(trained(detector), tmp_path / "model.safetensors", class_names=list(CLASS_NAMES))
    with av.open(str(tmp_path / "clip.avi"), "w") as file:
        stream = file.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuvj420p"
        for scene in scenes():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(scene.image, format="rgb24")))
        file.mux(stream.encode(None))
    out = tmp_path / "out"
    run(tmp_path / "clip.avi", tmp_path / "model.safetensors", out, device="cpu", precision="float32")
    results = json.loads((out / "predictions.json").read_text())
    frames = sv.get_video_frames_generator(str(tmp_path / "clip.avi"))
    for number, frame in enumerate(frames, 1):
        found = predictor_of(detector)(np.ascontiguousarray(frame[..., ::-1]))
        scores = [result["score"] for result in results if result["image_id"] == number]
        assert scores == pytest.approx(found.confidence.tolist(), abs=1e-5)
        assert len(scores) > 0


@each_detector
def test_result_files(detector: str, tmp_path: Path) -> None:
    save(trained(detector), tmp_path / "model.safetensors", class_names=list(CLASS_NAMES))
    Image.fromarray(scenes()[0].image).save(tmp_path / "image.png")
    out = tmp_path / "out"
    run(tmp_path / "image.png", tmp_path / "model.safetensors", out, device="cpu", precision="float32")
    results = json.loads((out / "predictions.json").read_text())
    found = predictor_of(detector)(scenes()[0].image)
    assert [result["score"] for result in results] == pytest.approx(found.confidence.tolist(), abs=1e-5)
    assert (out / "image.png").is_file()
