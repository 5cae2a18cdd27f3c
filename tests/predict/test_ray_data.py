"""Prediction on a local Ray cluster of two workers: equal to one process, also after a lost worker."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from embedmask import Predictor
from embedmask.errors import BadInput
from embedmask.inference.results import coco_results

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
from embedmask.predict.ray_data import Batch, PredictBatch, predict_dataset  # noqa: E402

pytestmark = pytest.mark.slow  # a cluster takes a minute and a half

LOAD = {"device": "cpu", "precision": "float32"}
OPTIONS = {"score_threshold": 0.45, "max_detections": 20}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Any:
    """Start a cluster on this machine: cores for two workers, and for the tasks that read, filter and write."""
    # the workers import the package, and this file for `DiesOnce`
    folders = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent)]
    ray.init(
        num_cpus=5,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=2**27,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    # some messages of Ray Data cannot be formatted, which pytest raises
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield
    ray.shutdown()


def expected(paths: list[Path], weights: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each image by one process."""
    predictor = Predictor.load(weights, **LOAD)
    results = {}
    for path, result in zip(paths, predictor.predict_stream(paths, **OPTIONS), strict=True):
        rows = coco_results(result.instances, 0, range(1, len(predictor.class_names) + 1))
        results[str(path)] = [{key: row[key] for key in row if key != "image_id"} for row in rows]
    return results


def dataset_of(paths: list[Path]) -> Any:
    return ray.data.from_items([{"path": str(path)} for path in paths], override_num_blocks=3)


def by_path(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {row["path"]: json.loads(row["results"]) for row in rows}


def test_two_workers_equal_one_process(images: Path, weights: Path, tmp_path: Path) -> None:
    paths = sorted(images.iterdir())
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    dataset = predict_dataset(
        dataset_of([*paths, broken]), weights, workers=2, batch_size=3, load=LOAD, options=OPTIONS
    )
    dataset.write_parquet(str(tmp_path / "out"))
    rows = ray.data.read_parquet(str(tmp_path / "out")).take_all()
    results = by_path(rows)
    assert results.pop(str(broken)) == []
    assert results == expected(paths, weights)
    assert any(results.values())
    errors = {row["path"]: row["error"] for row in rows if row["error"]}
    assert list(errors) == [str(broken)]
    assert "broken.png" in errors[str(broken)]
    assert {(row["height"], row["width"]) for row in rows} == {(64, 64), (0, 0)}


class DiesOnce(PredictBatch):
    """A worker that is lost with the results of its second batch; its replacement goes on."""

    def __init__(self, *args: Any, options: dict[str, Any], **rest: Any) -> None:
        self.folder, self.batches = Path(options["folder"]), 0
        super().__init__(*args, options={key: options[key] for key in options if key != "folder"}, **rest)

    def __call__(self, batch: Batch) -> Batch:
        results = super().__call__(batch)
        self.batches += 1
        (self.folder / f"{os.getpid()}_{self.batches}").touch()
        if self.batches == 2:
            try:
                (self.folder / "died").touch(exist_ok=False)
            except FileExistsError:
                return results
            os._exit(1)
        return results


def test_lost_worker_changes_nothing(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, folder = sorted(images.iterdir()), tmp_path / "batches"
    folder.mkdir()
    monkeypatch.setattr("embedmask.predict.ray_data.PredictBatch", DiesOnce)
    options = {**OPTIONS, "folder": str(folder)}
    dataset = predict_dataset(dataset_of(paths), weights, workers=2, batch_size=1, load=LOAD, options=options)
    rows = dataset.take_all()
    assert len(rows) == len(paths)
    assert by_path(rows) == expected(paths, weights)
    assert (folder / "died").exists()
    finished = [path.name.split("_")[0] for path in folder.glob("*_*")]
    assert len(finished) > len(paths), "no batch was predicted again"
    assert len(set(finished)) > 1, "no other process went on"


def test_interrupted_job_continues_from_its_checkpoint(images: Path, weights: Path, tmp_path: Path) -> None:
    paths = sorted(images.iterdir())
    context = ray.data.DataContext.get_current()
    config = ray.data.checkpoint.CheckpointConfig(
        id_column="path", checkpoint_path=str(tmp_path / "done"), delete_checkpoint_on_success=False
    )
    try:
        context.checkpoint_config = config
        for part, count in (("first", 4), ("second", len(paths))):
            listed = tmp_path / f"{part}.csv"
            listed.write_text("\n".join(["path", *map(str, paths[:count])]))
            source = ray.data.read_csv(str(listed))
            done = predict_dataset(source, weights, workers=1, load=LOAD, options=OPTIONS)
            done.write_parquet(str(tmp_path / part))
    finally:
        context.checkpoint_config = None
    first, second = (
        by_path(ray.data.read_parquet(str(tmp_path / part)).take_all()) for part in ("first", "second")
    )
    assert sorted(first) == [str(path) for path in paths[:4]]
    assert sorted(second) == [str(path) for path in paths[4:]]
    assert {**first, **second} == expected(paths, weights)


def test_unknown_column_is_named(weights: Path) -> None:
    dataset = ray.data.from_items([{"file": "a.png"}])
    with pytest.raises(BadInput, match="no column 'path'; it has file"):
        predict_dataset(dataset, weights, workers=1)
