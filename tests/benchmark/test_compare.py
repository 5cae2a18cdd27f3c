"""compare: consistency of the report, failing settings, timing and memory."""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import small_config

import embedmask.benchmark.compare as module
from embedmask import EmbedMask, Predictor
from embedmask.benchmark.compare import (
    BASELINE,
    EMBEDMASK,
    BenchConfig,
    PipelineFactory,
    RunId,
    compare,
    short_name,
)
from embedmask.benchmark.memory import peaks_in_own_process
from embedmask.benchmark.pipelines import EmbedMaskPipeline, TorchvisionPipeline
from embedmask.benchmark.timing import interleave, matrix_gflops, medians, quartiles, time_run
from embedmask.errors import BadInput
from embedmask.inference.engines import make_network
from embedmask.machine import describe_machine

CPU = torch.device("cpu")


def bench_config(**changes: Any) -> BenchConfig:
    small: dict[str, Any] = {
        "config": small_config(), "image_size": (64, 96), "detections": 5, "runs": 3, "warmup": 1, "device": "cpu",
        "precision": "float32", "settings": (), "memory": False,
    }  # fmt: skip
    return BenchConfig(**{**small, **changes})


class FakeMaskRCNN(torch.nn.Module):
    """Stand-in for torchvision's network with the interface that the pipeline uses."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = SimpleNamespace(
            **{"postprocess": lambda found, frames, sizes: [
                {**one, "masks": torch.ones(2, 1, *size)} for one, size in zip(found, sizes, strict=True)
            ]}
        )  # fmt: skip


@pytest.fixture
def fake_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the baseline with one that does little work, and fails when compiled."""

    def network(self: Any) -> None:
        torch.randn(400, 400) @ torch.randn(400, 400)
        box = torch.tensor([[0.0, 0.0, 10.0, 20.0]] * 2)
        self.outputs = [
            {"boxes": box, "scores": torch.ones(2), "labels": torch.ones(2, dtype=torch.int64)}
        ] * len(self.files)

    def preprocess(self: Any) -> None:
        self.inputs = SimpleNamespace(image_sizes=[(1, 1)])

    def refuse(model: Any) -> None:
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr(TorchvisionPipeline, "run_network", network)
    monkeypatch.setattr(TorchvisionPipeline, "preprocess", preprocess)
    monkeypatch.setattr(module, "calibrate_torchvision", lambda model, image, detections: None)
    monkeypatch.setattr(module, "maskrcnn_resnet50_fpn", lambda **_: FakeMaskRCNN())
    monkeypatch.setattr("embedmask.benchmark.pipelines.compile_parts", refuse)


@pytest.mark.usefixtures("fake_baseline")
def test_report_is_consistent() -> None:
    report = compare(bench_config(settings=("float32", "bfloat16", "compiled"), batches=(1, 2)))
    names = ["embedmask torch", "torchvision float32", "torchvision bfloat16"]
    assert list(report["medians"]) == [*names, *(f"{name}, batch 2" for name in names)]
    assert report["fails"] == {
        f"torchvision compiled{batch}": "RuntimeError: no compiler was found" for batch in ("", ", batch 2")
    }
    for pipeline, found in report["medians"].items():
        low, high = report["quartiles"][pipeline]["whole"]
        assert 0 < low <= found["whole"] <= high
        assert 0 < found["network"] < found["to_masks"] < found["whole"]
        assert report["shares"][pipeline]["network"] == found["network"] / found["whole"]
    for kind, batch in product(("", "cpu_"), ("", ", batch 2")):
        whole = {name: report[f"{kind}medians"][name + batch]["whole"] for name in names}
        best = min(whole["torchvision float32"], whole["torchvision bfloat16"])
        assert report[f"{kind}ratios"]["embedmask torch" + batch] == {
            "best": pytest.approx(best / whole["embedmask torch"]),
            "float32": pytest.approx(whole["torchvision float32"] / whole["embedmask torch"]),
        }
    assert report["works"]["torchvision float32"] == {
        "detections": 2, "mean_box_area_px": 200, "mean_mask_area_px": 64 * 96,
    }  # fmt: skip
    assert report["works"]["embedmask torch"]["detections"] == 5
    assert report["plan"]["weights"] == "random"


