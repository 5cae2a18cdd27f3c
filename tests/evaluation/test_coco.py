"""CocoEvaluator: equality with pycocotools, for any number of detections and any subset of images."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_scenes import (
    Mask,
    Record,
    as_annotation,
    as_result,
    ellipse,
    make_truth,
    measured,
    scene,
)
from faster_coco_eval.core import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from embedmask.evaluation.coco import CocoEvaluator

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
NUCLEI = SHARED / "nuclei" / "val.json"
COCO_FILES = [SHARED / f"coco-mini/annotations/instances_{split}2017.json" for split in ("train", "val")]
STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
RECALLS = ("AR", "AR_small", "AR_medium", "AR_large")


def reference(
    ground_truth: Record,
    results: list[Record],
    kind: str,
    max_detections: int,
    image_ids: list[int] | None = None,
) -> dict[str, float]:
    """Return pycocotools' figures at `max_detections`; -1 where undefined."""
    index = COCO()
    index.dataset = copy.deepcopy(ground_truth)
    index.createIndex()
    # loadRes takes the area from the box if there is one
    drop = "segmentation" if kind == "bbox" else "bbox"
    shown = [{k: v for k, v in r.items() if k != drop} for r in copy.deepcopy(results)]
    evaluation = COCOeval(index, index.loadRes(shown) if shown else COCO(), kind)
    if image_ids is not None:
        evaluation.params.imgIds = image_ids
    evaluation.params.maxDets = [1, min(10, max_detections), max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]
    cells = {
        "AP": precision[..., 0],
        "AP50": precision[0, ..., 0],
        "AP75": precision[5, ..., 0],
        "AP90": precision[8, ..., 0],
        "AP_small": precision[..., 1],
        "AP_medium": precision[..., 2],
        "AP_large": precision[..., 3],
        "AR": recall[..., 0],
        "AR_small": recall[..., 1],
        "AR_medium": recall[..., 2],
        "AR_large": recall[..., 3],
    }
    return {name: float(v[v > -1].mean()) if (v > -1).any() else -1.0 for name, v in cells.items()}


def assert_equal(found: dict[str, float], expected: dict[str, float], kind: str) -> None:
    assert {name for name in found if name.startswith(f"{kind}/")} == {f"{kind}/{name}" for name in expected}
    for name, value in expected.items():
        if value == -1:
            assert math.isnan(found[f"{kind}/{name}"]), name
        else:
            assert found[f"{kind}/{name}"] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("max_detections", [1, 2, 5, 100, 1000])
