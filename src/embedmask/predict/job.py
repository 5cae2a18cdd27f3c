"""`run`: prediction of files, in one process or several that share them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from embedmask.config import Engine, Precision, ScoreThreshold
from embedmask.data.images import read_extent
from embedmask.data.pages import UnreadPages, report_defaults
from embedmask.device import choose_device
from embedmask.distributed import choose_processes, gather, launch_processes, rank_and_world_size
from embedmask.files import exclusive
from embedmask.predict.dataset_ids import DatasetIds
from embedmask.predict.journal import Journal
from embedmask.predict.sources import Source, find_sources, refuse_overwriting
from embedmask.predict.summary import PredictSummary
from embedmask.predict.worker import Settings, Worker
from embedmask.predict.writers import (
    Format,
    check_format,
    remove_leftovers,
    targets,
)
from embedmask.weights.checkpoint import load_checkpoint
from embedmask.weights.released import find_weights


def run(
    sources: str | Path | Sequence[str | Path],
    weights: str | Path,
    out: str | Path,
    *,
    format: Format = "coco",
    ids_from: str | Path | None = None,
    draw: bool = True,
    score_threshold: ScoreThreshold | None = None,
    max_detections: int | None = None,
    tile: int | None = None,
    overlap: int = 128,
    page: int | None = None,
    channels: Sequence[int] | None = None,
    level: int = 0,
    resume: bool = False,
    batch_size: int | None = None,
    precision: Precision = "auto",
    engine: Engine = "torch",
    device: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
    progress: bool = False,
) -> PredictSummary:
    """Predict images and videos and write the results into `out`, as `embedmask predict` does.

    Files are written atomically. Broken files are skipped and listed in the summary. Nothing is printed. Several
    processes share the files, and rank zero merges the results, which do not depend on the number of processes.

    Args:
        sources: Files, folders and patterns.
        weights: Model file, name of a bundled model, or `user/model` on the Hugging Face Hub.
        out: Results folder; files of the same name are replaced.
        format: Annotation files per image, beside `predictions.json`.
        ids_from: Data set whose image and category ids the results carry; None: images are numbered from 1.
        draw: Write images and videos with masks drawn.
        score_threshold, max_detections, page, channels: As in `Predictor`; None: from the model's config.
        tile, overlap: Side and overlap of square tiles, px; None: no tiles.
        level: Level of image pyramids, as in `Predictor`; results are in its frame, and GeoJSON in that of level 0.
        resume: Skip finished files; the options must be those of the earlier run.
        batch_size: Images per batch; None: chosen for the device.
        precision, engine: Number format of the convolutions, and engine of the network, as in `Predictor`.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        devices: Processes per machine; None: one per CUDA device, else one. Processes that torchrun has not started
            run the calling script from its beginning, and receive an empty summary.
        nodes: Number of machines.
        progress: Show a progress bar on stderr.

    Raises:
        BadInput: No sources, invalid options or other ones than those of the resumed run, unusable weights, or an
            unwritable folder.
    """
    settings = Settings(
        format=format,
        score_threshold=score_threshold,
        max_detections=max_detections,
        tile=tile,
        overlap=overlap,
        precision=precision,
        engine=engine,
        no_draw=not draw,
        page=page,
        channels=None if channels is None else list(channels),
        level=level,
    )
    check_format(format)
    notes: list[str] = []
    files = find_sources([sources] if isinstance(sources, (str, Path)) else sources, notes.append)
    options = {"--page": page, "--channels": channels, "--level": level or None}
    unused = [name for name, value in options.items() if value is not None]
    if unused and any(source.is_video for source in files):
        notes.append(f"videos are read without {', '.join(unused)}, which apply to images")
    refuse_overwriting(files, targets(files, format, Path(out), drawn=draw))
    weights = find_weights(weights)
    checkpoint = load_checkpoint(weights)
    ids = None if ids_from is None else DatasetIds.read(Path(ids_from), files, checkpoint.class_names)
    settings = settings.resolved(checkpoint)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    journal = Journal(Path(out), {**asdict(settings), "weights": digest})
    if resume:
        journal.check()
    target = choose_device(device)
    with launch_processes(target, choose_processes(target, devices, nodes)) as own_device:
        worker = Worker(checkpoint, own_device, settings, journal, batch_size)
        # rank zero prepares the folder and merges, for all processes of this run
        with exclusive(Path(out)) if rank_and_world_size()[0] == 0 else nullcontext():
            return _predict(worker, files, ids, notes, resume=resume, progress=progress)


def _predict(
    worker: Worker,
    sources: Sequence[Source],
    ids: DatasetIds | None,
    notes: list[str],
    *,
    resume: bool,
    progress: bool,
) -> PredictSummary:
    """Predict this process's share; rank zero also prepares the folder, and merges and sums up all results."""
    is_rank_zero = rank_and_world_size()[0] == 0
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UnreadPages)  # the notes sum them up in one line
            if is_rank_zero:
                worker.journal.begin(resume=resume)
                remove_leftovers(worker.settings.format, worker.out)
                paths = [source.path for source in sources]
                notes += report_defaults(paths, worker.settings.reading(), read_extent)
            gather([])  # a barrier: no process writes before the folder is ready
            # sorted by position in the list of sources
            broken = sorted(gather(worker.predict(sources, progress=progress and is_rank_zero)))
            notes += gather(worker.notes)
            if not is_rank_zero:
                return PredictSummary()
            counts, hint = worker.merge(sources, ids)
        return PredictSummary(*counts, tuple(line for _, line in broken), hint, tuple(notes))
    finally:
        if is_rank_zero:
            worker.journal.discard_empty()
