"""The commands of `embedmask data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedmask.cli.terminal import INVALID_INPUT, SUCCESS, progress_bar
from embedmask.config import DEFAULT_READING
from embedmask.config.bundled import resolve_recipe
from embedmask.config.data import Degenerate, Exif, Split


def data_shapes(folder: Path, train: int = 2000, val: int = 200, size: int = 256, seed: int = 0) -> None:
    """Create a synthetic data set of overlapping textured shapes with exact masks, in COCO format.

    Args:
        folder: New or empty folder.
        train: Number of training images.
        val: Number of validation images.
        size: Side of the images, px.
        seed: Seed of the random numbers; the same seed gives the same images.
    """
    from embedmask.synthetic.dataset import make_shapes

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
    """Check a data set and report every problem, with object counts by size and class.

    Exits with code 2 when training would stop.

    Args:
        folder: Data set, in any layout that train reads.
        out: Folder for the counts, a contact sheet of each split, and drawings of the problems; or an image file, such
            as counts.png, for the counts alone.
        json: Write the full report to this file; the printed lists are shortened.
        max_detections: Warn about images with more objects than this.
        degenerate: refuse or drop objects without area, like --data.degenerate of train.
        exif: Frame of the annotations where an image's EXIF orientation is ambiguous: upright or stored.
        quick: Do not decode images; truncated files and re-encoded copies are not detected.
        page: Page of TIFF stacks or frame of animations, from 0; by default the first.
        channels: Channels of image files, from 0: one as gray, or three as RGB; by default the image's own colors or
            its first channel.
        workers: Threads that read images; by default one per core.
        val_fraction: Hold out this fraction of train as val, like --val-fraction of train.
    """
    from embedmask.cli.check import report_lines
    from embedmask.data.check import check_folder
    from embedmask.errors import BadInput
    from embedmask.files import check_writable, write_json
    from embedmask.samples import counts_file, write_drawings

    if out is not None:
        import matplotlib  # noqa: F401 - if it is missing, stop before the check

        check_writable(counts_file(out))
    if json is not None:
        check_writable(json)
    if max_detections < 1:
        raise BadInput(f"--max-detections {max_detections}: use at least 1")
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
    return INVALID_INPUT if report.fatal else SUCCESS


def data_split(
    *,
    folder: Path,
    out: Path | None = None,
    val: float = 0.2,
    test: float = 0.0,
    degenerate: Degenerate = "refuse",
    exif: Exif = "auto",
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    copy: bool = False,
) -> None:
    """Split a data set without val into train, val and optionally test, and write it as a new one.

    The split depends on image content only, is the same as that of train --val-fraction, and keeps near-duplicates
    together. The source folder is not modified.

    Args:
        folder: Data set without a val split, in any layout.
        out: New or empty folder for train.json, val.json and images/; by default FOLDER-split beside the folder.
        val: Fraction of the images in val.
        test: Fraction of the images in test; 0: no test split.
        degenerate: refuse or drop objects without area, like --data.degenerate of train.
        exif: Frame of the annotations where an image's EXIF orientation is ambiguous: upright or stored.
        page: Page of TIFF stacks or frame of animations, from 0; by default the first. See --model.image_page.
        channels: Channels of image files, from 0: one as gray, or three as RGB; by default the image's own colors or
            its first channel.
        copy: Copy the images; by default they are hard-linked where the file system allows it.
    """
    from embedmask.data.split import write_split

    source = folder.resolve()
    out = out or source.with_name(f"{source.name}-split")
    report = write_split(
        folder,
        out,
        val=val,
        test=test,
        degenerate=degenerate,
        exif=exif,
        options=DEFAULT_READING.changed(page, channels),
        copy=copy,
    )
    total = sum(report.counts.values())
    counts = ", ".join(f"{count} in {split}" for split, count in report.counts.items())
    print(f"{folder}: {report.layout}", *report.notes, sep="\n")
    print(f"{counts} · {report.linked} images linked, {total - report.linked} copied · {out}")


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
    """Draw images of a data set with their ground truth on a contact sheet.

    Args:
        folder: Folder of the data set.
        split: train or val.
        out: Image file to write; by default SPLIT.png in the working folder.
        count: Number of images, spread evenly over the split.
        exif: Frame of the annotations where an image's EXIF orientation is ambiguous: upright or stored; by default
            from the recipe, else upright.
        page: Page of TIFF stacks or frame of animations, from 0; by default from the recipe, else the first.
        channels: Channels of image files, from 0: one as gray, or three as RGB; by default from the recipe, else the
            image's own colors or its first channel.
        config: Recipe, a name or a YAML file: draw augmented training samples instead of the original images.
        augment: Override a FIELD of the recipe's data config; --augment.FIELD is an alias.
        val_fraction: Hold out this fraction of train as val, like --val-fraction of train.
    """
    from embedmask.samples import write_contact_sheet

    path = out or Path(f"{split}.png")
    recipe = resolve_recipe(config, {"data": augment}) if config or augment else None
    num_drawn = write_contact_sheet(
        folder,
        split,
        path,
        count,
        recipe=recipe,
        exif=exif,
        options=(DEFAULT_READING if recipe is None else recipe.model.reading()).changed(page, channels),
        val_fraction=val_fraction,
    )
    print(f"{num_drawn} images of {split} · {path}")
