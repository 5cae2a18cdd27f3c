"""The commands `train`, `eval` and `data`: files and printed lines."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from command_line import copy_with, fails, two_points
from PIL import Image
from predict_command import words

from embedmask import ModelConfig
from embedmask.cli import main
from embedmask.cli.evaluate import metrics_table
from embedmask.model.detector import Detector
from embedmask.weights.checkpoint import load_checkpoint, read_config

METRICS = ("AP", "AP50", "AP75", "AP90", "AR", "AP_small", "AP_medium", "AP_large")


@pytest.fixture(scope="module")
def run(findable: Path, eager: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train so little that the model still finds the objects of val."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "--config", recipe, "--data", str(findable), "--out", str(out)]
    assert main([*words, "--train.init", str(eager), "--train.lr", "1e-6"]) == 0
    return out


class TestTrain:
    def test_writes_the_weights(self, run: Path) -> None:
        assert load_checkpoint(run / "model.safetensors").config.channels == 32

    def test_overrides_and_precision_reach_the_run(self, shapes: Path, recipe: str, tmp_path: Path) -> None:
        out = tmp_path / "out"
        words = [
            "train",
            "--config",
            recipe,
            "--data",
            str(shapes),
            "--out",
            str(out),
            "--precision",
            "float32",
        ]
        assert main([*words, "--model.embed_dim", "4", "--train.max_steps=1", "--train.lr", "1e-3"]) == 0
        written = yaml.safe_load((out / "recipe.yaml").read_text())
        assert written["model"]["embed_dim"] == 4
        assert (written["train"]["max_steps"], written["train"]["epochs"]) == (1, None)
        assert (written["train"]["lr"], written["train"]["precision"]) == (0.001, "float32")
        assert json.loads((out / "metrics.json").read_text())["steps"] == 1

    def test_resume_needs_no_recipe(self, run: Path, findable: Path, capsys: Any) -> None:
        steps = json.loads((run / "metrics.json").read_text())["steps"]
        words = ["train", "--resume", "--data", str(findable), "--out", str(run)]
        assert main([*words, "--train.epochs", "2"]) == 0
        assert json.loads((run / "metrics.json").read_text())["steps"] == 2 * steps
        assert "epoch 2" in capsys.readouterr().out

    def test_raises_instead_of_overwriting_a_run(
        self, run: Path, shapes: Path, recipe: str, capsys: Any
    ) -> None:
        assert "--resume" in fails(capsys, "train", "--config", recipe, "--data", shapes, "--out", run)


class TestEval:
    def test_json_has_three_types_of_ap(self, run: Path, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "metrics.json"
        weights = str(run / "model.safetensors")
        assert main(["eval", "--weights", weights, "--data", str(shapes), "--json", str(out)]) == 0
        metrics = json.loads(out.read_text())
        assert {"bbox/AP", "segm/AP", "boundary/AP"} <= set(metrics)
        assert {f"{kind}/{metric}" for kind in ("bbox", "segm", "boundary") for metric in METRICS} <= set(
            metrics
        )
        assert "matching/AP50" not in metrics
        names = [category["name"] for category in json.loads((shapes / "val.json").read_text())["categories"]]
        assert sorted(metrics["classes"]) == sorted(names)
        table = capsys.readouterr().out
        assert [line.split()[0] for line in table.splitlines()[1:]] == ["AP", "bbox", "segm", "boundary"]

    def test_matching_on_request_or_with_one_class(
        self, eager: Path, findable: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "metrics.json"
        words = ["eval", "--weights", str(eager), "--data", str(findable), "--json", str(out), "--matching"]
        assert main([*words, "--score-threshold", "0.9"]) == 0
        assert "matching_pooled" in capsys.readouterr().out
        high = json.loads(out.read_text())
        assert {"matching/mAP", "matching/AP50", "matching/AP90", "matching_pooled/AP50"} <= set(high)
        assert main([*words, "--score-threshold", "0"]) == 0
        assert json.loads(out.read_text())["matching_pooled/recall50"] > high["matching_pooled/recall50"] == 0
        assert "score-threshold" in fails(capsys, *words[:5], "--score-threshold", "1.5")

        def merge(annotations: dict[str, Any]) -> None:
            annotations["categories"] = annotations["categories"][:1]
            for entry in annotations["annotations"]:
                entry["category_id"] = annotations["categories"][0]["id"]

        data = copy_with(shapes, tmp_path, merge)
        assert main(["eval", "--weights", str(eager), "--data", str(data), "--json", str(out)]) == 0
        assert "matching/AP50" in json.loads(out.read_text())

    def test_exif_option(
        self, shapes: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tmp_path / "turned"
        shutil.copytree(shapes, data)
        exif = Image.Exif()
        exif[0x0112] = 3
        for path in (data / "images").iterdir():
            with Image.open(path) as image:
                image.load()
                image.save(path, exif=exif)
        images: list[Any] = []

        def evaluate(weights: Path, dataset: Any, *, begin: Any, **how: Any) -> dict[str, Any]:
            begin()
            images.append(dataset.image(0))
            return {}

        monkeypatch.setattr("embedmask.evaluation.run.evaluate_weights", evaluate)
        monkeypatch.setattr("embedmask.weights.checkpoint.read_config", lambda path: ModelConfig())
        weights = tmp_path / "w.safetensors"
        weights.touch()
        for option, warned in (((), True), (("--exif", "stored"), False), (("--exif", "upright"), False)):
            assert main(["eval", "--weights", str(weights), "--data", str(data), *option]) == 0
            assert ("EXIF orientation 3" in capsys.readouterr().out) == warned
        auto, stored, upright = images
        assert auto.equal(upright)
        assert auto.flip((1, 2)).equal(stored)
        assert not auto.equal(stored)

    def test_report_is_one_page(self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        folder = tmp_path / "report"
        words = ["eval", "--weights", str(eager), "--data", str(shapes), "--report", str(folder)]
        assert main(words) == 0
        assert [file.name for file in folder.iterdir()] == ["index.html"]
        assert str(folder / "index.html") in capsys.readouterr().out
        assert "eager.safetensors on val of shapes" in (folder / "index.html").read_text()

    def test_degenerate_objects_can_be_dropped(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        data = copy_with(shapes, tmp_path, two_points)
        words = ["eval", "--weights", str(eager), "--data", str(data)]
        assert "drop" in fails(capsys, *words)
        assert main([*words, "--degenerate", "drop"]) == 0
        assert "1 degenerate" in capsys.readouterr().out.splitlines()[0]

    def test_warnings_are_printed_before_the_metrics(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        def spoil(content: dict[str, Any]) -> None:
            for entry in content["annotations"]:
                entry |= {"iscrowd": None, "area": None}
            content["annotations"][0] |= {"iscrowd": 1}
            del content["annotations"][1]["bbox"]

        data = copy_with(shapes, tmp_path, spoil)
        assert main(["eval", "--weights", str(eager), "--data", str(data)]) == 0
        layout, areas, crowds, head, *_ = capsys.readouterr().out.splitlines()
        assert "val.json beside images/" in layout
        assert areas.startswith(f"warning: {data / 'val.json'}: ")
        assert "have an 'area' that is not a number above 0" in areas
        assert f"{data / 'val.json'}: 1 of " in crowds
        assert "are crowds" in crowds
        assert head.split()[:2] == ["AP", "AP50"]

    def test_images_of_another_size(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Test --image-short-side, as for EmbedMask-600 of Table 1."""
        sizes: list[tuple[int, ...]] = []
        preprocess = Detector.preprocess

        def record_sizes(self: Detector, images: Any) -> Any:
            sizes.extend(tuple(image.shape[1:]) for image in images)
            return preprocess(self, images)

        monkeypatch.setattr(Detector, "preprocess", record_sizes)
        words = ["eval", "--weights", str(eager), "--data", str(shapes)]
        assert main([*words, "--image-short-side", "40"]) == 0
        assert sizes
        assert {min(size) for size in sizes} == {40}
        assert "--image-short-side" in fails(capsys, *words, "--image-short-side", "0")

    def test_without_annotations_results_are_written(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        """Test a file like COCO's test-dev, with images and categories alone."""
        data, out = tmp_path / "coco", tmp_path / "results"
        (data / "annotations").mkdir(parents=True)
        (data / "test2017").symlink_to((shapes / "images").resolve())
        content = json.loads((shapes / "val.json").read_text())
        del content["annotations"]
        for number, category in enumerate(content["categories"]):
            category["id"] = 7 * number + 3
        (data / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(content))
        words = ["eval", "--weights", str(eager), "--data", str(data), "--split", "test-dev"]
        assert "--json" in fails(capsys, *words)
        for option in (["--matching"], ["--score-threshold", "0.5"], ["--report", str(tmp_path / "report")]):
            said = fails(capsys, *words, "--json", str(out), *option)
            assert f"has no annotations, which {option[0]} needs; omit it" in said
        assert main([*words, "--json", str(out), "--max-detections", "5"]) == 0
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1
        assert "no AP" in printed
        (path,) = out.iterdir()
        assert path.name == "detections_test-dev2017_eager_results.zip"
        assert str(path) in printed
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["detections_test-dev2017_eager_results.json"]
            results = json.loads(archive.read("detections_test-dev2017_eager_results.json"))
        images = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
        assert 0 < len(results) <= 5 * len(images)
        for result in results:
            assert set(result) == {"image_id", "category_id", "bbox", "score", "segmentation"}
            assert result["segmentation"]["size"] == images[result["image_id"]]
            assert isinstance(result["segmentation"]["counts"], str)
            assert result["category_id"] in {category["id"] for category in content["categories"]}
        assert main([*words, "--json", str(tmp_path / "named.json"), "--max-detections", "5"]) == 0
        assert json.loads((tmp_path / "named.json").read_text()) == results
        # files of a run have the name of its folder
        runs = [tmp_path / "runs" / name for name in ("first run", "second")]
        for folder in runs:
            folder.mkdir(parents=True)
            shutil.copy(eager, folder / "model.safetensors")
            model = [
                "eval",
                "--weights",
                str(folder / "model.safetensors"),
                *words[3:],
                "--max-detections",
                "5",
            ]
            assert main([*model, "--json", str(tmp_path / "both")]) == 0
        assert {path.name for path in (tmp_path / "both").iterdir()} == {
            f"detections_test-dev2017_{name}_results.zip" for name in ("first_run", "second")
        }
        named = tmp_path / "detections_test-dev2017_v2_results.zip"
        assert main([*words, "--json", str(named)]) == 0
        assert zipfile.ZipFile(named).namelist() == [named.with_suffix(".json").name]
        line = fails(capsys, *words, "--json", tmp_path / "results.zip")
        assert line.endswith("COCO's server demands the name detections_test-dev2017_NAME_results.zip")
        assert not (tmp_path / "results.zip").exists()

    def test_agrees_with_the_evaluation_of_training(self, run: Path, findable: Path, tmp_path: Path) -> None:
        out = tmp_path / "metrics.json"
        weights = str(run / "model.safetensors")
        assert main(["eval", "--weights", weights, "--data", str(findable), "--json", str(out)]) == 0
        trained, evaluated = (json.loads(file.read_text()) for file in (run / "metrics.json", out))
        for kind in ("bbox", "segm", "boundary"):
            assert evaluated[f"{kind}/AP"] == pytest.approx(trained[f"{kind}/AP"], abs=1e-6)
        assert 0 < trained["segm/AP"] < 1

    def test_where_selects_images(self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        data = copy_with(shapes, tmp_path, lambda a: a["images"][0].update(modality="night"))
        whole, part = tmp_path / "whole.json", tmp_path / "part.json"
        words = ["eval", "--weights", str(eager), "--data", str(data), "--json"]
        assert main([*words, str(whole)]) == 0
        assert main([*words, str(part), "--where", "modality=night"]) == 0
        assert json.loads(whole.read_text()) != json.loads(part.read_text())
        assert "modality" in fails(
            capsys, "eval", "--weights", eager, "--data", data, "--where", "modality=dusk"
        )

    def test_raises_on_class_that_the_model_lacks(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        data = copy_with(shapes, tmp_path, lambda a: a["categories"][0].update(name="dragon"))
        assert "dragon" in fails(capsys, "eval", "--weights", eager, "--data", data)

    def test_table_has_a_header_for_each_set_of_columns(self) -> None:
        metrics = {"bbox/AP": 0.5, "segm/AP": 0.25, "matching/mAP": float("nan"), "classes": {}}
        assert [line.split() for line in metrics_table(metrics).splitlines()] == [
            ["AP"],
            ["bbox", "0.5000"],
            ["segm", "0.2500"],
            ["mAP"],
            ["matching", "nan"],
        ]


class TestData:
    def test_show_draws_a_contact_sheet(self, shapes: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        assert main(["data", "show", str(shapes), "--count", "5", "--out", str(out)]) == 0
        assert min(Image.open(out).size) > 100

    def test_show_draws_augmented_samples(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        def sheet(*options: str) -> Image.Image:
            arguments = ["--count", "2", "--out", str(tmp_path / "sheet.png"), *options]
            assert main(["data", "show", str(shapes), *arguments]) == 0
            return Image.open(tmp_path / "sheet.png").convert("RGB")

        plain = sheet()
        cropped = sheet("--config", "shapes", "--data.crop_size", "32", "--data.copy_paste", "1")
        assert cropped.size == (32 + 4 + 32, 32)
        assert plain.height > 32
        again = sheet("--config", "shapes", "--data.crop_size", "32", "--data.copy_paste", "1")
        assert again.tobytes() == cropped.tobytes()
        show = ("data", "show", shapes, "--out", tmp_path / "s.png")
        assert "--config" in fails(capsys, *show, "--data.crop_size", "64")
        assert "copy_paste" in fails(capsys, *show, "--config", "shapes", "--data.copy_past", "1")

    def test_show_draws_the_images_of_training(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        def empty_the_first(content: dict[str, Any]) -> None:
            first = content["images"][0]["id"]
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]

        data = copy_with(shapes, tmp_path, empty_the_first)
        show = ["data", "show", str(data), "--count", "1000", "--out", str(tmp_path / "s.png")]
        numbers = []
        for keep in ("true", "false"):
            assert main([*show, "--config", "shapes", "--data.keep_empty", keep]) == 0
            numbers.append(int(capsys.readouterr().out.split()[0]))
        assert numbers[1] == numbers[0] - 1

    def test_shapes_raises_instead_of_overwriting(self, shapes: Path, capsys: Any) -> None:
        before = sorted(path.name for path in shapes.rglob("*"))
        assert str(shapes) in fails(capsys, "data", "shapes", shapes)
        assert before == sorted(path.name for path in shapes.rglob("*"))


def test_model_stores_its_channels(shapes: Path, recipe: str, tmp_path: Path, capsys: Any) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    (data / "images").mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((shapes / f"{split}.json").read_text())
        for image in content["images"]:
            pixels = np.asarray(Image.open(shapes / "images" / image["file_name"]).convert("L"))
            image["file_name"] = Path(image["file_name"]).with_suffix(".tif").name
            tifffile.imwrite(
                data / "images" / image["file_name"],
                np.stack([np.zeros_like(pixels), pixels]).astype(np.uint16) * 16,
                metadata={"axes": "CYX"},
                imagej=True,
            )
        (data / f"{split}.json").write_text(json.dumps(content))
    assert main(["data", "check", str(data)]) == 0
    assert "several channels: channel 0 is used" in capsys.readouterr().out
    assert main(["data", "check", str(data), "--channels", "1"]) == 0
    assert "several" not in capsys.readouterr().out
    assert main(["data", "show", str(data), "--channels", "1", "--out", str(tmp_path / "a.png")]) == 0
    begin = ["train", "--data", str(data), "--config", recipe, "--device", "cpu"]
    assert main([*begin, "--dry-run"]) == 0
    assert "channel 0 is used" in capsys.readouterr().out
    assert (
        main(
            [*begin, "--out", str(run), "--channels", "1", "--train.max_steps", "1", "--train.epochs", "null"]
        )
        == 0
    )
    assert "several" not in capsys.readouterr().out
    config = read_config(run / "model.safetensors")
    assert (config.image_channels, config.image_page, config.image_depth) == ((1,), None, "camera")
    assert (
        main(["eval", "--weights", str(run / "model.safetensors"), "--data", str(data), "--device", "cpu"])
        == 0
    )
    assert "several" not in capsys.readouterr().out
    source = next((data / "images").iterdir())
    assert main(words(source, run / "model.safetensors", tmp_path / "out")) == 0
    assert capsys.readouterr().err == ""