@pytest.mark.parametrize("seed", [0, 2, 6])
def test_equals_pycocotools(seed: int, max_detections: int, kind: str) -> None:
    ground_truth, results = scene(seed)
    expected = reference(ground_truth, results, kind, max_detections)
    assert 0 < expected["AP"] < 1
    assert_equal(measured(ground_truth, results, max_detections), expected, kind)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_pycocotools_on_a_subset_of_images(kind: str) -> None:
    ground_truth, results = scene(5)
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    found = evaluator.compute(image_ids=[10, 4, 16])
    assert_equal(found, reference(ground_truth, results, kind, 100, [4, 10, 16]), kind)
    assert found["segm/AP"] != evaluator.compute()["segm/AP"]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_pycocotools_summary(kind: str) -> None:
    """Compare with the twelve figures that pycocotools prints, at 100 detections."""
    ground_truth, results = scene(6)
    index = COCO()
    index.dataset = copy.deepcopy(ground_truth)
    index.createIndex()
    drop = "segmentation" if kind == "bbox" else "bbox"
    shown = [{k: v for k, v in r.items() if k != drop} for r in results]
    evaluation = COCOeval(index, index.loadRes(shown), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    found = measured(ground_truth, results)
    for name, value in zip((*STATS, None, None, *RECALLS), evaluation.stats, strict=False):
        if name:
            assert value > 0
            assert found[f"{kind}/{name}"] == pytest.approx(value, abs=1e-6), name


def test_no_detection_is_zero() -> None:
    ground_truth, _ = scene(0)
    found = measured(ground_truth, [])
    assert not any(found.values())


def test_no_object_is_nan() -> None:
    ground_truth, results = scene(0)
    ground_truth["annotations"] = []
    assert all(math.isnan(value) for value in measured(ground_truth, results).values())


def test_only_crowds_is_nan() -> None:
    mask = ellipse((80, 90), (40, 40), (20, 20))
    found = measured(
        make_truth([as_annotation(1, 1, 2, mask, crowd=True)], {1: (80, 90)}, [2]),
        [as_result(1, 2, mask, 0.9)],
    )
    assert math.isnan(found["segm/AP"])


def test_detections_inside_a_crowd_are_ignored() -> None:
    crowd, single = ellipse((90, 90), (30, 45), (25, 40)), ellipse((90, 90), (75, 20), (10, 10))
    inside = [ellipse((90, 90), (30, 30 + i), (6, 6)) for i in range(5)]
    annotations = [as_annotation(1, 1, 2, crowd, crowd=True), as_annotation(2, 1, 2, single)]
    results = [as_result(1, 2, mask, 0.9) for mask in inside] + [as_result(1, 2, single, 0.1)]
    assert measured(make_truth(annotations, {1: (90, 90)}, [2]), results)["segm/AP"] == 1


def test_ground_truth_as_results_is_perfect() -> None:
    ground_truth, _ = scene(3)
    own = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    results = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")}, "score": 1.0} for a in own
    ]
    found = measured(ground_truth, results)
    assert set(found.values()) == {1}


@pytest.mark.parametrize("factor", [1, -1])
@pytest.mark.parametrize("shift", [2**53, 2**60, 2**64])
def test_ids_of_any_size_give_the_same_figures(shift: int, factor: int) -> None:
    """The library stores ids as floats, which cannot tell neighbors beyond 2^53 apart."""
    ground_truth, results = scene(1)
    expected = measured(ground_truth, results)
    for entry in (*ground_truth["images"], *ground_truth["categories"]):
        entry["id"] = factor * (entry["id"] + shift)
    for entry in (*ground_truth["annotations"], *results):
        entry["image_id"] = factor * (entry["image_id"] + shift)
        entry["category_id"] = factor * (entry["category_id"] + shift)
    found = measured(ground_truth, results)
    # scores that tie are taken in the order of the ids
    assert found == pytest.approx(expected, abs=0.02 if factor < 0 else 1e-12, nan_ok=True)


@pytest.mark.parametrize("places", [1, 2, 3])
def test_polygons_are_rasterized_as_by_pycocotools(places: int) -> None:
    rng = np.random.default_rng(places)
    size = (120, 160)
    outlines = [rng.uniform(0, 120, 2 * int(rng.integers(3, 30))).round(places).tolist() for _ in range(40)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 2, "segmentation": [outline]}
        for n, outline in enumerate(outlines)
    ]
    ground_truth = CocoEvaluator(make_truth(annotations, {1: size}, [2])).ground_truth
    for record, outline in zip(ground_truth.records[1], outlines, strict=True):
        np.testing.assert_array_equal(
            mask_api.decode(record["segmentation"]) > 0, index_mask([outline], size)
        )


@pytest.mark.parametrize("first_id", [0, 5])
def test_annotation_ids_do_not_matter(first_id: int) -> None:
    """pycocotools treats a match with annotation 0 as no match; a file may count from 0 or repeat an id."""
    ground_truth, results = scene(1)
    expected = measured(ground_truth, results)
    for offset, annotation in enumerate(ground_truth["annotations"]):
        annotation["id"] = first_id + offset // 2
    assert measured(ground_truth, results) == pytest.approx(expected, nan_ok=True)


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    ground_truth, results = scene(0)
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    evaluator.compute(progress=True)
    assert "boundary AP: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_per_class_equals_pycocotools_of_each_category(kind: str) -> None:
    ground_truth, results = scene(4)
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    found = evaluator.per_class()
    assert list(found) == ["kind 2", "kind 7", "kind 17", "kind 90"]
    for key in (2, 7, 17):
        only = {
            **ground_truth,
            "annotations": [a for a in ground_truth["annotations"] if a["category_id"] == key],
        }
        expected = reference(only, [r for r in results if r["category_id"] == key], kind, 100)
        for name in ("AP", "AP50", "AP75", "AP90"):
            assert found[f"kind {key}"][f"{kind}/{name}"] == pytest.approx(expected[name], abs=1e-6)
    assert all(math.isnan(value) for value in found["kind 90"].values())
    mean = np.nanmean([values[f"{kind}/AP"] for values in found.values()])
    assert mean == pytest.approx(evaluator.compute()[f"{kind}/AP"])


