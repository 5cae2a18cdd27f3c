"""Frozen and random weights at the start of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_run import tiny

from embedmask.config import Recipe
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import fit
from embedmask.weights.checkpoint import load_checkpoint

FROZEN = {"backbone_norm": "frozen", "frozen_stages": 2}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=10, val=3, size=64, seed=0)
    return folder


@pytest.mark.parametrize("again", ["own recipe", "same recipe"])
def test_random_weights_are_not_frozen_and_reported(shapes: Path, tmp_path: Path, again: str) -> None:
    lines: list[str] = []
    out, recipe = tmp_path / "run", tiny(FROZEN, epochs=1)
    fit.train(recipe, shapes, out, report=lines.append)
    assert lines[0] == (
        "random weights cannot be frozen: sets model.backbone_norm to batch, model.frozen_stages to 0"
    )
    written = Recipe.from_yaml(out / "recipe.yaml")
    assert (written.model.backbone_norm, written.model.frozen_stages) == ("batch", 0)
    model = load_checkpoint(out / "model.safetensors").model
    assert all(p.requires_grad for p in model.parameters())
    assert model.backbone.body["conv1"][1].num_batches_tracked > 0
    more = replace(written if again == "own recipe" else recipe, train=replace(recipe.train, epochs=2))
    lines.clear()
    fit.train(more, shapes, out, resume=True, report=lines.append)
    assert not any("frozen" in line for line in lines)
    assert Recipe.from_yaml(out / "recipe.yaml").model == written.model


def test_resumed_run_retains_frozen_weights(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resume a run of an earlier version, which did not adapt these settings."""
    recipe, out = tiny(FROZEN, epochs=1), tmp_path / "run"
    monkeypatch.setattr(fit, "adapt_config", lambda model, *_: model)
    fit.train(recipe, shapes, out, report=lambda line: None)
    monkeypatch.undo()
    before, written = load_file(out / "last.safetensors"), Recipe.from_yaml(out / "recipe.yaml")
    fit.train(
        replace(written, train=replace(written.train, epochs=2)),
        shapes,
        out,
        resume=True,
        report=lambda line: None,
    )
    assert load_checkpoint(out / "model.safetensors").config.backbone_norm == "frozen"
    after = load_file(out / "last.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("backbone.body.conv1.", "backbone.body.layer1.")) for name in changed)
    assert "backbone.body.layer4.0.conv1.weight" in changed


def test_pretrained_weights_from_a_file_stay_frozen(shapes: Path, tmp_path: Path) -> None:
    """Check that such a run is resumed without the file, and stores the normalization that the backbone expects."""
    torch.manual_seed(5)
    first = timm.create_model("test_resnet").state_dict()
    file, out, lines = tmp_path / "first.safetensors", tmp_path / "run", list[str]()
    save_file(first, file)
    recipe = tiny(FROZEN, epochs=1, pretrained=str(file), ema_decay=None)
    fit.train(recipe, shapes, out, report=lines.append)
    assert lines[1].startswith(f"backbone test_resnet: 75 of 75 tensors from {file}; missing: none")
    saved = load_file(out / "last.safetensors")
    assert torch.equal(saved["backbone.body.conv1.0.weight"], first["conv1.0.weight"])
    assert not torch.equal(saved["backbone.body.layer4.0.conv1.weight"], first["layer4.0.conv1.weight"])
    written = Recipe.from_yaml(out / "recipe.yaml")
    config = load_checkpoint(out / "model.safetensors").config
    assert written.model.image_mean == config.image_mean == (127.5, 127.5, 127.5)
    assert written.model.backbone_norm_eps == config.backbone_norm_eps == 1e-5
    file.unlink()
    fit.train(
        replace(written, train=replace(written.train, epochs=2)),
        shapes,
        out,
        resume=True,
        report=lines.append,
    )
