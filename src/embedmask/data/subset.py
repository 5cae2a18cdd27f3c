"""Select the images of a data set whose annotation record meets a condition."""

from __future__ import annotations

import json
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
    # text is compared as it is, any other value in JSON
    pairs = ((image, image[key]) for image in records if key in image)
    images = [image for image, own in pairs if (own if isinstance(own, str) else json.dumps(own)) == value]
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
