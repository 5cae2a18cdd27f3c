"""Figures of models on the validation images of nuclei; writes the generated part of docs/results.md.

    python benchmarks/nuclei.py measure --data DIR --weights FILE --name ROW [--where KEY=VALUE] [--run RUN]
                                        [--recipe NAME] [--score-threshold T] [--change FIELD=VALUE ...]
    python benchmarks/nuclei.py time --data DIR --weights ROW=FILE ROW=FILE
    python benchmarks/nuclei.py page --data DIR --weights ROW=FILE ROW=FILE

Figures are kept in docs/nuclei/results.json: `measure` replaces those of its row, `time` shows each image to all
models in turn, the first of which the others are compared with, and `page` draws what is kept. The row that was
measured first is the one whose images are shown. Close everything else while times are taken.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from nuclei_page import write_page

from embedmask.benchmark.memory import Steps, peaks_in_own_process
from embedmask.benchmark.timing import machine
from embedmask.config import ModelConfig, Recipe, override
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_image
from embedmask.errors import BadInput
from embedmask.evaluation.coco import IOU_TYPES, CocoEvaluator
from embedmask.evaluation.matching import matching_metrics
from embedmask.evaluation.run import write_results
from embedmask.files import write_json
from embedmask.inference.predictor import Predictor
from embedmask.weights.checkpoint import Checkpoint, load_checkpoint, save

DOCS = Path(__file__).parents[1] / "docs"
KEPT = "results.json"
IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
CURVE_IOUS = (0.5, 0.75, 0.9)
"""Whose curves of precision and recall are kept."""
SCORE_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

Results = dict[str, Any]


def measure(
    data: Path,
    weights: Path,
    *,
    where: str | None,
    score_threshold: float | None,
    run: Path | None,
    recipe: str | None,
    changes: Mapping[str, Any],
) -> Results:
    """All figures of one model, or of one with changed fields: a row."""
    if changes:
        with changed(weights, changes) as copy:
            row = measure(
                data, copy, where=where, score_threshold=score_threshold, run=run, recipe=recipe, changes={}
            )
        return {**row, "weights": weights.name, "changes": dict(changes)}  # the copy's name says nothing
    dataset = CocoInstances.open(data, "val", where=where)
    checkpoint = load_checkpoint(weights)
    threshold = checkpoint.config.decision(score_threshold)[0]  # nuclei are one class
    evaluator = evaluate(weights, dataset)
    curves = evaluator.curves()["segm"]
    name = (
        f"runs/{run.resolve().name}/{weights.name}" if run is not None and weights.is_file() else weights.name
    )
    return {
        "weights": name,
        "changes": {},
        "where": where,
        "score_threshold": threshold,
        "model": model_facts(checkpoint),
        "training": None if run is None else {"recipe": recipe, **training_facts(run)},
        **figures(evaluator, threshold),
        "precision": {str(iou): [round(p, 4) for p in curves.at(iou).tolist()] for iou in CURVE_IOUS},
        "by_threshold": {
            str(score): matching_metrics(evaluator, score)["matching/mAP"] for score in SCORE_THRESHOLDS
        },
        "modalities": {name: figures(evaluator, threshold, ids) for name, ids in modalities(dataset).items()},
        "memory_mb": memory(weights, dataset, threshold),
        "machine": machine(torch.device("cpu")),
    }


@contextmanager
def changed(weights: Path, changes: Mapping[str, Any]) -> Iterator[Path]:
    """A copy of a model file whose config says something else; it is there as long as the context."""
    checkpoint = load_checkpoint(weights)
    checkpoint.model.config = override(checkpoint.config, changes, where="--change")
    with tempfile.TemporaryDirectory() as folder:
        save(checkpoint.model, Path(folder) / "model.safetensors", class_names=checkpoint.class_names)
        yield Path(folder) / "model.safetensors"


def evaluate(weights: Path, dataset: CocoInstances) -> CocoEvaluator:
    """An evaluator that holds what a model finds in a data set."""
    evaluator = CocoEvaluator(dataset.ground_truth, load_checkpoint(weights).config.max_detections)
    with tempfile.TemporaryDirectory() as folder:
        path = write_results(weights, dataset, Path(folder) / "found.json")
        evaluator.add(json.loads(path.read_text(encoding="utf-8")))
    return evaluator


def figures(evaluator: CocoEvaluator, threshold: float, image_ids: Sequence[int] | None = None) -> Results:
    """COCO's and microscopy's figures, and AP at each IoU from 0.5 to 0.95, of all images or some."""
    ids = evaluator.image_ids(image_ids)
    curves = evaluator.curves(ids)
    truths = evaluator.ground_truth_by_image(ids)
    return {
        "images": len(ids),
        "objects": sum(not truth["iscrowd"] for found in truths.values() for truth in found),
        "metrics": evaluator.compute(ids) | matching_metrics(evaluator, threshold, ids),
        "by_iou": {kind: [curves[kind].ap(iou) for iou in IOUS] for kind in IOU_TYPES},
    }


def modalities(dataset: CocoInstances) -> dict[str, list[int]]:
    """Return the ids of the images of each modality, where the annotation file names it."""
    groups: dict[str, list[int]] = {}
    if dataset.annotations_file.suffix == ".json":
        for image in json.loads(dataset.annotations_file.read_text(encoding="utf-8"))["images"]:
            if "modality" in image and image["id"] in dataset.image_ids:
                groups.setdefault(image["modality"], []).append(image["id"])
    return groups


def model_facts(checkpoint: Checkpoint) -> Results:
    """What kind of network it is, and how large."""
    return {
        "kind": "EmbedMask" if isinstance(checkpoint.config, ModelConfig) else "Mask R-CNN",
        "backbone": checkpoint.config.backbone,
        "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
    }


def training_facts(run: Path) -> Results:
    """What the folder of a training tells: its steps, and the images that they saw.

    Raises:
        BadInput: no such folder, or it has no finished epoch.
    """
    table, recipe = run / "metrics.csv", run / "recipe.yaml"
    if not table.is_file() or not recipe.is_file():
        raise BadInput(f"--run {run}: needs metrics.csv and recipe.yaml; give a folder that train has left")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise BadInput(f"--run {run}: metrics.csv has no epoch yet; wait for the first")
    steps = int(rows[-1]["step"])
    return {
        "run": run.resolve().name,
        "steps": steps,
        "epochs": int(rows[-1]["epoch"]),
        "images": steps * Recipe.from_yaml(recipe).train.batch_size,
    }


def seconds_an_image(
    predictors: Mapping[str, Predictor], thresholds: Mapping[str, float], dataset: CocoInstances
) -> dict[str, float]:
    """Median over the images, from a decoded image to finished instances in its frame.

    Every image is shown to all models before the next; the first, to warm up, once more.
    """
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(-1, len(dataset)):
        image = dataset.image(max(number, 0))
        for name, predictor in predictors.items():
            begin = time.perf_counter()
            predictor.find([image], score_threshold=thresholds[name])
            took = time.perf_counter() - begin
            if number >= 0:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory(weights: Path, dataset: CocoInstances, threshold: float) -> dict[str, float]:
    """MB that a process of its own holds `before` the first image, and at most until the last (`images`)."""
    files = [str(dataset.image_path(index)) for index in range(len(dataset))]
    return peaks_in_own_process(prediction, str(weights), files, threshold, torch.get_num_threads())


def prediction(weights: str, files: list[str], threshold: float, threads: int) -> Steps:
    """Every image in turn, as one step."""
    torch.set_num_threads(threads)
    predictor = Predictor.load(weights, device="cpu")

    def images() -> None:
        for file in files:
            predictor.find([read_image(Path(file))], score_threshold=threshold)

    return {"images": images}


def compare_times(data: Path, files: Mapping[str, Path], rows: Mapping[str, Results]) -> Results:
    """Seconds an image of several models, measured in turns, and how many times the first one's they are."""
    first = rows[next(iter(files))]
    dataset = CocoInstances.open(data, "val", where=first["where"])
    predictors = {name: Predictor.load(path, device="cpu") for name, path in files.items()}
    thresholds = {name: rows[name]["score_threshold"] for name in files}
    seconds = seconds_an_image(predictors, thresholds, dataset)
    unit = next(iter(seconds.values()))
    return {
        "seconds": seconds,
        "ratios": {name: value / unit for name, value in seconds.items()},
        "images": len(dataset),
        "machine": machine(torch.device("cpu")),
    }


