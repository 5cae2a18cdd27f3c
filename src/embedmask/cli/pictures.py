"""Pictures in, pictures out: what `predict` and `data show` do."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from embedmask.config import DataConfig, Precision
from embedmask.config.data import Split
from embedmask.data.coco import CocoInstances
from embedmask.data.images import is_picture, read_image
from embedmask.data.transforms import TrainTransform
from embedmask.errors import BadInput
from embedmask.files import write_json
from embedmask.inference.predictor import Predictor
from embedmask.inference.results import coco_results, to_detections
from embedmask.training.samples import draw_target, spread
from embedmask.visualize import contact_sheet, draw, write_picture

NUM_COLUMNS = 4


@dataclass
class Outcome:
    """What became of a prediction run.

    Attributes:
        results: COCO results of all pictures.
        images: COCO's list of images.
        broken: one line for each file that could not be used.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def num_objects(self) -> int:
        """Objects found."""
        return len(self.results)

    @property
    def num_images(self) -> int:
        """Pictures that could be read."""
        return len(self.images)


def predict_files(
    sources: Sequence[str],
    weights: Path,
    out: Path,
    *,
    score_threshold: float,
    max_detections: int | None,
    precision: Precision,
    device: str,
    progress: bool,
) -> Outcome:
    """Predict files, draw each, and write `predictions.json` (COCO results) and `images.json` beside them.

    A file that is not a whole picture is noted and passed over.

    Raises:
        BadInput: nothing to predict, weights that cannot be used, or a folder that cannot be written.
    """
    if not 0 <= score_threshold <= 1:
        raise BadInput(f"--score-threshold must lie between 0 and 1, got {score_threshold}")
    files = find_pictures(sources)
    predictor = Predictor.load(weights, device=device, precision=precision)
    outcome = Outcome()
    names = unique_names(files)
    refuse_overwriting(files, [out / name for name in names])
    for path, name in tqdm(list(zip(files, names, strict=True)), unit="picture", disable=not progress):
        try:
            image = read_image(path)
        except BadInput as error:
            outcome.broken.append(str(error))
            continue
        image_id = outcome.num_images + 1
        found = predictor.instances(image, max_detections, score_threshold)
        outcome.images.append(
            {"id": image_id, "file_name": str(path), "height": image.shape[1], "width": image.shape[2]}
        )
        results = coco_results(found, image_id, range(1, len(predictor.class_names) + 1))
        outcome.results.extend(result for result in results if result["score"] >= score_threshold)
        detections = to_detections(found, predictor.class_names, score_threshold)
        write_picture(draw(image, detections, predictor.class_names), out / name)
    if outcome.images:
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(predictor.class_names)]
        write_json(out / "predictions.json", outcome.results)
        write_json(out / "images.json", {"images": outcome.images, "categories": categories})
    return outcome


def find_pictures(sources: Sequence[str]) -> list[Path]:
    """Files as given, the pictures of a folder by name, what a pattern matches; each file once.

    Raises:
        BadInput: a source that is none of these, or that holds no picture.
    """
    found = [path for source in sources for path in _pictures_of(source)]
    return list(dict.fromkeys(found))


def _pictures_of(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        pictures = [file for file in sorted(path.iterdir()) if file.is_file() and is_picture(file)]
        if not pictures:
            raise BadInput(f"{source}: a folder without pictures; give files such as .jpg or .png")
        return pictures
    matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
    pictures = [match for match in matches if match.is_file() and is_picture(match)]
    if not pictures:
        raise BadInput(f"{source}: no such file, folder or pattern with pictures; check the path")
    return pictures


def refuse_overwriting(files: Sequence[Path], results: Sequence[Path]) -> None:
    """A drawn picture must not take the place of a picture that it was made from."""
    sources = {file.resolve() for file in files}
    for result in results:
        if result.resolve() in sources:
            raise BadInput(f"{result}: is one of the pictures and would be overwritten; choose another --out")


def unique_names(files: Sequence[Path]) -> list[str]:
    """`STEM.png` for each file; where a stem comes again, `STEM_2.png` and so on."""
    taken: set[str] = set()
    names = []
    for path in files:
        name, number = f"{path.stem}.png", 2
        while name in taken:
            name, number = f"{path.stem}_{number}.png", number + 1
        taken.add(name)
        names.append(name)
    return names


def write_contact_sheet(
    folder: Path, split: Split, out: Path, count: int, augment: DataConfig | None = None
) -> int:
    """Pictures spread over a split, with their ground truth drawn, on one sheet; gives how many.

    With `augment`, each is one of the items that training would see.
    """
    if count < 1:
        raise BadInput(f"--count must be at least 1, got {count}")
    if augment is None:
        dataset = CocoInstances.open(folder, split)
    else:
        transform = TrainTransform(augment)
        dataset = CocoInstances.open(folder, split, transform, degenerate=augment.degenerate)
    items = [dataset.sample(i, torch.Generator().manual_seed(i)) for i in spread(len(dataset), count)]
    pictures = [draw_target(image, target, dataset.class_names) for image, target in items]
    write_picture(contact_sheet(pictures, columns=min(NUM_COLUMNS, len(pictures))), out)
    return len(pictures)
