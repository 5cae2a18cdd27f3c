"""What `predict` has finished so far, so that it can go on after it was stopped, and the results of all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from embedmask.cli.dataset_ids import DatasetIds
from embedmask.cli.sources import Source
from embedmask.errors import BadInput
from embedmask.files import atomic_write, is_temporary, remove_temporary, write_json, write_json_rows

FOLDER = ".predict"
Row = dict[str, Any]


class Journal:
    """A file for each finished image or video in `OUT/.predict`; it is written last, so what it tells of is whole.

    A row is an image or a frame: `source`, `name` (of its files), for frames `frame`, `height`, `width` and
    `results`, which are COCO's but for `image_id`: images are numbered when all are there.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Nothing is touched yet.

        Args:
            settings: all that results depend on, plain values.
        """
        self.out = out
        self.settings = dict(settings)
        self.folder = out / FOLDER
        self._made = not out.exists()

    def check(self) -> None:
        """Whether the run in `out` can go on with these settings; where there is none, it can begin.

        Raises:
            BadInput: it was begun with others.
        """
        try:
            begun = json.loads(self._settings_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            begun = {}
        for name, value in self.settings.items():
            if begun.get(name) != value:
                option = f"--{name.replace('_', '-')}"
                raise BadInput(
                    f"{self.out}: was begun with {option} {begun.get(name)}, now {value}; "
                    "give what it was begun with, or leave out --resume to start again"
                )

    def begin(self, *, resume: bool) -> None:
        """Make the folder; unless `resume`, forget what was finished. Nobody else may be writing there.

        Raises:
            BadInput: it cannot be written.
        """
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        write_json(self._settings_file, self.settings)
        for folder in (self.out, self.folder):
            remove_temporary(folder)

    def discard_empty(self) -> None:
        """Leave no trace where nothing was finished."""
        if not any(not is_temporary(path) for path in self.folder.glob("*.jsonl")):
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._made:
                with suppress(OSError):  # something else is in there, or it was never made
                    self.out.rmdir()

    def is_done(self, source: Source) -> bool:
        """Whether this very file was finished under this name."""
        begin = json.dumps({"source": str(source.path)})[:-1]
        try:
            with self._file(source).open(encoding="utf-8") as file:
                return file.read(len(begin)) == begin
        except FileNotFoundError:
            return False

    def write(self, source: Source, rows: Iterable[Row]) -> None:
        """Keep the rows of an image, or those of a video's frames as they come."""
        with atomic_write(self._file(source)) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"source": str(source.path), **row}) + "\n")

    def rows(self, source: Source) -> Iterator[Row]:
        """What `write` was given for a finished source, and `source`."""
        with self._file(source).open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def merge(
        self, sources: Sequence[Source], class_names: Sequence[str], ids: DatasetIds | None = None
    ) -> tuple[int, int]:
        """Write `predictions.json` and `images.json` of all that is finished; memory holds one image's results.

        Args:
            sources: finished ones, in the order of the numbers that their images get.
            ids: image and category ids of a data set; None: images are counted from 1, categories are labels + 1.

        Returns:
            Number of images and of objects.
        """
        images: list[Row] = []
        num_objects = 0

        numbers = list(range(1, len(class_names) + 1)) if ids is None else ids.categories

        def results() -> Iterator[Row]:
            nonlocal num_objects
            for source, row in ((own, row) for own in sources for row in self.rows(own)):
                found = row.pop("results")
                num_objects += len(found)
                image_id = len(images) + 1 if ids is None else ids.images[source.name]
                images.append({"id": image_id, "file_name": row.pop("source"), **row})
                for result in found:
                    category = numbers[result["category_id"] - 1]
                    yield {**result, "image_id": image_id, "category_id": category}

        write_json_rows(self.out / "predictions.json", results())
        categories = [{"id": n, "name": name} for n, name in zip(numbers, class_names, strict=True)]
        write_json(self.out / "images.json", {"images": images, "categories": categories})
        return len(images), num_objects

    @property
    def _settings_file(self) -> Path:
        return self.folder / "settings.json"

    def _file(self, source: Source) -> Path:
        return self.folder / f"{source.name}.jsonl"