@pytest.mark.usefixtures("fake_baseline")
def test_no_ratios_without_a_running_baseline() -> None:
    report = compare(bench_config(settings=("compiled",)))
    assert report["ratios"] == {"embedmask torch": {}}
    assert list(report["medians"]) == ["embedmask torch"]


def test_exported_files_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(factory: PipelineFactory, path: Path, files: list[Path]) -> EmbedMaskPipeline:
        network = make_network(factory.embedmask, "torch", torch.float32)
        return EmbedMaskPipeline(factory.embedmask, network, factory.bench.model_config, files)

    monkeypatch.setattr(PipelineFactory, "_exported", make)
    paths = tuple(Path("models") / name for name in ("float/model.xml", "int8/model.xml", "other.onnx"))
    report = compare(bench_config(engines=(), exported=paths, runs=1))
    names = ["float/model.xml", "int8/model.xml", "other.onnx"]
    assert report["plan"]["exported"] == names
    for part in ("medians", "quartiles", "shares", "cpu_medians", "ratios", "works"):
        assert list(report[part]) == [f"exported {name}" for name in names]


def test_short_names() -> None:
    paths = [Path(name) for name in ("/x/a/m.xml", "/x/b/m.xml", "/y/b/m.xml", "b/m.xml", "/x/n.xml")]
    assert [short_name(path, paths) for path in paths] == [
        "a/m.xml", "x/b/m.xml", "y/b/m.xml", "b/m.xml", "n.xml",
    ]  # fmt: skip
    assert short_name(paths[0], [paths[0], paths[0]]) == "m.xml"


def test_raises_on_failing_engine_of_embedmask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise BadInput("engine: not available")

    monkeypatch.setattr(module, "make_network", refuse)
    with pytest.raises(BadInput, match="not available"):
        compare(bench_config())


def test_embedmask_pipeline_equals_predictor(tmp_path: Path) -> None:
    factory = PipelineFactory(bench_config(), tmp_path)
    pipeline = factory.make(RunId(EMBEDMASK, "torch", 2))
    time_run(pipeline, CPU)
    assert isinstance(pipeline, EmbedMaskPipeline)
    predictor = Predictor(pipeline.model, ["a", "b", "c"], device="cpu", precision="float32")
    expected = predictor(tmp_path / "image.jpg", score_threshold=pipeline.model.config.candidate_threshold)
    (alone, again) = pipeline.detections
    assert len(alone) == len(again) == len(expected) == 5
    np.testing.assert_allclose(alone.xyxy, expected.xyxy, rtol=1e-4, atol=1e-3)
    assert (np.asarray(alone.mask[0]) == np.asarray(expected.mask[0])).mean() > 0.99


def test_calibrated_weights_are_shared_by_file(tmp_path: Path) -> None:
    first, second = (PipelineFactory(bench_config(), tmp_path).embedmask for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    (other := tmp_path / "other").mkdir()
    assert not torch.equal(
        first.head.class_logits.weight,
        PipelineFactory(bench_config(), other).embedmask.head.class_logits.weight,
    )


def test_trained_weights_are_loaded(tmp_path: Path) -> None:
    model = EmbedMask(small_config())
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    taken = PipelineFactory(bench_config(weights=tmp_path / "w.safetensors"), tmp_path).embedmask
    assert torch.equal(taken.head.box.weight, model.head.box.weight)
    assert compare(bench_config(weights=tmp_path / "w.safetensors"))["plan"]["weights"] == "trained"
    changed = bench_config(weights=tmp_path / "w.safetensors", config=small_config(embed_dim=4))
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInput, match=r"w\.safetensors: its tensors do not fit the changed model"):
        _ = PipelineFactory(changed, tmp_path / "other").embedmask


@pytest.mark.parametrize(
    ("short", "image_size", "expected"),
    [
        (800, (800, 1216), (800, 1216)),
        (800, (64, 96), (64, 96)),  # never enlarged
        (600, (800, 1216), (600, 912)),
        (None, (3000, 4000), (3000, 4000)),
        (800, (3000, 4000), (800, 1066)),
    ],
)
def test_images_are_never_enlarged(
    short: int | None, image_size: tuple[int, int], expected: tuple[int, int]
) -> None:
    config = bench_config(config=small_config(image_short_side=short), image_size=image_size)
    assert config.network_size == expected


