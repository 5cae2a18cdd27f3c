"""Prediction as a stage of Ray Data, for more images than one machine can predict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedmask.errors import BadInput
from embedmask.inference.predictor import Predictor
from embedmask.inference.results import coco_results

if TYPE_CHECKING:
    from ray.data import Dataset  # type: ignore[import-untyped, unused-ignore]

Batch = dict[str, npt.NDArray[Any]]


class PredictBatch:
    """A loaded model that adds results to batches of rows, for `Dataset.map_batches`."""

    def __init__(
        self,
        weights: str | Path,
        *,
        column: str = "path",
        load: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model; the arguments are those of `predict_dataset`."""
        self.predictor = Predictor.load(weights, **(load or {}))
        self.column, self.options = column, dict(options or {})

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with four more columns.

        Args:
            batch: N rows whose `column` holds paths of image files, or their bytes.

        Returns:
            The N rows with `height` and `width` of the image, px, `results`, its instances in COCO's result format as
            JSON, without `image_id`, in the image's own frame, and `error`, empty for a readable image; an unreadable
            one has size 0 and no results.
        """
        rows = []
        stream = self.predictor.predict_stream(batch[self.column].tolist(), skip_broken=True, **self.options)
        for result in stream:
            if result.image is None or result.instances is None:
                rows.append((0, 0, "[]", str(result.error)))
                continue
            results = coco_results(result.instances, 0, range(1, len(self.predictor.class_names) + 1))
            for row in results:
                del row["image_id"]
            rows.append((*result.image.shape[1:], json.dumps(results), ""))
        columns = zip(("height", "width", "results", "error"), zip(*rows, strict=True), strict=True)
        return {**batch, **{name: np.array(values) for name, values in columns}}


def predict_dataset(
    dataset: Dataset,
    weights: str | Path,
    *,
    workers: int,
    column: str = "path",
    batch_size: int = 16,
    num_cpus: float = 1,
    num_gpus: float = 0,
    load: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Add the predictions of a model to a Ray data set, with one copy of the model per worker.

    Nothing runs before the data set is consumed, e.g. by `write_parquet`. Batches of a lost worker are predicted again
    by its replacement. On a CPU, results do not depend on `workers` and `batch_size`.

    Args:
        dataset: rows with the images.
        weights: as in `Predictor.load`; a file must be readable from each machine.
        workers: number of worker processes in the cluster.
        column: column with paths or bytes of image files; paths must be readable from each machine.
        batch_size: rows per call, after which results are passed on.
        num_cpus, num_gpus: CPU cores and GPUs per worker.
        load: arguments of `Predictor.load`, such as `engine`.
        options: arguments of `Predictor.predict_stream`, such as `score_threshold` or `tile`.

    Returns:
        The rows with the columns that `PredictBatch` adds.

    Raises:
        BadInput: the data set has no such column.
    """
    names = dataset.columns()
    if column not in names:
        raise BadInput(f"the data set has no column {column!r}; it has {', '.join(names)}")
    return dataset.map_batches(
        PredictBatch,
        fn_constructor_args=(weights,),
        fn_constructor_kwargs={"column": column, "load": load, "options": options},
        batch_size=batch_size,
        concurrency=workers,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_restarts=-1,
        max_task_retries=-1,
    )
