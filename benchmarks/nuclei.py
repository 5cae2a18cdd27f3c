"""Measure models on the validation images of nuclei; write the generated part of docs/results.md.

    python benchmarks/nuclei.py measure --data DIR --weights FILE --name ROW [--where KEY=VALUE] [--run RUN]
                                        [--recipe NAME] [--score-threshold T] [--change FIELD=VALUE ...]
    python benchmarks/nuclei.py measure --data DIR --results RUN --name ROW [--where KEY=VALUE]
    python benchmarks/nuclei.py time --data DIR --weights ROW=FILE ROW=FILE
    python benchmarks/nuclei.py page --data DIR --weights ROW=FILE ROW=FILE
    python benchmarks/nuclei.py images --data DIR --weights ROW=FILE --where KEY=VALUE

Figures are stored in docs/nuclei/results.json. `measure` replaces those of one row. `time` runs all models on each
image in turn and compares them with the first. `page` writes the page from the stored figures, with images of the row
that was measured first. `images` writes images of some kind with results of a row, and prints their captions. Close
all other programs while times are measured. RUN is a results folder: of training with
`--run`, of stardist_nuclei.py with `--results`.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from nuclei_images import Scenes, write_ranked
from nuclei_page import shot_lines, write_page

from embedmask.benchmark.memory import Steps, peaks_in_own_process
from embedmask.config import Recipe, model_type_of, override
from embedmask.config.bundled import resolve_recipe
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_image
from embedmask.errors import BadInput
from embedmask.evaluation.coco import IOU_TYPES, CocoEvaluator
from embedmask.evaluation.matching import matching_metrics
from embedmask.evaluation.run import write_results
from embedmask.files import write_json
from embedmask.inference.predictor import Predictor
from embedmask.machine import describe_machine
from embedmask.weights.checkpoint import Checkpoint, load_checkpoint, save
from embedmask.weights.pretrained import OPTIONAL

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = "results.json"
# rounded: 0.5 + 0.05 * step is inexact, and the values are looked up
IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
CURVE_IOUS = (0.5, 0.75, 0.9)
"""IoU thresholds of the stored precision-recall curves."""
MAX_RESULTS = 1000
"""Maximum number of StarDist's results per image in AP, that of the recipe `nuclei`."""
NOT_LEARNED = {
    "model.num_classes", "model.default_score_threshold", "data.image_filter", "train.workers", "train.precision",
    "train.checkpoint_minutes", "train.checkpoint_steps", "train.eval_every", "train.eval_minutes",
}  # fmt: skip
"""Fields that follow the data or the machine, or have no effect on the last weights."""
TRAINING_FACTS = ("steps", "epochs", "images", "core_minutes")
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
    """Return all figures of one model, optionally with changed fields, as a row of the results."""
    if changes:
        with changed(weights, changes) as copy:
            row = measure(
                data, copy, where=where, score_threshold=score_threshold, run=run, recipe=recipe, changes={}
            )
        return {**row, "weights": weights.name, "changes": dict(changes)}  # not the name of the copy
    dataset = CocoInstances.open(data, "val", image_filter=where)
    checkpoint = load_checkpoint(weights)
    threshold = checkpoint.config.score_thresholds(score_threshold)[0]  # nuclei are one class
    name = (
        f"runs/{run.resolve().name}/{weights.name}" if run is not None and weights.is_file() else weights.name
    )
    return {
        "weights": name,
        "changes": {},
        "where": where,
        "model": model_facts(checkpoint),
        "training": None if run is None else {"recipe": recipe, **training_facts(run, recipe)},
        **evaluated(evaluate(weights, dataset), threshold, dataset),
        "memory_mb": memory(weights, dataset, threshold),
        "machine": describe_machine(torch.device("cpu")),
    }


