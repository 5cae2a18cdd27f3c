"""One process's share of a prediction: images and videos in, result files out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from embedmask.config import DEFAULT_READING, Engine, Precision, ReadOptions, ScoreThreshold
from embedmask.data.images import read_downsample, size_of
from embedmask.data.slides import Slide
from embedmask.device import choose_workers
from embedmask.distributed import rank_and_world_size
from embedmask.errors import BadInput, UnsupportedImage
from embedmask.inference.predictor import Predictor
from embedmask.inference.prefetch import ImageResult
from embedmask.inference.results import coco_results, to_detections
from embedmask.predict.dataset_ids import DatasetIds
from embedmask.predict.journal import Journal, Row
from embedmask.predict.sources import Source
from embedmask.predict.video import VideoReader, write_video
from embedmask.predict.writers import (
    Format,
    ImageOutput,
    drawn_name,
    targets,
    write_annotations,
    write_classes,
)
from embedmask.visualize import Pixels, draw_detections, write_image
from embedmask.weights.checkpoint import Checkpoint

BLOCK_BATCHES = 4
"""Batches per block. Batches never span blocks, so their contents do not depend on the number of processes."""
MAX_PENDING_BYTES = 2**27
"""Limit of the images that wait to be written, bytes."""
HINT_IMAGES = 8
"""Images that are predicted again for the hint of a run without detections."""

Broken = tuple[int, str]
"""Position of a file in the list of sources, and its error."""
Item = TypeVar("Item")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Settings:
    """Options that the results depend on, beside the weights; journalled under the names of the command line.

    Attributes:
        score_threshold, max_detections, page, channels: None: from the model's config.
        tile: Side of tiles, px; None: no tiles.
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
    level: int = 0

    def reading(self) -> ReadOptions:
        """Return the options of reading image files."""
        return DEFAULT_READING.changed(self.page, self.channels, self.level)

    def resolved(self, checkpoint: Checkpoint) -> Settings:
        """Return the settings with missing values filled in from the model's config.

        Raises:
            BadInput: A threshold names a class that the model lacks.
        """
        config = checkpoint.config
        thresholds = config.score_thresholds(self.score_threshold, checkpoint.class_names)
        reading = config.reading().changed(self.page, self.channels)
        return replace(
            self,
            # one number if the classes agree, so that equal options compare equal on resume
            score_threshold=thresholds[0] if len(set(thresholds)) == 1 else list(thresholds),
            page=reading.page,
            channels=None if reading.channels is None else list(reading.channels),
        )

    def __post_init__(self) -> None:
        """Validate page, channels and level."""
        self.reading()


