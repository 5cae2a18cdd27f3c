"""A run that is killed and resumed has results identical to those of an uninterrupted run."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import left_behind, same, start, tiny

from embedmask import files
from embedmask.config import Recipe
from embedmask.errors import BadInput, TrainingStopped
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import checkpoints, fit
from embedmask.training.callbacks import BEST_METRIC, ResultsFolder, read_evaluation
from embedmask.training.dry_run import run_dry
from embedmask.training.module import EmbedMaskModule
from embedmask.weights.checkpoint import load_checkpoint

EVERY_TWO = {"checkpoint_steps": 2, "checkpoint_minutes": None}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=14, val=2, size=64, seed=0)
    return folder


@pytest.fixture(scope="module")
def straight(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two epochs of four steps without an interruption."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    fit.train(tiny(**EVERY_TWO), shapes, out)
    return out


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(owner: Any, name: str, number: int, *, after: bool = False) -> None:
    """Make a function kill its process in a given call, at its start or at its end."""
    work, calls = getattr(owner, name), [0]

    def deadly(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not after:
            die()
        result = work(*args, **kwargs)
        if calls[0] == number:
            die()
        return result

    setattr(owner, name, deadly)


def die_at_checkpoint(number: int) -> None:
    """Make the process die before a checkpoint is renamed."""
    replace, calls = os.replace, [0]

    def deadly(source: Any, target: Any) -> None:
        calls[0] += Path(target).name == "last.ckpt"
        if calls[0] == number:
            die()
        replace(source, target)

    os.replace = deadly


def write_half(number: int) -> None:
    """Make the process die while it writes a checkpoint."""
    save, calls = torch.save, [0]

    def half(value: Any, file: Any) -> None:
        save(value, file)
        calls[0] += 1
        if calls[0] == number:
            file.flush()
            file.truncate(file.tell() // 2)
            die()

    checkpoints.torch.save = half  # type: ignore[attr-defined]


MOMENTS = {
    "in the second step, before any checkpoint": lambda: die_at_call(EmbedMaskModule, "training_step", 2),
    "after the third step's losses": lambda: die_at_call(EmbedMaskModule, "training_step", 3, after=True),
    "while the second checkpoint is written": lambda: write_half(2),
    "before the second checkpoint has its name": lambda: die_at_checkpoint(2),
    "in the second evaluation": lambda: die_at_call(EmbedMaskModule, "validation_step", 3),
}


def killed_run(moment: str, recipe: Recipe, data: Path, out: Path) -> None:
    """Train until the moment; called in a process of its own."""
    MOMENTS[moment]()
    fit.train(recipe, data, out)


@pytest.mark.parametrize("moment", MOMENTS)
def test_resumed_run_equals_an_uninterrupted_one(
    moment: str, straight: Path, shapes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(killed_run, moment, tiny(**EVERY_TWO), shapes, out)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    torch.rand(100)  # the random state of this process must have no effect
    fit.train(tiny(**EVERY_TWO), shapes, out, resume=True)
    assert same(left_behind(straight), left_behind(out))
    assert rows(straight) == rows(out)
    assert not any(files.is_temporary(path) for path in out.iterdir())


def interrupted_run(number: int, sent: int, data: Path, out: Path, message: Path) -> None:
    """Train until step `number`, in which the process sends itself a signal; write the error to a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work, calls = EmbedMaskModule.training_step, [0]

    def step(self: EmbedMaskModule, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), sent)
        return work(self, *args)

    EmbedMaskModule.training_step = step  # type: ignore[method-assign]
    try:
        fit.train(tiny(**EVERY_TWO), data, out)
    except TrainingStopped as error:
        message.write_text(str(error))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_explained(sent: int, straight: Path, shapes: Path, tmp_path: Path) -> None:
    for number, expected in ((1, "before the first checkpoint"), (4, "--resume continues")):
        out, message = tmp_path / f"run {number}", tmp_path / f"{number}.txt"
        process = start(interrupted_run, number, sent, shapes, out, message)
        process.join(120)
        assert process.exitcode == 0
        assert f"{out}: interrupted" in message.read_text()
        assert expected in message.read_text()
        assert out.exists() == (number > 1)
    fit.train(tiny(**EVERY_TWO), shapes, out, resume=True)
    assert same(left_behind(straight), left_behind(out))