def measure_results(data: Path, run: Path, *, where: str | None) -> Results:
    """Return all figures of the results in a folder of stardist_nuclei.py, as a row of the results."""
    dataset = CocoInstances.open(data, "val", image_filter=where)
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    evaluator = CocoEvaluator(dataset.ground_truth, MAX_RESULTS)
    evaluator.add(json.loads((run / "results.json").read_text(encoding="utf-8")))
    script = f"python benchmarks/stardist_nuclei.py {{}} --data nuclei --where {facts['where']} --out runs/{run.name}"
    return {
        "weights": f"runs/{run.name}",
        "changes": {},
        "where": where,
        "model": {"kind": "StarDist", "backbone": "U-Net", "parameters": facts["parameters"]},
        "training": {"recipe": None, "run": run.name, **{key: facts[key] for key in TRAINING_FACTS}},
        **evaluated(evaluator, facts["score_threshold"], dataset),
        "cpu_ms": facts["cpu_ms"],
        "memory_mb": {"images": facts["peak_mb"]},
        "machine": {**describe_machine(torch.device("cpu")), "tensorflow": facts["tensorflow"]},
        "commands": [
            *(f"{script.format('train')} {options}" for options in facts["options"]),
            script.format("predict"),
        ],
    }


def evaluated(evaluator: CocoEvaluator, threshold: float, dataset: CocoInstances) -> Results:
    """Return the figures of a row that depend on the results alone."""
    curves = evaluator.curves()["segm"]
    return {
        "score_threshold": threshold,
        **figures(evaluator, threshold),
        "precision": {str(iou): [round(p, 4) for p in curves.at(iou).tolist()] for iou in CURVE_IOUS},
        "by_threshold": {
            str(score): matching_metrics(evaluator, score)["matching/mAP"] for score in SCORE_THRESHOLDS
        },
        "modalities": {name: figures(evaluator, threshold, ids) for name, ids in modalities(dataset).items()},
    }


