"""`embedmask bench`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import fails
from small_models import small_baseline, small_config

from embedmask import EmbedMask, save
from embedmask.cli import main
from embedmask.cli.bench import report_lines
from embedmask.config import ModelConfig
from embedmask.model.build import build_model

TINY: dict[str, Any] = {
    "backbone": "resnet10t", "num_classes": 3, "channels": 32, "norm_groups": 8, "tower_convs": 1, "embed_dim": 8,
}  # fmt: skip
QUICK = ["--image-size", "64", "96", "--detections", "5", "--runs", "2", "--warmup", "1", "--device", "cpu"]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": TINY}))
    return str(path)


def test_all_pipelines_are_measured_in_one_run(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    out = tmp_path / "figures" / "bench.json"
    words = [
        "bench",
        "--config",
        recipe,
        *QUICK,
        "--baseline",
        "float32",
        "--model.embed_stride",
        "16",
        "--json",
        str(out),
    ]
    assert main([*words, "--skip-memory", "--threads", str(threads)]) == 0
    report = json.loads(out.read_text())
    embedmask, baseline = (report["medians"][name] for name in ("embedmask torch", "torchvision float32"))
    stages = ["read", "resize", "preprocess", "network", "proposals", "masks", "results", "to_masks", "whole"]
    assert list(embedmask) == stages
    assert set(baseline) == set(stages) - {"resize", "proposals"}
    ratio = baseline["whole"] / embedmask["whole"]
    assert report["ratios"] == {
        "embedmask torch": {"best": pytest.approx(ratio), "float32": pytest.approx(ratio)}
    }
    assert {name: work["detections"] for name, work in report["works"].items()} == dict.fromkeys(
        report["medians"], 5
    )
    assert report["plan"]["config"]["embed_stride"] == 16
    assert report["plan"]["network_size"] == report["plan"]["image_size"] == [64, 96]
    assert report["machine"]["threads"] == threads
    assert (report["fails"], report["memory_mb"]) == ({}, {})
    printed = capsys.readouterr().out
    by_cpu = report["cpu_ratios"]["embedmask torch"]["best"]
    assert f"{ratio:.2f}x the speed of Mask R-CNN (best; {by_cpu:.2f}x by CPU time)" in printed
    assert f"{1000 * embedmask['whole']:11.1f}" in printed


def test_report_of_failures_and_memory() -> None:
    report = {
        "plan": {"image_size": [64, 96], "network_size": [64, 96], "runs": 2},
        "machine": {
            "processor": "P",
            "processor_units": [],
            "threads": 1,
            "device": "cpu",
            "torch": "2",
            "matrix_gflops": {"float32": 118.4},
        },
        "medians": {"embedmask torch": {"network": 0.5, "whole": 1.0}},
        "cpu_medians": {"embedmask torch": {"network": 0.4, "whole": 0.9}},
        "cpu_ratios": {"embedmask torch": {}},
        "works": {"embedmask torch": {"detections": 3, "mean_box_area_px": 70.4}},
        "memory_mb": {"embedmask torch": {"before": 100.0, "results": 250.0}},
        "ratios": {"embedmask torch": {}},
        "fails": {"torchvision compiled": "RuntimeError: no compiler"},
    }
    text = "\n".join(report_lines(report))
    assert "torchvision compiled failed: RuntimeError: no compiler" in text
    assert "3 detections, mean box 70 px, peak 250 MB (100 MB before)" in text
    assert "no Mask R-CNN pipeline ran to compare with" in text
    assert "matrix Gflop per CPU second: float32 118" in text


def test_raises_on_invalid_options(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--config", recipe, *QUICK]
    assert "one of torch, compile, openvino" in fails(capsys, *words, "--engine", "tensorrt")
    assert "--image-size" in fails(capsys, "bench", "--image-size", "64")
    assert "did you mean 'embed_stride'" in fails(capsys, *words, "--model.embed_strid", "16")
    assert "runs: at least 1" in fails(capsys, *words, "--runs", "0")
    assert "no such file or recipe" in fails(capsys, "bench", "--config", "papre")
    assert "not available" in fails(capsys, *words, "--device", "cuda:99")
    baseline = build_model(small_baseline())
    save(baseline, tmp_path / "maskrcnn.safetensors", class_names=list("abc"))
    assert "Mask R-CNN" in fails(capsys, "bench", "--weights", tmp_path / "maskrcnn.safetensors")


def test_weights_provide_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[Any] = []

    def stop(config: Any, progress: Any) -> None:
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("embedmask.benchmark.compare.compare", stop)
    model = EmbedMask(small_config())
    save(model, tmp_path / "m.safetensors", class_names=list("abc"))
    words = ["bench", "--weights", str(tmp_path / "m.safetensors"), "--model.image_short_side", "600"]
    assert main([*words, "--engine", "torch", "compile", "--batch", "1", "8"]) == 1
    (config,) = configs
    assert config.config == replace(model.config, image_short_side=600)
    assert (config.engines, config.batches) == (("torch", "compile"), (1, 8))
    assert (config.image_size, config.detections, config.runs) == ((800, 1216), 100, 10)
    assert isinstance(config.config, ModelConfig)
