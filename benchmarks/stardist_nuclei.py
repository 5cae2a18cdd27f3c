"""Train StarDist on nuclei and predict val, for a row of docs/results.md; in a separate environment.

    pip install stardist==0.9.2 tensorflow-cpu==2.21.0 pycocotools
    python benchmarks/stardist_nuclei.py train --data DIR --where KEY=VALUE --epochs N [--learning-rate R] --out RUN
    python benchmarks/stardist_nuclei.py predict --data DIR --where KEY=VALUE --out RUN
    python benchmarks/stardist_nuclei.py large --image FILE --out RUN

The network, its solver and its patches are StarDist's defaults (32 rays, 100 steps of 4 patches of 256 px per epoch);
grid, normalization and augmentation are those of its training example. With fewer than its 400 epochs, the learning
rate falls after proportionally fewer epochs without progress. `train` writes the weights of the lowest loss on val, and
continues a run that was interrupted, up to N epochs in all, with another learning rate if one is given; `predict`
optimizes the thresholds on val, as StarDist does, and writes COCO results to `results.json` and time, memory and other
facts to `facts.json`, for `python benchmarks/nuclei.py measure --results RUN`; `large` adds the time of one large
image. All use one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import numpy as np
import stardist
import tensorflow as tf
from csbdeep.utils import normalize
from PIL import Image
from pycocotools import mask as mask_api
from stardist.models import Config2D, StarDist2D

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

RANDOM = np.random.default_rng(0)
DEFAULT_EPOCHS, DEFAULT_PATIENCE = 400, 40
GRID = (2, 2)
"""Pixels of the image per pixel of the prediction, as in the training example; the default of the package is 1."""
PROGRESS, FACTS = "progress.json", "facts.json"
MIN_SCORE = 0.05
"""Lower bound of the scores of COCO results; AP ranks all of them."""
BLOCK, OVERLAP, CONTEXT = 2048, 256, 128
"""Blocks of a large image, px."""


def read_split(data: Path, split: str, where: str) -> list[dict[str, Any]]:
    """Return the image records that have KEY=VALUE, each with its annotations."""
    key, _, value = where.partition("=")
    content = json.loads((data / f"{split}.json").read_text(encoding="utf-8"))
    records = {
        one["id"]: {**one, "annotations": []} for one in content["images"] if str(one.get(key)) == value
    }
    for annotation in content["annotations"]:
        if annotation["image_id"] in records:
            records[annotation["image_id"]]["annotations"].append(annotation)
    return list(records.values())


def read_gray(path: Path) -> np.ndarray:
    """Return an image as gray, normalized from percentile 1 to 99.8: float32 `[H, W]`."""
    return normalize(np.asarray(Image.open(path).convert("L")), 1, 99.8)


def labels_of(record: dict[str, Any]) -> np.ndarray:
    """Return the objects of an image as a label image, int32 `[H, W]`."""
    height, width = record["height"], record["width"]
    labels = np.zeros((height, width), np.int32)
    for number, annotation in enumerate(record["annotations"], 1):
        text = annotation["segmentation"]
        if isinstance(text, list):
            text = mask_api.merge(mask_api.frPyObjects(text, height, width))
        elif isinstance(text["counts"], list):
            text = mask_api.frPyObjects(text, height, width)
        labels[mask_api.decode(text) > 0] = number
    return labels


def augment(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip, rotate by a multiple of 90 degrees, and change intensity, as StarDist's training example does."""
    for axis in (0, 1):
        if RANDOM.random() < 0.5:
            image, labels = np.flip(image, axis), np.flip(labels, axis)
    turns = RANDOM.integers(4)
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    image = image * RANDOM.uniform(0.6, 2) + RANDOM.uniform(-0.2, 0.2)
    return image + 0.02 * RANDOM.random() * RANDOM.normal(size=image.shape), labels


def train(data: Path, where: str, epochs: int, learning_rate: float | None, out: Path) -> None:
    """Train, or continue to train."""
    np.random.seed(0)  # noqa: NPY002 - StarDist samples patches with numpy's global generator
    tf.random.set_seed(0)
    sets = {split: read_split(data, split, where) for split in ("train", "val")}
    images = {
        split: [read_gray(data / "images" / one["file_name"]) for one in records]
        for split, records in sets.items()
    }
    labels = {split: [labels_of(one) for one in records] for split, records in sets.items()}
    patience = max(1, round(DEFAULT_PATIENCE * epochs / DEFAULT_EPOCHS))
    config = Config2D(
        grid=GRID,
        train_epochs=epochs,
        train_reduce_lr={"factor": 0.5, "patience": patience, "min_delta": 0},
        train_tensorboard=False,
    )
    model = StarDist2D(config, name=out.name, basedir=str(out.parent))
    model.prepare_for_training()
    options = f"--epochs {epochs}" + ("" if learning_rate is None else f" --learning-rate {learning_rate:g}")
    progress = Progress(out / PROGRESS, options, learning_rate)
    for callback in model.callbacks:
        if isinstance(callback, tf.keras.callbacks.ModelCheckpoint):
            callback.best = progress.lowest  # keep the best weights of the epochs before an interruption
    model.callbacks += [tf.keras.callbacks.BackupAndRestore(str(out / "resume")), progress]
    model.train(images["train"], labels["train"], (images["val"], labels["val"]), augmenter=augment, seed=0)


