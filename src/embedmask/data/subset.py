"""Part of a data set: the pictures whose record in the annotation file says so."""

from __future__ import annotations

from pathlib import Path

from embedmask.data.annotations import Content
from embedmask.errors import BadInput


def content_where(content: Content, condition: str, path: Path) -> Content:
    """What a COCO file holds of the pictures whose record says `KEY=VALUE`, for example `modality=fluorescence`.

    Args:
        content: not changed.
        path: what the message calls the file.

    Raises:
        BadInput: no equals sign, or no such picture.
    """
    key, equals, value = condition.partition("=")
    records = [image for image in content["images"] if isinstance(image, dict)]
    images = [image for image in records if key in image and str(image[key]) == value]
    if not equals or not images:
        keys = ", ".join(sorted({str(name) for image in records for name in image}))
        raise BadInput(
            f"where {condition}: no image of {path} is so; give KEY=VALUE (keys: {keys}), or no condition"
        )
    ids = {image.get("id") for image in images}
    kept = [a for a in content["annotations"] if isinstance(a, dict) and a.get("image_id") in ids]
    return {**content, "images": images, "annotations": kept}