def page(data: Path, files: Mapping[str, Path], kept: Results, docs: Path) -> None:
    """Everything on the page, the images of those models whose files are given."""
    rows = kept["rows"]
    shown = next(iter(rows))
    if shown not in files:
        raise BadInput(f"--weights: the first row of {KEPT}, {shown!r}, is missing; its images are shown")
    dataset = CocoInstances.open(data, "val", where=rows[shown]["where"])
    found = ((name, evaluate(files[name], dataset)) for name in rows if name in files)
    write_page(kept, dataset, found, docs)


def named_files(given: Sequence[str], rows: Mapping[str, Results]) -> dict[str, Path]:
    """ROW=FILE -> FILE by ROW.

    Raises:
        BadInput: not of that form, or the row has not been measured.
    """
    files = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals:
            raise BadInput(f"--weights {text}: give ROW=FILE")
        if name not in rows:
            known = ", ".join(rows) or "none"
            raise BadInput(f"--weights {text}: no row {name!r} has been measured, only {known}; measure it")
        if rows[name]["changes"]:
            raise BadInput(
                f"--weights {text}: the row is of a model with changed fields; only its figures are kept"
            )
        files[name] = Path(file)
    return files


def run(given: argparse.Namespace) -> None:
    """One command."""
    path = given.docs / "nuclei" / KEPT
    if given.action == "measure":
        if "=" in given.name:
            raise BadInput(f"--name {given.name}: a name has no equals sign")
        row = measure(
            given.data, given.weights, where=given.where, score_threshold=given.score_threshold,
            run=given.run, recipe=given.recipe, changes=dict(map(read_change, given.change)),
        )  # fmt: skip
        kept = read_kept(path)  # not before: measuring takes minutes, and others may have been written
        kept["rows"][given.name] = row
        write_json(path, kept)
        return
    kept = read_kept(path)
    files = named_files(given.weights, kept["rows"])
    if given.action == "time":
        kept["time"] = compare_times(given.data, files, kept["rows"])
        write_json(path, kept)
    else:
        page(given.data, files, kept, given.docs)