class Progress(tf.keras.callbacks.Callback):
    """Keep the number of epochs, their CPU time and the lowest loss on val in a file, over interruptions.

    The file also has the options of `train`, one entry for each change of them. `learning_rate` replaces that of the
    optimizer, which an interrupted run restores.
    """

    def __init__(self, path: Path, options: str, learning_rate: float | None) -> None:
        super().__init__()
        self.path = path
        self.learning_rate = learning_rate
        before = json.loads(path.read_text()) if path.exists() else {}
        self.options = [one for one in before.get("options", []) if one != options] + [options]
        self.minutes = before.get("core_minutes", 0.0)
        self.lowest = before.get("lowest_loss", np.inf)
        self.begin = time.process_time()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Set the learning rate, after an interrupted run has been restored."""
        del logs
        if self.learning_rate is not None:
            self.model.optimizer.learning_rate = self.learning_rate

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Write the state after an epoch."""
        self.lowest = min(self.lowest, logs["val_loss"])
        minutes = self.minutes + (time.process_time() - self.begin) / 60
        state = {"epochs": epoch + 1, "core_minutes": minutes, "lowest_loss": self.lowest}
        self.path.write_text(json.dumps({**state, "options": self.options}))


def predict(data: Path, where: str, out: Path) -> None:
    """Optimize the thresholds on val; write its COCO results and facts of the run, with CPU time and peak memory."""
    model = StarDist2D(None, name=out.name, basedir=str(out.parent))
    model.load_weights("weights_best.h5")
    records, seconds, results = read_split(data, "val", where), [], []
    images = [read_gray(data / "images" / one["file_name"]) for one in records]
    model.optimize_thresholds(images, [labels_of(one) for one in records])
    progress = json.loads((out / PROGRESS).read_text())
    steps = progress["epochs"] * model.config.train_steps_per_epoch
    facts = {
        "version": stardist.__version__,
        "tensorflow": tf.__version__,
        "parameters": int(model.keras_model.count_params()),
        "steps": steps,
        "images": steps * model.config.train_batch_size,
        **progress,
        "score_threshold": float(model.thresholds.prob),
        "nms_threshold": float(model.thresholds.nms),
        "where": where,
    }
    for number, record in enumerate([records[0], *records]):
        image = np.asarray(Image.open(data / "images" / record["file_name"]).convert("L"))
        begin = time.process_time()
        model.predict_instances(normalize(image, 1, 99.8))
        took = time.process_time() - begin
        if number == 0:
            continue  # warm-up
        seconds.append(took)
        # once more with a low threshold: NMS by descending score makes the results above a threshold the same
        labels, details = model.predict_instances(normalize(image, 1, 99.8), prob_thresh=MIN_SCORE)
        results += coco_results(record["id"], labels, details["prob"])
    (out / "results.json").write_text(json.dumps(results))
    facts |= {"cpu_ms": 1000 * statistics.median(seconds), "peak_mb": peak_mb()}
    (out / FACTS).write_text(json.dumps(facts, indent=1))


def coco_results(image_id: int, labels: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """Return the objects of a label image as COCO results; objects without pixels are left out."""
    results = []
    for number, score in enumerate(scores, 1):
        mask = labels == number
        if mask.any():
            text = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
            box = [float(value) for value in mask_api.toBbox(text)]
            text["counts"] = text["counts"].decode()
            results.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": text,
                    "bbox": box,
                    "score": float(score),
                }
            )
    return results


def large(file: Path, out: Path) -> None:
    """Add the CPU seconds of one large image in blocks."""
    Image.MAX_IMAGE_PIXELS = None
    model = StarDist2D(None, name=out.name, basedir=str(out.parent))
    image = np.asarray(Image.open(file).convert("L"))
    begin = time.process_time()
    _, details = model.predict_instances_big(
        normalize(image, 1, 99.8), "YX", BLOCK, OVERLAP, CONTEXT, show_progress=False
    )
    took = time.process_time() - begin
    facts = json.loads((out / FACTS).read_text())
    facts["large"] = {
        "cpu_seconds": took,
        "pixels": image.size,
        "objects": len(details["prob"]),
        "peak_mb": peak_mb(),
    }
    (out / FACTS).write_text(json.dumps(facts, indent=1))


def peak_mb() -> float:
    """Return the peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Parse the command line and run the action."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("train", "predict", "large"))
    parser.add_argument("--data", type=Path, help="folder of nuclei")
    parser.add_argument("--where", default="stardist_dsb2018=train", help="images used, by their records")
    parser.add_argument("--epochs", type=int, default=DEFAULT_EPOCHS)
    parser.add_argument(
        "--learning-rate", type=float, help="from now on; default: as in the run, at first 0.0003"
    )
    parser.add_argument("--image", type=Path, help="a large image")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.action == "train":
        train(args.data, args.where, args.epochs, args.learning_rate, args.out)
    elif args.action == "predict":
        predict(args.data, args.where, args.out)
    else:
        large(args.image, args.out)


if __name__ == "__main__":
    main()
