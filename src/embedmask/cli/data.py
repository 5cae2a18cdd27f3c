"""The commands of `embedmask data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedmask.cli.recipes import resolve_recipe
from embedmask.cli.terminal import DONE, SOME_BAD, progress_bar
from embedmask.config import DEFAULT_READING
from embedmask.config.data import Degenerate, Exif, Split


def data_shapes(folder: Path, train: int = 2000, val: int = 200, size: int = 256, seed: int = 0) -> None:
    """Make a synthetic data set: textured shapes that overlap, with exact masks, in COCO format.

    Args:
        folder: New or empty folder.
        train: Images in train.
        val: Images in val.
        size: Side of the images, px.
        seed: The same seed gives the same images.
    """
    from embedmask.data.shapes import make_shapes

    with progress_bar() as progress:
        make_shapes(folder, train=train, val=val, size=size, seed=seed, progress=progress)
    print(f"{train} images in train, {val} in val · {folder}")


def data_check(
    *,
    folder: Path,
    out: Path | None = None,
    json: Path | None = None,
    max_detections: int = 100,
    degenerate: Degenerate = "refuse",
    exif: Exif = "auto",
    quick: bool = False,
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    workers: int | None = None,
    val_fraction: float = 0.0,
) -> int:
    """Report every problem of a data set, with counts by size and class; exit code 2 when training would stop.

    Args:
        folder: Data set, of any layout that train reads.
        out: Folder for the counts, a contact sheet of each split, and the problems drawn; or only the counts, as an
            image such as counts.png.
        json: Write the whole report to this file: the lists that are printed are shortened.
        max_detections: Name the images with more objects than this.
        degenerate: refuse or drop objects without area, as --augment.degenerate of train.
        exif: Frame of the annotations where an image's EXIF orientation leaves two: upright, or as it is stored.
        quick: Do not decode images: miss what is cut short, and copies that were stored again.
        page: Page of TIFF stacks, or frame of animations, from 0; by default the first.
        channels: One channel of image files, as grey, or three as R, G and B, from 0; by default the
            colours of an image in colour or the first channel.
        workers: Threads that read images; by default one a core.
        val_fraction: Hold out this fraction of train as val, as --val-fraction of train.
    """
    from embedmask.cli.check import report_lines
    from embedmask.cli.show import write_drawings
    from embedmask.data.check import check_folder
    from embedmask.files import write_json

    with progress_bar() as progress:
        report = check_folder(
            folder,
            max_detections=max_detections,
            degenerate=degenerate,
            exif=exif,
            quick=quick,
            workers=workers,
            options=DEFAULT_READING.changed(page, channels),
            progress=progress,
            val_fraction=val_fraction,
        )
    print("\n".join(report_lines(report)))
    if json is not None:
        write_json(json, report.to_dict())
    if out is not None:
        write_drawings(report, out)
    return SOME_BAD if report.fatal else DONE


def data_split(
    *,
    folder: Path,
    out: Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    degenerate: Degenerate = "refuse",
    copy: bool = False,
) -> None:
    """Write a data set without val as a new one with train, val (and test), divided by the content of its images.

    Near-duplicates stay together. Names and order of the images do not matter: the same images give the same splits,
    which are those of train --val-fraction. The folder itself is not changed.

    Args:
        folder: Data set without a val split, of any layout.
        out: New or empty folder for train.json, val.json and images/; by default FOLDER-split, beside the folder.
        val: Fraction of the images for val.
        test: Fraction of the images for test; 0: none.
        degenerate: refuse or drop objects without area, as --augment.degenerate of train.
        copy: Copy the images; by default they are hard links where the disk allows it, which share their bytes.
    """
    from embedmask.data.split import write_split

    place = folder.resolve()
    out = out or place.with_name(f"{place.name}-split")
    report = write_split(folder, out, val=val, test=test, degenerate=degenerate, copy=copy)
    print(f"{folder}: {report.layout}")
    total = sum(report.counts.values())
    counts = ", ".join(f"{count} in {split}" for split, count in report.counts.items())
    kept = f"{report.linked} images linked, {total - report.linked} copied"
    print(f"{counts} · {kept} · {out}")


def data_show(
    *,
    folder: Path,
    split: Split = "train",
    out: Path | None = None,
    count: int = 12,
    exif: Exif | None = None,
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    config: str | None = None,
    augment: dict[str, Any] | None = None,
    val_fraction: float = 0.0,
) -> None:
    """Draw images of a data set with their ground truth on one contact sheet.

    Args:
        folder: Folder of the data set.
        split: train or val.
        out: ImageSource to write; by default SPLIT.png in the working folder.
        count: Images on the sheet, spread over the split.
        exif: Frame of the annotations where an image's EXIF orientation leaves two: upright, or as it is stored; by
            default upright, or what the recipe says.
        page: Page of TIFF stacks, or frame of animations, from 0; by default what the recipe says, else the
            first.
        channels: One channel of image files, as grey, or three as R, G and B, from 0; by default likewise, else the
            colours of an image in colour or the first channel.
        config: Recipe, a name or a YAML file: draw what training with it sees, not the images as they are.
        augment: Changes a FIELD of the recipe's data section, as --data.FIELD does; they are listed below.
        val_fraction: Hold out this fraction of train as val, as --val-fraction of train.
    """
    from embedmask.cli.show import write_contact_sheet

    path = out or Path(f"{split}.png")
    recipe = resolve_recipe(config, {"data": augment}) if config or augment else None
    shown = write_contact_sheet(
        folder,
        split,
        path,
        count,
        augment=None if recipe is None else recipe.data,
        exif=exif,
        options=(DEFAULT_READING if recipe is None else recipe.model.reading()).changed(page, channels),
        val_fraction=val_fraction,
    )
    print(f"{shown} images of {split} · {path}")