class Worker:
    """One process's share of a run."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        settings: Settings,
        journal: Journal,
        batch_size: int | None,
    ) -> None:
        """Move the model to the device; nothing is written yet.

        Raises:
            BadInput: Settings that are invalid, or not available on this machine.
        """
        self.out, self.settings, self.journal = journal.out, settings, journal
        self.notes: list[str] = []
        self.predictor = Predictor(
            checkpoint.model,
            checkpoint.class_names,
            device=device,
            precision=settings.precision,
            engine=settings.engine,
        )
        batch_size = self.predictor.batch_size if batch_size is None else batch_size
        # images per block; single images need no grouping
        self.block = 1 if batch_size == 1 else BLOCK_BATCHES * batch_size
        self.stream: Callable[..., Iterator[ImageResult]] = partial(
            self.predictor.predict_stream,
            score_threshold=settings.score_threshold,
            max_detections=settings.max_detections,
            tile=settings.tile,
            overlap=settings.overlap,
            page=settings.page,
            channels=settings.channels,
            level=settings.level,
            batch_size=batch_size,
            skip_broken=True,
        )
        self.stream([])  # validates the settings before anything is written

    def predict(self, sources: Sequence[Source], *, progress: bool) -> list[Broken]:
        """Predict the unfinished sources of this process's share; return those that could not be read."""
        numbered = list(enumerate(sources))
        rank, world_size = rank_and_world_size()
        blocks = self._blocks([(number, source) for number, source in numbered if not source.is_video])
        # a video is one unit of work: process r takes videos r, r + world_size, ...
        share = [(number, source) for number, source in numbered if source.is_video][rank::world_size]
        videos: list[tuple[int, Source]] = []
        broken: list[Broken] = []
        for number, source in share:
            if not self._is_done(source):
                videos.append((number, source))
            elif (fault := self.journal.fault(source)) is not None:
                broken.append((number, fault))  # truncated: not predicted again, but still listed
        with tqdm(total=sum(map(len, blocks)) + len(videos), unit=" images", disable=not progress) as bar:
            for block in blocks:
                results = zip(block, self.stream([source.path for _, source in block]), strict=True)
                for problems in _map_in_threads(self.write_image_results, results):
                    bar.update()
                    broken += problems
            for number, source in videos:
                try:
                    self.write_video_results(source, bar)
                except BadInput as error:
                    broken.append((number, str(error)))
        return broken

    def merge(self, sources: Sequence[Source], ids: DatasetIds | None) -> tuple[tuple[int, int], str]:
        """Merge the results of all finished sources; return the numbers of images and objects, and a hint."""
        done = [source for source in sources if self.journal.is_done(source)]
        counts = (0, 0)
        if done:
            write_classes(self.settings.format, self.out, self.predictor.class_names)
            counts = self.journal.merge(done, self.predictor.class_names, ids)
        return counts, "" if counts[1] else best_score_hint(
            self.stream, self.predictor.model.config.min_score, done
        )

    def _is_done(self, source: Source) -> bool:
        """Return whether a source was finished and, for an image, all its result files exist."""
        # images that are read by windows, in tiles, may not be drawn
        drawn = not self.settings.no_draw and self.settings.tile is None
        files = targets([source], self.settings.format, self.out, drawn=drawn)
        return self.journal.is_done(source) and (source.is_video or all(path.exists() for path in files))

    def _blocks(self, images: Sequence[tuple[int, Source]]) -> list[list[tuple[int, Source]]]:
        """Return this process's blocks of images that are not all finished.

        Blocks are cut from the whole list, finished images included: batches, and with them the last bits of the
        results, depend neither on the number of processes nor on a resume.
        """
        rank, world_size = rank_and_world_size()
        blocks = [list(images[start : start + self.block]) for start in range(0, len(images), self.block)]
        blocks = [
            block
            for block in blocks[rank::world_size]
            if not all(self._is_done(source) for _, source in block)
        ]
        # with batches of one image, a single stream avoids a pause between blocks
        return blocks if self.block > 1 else [list(chain.from_iterable(blocks))]

    def write_image_results(self, job: tuple[tuple[int, Source], ImageResult]) -> list[Broken]:
        """Write all results of one image, its journal entry last; return its error, if any."""
        (number, source), result = job
        if result.error is not None:
            return [(number, str(result.error))]
        if not self._is_done(source):
            try:
                row, drawn = self._write_result(source, source.name, result)
                if drawn is not None:
                    write_image(drawn, self.out / drawn_name(source))
            except UnsupportedImage as error:  # the other images are not affected
                return [(number, str(error))]
            self.journal.write(source, [row])
        return []

    def write_video_results(self, source: Source, bar: Any) -> None:
        """Write all results of one video, its journal entry last.

        Raises:
            BadInput: The file is not a video, has no frames, or is truncated; frames read until then are written.
        """
        video = VideoReader(source.path)
        bar.total += max(video.total - 1, 0)  # the bar counts frames; a video is one unit already

        def write_frame(job: tuple[int, ImageResult]) -> tuple[Row, Pixels | None]:
            index, result = job
            row, drawn = self._write_result(source, f"{source.name}/{index:06}", result)
            return {"frame": index, "time": video.seconds(index), **row}, drawn

        # rows are produced lazily, so that frames are predicted, drawn and written in one pass
        def rows() -> Iterator[Row]:
            path = self.out / drawn_name(source)
            with (
                nullcontext()
                if self.settings.no_draw
                else write_video(path, video, self.notes.append) as append
            ):
                results = enumerate(self.stream(video.frames()))
                for row, drawn in _map_in_threads(write_frame, results):
                    if append is not None and drawn is not None:
                        append(drawn, row["frame"])
                    bar.update()
                    yield row

        self.journal.write(source, rows(), partial(describe_break, video, source))
        message = describe_break(video, source)
        if message is not None:
            raise BadInput(message)

    def _write_result(self, source: Source, name: str, result: ImageResult) -> tuple[Row, Pixels | None]:
        """Write the annotation file of an image; return its journal row, and the drawn image if requested."""
        assert result.image is not None
        assert result.instances is not None
        instances, names, settings = result.instances, self.predictor.class_names, self.settings
        height, width = size_of(result.image)
        row: Row = {"name": name, "height": height, "width": width}
        scale = (1.0, 1.0)
        if settings.level and not source.is_video:
            scale = read_downsample(source.path, settings.reading())
            row |= {"level": settings.level, "downsample": list(scale)}
        page = None if source.is_video else settings.page
        output = ImageOutput(instances, names, source.path, result.image, page, scale)
        note = write_annotations(settings.format, self.out, name, output)
        if note is not None:
            self.notes.append(note)
        row["results"] = coco_results(instances, 0, range(1, len(names) + 1))
        # drop the reference: a large image must not stay in memory beside its drawn copy
        image, result.image = result.image, None
        if isinstance(image, Slide) and not settings.no_draw:
            self.notes.append(f"{source.path}: not drawn, because it is read by windows; pass --no-draw")
        if isinstance(image, Slide) or settings.no_draw:
            return row, None
        return row, draw_detections(image, to_detections(instances, names), names)


