"""Measure AP and decoding time at several values of `mask_margin`; the network runs once per image.

    python benchmarks/mask_margin.py --weights nuclei --data nuclei --where stardist_dsb2018=train

Prints the rows of the table in docs/predicting.md. Seconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from embedmask import Predictor
from embedmask.data.class_matching import match_classes
from embedmask.data.coco import CocoInstances
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.results import coco_results

METRICS = ("segm/AP", "segm/AP75", "segm/AP90", "boundary/AP")


def measure(
    predictor: Predictor, dataset: CocoInstances, margins: list[float]
) -> dict[float, tuple[dict[str, float], float]]:
    """Return the metrics and the seconds after the network for each margin."""
    config = predictor.model.config
    category_ids = match_classes(predictor.class_names, dataset)
    evaluators = {margin: CocoEvaluator(dataset.ground_truth, config.max_detections) for margin in margins}
    seconds: dict[float, float] = defaultdict(float)
    for index, image_id in enumerate(dataset.image_ids):
        image = dataset.image(index)
        with torch.inference_mode():
            batch = predictor.model.preprocess([predictor.resize.image(image)])
            predictions = predictor.network(batch)
            # the network runs once for all margins
            for margin, evaluator in evaluators.items():
                changed = replace(config, mask_margin=margin)
                postprocess = Postprocessor.from_config(changed, reference_masks=False)
                start = time.process_time()
                (instances,) = postprocess(predictions, batch.sizes, [dataset.sizes[index]])
                seconds[margin] += time.process_time() - start
                evaluator.add(coco_results(instances, image_id, category_ids))
    return {margin: (evaluator.compute(), seconds[margin]) for margin, evaluator in evaluators.items()}


def main() -> None:
    """Print one row of the table per margin."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="model file, or a bundled model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set; val is used")
    parser.add_argument("--where", help="KEY=VALUE: only images whose record has it")
    parser.add_argument("--margins", type=float, nargs="+", default=[0, 0.1, 0.2, 0.3, 0.5])
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = CocoInstances.open(args.data, "val", image_filter=args.where)
    predictor = Predictor.load(args.weights, device="cpu")
    for margin, (metrics, seconds) in measure(predictor, dataset, args.margins).items():
        cells = [f"{metrics[name]:.4f}" for name in METRICS]
        print(f"| {margin:g} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
