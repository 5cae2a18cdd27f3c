"""Training in two processes equals training in one with the joint batch."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import TORCHRUN, exit_codes, free_port, start, tiny

from embedmask.config import Recipe
from embedmask.distributed import Processes, choose_processes, gather, is_rank_zero
from embedmask.errors import BadInput, TrainingStopped
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import fit
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.module import EmbedMaskModule

WITHOUT_OBJECTS = 4
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# images of several sizes, which the processes would pad differently, and trained BatchNorm
VARIED = tiny({"candidate_threshold": 0.0}, batch_size=4, lr=0.02, ema_decay=None, eval_every=2)
VARIED = replace(VARIED, data=replace(VARIED.data, short_sides=(48, 64, 96)))


def recording(path: Path) -> Callable[..., dict[str, float]]:
    """Return `CocoEvaluator.compute` that also writes the image and the score of each result to a file."""
    compute = CocoEvaluator.compute

    def record(self: CocoEvaluator, *args: Any, **options: Any) -> dict[str, float]:
        path.write_text(json.dumps([[result["image_id"], result["score"]] for result in self.results]))
        return compute(self, *args, **options)

    return record


def one_of_two(rank: int, port: int, recipe: Recipe, data: Path, out: Path) -> None:
    """Train as one of two processes of torchrun, and write the evaluated results and the reported lines to files."""
    CocoEvaluator.compute = recording(out.parent / f"results {rank}")  # type: ignore[method-assign]
    os.environ.update(TORCHRUN, RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", MASTER_PORT=str(port))
    lines: list[str] = []
    fit.train(recipe, data, out, report=lines.append)
    (out.parent / f"lines {rank}").write_text(json.dumps(lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write seven images, four of them without objects, for batches of 4 and 3."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=7, val=2, size=64, seed=0)
    content = json.loads((folder / "train.json").read_text())
    empty = [image["id"] for image in content["images"][:WITHOUT_OBJECTS]]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in empty]
    (folder / "train.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train in one process and in two, and return the results folders."""
    folder = tmp_path_factory.mktemp("runs")
    port = free_port()
    ranks = [start(one_of_two, rank, port, VARIED, data, folder / "two") for rank in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CocoEvaluator, "compute", recording(folder / "results"))
        fit.train(VARIED, data, folder / "one")
    assert exit_codes(*ranks) == [0, 0]
    return folder / "one", folder / "two"


def test_some_batches_have_no_objects(data: Path) -> None:
    splits = TrainValDataModule(data, VARIED)
    counts = []
    for epoch in range(2):
        for rank in range(2):
            splits._processes = lambda rank=rank: (2, rank)  # type: ignore[method-assign, misc]
            loader: Any = splits.train_dataloader()
            loader.batch_sampler.sampler.set_epoch(epoch)
            counts += [sum(map(len, targets)) for _, targets in loader]
    assert 0 in counts
    assert any(counts)


def test_losses_equal_those_of_the_joint_batch(both: tuple[Path, Path]) -> None:
    one, two = (list(csv.DictReader((out / "metrics.csv").open())) for out in both)
    assert [row["step"] for row in two] == ["2", "4"]
    for a, b in zip(one, two, strict=True):
        for name in (name for name in a if name.startswith("loss/")):
            assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-5, abs=1e-5)


def test_weights_equal_those_of_the_joint_batch(both: tuple[Path, Path]) -> None:
    one, two = (load_file(out / "last.safetensors") for out in both)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    momentum = torch.load(both[0] / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    moved = max(float(state["momentum_buffer"].abs().max()) for state in momentum.values())
    assert moved * 0.02 > 1e-3  # the steps are large enough for the comparison to be meaningful


def test_only_rank_zero_writes_and_reports(both: tuple[Path, Path]) -> None:
    folder = both[1].parent
    assert (
        len(json.loads((folder / "lines 0").read_text())) == 6
    )  # layout, machine, two epochs, threshold, result
    assert json.loads((folder / "lines 1").read_text()) == []
    assert {path.name for path in both[0].iterdir()} == {path.name for path in both[1].iterdir()}
    assert len(list((both[1] / "tensorboard").glob("events*"))) == 1


def spoiled(rank: int, port: int, recipe: Recipe, data: Path, out: Path) -> None:
    """Train as one of two processes, the second of which has a non-finite loss in the second step."""
    if rank == 1:
        compute, calls = EmbedMaskModule.compute_losses, [0]

        def spoil(self: EmbedMaskModule, batch: Any) -> dict[str, torch.Tensor]:
            calls[0] += 1
            return {
                name: term * (math.nan if calls[0] == 2 else 1) for name, term in compute(self, batch).items()
            }

        EmbedMaskModule.compute_losses = spoil  # type: ignore[method-assign]
    try:
        one_of_two(rank, port, recipe, data, out)
    except TrainingStopped as error:
        (out.parent / f"stopped {rank}").write_text(str(error))


def test_non_finite_loss_in_one_process_stops_both(data: Path, tmp_path: Path) -> None:
    port = free_port()
    ranks = [start(spoiled, rank, port, VARIED, data, tmp_path / "run") for rank in range(2)]
    assert exit_codes(*ranks) == [0, 0]
    messages = [(tmp_path / f"stopped {rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("step 2: the loss is not finite")
    images = messages[0].partition("images ")[2].partition(";")[0].split(", ")
    assert len(images) == 3  # of both processes: the second batch has three


def test_evaluation_uses_the_images_of_all_processes(both: tuple[Path, Path]) -> None:
    """Compare the results, since the AP of so short a training is 0."""
    one, two = (sorted(json.loads((both[0].parent / name).read_text())) for name in ("results", "results 0"))
    assert {image_id for image_id, _ in one} == {1, 2}
    assert [image_id for image_id, _ in two] == [image_id for image_id, _ in one]
    assert [score for _, score in two] == pytest.approx([score for _, score in one], abs=1e-3)


def test_processes_follow_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_processes(CPU, None, 1) == Processes(1, 1)
    assert choose_processes(CPU, 2, 3) == Processes(2, 3)
    assert choose_processes(torch.device("cuda:1"), None, 1) == Processes([1], 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_processes(CUDA, None, 1) == Processes(4, 1)
    assert choose_processes(CUDA, 2, 1) == Processes(2, 1)
    assert not any(few.is_multi_process for few in (Processes(1), Processes([1])))
    assert all(many.is_multi_process for many in (Processes(2), Processes(1, 2)))


def test_processes_follow_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "WORLD_SIZE": "6"}.items():
        monkeypatch.setenv(name, value)
    assert choose_processes(CPU, None, 1) == Processes(2, 3)
    with pytest.raises(BadInput, match="torchrun has started 2"):
        choose_processes(CPU, 4, 1)


@pytest.mark.parametrize(("devices", "nodes", "name"), [(0, 1, "--devices"), (1, 0, "--nodes")])
def test_raises_on_invalid_numbers(devices: int, nodes: int, name: str) -> None:
    with pytest.raises(BadInput, match=f"{name} must be at least 1"):
        choose_processes(CPU, devices, nodes)


def test_raises_on_two_processes_for_one_device() -> None:
    with pytest.raises(BadInput, match="is one device"):
        choose_processes(torch.device("cuda:0"), 2, 1)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_rank_zero_of_any_launcher(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_rank_zero()
    monkeypatch.setenv(name, "0")
    assert is_rank_zero()
    monkeypatch.setenv(name, "1")
    assert not is_rank_zero()


def test_gather_in_one_process_returns_its_items() -> None:
    items: list[Any] = [1, "a"]
    assert gather(items) == items
