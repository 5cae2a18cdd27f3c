"""Select or repeat the images of a data set by the values of their annotation records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedmask.data.annotations import Content
from embedmask.data.records import as_id
from embedmask.errors import BadInput


def filter_images(content: Content, condition: str, path: Path) -> Content:
    """Return the part of a COCO file that belongs to the images whose record meets a condition.

    Args:
        content: content of the file; not changed.
        condition: `KEY=VALUE`, for example `modality=fluorescence`; values are compared as the file writes them.

    Raises:
        BadInput: the condition has no equals sign, or no image meets it.
    """
    key, equals, value = condition.partition("=")
    records = [image for image in content["images"] if isinstance(image, dict)]
    images = [image for image in records if key in image and value_text(image[key]) == value]
    if not equals or not images:
        keys = ", ".join(sorted({str(name) for image in records for name in image}))
        raise BadInput(
            f"image filter {condition}: no image of {path} meets it; give KEY=VALUE (keys: {keys}), or no condition"
        )
    known, chosen = ({as_id(image.get("id")) for image in group} for group in (records, images))
    others = known - chosen - {None}

    # drop only annotations of the other images: malformed records stay, so that the checks report them
    def is_of_others(entry: Any) -> bool:
        return isinstance(entry, dict) and as_id(entry.get("image_id")) in others

    annotations = [entry for entry in content["annotations"] if not is_of_others(entry)]
    return {**content, "images": images, "annotations": annotations}


def image_values(content: Content, key: str, image_ids: Sequence[int], path: Path) -> list[str]:
    """Return the value of a key for each image as text; `null` for images without it.

    Args:
        content: content of a COCO file.
        image_ids: ids of checked image records.
        path: annotation file, for messages.

    Raises:
        BadInput: no image has the key.
    """
    by_id = {as_id(image.get("id")): image for image in content["images"] if isinstance(image, dict)}
    records = [by_id[image_id] for image_id in image_ids]
    if not any(key in record for record in records):
        keys = ", ".join(sorted({str(name) for record in records for name in record}))
        raise BadInput(
            f"data.balance {key}: no image of {path} has this key (keys: {keys}); give one of them"
        )
    return [value_text(record.get(key)) for record in records]


def value_text(value: Any) -> str:
    """Return text as it is, any other value in JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def balanced_indices(values: Sequence[str], power: float) -> list[int]:
    """Return the index of each image (n_max / n)^power times, rounded, where n images have its value."""
    counts = Counter(values)
    max_count = max(counts.values(), default=0)
    times = {value: round((max_count / count) ** power) for value, count in counts.items()}
    return [index for index, value in enumerate(values) for _ in range(times[value])]
