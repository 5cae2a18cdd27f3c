"""Exported files give the results of the model that they were made from, on every road."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command_line import fails
from PIL import Image
from small_models import small_baseline, small_config

from embedmask import EmbedMask, Predictor, runtime, save
from embedmask._supervision import sv
from embedmask.cli import main
from embedmask.errors import BadInput
from embedmask.export import export_model, onnx_model, to_openvino, write_openvino
from embedmask.export.graph import OUTPUTS
from embedmask.inference.detect import detect, make_postprocessor
from embedmask.model.build import build_model
from embedmask.runtime import BadFile, Model
from embedmask.runtime_file import KEY
from export.conftest import NAMES, Exported, calibrated, scene

SIZES = [(90, 131), (64, 64), (33, 50)]


def detections_equal(one: Any, other: Any) -> None:
    """Compare supervision's detections."""
    assert one.class_id.tolist() == other.class_id.tolist()
    np.testing.assert_allclose(one.xyxy, other.xyxy, atol=0.01)
    np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-4)
    for mask, twin in zip(np.asarray(one.mask), np.asarray(other.mask), strict=True):
        assert (mask & twin).sum() >= 0.999 * (mask | twin).sum()


@pytest.mark.parametrize("size", SIZES)
def test_predictor(files: Exported, size: tuple[int, int]) -> None:
    expected = files.native(scene(*size), score_threshold=0.05)
    detections_equal(files.exported(scene(*size), score_threshold=0.05), expected)
    assert len(expected) >= 5


def test_batch_of_two_sizes(files: Exported) -> None:
    images = [torch.from_numpy(scene(*size)).permute(2, 0, 1) for size in ((60, 90), (60, 90), (64, 96))]
    results = []
    for predictor in (files.native, files.exported):
        model = predictor.model
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        results.append(
            detect(predictor.network, make_postprocessor(model.config), model.preprocess(images), sizes)
        )
    for expected, found in zip(*results, strict=True):
        assert len(expected.labels) > 0
        assert expected.labels.tolist() == found.labels.tolist()
        torch.testing.assert_close(expected.boxes, found.boxes, atol=0.01, rtol=0)
        torch.testing.assert_close(expected.proposal_embed, found.proposal_embed, atol=1e-3, rtol=1e-3)


def test_tiles_and_pickling(files: Exported) -> None:
    image = scene(90, 131)
    expected = files.native(image, score_threshold=0.05, tile=64, overlap=16)
    assert len(expected) >= 5
    again: Predictor = pickle.loads(pickle.dumps(files.exported))
    detections_equal(again(image, score_threshold=0.05, tile=64, overlap=16), expected)


@pytest.mark.parametrize("size", SIZES)
def test_runtime(files: Exported, size: tuple[int, int]) -> None:
    result = Model(files.onnx)(scene(*size), score_threshold=0.05)
    expected = files.native(scene(*size), score_threshold=0.05)
    assert result.labels.tolist() == expected.class_id.tolist()  # type: ignore[union-attr]
    np.testing.assert_allclose(result.boxes, expected.xyxy, atol=0.01)
    differing = (result.masks() != np.asarray(expected.mask)).sum()
    assert differing <= 0.001 * np.asarray(expected.mask).sum()


def test_no_detections(files: Exported) -> None:
    result = Model(files.onnx)(scene(40, 40), score_threshold=1.0)
    assert (len(result), result.masks().shape, result.coco(1)) == (0, (0, 40, 40), [])
    assert not result.label_image().any()
    assert len(files.exported(scene(40, 40), score_threshold=1.0)) == 0


