"""The script nuclei.py: measured figures, and a page that shows them and keeps text written by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from evaluation_scenes import as_annotation, as_result, ellipse, make_truth
from faster_coco_eval.core import mask as mask_api
from PIL import Image
from scripts import load_script
from small_models import small_baseline, small_config

from embedmask.config.bundled import resolve_recipe
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.run import evaluate_weights, write_results
from embedmask.model.build import build_model
from embedmask.synthetic.dataset import make_shapes
from embedmask.synthetic.renderer import CLASS_NAMES
from embedmask.weights.checkpoint import save

nuclei, nuclei_page, images = map(load_script, ("nuclei", "nuclei_page", "nuclei_images"))
KEPT_KEYS = ("image_id", "category_id", "segmentation")
BEGIN, END = nuclei_page.BEGIN, nuclei_page.END


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return weights of untrained networks that return some results."""
    few = {
        "num_classes": len(CLASS_NAMES),
        "candidate_threshold": 0.001,
        "max_detections": 20,
        "default_score_threshold": 0.002,
    }
    configs = {"Ours": small_config(**few, mask_frame="exact"), "Mask R-CNN": small_baseline(**few)}
    paths = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        paths[name] = tmp_path_factory.mktemp("weights") / "model.safetensors"
        save(build_model(config), paths[name], class_names=CLASS_NAMES)
    return paths


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Path]) -> Path:
    """Return five images in two modalities, four of site `a`; the ground truth is part of EmbedMask's results."""
    folder = tmp_path_factory.mktemp("nuclei") / "set"
    make_shapes(folder, train=1, val=5, size=64)
    content = json.loads((folder / "val.json").read_text())
    found = write_results(weights["Ours"], CocoInstances.open(folder, "val"), folder / "found.json")
    results = [one for one in json.loads(found.read_text()) if mask_api.area(one["segmentation"]) > 0]
    for number, image in enumerate(content["images"]):
        image |= {"modality": "dark" if number < 3 else "bright", "site": "a" if number < 4 else None}
    content["annotations"] = [
        {
            "id": number,
            "iscrowd": 0,
            "area": 1,
            "bbox": mask_api.toBbox(one["segmentation"]).tolist(),
            **{key: one[key] for key in KEPT_KEYS},
        }
        for number, one in enumerate(results[::3], start=1)
    ]
    (folder / "val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a page with marks; memory is measured in this process."""

    def run_here(prepare: Any, *args: Any) -> dict[str, float]:
        for step in prepare(*args).values():
            step()
        return {"before": 100.0, "images": 321.0}

    monkeypatch.setattr(nuclei, "peaks_in_own_process", run_here)
    (tmp_path / "results.md").write_text(f"# Results\nby hand\n{BEGIN}\nold text\n{END}\nby hand too\n")
    return tmp_path


def call(*words: str | Path) -> None:
    nuclei.run(nuclei.parse([str(word) for word in words]))


def measure(data: Path, docs: Path, weights: Path, name: str, *more: str | Path) -> dict[str, Any]:
    call("measure", "--data", data, "--docs", docs, "--weights", weights, "--name", name, *more)
    kept: dict[str, Any] = json.loads((docs / "nuclei" / "results.json").read_text())
    return kept


def test_row_equals_evaluation(data: Path, weights: dict[str, Path], docs: Path) -> None:
    row = measure(data, docs, weights["Ours"], "Ours", "--where", "site=a")["rows"]["Ours"]
    dataset = CocoInstances.open(data, "val", image_filter="site=a")
    expected = evaluate_weights(weights["Ours"], dataset, matching=True)
    del expected["classes"]
    none_is_nan = {name: np.nan if value is None else value for name, value in row["metrics"].items()}
    assert none_is_nan == pytest.approx(expected, nan_ok=True)
    assert 0 < row["metrics"]["segm/AP"] < 1
    assert 0 < row["metrics"]["matching/mAP"] < 1
    assert row["images"] == 4
    assert {name: of["images"] for name, of in row["modalities"].items()} == {"dark": 3, "bright": 1}
    assert row["objects"] == sum(of["objects"] for of in row["modalities"].values())
    for kind, values in row["by_iou"].items():
        assert np.mean(values) == pytest.approx(expected[f"{kind}/AP"])
    assert [len(curve) for curve in row["precision"].values()] == [101] * 3
    assert row["model"]["kind"] == "EmbedMask"
    assert row["memory_mb"] == {"before": 100.0, "images": 321.0}
    assert str(data) not in json.dumps(row)


def write_results_folder(data: Path, weights: Path, folder: Path) -> Path:
    """Write the results of a model as the folder that stardist_nuclei.py writes."""
    folder.mkdir(parents=True)
    dataset = CocoInstances.open(data, "val", image_filter="site=a")
    write_results(weights, dataset, folder / "results.json")
    facts = {"parameters": 1_400_000, "steps": 700, "epochs": 7, "images": 2800, "core_minutes": 9.0}
    facts |= {
        "score_threshold": 0.002,
        "where": "site=a",
        "cpu_ms": 61.4,
        "peak_mb": 912.0,
        "tensorflow": "2.21.0",
        "options": ["--epochs 9", "--epochs 7 --learning-rate 3e-05"],
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def test_row_of_stored_results(data: Path, weights: dict[str, Path], docs: Path, tmp_path: Path) -> None:
    """Results of another program have the figures that the same results of a model have."""
    measure(data, docs, weights["Ours"], "Ours", "--where", "site=a")
    folder = write_results_folder(data, weights["Ours"], tmp_path / "runs" / "stardist")
    words = ("--data", data, "--docs", docs, "--results", folder, "--name", "StarDist", "--where", "site=a")
    call("measure", *words)
    rows = json.loads((docs / "nuclei" / "results.json").read_text())["rows"]
    for key in ("images", "objects", "metrics", "by_iou", "precision", "by_threshold", "modalities"):
        assert rows["StarDist"][key] == rows["Ours"][key]
    assert rows["StarDist"]["training"]["steps"] == 700
    text = "\n".join(nuclei_page.command_lines({"rows": rows, "time": None}, []))
    script = "python benchmarks/stardist_nuclei.py"
    train = f"{script} train --data nuclei --where site=a --out runs/stardist --epochs"
    assert f"{train} 9\n{train} 7 --learning-rate 3e-05\n{script} predict" in text
    assert 'measure --data nuclei --results runs/stardist --name "StarDist" --where site=a' in text


def test_row_of_a_model_with_changed_fields(data: Path, weights: dict[str, Path], docs: Path) -> None:
    few = measure(data, docs, weights["Ours"], "Few", "--change", "max_detections=1")["rows"]["Few"]
    assert few["changes"] == {"max_detections": 1}
    assert few["weights"] == weights["Ours"].name
    whole = measure(data, docs, weights["Ours"], "All")["rows"]["All"]
    assert few["metrics"]["segm/AR"] < whole["metrics"]["segm/AR"]


def test_images_of_a_kind(
    data: Path, weights: dict[str, Path], docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(data, docs, weights["Ours"], "Ours")
    words = ("--data", data, "--docs", docs, "--weights", f"Ours={weights['Ours']}")
    call("images", *words, "--where", "modality=bright")
    names = ["bright_best_1", "bright_best_2"]  # there are two
    assert sorted(path.stem for path in (docs / "nuclei").glob("*.png")) == names
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("!")] == [
        f"![{name.replace('_', ' ')}](nuclei/{name}.png)" for name in names
    ]
    assert lines[0].startswith("**Best 1:** `")


def test_figures_of_some_images(tmp_path: Path) -> None:
    size, mask = (20, 20), ellipse((20, 20), (9, 9), (5, 5))
    truth = make_truth([as_annotation(n, n, 7, mask) for n in (1, 2)], {1: size, 2: size}, [7])
    for image, modality in zip(truth["images"], ("dark", "bright"), strict=True):
        image["modality"] = modality
    evaluator = CocoEvaluator(truth)
    evaluator.add([as_result(1, 7, mask, 0.5)])
    file = tmp_path / "val.json"
    file.write_text(json.dumps(truth))
    groups = nuclei.modalities(SimpleNamespace(annotations_file=file, image_ids=[1, 2]))
    assert groups == {"dark": [1], "bright": [2]}
    found = {name: nuclei.figures(evaluator, 0.3, ids) for name, ids in groups.items()}
    assert found["dark"]["by_iou"]["segm"] == pytest.approx([1] * 10)
    assert found["bright"]["by_iou"]["boundary"] == pytest.approx([0] * 10)
    assert nuclei.figures(evaluator, 0.3)["metrics"]["matching/mAP"] == 0.5
    assert nuclei.figures(evaluator, 0.6)["metrics"]["matching/mAP"] == 0


def test_models_run_on_each_image_in_turn(data: Path) -> None:
    shown: list[tuple[str, float]] = []

    def predictor(name: str) -> Any:
        return SimpleNamespace(
            predict_instances=lambda images, score_threshold: shown.append((name, score_threshold))
        )

    both = {"a": predictor("a"), "b": predictor("b")}
    seconds = nuclei.seconds_per_image(both, {"a": 0.4, "b": 0.2}, CocoInstances.open(data, "val"))
    assert shown == [("a", 0.4), ("b", 0.2)] * 6  # the first image twice
    assert list(seconds) == ["a", "b"]


def test_training_facts(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,seconds,segm/AP\n1,10,900,0.1\n2,20,2700,\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"train": {"batch_size": 8}}))
    expected = {"run": tmp_path.name, "steps": 20, "epochs": 2, "images": 160, "overrides": {}}
    assert nuclei.training_facts(tmp_path, None) == expected
    (tmp_path / "metrics.csv").write_text("epoch,step,seconds\n")
    with pytest.raises(BadInput, match="no epoch yet"):
        nuclei.training_facts(tmp_path, None)


