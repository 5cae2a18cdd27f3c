"""The script annotations.py: its generated file has the requested content and can be read."""

from __future__ import annotations

import json
from pathlib import Path

from scripts import load_script

script = load_script("annotations")


def test_generated_file_can_be_read(tmp_path: Path) -> None:
    script.write_file(tmp_path / "train.json", 3, 2)
    content = json.loads((tmp_path / "train.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == [0, 0, 1, 1, 2, 2]
    result = script.load(tmp_path / "train.json")
    assert result["images"] == 3
    assert result["processor_seconds"] > 0
    assert 0 < result["peak_gb"] < 100
