"""Page of nuclei.py: tables and charts from the stored figures, and the images of nuclei_images.py."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nuclei_images import PARTNER_IOU, SIDE, ZOOM, Scenes, Shot, write_close_look, write_ranked
from reporting import table

from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import THRESHOLDS
from embedmask.files import atomic_write, write_text
from embedmask.machine import processor_text

BEGIN, END = "<!-- benchmarks/nuclei.py: begin -->", "<!-- benchmarks/nuclei.py: end -->"
PUBLISHED = {
    "3-class U-Net": (0.806, 0.775, 0.743, 0.701, 0.654, 0.578, 0.491, 0.374, 0.226),
    "StarDist": (0.864, 0.836, 0.804, 0.755, 0.685, 0.586, 0.450, 0.287, 0.119),
    "Mask R-CNN": (0.832, 0.805, 0.773, 0.730, 0.684, 0.597, 0.489, 0.353, 0.189),
    "Cellpose, public model": (0.868, 0.852, 0.829, 0.802, 0.755, 0.676, 0.563, 0.418, 0.234),
    "Neven et al.": (0.873, 0.852, 0.830, 0.799, 0.762, 0.704, 0.623, 0.511, 0.373),
    "Cellpose, trained on the set": (0.853, 0.826, 0.812, 0.792, 0.768, 0.716, 0.645, 0.536, 0.402),
    "EmbedSeg, test-time augmentation": (0.876, 0.858, 0.834, 0.806, 0.768, 0.715, 0.645, 0.530, 0.399),
}
"""Matching AP at each IoU, mean over 50 test images of StarDist's subset: the figure of arXiv 2101.10033."""
MATCHING = tuple(f"AP{round(100 * iou)}" for iou in THRESHOLDS)
COLORS = ("#1864ab", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#5f3dc4")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")

Results = dict[str, Any]
Rows = Mapping[str, Results]


def write_page(
    stored: Results, dataset: CocoInstances, evaluators: Iterable[tuple[str, CocoEvaluator]], docs: Path
) -> None:
    """Write charts and images to `docs/nuclei`, and the text between the two marks of `docs/results.md`.

    Args:
        stored: figures measured by nuclei.py; the images are those of its first row.
        dataset: the images of that row.
        evaluators: row -> evaluator with the results on these images, first row first; consumed after all checks.
        docs: folder of results.md.

    Raises:
        BadInput: the page lacks the two marks.
    """
    path, folder = docs / "results.md", docs / "nuclei"
    before, after = around_marks(path)
    rows: Rows = stored["rows"]
    for name, (draw, _) in CHARTS.items():
        write_chart(folder / f"{name}.png", draw, same_images(rows))
    scenes = [
        Scenes(name, dataset, evaluator, rows[name]["score_threshold"]) for name, evaluator in evaluators
    ]
    shots = [*write_ranked(scenes[0], folder), write_close_look(scenes, folder)]
    write_text(
        path, f"{before}{BEGIN}\n{generated_text(stored, shots, [one.name for one in scenes])}\n{END}{after}"
    )


def around_marks(path: Path, begin: str = BEGIN, end: str = END) -> tuple[str, str]:
    """Return the text before and after the generated part.

    Raises:
        BadInput: the page is missing, or does not have each mark once, in order.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    # exactly one begin mark, followed by exactly one end mark
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in rest or end in before + after:
        raise BadInput(f"{path}: needs one line {begin!r} and below it one line {end!r}; put them in")
    return before, after


def same_images(rows: Rows) -> Rows:
    """Return the rows measured on the same images as the first row, which are comparable."""
    where = next(iter(rows.values()))["where"]
    return {name: row for name, row in rows.items() if row["where"] == where}


# --- text ---------------------------------------------------------------------


def generated_text(stored: Results, shots: Sequence[Shot], drawn: Sequence[str]) -> str:
    """Return the text between the marks; `drawn` are the rows with results in the images."""
    rows: Rows = stored["rows"]
    first = next(iter(rows))
    lines = [
        *published_lines(same_images(rows)),
        *comparison_lines(rows, stored["time"]),
        *modality_lines({name: row for name, row in rows.items() if len(row["modalities"]) > 1}),
        "### Images",
        f"Left: ground truth. Right: results of {first} with a score of at least {rows[first]['score_threshold']:g}. "
        "Shown are the two best, the two median and the two worst images by mean matching AP. For large images, the "
        f"most crowded {SIDE} x {SIDE} px are shown; figures are for the whole image. Pixels are enlarged {ZOOM} "
        "times, contrast is stretched, dark values are brightened. A ground-truth object and its matching result "
        f"(IoU of at least {PARTNER_IOU}) have the same color; thick white outlines are unmatched. All images are "
        "from BBBC038, CC0 1.0.",
        "",
    ]
    lines += [line for shot in shots for line in shot_lines(shot)]
    return "\n".join([*lines, *command_lines(stored, drawn)])


def shot_lines(shot: Shot) -> list[str]:
    """Return the Markdown of an image and its caption."""
    return [shot.caption, "", f"![{shot.name.replace('_', ' ')}](nuclei/{shot.name}.png)", ""]


def published_lines(rows: Rows) -> list[str]:
    """Return the section of matching AP beside published results."""
    first = next(iter(rows.values()))
    body = [[name, *map(number, values), number(mean(values)), "–"] for name, values in PUBLISHED.items()]
    for name, row in rows.items():
        values = [row["metrics"][f"matching/{metric}"] for metric in MATCHING]
        ends = mean(values), row["metrics"]["matching_pooled/mAP"]
        body.append([f"**{name}**", *map(number, (*values, *ends))])
    return [
        "### Against published results",
        "AP is TP / (TP + FP + FN) at an IoU, mean over images; in the last column, the counts of all images are "
        "pooled before averaging over IoU. The upper rows are published, a figure of the EmbedSeg paper "
        "(arXiv 2101.10033), on the 50 test images of StarDist's subset. The rows in bold were measured here, on "
        f"{first['images']} validation images{chosen_by(first)}, with one forward pass per image, without "
        "test-time augmentation. The images differ from the published ones.",
        "",
        *table(["", *(f".{metric.removeprefix('AP')}" for metric in MATCHING), "mean", "pooled"], body),
        *chart_lines("matching"),
        *chart_lines("thresholds"),
    ]


def comparison_lines(rows: Rows, times: Results | None) -> list[str]:
    """Return the section that compares all models."""
    head = ["", "network", "backbone", "parameters", "steps", "images", "mask AP", "AP50", "AP75", "AP90",
            "boundary AP", "box AP", "matching mean"]  # fmt: skip
    metrics = ("segm/AP", "segm/AP50", "segm/AP75", "segm/AP90", "boundary/AP", "bbox/AP", "matching/mAP")
    body = [
        [
            name,
            row["model"]["kind"],
            row["model"]["backbone"],
            f"{row['model']['parameters'] / 1e6:.1f} M",
            "–" if row["training"] is None else f"{row['training']['steps']:,}",
            str(row["images"]),
            *(number(row["metrics"][metric]) for metric in metrics),
        ]
        for name, row in rows.items()
    ]
    by_iou = [[name, *map(number, row["by_iou"]["segm"])] for name, row in rows.items()]
    ious = [f".{50 + 5 * step}" for step in range(10)]
    return [
        "### Compared with Mask R-CNN",
        "Rows are comparable if they have the same images. AP is COCO's, mean over IoU 0.5 to 0.95; boundary AP "
        "compares a band along the outline.",
        "",
        *table(head, body),
        "Mask AP at each IoU:",
        "",
        *table(["", *ious], by_iou),
        *chart_lines("precision"),
        *time_lines(rows, times),
    ]


def time_lines(rows: Rows, times: Results | None) -> list[str]:
    """Return the lines of time and memory, if models were timed."""
    if times is None:
        return []
    body = [
        [
            name,
            f"{1000 * seconds:.0f}",
            f"{times['ratios'][name]:.2f}",
            *(f"{rows[name]['memory_mb'][step]:.0f}" for step in ("before", "images")),
        ]
        for name, seconds in times["seconds"].items()
    ]
    where = times["machine"]
    others = [
        f"{name}, in a process of its own with TensorFlow {row['machine']['tensorflow']}: {row['cpu_ms']:.0f} ms of "
        f"CPU time per image on one thread of {row['machine']['processor']}, at most "
        f"{row['memory_mb']['images']:.0f} MB."
        for name, row in rows.items()
        if "cpu_ms" in row
    ]
    return [
        "Time is the median over images, one at a time, from the decoded image to final masks in its own frame; all "
        "models predicted each image in turn, in one process. Memory is measured in a separate process that predicts "
        "all images one by one: before the first image, and at its peak. On "
        f"{processor_text(where)}, threads: {where['threads']}, torch "
        f"{where['torch']}.",
        "",
        *table(["", "ms per image", "relative to the first", "MB before", "peak MB"], body),
        *(line for other in others for line in (other, "")),
    ]


def modality_lines(rows: Rows) -> list[str]:
    """Return the section of figures by modality, for models measured on several."""
    if not rows:
        return []
    metrics = ("segm/AP", "segm/AP50", "segm/AP75", "boundary/AP", "bbox/AP", "matching/mAP", "matching/AP50")
    body = [
        [name, kind, str(of["images"]), str(of["objects"]), *(number(of["metrics"][m]) for m in metrics)]
        for name, row in rows.items()
        for kind, of in (*row["modalities"].items(), ("all", row))
    ]
    head = ["", "modality", "images", "objects", "mask AP", "AP50", "AP75", "boundary AP", "box AP",
            "matching mean", "matching .50"]  # fmt: skip
    return [
        "### By modality",
        "Models that were measured on several modalities.",
        "",
        *table(head, body),
    ]


def command_lines(stored: Results, drawn: Sequence[str]) -> list[str]:
    """Return the section of the commands behind the figures."""
    lines = ["### Commands", "```"]
    for name, row in stored["rows"].items():
        if "commands" in row:
            lines += row["commands"]
            options = [f"--results {row['weights']}", f'--name "{name}"', f"--where {row['where']}"]
            lines.append(f"python benchmarks/nuclei.py measure --data nuclei {' '.join(options)}")
            continue
        training = row["training"]
        recipe = None if training is None else training["recipe"]
        if recipe is not None:
            lines.append(train_line(training, row["where"]))
        options = [f"--weights {row['weights']}", f'--name "{name}"']
        changes = [f"{field}={value}" for field, value in row["changes"].items()]
        options += ["--change", *changes] if changes else []
        options += [] if row["where"] is None else [f"--where {row['where']}"]
        options += [] if training is None else [f"--run runs/{training['run']}"]
        options += [] if recipe is None else [f"--recipe {recipe}"]
        options += [f"--score-threshold {row['score_threshold']:g}"]
        lines.append(f"python benchmarks/nuclei.py measure --data nuclei {' '.join(options)}")
    if stored["time"] is not None:
        lines.append(
            f"python benchmarks/nuclei.py time --data nuclei --weights {files(stored, stored['time']['seconds'])}"
        )
    lines += [f"python benchmarks/nuclei.py page --data nuclei --weights {files(stored, drawn)}", "```"]
    commits = [f"{name}: {row['machine']['commit']}" for name, row in stored["rows"].items()]
    return [*lines, f"Commits of the measurements: {', '.join(commits)}."]


def train_line(training: Results, where: str | None) -> str:
    """Return the command of a training, with the fields that differ from its recipe."""
    part = "" if where is None else f" --data.image_filter {where}"
    command = (
        f"embedmask train --config {training['recipe']} --data nuclei --out runs/{training['run']}{part}"
    )
    values = ((field, json.dumps(value).strip('"')) for field, value in training["overrides"].items())
    return " ".join([command, *(f"--{field} {shlex.quote(value)}" for field, value in values)])


def files(stored: Results, names: Iterable[str]) -> str:
    """Return the arguments ROW=FILE of some rows."""
    return " ".join(f'"{name}={stored["rows"][name]["weights"]}"' for name in names)


def chosen_by(row: Results) -> str:
    """Return the filter of the images of a row, if any."""
    return "" if row["where"] is None else f" (`{row['where']}`)"


def chart_lines(name: str) -> list[str]:
    """Return the Markdown of a chart."""
    return [f"![{CHARTS[name][1]}](nuclei/{name}.png)", ""]


def number(value: float | None) -> str:
    """Format a figure with three digits; None becomes a dash."""
    return "–" if value is None else f"{value:.3f}"


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values."""
    return sum(values) / len(values)


# --- charts -------------------------------------------------------------------


def write_chart(path: Path, draw: Callable[[Any, Rows], None], rows: Rows) -> None:
    """Write one chart, 800 px wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    draw(figure, rows)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def styles(rows: Rows) -> Iterator[tuple[str, Results, Results]]:
    """Yield each row with its line style; color, marker and dashes each distinguish the rows."""
    for index, (name, row) in enumerate(rows.items()):
        style = {
            "color": COLORS[index % len(COLORS)],
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": DASHES[index % len(DASHES)],
        }
        yield name, row, {**style, "label": name, "linewidth": 2}


def draw_matching(figure: Any, rows: Rows) -> None:
    """Draw matching AP against IoU; published results in gray."""
    panel = figure.subplots()
    for index, (name, values) in enumerate(PUBLISHED.items()):
        style = {"marker": "1234+x|"[index], "linestyle": DASHES[index % len(DASHES)], "markersize": 9}
        panel.plot(THRESHOLDS, values, color="#868e96", linewidth=1, label=f"published: {name}", **style)
    for _, row, style in styles(rows):
        panel.plot(THRESHOLDS, [row["metrics"][f"matching/{metric}"] for metric in MATCHING], **style)
    panel.set(xlabel="IoU", ylabel="TP / (TP + FP + FN), mean over images", ylim=(0.1, 1))
    panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="x-small")


def draw_precision(figure: Any, rows: Rows) -> None:
    """Draw precision against recall of masks, one panel per IoU."""
    ious = list(next(iter(rows.values()))["precision"])
    recall = np.linspace(0, 1, 101)
    # one legend for all panels: labels on the first only
    for iou, panel in zip(ious, figure.subplots(1, len(ious), sharey=True), strict=True):
        for name, row, style in styles(rows):
            panel.plot(
                recall,
                row["precision"][iou],
                markevery=20,
                **{**style, "label": name if iou == ious[0] else None},
            )
        panel.set(title=f"IoU {iou}", xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    figure.supylabel("precision", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=3)


def draw_thresholds(figure: Any, rows: Rows) -> None:
    """Draw mean matching AP against the score threshold; a ring marks the threshold in use."""
    panel = figure.subplots()
    for _, row, style in styles(rows):
        scores = [float(score) for score in row["by_threshold"]]
        panel.plot(scores, list(row["by_threshold"].values()), **style)
        used = row["score_threshold"], row["metrics"]["matching/mAP"]
        panel.plot(*used, marker="o", markersize=14, fillstyle="none", color=style["color"])
    panel.set(xlabel="score from which results count (ring: in use)", ylabel="mean matching AP", ylim=(0, 1))
    panel.grid(alpha=0.3)
    panel.legend()


CHARTS: dict[str, tuple[Callable[[Any, Rows], None], str]] = {
    "matching": (draw_matching, "matching AP against IoU"),
    "thresholds": (draw_thresholds, "mean matching AP against the score threshold"),
    "precision": (draw_precision, "precision against recall of masks"),
}
