"""Evaluate a model file on a data set: what `embedmask eval` calls."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from embedmask.config import Precision
from embedmask.data.coco import CocoInstances, Split
from embedmask.data.loader import eval_loader
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.inference.device import choose_device, choose_precision
from embedmask.inference.loop import choose_workers, predict_dataset
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.results import coco_results
from embedmask.weights.checkpoint import load_checkpoint


def evaluate_weights(
    weights: Path,
    data: Path,
    split: Split = "val",
    *,
    where: str | None = None,
    max_detections: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Box, mask and boundary AP of a model file on one split.

    Args:
        weights: written by `embedmask.weights.checkpoint.save`.
        data: COCO-style folder.
        split: which split of it.
        where: `KEY=VALUE`, only the images whose record in the annotation file says so; None: all.
        max_detections: per image, in prediction and in AP (maxDets); None: as the model's configuration says.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: of the convolutions.
        workers: loading processes; None: by the cores.
        progress: show a bar on stderr.

    Returns:
        See `CocoEvaluator.compute`.

    Raises:
        BadInput: the weights or the data cannot be used, or the data has a class that the model lacks.
    """
    checkpoint = load_checkpoint(weights)
    dataset = CocoInstances.open(data, split)
    category_ids = match_classes(checkpoint.class_names, dataset)
    image_ids = None if where is None else images_where(dataset.annotations_file, where)
    items = None
    if image_ids is not None:
        wanted = set(image_ids)
        items = [item for item, image_id in enumerate(dataset.image_ids) if image_id in wanted]
    on = choose_device(device)
    config = checkpoint.config
    limit = config.max_detections if max_detections is None else max_detections
    evaluator = CocoEvaluator(dataset.annotations_file, limit)
    batches = eval_loader(
        dataset,
        EvalTransform(config.image_short_side, config.image_long_side),
        batch_size=1,
        workers=choose_workers(workers),
        wanted=items,
    )
    found = predict_dataset(
        checkpoint.model.to(on),
        Postprocessor.from_config(config, max_detections=limit),
        batches,
        dtype=choose_precision(on, precision),
    )
    for image_id, instances in tqdm(found, total=len(items or dataset), unit="picture", disable=not progress):
        results = coco_results(instances, image_id, category_ids)
        evaluator.add(result for result in results if result["category_id"] in dataset.category_ids)
    return evaluator.compute(image_ids)


def images_where(annotations: Path, condition: str) -> list[int]:
    """Ids of the images whose record says `KEY=VALUE`, for example `modality=fluorescence`.

    Raises:
        BadInput: no equals sign, or no such image.
    """
    key, equals, value = condition.partition("=")
    images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
    chosen = [int(image["id"]) for image in images if str(image.get(key)) == value]
    if not equals or not chosen:
        keys = sorted({name for image in images for name in image})
        raise BadInput(
            f"--where {condition}: no image of {annotations} is so; give KEY=VALUE, keys: {', '.join(keys)}"
        )
    return chosen


def match_classes(class_names: list[str], dataset: CocoInstances) -> list[int]:
    """The data set's category id of each class of the model, by name.

    A class that the data set does not have gets an id that it does not have either.

    Raises:
        BadInput: the data set has a class that the model lacks.
    """
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    for name in ids:
        if name not in class_names:
            known = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
            raise BadInput(
                f"{dataset.annotations_file}: has the class {name!r}, the model knows {known}; "
                "evaluate on a data set of the model's classes"
            )
    absent = max(dataset.category_ids) + 1
    return [ids.get(name, absent) for name in class_names]
