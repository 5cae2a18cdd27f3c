"""docs/augmentation.md: its blocks are recipes, its images exist, and every augmentation is described."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import yaml
from PIL import Image

from embedmask.config import DataConfig, Recipe
from embedmask.data import transforms

PAGE = Path(__file__).parents[2] / "docs" / "augmentation.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_block_is_part_of_a_recipe() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 9
    for block in blocks:
        recipe = Recipe.from_mapping(yaml.safe_load(block), where=block)
        assert recipe.data != DataConfig()


def test_every_block_has_its_image_and_they_are_small() -> None:
    names = re.findall(r"```\n!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert len(names) == TEXT.count("```yaml")
    paths = [PAGE.parent / name for name in names]
    assert sorted(paths) == sorted((PAGE.parent / "augmentation").iterdir())
    for path in paths:
        with Image.open(path) as image:
            assert image.width >= 600
    assert sum(path.stat().st_size for path in paths) < 1_500_000


def test_every_field_that_changes_images_is_explained() -> None:
    read = set(re.findall(r"config\.(\w+)", inspect.getsource(transforms.TrainTransform)))
    read &= {field.name for field in dataclasses.fields(DataConfig)}
    assert {"rotate", "copy_paste", "blur"} <= read
    assert {name for name in read if f"`{name}" not in TEXT} == set()


def test_the_table_says_the_defaults() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", TEXT, re.MULTILINE)
    assert len(rows) > 8
    for names, default in rows:
        fields = re.findall(r"`(\w+)`", names)
        values = yaml.safe_load(f"[{default.replace('`', '')}]")
        expected = [getattr(DataConfig(), name) for name in fields]
        found = [tuple(value) if isinstance(value, list) else value for value in values]
        assert (found * len(fields) if len(found) == 1 else found) == expected
