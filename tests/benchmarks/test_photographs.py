"""The script photographs.py: equal images and solvers, runs that resume, and the section of unfinished runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from scripts import load_script
from small_models import small_baseline, small_config
from tiny_run import tiny

from embedmask.config import MaskRCNNConfig, ModelConfig, Recipe
from embedmask.synthetic.dataset import make_shapes

photographs = load_script("photographs")


def test_models_differ_in_the_detector_alone() -> None:
    recipes = {name: photographs.recipe(name, 3, Path("lite0.pth"), steps=7) for name in photographs.MODELS}
    assert len({(own.data, own.train) for own in recipes.values()}) == 1
    train = recipes["tal"].train
    assert (train.seed, train.max_steps, train.pretrained) == (3, 7, "lite0.pth")
    fcos, baseline = recipes["fcos"].model, recipes["maskrcnn"].model
    assert isinstance(fcos, ModelConfig)
    assert replace(recipes["tal"].model, detector="fcos", box_weight=1.0) == fcos
    assert isinstance(baseline, MaskRCNNConfig)
    for name in ("backbone", "image_short_side", "image_long_side", "channels", "max_detections"):
        assert getattr(baseline, name) == getattr(fcos, name)
    # torchvision's anchors, halved
    assert baseline.anchor_sizes == (16, 32, 64, 128, 256)


@pytest.mark.parametrize("name", photographs.VARIANTS)
def test_variants_differ_in_one_setting(name: str) -> None:
    base, changed = photographs.recipe("tal", 1, None), photographs.variant(name, 1, None)
    (fields,) = photographs.VARIANTS[name].values()
    ((field, value),) = fields.items()
    part = next(iter(photographs.VARIANTS[name]))
    assert getattr(getattr(base, part), field) != value
    assert replace(getattr(base, part), **fields) == getattr(changed, part)
    assert getattr(changed, "train" if part == "model" else "model") == getattr(
        base, "train" if part == "model" else "model"
    )


def test_runs_have_names_for_files() -> None:
    names = [photographs.run_name(title, 2) for title in (*photographs.MODELS, *photographs.VARIANTS)]
    assert names[:4] == ["fcos_2", "tal_2", "maskrcnn_2", "embed_stride_2_2"]
    assert len(set(names)) == len(names)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train three small networks, of which one stopped after its first step; return the runs and the data."""
    folder = tmp_path_factory.mktemp("photographs")
    data, runs = folder / "data", folder / "2_steps"
    make_shapes(data, train=4, val=2, size=64)
    models = {"fcos": small_config(), "tal": small_config(detector="tal"), "maskrcnn": small_baseline()}

    def recipes(steps: int) -> dict[str, Recipe]:
        train = tiny(max_steps=steps, epochs=None)
        return {f"{name}_0": replace(train, model=model) for name, model in models.items()}

    photographs.run(runs, data, {"tal_0": recipes(1)["tal_0"]})
    (runs / "tal_0.json").unlink()
    photographs.run(runs, data, recipes(2))
    photographs.measure_speed(runs, data, [*models])
    return runs, data


@pytest.mark.slow
def test_runs_are_measured_once(finished: tuple[Path, Path]) -> None:
    runs, data = finished
    results = {name: json.loads((runs / f"{name}_0.json").read_text()) for name in photographs.MODELS}
    for own in results.values():
        assert own["steps"] == 2
        assert set(photographs.METRICS) <= set(own)
        assert own["parameters"] > 100_000
    # the time of an interrupted run is unknown
    assert [own["core_minutes"] is None for own in results.values()] == [False, True, False]
    speed = json.loads((runs / "speed.json").read_text())
    assert speed["images"] == 2
    assert all(speed["cpu_ms"][name] > 1 for name in results)
    assert all(speed["memory_mb"][name]["images"] > 50 for name in results)
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    photographs.run(runs, data, {f"{name}_0": tiny() for name in results})
    photographs.measure_speed(runs, data, [*results])
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_section_of_finished_runs(finished: tuple[Path, Path]) -> None:
    lines = photographs.section(finished[0].parent, seeds=1).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[2:5]]
    assert [row[:2] for row in rows] == [[title, "2"] for title in photographs.MODELS.values()]
    assert [row[-4] == "-" for row in rows] == [False, True, False]
    assert all(int(cell) > 0 for row in rows for cell in row[-2:])
    assert "one thread" in lines[-1]


