"""Evaluate a model file on a data set: what `embedmask eval` calls."""

from __future__ import annotations

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
    where = choose_device(device)
    config = checkpoint.config
    limit = config.max_detections if max_detections is None else max_detections
    evaluator = CocoEvaluator(dataset.annotations_file, limit)
    batches = eval_loader(
        dataset,
        EvalTransform(config.image_short_side, config.image_long_side),
        batch_size=1,
        workers=choose_workers(workers),
    )
    found = predict_dataset(
        checkpoint.model.to(where),
        Postprocessor.from_config(config, max_detections=limit),
        batches,
        dtype=choose_precision(where, precision),
    )
    for image_id, instances in tqdm(found, total=len(dataset), unit="picture", disable=not progress):
        results = coco_results(instances, image_id, category_ids)
        evaluator.add(result for result in results if result["category_id"] in dataset.category_ids)
    return evaluator.compute()


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
