"""Export to int8: which layers are quantized, a complete file with its measured cost, and each refusal."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails
from small_models import small_config

from embedmask import EmbedMask, Predictor, save
from embedmask.benchmark.compare import EXPORTED, BenchConfig, PipelineFactory, RunId
from embedmask.benchmark.timing import interleave
from embedmask.cli import main
from embedmask.cli.export import int8_lines
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.export import measured, quantize
from embedmask.export.measured import Int8Options, cpu_milliseconds, export_int8, refuse_drop
from embedmask.export.quantize import LAST_LAYERS, calibration_images
from embedmask.runtime import read_metadata
from embedmask.weights.checkpoint import load_checkpoint

SMALL: dict[str, Any] = {
    "backbone": "resnet10t", "strides": (8, 16, 32), "size_ranges": (64, 128), "channels": 16,
    "candidate_threshold": 0.0, "pre_nms_topk": 20, "max_detections": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert main(["data", "shapes", str(folder), "--train", "18", "--val", "3", "--size", "64"]) == 0
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    torch.manual_seed(0)
    names = CocoInstances.open(data, "val").class_names
    model = EmbedMask(small_config(**{**SMALL, "num_classes": len(names)}))
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save(model, path, class_names=names)
    return path


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, data: Path, weights: Path) -> tuple[Path, str]:
    """Run the command as typed; return the file and the printed text."""
    for name in ("onnxscript", "openvino", "nncf"):
        pytest.importorskip(name)
    if not quantize.has_int8_units():
        pytest.skip("the processor has no units for int8")
    path = tmp_path_factory.mktemp("out") / "small.xml"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *lines, **_: printed.extend(map(str, lines)))
        words = [
            "--format",
            "openvino",
            "--int8",
            str(data),
            "--images",
            "16",
            "--max-drop",
            "1",
            "--out",
            str(path),
        ]
        assert main(["export", str(weights), *words]) == 0
    return path, "\n".join(printed)


def producer(convolution: Any) -> str:
    """Return the type of the operator that makes the input of a convolution; max pooling keeps the values."""
    node = convolution.input_value(0).get_node()
    while node.get_type_name() == "MaxPool":
        node = node.input_value(0).get_node()
    return str(node.get_type_name())


@pytest.mark.slow
def test_trunk_is_quantized_and_the_last_layers_are_not(int8: tuple[Path, str]) -> None:
    import openvino

    graph = openvino.Core().read_model(int8[0])
    inputs = {
        op.get_friendly_name(): producer(op) for op in graph.get_ops() if op.get_type_name() == "Convolution"
    }
    last = tuple(f"{name}{end}" for name in LAST_LAYERS for end in "./")
    kinds = {name.startswith(last): set() for name in inputs}
    for name, kind in inputs.items():
        kinds[name.startswith(last)].add(kind)
    assert kinds[False] == {"FakeQuantize"}
    assert "FakeQuantize" not in kinds[True]
    # one set of last layers per level, and p
    assert sum(name.startswith(last) for name in inputs) >= 3 * 3 + 1


@pytest.mark.slow
def test_file_is_complete(int8: tuple[Path, str], weights: Path, data: Path) -> None:
    path, printed = int8
    predictor, native = Predictor.load(path, device="cpu"), Predictor.load(weights, precision="float32")
    image = CocoInstances.open(data, "val").image(0)
    assert predictor.class_names == native.class_names
    assert 0 < len(predictor.predict_instances([image])[0]) <= 20
    # embeddings of pixels: int8 moves them by a few percent
    found, expected = (
        one.network(one.model.preprocess([image])).pixel_embed[0] for one in (predictor, native)
    )
    assert float((found - expected).norm() / expected.norm()) < 0.15
    entry = read_metadata(path)["int8"]
    assert entry["data"] == "shapes"
    assert entry["calibration_images"] == 16
    assert entry["images"] == 3
    assert set(entry["cpu_ms"]) == {"float32 graph", "int8 graph", "engine torch"}
    assert "\n".join(int8_lines(entry)) in printed
    assert path.with_suffix(".bin").stat().st_size < 0.5 * weights.stat().st_size


@pytest.mark.slow
def test_bench_measures_an_exported_file(int8: tuple[Path, str], tmp_path: Path) -> None:
    bench = BenchConfig(config=small_config(), exported=(int8[0],), image_size=(64, 96), device="cpu")
    run = RunId(EXPORTED, int8[0], 1)
    pipeline = PipelineFactory(bench, tmp_path).make(run)
    times = interleave({run: pipeline}, 2, torch.device("cpu"))
    assert str(run) == "exported small.xml"
    assert all(
        0 < network < whole
        for network, whole in zip(times[run].cpu["network"], times[run].cpu["whole"], strict=True)
    )
    (found,), expected = (
        pipeline.detections,
        Predictor.load(int8[0], device="cpu")(tmp_path / "image.jpg", 0.0),
    )
    assert np.array_equal(found.xyxy, expected.xyxy)
    assert len(found) > 0


def test_too_large_a_drop_writes_nothing(
    weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.496])
    monkeypatch.setattr(measured, "check_int8", lambda count: None)
    monkeypatch.setattr(measured, "openvino_model", lambda *_, **__: None)
    monkeypatch.setattr(measured, "quantize", lambda graph, images: None)
    monkeypatch.setattr(measured, "write_openvino", lambda graph, path: path.touch())
    monkeypatch.setattr(
        measured, "evaluate_weights", lambda *_: dict.fromkeys(measured.MEASURED, next(scores))
    )
    out = tmp_path / "small.xml"
    with pytest.raises(
        BadInput, match=r"not written: mask AP on val is 0\.4960 in int8, 0\.5000.*max-drop 0\.003"
    ):
        export_int8(load_checkpoint(weights), out, Int8Options(data=data, images=16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "name"), measured.GUARDED.items())
@pytest.mark.parametrize(
    ("after", "refused"), [(0.5, False), (0.497001, False), (0.49, True), (float("nan"), True)]
)
def test_drop_of_mask_or_box_ap_decides(key: str, name: str, after: float, refused: bool) -> None:
    before = dict.fromkeys(measured.MEASURED, 0.5)
    options = Int8Options(data=Path())
    other = {**before, "segm/AP90": 0.4}
    if refused:
        with pytest.raises(BadInput, match=f"{name} on val"):
            refuse_drop(before, {**other, key: after}, options, Path("m.xml"))
    else:
        refuse_drop(before, {**other, key: after}, options, Path("m.xml"))


def test_impossible_requests_are_one_line(
    weights: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    # the other requests are refused on any processor
    monkeypatch.setattr(quantize, "has_int8_units", lambda: True)

    def refusal(*words: Any, form: str = "openvino") -> str:
        return fails(capsys, "export", weights, "--format", form, "--int8", data, *words)

    only_int8 = fails(capsys, "export", weights, "--format", "openvino", "--max-drop", 0.1)
    assert "--max-drop needs --int8 DATA" in only_int8
    assert "--int8 needs --format openvino" in refusal(form="onnx")
    assert "int8 files end in .xml" in refusal("--out", "model.onnx")
    assert "at least 16 images" in refusal("--images", 5)
    assert "18 images, calibration uses 64; pass --images 18" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "has_int8_units", lambda: False)
        assert "a processor with VNNI or AMX" in refusal()

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert "pip install 'embedmask[export,int8]'" in refusal()
    assert list(tmp_path.iterdir()) == []


def test_calibration_images_are_crops_of_the_networks_input(data: Path) -> None:
    train = CocoInstances.open(data, "train")
    whole = calibration_images(train, small_config(), 16)
    assert {image.shape for image in whole} == {(1, 3, 64, 64)}  # smaller than a crop
    config = small_config(image_short_side=600, image_long_side=900)
    crops, again = (calibration_images(train, config, 16) for _ in range(2))
    sides = {side for image in crops for side in image.shape[2:]}
    assert sides <= set(range(384, 513, 32))
    assert len(sides) > 1
    assert all(np.array_equal(a, b) and a.dtype == np.uint8 for a, b in zip(crops, again, strict=True))


def test_models_are_timed_in_turns() -> None:
    turns: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def predict_instances(self, images: list[Any]) -> None:
            turns.append(self.name)

    times = cpu_milliseconds({"a": Fake("a"), "b": Fake("b")}, [torch.zeros(3, 8, 8)] * 2)  # type: ignore[dict-item]
    assert "".join(turns) == "abab" * (measured.ROUNDS + 1)
    assert set(times) == {"a", "b"}