def describe_break(video: VideoReader, source: Source) -> str | None:
    """Return a line about a video that broke off while it was read; None for a whole one."""
    if not video.breaks_off:
        return None
    of = f" of {video.total}" if video.total else ""
    why = f" ({video.error})" if video.error else ""
    return f"{source.path}: breaks off after {len(video.times)}{of} frames{why}; replace the file"


def best_score_hint(
    stream: Callable[..., Iterator[ImageResult]], min_score: float, done: Sequence[Source]
) -> str:
    """Return a line with the best score in the first images of a run without detections; empty without images.

    Args:
        stream: `predict_stream` with the settings of the run, so that images are read and tiled alike.
        min_score: Lowest score that the model serves.
    """
    images = [source.path for source in done if not source.is_video][:HINT_IMAGES]
    if not images:
        return ""
    results = stream(images, score_threshold=min_score, max_detections=1)
    scores = [
        (float(result.instances.scores[0]), path)
        for path, result in zip(images, results, strict=True)
        if result.instances is not None and len(result.instances)
    ]
    if not scores:
        served = f" from {min_score:.2g} on" if min_score else ""
        return f"the first {len(images)} images have no candidates at any score{served}"
    score, path = max(scores)
    scope = f" in {len(images)} of {len(done)}" if len(images) < len(done) else ""
    return f"the best score{scope} is {score:.2g} ({path}); a lower --score-threshold shows more"


def _map_in_threads(
    function: Callable[[tuple[Item, ImageResult]], Output], jobs: Iterable[tuple[Item, ImageResult]]
) -> Iterator[Output]:
    """Apply a function to every job in threads while the next jobs are produced; yield the outputs in order.

    Unlike `prefetch`, the jobs are produced in the calling thread, which runs the network.
    """
    workers = max(choose_workers(None), 1)
    pending: deque[tuple[Future[Output], int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for job in jobs:
            num_bytes = job[1].image.numel() if isinstance(job[1].image, torch.Tensor) else 0
            pending.append((pool.submit(function, job), num_bytes))
            # bounded by number and by bytes, so that slow writing holds back the network instead of filling memory
            while len(pending) > 2 * workers or sum(size for _, size in pending) > MAX_PENDING_BYTES:
                yield pending.popleft()[0].result()
        while pending:
            yield pending.popleft()[0].result()