def test_training_command_has_the_fields_that_differ_from_the_recipe(tmp_path: Path) -> None:
    command = "embedmask train --config nuclei --data nuclei --out runs/one --data.image_filter a=b"
    train = {"max_steps": 7, "init": "nuclei", "workers": 0}
    changes = {"data": {"scale_range": [0.8, 1.5]}, "train": train}
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,7\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(resolve_recipe("nuclei", changes).to_dict()))
    facts = nuclei.training_facts(tmp_path, "nuclei") | {"recipe": "nuclei", "run": "one"}
    assert facts["overrides"] == {
        "data.scale_range": [0.8, 1.5],
        "train.max_steps": 7,
        "train.init": "nuclei",
    }
    line = nuclei_page.train_line(facts, "a=b")
    assert line == f"{command} --data.scale_range '[0.8, 1.5]' --train.max_steps 7 --train.init nuclei"
    assert nuclei_page.train_line({**facts, "overrides": {}}, "a=b") == command


@pytest.mark.slow
def test_page_shows_every_row_and_keeps_text_by_hand(
    data: Path, weights: dict[str, Path], docs: Path
) -> None:
    for name, path in weights.items():
        measure(data, docs, path, name, "--where", "site=a")
    kept = measure(data, docs, weights["Ours"], "All kinds", "--score-threshold", "0.5")
    folder = write_results_folder(data, weights["Ours"], docs / "runs" / "stardist")
    call(
        "measure", "--data", data, "--docs", docs, "--results", folder, "--name", "Star", "--where", "site=a"
    )
    thresholds = {name: row["score_threshold"] for name, row in kept["rows"].items()}
    assert thresholds == {"Ours": 0.002, "Mask R-CNN": 0.002, "All kinds": 0.5}
    given = [f"{name}={path}" for name, path in weights.items()]
    call("time", "--data", data, "--docs", docs, "--weights", *given)
    call("page", "--data", data, "--docs", docs, "--weights", *given)
    text = (docs / "results.md").read_text()
    assert text.startswith(f"# Results\nby hand\n{BEGIN}\n### Against")
    assert text.endswith(f"\n{END}\nby hand too\n")
    assert "old text" not in text
    published, beside, by_modality, *_ = text.split("\n### ")[1:]
    assert "| StarDist | 0.864 |" in published
    assert "| **Mask R-CNN** |" in published
    assert text.count('"Ours=') == 2  # in the commands that time and draw
    assert "All kinds" not in published  # its images are others
    assert "on 4 validation images (`site=a`)" in published
    for name in kept["rows"]:
        assert f"\n| {name} | " in beside
        assert by_modality.count(f"| {name} | dark | 3 |") == 1
    assert "| Ours | EmbedMask | resnet10t |" in beside
    times = json.loads((docs / "nuclei" / "results.json").read_text())["time"]
    ratio = times["seconds"]["Mask R-CNN"] / times["seconds"]["Ours"]
    milliseconds = 1000 * times["seconds"]["Mask R-CNN"]
    assert f"| Mask R-CNN | {milliseconds:.0f} | {ratio:.2f} | 100 | 321 |" in beside
    assert "Star, in a process of its own with TensorFlow 2.21.0: 61 ms of CPU time" in beside
    assert "| All kinds | " not in beside.partition("ms per image")[2]  # was not timed
    shown = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(shown) == 3 + 4 + 1  # charts, four images are all there are, the close look
    for name in shown:
        assert min(Image.open(docs / name).size) >= 128


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"])
def test_raises_on_page_without_marks(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.md").write_text(text)
    with pytest.raises(BadInput, match=r"results\.md: needs one line .*begin.* and below it"):
        nuclei_page.around_marks(tmp_path / "results.md")


def test_raises_on_bad_arguments(data: Path, docs: Path, tmp_path: Path) -> None:
    (docs / "nuclei").mkdir()
    (docs / "nuclei" / "results.json").write_text(
        json.dumps({"rows": {name: {"changes": {}} for name in "AB"}, "time": None})
    )
    for given, message in (
        ("A", "give ROW=FILE"),
        ("C=f", "no row 'C'.* only A, B"),
        ("B=f", "'A', is miss"),
    ):
        with pytest.raises(BadInput, match=message):
            call("page", "--data", data, "--docs", docs, "--weights", given)
    (docs / "results.md").write_text("no marks")
    (docs / "nuclei" / "results.json").write_text(
        json.dumps({"rows": {"A": {"where": None, "changes": {}}}, "time": None})
    )
    with pytest.raises(BadInput, match="needs one line"):  # before the models run
        call("page", "--data", data, "--docs", docs, "--weights", "A=nowhere")
    with pytest.raises(BadInput, match="no equals sign"):
        measure(data, docs, tmp_path / "f", "A=B")
    with pytest.raises(BadInput, match=r"needs metrics\.csv"):
        nuclei.training_facts(tmp_path, None)


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["nuclei.py", "time", "--data", "d", "--docs", str(tmp_path), "--weights", "A=f"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(
        SystemExit, match=r"^nuclei\.py: --weights A=f: no row 'A' has been measured, only none"
    ):
        nuclei.main()


def test_published_means() -> None:
    means = [round(nuclei_page.mean(values), 3) for values in nuclei_page.PUBLISHED.values()]
    assert means == [0.594, 0.598, 0.606, 0.666, 0.703, 0.706, 0.715]


def test_images_are_chosen_by_rank() -> None:
    assert images.ranked({n: n / 10 for n in range(1, 8)}) == {
        "best_1": 7, "best_2": 6, "middle_1": 5, "middle_2": 4, "worst_2": 2, "worst_1": 1,
    }  # fmt: skip
    assert list(images.ranked({1: 0.5, 2: 0.1, 3: 0.9}).values()) == [3, 1, 2]
    assert images.ranked({1: 0.5}) == {"best_1": 1}


def test_partners_share_a_color() -> None:
    truth, found = np.zeros((2, 12, 12), np.int32)
    truth[:4, :4], truth[6:, 6:], truth[0, 11] = 1, 2, 3
    found[6:, 6:], found[:4, :3], found[10:, :2] = 1, 2, 3
    of_truth, of_found = images.partners(truth, found)
    assert of_found[1].tolist() == of_truth[2].tolist() != of_truth[1].tolist() == of_found[2].tolist()
    assert of_truth[3].tolist() == of_found[3].tolist() == [255] * 3
    assert not (of_truth[1:3] == 255).all(1).any()


def test_outlines_lie_inside_objects() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[2:6, 2:6] = 1
    colors = np.array([[0, 0, 0], [255, 0, 0]], float)
    whole = (slice(0, 10), slice(0, 10))
    gray = np.full((10, 10, 3), 7, np.uint8)
    scene = images.outlined(gray, labels, colors, whole, 2)
    painted = (scene == [255, 0, 0]).all(2)
    assert painted.sum() == 8 * 8 - 6 * 6
    assert painted[4:12, 4:12].sum() == painted.sum()
    colors[1] = images.WHITE
    thick = (images.outlined(gray, labels, colors, whole, 2) == 255).all(2)
    assert thick.sum() == 8 * 8 - 4 * 4


def test_most_crowded_window() -> None:
    labels = np.zeros((60, 100), np.int32)
    for label, (y, x) in enumerate([(5, 5), (50, 90), (55, 95), (45, 80)], start=1):
        labels[y - 1 : y + 2, x - 1 : x + 2] = label
    (rows, columns), count = images.crowded_window(labels, 30)
    assert count == 3
    assert (labels[rows, columns] > 1).sum() == 27
    assert labels[rows, columns].shape == (30, 30)
    assert images.crowded_window(labels, 256) == ((slice(0, 256), slice(0, 256)), 4)
    assert images.crowded_window(np.zeros_like(labels), 30)[1] == 0