def rows(out: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without seconds."""
    reader = csv.DictReader((out / "metrics.csv").open())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in reader]


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": None, "max_steps": 7},  # ends within an epoch
        {"accumulate": 2, "ema_decay": None, "eval_every": 2, "workers": 1},
    ],
    ids=["steps", "accumulate"],
)
def test_every_checkpoint_resumes_to_the_same_result(
    changes: dict[str, Any], shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, kept = tiny(**{**EVERY_TWO, **changes}), []
    write = checkpoints.LastCheckpoint._write

    def write_and_keep(self: checkpoints.LastCheckpoint, *args: Any) -> None:
        write(self, *args)
        kept.append({path.name: path.read_bytes() for path in self.path.parent.iterdir() if path.is_file()})

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.LastCheckpoint, "_write", write_and_keep)
        fit.train(recipe, shapes, tmp_path / "straight")
    assert len(kept) == 4
    for number, contents in enumerate(kept[1:3]):
        out = tmp_path / str(number)
        out.mkdir()
        for name, content in contents.items():
            (out / name).write_bytes(content)
        fit.train(recipe, shapes, out, resume=True)
        assert same(left_behind(tmp_path / "straight"), left_behind(out))
        assert rows(tmp_path / "straight") == rows(out)


def test_seed_determines_the_run(straight: Path, shapes: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        fit.train(tiny(**EVERY_TWO, seed=seed), shapes, tmp_path / name)
    assert same(left_behind(straight), left_behind(tmp_path / "same"))
    assert not same(left_behind(straight), left_behind(tmp_path / "other"))


def test_resume_raises_on_another_recipe(straight: Path, shapes: Path, tmp_path: Path) -> None:
    for name in ("last.ckpt", "recipe.yaml", "run.json"):
        (tmp_path / name).write_bytes((straight / name).read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for run in (fit.train, run_dry):
        with pytest.raises(BadInput, match=r"train\.batch_size is 2, began with 4"):
            run(tiny(**EVERY_TWO, batch_size=2), shapes, tmp_path, resume=True, report=print)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resume_raises_on_other_batches_without_a_recipe(
    straight: Path, shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "last.ckpt").write_bytes((straight / "last.ckpt").read_bytes())
    with pytest.raises(BadInput, match="began with 4 batches per epoch and cannot be resumed with 7"):
        fit.train(tiny(**EVERY_TWO, batch_size=2), shapes, tmp_path, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock of a folder")
def test_one_process_trains_in_a_folder(straight: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(straight, out)
    # a checkpoint that the other process is writing
    (out / ".last.ckpt.0123456789ab.ckpt").touch()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with files.exclusive(out), pytest.raises(BadInput, match="another run is writing there"):
        fit.train(tiny(**EVERY_TWO), shapes, out, resume=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_time_limit_within_an_accumulated_step_leaves_a_checkpoint(shapes: Path, tmp_path: Path) -> None:
    changes = {"epochs": 1, "accumulate": 2}
    fit.train(tiny(**changes), shapes, tmp_path / "straight")
    out = tmp_path / "run"
    # the time is up in the first of two parts
    assert fit.train(tiny(**changes, max_minutes=1e-6), shapes, out)["steps"] == 1
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 1
    assert fit.train(tiny(**changes), shapes, out, resume=True)["steps"] == 4
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("straight", "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_best_weights_of_a_stopped_run_keep_their_metrics(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = iter([0.3, 0.6, 0.5])
    monkeypatch.setattr(
        ResultsFolder, "_measure", lambda self, results: {BEST_METRIC: next(aps), "bbox/AP": 0}
    )
    out = tmp_path / "run"
    fit.train(tiny(epochs=1), shapes, out)
    # evaluated after the first step of the second epoch, and after the checkpoint of that step
    stopped = fit.train(tiny(max_minutes=1e-6), shapes, out, resume=True)
    assert (stopped["steps"], stopped["kept_step"], stopped[BEST_METRIC]) == (5, 5, 0.6)
    best = (out / "best.safetensors").read_bytes()
    metrics = fit.train(tiny(), shapes, out, resume=True)
    assert (metrics["steps"], metrics["kept_step"], metrics[BEST_METRIC]) == (8, 5, 0.6)
    assert metrics["kept"] == "best of 3 evaluations"
    assert (out / "best.safetensors").read_bytes() == (out / "model.safetensors").read_bytes() == best
    assert read_evaluation(out / "best.safetensors") == {
        "step": 5,
        "metrics": {BEST_METRIC: 0.6, "bbox/AP": 0},
    }


def test_finished_run_reports_settings_that_its_weights_do_not_have(
    straight: Path, shapes: Path, tmp_path: Path
) -> None:
    out, lines = tmp_path / "run", list[str]()
    shutil.copytree(straight, out)
    recipe, weights = (out / "recipe.yaml").read_text(), (out / "model.safetensors").read_bytes()
    changed = tiny({"nms_threshold": 0.4}, **EVERY_TWO)
    fit.train(changed, shapes, out, resume=True, report=lines.append)
    (line,) = (line for line in lines if "no steps left" in line)
    assert line.endswith("model.nms_threshold stays 0.6, not 0.4")
    assert (out / "recipe.yaml").read_text() == recipe
    assert (out / "model.safetensors").read_bytes() == weights
    # with steps left, the weights have the new setting, and nothing is reported
    lines.clear()
    fit.train(
        tiny({"nms_threshold": 0.4}, **EVERY_TWO, epochs=3), shapes, out, resume=True, report=lines.append
    )
    assert not [line for line in lines if "no steps left" in line]
    assert Recipe.from_yaml(out / "recipe.yaml").model.nms_threshold == 0.4
    assert load_checkpoint(out / "last.safetensors").config.nms_threshold == 0.4
