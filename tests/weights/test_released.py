"""Released models by name, and weights in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_config

from embedmask.errors import BadInput
from embedmask.model.embedmask import EmbedMask
from embedmask.weights import load, load_checkpoint, released, save
from embedmask.weights.released import find_weights, released_names


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    torch.manual_seed(0)
    save(EmbedMask(small_config()), folder / "cells.safetensors", class_names=["a", "b", "c"])
    monkeypatch.setattr(released, "models_folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_released_model_by_name(models: Path) -> None:
    assert released_names() == ["cells"]
    assert find_weights("cells") == models / "cells.safetensors"
    assert load_checkpoint("cells").class_names == ["a", "b", "c"]
    assert isinstance(load("cells"), EmbedMask)


def test_file_takes_precedence_over_released_model(models: Path) -> None:
    Path("cells").mkdir()
    assert find_weights("cells") == models / "cells.safetensors"
    Path("cells").rmdir()
    Path("cells").write_bytes(b"mine")
    assert find_weights("cells") == Path("cells")


@pytest.mark.parametrize("name", ["cell", "cells.safetensors", "./cells.pth", "../models/cells"])
def test_raises_on_unknown_name(models: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"no such weights file.*released models: cells$"):
        find_weights(name)


def test_message_suggests_the_nearest_name(models: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'cells'"):
        load("cell")


def test_half_precision_halves_the_size_and_loads_as_float32(tmp_path: Path) -> None:
    model = EmbedMask(small_config())
    paths = [tmp_path / name for name in ("whole.safetensors", "half.safetensors")]
    for path, dtype in zip(paths, (None, torch.float16), strict=True):
        save(model, path, class_names=["a", "b", "c"], dtype=dtype)
    assert paths[1].stat().st_size < 0.55 * paths[0].stat().st_size
    whole, half = (load(path).state_dict() for path in paths)
    for name, value in whole.items():
        assert half[name].dtype == value.dtype
        torch.testing.assert_close(half[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, "float16"])
def test_raises_on_dtype_that_is_not_floating_point(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(BadInput, match="is not a dtype of weights"):
        save(EmbedMask(small_config()), tmp_path / "m.safetensors", class_names=["a", "b", "c"], dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_raises_on_weights_outside_the_range_of_dtype(tmp_path: Path) -> None:
    model = EmbedMask(small_config())
    name = next(name for name in model.state_dict() if name.endswith("running_var"))
    model.state_dict()[name].fill_(1e6)
    with pytest.raises(BadInput, match=f"{name} has values outside the range of torch.float16"):
        save(model, tmp_path / "m.safetensors", class_names=["a", "b", "c"], dtype=torch.float16)
    save(model, tmp_path / "m.safetensors", class_names=["a", "b", "c"], dtype=torch.bfloat16)