def test_openvino_runs_both_files(files: Exported, tmp_path: Path) -> None:
    """OpenVINO runs the ONNX file and, after conversion, its own; `.xml` chooses the engine."""
    openvino = pytest.importorskip("openvino")
    graph = openvino.Core().read_model(files.onnx)
    text = next(entry.value for entry in onnx.load(files.onnx).metadata_props if entry.key == KEY)
    graph.set_rt_info(text, [KEY, "metadata"])
    write_openvino(graph, tmp_path / "model.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    expected = files.native(scene(90, 131), score_threshold=0.05)
    for predictor in (
        Predictor.load(tmp_path / "model.xml", device="cpu"),
        Predictor.load(files.onnx, device="cpu", engine="openvino"),
    ):
        detections_equal(predictor(scene(90, 131), score_threshold=0.05), expected)
    assert len(Model(tmp_path / "model.xml")(scene(90, 131), score_threshold=0.05)) == len(expected)
    (tmp_path / "model.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"model\.bin: missing or cut off"):
        Predictor.load(tmp_path / "model.xml")


def test_the_file_describes_itself(files: Exported) -> None:
    graph = onnx.load(files.onnx)
    assert [value.name for value in graph.graph.output] == list(OUTPUTS)
    (entry,) = graph.metadata_props
    metadata = json.loads(entry.value)
    assert metadata["settings"]["class_names"] == NAMES
    assert metadata["conventions"]["mask"].startswith("phi = ")
    convolutions = {node.name.partition("/")[0] for node in graph.graph.node if node.op_type == "Conv"}
    assert {
        "trunk",
        "trunk.head.class_tower.0",
        "trunk.head.box",
        "trunk.head.pixel_branch.embed",
    } <= convolutions


def test_what_the_graph_does_not_serve_is_refused(files: Exported, tmp_path: Path) -> None:
    image = scene(40, 40)
    with pytest.raises(BadInput, match=r"serves 0\.05 to 1"):
        files.exported(image, score_threshold=0.01)
    with pytest.raises(BadInput, match="serves at most 40"):
        files.exported(image, max_detections=41)
    with pytest.raises(BadFile, match=r"serves 0\.05 to 1"):
        Model(files.onnx)(image, score_threshold=0.01)
    with pytest.raises(BadFile, match="serves 1 to 40"):
        Model(files.onnx)(image, max_detections=41)
    with pytest.raises(BadInput, match="computes in float32"):
        Predictor.load(files.onnx, precision="bfloat16")
    with pytest.raises(BadInput, match="engine 'compile' cannot run"):
        Predictor.load(files.onnx, engine="compile")
    with pytest.raises(BadInput, match="cannot be saved"):
        save(files.exported.model, tmp_path / "copy.safetensors", class_names=NAMES)


def test_limit_applies_after_thresholds_of_each_class(files: Exported) -> None:
    image = scene(90, 131)
    every = files.exported(image, score_threshold=0.05)
    assert every.class_id is not None
    best = int(every.class_id[0])
    wanted = every[every.class_id != best]
    assert isinstance(wanted, sv.Detections)
    assert len(wanted) > 1
    subset = wanted[:1]
    assert isinstance(subset, sv.Detections)
    thresholds = [1.0 if index == best else 0.05 for index in range(len(NAMES))]
    for predictor in (files.native, files.exported):
        detections_equal(predictor(image, thresholds, 1), subset)
    results = Model(files.onnx)(image, thresholds, 1)
    assert len(results) == 1
    np.testing.assert_allclose(results.scores, subset.confidence, atol=1e-4)


def test_commands(files: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`predict` and the runtime's command number images alike and write the same objects and label images."""
    for name in ("a", "b"):
        Image.fromarray(scene(90, 131, ord(name))).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    words = ["--weights", str(files.onnx), "--format", "labels", "--no-draw", "--out", str(tmp_path / "full")]
    assert main(["predict", *images, *words, "--score-threshold", "0.05"]) == 0
    assert (
        runtime.main(
            [str(files.onnx), *images, "--out", str(tmp_path / "light"), "--score-threshold", "0.05"]
        )
        == 0
    )
    full, light = (json.loads((tmp_path / out / "predictions.json").read_text()) for out in ("full", "light"))
    assert len(full) >= 5
    for one, other in zip(full, light, strict=True):
        assert one.keys() == other.keys()
        for key in ("image_id", "category_id", "segmentation"):
            assert one[key] == other[key]
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
    for name in ("a", "b"):
        labels = [
            np.asarray(Image.open(tmp_path / out / "labels" / f"{name}.png")) for out in ("full", "light")
        ]
        assert labels[0].max() > 0
        assert np.array_equal(*labels)


def test_commands_refuse(files: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(scene(40, 40)).save(tmp_path / "a.png")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(files.onnx.read_bytes()[:5000])
    predict = ("predict", tmp_path / "a.png", "--out", tmp_path / "out", "--weights")
    assert "not an ONNX file, or cut off" in fails(capsys, *predict, cut)
    assert "serves 0.05 to 1" in fails(capsys, *predict, files.onnx, "--score-threshold", "0.01")
    assert not (tmp_path / "out").exists()
    export = ("export", files.weights, "--format", "onnx", "--out")
    assert "onnx files end in .onnx" in fails(capsys, *export, tmp_path / "model.xml")
    save(build_model(small_baseline()), tmp_path / "baseline.safetensors", class_names=NAMES)
    line = fails(
        capsys, "export", tmp_path / "baseline.safetensors", "--format", "onnx", "--out", tmp_path / "b.onnx"
    )
    assert "Mask R-CNN cannot be exported" in line
    assert "cannot be exported" in fails(
        capsys, "export", files.onnx, "--format", "onnx", "--out", tmp_path / "b.onnx"
    )
    assert not (tmp_path / "b.onnx").exists()


def test_a_threshold_below_the_candidates_is_refused() -> None:
    model = EmbedMask(small_config(default_score_threshold=0.01))
    with pytest.raises(BadInput, match=r"needs candidates below candidate_threshold 0\.05"):
        export_model(model, "never.onnx", class_names=NAMES)
    with pytest.raises(BadInput, match="2 class names for a model of 3"):
        export_model(EmbedMask(small_config()), "never.onnx", class_names=["a", "b"])
    assert not Path("never.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ijcai21", "fused", "fast", "retinanet", "tal"])
def test_each_preset_and_detector_exports(name: str, tmp_path: Path) -> None:
    changes: dict[str, object] = {"preset": name, "embed_channels": 16} if name in ("fused", "fast") else {}
    if name in ("retinanet", "tal"):
        changes = {"preset": "ijcai21", "detector": name, "anchor_scales": (4.0, 6.0)}
    model = calibrated(**changes)
    program = onnx_model(model, class_names=NAMES, dense_masks=True)
    (tmp_path / "model.onnx").write_bytes(program.SerializeToString())
    write_openvino(to_openvino(program), tmp_path / "model.xml")
    native = Predictor(model, NAMES, device="cpu", precision="float32")
    light = Model(tmp_path / "model.onnx")
    lowest = light.settings.least_score  # 0.05, or its root in presets with the score `root`
    for size in SIZES:
        expected = native(scene(*size), score_threshold=lowest)
        assert len(expected) >= 5
        for file in ("model.onnx", "model.xml"):
            detections_equal(Predictor.load(tmp_path / file)(scene(*size), score_threshold=lowest), expected)
        result = light(scene(*size), score_threshold=lowest)
        assert result.labels.tolist() == expected.class_id.tolist()  # type: ignore[union-attr]
        differing = (result.masks() != np.asarray(expected.mask)).sum()
        assert differing <= 0.001 * np.asarray(expected.mask).sum()


def test_target_is_checked_before_the_model_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was converted")

    monkeypatch.setattr("embedmask.export.write.onnx_model", fail)
    monkeypatch.setattr("embedmask.export.measured.CocoInstances.open", fail)
    for name in ("a.onnx", "a.xml"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    model = EmbedMask(small_config())
    targets = {"onnx": "a.onnx", "openvino": "a.xml"}
    for fmt, name in targets.items():
        with pytest.raises(BadInput, match=f"{name}: is a folder; choose the name of a file"):
            export_model(model, tmp_path / name, fmt, class_names=["thing"])
        inside = tmp_path / "file" / name
        with pytest.raises(BadInput, match="cannot be written"):
            export_model(model, inside, fmt, class_names=["thing"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.xml", "file"]


@pytest.mark.parametrize(
    ("name", "expected"), [("lr0.01/model.safetensors", "model"), ("lr0.01", "lr0.01"), ("plain", "plain")]
)
def test_default_name_is_that_of_the_model(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name.partition("/")[0]
    folder.mkdir()
    save(EmbedMask(small_config()), folder / "model.safetensors", class_names=list("abc"))
    targets: list[Path] = []

    def write(model: Any, path: Path, *_: Any, **__: Any) -> None:
        targets.append(path)
        path.touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("embedmask.export.export_model", write)
    assert main(["export", str(tmp_path / name), "--format", "onnx"]) == 0
    assert targets == [Path(f"{expected}.onnx")]
