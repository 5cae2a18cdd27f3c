"""Evaluation of weights on a data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedmask.errors import BadInput
from embedmask.evaluation.run import evaluate_weights


def test_report_folder_is_checked_before_the_first_image(tmp_path: Path) -> None:
    dataset: Any = SimpleNamespace(annotations_file=Path("val.json"), category_ids=[1], class_names=["disc"])
    (tmp_path / "file").touch()
    for report in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(BadInput) as caught:
            evaluate_weights(Path("nuclei"), dataset, report=report)
        reason = f"{tmp_path / 'file'} is a file, not a folder"
        assert str(caught.value) == f"{report}: cannot be written ({reason}); choose another folder"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
