"""The command line as a user types it: what it writes, what it says, and its exit codes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import fails, save_eager
from golden_files import official_shapes
from PIL import Image
from tiny_run import TINY

from embedmask.cli import main
from embedmask.cli.commands import metrics_table
from embedmask.cli.entry import one_line
from embedmask.cli.recipes import recipe_names, resolve_recipe
from embedmask.config import MaskRCNNConfig, Recipe
from embedmask.data.shapes import make_shapes
from embedmask.errors import BadInput
from embedmask.model.detector import Detector
from embedmask.weights.checkpoint import load_checkpoint

METRICS = ("AP", "AP50", "AP75", "AP90", "AR", "AP_small", "AP_medium", "AP_large")
RECIPE = {
    **TINY,
    "train": {"batch_size": 4, "max_steps": None, "epochs": 1, "pretrained": False, "workers": 0},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert main(["data", "shapes", str(folder), "--train", "8", "--val", "3", "--size", "64"]) == 0
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


@pytest.fixture(scope="module")
def run(shapes: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--config", recipe, "--data", str(shapes), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def eager(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that finds something in every picture."""
    return save_eager(shapes, tmp_path_factory.mktemp("weights") / "eager.safetensors")


class TestHelp:
    @pytest.mark.parametrize(
        "command",
        ["", "train", "eval", "predict", "convert", "data", "data shapes", "data check", "data show"],
    )
    def test_every_command_explains_itself(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*command.split(), "--help"]) == 0
        assert "usage: embedmask" in capsys.readouterr().out

    def test_options_are_spelled_with_hyphens(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["predict", "--help"])
        text = capsys.readouterr().out
        assert "--score-threshold" in text
        assert "--score_threshold" not in text

    def test_train_names_every_field(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["train", "--help"])
        words = capsys.readouterr().out.replace(",", " ").replace(".", " ").split()
        assert {"margin", "short_sides", "warmup_steps", "--model"} <= set(words)

    def test_help_needs_no_torch(self) -> None:
        code = "import sys; from embedmask.cli import main; main(['train', '--help'])"
        code += "; sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_no_words_show_the_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        assert "predict" in capsys.readouterr().out


