"""What `predict` does: sources in; images with masks drawn, results and other forms of them out."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from embedmask.cli.dataset_ids import DatasetIds
from embedmask.cli.journal import Journal, Row
from embedmask.cli.sources import Source, find_sources, refuse_overwriting
from embedmask.cli.video import VideoReader, write_video
from embedmask.cli.writers import (
    Format,
    drawn_name,
    remove_leftovers,
    targets,
    write_annotations,
    write_classes,
)
from embedmask.config import DEFAULT_READING, DetectorConfig, Engine, Precision, ReadOptions, ScoreThreshold
from embedmask.data.images import read_extent
from embedmask.data.pages import UnreadPages, report_defaults
from embedmask.errors import BadInput
from embedmask.inference.device import choose_device
from embedmask.inference.loop import choose_workers
from embedmask.inference.predictor import Predictor
from embedmask.inference.prefetch import ImageResult
from embedmask.inference.results import coco_results, to_detections
from embedmask.training.processes import Processes, choose_processes, gather, rank_and_world_size
from embedmask.visualize import Pixels, draw_detections, write_image
from embedmask.weights.checkpoint import Checkpoint, load_checkpoint
from embedmask.weights.released import find_weights

BLOCK_BATCHES = 4
"""Batches are made inside blocks of so many, so that they do not depend on who computes the others."""
ROOM = 2**27
"""Bytes of images that wait to be written."""
HINT_IMAGES = 8
"""Images that are looked at again where a run found nothing."""

Broken = tuple[int, str]
"""Place of a file in the list of all, and what is wrong with it."""
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Settings:
    """All that the results depend on, beside the weights; the fields are options of the command.

    Attributes:
        score_threshold, max_detections, page, channels: None: as the model's config says.
        tile: None: no tiles.
    """

    format: Format
    score_threshold: ScoreThreshold | None
    max_detections: int | None
    tile: int | None
    overlap: int
    precision: Precision
    engine: Engine
    no_draw: bool
    page: int | None = None
    channels: list[int] | None = None

    def reading(self) -> ReadOptions:
        """Return how image files are read."""
        return DEFAULT_READING.changed(self.page, self.channels)

    def __post_init__(self) -> None:
        self.reading()  # checks its fields


@dataclass(frozen=True)
class PredictSummary:
    """What became of a run, as its first process knows it.

    Attributes:
        num_images, num_objects: of all that is finished, also earlier.
        broken: one line for each file that could not be used.
        hint: where no object was found at all, the best score there was.
        notes: one line for each kind of file that was not read, or not all of it.
    """

    num_images: int = 0
    num_objects: int = 0
    broken: Sequence[str] = ()
    hint: str = ""
    notes: Sequence[str] = ()


def predict_files(
    given: Sequence[str],
    weights: Path,
    out: Path,
    settings: Settings,
    *,
    resume: bool,
    batch_size: int | None,
    device: str,
    devices: int | None,
    nodes: int,
    progress: bool,
    ids_from: Path | None = None,
) -> PredictSummary:
    """Predict images and videos into `out`; what has its name there is whole at any time.

    A broken file stops nothing. With several processes each takes its share of the files, and the first one joins the
    results, which do not depend on their number.

    Args:
        given: files, folders and patterns.
        resume: pass over what is finished; the settings must be the same.
        batch_size: images that the network sees at once; None: what suits the device.
        ids_from: data set whose image and category ids the results carry; None: they are counted.

    Raises:
        BadInput: nothing to predict, settings that are impossible or others than the run's, weights that cannot be
            used, or a folder that cannot be written.
    """
    notes: list[str] = []
    sources = find_sources(given, notes.append)
    refuse_overwriting(sources, targets(sources, settings.format, out, drawn=not settings.no_draw))
    checkpoint = load_checkpoint(weights)
    ids = None if ids_from is None else DatasetIds.read(ids_from, sources, checkpoint.class_names)
    # records hold what the results depend on
    settings = _resolved(settings, checkpoint.config, checkpoint.class_names)
    records = Journal(out, {**asdict(settings), "weights": _hash(find_weights(weights))})
    if resume:
        records.check()
    where = choose_device(device)
    warnings.filterwarnings("ignore", category=UnreadPages)  # `notes` say it in one line
    with _joined(where, choose_processes(where, devices, nodes)) as own:
        share = Worker(checkpoint, own, settings, records, batch_size)
        is_first = rank_and_world_size()[0] == 0
        try:
            if is_first:
                records.begin(resume=resume)
                remove_leftovers(settings.format, out)
                notes += report_defaults([source.path for source in sources], settings.reading(), read_extent)
            gather([])  # nobody writes before the folder is ready
            broken = sorted(gather(share.predict(sources, progress=progress and is_first)))
            if not is_first:
                return PredictSummary()
            done = [source for source in sources if records.is_done(source)]
            counts = (0, 0)
            if done:
                write_classes(settings.format, out, checkpoint.class_names)
                counts = records.merge(done, checkpoint.class_names, ids)
            hint = "" if counts[1] else best_score_hint(share.predictor, settings, done)
            return PredictSummary(*counts, [line for _, line in broken], hint, notes)
        finally:
            if is_first:
                records.discard_empty()


def _resolved(settings: Settings, config: DetectorConfig, class_names: Sequence[str]) -> Settings:
    """Fill in what the model's config says where nothing is requested."""
    decision = config.decision(settings.score_threshold, class_names)
    reading = config.reading().changed(settings.page, settings.channels)
    return replace(
        settings,
        score_threshold=decision[0] if len(set(decision)) == 1 else list(decision),
        page=reading.page,
        channels=None if reading.channels is None else list(reading.channels),
    )