def test_both_pipelines_use_the_same_image_size(tmp_path: Path) -> None:
    config = bench_config(config=small_config(image_short_side=100), image_size=(150, 211))
    factory = PipelineFactory(config, tmp_path)
    embedmask, baseline = (
        factory.make(RunId(name, setting, 1))
        for name, setting in ((EMBEDMASK, "torch"), (BASELINE, "float32"))
    )
    for pipeline in (embedmask, baseline):
        pipeline.stages()["read"]()
    for stage in ("resize", "preprocess"):
        embedmask.stages()[stage]()
    baseline.stages()["preprocess"]()
    assert embedmask.batch.sizes == baseline.inputs.image_sizes == [(100, 140)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": 0}, "runs: at least 1"),
        ({"detections": 0}, "detections: at least 1"),
        ({"image_size": (0, 5)}, "image_size: at least 1"),
        ({"batches": (1, 0)}, "batches: at least 1"),
        ({"threads": 0}, "threads: at least 1"),
    ],
)
def test_raises_on_bad_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        replace(bench_config(), **change)


# --- clocks -------------------------------------------------------------------


class LoggingPipeline:
    """Pipeline that logs its runs."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.detections: list[Any] = []

    def stages(self) -> dict[str, Any]:
        return {stage: lambda: self.log.append(self.name) for stage in ("network", "masks", "results")}


def test_pipelines_are_interleaved() -> None:
    log: list[str] = []
    times = interleave({name: LoggingPipeline(name, log) for name in "AB"}, 3, CPU)
    assert "".join(log) == "AAABBB" * 3
    for measured in times.values():
        assert (
            measured.wall.keys()
            == measured.cpu.keys()
            == {"network", "masks", "results", "to_masks", "whole"}
        )
        assert {len(seconds) for kind in (measured.wall, measured.cpu) for seconds in kind.values()} == {3}


def test_cpu_time_leaves_waiting_out() -> None:
    waiting = LoggingPipeline("A", [])
    waiting.stages = lambda: dict.fromkeys(("masks", "results"), lambda: time.sleep(0.05))  # type: ignore[method-assign]
    wall, cpu = time_run(waiting, CPU)
    assert wall["whole"] >= 0.1
    assert cpu["whole"] < 0.05


def test_rate_of_the_processor() -> None:
    rates = matrix_gflops()
    # a thread of any processor of the last ten years; above 10 Tflop/s a clock would have failed
    assert all(0.1 < rate < 1e4 for rate in rates.values())
    assert {"float32", "bfloat16"} <= rates.keys()


def test_medians_and_quartiles_are_per_image() -> None:
    times = {"whole": [1.0, 2.0, 3.0, 4.0, 100.0]}
    assert medians(times, 2) == {"whole": 1.5}
    assert quartiles(times, 2) == {"whole": [1.0, 2.0]}
    assert quartiles({"whole": [4.0]}, 1) == {"whole": [4.0, 4.0]}


def test_machine_has_no_host_name() -> None:
    found = describe_machine(CPU)
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] in torch.__version__
    assert 0.5 < found["memory_gib"] < 10_000
    assert platform.node() not in map(str, found.values())


# --- memory -------------------------------------------------------------------


def _allocations() -> dict[str, Any]:
    peaks = []

    def take(megabytes: int) -> None:
        peaks.append(np.ones(megabytes * 10**6, np.uint8))

    return {"little": lambda: take(5), "much": lambda: take(80), "none": peaks.clear}


@pytest.mark.slow
def test_peaks_of_each_step() -> None:
    peaks = peaks_in_own_process(_allocations)
    assert list(peaks) == ["before", "little", "much", "none"]
    assert 75 < peaks["much"] - peaks["little"] < 90
    assert peaks["none"] == pytest.approx(peaks["much"], abs=2)
    assert peaks["before"] <= peaks["little"]


def test_engines_share_one_model(tmp_path: Path) -> None:
    factory = PipelineFactory(bench_config(), tmp_path)
    pipeline = factory.make(RunId(EMBEDMASK, "torch", 1))
    assert isinstance(pipeline, EmbedMaskPipeline)
    assert pipeline.model is factory.embedmask
    before = {name: value.clone() for name, value in pipeline.model.state_dict().items()}
    make_network(pipeline.model, "torch", torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in factory.embedmask.state_dict().items())
