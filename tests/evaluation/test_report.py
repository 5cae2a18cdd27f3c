"""write_report: one self-contained page, also without results or objects."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_scenes import Record, as_annotation, as_result, ellipse, make_truth
from PIL import Image

from embedmask.data.coco import CocoInstances
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import matching_metrics
from embedmask.evaluation.page import THUMBNAIL_SIDE
from embedmask.evaluation.report import write_report

SIZE = (90, 120)
VOID = ("meta", "img", "i", "path", "polyline")


class Page(HTMLParser):
    """Parsed page: counts of tags, text and images; fails on references to other files."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.open: list[str] = []
        self.text = ""
        self.images: list[Image.Image] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        assert tag not in ("script", "link", "iframe")
        for name, value in attrs:
            assert name not in ("href", "srcset"), value
            if name == "src":
                head, _, code = str(value).partition(",")
                assert head == "data:image/jpeg;base64"
                self.images.append(Image.open(io.BytesIO(base64.b64decode(code))))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def write_set(folder: Path, ground_truth: Record) -> CocoInstances:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in ground_truth["images"]:
        pixels = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    (folder / "val.json").write_text(json.dumps(ground_truth))
    return CocoInstances.open(folder, "val")


def report(folder: Path, ground_truth: Record, results: list[Record], **options: Any) -> Page:
    dataset = write_set(folder, ground_truth)
    evaluator = CocoEvaluator(dataset.ground_truth)
    evaluator.add(results)
    metrics = evaluator.compute() | matching_metrics(evaluator, 0.3)
    path = write_report(
        folder / "report", evaluator, dataset, metrics, title="a <b> & c", score_threshold=0.3, **options
    )
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]
    page = Page(path)
    assert page.open == []
    return page


def scene(images: int, classes: int) -> tuple[Record, list[Record]]:
    annotations, results = [], []
    for image in range(1, images + 1):
        for number in range(3):
            category = (3 * image + number) % classes + 1
            mask = ellipse(SIZE, (30 + 10 * number, 20 + 35 * number), (12, 9 + number))
            found = ellipse(SIZE, (30 + 10 * number + image % 5, 20 + 35 * number), (12, 9 + number))
            annotations.append(as_annotation(len(annotations) + 1, image, category, mask))
            results.append(as_result(image, category, found, 0.95 - 0.2 * number))
    return make_truth(
        annotations, dict.fromkeys(range(1, images + 1), SIZE), list(range(1, classes + 1))
    ), results


@pytest.mark.parametrize("classes", [1, 80])
def test_page_has_all_sections(tmp_path: Path, classes: int) -> None:
    ground_truth, results = scene(14, classes)
    page = report(tmp_path, ground_truth, results)
    assert page.text.count("a <b> & c") == 2
    for heading in (
        "Figures",
        "Precision and recall",
        "Score threshold",
        "Classes",
        "Errors",
        "Worst images",
        "Best images",
    ):
        assert heading in page.text
    assert page.tags["svg"] == 4
    assert page.tags["polyline"] == 12
    assert len(page.images) == 2 * 12
    assert sum(f"kind {key}" in page.text for key in range(1, classes + 1)) == classes


def test_page_compares_the_threshold_in_use_with_the_best(tmp_path: Path) -> None:
    """A third of the 42 results scores 0.55 at a wrong location; the others are correct."""
    ground_truth, results = scene(14, 1)
    wrong = ellipse(SIZE, (20, 20), (3, 3))
    results[2::3] = [as_result(result["image_id"], 1, wrong, 0.55) for result in results[2::3]]
    page = report(tmp_path, ground_truth, results)
    assert "F1 is highest at 0.66: 0.800." in page.text
    assert "Of the results that score at least 0.3, as in this report, it is 0.667." in page.text


def test_page_reports_objects_inside_their_boundary_band(tmp_path: Path) -> None:
    """The band of a 100 x 120 px image is 3 px wide: a bar of 5 px lies entirely inside."""
    mask = np.zeros(SIZE, bool)
    mask[40:45, 10:60] = True
    wide = ellipse(SIZE, (40, 80), (20, 20))
    annotations = [as_annotation(n, 1, 1, m) for n, m in enumerate((mask, wide), start=1)]
    page = report(tmp_path, make_truth(annotations, {1: SIZE}, [1]), [])
    assert (
        "50% of the objects lie entirely inside that band: their boundary AP equals their mask AP."
        in page.text
    )


def test_names_are_escaped(tmp_path: Path) -> None:
    ground_truth, results = scene(2, 1)
    ground_truth["categories"][0]["name"] = "<script>alert(1)</script>"
    ground_truth["images"][0]["file_name"] = "<i>&.png"
    page = report(tmp_path, ground_truth, results)
    assert "<script>alert(1)</script>" in page.text
    assert "<i>&.png" in page.text


def test_images_are_ranked_by_quality(tmp_path: Path) -> None:
    ground_truth, results = scene(5, 1)  # image 5 is exact, image 4 is the worst
    page = report(tmp_path, ground_truth, results)
    captions = [line for line in page.text.replace(".png", ".png\n").splitlines() if line.endswith(".png")]
    names = [line.rpartition(" ")[2][-5:] for line in captions]
    assert names == ["4.png", "3.png", "2.png", "5.png", "1.png"]


@pytest.mark.parametrize("missing", ["results", "objects", "both"])
def test_page_without_results_or_objects(tmp_path: Path, missing: str) -> None:
    ground_truth, results = scene(3, 2)
    if missing in ("objects", "both"):
        ground_truth["annotations"] = []
    page = report(tmp_path, ground_truth, [] if missing in ("results", "both") else results)
    assert page.tags["svg"] == 4
    assert len(page.images) == (0 if missing == "both" else 6)
    assert page.tags.get("polyline", 0) == (12 if missing == "results" else 0)


def test_images_are_thumbnails(tmp_path: Path) -> None:
    size = (700, 1400)
    mask = ellipse(size, (300, 600), (200, 300))
    ground_truth = make_truth([as_annotation(1, 1, 1, mask)], {1: size}, [1])
    page = report(tmp_path, ground_truth, [as_result(1, 1, mask, 0.9)])
    assert {max(image.size) for image in page.images} == {THUMBNAIL_SIDE}
    left, right = (np.asarray(image).astype(int) for image in page.images)
    assert left.std() > 0
    assert np.abs(left - right).mean() < 5  # the same object; only the result's score is written
