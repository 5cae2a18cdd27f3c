"""The script performance.py: the page is written from stored figures, also from incomplete ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripts import load_script
from small_models import small_config

from embedmask.benchmark.compare import BenchConfig

benchmark = load_script("performance")

STAGES = ("read", "resize", "preprocess", "network", "proposals", "masks", "results")


def canned(plan: BenchConfig) -> dict[str, Any]:
    """Return a report like that of `compare`, in which a megapixel takes 1 s and a detection 1 ms."""
    sides = [*(f"embedmask {e}" for e in plan.engines), *(f"torchvision {s}" for s in plan.settings)]
    names = [side + (f", batch {batch}" if batch > 1 else "") for batch in plan.batches for side in sides]
    height, width = plan.image_size
    times = dict.fromkeys(STAGES, 0.001) | {
        "network": height * width / 1e6,
        "masks": plan.detections / 1000,
    }
    times |= {"to_masks": sum(times.values()) - 0.001, "whole": sum(times.values())}
    work = {"detections": plan.detections, "mean_box_area_px": 50.0, "mean_mask_area_px": 20.0}
    held = {"before": 100.0, "network": 500.0, "results": 700.0}
    return {
        "medians": dict.fromkeys(names, times),
        "works": dict.fromkeys(names, work),
        "ratios": {name: {"best": 3.5, "float32": 10.0} for name in names if name.startswith("embedmask")},
        "memory_mb": dict.fromkeys(names, held) if plan.memory else {},
        "fails": {"torchvision compiled": "RuntimeError: no compiler"},
        "machine": {
            "processor": "P", "processor_units": ["avx2"], "threads": 2, "device": "cpu", "torch": "2",
            "torchvision": "0", "openvino": None, "commit": "abc",
        },
        "plan": {
            "image_size": plan.image_size, "network_size": plan.network_size, "runs": plan.runs,
            "batches": plan.batches,
        },
    }  # fmt: skip


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return every section for a processor, as read back from its file."""
    monkeypatch.setattr(benchmark, "compare", lambda plan, progress: canned(plan))
    plan = BenchConfig(config=small_config(), image_size=(64, 96), settings=("float32", "bfloat16"))
    found: dict[str, Any] = json.loads(
        json.dumps({name: measure(plan) for name, measure in benchmark.SECTIONS.items()})
    )
    return found


def test_page_has_every_section(results: dict[str, Any]) -> None:
    text = benchmark.page(results, "# Performance\nHow.\n")
    assert text.startswith("# Performance\nHow.\n\n## Compared with Mask R-CNN, CPU\n")
    assert text.count("\n## ") == len(benchmark.TITLES)
    assert text.count("Not measured yet") == 1  # the CUDA device
    assert "| embedmask torch | 3.50 | 10.00 |" in text
    assert "- torchvision compiled does not work here: RuntimeError: no compiler" in text
    assert "| 1,000 objects on 1 megapixel | embedmask torch | 1000 | 500 | 700 | 200 |" in text
    assert "| boxes as large | 1000 | 50 | 1.0 | 1000 | 1.0 | 1002 |" in text
    assert "| fast | embedmask torch | 64x96 |" in text
    for name in ("stages", "instances", "pixels", "batch", "variants"):
        assert f"(performance/{name}.png)" in text


def test_page_without_figures() -> None:
    text = benchmark.page({}, "")
    assert text.count("Not measured yet") == len(benchmark.TITLES)
    assert ".png" not in text


def test_plots_are_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    benchmark.draw({}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    benchmark.draw(results, tmp_path)
    assert {file.stem for file in tmp_path.iterdir()} == {
        "stages",
        "instances",
        "pixels",
        "batch",
        "variants",
    }
    for file in tmp_path.iterdir():
        with Image.open(file) as image:
            assert len(image.convert("RGB").getcolors(10**6) or []) > 10


def test_a_section_replaces_its_own_figures(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "performance.md"
    (tmp_path / "performance").mkdir()
    kept = tmp_path / "performance" / "results.json"
    kept.write_text(json.dumps({"memory": results["memory"], "batch": {"old": 1}}))
    words = ["performance.py", "--section", "batch", "--tiny", "--engine", "torch", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    benchmark.main()
    now = json.loads(kept.read_text())
    assert now["memory"] == results["memory"]
    assert now["batch"]["plan"]["batches"] == [1, 2, 4, 8]
    page = out.read_text()
    monkeypatch.setattr(sys, "argv", ["performance.py", "--page", "--out", str(out)])
    benchmark.main()
    assert out.read_text() == page
    assert page.startswith("# Performance")


def test_crowds_share_the_image(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[BenchConfig] = []
    monkeypatch.setattr(benchmark, "run", plans.append)
    benchmark.by_instances(BenchConfig(config=small_config()))
    crowded = plans[len(plans) // 2 :]
    assert [plan.detections for plan in crowded] == [10, 30, 100, 300, 1000]
    covered = [plan.detections * plan.box_cells**2 for plan in crowded]
    assert covered == pytest.approx([covered[0]] * 5)


def test_matrix_rate_and_operations() -> None:
    plan = BenchConfig(config=small_config(), image_size=(64, 96), device="cpu")
    found = benchmark.matrix_share(plan)
    double = benchmark.matrix_share(BenchConfig(config=small_config(), image_size=(128, 96), device="cpu"))
    assert found["matrix_per_second"] > 1e8
    # the coarsest levels are one cell high in both
    assert 1.8 * found["network_operations"] < double["network_operations"] <= 2 * found["network_operations"]
