"""Dry runs: the same errors as a run, an estimate, and no files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import tiny

from embedmask.config import DataConfig
from embedmask.errors import BadInput, TrainingStopped
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import dry_run, fit
from embedmask.training.dry_run import Estimate, at_largest_scale, run_dry
from embedmask.training.engine import explain_out_of_memory
from embedmask.training.module import EmbedMaskModule
from embedmask.training.step_log import duration

ESTIMATE = Estimate(
    step_seconds=0.5,
    image_seconds=0.1,
    steps=90_000,
    evaluations=12,
    images=5000,
    minutes_allowed=None,
    peak_bytes=3 * 2**30,
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=10, val=6, size=64, seed=0)
    return folder


def nothing(line: str) -> None:
    del line


def test_dry_run_estimates_the_whole_run_and_writes_nothing(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    before = sorted(shapes.rglob("*"))
    estimate = run_dry(tiny(epochs=5, eval_every=2), shapes, tmp_path / "out", report=lines.append)
    assert list(tmp_path.iterdir()) == []
    assert sorted(shapes.rglob("*")) == before
    assert (estimate.steps, estimate.evaluations, estimate.images) == (15, 3, 6)
    assert estimate.step_seconds > 0
    assert estimate.image_seconds > 0
    assert estimate.peak_bytes is None or estimate.peak_bytes > 2**20
    assert len(lines) == 3
    assert "the run takes about" in lines[-1]
    paused = run_dry(tiny(epochs=5, eval_minutes=60), shapes, report=nothing)
    assert paused.evaluations == 1


def test_doubtful_annotations_of_both_splits_are_reported(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(shapes / "images", target_is_directory=True)
    for split, area in (("train", 1e9), ("val", None)):
        content = json.loads((shapes / f"{split}.json").read_text())
        for entry in content["annotations"]:
            entry |= {"iscrowd": None, "area": area}
        content["annotations"][0] |= {"iscrowd": True, "area": 1}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    lines: list[str] = []
    run_dry(tiny(), tmp_path, report=lines.append)
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert [("crowds" in line, "train.json" in line) for line in warnings] == [
        (False, True),
        (True, True),
        (False, False),
        (True, False),
    ]
    assert "have an 'area' that does not match their masks" in warnings[0]
    assert "have an 'area' that is not a number above 0" in warnings[2]


def test_accumulated_parts_count_as_one_step(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    train = EmbedMaskModule.training_step

    def note(self: EmbedMaskModule, batch: Any, batch_idx: int) -> dict[str, Any]:
        steps.append(len(batch[0]))
        return train(self, batch, batch_idx)

    monkeypatch.setattr(EmbedMaskModule, "training_step", note)
    estimate = run_dry(tiny(accumulate=2, epochs=None, max_steps=70), shapes, report=nothing)
    assert steps == [2, 2, 2, 2]  # two steps of two parts of two images
    assert estimate.steps == 70
    assert estimate.evaluations == 24  # an epoch has 5 parts, 3 steps


def test_first_batch_contains_the_image_with_most_objects(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    compute = EmbedMaskModule.compute_losses

    def note(self: EmbedMaskModule, batch: Any) -> dict[str, torch.Tensor]:
        counts.append(max(len(target) for target in batch[1]))
        return compute(self, batch)

    monkeypatch.setattr(EmbedMaskModule, "compute_losses", note)
    run_dry(tiny(), shapes, report=nothing)
    annotations = json.loads((shapes / "train.json").read_text())["annotations"]
    images = [annotation["image_id"] for annotation in annotations]
    assert counts[0] == max(images.count(image) for image in images)


def test_dry_run_raises_the_errors_of_a_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    with pytest.raises(BadInput, match="not an empty folder"):
        run_dry(tiny(), shapes, tmp_path / "kept", report=nothing)
    with pytest.raises(BadInput, match="no such data folder"):
        run_dry(tiny(), tmp_path / "absent", report=nothing)
    monkeypatch.setattr(
        EmbedMaskModule, "compute_losses", lambda self, batch: {"box": torch.tensor(math.nan)}
    )
    with pytest.raises(TrainingStopped, match="step 1: the loss is not finite"):
        run_dry(tiny(), shapes, report=nothing)


def test_dry_run_evaluates_and_writes_all_files_of_a_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    written: set[str] = set()
    compute, check = CocoEvaluator.compute, dry_run.check_disk_space

    def count(self: CocoEvaluator, *args: Any, **kwargs: Any) -> dict[str, float]:
        counts.append(len(self.results))
        return compute(self, *args, **kwargs)

    def record(folder: Path, out: Path | None) -> None:
        assert folder.parent == tmp_path  # on the disk of the results, not in the system's temporary folder
        written.update(path.name for path in folder.iterdir())
        check(folder, out)

    monkeypatch.setattr(CocoEvaluator, "compute", count)
    monkeypatch.setattr(dry_run, "check_disk_space", record)
    run_dry(tiny(), shapes, tmp_path / "out", report=nothing)
    assert len(counts) == 1
    assert counts[0] > 0
    weights = {"model.safetensors", "best.safetensors", "last.safetensors", "last.ckpt"}
    assert written >= {*weights, "recipe.yaml", "metrics.csv", "metrics.json", "curves.png", "samples"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["CocoEvaluator", "plot_curves", "write_samples", "write_json"])
def test_dry_run_raises_errors_of_the_final_steps(
    part: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise BadInput(f"{part} cannot")

    monkeypatch.setattr(fit, part, broken)
    with pytest.raises(BadInput, match=f"{part} cannot"):
        run_dry(tiny(), shapes, tmp_path / "out", report=nothing)
    assert list(tmp_path.iterdir()) == []


def test_raises_on_unwritable_folder(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for run in (run_dry, fit.train):
        with pytest.raises(BadInput, match=r"deep/run: cannot be written \(.*file is a file, not a folder\)"):
            run(tiny(), shapes, tmp_path / "file" / "deep" / "run", report=nothing)


def test_raises_on_insufficient_disk_space(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match=r"out: the disk has \d+ MB free, the run needs \d+ MB"):
        run_dry(tiny(), shapes, tmp_path / "out", report=nothing)


def test_estimate_adds_steps_and_evaluations() -> None:
    assert ESTIMATE.total_seconds == pytest.approx(45_000 + 6_000)
    assert "14 h 10 min" in ESTIMATE.lines()[1]
    assert "3 GiB" in ESTIMATE.lines()[0]
    assert replace(ESTIMATE, minutes_allowed=10).total_seconds == 600
    assert "GiB" not in replace(ESTIMATE, peak_bytes=None).lines()[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.6, "8 s"), (61, "1 min"), (7_260, "2 h 1 min"), (90_000, "1 d 1 h")]
)
def test_duration_formatting(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_at_largest_scale() -> None:
    config = DataConfig(short_sides=(640, 800), scale_range=(0.5, 2.0), flip_vertical=0.5)
    assert at_largest_scale(config) == replace(config, short_sides=(800,), scale_range=(2.0, 2.0))
    assert at_largest_scale(DataConfig(short_sides=())).short_sides == ()


def test_cpu_out_of_memory_is_explained() -> None:
    config = tiny(batch_size=16).train
    with pytest.raises(BadInput, match="or lower "), explain_out_of_memory(config):
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes"
        )
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(config):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_out_of_memory_message_contains_a_fix() -> None:
    raises = pytest.raises(BadInput, match=r"16 images in 2 part.*--train.accumulate 4")
    with raises as caught, explain_out_of_memory(tiny(batch_size=16, accumulate=2).train):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")
    assert "\n" not in str(caught.value)
