"""Ground truth is checked at the door; what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_scenes import Record, one_object

from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "annotation 7 is of image 9"),
        ({"category_id": 9}, "annotation 7 is of category 9"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 7 has a polygon with 2 points"),
        ({"segmentation": {"size": [4, 5], "counts": [20]}}, "annotation 7 has a mask of size"),
        ({"segmentation": None}, "annotation 7 has no segmentation"),
    ],
)
def test_bad_annotations_are_named(change: Record, message: str) -> None:
    given, _ = one_object()
    given["annotations"][0] |= change
    with pytest.raises(BadInput, match=message) as caught:
        CocoEvaluator(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "has no list 'images'"), ('{"images": []}', "has no list 'annotations'")],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "val.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=f"val.json.*{message}"):
        CocoEvaluator(path)
    with pytest.raises(BadInput, match=r"other\.json: no such annotation file"):
        CocoEvaluator(tmp_path / "other.json")
