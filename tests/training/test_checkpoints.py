"""Checkpoints are written atomically, and never with non-finite weights."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import exit_codes, start, tiny

from embedmask.errors import BadInput, TrainingStopped
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import fit
from embedmask.training.checkpoints import AtomicCheckpointIO
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.module import EmbedMaskModule

LIMIT = 100_000


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=8, val=2, size=64, seed=0)
    return folder


@contextmanager
def no_room() -> Iterator[None]:
    """Limit the size of files to `LIMIT` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_raises_and_preserves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(10)}, path)
    before = path.read_bytes()
    with no_room(), pytest.raises(BadInput) as caught:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(LIMIT)}, path)
    assert str(path) in str(caught.value)
    assert "make room on that disk" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def train_without_room(data: Path, out: Path, message: Path) -> None:
    """Resume a run on a full disk; called in a process of its own."""
    with no_room():
        try:
            fit.train(tiny(epochs=2), data, out, resume=True)
        except BadInput as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            message.write_text(str(error))


@pytest.mark.slow
def test_run_stopped_by_a_full_disk_can_be_resumed(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit.train(tiny(epochs=1), shapes, out)
    before = {name: (out / name).read_bytes() for name in ("last.ckpt", "best.safetensors", "metrics.csv")}
    assert exit_codes(start(train_without_room, shapes, out, tmp_path / "message")) == [0]
    assert (
        "cannot be written (File too large); nothing was changed; make room"
        in (tmp_path / "message").read_text()
    )
    assert all((out / name).read_bytes() == content for name, content in before.items())
    assert fit.train(tiny(epochs=2), shapes, out, resume=True)["steps"] == 4


def spoil(monkeypatch: pytest.MonkeyPatch, number: int, value: float) -> None:
    """Multiply the box loss of a step by a value."""
    compute, calls = EmbedMaskModule.compute_losses, [0]

    def spoiled(self: EmbedMaskModule, batch: Any) -> dict[str, torch.Tensor]:
        terms = compute(self, batch)
        calls[0] += 1
        return {**terms, "box": terms["box"] * value} if calls[0] == number else terms

    monkeypatch.setattr(EmbedMaskModule, "compute_losses", spoiled)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_training(
    value: float, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, batches, out = tiny(checkpoint_steps=1), [], tmp_path / "run"
    step = EmbedMaskModule.training_step

    def record(self: EmbedMaskModule, batch: Any, batch_idx: int) -> dict[str, Any]:
        batches.append([target.image_id for target in batch[1]])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(EmbedMaskModule, "training_step", record)
    with monkeypatch.context() as patch:
        spoil(patch, 4, value)
        with pytest.raises(TrainingStopped) as caught:
            fit.train(recipe, shapes, out)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("step 4: ")
    for name in ("total", "classification", f"box {value}", "centerness", "mask", "smooth"):
        assert name in message
    assert f"images {', '.join(map(str, batches[-1]))};" in message
    state = torch.load(out / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert fit.train(recipe, shapes, out, resume=True)["steps"] == 4  # the step is taken again


def test_non_finite_weights_are_not_saved(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the weights, since a finite loss may have a non-finite gradient."""
    step = torch.optim.SGD.step
    calls = [0]

    def explode(self: torch.optim.SGD, closure: Any = None) -> Any:
        result = step(self, closure)
        calls[0] += 1
        if calls[0] == 3:
            self.param_groups[0]["params"][0].data.fill_(math.inf)
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", explode)
    with pytest.raises(TrainingStopped, match="step 3: weights are no longer finite"):
        fit.train(tiny(checkpoint_steps=1), shapes, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2


def test_checkpoint_minutes_sets_the_interval(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    save = AtomicCheckpointIO.save_checkpoint

    def record(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path, **options: Any) -> None:
        written.append(checkpoint["global_step"])
        save(self, checkpoint, path, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", record)
    cases = [
        ({"epochs": 1, "checkpoint_minutes": 1e-9}, [1, 2]),
        ({"epochs": 1, "checkpoint_minutes": 60.0}, [2]),
        ({"epochs": 3, "checkpoint_minutes": 60.0}, [6]),  # short epochs share one
        ({"epochs": 3, "checkpoint_minutes": None}, [2, 4, 6]),
    ]
    for number, (changes, steps) in enumerate(cases):
        written.clear()
        fit.train(tiny(eval_every=9, **changes), shapes, tmp_path / str(number))
        assert written == steps


def test_entries_of_earlier_versions_are_read(tmp_path: Path) -> None:
    torch.save({"SplitPair": {"batches": 3}, "epoch": 1}, tmp_path / "last.ckpt")
    checkpoint = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint == {"TrainValDataModule": {"batches": 3}, "epoch": 1}
    assert TrainValDataModule.__qualname__ in checkpoint
