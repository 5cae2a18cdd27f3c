"""Journal of finished files: lets `predict --resume` continue a run, and merges its results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from embedmask.errors import BadInput
from embedmask.files import atomic_write, is_temporary, remove_temporary, write_json, write_json_rows
from embedmask.predict.dataset_ids import DatasetIds
from embedmask.predict.sources import Source

FOLDER = ".predict"
FAULT = "fault"
"""Key of the last line of a source that was read in part."""
CHANGES = ("file_size", "file_time")
"""Keys of a row that tell whether the file was replaced: bytes, and nanoseconds of the last change."""
MAX_FAULT_BYTES = 65_536
"""Upper bound of the length of the line about a fault."""
FAULT_PREFIX = f'{{"{FAULT}": '
Row = dict[str, Any]


class Journal:
    """Folder `OUT/.predict` with one JSON-lines file per finished image or video.

    The file of a source is written after all its other results, so its existence means that these are complete. A row
    is an image or a frame: `source`, `name` (of its result files), `frame` and `time` (of frames), `height`, `width`
    and `results`, which are COCO results without a valid `image_id`: images are numbered by `merge`. A video that
    breaks off has one more line with the reason.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Set up the journal without touching the disk; the results depend on `settings`, which are plain values."""
        self.out = out
        self.settings = dict(settings)
        self.folder = out / FOLDER
        self._settings_file = self.folder / "settings.json"
        self._is_new = not out.exists()

    def check(self) -> None:
        """Check that the run in `out`, if there is one, has the same settings.

        Raises:
            BadInput: A setting differs, or the file of the settings is damaged.
        """
        try:
            started = json.loads(self._settings_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except OSError as error:
            raise BadInput(f"{self._settings_file}: cannot be read ({error.strerror})") from None
        except ValueError:
            started = None
        if not isinstance(started, dict):
            raise BadInput(f"{self._settings_file}: is damaged; omit --resume to start over")
        for name, value in self.settings.items():
            if started.get(name) != value:
                option = f"--{name.replace('_', '-')}"
                raise BadInput(
                    f"{self.out}: was started with {option} {started.get(name)}, now {value}; "
                    "repeat the original options, or omit --resume to start over"
                )

    def begin(self, *, resume: bool) -> None:
        """Create the folder; without `resume`, delete earlier entries. The caller holds `exclusive`.

        Raises:
            BadInput: The folder cannot be written.
        """
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        write_json(self._settings_file, self.settings)
        for folder in (self.out, self.folder):
            remove_temporary(folder)

    def discard_empty(self) -> None:
        """Remove the folder if no source was finished, and `out` if this run created it."""
        if not any(not is_temporary(path) for path in self.folder.glob("*.jsonl")):
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._is_new:
                with suppress(OSError):  # it has other contents, or was never created
                    self.out.rmdir()

    def is_done(self, source: Source) -> bool:
        """Return whether this source was finished under this name and has not changed since."""
        # rows begin with the file, so a prefix of the first one suffices: files of videos are large
        prefix = json.dumps(_file_of(source))[:-1]
        try:
            with self._file(source).open(encoding="utf-8", errors="replace") as file:
                return file.read(len(prefix)) == prefix
        except FileNotFoundError:
            return False

    def write(
        self, source: Source, rows: Iterable[Row], fault: Callable[[], str | None] = lambda: None
    ) -> None:
        """Write the rows of an image, or those of a video's frames as they are produced.

        Args:
            fault: Called after the last row; returns a line about a source that was read in part, or None.
        """
        with atomic_write(self._file(source)) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({**_file_of(source), **row}) + "\n")
            message = fault()
            if message is not None:
                file.write(json.dumps({FAULT: message}) + "\n")

    def rows(self, source: Source) -> Iterator[Row]:
        """Yield the rows of a finished source, with the key `source`.

        Raises:
            BadInput: The file of the source is damaged.
        """
        with self._file(source).open("rb") as file:
            for line in file:
                if not line.startswith(FAULT_PREFIX.encode()):
                    row = self._parse(line, source)
                    yield {key: value for key, value in row.items() if key not in CHANGES}

    def fault(self, source: Source) -> str | None:
        """Return the line about a finished source that was read in part; None if it was read whole."""
        with self._file(source).open("rb") as file:
            # only the end: rows of a long video take gigabytes
            file.seek(max(file.seek(0, os.SEEK_END) - MAX_FAULT_BYTES, 0))
            last = file.read().rstrip().rpartition(b"\n")[2]
        is_fault = last.startswith(FAULT_PREFIX.encode())
        return str(self._parse(last, source)[FAULT]) if is_fault else None

    def _parse(self, line: bytes, source: Source) -> Row:
        try:
            row = json.loads(line)  # a ValueError also for bytes that are no text
        except ValueError:
            row = None
        if not isinstance(row, dict):
            path = self._file(source)
            raise BadInput(f"{path}: is damaged; remove it and repeat the command with --resume")
        return row

    def merge(
        self, sources: Sequence[Source], class_names: Sequence[str], ids: DatasetIds | None = None
    ) -> tuple[int, int]:
        """Write `predictions.json` and `images.json`; only one image's results are in memory at a time.

        Args:
            sources: Finished sources, in the order of their image ids.
            ids: Image and category ids of a data set; None: images are numbered from 1, categories are labels + 1.

        Returns:
            Number of images and number of objects.
        """
        images: list[Row] = []
        num_objects = 0
        category_ids = list(range(1, len(class_names) + 1)) if ids is None else ids.categories

        def results() -> Iterator[Row]:
            nonlocal num_objects
            for source, row in ((each, row) for each in sources for row in self.rows(each)):
                detections = row.pop("results")
                num_objects += len(detections)
                image_id = len(images) + 1 if ids is None else ids.images[source.name]
                images.append({"id": image_id, "file_name": row.pop("source"), **row})
                for result in detections:
                    # rows store label + 1
                    category_id = category_ids[result["category_id"] - 1]
                    yield {**result, "image_id": image_id, "category_id": category_id}

        # consuming the results fills `images`, which is therefore written second
        write_json_rows(self.out / "predictions.json", results())
        categories = [{"id": n, "name": name} for n, name in zip(category_ids, class_names, strict=True)]
        write_json(self.out / "images.json", {"images": images, "categories": categories})
        return len(images), num_objects

    def _file(self, source: Source) -> Path:
        """Return the path of a source's rows."""
        return self.folder / f"{source.name}.jsonl"


def _file_of(source: Source) -> Row:
    """Return the path of a source, and its size and time of change, by which a replaced file is recognized."""
    try:
        status = source.path.stat()
    except OSError:  # removed after it was read
        return {"source": str(source.path)}
    return {
        "source": str(source.path),
        **dict(zip(CHANGES, (status.st_size, status.st_mtime_ns), strict=True)),
    }
