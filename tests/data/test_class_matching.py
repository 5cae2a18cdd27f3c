"""Classes of a model and of a data set are matched by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedmask.data.class_matching import match_classes
from embedmask.errors import BadInput


def dataset(**categories: list[int]) -> Any:
    """Return a data set with the categories; each name has one or several ids."""
    pairs = sorted((number, name) for name, ids in categories.items() for number in ids)
    ids, names = ([pair[i] for pair in pairs] for i in range(2))
    return SimpleNamespace(annotations_file=Path("val.json"), category_ids=ids, class_names=names)


@pytest.mark.parametrize(
    ("names", "categories", "expected"),
    [
        (["disc", "star"], {"star": [3], "disc": [8]}, [8, 3]),
        (["disc", "bar", "star"], {"star": [3], "disc": [8]}, [8, 9, 3]),  # 9 is unused
        (
            ["disc", "star", "disc"],
            {"disc": [2, 7], "star": [5]},
            [2, 5, 7],
        ),  # equal names: by order
        (["disc", "disc"], {"disc": [2**64 + 1]}, [2**64 + 1, 2**64 + 2]),
    ],
)
def test_classes_are_matched_by_name(
    names: list[str], categories: dict[str, list[int]], expected: list[int]
) -> None:
    assert match_classes(names, dataset(**categories)) == expected


@pytest.mark.parametrize(
    ("names", "message"), [(["star"], "'disc',"), (["disc", "star"], "'disc' 2 times, the model has disc")]
)
def test_raises_on_class_that_the_model_lacks(names: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=f"val.json: has the class {message}"):
        match_classes(names, dataset(disc=[1, 2]))