@contextmanager
def changed(weights: Path, changes: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary copy of a model file with a changed config."""
    checkpoint = load_checkpoint(weights)
    checkpoint.model.config = override(checkpoint.config, changes, where="--change")
    with tempfile.TemporaryDirectory() as folder:
        save(checkpoint.model, Path(folder) / "model.safetensors", class_names=checkpoint.class_names)
        yield Path(folder) / "model.safetensors"


def evaluate(weights: Path, dataset: CocoInstances) -> CocoEvaluator:
    """Return an evaluator with the results of a model on a data set."""
    evaluator = CocoEvaluator(dataset.ground_truth, load_checkpoint(weights).config.max_detections)
    with tempfile.TemporaryDirectory() as folder:
        path = write_results(weights, dataset, Path(folder) / "predictions.json")
        evaluator.add(json.loads(path.read_text(encoding="utf-8")))
    return evaluator


def figures(evaluator: CocoEvaluator, threshold: float, image_ids: Sequence[int] | None = None) -> Results:
    """Return COCO's and microscopy's metrics and AP at each IoU from 0.5 to 0.95, of all images or some."""
    ids = evaluator.image_ids(image_ids)
    curves = evaluator.curves(ids)
    records = evaluator.ground_truth.records
    return {
        "images": len(ids),
        "objects": sum(not gt["iscrowd"] for image_id in ids for gt in records[image_id]),
        "metrics": evaluator.compute(ids) | matching_metrics(evaluator, threshold, ids),
        "by_iou": {iou_type: [curves[iou_type].ap(iou) for iou in IOUS] for iou_type in IOU_TYPES},
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
    """Return type, backbone and number of parameters of a network."""
    return {
        "kind": model_type_of(checkpoint.config).title,
        "backbone": checkpoint.config.backbone,
        "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
    }


def training_facts(run: Path, recipe_name: str | None) -> Results:
    """Return the number of steps, epochs and training images from the folder of a training, and its changed fields.

    Raises:
        BadInput: the folder is missing, or has no finished epoch.
    """
    table, recipe = run / "metrics.csv", run / "recipe.yaml"
    if not table.is_file() or not recipe.is_file():
        raise BadInput(
            f"--run {run}: needs metrics.csv and recipe.yaml; give the output folder of a training"
        )
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise BadInput(f"--run {run}: metrics.csv has no epoch yet; wait for the first")
    steps, own = int(rows[-1]["step"]), Recipe.from_yaml(recipe)
    return {
        "run": run.resolve().name,
        "steps": steps,
        "epochs": int(rows[-1]["epoch"]),
        "images": steps * own.train.batch_size,
        "overrides": {} if recipe_name is None else overrides(own, resolve_recipe(recipe_name, {})),
    }


def overrides(own: Recipe, named: Recipe) -> Results:
    """Return the fields `SECTION.FIELD` of a run that differ from those of its recipe, except `NOT_LEARNED`.

    Settings that the recipe leaves open and that initial weights fill in are left out, too.
    """
    before, now = named.to_dict(), own.to_dict()
    changed = {
        f"{section}.{name}": value
        for section, values in now.items()
        for name, value in values.items()
        if value != (old := before[section].get(name)) and not (name in OPTIONAL and old is None)
    }
    # of the two lengths of a training, the command line sets one and clears the other
    unset = {name for name in ("train.epochs", "train.max_steps") if changed.get(name, 0) is None}
    return {name: value for name, value in changed.items() if name not in NOT_LEARNED | unset}


def seconds_per_image(
    predictors: Mapping[str, Predictor],
    thresholds: Mapping[str, float],
    dataset: CocoInstances,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median time of each model, from a decoded image to instances in its frame, seconds per image.

    All models run on an image before the next one. The first image is run once more, as a warm-up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(-1, len(dataset)):
        image = dataset.image(max(number, 0))
        # in turns, so that other load on the machine meets all models alike
        for name, predictor in predictors.items():
            begin = clock()
            predictor.predict_instances([image], score_threshold=thresholds[name])
            took = clock() - begin
            if number >= 0:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory(weights: Path, dataset: CocoInstances, threshold: float) -> dict[str, float]:
    """Return the memory of a separate process `before` the first image, and its peak over all `images`, MB."""
    files = [str(dataset.image_path(index)) for index in range(len(dataset))]
    return peaks_in_own_process(prediction, str(weights), files, threshold, torch.get_num_threads())


def prediction(weights: str, files: list[str], threshold: float, threads: int) -> Steps:
    """Return one step that predicts every image in turn; called in the process that is measured."""
    torch.set_num_threads(threads)
    predictor = Predictor.load(weights, device="cpu")

    def images() -> None:
        for file in files:
            predictor.predict_instances([read_image(Path(file))], score_threshold=threshold)

    return {"images": images}


def compare_times(data: Path, files: Mapping[str, Path], rows: Mapping[str, Results]) -> Results:
    """Measure several models in turn; return seconds per image and their ratios to the first model."""
    first = rows[next(iter(files))]
    dataset = CocoInstances.open(data, "val", image_filter=first["where"])
    predictors = {name: Predictor.load(path, device="cpu") for name, path in files.items()}
    thresholds = {name: rows[name]["score_threshold"] for name in files}
    seconds = seconds_per_image(predictors, thresholds, dataset)
    reference = next(iter(seconds.values()))
    return {
        "seconds": seconds,
        "ratios": {name: value / reference for name, value in seconds.items()},
        "images": len(dataset),
        "machine": describe_machine(torch.device("cpu")),
    }


def page(data: Path, files: Mapping[str, Path], stored: Results, docs: Path) -> None:
    """Write the page, with images of the results of the models in `files`."""
    rows = stored["rows"]
    shown = next(iter(rows))
    if shown not in files:
        raise BadInput(f"--weights: the first row of {RESULTS}, {shown!r}, is missing; its images are shown")
    dataset = CocoInstances.open(data, "val", image_filter=rows[shown]["where"])
    # a generator: the page is checked before the models run
    evaluators = ((name, evaluate(files[name], dataset)) for name in rows if name in files)
    write_page(stored, dataset, evaluators, docs)


def write_images(
    data: Path, files: Mapping[str, Path], where: str, rows: Mapping[str, Results], docs: Path
) -> None:
    """Write images with KEY=VALUE, ground truth beside the results of one model; print the Markdown that shows them."""
    ((name, file),) = files.items()
    dataset = CocoInstances.open(data, "val", image_filter=where)
    scenes = Scenes(name, dataset, evaluate(file, dataset), rows[name]["score_threshold"])
    for shot in write_ranked(scenes, docs / "nuclei", f"{where.partition('=')[2]}_"):
        print("\n".join(shot_lines(shot)))


def named_files(texts: Sequence[str], rows: Mapping[str, Results]) -> dict[str, Path]:
    """Parse arguments ROW=FILE to a dictionary.

    Raises:
        BadInput: an argument has another form, or its row has not been measured.
    """
    files = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals:
            raise BadInput(f"--weights {text}: give ROW=FILE")
        if name not in rows:
            known = ", ".join(rows) or "none"
            raise BadInput(f"--weights {text}: no row {name!r} has been measured, only {known}; measure it")
        if rows[name]["changes"]:
            raise BadInput(
                f"--weights {text}: the row is of a model with changed fields; only its figures are stored"
            )
        files[name] = Path(file)
    return files


def run(args: argparse.Namespace) -> None:
    """Run one action."""
    path = args.docs / "nuclei" / RESULTS
    if args.action == "measure":
        if "=" in args.name:
            raise BadInput(f"--name {args.name}: a name has no equals sign")
        if args.results is not None:
            row = measure_results(args.data, args.results, where=args.where)
        else:
            row = measure(
                args.data, args.weights, where=args.where, score_threshold=args.score_threshold,
                run=args.run, recipe=args.recipe, changes=dict(map(read_change, args.change)),
            )  # fmt: skip
        # read after measuring: other runs may have written rows in the meantime
        stored = read_stored(path)
        stored["rows"][args.name] = row
        write_json(path, stored)
        return
    stored = read_stored(path)
    files = named_files(args.weights, stored["rows"])
    if args.action == "images":
        write_images(args.data, files, args.where, stored["rows"], args.docs)
    elif args.action == "time":
        stored["time"] = compare_times(args.data, files, stored["rows"])
        write_json(path, stored)
    else:
        page(args.data, files, stored, args.docs)


def read_change(text: str) -> tuple[str, Any]:
    """Parse FIELD=VALUE, with the value in YAML."""
    field, _, value = text.partition("=")
    return field, yaml.safe_load(value)


def read_stored(path: Path) -> Results:
    """Read the stored figures."""
    if not path.exists():
        return {"rows": {}, "time": None}
    stored: Results = json.loads(path.read_text(encoding="utf-8"))
    return stored


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("measure", "time", "page", "images"):
        options = actions.add_parser(action)
        options.add_argument("--data", type=Path, required=True, help="folder of nuclei")
        options.add_argument("--docs", type=Path, default=DOCS, help="folder of results.md and nuclei/")
        if action != "measure":
            number = 1 if action == "images" else "+"
            options.add_argument("--weights", nargs=number, required=True, metavar="ROW=FILE")
        if action == "images":
            options.add_argument("--where", required=True, help="KEY=VALUE: images whose record has it")
        if action != "measure":
            continue
        source = options.add_mutually_exclusive_group(required=True)
        source.add_argument("--weights", type=Path, help="a file, or a released model's name")
        source.add_argument("--results", type=Path, help="a folder of stardist_nuclei.py")
        options.add_argument("--name", required=True, help="of the row")
        options.add_argument("--where", help="KEY=VALUE: only images whose record has it")
        options.add_argument("--change", nargs="+", default=[], metavar="FIELD=VALUE", help="of its config")
        options.add_argument("--run", type=Path, help="folder of the training: steps, images")
        options.add_argument("--recipe", help="name of the recipe that it was trained by, for the page")
        options.add_argument(
            "--score-threshold", type=float, help="for matching and times; default: the model's"
        )
    return parser.parse_args(words)


def main() -> None:
    """Run an action; print bad input as one line."""
    try:
        run(parse())
    except BadInput as error:
        raise SystemExit(f"nuclei.py: {error}") from None


if __name__ == "__main__":
    main()
