"""The script photographs_outlines.py: which objects are drawn, and the panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import save_eager
from PIL import Image
from scripts import load_script

from embedmask.data.coco import CocoInstances
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.ground_truth import read_ground_truth
from embedmask.synthetic.dataset import make_shapes

outlines = load_script("photographs_outlines")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoInstances:
    folder = tmp_path_factory.mktemp("outlines")
    make_shapes(folder, train=1, val=2, size=96, seed=3)
    return CocoInstances.open(folder, "val")


@pytest.fixture(autouse=True)
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "LONG_SIDE", (1, 96))


def with_results(dataset: CocoInstances, results: list[dict[str, Any]]) -> CocoEvaluator:
    evaluator = CocoEvaluator(dataset.ground_truth, 100)
    evaluator.add(results)
    return evaluator


def perfect(dataset: CocoInstances, score: float = 0.9) -> list[dict[str, Any]]:
    return [
        {key: gt[key] for key in ("image_id", "category_id", "segmentation", "bbox")} | {"score": score}
        for records in read_ground_truth(dataset.ground_truth).records.values()
        for gt in records
    ]


def test_only_objects_that_all_models_found(dataset: CocoInstances, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = dataset.image_ids[0]
    gts = read_ground_truth(dataset.ground_truth).records[image_id]
    everything, fewer = perfect(dataset), perfect(dataset)
    fewer.remove(next(one for one in fewer if one["image_id"] == image_id))
    evaluators = [with_results(dataset, everything), with_results(dataset, fewer)]
    found = outlines.found_objects(evaluators, [0.5, 0.5], [image_id])
    assert [one.gt["id"] for one in found] == [gt["id"] for gt in gts[1:]]
    assert all(one.ious == (1, 1) for one in found)
    # results below a model's threshold find nothing; nor do objects outside the range count
    assert outlines.found_objects(evaluators, [0.5, 0.95], [image_id]) == []
    monkeypatch.setattr(outlines, "LONG_SIDE", (97, 200))
    assert outlines.found_objects(evaluators, [0.5, 0.5], [image_id]) == []


def test_objects_at_the_shares_of_the_advantage() -> None:
    objects = [outlines.Found({"id": k}, (), (k / 10, 0.5)) for k in (3, 9, 0, 5, 1, 7, 2, 10, 4, 6, 8)]
    assert [one.gt["id"] for one in outlines.at_shares(objects)] == [9, 5, 1]


@pytest.mark.parametrize("photographs", [False, True])
def test_panels_show_the_object_and_the_outline(dataset: CocoInstances, photographs: bool) -> None:
    image_id = dataset.image_ids[0]
    evaluators = [with_results(dataset, perfect(dataset))] * 2
    one = outlines.found_objects(evaluators, [0.5, 0.5], [image_id])[0]
    image = np.full((96, 96, 3), 7, np.uint8) if photographs else None
    left, right = outlines.draw(one, "50%", ["a", "b"], image)
    assert left.shape == right.shape
    assert left.shape[0] > left.shape[1] == outlines.PANEL_SIDE
    right = right[-outlines.PANEL_SIDE :]  # without the title, whose letters have gray edges
    drawn = (right == outlines.OUTLINE).all(-1)
    filled = (right == ((7, 7, 7) if photographs else outlines.SILHOUETTE)).all(-1)
    area, zoom = one.gt["area"], outlines.ZOOM
    if photographs:
        assert filled.sum() > zoom**2 * area - drawn.sum()
    else:
        # the outline of a perfect result lies on the silhouette
        assert drawn.sum() + filled.sum() == zoom**2 * area
    assert 0 < drawn.sum() < zoom**2 * area


def test_command_writes_a_row_per_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shapes(tmp_path / "data", train=1, val=2, size=96, seed=3)
    weights = save_eager(tmp_path / "data", tmp_path / "model.safetensors")
    monkeypatch.setattr(outlines, "evaluate", lambda path, dataset: with_results(dataset, perfect(dataset)))
    out = tmp_path / "new" / "outlines.png"
    models = [f"first={weights}", f"second={weights}"]
    words = ["photographs_outlines.py", "--data", str(tmp_path / "data"), "--out", str(out), "--models"]
    monkeypatch.setattr("sys.argv", [*words, *models])
    outlines.main()
    with Image.open(out) as image:
        assert image.width > 2 * outlines.PANEL_SIDE
    # objects outside the range are not drawn; a model without a name is refused
    monkeypatch.setattr(outlines, "LONG_SIDE", (97, 200))
    with pytest.raises(SystemExit, match="97 to 200 px"):
        outlines.main()
    monkeypatch.setattr("sys.argv", [*words, str(weights)])
    with pytest.raises(SystemExit, match="2"):
        outlines.main()