def test_max_detections_applies_per_image() -> None:
    """One image with 120 objects and perfect results: 100 detections reach 100 of them."""
    masks = [np.zeros((60, 130), dtype=bool) for _ in range(120)]
    for i, mask in enumerate(masks):
        mask[(i // 20) * 10 : (i // 20) * 10 + 4, (i % 20) * 6 : (i % 20) * 6 + 4] = True
    content = make_truth([as_annotation(i + 1, 1, 2, m) for i, m in enumerate(masks)], {1: (60, 130)}, [2])
    results = [as_result(1, 2, mask, 0.9) for mask in masks]
    few, all_of_them = measured(content, results), measured(content, results, 120)
    assert few["segm/AR"] == pytest.approx(100 / 120)
    assert few["segm/AP"] == pytest.approx(84 / 101)  # recall points 0, .01 ... .83 of 101
    assert (all_of_them["segm/AR"], all_of_them["segm/AP"], all_of_them["bbox/AP"]) == (1, 1, 1)


# --- bad input ------------------------------------------------------------------------------------


# --- real images ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("file", COCO_FILES, ids=lambda path: path.stem)
def test_equals_pycocotools_on_coco(file: Path, kind: str) -> None:
    """COCO has polygons, crowds, and areas that differ slightly from those of the masks."""
    if not file.is_file():
        pytest.skip("no part of COCO beside the checkout (../shared/data/coco-mini)")
    values = json.loads(file.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in values["images"]}
    rng = np.random.default_rng(0)
    results = []
    for entry in values["annotations"]:
        mask = index_mask(entry["segmentation"], sizes[entry["image_id"]])
        moved = np.roll(mask, rng.integers(-3, 4, 2), axis=(0, 1))
        score = float(rng.integers(1, 20)) / 20
        results.append(as_result(entry["image_id"], entry["category_id"], moved, score))
    evaluator = CocoEvaluator(file)
    evaluator.add(results)
    expected = reference(values, results, kind, 100)
    assert min(expected[name] for name in ("AP_small", "AP_medium", "AP_large")) > 0
    assert_equal(evaluator.compute(), expected, kind)
    [warning] = evaluator.ground_truth.warnings
    assert "are crowds" in warning


def index_mask(segmentation: Any, size: tuple[int, int]) -> Mask:
    code = mask_api.frPyObjects(segmentation, *size)
    return mask_api.decode(mask_api.merge(code) if isinstance(code, list) else code).astype(bool)


@pytest.mark.slow
def test_nuclei_need_more_than_100_detections() -> None:
    if not NUCLEI.is_file():
        pytest.skip("no nuclei data set beside the checkout (../shared/data/nuclei)")
    values = json.loads(NUCLEI.read_text())
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [{**{key: a[key] for key in keys}, "score": 1.0} for a in values["annotations"]]
    usual, raised = CocoEvaluator(NUCLEI), CocoEvaluator(NUCLEI, max_detections=1000)
    for evaluator in (usual, raised):
        evaluator.add(results)
    assert usual.compute()["segm/AP"] == pytest.approx(0.772, abs=5e-4)
    fluorescence = [image["id"] for image in values["images"] if image["modality"] == "fluorescence"]
    found = raised.compute(image_ids=fluorescence)
    assert {value for value in found.values() if not math.isnan(value)} == {1.0}