MACHINE = {"processor": "P", "processor_units": ["avx2"], "torch": "2", "commit": "abc"}


def write_run(folder: Path, name: str, seed: int, value: float) -> None:
    """Write the result of a run with the same value of each metric."""
    own = {**dict.fromkeys(photographs.METRICS, value), "parameters": 2_000_000, "core_minutes": 10.0}
    folder.mkdir(exist_ok=True)
    file = folder / f"{photographs.run_name(name, seed)}.json"
    file.write_text(json.dumps({**own, "machine": MACHINE}))


def test_section_of_unfinished_runs(tmp_path: Path) -> None:
    assert "no table" in photographs.section(tmp_path, seeds=1)
    for seed, value in enumerate((0.2, 0.4)):
        write_run(tmp_path / "30_steps", "fcos", seed, value)
    text = photographs.section(tmp_path, seeds=2)
    assert "| EmbedMask, `fcos` | 30 | 2 | 30.0 ± 14.1 |" in text
    assert "| 10.0 | 2.0 M | - | - |" in text
    assert "Mask R-CNN" not in text
    assert text.endswith("Machine: P (avx2), one thread, torch 2; commit abc.")


def test_lengths_are_rows_of_one_table(tmp_path: Path) -> None:
    for steps, name in ((1000, "tal"), (300, "tal"), (300, "maskrcnn")):
        write_run(tmp_path / f"{steps}_steps", name, 0, steps / 10_000)
    rows = [line.split(" | ")[:4] for line in photographs.section(tmp_path, seeds=1).splitlines()[2:5]]
    assert rows == [
        ["| EmbedMask, `tal`", "300", "1", "3.0"],
        ["| Mask R-CNN", "300", "1", "3.0"],
        ["| EmbedMask, `tal`", "1,000", "1", "10.0"],
    ]


def test_variants_are_compared_with_their_base(tmp_path: Path) -> None:
    folder = tmp_path / "30_steps"
    for name, values in {"tal": (0.3, 0.4), "mask_loss: dice": (0.32,)}.items():
        for seed, value in enumerate(values):
            write_run(folder, name, seed, value)
    lines = photographs.section(tmp_path, seeds=2).splitlines()
    assert any(line.startswith("`tal` after 30 steps, and with one changed setting each:") for line in lines)
    assert f"| `mask_loss: dice` | 1 |{' +2.0 |' * 6} 10.0 |" in lines
    assert f"| `tal` | 1 |{' 30.0 |' * 6} 10.0 |" in lines  # its first seed alone is compared
    assert not any("bce" in line for line in lines)
    # runs of the second seed alone are compared with the base's second seed
    (folder / "mask_loss_dice_0.json").rename(folder / "mask_loss_dice_1.json")
    lines = photographs.section(tmp_path, seeds=2).splitlines()
    assert f"| `mask_loss: dice` | 1 |{' -8.0 |' * 6} 10.0 |" in lines
    assert f"| `tal` | 1 |{' 40.0 |' * 6} 10.0 |" in lines


def test_curves_have_a_point_for_each_timed_length(tmp_path: Path) -> None:
    for steps, name, value in ((30, "tal", 0.2), (60, "tal", 0.3), (30, "maskrcnn", 0.25)):
        write_run(tmp_path / f"{steps}_steps", name, 0, value)
    interrupted = tmp_path / "60_steps" / "maskrcnn_0.json"
    content = json.loads((tmp_path / "30_steps" / "maskrcnn_0.json").read_text())
    interrupted.write_text(json.dumps({**content, "core_minutes": None}))
    points = {
        name: [point[:2] for point in photographs.timed_points(tmp_path, name, 1)]
        for name in photographs.MODELS
    }
    assert points == {"fcos": [], "tal": [(30, 10), (60, 10)], "maskrcnn": [(30, 10)]}
    photographs.draw_curves(tmp_path, 1, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width == 1000


def test_lengths_are_kept_apart(tmp_path: Path) -> None:
    own = photographs.folder_of(tmp_path, None)
    assert own == tmp_path / f"{photographs.recipe('tal', 0, None).train.max_steps}_steps"
    assert photographs.folder_of(tmp_path, 3) != own