class TestArguments:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["predikt"], "predikt"),
            (["data"], "shapes, check, show"),
            (["eval", "--weights", "x"], "missing: data"),
            (["predict", "--weights", "x", "--out", "y"], "missing: source"),
            (["eval", "--weights", "x", "--data", "y", "--max-detections", "many"], "--max-detections"),
            (["eval", "--weights", "x", "--data", "y", "--precision", "half"], "bfloat16"),
            (["data", "shapes", "x", "--size", "wide"], "--size"),
            (["train", "--data", "x", "--out", "y", "--speed", "9"], "--speed"),
        ],
    )
    def test_bad_words_are_named(
        self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert said in fails(capsys, *words)

    def test_unknown_device(self, eager: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = fails(capsys, "eval", "--weights", eager, "--data", shapes, "--device", "abacus")
        assert "abacus" in line

    def test_other_errors_are_one_line_and_exit_1(
        self, eager: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("first line\nsecond line")

        monkeypatch.setattr("embedmask.evaluation.run.evaluate_weights", broken)
        words = ["eval", "--weights", str(eager), "--data", str(shapes)]
        assert main(words) == 1
        assert (
            capsys.readouterr().err
            == "embedmask: RuntimeError: first line second line (--debug shows where)\n"
        )
        assert main([*words, "--debug"]) == 1
        assert "Traceback" in capsys.readouterr().err

    def test_message_of_a_loading_process_loses_its_traceback(self) -> None:
        wrapped = "Caught in worker 0.\nTraceback:\n  File x\nembedmask.errors.BadInput: a.jpg: cut short\n"
        assert one_line(BadInput(wrapped)) == "a.jpg: cut short"


class TestRecipes:
    def test_overrides_reach_every_section(self, recipe: str) -> None:
        changes = {"model": {"embed_dim": 4}, "data": {"short_sides": [64, 96]}, "train": {"lr": 1}}
        built = resolve_recipe(recipe, changes)
        assert (built.model.embed_dim, built.data.short_sides, built.train.lr) == (4, (64, 96), 1.0)
        assert built.model.channels == 32

    def test_what_is_not_overridden_stays(self, recipe: str) -> None:
        assert resolve_recipe(recipe, {}) == Recipe.from_yaml(recipe)
        assert resolve_recipe(recipe, {"train": {"lr": 1}}).data.short_sides == ()

    def test_a_recipe_of_the_baseline_takes_overrides(self) -> None:
        built = resolve_recipe("maskrcnn/r50_1x", {"model": {"anchor_sizes": [8, 16, 32, 64, 128]}})
        assert built.model == MaskRCNNConfig(anchor_sizes=(8, 16, 32, 64, 128))

    def test_the_kind_of_a_model_is_the_recipes(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        words = (
            "--config",
            "shapes",
            "--model.kind",
            "maskrcnn",
            "--data",
            shapes,
            "--out",
            tmp_path / "out",
        )
        assert "write model: maskrcnn" in fails(capsys, "train", *words)

    def test_one_length_replaces_the_other(self, recipe: str) -> None:
        built = resolve_recipe(recipe, {"train": {"max_steps": 7}})
        assert (built.train.max_steps, built.train.epochs) == (7, None)

    def test_every_shipped_recipe_can_be_named(self) -> None:
        assert "nuclei" in recipe_names()
        for name in recipe_names():
            assert resolve_recipe(name, {}).train.batch_size >= 1

    def test_unknown_name_shows_the_nearest(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        line = fails(capsys, "train", "--config", "nucleii", "--data", shapes, "--out", tmp_path / "out")
        assert "did you mean 'nuclei'" in line

    @pytest.mark.parametrize(
        ("option", "nearest"),
        [
            ("--model.embed_dims", "embed_dim"),
            ("--train.learning", "warmup"),
            ("--augment.short_side", "short_sides"),
        ],
    )
    def test_unknown_field_shows_the_nearest(
        self, *, option: str, nearest: str, shapes: Path, recipe: str, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        line = fails(capsys, "train", "--config", recipe, "--data", shapes, "--out", out, option, "3")
        assert option.partition(".")[2] in line
        if option != "--train.learning":
            assert f"did you mean '{nearest}'" in line
        assert not out.exists()

    def test_unknown_key_in_a_file_shows_the_nearest(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "r.yaml").write_text("model: {embed_dimm: 8}")
        line = fails(
            capsys, "train", "--config", tmp_path / "r.yaml", "--data", shapes, "--out", tmp_path / "out"
        )
        assert "did you mean 'embed_dim'" in line
        assert str(tmp_path / "r.yaml") in line

    def test_impossible_value_is_told(self, shapes: Path, recipe: str, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out"
        words = ("train", "--config", recipe, "--data", shapes, "--out", out)
        assert "margin" in fails(capsys, *words, "--model.margin", "wide")
        assert "lr" in fails(capsys, *words, "--train.lr", "fast")
        assert not out.exists()

    def test_a_recipe_is_needed(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        assert "--config is missing" in fails(capsys, "train", "--data", shapes, "--out", tmp_path / "out")


class TestTrain:
    def test_says_where_the_weights_are(self, run: Path) -> None:
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
        kept = yaml.safe_load((out / "recipe.yaml").read_text())
        assert kept["model"]["embed_dim"] == 4
        assert (kept["train"]["max_steps"], kept["train"]["epochs"]) == (1, None)
        assert (kept["train"]["lr"], kept["train"]["precision"]) == (0.001, "float32")
        assert json.loads((out / "metrics.json").read_text())["steps"] == 1

    def test_resume_needs_no_recipe(self, run: Path, shapes: Path, capsys: Any) -> None:
        steps = json.loads((run / "metrics.json").read_text())["steps"]
        assert (
            main(["train", "--resume", "--data", str(shapes), "--out", str(run), "--train.epochs", "2"]) == 0
        )
        assert json.loads((run / "metrics.json").read_text())["steps"] == 2 * steps
        assert "epoch 2" in capsys.readouterr().out

    def test_a_run_is_not_overwritten(self, run: Path, shapes: Path, recipe: str, capsys: Any) -> None:
        assert "--resume" in fails(capsys, "train", "--config", recipe, "--data", shapes, "--out", run)


class TestEval:
    def test_json_holds_the_three_aps(self, run: Path, shapes: Path, tmp_path: Path, capsys: Any) -> None:
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

    def test_matching_where_asked_or_with_one_class(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "metrics.json"
        words = ["eval", "--weights", str(eager), "--data", str(shapes), "--json", str(out), "--matching"]
        assert main([*words, "--score-threshold", "0.9"]) == 0
        assert "matching_pooled" in capsys.readouterr().out
        high = json.loads(out.read_text())
        assert {"matching/mAP", "matching/AP50", "matching/AP90", "matching_pooled/AP50"} <= set(high)
        assert main([*words, "--score-threshold", "0"]) == 0
        assert json.loads(out.read_text())["matching_pooled/recall50"] >= high["matching_pooled/recall50"]
        assert "score-threshold" in fails(capsys, *words[:5], "--score-threshold", "1.5")

        def merge(annotations: dict[str, Any]) -> None:
            annotations["categories"] = annotations["categories"][:1]
            for entry in annotations["annotations"]:
                entry["category_id"] = annotations["categories"][0]["id"]

        data = copy_with(shapes, tmp_path, merge)
        assert main(["eval", "--weights", str(eager), "--data", str(data), "--json", str(out)]) == 0
        assert "matching/AP50" in json.loads(out.read_text())

    def test_report_is_one_page(self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        folder = tmp_path / "report"
        words = ["eval", "--weights", str(eager), "--data", str(shapes), "--report", str(folder)]
        assert main(words) == 0
        assert [file.name for file in folder.iterdir()] == ["index.html"]
        assert str(folder / "index.html") in capsys.readouterr().out
        assert "eager.safetensors on val of shapes" in (folder / "index.html").read_text()

    def test_degenerate_objects_may_be_left_out(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        data = copy_with(shapes, tmp_path, CHANGES["zero-area box"])
        words = ["eval", "--weights", str(eager), "--data", str(data)]
        assert "drop" in fails(capsys, *words)
        assert main([*words, "--degenerate", "drop"]) == 0
        assert "1 degenerate" in capsys.readouterr().out.splitlines()[0]

    def test_pictures_of_another_size(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """EmbedMask-600 of Table 1 is a trained model, tested so."""
        seen: list[tuple[int, ...]] = []
        preprocess = Detector.preprocess

        def watched(self: Detector, images: Any) -> Any:
            seen.extend(tuple(image.shape[1:]) for image in images)
            return preprocess(self, images)

        monkeypatch.setattr(Detector, "preprocess", watched)
        words = ["eval", "--weights", str(eager), "--data", str(shapes)]
        assert main([*words, "--image-short-side", "40"]) == 0
        assert seen
        assert {min(size) for size in seen} == {40}
        assert "--image-short-side" in fails(capsys, *words, "--image-short-side", "0")

    def test_without_annotations_the_server_s_file_is_written(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        """COCO's test-dev: images and categories alone."""
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
        assert main([*words, "--json", str(out), "--max-detections", "5"]) == 0
        said = capsys.readouterr().out
        assert said.count("\n") == 1
        assert "no AP" in said
        (path,) = out.iterdir()
        assert path.name == "detections_test-dev2017_eager_results.json"
        assert str(path) in said
        results = json.loads(path.read_text())
        images = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
        assert 0 < len(results) <= 5 * len(images)
        for result in results:
            assert set(result) == {"image_id", "category_id", "bbox", "score", "segmentation"}
            assert result["segmentation"]["size"] == images[result["image_id"]]
            assert isinstance(result["segmentation"]["counts"], str)
            assert result["category_id"] in {category["id"] for category in content["categories"]}
        assert main([*words, "--json", str(tmp_path / "named.json")]) == 0
        assert json.loads((tmp_path / "named.json").read_text())

    def test_agrees_with_the_evaluation_of_training(self, run: Path, shapes: Path, tmp_path: Path) -> None:
        out = tmp_path / "metrics.json"
        main(["eval", "--weights", str(run / "model.safetensors"), "--data", str(shapes), "--json", str(out)])
        trained = json.loads((run / "metrics.json").read_text())
        assert json.loads(out.read_text())["segm/AP"] == pytest.approx(trained["segm/AP"], abs=1e-6)

    def test_only_some_images(self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        data = copy_with(shapes, tmp_path, lambda a: a["images"][0].update(modality="night"))
        whole, part = tmp_path / "whole.json", tmp_path / "part.json"
        words = ["eval", "--weights", str(eager), "--data", str(data), "--json"]
        assert main([*words, str(whole)]) == 0
        assert main([*words, str(part), "--where", "modality=night"]) == 0
        assert json.loads(whole.read_text()) != json.loads(part.read_text())
        assert "modality" in fails(
            capsys, "eval", "--weights", eager, "--data", data, "--where", "modality=dusk"
        )

    def test_a_class_that_the_model_lacks(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        data = copy_with(shapes, tmp_path, lambda a: a["categories"][0].update(name="dragon"))
        assert "dragon" in fails(capsys, "eval", "--weights", eager, "--data", data)

    def test_table_has_a_head_for_each_set_of_columns(self) -> None:
        metrics = {"bbox/AP": 0.5, "segm/AP": 0.25, "matching/mAP": float("nan"), "classes": {}}
        assert [line.split() for line in metrics_table(metrics).splitlines()] == [
            ["AP"],
            ["bbox", "0.5000"],
            ["segm", "0.2500"],
            ["mAP"],
            ["matching", "nan"],
        ]


class TestConvert:
    def test_a_file_that_wants_to_execute_code_is_refused(self, tmp_path: Path, capsys: Any) -> None:
        trap = tmp_path / "sprung"

        class Trap:
            def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
                return Path.touch, (trap,)  # type: ignore[return-value]

        (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Trap()}))
        torch.save({"model": Trap()}, tmp_path / "evil2.pth")
        for name in ("evil.pth", "evil2.pth"):
            out = tmp_path / "o.safetensors"
            assert name in fails(capsys, "convert", tmp_path / name, "--out", out)
            assert not out.exists()
            assert not trap.exists()

    def test_a_file_of_the_authors(self, tmp_path: Path) -> None:
        """As they save it: under "model", each name with a prefix."""
        official = {
            f"module.{name}": torch.zeros(shape) for name, shape in official_shapes("v3", "r50").items()
        }
        torch.save({"model": official, "iteration": 90000}, tmp_path / "R50.pth")
        assert main(["convert", str(tmp_path / "R50.pth"), "--out", str(tmp_path / "o.safetensors")]) == 0
        checkpoint = load_checkpoint(tmp_path / "o.safetensors")
        assert checkpoint.config.coordinates
        assert len(checkpoint.class_names) == 80

    def test_not_a_file_of_the_authors(self, tmp_path: Path, capsys: Any) -> None:
        torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
        out = tmp_path / "o.safetensors"
        fails(capsys, "convert", tmp_path / "other.pth", "--out", out)
        assert "safetensors" in fails(capsys, "convert", tmp_path / "other.pth", "--out", tmp_path / "o.pth")
        assert "no such" in fails(capsys, "convert", tmp_path / "absent.pth", "--out", out)
        assert not out.exists()


class TestData:
    def test_show_draws_a_sheet(self, shapes: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        assert main(["data", "show", str(shapes), "--count", "5", "--out", str(out)]) == 0
        assert min(Image.open(out).size) > 100

    def test_show_draws_what_a_recipe_makes_of_it(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        def sheet(*options: str) -> Image.Image:
            arguments = ["--count", "2", "--out", str(tmp_path / "sheet.png"), *options]
            assert main(["data", "show", str(shapes), *arguments]) == 0
            return Image.open(tmp_path / "sheet.png").convert("RGB")

        plain = sheet()
        cropped = sheet("--config", "shapes", "--augment.crop_size", "32", "--augment.copy_paste", "1")
        assert cropped.size == (32 + 4 + 32, 32)
        assert plain.height > 32
        again = sheet("--config", "shapes", "--augment.crop_size", "32", "--augment.copy_paste", "1")
        assert again.tobytes() == cropped.tobytes()
        show = ("data", "show", shapes, "--out", tmp_path / "s.png")
        assert "--config" in fails(capsys, *show, "--augment.crop_size", "64")
        assert "copy_paste" in fails(capsys, *show, "--config", "shapes", "--augment.copy_past", "1")

    def test_shapes_does_not_overwrite(self, shapes: Path, capsys: Any) -> None:
        before = sorted(path.name for path in shapes.rglob("*"))
        assert str(shapes) in fails(capsys, "data", "shapes", shapes)
        assert before == sorted(path.name for path in shapes.rglob("*"))


def copy_with(shapes: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The data set with its annotations changed."""
    data = folder / "data"
    data.mkdir()
    (data / "images").symlink_to(shapes / "images", target_is_directory=True)
    for split in ("train", "val"):
        content = json.loads((shapes / f"{split}.json").read_text())
        change(content)
        (data / f"{split}.json").write_text(json.dumps(content))
    return data


def rle(height: int, width: int) -> dict[str, Any]:
    return {"size": [height, width], "counts": [0, height * width]}


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "missing image": lambda a: a["annotations"][0].update(image_id=987654),
    "missing category": lambda a: a["annotations"][0].update(category_id=987654),
    "polygon of 2 points": lambda a: a["annotations"][0].update(segmentation=[[1, 1, 5, 5]]),
    "zero-area box": lambda a: a["annotations"][0].update(bbox=[3, 3, 0, 8]),
    "mask of another size": lambda a: a["annotations"][0].update(segmentation=rle(7, 9)),
    "missing picture": lambda a: a["images"][0].update(file_name="absent.jpg"),
    "no annotations": lambda a: a.pop("annotations"),
}


class TestBadData:
    @pytest.mark.parametrize("case", CHANGES)
    def test_train_names_it_and_writes_nothing(
        self, case: str, shapes: Path, recipe: str, tmp_path: Path, capsys: Any
    ) -> None:
        data, out = copy_with(shapes, tmp_path, CHANGES[case]), tmp_path / "out"
        line = fails(capsys, "train", "--config", recipe, "--data", data, "--out", out)
        assert str(data) in line
        assert not out.exists()

    @pytest.mark.parametrize("case", CHANGES)
    def test_eval_names_it_and_writes_nothing(
        self, case: str, shapes: Path, eager: Path, tmp_path: Path, capsys: Any
    ) -> None:
        data, out = copy_with(shapes, tmp_path, CHANGES[case]), tmp_path / "m.json"
        assert str(data) in fails(capsys, "eval", "--weights", eager, "--data", data, "--json", out)
        assert not out.exists()

    def test_missing_folder_and_split(self, shapes: Path, eager: Path, tmp_path: Path, capsys: Any) -> None:
        assert "absent" in fails(capsys, "eval", "--weights", eager, "--data", tmp_path / "absent")
        assert "test" in fails(capsys, "eval", "--weights", eager, "--data", shapes, "--split", "test")
        assert "absent" in fails(capsys, "data", "show", tmp_path / "absent", "--out", tmp_path / "s.png")

    def test_annotations_that_are_not_json(
        self, shapes: Path, eager: Path, tmp_path: Path, capsys: Any
    ) -> None:
        data = copy_with(shapes, tmp_path, lambda a: None)
        (data / "val.json").write_text('{"images": [')
        assert "val.json" in fails(capsys, "eval", "--weights", eager, "--data", data)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_truncated_picture_stops_training_cleanly(
        self, workers: int, recipe: str, tmp_path: Path, capsys: Any
    ) -> None:
        data, out = tmp_path / "data", tmp_path / "out"
        make_shapes(data, train=4, val=1, size=64, seed=1)
        name = json.loads((data / "train.json").read_text())["images"][0]["file_name"]
        path = data / "images" / name
        path.write_bytes(path.read_bytes()[:400])
        words = ("train", "--config", recipe, "--data", data, "--out", out, "--train.workers", workers)
        assert Path(name).name in fails(capsys, *words, started=True)
        assert not out.exists()


class TestBadWeights:
    def test_cut_in_half(self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        half = tmp_path / "half.safetensors"
        half.write_bytes(eager.read_bytes()[: eager.stat().st_size // 2])
        assert "half.safetensors" in fails(capsys, "eval", "--weights", half, "--data", shapes)
        out = tmp_path / "out"
        assert "half.safetensors" in fails(
            capsys, "predict", shapes / "images", "--weights", half, "--out", out
        )
        assert not out.exists()

    def test_absent_or_another_kind(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        assert "absent" in fails(capsys, "eval", "--weights", tmp_path / "absent", "--data", shapes)
        torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "w.pth")
        assert "convert" in fails(capsys, "eval", "--weights", tmp_path / "w.pth", "--data", shapes)