def read_change(text: str) -> tuple[str, Any]:
    """FIELD=VALUE, the value as YAML has it."""
    field, _, value = text.partition("=")
    return field, yaml.safe_load(value)


def read_kept(path: Path) -> Results:
    """What has been measured so far."""
    if not path.exists():
        return {"rows": {}, "time": None}
    kept: Results = json.loads(path.read_text(encoding="utf-8"))
    return kept


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("measure", "time", "page"):
        options = actions.add_parser(action)
        options.add_argument("--data", type=Path, required=True, help="folder of nuclei")
        options.add_argument("--docs", type=Path, default=DOCS, help="folder of results.md and nuclei/")
        if action != "measure":
            options.add_argument("--weights", nargs="+", required=True, metavar="ROW=FILE")
            continue
        options.add_argument("--weights", type=Path, required=True, help="a file, or a released model's name")
        options.add_argument("--name", required=True, help="of the row")
        options.add_argument("--where", help="KEY=VALUE: only the images whose record says so")
        options.add_argument("--change", nargs="+", default=[], metavar="FIELD=VALUE", help="of its config")
        options.add_argument("--run", type=Path, help="folder of the training: steps, images")
        options.add_argument("--recipe", help="name of the recipe that it was trained by, for the page")
        options.add_argument(
            "--score-threshold", type=float, help="for matching and times; default: the model's"
        )
    return parser.parse_args(words)


def main() -> None:
    """Run, or say in one line why not."""
    try:
        run(parse())
    except BadInput as error:
        raise SystemExit(f"nuclei.py: {error}") from None


if __name__ == "__main__":
    main()
