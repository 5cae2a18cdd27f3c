"""Training runs on ten tiny images: results, initial weights, resume and errors."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_run import tiny

from embedmask.config import Recipe, override
from embedmask.errors import BadInput
from embedmask.model.build import build_model
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import fit
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.environment import image_digest
from embedmask.weights.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=10, val=3, size=64, seed=0)
    return folder


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float], list[str]]:
    out = tmp_path_factory.mktemp("runs") / "run"
    lines: list[str] = []
    metrics = fit.train(tiny(), shapes, out, report=lines.append)
    return out, metrics, lines


def test_run_writes_its_results(run: tuple[Path, dict[str, float], list[str]]) -> None:
    out, metrics, lines = run
    expected = {
        "recipe.yaml",
        "run.json",
        "environment.json",
        "metrics.csv",
        "steps.csv",
        "metrics.json",
        "curves.png",
        "samples",
    }
    expected |= {"last.ckpt", "model.safetensors", "best.safetensors", "last.safetensors", "tensorboard"}
    assert {path.name for path in out.iterdir()} == expected
    written = json.loads((out / "metrics.json").read_text())
    assert written.keys() == metrics.keys() >= {"segm/AP", "bbox/AP", "boundary/AP", "decision/F1"}
    for name, value in metrics.items():
        assert written[name] == (None if isinstance(value, float) and math.isnan(value) else value), name
    assert (written["steps"], written["epochs"]) == (6, 2)
    assert " process(es), float32 · embedmask " in lines[1]
    begins = [" ".join(line.split()[:2]) for line in lines[2:]]
    assert begins == ["epoch 1", "epoch 2", "score threshold", "mask AP"]
    assert lines[0].endswith("train.json beside images/")
    assert all("\n" not in line for line in lines)


def test_run_records_machine_versions_data_and_speed(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path
) -> None:
    out, metrics, lines = run
    (start,) = json.loads((out / "environment.json").read_text())
    assert (start["seed"], start["precision"], start["nodes"], start["processes_per_node"]) == (
        0,
        "float32",
        1,
        1,
    )
    assert {"processor", "cores", "threads", "device", "python", "torch", "timm", "lightning"} <= set(
        start["machine"]
    )
    for split, images in (("train", 10), ("val", 3)):
        data = start["data"][split]
        assert data["images"] == images
        assert data["file sha256"] == hashlib.sha256((shapes / f"{split}.json").read_bytes()).hexdigest()
        assert f"{split} {data['annotations'][:12]}" in lines[1]
        assert len(data["image files"]) == 64
    with (out / "steps.csv").open(newline="") as file:
        steps = list(csv.DictReader(file))
    middle = statistics.median(float(row["seconds"]) for row in steps)
    assert metrics["seconds_per_step"] == pytest.approx(middle)
    assert metrics["images_per_second"] > 0
    assert metrics["peak_gib"] == max(float(row["peak_gib"]) for row in steps)


def test_digest_of_images_follows_their_content(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(bytes(20_000))
    digests = {image_digest(paths)}
    for place in (0, 10_000, 19_999):
        content = bytearray(20_000)
        content[place] = 1
        paths[1].write_bytes(content)
        digests.add(image_digest(paths))
    # neither beginning nor end have changed in one of them
    assert len(digests) == 3
    paths[1].write_bytes(bytes(20_001))
    assert image_digest(paths) not in digests


def test_resumed_run_appends_its_start(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(run[0], out)
    fit.train(tiny(epochs=3), shapes, out, resume=True)
    starts = json.loads((out / "environment.json").read_text())
    assert len(starts) == 2
    assert starts[0]["data"] == starts[1]["data"]


def test_warnings_of_both_splits_are_one_line_each(tmp_path: Path) -> None:
    make_shapes(tmp_path / "shapes", train=4, val=2, size=64, seed=0)
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in (tmp_path / "shapes/images").iterdir():
        with Image.open(path) as image:
            image.load()
            image.save(path, exif=exif)
    folder = tmp_path / "shapes"
    lines = TrainValDataModule(folder, tiny()).report_lines(folder)
    assert lines[0] == f"{folder}: train.json beside images/"
    assert [line.rpartition(" (and ")[2].split()[0] for line in lines[1:]] == ["3", "1"]
    assert all("EXIF orientation 3" in line for line in lines[1:])
    stored = override(tiny().data, {"exif": "stored"}, where="data")
    splits = TrainValDataModule(folder, replace(tiny(), data=stored))
    assert len(splits.report_lines(folder)) == 1
    assert (splits.train_set.exif, splits.val_set.exif) == ("stored", "stored")


def test_csv_has_a_row_per_epoch(run: tuple[Path, dict[str, float], list[str]]) -> None:
    rows = list(csv.DictReader((run[0] / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["3", "6"]
    for row in rows:
        terms = ("classification", "box", "centerness", "mask", "smooth")
        total = sum(float(row[f"loss/{term}"]) for term in terms)
        assert float(row["loss/total"]) == pytest.approx(total, rel=1e-4)
        assert row["segm/AP"]


def test_written_images_can_be_opened(run: tuple[Path, dict[str, float], list[str]]) -> None:
    out = run[0]
    for path in [out / "curves.png", *(out / "samples").iterdir()]:
        with Image.open(path) as image:
            assert min(image.size) >= 64
    assert len(list((out / "samples").iterdir())) == 3


def test_init_loads_the_weights_of_another_run(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path, tmp_path: Path
) -> None:
    weights = run[0] / "model.safetensors"
    lines: list[str] = []
    recipe = tiny(init=str(weights), epochs=1, lr=1e-12, weight_decay=0.0, ema_decay=None)
    fit.train(recipe, shapes, tmp_path / "on", report=lines.append)
    before, after = load_file(weights), load_file(tmp_path / "on" / "last.safetensors")
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learned)
    assert lines[1] == f"starts from {weights}: {len(before)} of {len(before)} tensors"


def test_init_with_other_classes_leaves_the_class_layer_random(
    run: tuple[Path, dict[str, float], list[str]],
) -> None:
    checkpoint = load_checkpoint(run[0] / "model.safetensors")
    model = build_model(replace(checkpoint.config, num_classes=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lines: list[str] = []
    fit.initialize_weights(model, tiny(init=str(run[0] / "model.safetensors")).train, lines.append)
    after, source = model.state_dict(), checkpoint.model.state_dict()
    random = {name for name, value in after.items() if value.shape != source[name].shape}
    assert {name.rpartition(".")[2] for name in random} == {"weight", "bias"}
    assert all(torch.equal(after[name], before[name] if name in random else source[name]) for name in after)
    assert lines[0].endswith(f"{len(after) - 2} of {len(after)} tensors")


def test_init_raises_on_another_backbone(
    run: tuple[Path, dict[str, float], list[str]],
) -> None:
    other = build_model(override(tiny().model, {"backbone": "resnet10t"}, where="test"))
    config = tiny(init=str(run[0] / "model.safetensors")).train
    with pytest.raises(BadInput, match="its backbone is test_resnet, the recipe's resnet10t"):
        fit.initialize_weights(other, config, print)


def test_number_of_classes_follows_the_data(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path
) -> None:
    names = [c["name"] for c in json.loads((shapes / "val.json").read_text())["categories"]]
    checkpoint = load_checkpoint(run[0] / "model.safetensors")
    assert sorted(checkpoint.class_names) == sorted(names)
    assert checkpoint.config.num_classes == len(names)
    assert yaml.safe_load((run[0] / "recipe.yaml").read_text())["model"]["num_classes"] == len(names)
    assert Recipe.from_yaml(run[0] / "recipe.yaml").train == tiny().train


def test_resuming_a_finished_run_changes_nothing(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path
) -> None:
    out = run[0]
    names = ("model.safetensors", "best.safetensors", "last.safetensors", "metrics.csv", "steps.csv")
    before = {name: (out / name).read_bytes() for name in names}
    again = fit.train(tiny(), shapes, out, resume=True)
    assert again["steps"] == 6
    assert {name: (out / name).read_bytes() for name in names} == before


def test_averaged_weights_are_saved(run: tuple[Path, dict[str, float], list[str]]) -> None:
    out = run[0]
    state = torch.load(out / "last.ckpt", weights_only=True)
    saved = load_file(out / "last.safetensors")
    name = "head.class_logits.weight"
    assert torch.equal(state["state_dict"][f"model.{name}"], saved[name])
    assert not torch.equal(state["current_model_state"][f"model.{name}"], saved[name])


def test_run_stopped_by_the_time_limit_resumes_identically(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    short = tiny(max_minutes=1e-6, checkpoint_minutes=None)
    stopped = fit.train(short, shapes, out)
    assert stopped["steps"] == 1
    again = fit.train(short, shapes, out, resume=True)  # the time is used up
    assert {**again, "seconds": 0} == {**stopped, "seconds": 0}
    assert fit.train(tiny(), shapes, out, resume=True)["steps"] == 6
    first, second = (load_file(path / "last.safetensors") for path in (run[0], out))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_equal_runs_write_equal_files(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path, tmp_path: Path
) -> None:
    fit.train(tiny(), shapes, tmp_path / "again")
    for name in ("model.safetensors", "last.safetensors", "recipe.yaml", "run.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run[0] / name).read_bytes(), name


def test_raises_instead_of_overwriting_a_run(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run[0].rglob("*")}
    with pytest.raises(BadInput, match="--resume"):
        fit.train(tiny(), shapes, run[0])
    assert before == {path: path.stat().st_mtime_ns for path in run[0].rglob("*")}


def test_resume_raises_without_a_run(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run to resume"):
        fit.train(tiny(), shapes, tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_resume_raises_on_truncated_checkpoint(
    run: tuple[Path, dict[str, float], list[str]], shapes: Path, tmp_path: Path
) -> None:
    half = (run[0] / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(half[: len(half) // 2])
    with pytest.raises(BadInput, match="damaged"):
        fit.train(tiny(), shapes, tmp_path, resume=True)


def test_broken_image_leaves_no_folder(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make_shapes(data, train=4, val=1, size=64, seed=1)
    name = json.loads((data / "train.json").read_text())["images"][0]["file_name"]
    whole = (data / "images" / name).read_bytes()
    (data / "images" / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=Path(name).name):
        fit.train(tiny(), data, out)
    assert not out.exists()
