"""Part of a data set: the images whose record in the annotation file says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embedmask.data.annotations import Content
from embedmask.data.records import as_id
from embedmask.errors import BadInput


def content_where(content: Content, condition: str, path: Path) -> Content:
    """What a COCO file holds of the images whose record says `KEY=VALUE`, for example `modality=fluorescence`.

    Args:
        content: not changed.
        path: what the message calls the file.

    Raises:
        BadInput: no equals sign, or no such image.
    """
    key, equals, value = condition.partition("=")
    records = [image for image in content["images"] if isinstance(image, dict)]
    images = [image for image in records if key in image and _as_written(image[key]) == value]
    if not equals or not images:
        keys = ", ".join(sorted({str(name) for image in records for name in image}))
        raise BadInput(
            f"where {condition}: no image of {path} is so; give KEY=VALUE (keys: {keys}), or no condition"
        )
    known, chosen = ({as_id(image.get("id")) for image in group} for group in (records, images))
    others = known - chosen - {None}

    def is_of_others(entry: Any) -> bool:  # what is of no image stays, to be checked
        return isinstance(entry, dict) and as_id(entry.get("image_id")) in others

    kept = [entry for entry in content["annotations"] if not is_of_others(entry)]
    return {**content, "images": images, "annotations": kept}


def _as_written(value: Any) -> str:
    """A text as it is, anything else as JSON has it."""
    return value if isinstance(value, str) else json.dumps(value)
