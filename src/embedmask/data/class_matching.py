"""Matching of a model's classes and those of a data set, by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from embedmask.data.coco import CocoInstances
from embedmask.data.label_images import CLASS_NAME
from embedmask.errors import BadInput


def match_classes(class_names: list[str], dataset: CocoInstances) -> list[int]:
    """Return the data set's category id of each class of the model, matched by name.

    Classes of the same name are matched in their order. Each class that the data set lacks gets an unused id.

    Raises:
        BadInput: the data set has a class that the model lacks.
    """
    if len(class_names) == len(dataset.class_names) == 1 and CLASS_NAME in (
        *class_names,
        *dataset.class_names,
    ):
        return dataset.category_ids  # the class of label images has no name of its own
    # (name, number of earlier classes of that name) identifies a class
    known = _numbered(class_names)
    ids = dict(zip(_numbered(dataset.class_names), dataset.category_ids, strict=True))
    for name, number in ids:
        if (name, number) not in known:
            times = f" {number + 1} times" if number else ""
            names = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
            raise BadInput(
                f"{dataset.annotations_file}: has the class {name!r}{times}, the model has {names}; "
                "evaluate on a data set of the model's classes"
            )
    unused = itertools.count(max(dataset.category_ids) + 1)
    return [ids[key] if key in ids else next(unused) for key in known]


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return each name with its number of earlier occurrences, since several classes may share a name."""
    return [(name, names[:index].count(name)) for index, name in enumerate(names)]