def best_score_hint(predictor: Predictor, settings: Settings, done: Sequence[Source]) -> str:
    """Return one line with the best score in the first images of a run that found nothing; empty without images."""
    images = [source.path for source in done if not source.is_video][:HINT_IMAGES]
    results = predictor.stream(
        images, score_threshold=0.0, max_detections=1, tile=settings.tile, overlap=settings.overlap
    )
    scores = [
        (float(result.instances.scores[0]), path)
        for path, result in zip(images, results, strict=True)
        if result.instances is not None and len(result.instances)
    ]
    if not scores:
        return f"in the first {len(images)} there is no candidate with any score" if images else ""
    score, path = max(scores)
    looked = (
        f"the best score in {len(images)} of {len(done)} is"
        if len(images) < len(done)
        else "the best score is"
    )
    return f"{looked} {score:.2g} ({path}); a lower --score-threshold shows more"


def _joined(device: torch.device, processes: Processes) -> AbstractContextManager[torch.device]:
    if not processes.are_many:
        return nullcontext(device)
    from embedmask.training.engine import joined  # needs Lightning, which a plain installation lacks

    return joined(device, processes)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Worker:
    """One process's part of the work."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        settings: Settings,
        records: Journal,
        batch_size: int | None,
    ) -> None:
        """With the model on its device; nothing is written yet.

        Raises:
            BadInput: settings that are impossible, or impossible here.
        """
        self.out, self.settings, self.records = records.out, settings, records
        self.predictor = Predictor(
            checkpoint.model,
            checkpoint.class_names,
            device=device,
            precision=settings.precision,
            engine=settings.engine,
        )
        batch_size = self.predictor.batch_size if batch_size is None else batch_size
        self.block = 1 if batch_size == 1 else BLOCK_BATCHES * batch_size
        self.stream: Callable[[Iterable[Any]], Iterator[ImageResult]] = partial(
            self.predictor.stream,
            score_threshold=settings.score_threshold,
            max_detections=settings.max_detections,
            tile=settings.tile,
            overlap=settings.overlap,
            page=settings.page,
            channels=settings.channels,
            batch_size=batch_size,
            skip_broken=True,
        )
        self.stream([])  # tells at once what is impossible

    def predict(self, sources: Sequence[Source], *, progress: bool) -> list[Broken]:
        """Everything of this share that is not finished."""
        numbered = list(enumerate(sources))
        blocks = self._blocks([(number, source) for number, source in numbered if not source.is_video])
        rank, world_size = rank_and_world_size()
        videos = [(number, source) for number, source in numbered if source.is_video][rank::world_size]
        videos = [(number, source) for number, source in videos if not self.records.is_done(source)]
        broken: list[Broken] = []
        with tqdm(total=sum(map(len, blocks)) + len(videos), unit=" images", disable=not progress) as bar:
            for block in blocks:
                found = zip(block, self.stream([source.path for _, source in block]), strict=True)
                for problem in _in_background(self._image, found):
                    bar.update()
                    broken += problem
            for number, source in videos:
                try:
                    self._video(source, bar)
                except BadInput as error:
                    broken.append((number, str(error)))
        return broken

    def _blocks(self, images: Sequence[tuple[int, Source]]) -> list[list[tuple[int, Source]]]:
        """Images that share batches: what is in a batch depends neither on other processes nor on a resume."""
        rank, world_size = rank_and_world_size()
        blocks = [list(images[start : start + self.block]) for start in range(0, len(images), self.block)]
        blocks = [
            block
            for block in blocks[rank::world_size]
            if not all(self.records.is_done(source) for _, source in block)
        ]
        return blocks if self.block > 1 else [list(chain.from_iterable(blocks))]

    def _image(self, job: tuple[tuple[int, Source], ImageResult]) -> list[Broken]:
        """Write all of one image, its record last."""
        (number, source), result = job
        if result.error is not None:
            return [(number, str(result.error))]
        if not self.records.is_done(source):
            row, image = self._show(source, source.name, result)
            if image is not None:
                write_image(image, self.out / drawn_name(source))
            self.records.write(source, [row])
        return []

    def _video(self, source: Source, bar: Any) -> None:
        """Write all of one video, its record last.

        Raises:
            BadInput: not a video, or one without frames, or one that breaks off: what it gave is written.
        """
        video = VideoReader(source.path)
        bar.total += max(video.total - 1, 0)

        def frame(job: tuple[int, ImageResult]) -> tuple[Row, Pixels | None]:
            row, image = self._show(source, f"{source.name}/{job[0]:06}", job[1])
            return {"frame": job[0], "time": video.seconds(job[0]), **row}, image

        def rows() -> Iterator[Row]:
            path = self.out / drawn_name(source)
            with nullcontext() if self.settings.no_draw else write_video(path, video) as show:
                found = enumerate(self.stream(video.frames()))
                for row, image in _in_background(frame, found):
                    if show is not None and image is not None:
                        show(image, row["frame"])
                    bar.update()
                    yield row

        self.records.write(source, rows())
        if video.breaks_off:
            of, why = f" of {video.total}" if video.total else "", f" ({video.error})" if video.error else ""
            raise BadInput(
                f"{source.path}: breaks off after {len(video.times)}{of} frames{why}; replace the file"
            )

    def _show(self, source: Source, name: str, result: ImageResult) -> tuple[Row, Pixels | None]:
        """An image's row of the results, and the image drawn where that is wanted; writes its other form."""
        assert result.image is not None
        assert result.instances is not None
        found, names = result.instances, self.predictor.class_names
        write_annotations(self.settings.format, self.out, name, found, class_names=names, source=source.path)
        height, width = result.image.shape[1:]
        results = coco_results(found, 0, range(1, len(names) + 1))
        row = {"name": name, "height": height, "width": width, "results": results}
        # a large image must not be held beside its drawn copy while that is written
        image, result.image = result.image, None
        if self.settings.no_draw:
            return row, None
        return row, draw_detections(image, to_detections(found, names), names)


def _in_background(
    work: Callable[[tuple[Item, ImageResult]], Made], jobs: Iterable[tuple[Item, ImageResult]]
) -> Iterator[Made]:
    """The work on every job, in order, done in threads while the next jobs are waited for."""
    workers = max(choose_workers(None), 1)
    waiting: deque[tuple[Future[Made], int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for job in jobs:
            size = 0 if job[1].image is None else job[1].image.numel()
            waiting.append((pool.submit(work, job), size))
            while len(waiting) > 2 * workers or sum(size for _, size in waiting) > ROOM:
                yield waiting.popleft()[0].result()
        while waiting:
            yield waiting.popleft()[0].result()
